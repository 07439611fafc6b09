"""Metrics as a user writes them: `Rate("exact_match", margin=0.05)`, `Mean("latency_s", direction="decrease")`.

A metric names a column of evidence (a scorer, or a quantity of the request such as `latency_s`), says which direction
is better and what role it has; how it is tested follows from its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.means import welch_t_test
from abswitch.stats.proportions import two_proportion_z_test
from abswitch.stats.ratios import ratio_delta_test
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary, Summary

T = TypeVar("T", MeanSummary, RateSummary, RatioSummary)


class Direction(StrEnum):
    """Which way is better."""

    INCREASE = "increase"
    DECREASE = "decrease"


class Role(StrEnum):
    """What a metric decides: the winner, a veto, or nothing."""

    PRIMARY = "primary"
    GUARDRAIL = "guardrail"
    SECONDARY = "secondary"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What every metric has.

    Args:
        direction: which way is better.
        role: `primary` decides, `guardrail` may veto, `secondary` is only reported.
        margin: in the metric's own unit, above 0. For the primary: differences within ±margin do not matter. For a
            guardrail (required): how much worse is still acceptable.
        name: how the metric is called in results.
    """

    direction: str = Direction.INCREASE
    role: str = Role.PRIMARY
    margin: float | None = None
    name: str = ""

    def _check(self, default_name: str) -> None:
        checks.one_of("metric.direction", self.direction, [d.value for d in Direction])
        checks.one_of("metric.role", self.role, [r.value for r in Role])
        if self.margin is not None:
            checks.number("metric.margin", self.margin, low=0.0, above=True)
        elif self.role == Role.GUARDRAIL:
            raise InvalidInput("metric.margin", None, f"a number above 0; guardrail {default_name!r} needs one")
        object.__setattr__(self, "name", checks.name("metric.name", self.name or default_name))

    @property
    def sign(self) -> int:
        """+1 when more is better, −1 when less is."""
        return 1 if self.direction == Direction.INCREASE else -1


@dataclass(frozen=True, slots=True)
class Mean(_Common):
    """The mean of a real-valued column, by Welch's t."""

    column: str
    kind: ClassVar[str] = "mean"

    def __post_init__(self) -> None:
        checks.name("metric.column", self.column)
        self._check(self.column)

    def compare(self, baseline: Summary, candidate: Summary, *, alpha: float) -> Comparison:
        """Candidate against baseline; ratio summaries are per-unit sums and counts, see `by_unit`."""
        if isinstance(baseline, RatioSummary):
            return by_unit(baseline, candidate, alpha=alpha)
        return welch_t_test(_of(MeanSummary, baseline), _of(MeanSummary, candidate), alpha=alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of evidence it reads."""
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Rate(_Common):
    """The rate of a yes-or-no column (0 or 1), by the two-proportion z-test."""

    column: str
    kind: ClassVar[str] = "rate"

    def __post_init__(self) -> None:
        checks.name("metric.column", self.column)
        self._check(self.column)

    def compare(self, baseline: Summary, candidate: Summary, *, alpha: float) -> Comparison:
        """Candidate against baseline; ratio summaries are per-unit sums and counts, see `by_unit`."""
        if isinstance(baseline, RatioSummary):
            return by_unit(baseline, candidate, alpha=alpha)
        return two_proportion_z_test(_of(RateSummary, baseline), _of(RateSummary, candidate), alpha=alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of evidence it reads."""
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Ratio(_Common):
    """A ratio of sums, e.g. tokens per second, by the delta method."""

    numerator: str
    denominator: str
    kind: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        checks.name("metric.numerator", self.numerator)
        checks.name("metric.denominator", self.denominator)
        self._check(f"{self.numerator}_per_{self.denominator}")

    def compare(self, baseline: Summary, candidate: Summary, *, alpha: float) -> Comparison:
        """Candidate against baseline."""
        return ratio_delta_test(_of(RatioSummary, baseline), _of(RatioSummary, candidate), alpha=alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of evidence it reads."""
        return (self.numerator, self.denominator)


Metric = Mean | Rate | Ratio
_KINDS: Mapping[str, type[Mean] | type[Rate] | type[Ratio]] = {cls.kind: cls for cls in (Mean, Rate, Ratio)}


def by_unit(baseline: RatioSummary, candidate: Summary, *, alpha: float) -> Comparison:
    """Compare a mean or a rate over requests when units have several: Σ(sum of a unit) / Σ(count of a unit).

    Requests of one unit are not independent; treated as if, such comparisons err in over 40 % of sound experiments.
    """
    found = ratio_delta_test(baseline, _of(RatioSummary, candidate), alpha=alpha)
    return replace(found, method="mean over requests, clustered by unit (delta method)")


def metric_to_dict(metric: Metric) -> dict[str, Any]:
    """JSON values; `metric_of` reads them back."""
    return {"kind": metric.kind, **asdict(metric)}


def metric_of(value: Metric | Mapping[str, Any]) -> Metric:
    """A metric from itself or from its dictionary.

    Raises:
        InvalidInput: unknown kind or field, or a value that is not allowed.
    """
    if isinstance(value, Mean | Rate | Ratio):
        return value
    if not isinstance(value, Mapping):
        raise InvalidInput("metric", value, "a Mean, Rate or Ratio, or a dictionary of one")
    cls = _KINDS[checks.one_of("metric.kind", value.get("kind"), _KINDS)]
    fields = {key: one for key, one in value.items() if key != "kind"}
    checks.known_fields("metric", fields, cls.__dataclass_fields__)
    for required in cls.__dataclass_fields__:
        if required in ("column", "numerator", "denominator") and required not in fields:
            raise InvalidInput(f"metric.{required}", None, "a column of evidence; it is required")
    return cls(**fields)


def _of(kind: type[T], summary: Summary) -> T:
    if not isinstance(summary, kind):
        raise InvalidInput("summary", summary, f"a {kind.__name__}")
    return summary
