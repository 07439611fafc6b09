"""What a tracking sink is given and what it promises; one experiment becomes flat sibling runs, one per arm.

Sibling runs with identical metric keys are what tracking interfaces lay over each other without being asked; nested
runs leave MLflow's charts empty.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, Self

from abswitch import checks
from abswitch.domain import ModelVersion
from abswitch.errors import InvalidInput
from abswitch.store.recorder import json_text

_ILLEGAL = re.compile(r"[^A-Za-z0-9_.\-/: ]")
_LONGEST_KEY = 250
WINDOW_PREFIX, LOOK_PREFIX = "window/", "look/"
_OWN_FORM = frozenset({"arms", "report", "attachments", "first_metrics", "tags", "dataset", "traces"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """One arm as a run.

    Attributes:
        arm, version: which arm, and the version behind it.
        params: what was fixed beforehand, see `version_params`; the same keys in every arm.
        metrics: totals of the whole experiment by metric name; None or NaN where there is nothing to tell.
        windows: the same metrics by window, oldest first; published as steps 0, 1, 2, … under `window/…`.
        looks: what each look at the evidence found, oldest first; published as steps 1, 2, 3, … under `look/…`.
        tags: further words, e.g. the arm's role; `abswitch.decision` and others here go before the experiment's own.
    """

    arm: str
    version: str
    params: Mapping[str, str | float | bool | None] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    windows: tuple[Mapping[str, float | None], ...] = ()
    looks: tuple[Mapping[str, float | None], ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.name("arm", self.arm)
        checks.name("version", self.version)
        for mapping in (self.metrics, *self.windows, *self.looks):
            for key, value in mapping.items():
                if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                    raise InvalidInput(f"metrics.{key}", value, "a number, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedDataset:
    """The prompts that were asked.

    Attributes:
        source: where they come from, as the experiment's file says it.
        digest: changes with any of them.
        rows: how many there are.
    """

    name: str
    source: Mapping[str, Any]
    digest: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedTrace:
    """One request, as an example of its arm.

    Attributes:
        arm: the name of its run.
        at_s: when it was admitted, seconds since the epoch.
        queue_s, took_s: waiting, and all of it.
        prompt, output: None where text is not recorded.
        error: None when it was answered.
        scores: by scorer.
    """

    request_id: str
    arm: str
    version: str
    at_s: float
    queue_s: float
    took_s: float
    first_token_s: float | None
    output_tokens: int
    prompt: str | None
    output: str | None
    error: str | None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedExperiment:
    """One experiment (or one look at it) as a tracking sink publishes it.

    Publishing the same operation again updates its runs: metrics and tags are replaced, params never change.

    Attributes:
        name: the sink's experiment, e.g. `abswitch/support-bot`; the runs of several operations may share it.
        operation_id: names the runs, together with the arm.
        arms: one run each.
        started_at_s, ended_at_s: seconds since the epoch; None while it is running.
        looked_at_s: when the metrics were computed, by default now; a later look replaces an earlier one.
        window_s: length of one window, for the times of the steps; 0 puts all steps at `started_at_s`.
        decision, rule, reason: of the verdict; None before there is one.
        plan_digest: of the plan it was committed to.
        note: Markdown shown on top of the runs.
        first_metrics: names of those that are to be looked at first, the most important one first.
        report: a file, or a folder, kept as artifact of every run.
        attachments: further files kept beside it, e.g. its figures.
        dataset: the prompts; None where nobody said what they are.
        traces: a sample of its requests.
    """

    name: str
    operation_id: str
    arms: tuple[ArmRun, ...]
    started_at_s: float
    ended_at_s: float | None = None
    looked_at_s: float = field(default_factory=time.time)
    window_s: float = 0.0
    decision: str | None = None
    rule: str | None = None
    reason: str | None = None
    plan_digest: str | None = None
    note: str | None = None
    first_metrics: tuple[str, ...] = ()
    report: Path | str | None = None
    attachments: tuple[Path | str, ...] = ()
    dataset: TrackedDataset | None = None
    traces: tuple[TrackedTrace, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.name("name", self.name)
        checks.name("operation_id", self.operation_id)
        names = [arm.arm for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise InvalidInput("arms", names, "at least one arm, each once")

    def to_dict(self) -> dict[str, Any]:
        """JSON values, keys legal and metric keys identical in all arms."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in _OWN_FORM}
        totals = _union(arm.metrics for arm in self.arms)
        windowed = _union(window for arm in self.arms for window in arm.windows)
        looked = _union(look for arm in self.arms for look in arm.looks)
        report = None if self.report is None else _absolute(self.report)
        arms = [_arm_dict(arm, totals, windowed, looked) for arm in self.arms]
        own: dict[str, Any] = {"report": report, "tags": legal_keys("tags", self.tags), "arms": arms}
        own |= {"attachments": [_absolute(path) for path in self.attachments]}
        own |= {"first_metrics": [legal_name(name) for name in self.first_metrics]}
        own |= {"dataset": None if self.dataset is None else asdict(self.dataset)}
        return plain | own | {"traces": [asdict(trace) for trace in self.traces]}

    def job_id(self) -> str:
        """The same for the same content."""
        content = {key: value for key, value in self.to_dict().items() if key != "looked_at_s"}
        digest = blake2b(json_text("experiment", content).encode(), digest_size=8).hexdigest()
        return f"{self.operation_id}:{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingLinks:
    """Where a published experiment can be looked at.

    Attributes:
        experiment: its runs, as charts.
        compare: its arms side by side.
        runs: run id by arm.
        run_urls: address of the run by arm.
        sink: whose they are, as people call it.
    """

    experiment: str
    compare: str
    runs: Mapping[str, str]
    run_urls: Mapping[str, str] = field(default_factory=dict)
    sink: str = "MLflow"

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Self:
        return cls(**{name: result[name] for name in cls.__slots__ if name in result})

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingStatus:
    """What became of everything handed to a sink, earlier processes included.

    Attributes:
        published, pending: jobs published, and jobs that wait.
        given_up: jobs that the sink's server refused for good.
        last_error: why the latest attempt failed; None after one that succeeded.
    """

    published: int
    pending: int
    given_up: int
    last_error: str | None


