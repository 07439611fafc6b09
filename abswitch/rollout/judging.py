"""Who says whether a step of a switch may go on: a judge, given evidence, answers with a judgement. Pure.

`ThresholdJudge` compares measured values with limits once there is enough evidence; `SequentialJudge`, which canaries
have by default, has a module of its own. No data, a value that is not a number, or a judge that fails never lets a
candidate advance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.rollout.measured import ERROR_RATE, refuse_near_miss

_SURE = 0.001
"""Below the minimum evidence, a rate counts as too high only where chance explains it this rarely (one-sided)."""


class Ruling(StrEnum):
    """What a judge may say about a step."""

    ADVANCE = "advance"
    HOLD = "hold"
    ROLL_BACK = "roll back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A ruling with its reason in words.

    Attributes:
        ruling: a `Ruling`, or its value.
        version: of several candidates, the one to promote; None means the switch's target.
        share: with `hold`: the candidates' share from now on, fraction 0–1; None leaves it as it is.

    Raises:
        InvalidInput: a field is none of that; a judge that comes to it has failed, and the step holds.
    """

    ruling: Ruling
    reason: str
    version: str | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ruling, Ruling):  # the machine tells them apart by identity
            object.__setattr__(self, "ruling", Ruling(checks.one_of("judgement.ruling", self.ruling, Ruling)))
        told = checks.text("reason", self.reason)
        if told is not self.reason:
            object.__setattr__(self, "reason", told)
        if self.version is not None:
            checks.name("judgement.version", self.version)
        if self.share is not None:
            checks.share("judgement.share", self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmMeasures:
    """What one arm did in one step.

    Attributes:
        requests: that ended, those cancelled by their callers left out.
        errors: of them, the failed ones; an answer that another version had to give counts as failed.
        values: measured quantity → its value, e.g. `latency_p95_s`, `first_token_p95_s`, or a scorer's mean by name.
        counts: measured quantity → how many observations it rests on.
        errors_of_new_units: of `errors`, those that were the first of their unit in this switch; by default all.
        variances: of a mean, the sample variance of what it is the mean of.
        is_fraction: of a mean, whether all its values were from 0 to 1.
        samples: of a quantile, which one it is, and the values in ascending order.
    """

    version: str
    requests: int = 0
    errors: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    errors_of_new_units: int | None = None
    variances: Mapping[str, float] = field(default_factory=dict)
    is_fraction: Mapping[str, bool] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, NDArray[np.float64]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def first_errors(self) -> int:
        """Errors that count as independent of each other: the first of each unit."""
        return self.errors if self.errors_of_new_units is None else self.errors_of_new_units

    @property
    def error_rate(self) -> float:
        """Failed requests, fraction 0–1; NaN without any."""
        return self.errors / self.requests if self.requests else math.nan

    def value(self, metric: str) -> float:
        """A measured quantity; NaN where it was not measured."""
        return self.error_rate if metric == ERROR_RATE else float(self.values.get(metric, math.nan))

    def count(self, metric: str) -> int:
        """How many observations it rests on."""
        return self.requests if metric == ERROR_RATE else self.counts.get(metric, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvidence:
    """What a judge is given.

    Attributes:
        stage: index of the step.
        share: the candidates' share in it, fraction 0–1.
        evaluation: 1 for the first look at this step.
        elapsed_s: since the step began.
        stable, candidates: what each arm did in this step.
        earlier: (share, stable, candidates) of the steps before, for judges that use all of them.
    """

    operation_id: str
    stage: int
    share: float
    evaluation: int
    elapsed_s: float
    stable: ArmMeasures
    candidates: tuple[ArmMeasures, ...]
    earlier: tuple[tuple[float, ArmMeasures, tuple[ArmMeasures, ...]], ...] = ()


Judge = Callable[[StepEvidence], Judgement]
"""Anything that judges. It runs beside the requests; when it raises, the step holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """A limit that the candidate must keep.

    Args:
        metric: `error_rate` (a fraction 0–1); `latency_p50_s`, `latency_p95_s` or `latency_p99_s`, or the same of
            `first_token`, in seconds (`alert_thresholds` has milliseconds, and names without `_s`); or a scorer's name:
            its mean, also of scores that are recorded by hand.
        max, min: the largest or smallest value allowed, in the metric's unit.
        max_ratio, min_ratio: the same, as a multiple of the stable version's value in the same step.

    Raises:
        InvalidInput: no limit, a field outside its range, or a name that is surely a slip for one of those above.
    """

    metric: str = field(kw_only=False)
    max: float | None = None
    min: float | None = None
    max_ratio: float | None = None
    min_ratio: float | None = None

    def __post_init__(self) -> None:
        checks.name("guardrail.metric", self.metric)
        refuse_near_miss("guardrail.metric", self.metric)
        limits = {name: getattr(self, name) for name in ("max", "min", "max_ratio", "min_ratio")}
        if all(value is None for value in limits.values()):
            raise InvalidInput(f"guardrail {self.metric}", None, "at least one of max, min, max_ratio, min_ratio")
        for name, value in limits.items():
            if value is not None:
                low = 0.0 if name.endswith("ratio") else -math.inf
                checks.number(f"guardrail.{name}", value, low=low, above=name.endswith("ratio"))

    @classmethod
    def all_of(cls, where: str, given: object) -> tuple[Guardrail, ...]:
        """Guardrails from themselves or from dictionaries of their fields."""
        if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
            raise InvalidInput(where, given, "a list of guardrails")
        return tuple(cls._of(f"{where}[{index}]", one) for index, one in enumerate(given))

    @classmethod
    def _of(cls, where: str, given: object) -> Guardrail:
        if isinstance(given, Guardrail):
            return given
        if not isinstance(given, Mapping):
            raise InvalidInput(where, given, "a Guardrail, or a dictionary of its fields")
        checks.known_fields(where, given, (f.name for f in fields(cls)))
        if "metric" not in given:
            raise InvalidInput(f"{where}.metric", None, "a metric's name; it is required")
        return cls(**given)

    @property
    def sides(self) -> int:
        """How many limits it has."""
        return sum(limit is not None for limit in (self.max, self.min, self.max_ratio, self.min_ratio))

    def limits(self, stable: float) -> Iterator[tuple[str, float]]:
        """The limits in force, as ("at most" | "at least", value); a multiple of what is unknown is NaN."""
        for words, absolute, ratio in (("at most", self.max, self.max_ratio), ("at least", self.min, self.min_ratio)):
            if absolute is not None:
                yield words, absolute
            if ratio is not None:
                yield words, ratio * stable


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdJudge:
    """Limits with minimum evidence.

    Rolls back when a limit is broken on at least `min_requests` observations, or when fewer already leave no doubt
    about the error rate; advances when every limit is kept on that many; holds otherwise.

    Args:
        max_error_rate: the candidate's share of failed requests that is still accepted, fraction 0–1.
        min_requests: observations of the candidate, in this step, below which nothing is judged good.
        guardrails: further limits.
    """

    max_error_rate: float
    min_requests: int
    guardrails: tuple[Guardrail, ...] = ()

    def __call__(self, evidence: StepEvidence) -> Judgement:
        rails = (Guardrail(metric=ERROR_RATE, max=self.max_error_rate), *self.guardrails)
        findings = [self._look(rail, arm, evidence.stable) for arm in evidence.candidates for rail in rails]
        for ruling in (Ruling.ROLL_BACK, Ruling.HOLD):
            for found in findings:
                if found.ruling is ruling:
                    return found
        if not findings:
            return Judgement(ruling=Ruling.HOLD, reason="no candidate was measured")
        return Judgement(ruling=Ruling.ADVANCE, reason="; ".join(found.reason for found in findings))

    def _look(self, rail: Guardrail, arm: ArmMeasures, stable: ArmMeasures) -> Judgement:
        value, count = arm.value(rail.metric), arm.count(rail.metric)
        name = f"{rail.metric} of {arm.version}"
        if count < self.min_requests:
            if rail.metric == ERROR_RATE and self._hopeless(rail, arm):
                return Judgement(ruling=Ruling.ROLL_BACK, reason=f"{name} is {value:.3g} after only {count}")
            return Judgement(ruling=Ruling.HOLD, reason=f"{name}: {count} of {self.min_requests} needed observations")
        if not math.isfinite(value):
            return Judgement(ruling=Ruling.HOLD, reason=f"{name} is {value}, which says nothing")
        for words, limit in rail.limits(stable.value(rail.metric)):
            if not math.isfinite(limit):
                return Judgement(
                    ruling=Ruling.HOLD, reason=f"{name}: the stable version gives no value to compare with"
                )
            if value > limit if words == "at most" else value < limit:
                reason = f"{name} is {value:.4g} on {count}, where {words} {limit:.4g} is allowed"
                return Judgement(ruling=Ruling.ROLL_BACK, reason=reason)
        return Judgement(ruling=Ruling.ADVANCE, reason=f"{name} is {value:.4g} on {count}")

    def _hopeless(self, rail: Guardrail, arm: ArmMeasures) -> bool:
        if not arm.errors or rail.max is None:
            return False
        from scipy.special import bdtrc

        # The chance of at least so many errors if the rate were just what is allowed (exact binomial tail).
        return float(bdtrc(arm.errors - 1, arm.requests, rail.max)) < _SURE
