"""`ExperimentSpec`: a whole experiment as a file says it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from abswitch.errors import InvalidInput
from abswitch.experiments.spec_parts import (
    Budget,
    ClosedLoopLoad,
    Design,
    EngineSpec,
    JudgeSpec,
    Load,
    MetricField,
    Name,
    NotebookSpec,
    Policy,
    Prompts,
    RandomisedDesign,
    SamplingField,
    ScheduleSpec,
    Scorer,
    Strict,
    Text,
    VersionSpec,
    WatchSpec,
)  # fmt: skip


class ExperimentSpec(Strict):
    """One experiment."""

    model_config = ConfigDict(title="abswitch experiment")
    not_of_the_run: ClassVar[tuple[str, ...]] = ("description", "schedule", "watch", "matrix")

    name: Name
    description: str = ""
    model_id: Name
    versions: Annotated[dict[Name, VersionSpec], Field(min_length=2)]
    baseline: Name
    candidate: Name
    prompts: Prompts
    design: Design = RandomisedDesign()
    load: Load = ClosedLoopLoad()
    sampling: SamplingField = Field(default_factory=dict)
    """Sampling fields of every request, over the versions' own."""
    metrics: tuple[MetricField, ...] = ()
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    scorers: tuple[Scorer, ...] = ()
    judge: JudgeSpec | None = None
    policy: Policy = Policy()
    budget: Budget = Budget()
    seed: Annotated[int, Field(ge=0)] = 0
    notebook: NotebookSpec = NotebookSpec()
    engine: EngineSpec = EngineSpec()
    accelerators: tuple[Text, ...] | None = None
    """Locks to hold while it runs; by default one per visible GPU, or `cpu`. An empty list holds none."""
    matrix: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted fields of the spec → values; every combination is a run of its own."""
    schedule: ScheduleSpec | None = None
    watch: WatchSpec | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> ExperimentSpec:
        for role in ("baseline", "candidate"):
            if getattr(self, role) not in self.versions:
                raise InvalidInput(role, getattr(self, role), "one of the versions: " + ", ".join(self.versions))
        if self.baseline == self.candidate:
            raise InvalidInput("candidate", self.candidate, "another version than the baseline")
        primaries = [metric.name for metric in self.metrics if metric.role == "primary"]
        if self.design.kind != "canary" and len(primaries) != 1:
            raise InvalidInput("metrics", primaries, "exactly one metric with role primary")
        if self.design.kind == "canary" and self.budget.requests is None and self.budget.time_s is None:
            raise InvalidInput("budget", None, "requests or time_s, as a canary asks its prompts again and again")
        return self

    @property
    def success(self) -> tuple[str, ...]:
        """Decisions that exit with 0."""
        if self.policy.success is not None:
            return self.policy.success
        return {"canary": ("promote",), "paired": ("ship", "equivalent")}.get(self.design.kind, ("ship",))

    def to_plain(self) -> dict[str, Any]:
        """JSON values; `spec_of` reads them back."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 (hex) of what decides the run: description, schedule, watch and matrix left out."""
        plain = {key: value for key, value in self.to_plain().items() if key not in self.not_of_the_run}
        return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def spec_of(plain: object, where: str = "spec") -> ExperimentSpec:
    """A spec from plain values.

    Raises:
        InvalidInput: names the dotted field, what was given and what is allowed.
    """
    if not isinstance(plain, Mapping):
        raise InvalidInput(where, plain, "a mapping with the fields of an experiment")
    try:
        text = json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(where, "a value that is none of JSON's", f"plain values only ({error})") from error
    try:
        # By way of JSON: strict, and yet a list may become a tuple.
        return ExperimentSpec.model_validate_json(text)
    except ValidationError as error:
        raise _told(where, error.errors()[0]) from error


_OURS = re.compile(r"Value error, (?:[\w. \[\]]+: got .*?; allowed: )?", re.DOTALL)


def _told(where: str, problem: Any) -> InvalidInput:
    """The first problem as ours; the name of a chosen alternative is no part of the path."""
    kinds = {"randomised", "paired", "switchback", "canary", "inline", "jsonl", "csv", "parquet", "huggingface"}
    kinds |= {"generator", "closed_loop", "poisson", "trace", "exact_match", "matches", "function", "Call"}
    path = [str(part) for part in problem["loc"] if str(part) not in kinds and "[" not in str(part)]
    field = ".".join(path)
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InvalidInput):
        inner = cause.field.split(".", 1)[-1] if "." in cause.field else cause.field
        return InvalidInput(f"{where}: " + ".".join(filter(None, (field, inner))), cause.value, cause.allowed)
    if problem["type"] == "extra_forbidden":
        return InvalidInput(f"{where}: {field}", problem["input"], "no such field" + _close(path))
    if problem["type"] == "missing":
        return InvalidInput(f"{where}: {field}", None, "a value; it is required")
    return InvalidInput(f"{where}: {field}", problem["input"], _OURS.sub("", problem["msg"]))


def _close(path: list[str]) -> str:
    import difflib

    known = ExperimentSpec.model_fields if len(path) == 1 else ()
    close = difflib.get_close_matches(path[-1], known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
