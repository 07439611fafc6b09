"""`ExperimentSpec`: a whole experiment as a file says it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from abswitch.errors import InvalidInput
from abswitch.experiments.overriding import cells_of, overridden, words_of
from abswitch.experiments.spec_errors import told
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

MOST_ARMS = 16


class ExperimentSpec(Strict):
    """One experiment: versions, prompts, how they are asked, what is made of the answers; see docs/experiments.md."""

    model_config = ConfigDict(title="abswitch experiment")
    not_of_the_run: ClassVar[tuple[str, ...]] = ("description", "schedule", "watch", "matrix")

    name: Name
    """Of the experiment; its results go into reports/<name>/, and the split of units depends on it."""
    description: str = ""
    """For people."""
    model_id: Name
    """The model whose versions these are, as requests address it."""
    versions: Annotated[dict[Name, VersionSpec], Field(min_length=2)]
    """Versions by name."""
    baseline: Name
    """The version that serves when the run begins."""
    candidate: Name
    """The version that is held against it."""
    prompts: Prompts
    """What is asked; `inline` where no kind is named."""
    design: Design = RandomisedDesign()
    """Who answers what; `randomised` where no kind is named. See docs/designs.md."""
    load: Load = ClosedLoopLoad()
    """When requests are sent; `closed_loop` where no kind is named."""
    sampling: SamplingField = Field(default_factory=dict)
    """Sampling fields of every request, over the versions' own."""
    metrics: tuple[MetricField, ...] = ()
    """What is compared, exactly one with role `primary`; guardrails have the role `guardrail`. See docs/metrics.md."""
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """Error rate of the primary comparison, two-sided."""
    scorers: tuple[Scorer, ...] = ()
    """What scores every answer; their names are columns for metrics and guardrails."""
    judge: JudgeSpec | None = None
    """A model that grades every answer, beside the scorers."""
    policy: Policy = Policy()
    """What counts as success, and what is done with the verdict."""
    budget: Budget = Budget()
    """What the run may use up; no limit by default."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of shuffled prompts, Poisson arrivals and the split of units."""
    notebook: NotebookSpec = NotebookSpec()
    """What papermill executes."""
    engine: EngineSpec = EngineSpec()
    """Settings of the engine that are not the versions'."""
    accelerators: tuple[Text, ...] | None = None
    """Locks to hold while it runs; by default one per visible GPU, or `cpu`. An empty list holds none."""
    matrix: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted fields of the spec → values; every combination is a run of its own."""
    arms: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted fields of the candidate's version → values; every combination is an arm of its own, in one run."""
    schedule: ScheduleSpec | None = None
    """When it runs by itself."""
    watch: WatchSpec | None = None
    """Compare with the last good run, and alert when it is worse."""

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
        if self.judge is not None and self.engine.max_cached_models < 2:
            raise InvalidInput("engine.max_cached_models", self.engine.max_cached_models, "2 or more, with a judge")
        if self.arms:
            self._arms_fit()
        _all_different("metrics", [metric.name for metric in self.metrics])
        _all_different("scorers", self.scores)
        known = [metric.name for metric in self.metrics]
        for name in () if self.watch is None else self.watch.metrics or ():
            if name not in known:
                told = ", ".join(known) or "none, as the spec has no metrics"
                raise InvalidInput("watch.metrics", name, f"names of the spec's metrics: {told}")
        return self

    @model_validator(mode="after")
    def _can_be_watched(self) -> ExperimentSpec:
        if self.watch is None:
            return self
        if self.design.kind == "canary":
            raise InvalidInput("watch", self.watch.model_dump(), "no watch: a canary is judged by its own guardrails")
        named = self.watch.metrics
        chosen = [one for one in self.metrics if (one.name in named if named else one.role != "secondary")]
        pairs = [one.name for one in chosen if one.kind == "paired"]
        if pairs and (named is not None or len(pairs) == len(chosen)):
            allowed = "metrics with values of each version (rate, mean, ratio, quantile); pairs have none"
            raise InvalidInput("watch.metrics", pairs[0], allowed)
        return self

    def _arms_fit(self) -> None:
        if self.design.kind != "randomised":
            raise InvalidInput("arms", self.design.kind, "the randomised design; others compare one candidate")
        if self.watch is not None:
            raise InvalidInput("watch", dict(self.arms), "no arms: it compares one candidate with an earlier run")
        named = self.candidates
        if len(named) > MOST_ARMS:
            raise InvalidInput("arms", len(named), f"at most {MOST_ARMS} combinations")
        needed, room = len(named) + 1 + (self.judge is not None), self.engine.max_cached_models
        if needed > room:
            told = f"{needed} or more: {len(named)} arms, the baseline{', the judge' if self.judge else ''}"
            raise InvalidInput("engine.max_cached_models", room, told)

    @property
    def candidates(self) -> Mapping[str, VersionSpec]:
        """What is held against the baseline, by version: the candidate, or its arms."""
        version = self.versions[self.candidate]
        if not self.arms:
            return {self.candidate: version}
        plain, made = version.model_dump(mode="json"), {}
        for number, cell in enumerate(cells_of(self.arms, "arms"), start=1):
            name = f"{self.candidate}-{number}"
            if name in self.versions:
                raise InvalidInput("versions", name, f"another name: {self.candidate}'s arms are called so")
            changed = overridden(plain, cell, "arms")
            changed["metadata"] = {**changed["metadata"], "arm": words_of(cell)}
            made[name] = _version_of(changed, words_of(cell))
        return made

    @property
    def all_versions(self) -> Mapping[str, VersionSpec]:
        """Everything that is registered: the versions, and the candidate's arms."""
        return {**self.versions, **self.candidates}

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores that every answer gets."""
        judged = () if self.judge is None else (self.judge.name,)
        return (*(scorer.name for scorer in self.scorers), *judged)

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


def _version_of(plain: Mapping[str, Any], words: str) -> VersionSpec:
    try:
        return VersionSpec.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        raise told(f"arms ({words})", plain, error.errors(), VersionSpec.model_json_schema()) from error


def _all_different(field: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(field, name, "different names; give one of them a `name` of its own")


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
        return ExperimentSpec.model_validate_json(json.dumps(_with_kinds(json.loads(text))))
    except ValidationError as error:
        raise told(where, json.loads(text), error.errors(), _schema()) from error


@cache
def _schema() -> dict[str, Any]:
    return ExperimentSpec.model_json_schema()


_USUAL_KINDS = {"prompts": "inline", "design": "randomised", "load": "closed_loop"}


def _with_kinds(plain: dict[str, Any]) -> dict[str, Any]:
    """The kind that a part has by default, where it names none."""
    added = {
        field: {"kind": kind, **plain[field]}
        for field, kind in _USUAL_KINDS.items()
        if isinstance(plain.get(field), dict)
    }
    return {**plain, **added}