class TrackingSink(Protocol):
    """A place where experiments are compared. Nothing here is on the request path.

    `tests/store/sink_contract.py` is what every sink has to fulfil.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called in the table `outbox`, e.g. `mlflow`; several where it is several."""

    def publish(self, experiment: TrackedExperiment) -> str:
        """Queue an experiment durably and return the job's id; the sink being unreachable is not an error."""

    def links(self, operation_id: str) -> TrackingLinks | None:
        """Where the operation can be looked at; None until it is published."""

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until nothing is pending; False as soon as the sink fails, or after `timeout_s`."""

    def status(self) -> TrackingStatus:
        """What became of everything."""

    def close(self, timeout_s: float = 30.0) -> None:
        """Flush, then stop; what is still pending waits in the store for the next process. Idempotent."""


def version_params(version: ModelVersion) -> dict[str, str | float | bool | None]:
    """A version as run parameters: flat, named alike for every version."""
    config = version.config.to_dict()
    params: dict[str, Any] = {"version": version.version, "model_id": version.model_id}
    params |= {key: config[key] for key in ("model", "backend", "revision", "adapter", "prompt_template")}
    params |= {f"sampling.{key}": value for key, value in config["sampling"].items()}
    params |= {f"engine.{key}": value for key, value in config["engine_args"].items()}
    return {key: value if isinstance(value, bool | int | float | None) else str(value) for key, value in params.items()}


def legal_keys(where: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping under names that tracking servers accept: letters, digits, space and `_ . - / :`.

    Raises:
        InvalidInput: two keys become the same.
    """
    renamed: dict[str, Any] = {}
    for key, value in mapping.items():
        legal = legal_name(key)
        if legal in renamed:
            raise InvalidInput(where, key, f"keys that differ in legal characters; another one is also {legal!r}")
        renamed[legal] = value
    return renamed


def legal_name(name: str) -> str:
    """A metric or parameter name that tracking servers accept."""
    parts = [part for part in _ILLEGAL.sub("_", name).split("/") if part.strip(". ")]
    return "/".join(parts)[:_LONGEST_KEY] or "_"


def _arm_dict(arm: ArmRun, totals: list[str], windowed: list[str], looked: list[str]) -> dict[str, Any]:
    looks = [{key: _finite(look.get(key)) for key in looked} for look in arm.looks]
    windows = [{key: _finite(window.get(key)) for key in windowed} for window in arm.windows]
    return {
        "arm": arm.arm,
        "version": arm.version,
        "params": legal_keys("params", arm.params),
        "metrics": legal_keys("metrics", {key: _finite(arm.metrics.get(key)) for key in totals}),
        "windows": [legal_keys("windows", window) for window in windows],
        "looks": [legal_keys("looks", look) for look in looks],
        "tags": legal_keys("tags", arm.tags),
    }


def _absolute(path: Path | str) -> str:
    return str(Path(path).expanduser().resolve())


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({key for mapping in mappings for key in mapping})


def _finite(value: float | None) -> float | None:
    """JSON has no NaN; a missing metric becomes NaN again when it is published."""
    return None if value is None or not math.isfinite(value) else float(value)
