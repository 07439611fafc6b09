"""Metrics as a user writes them: `Rate("exact_match", margin=0.05)`, `Quantile("latency_s", 0.95, role="secondary")`.

A metric names a column of evidence (a scorer, or a quantity of the request such as `latency_s`), says which direction
is better and what role it has; how it is tested follows from its kind and from the evidence there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, get_args

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.adjusted import adjusted_rate_test, adjusted_ratio_test
from abswitch.stats.adjustment import CovariateSummary, RatioCovariateSummary, cuped_test
from abswitch.stats.comparison import Comparison
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.means import welch_t_test
from abswitch.stats.metric_parts import Common, Direction, Role, Unit
from abswitch.stats.paired import PairedRateSummary, PairedSummary, mcnemar_test, paired_t_test
from abswitch.stats.proportions import two_proportion_z_test
from abswitch.stats.quantile_summary import QuantileSummary
from abswitch.stats.quantiles import quantile_test
from abswitch.stats.ratios import clustered_mean_test, clustered_rate_test, ratio_delta_test
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary

__all__ = [
    "Direction",
    "Mean",
    "Metric",
    "Paired",
    "Quantile",
    "Rate",
    "Ratio",
    "Role",
    "check_design",
    "metric_of",
    "metric_to_dict",
]

T = TypeVar("T", bound=MetricSummary)

UNIT_MEANS = "mean over units (Welch t of their means)"
_PLAIN: Mapping[str, Any] = {"unit": Unit.REQUEST.value, "covariate": None, "where": (), "segments": None}
"""Fields that a metric's dictionary leaves out where they say nothing, so that plans keep their digests."""


@dataclass(frozen=True, slots=True)
class Mean(Common):
    """The mean of a real-valued column, by Welch's t; by the delta method where units have several requests."""

    column: str
    kind: ClassVar[str] = "mean"

    def __post_init__(self) -> None:
        checks.name("metric.column", self.column)
        self._check(self.column, self.column)

    def compare(self, baseline: MetricSummary, candidate: MetricSummary, *, alpha: float) -> Comparison:
        """Candidate against baseline; ratio summaries are per-unit sums and counts, see `clustered_mean_test`."""
        if isinstance(baseline, RatioSummary):
            found = clustered_mean_test(baseline, _of(RatioSummary, candidate), alpha=alpha)
            return replace(found, method=UNIT_MEANS) if self.unit == Unit.UNIT else found
        if isinstance(baseline, RatioCovariateSummary):
            return adjusted_ratio_test(baseline, _of(RatioCovariateSummary, candidate), alpha=alpha)
        if isinstance(baseline, CovariateSummary):
            return cuped_test(baseline, _of(CovariateSummary, candidate), alpha=alpha)
        return welch_t_test(_of(MeanSummary, baseline), _of(MeanSummary, candidate), alpha=alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Rate(Common):
    """The rate of a yes-or-no column (0 or 1), by the two-proportion z-test; by unit where these have several requests.

    A covariate is used where both arms have ten of either outcome, see `adjusted_rate_test`.
    """

    column: str
    kind: ClassVar[str] = "rate"

    def __post_init__(self) -> None:
        checks.name("metric.column", self.column)
        self._check(self.column, self.column)

    def compare(self, baseline: MetricSummary, candidate: MetricSummary, *, alpha: float) -> Comparison:
        """Candidate against baseline; ratio summaries are per-unit sums and counts, see `clustered_rate_test`."""
        if isinstance(baseline, RatioSummary):
            return self._by_unit(baseline, _of(RatioSummary, candidate), alpha)
        if isinstance(baseline, CovariateSummary):
            return adjusted_rate_test(baseline, _of(CovariateSummary, candidate), alpha=alpha)
        if isinstance(baseline, RatioCovariateSummary):
            return adjusted_rate_test(baseline, _of(RatioCovariateSummary, candidate), alpha=alpha)
        return two_proportion_z_test(_of(RateSummary, baseline), _of(RateSummary, candidate), alpha=alpha)

    def _by_unit(self, baseline: RatioSummary, candidate: RatioSummary, alpha: float) -> Comparison:
        if self.unit == Unit.UNIT and any(0.0 < arm.mean < 1.0 for arm in (baseline, candidate)):
            return replace(clustered_mean_test(baseline, candidate, alpha=alpha), method=UNIT_MEANS)
        return clustered_rate_test(baseline, candidate, alpha=alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Ratio(Common):
    """A ratio of sums, e.g. tokens per second, by the delta method."""

    numerator: str
    denominator: str
    kind: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        checks.name("metric.numerator", self.numerator)
        checks.name("metric.denominator", self.denominator)
        self._check(f"{self.numerator}_per_{self.denominator}", self.numerator)
        if self.unit != Unit.REQUEST:
            raise InvalidInput("metric.unit", self.unit, "request: a ratio of sums weighs each unit by its denominator")

    def compare(self, baseline: MetricSummary, candidate: MetricSummary, *, alpha: float) -> Comparison:
        """Candidate against baseline."""
        if isinstance(baseline, RatioCovariateSummary):
            return adjusted_ratio_test(baseline, _of(RatioCovariateSummary, candidate), alpha=alpha)
        return ratio_delta_test(_of(RatioSummary, baseline), _of(RatioSummary, candidate), alpha=alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.numerator, self.denominator)


@dataclass(frozen=True, slots=True)
class Quantile(Common):
    """A quantile of a column over requests, by order statistics: `Quantile("latency_s", 0.95)` is p95.

    Not attainable where there are too few values (110 an arm for p95, 555 for p99). Where units have several requests
    the interval is widened by their design effect. A covariate has no place here.
    """

    column: str
    q: float
    kind: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        checks.name("metric.column", self.column)
        if checks.number("metric.q", self.q, low=0.0, high=1.0, above=True) == 1.0:
            raise InvalidInput("metric.q", self.q, "a number above 0 and below 1, 0.95 for p95")
        if self.column in ("error", "fallback", "truncated"):
            raise InvalidInput("metric.column", self.column, f"a column of real values; use Rate({self.column!r})")
        self._check(f"{self.column}_p{100 * self.q:g}", self.column)
        if self.covariate is not None:
            raise InvalidInput("metric.covariate", self.covariate, "none, for a quantile")

    def compare(self, baseline: MetricSummary, candidate: MetricSummary, *, alpha: float) -> Comparison:
        """Candidate against baseline, see `quantile_test`."""
        arms = (_of(QuantileSummary, baseline), _of(QuantileSummary, candidate))
        for arm in arms:
            if arm.q != self.q:
                raise InvalidInput("summary.q", arm.q, f"that of the metric, {self.q:g}")
        return quantile_test(*(arm.interval(alpha=alpha) for arm in arms))

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Paired(Common):
    """The mean difference within prompts that every version answered; for the paired design (and shadows).

    One prompt is one observation: where a version answered it several times, the mean of these answers counts. Answers
    that are all 0 or 1 are compared by McNemar's test with Tango's interval, others by the paired t. A covariate has
    no place here: what the prompt brings is already taken out.
    """

    column: str
    kind: ClassVar[str] = "paired"

    def __post_init__(self) -> None:
        checks.name("metric.column", self.column)
        self._check(self.column, self.column)
        if self.covariate is not None:
            raise InvalidInput("metric.covariate", self.covariate, "none: pairs take out all that the prompt brings")
        if self.unit != Unit.REQUEST:
            raise InvalidInput("metric.unit", self.unit, "none: one prompt is one observation")

    def compare(self, baseline: MetricSummary, candidate: MetricSummary, *, alpha: float) -> Comparison:
        """Candidate against baseline. A summary of pairs holds both sides: it is given twice.

        Raises:
            InvalidInput: no summary of pairs, or two different ones.
        """
        if baseline is not candidate and baseline != candidate:
            raise InvalidInput("candidate", candidate, "the very pairs that the baseline has")
        if isinstance(baseline, PairedRateSummary):
            return mcnemar_test(baseline, alpha=alpha)
        return paired_t_test(_of(PairedSummary, baseline), alpha=alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


Metric = Mean | Rate | Ratio | Quantile | Paired
_KINDS: Mapping[str, type[Metric]] = {cls.kind: cls for cls in get_args(Metric)}
_REQUIRED: Mapping[str, str] = {
    "column": "a column of evidence",
    "numerator": "a column of evidence",
    "denominator": "a column of evidence",
    "q": "which quantile, 0.95 for p95",
}


def metric_to_dict(metric: Metric) -> dict[str, Any]:
    """JSON values; `metric_of` reads them back. What only says "as usual" is left out."""
    given = {name: getattr(metric, name) for name in metric.__dataclass_fields__}
    plain = {name: value for name, value in given.items() if name not in _PLAIN or value != _PLAIN[name]}
    if metric.where:
        plain["where"] = [one.to_dict() for one in metric.where]
    if metric.segments is not None:
        plain["segments"] = metric.segments.to_dict()
    return {"kind": metric.kind, **plain}


def metric_of(value: Metric | Mapping[str, Any]) -> Metric:
    """A metric from itself or from its dictionary.

    Raises:
        InvalidInput: unknown kind or field, or a value that is not allowed.
    """
    if isinstance(value, Metric):
        return value
    if not isinstance(value, Mapping):
        raise InvalidInput("metric", value, "a Mean, Rate, Ratio, Quantile or Paired, or a dictionary of one")
    cls = _KINDS[checks.one_of("metric.kind", value.get("kind"), _KINDS)]
    fields = {key: one for key, one in value.items() if key != "kind"}
    checks.known_fields("metric", fields, cls.__dataclass_fields__)
    for required in cls.__dataclass_fields__:
        if required in _REQUIRED and required not in fields:
            raise InvalidInput(f"metric.{required}", None, f"{_REQUIRED[required]}; it is required")
    return cls(**fields)


def check_design(metrics: Iterable[Metric], design: str) -> None:
    """Whether a design can hold these metrics; nothing that a user asked for is left out silently.

    Raises:
        InvalidInput: `Paired` in a randomised design, where no prompt meets both versions; or units that weigh the same
            where a pair or a block is the unit.
    """
    for metric in metrics:
        if design == "randomised" and isinstance(metric, Paired):
            raise InvalidInput("metrics", metric.name, f"Mean or Rate of {metric.column!r}: no prompt meets both")
        if design in ("paired", "switchback") and metric.unit == Unit.UNIT:
            raise InvalidInput("metric.unit", metric.unit, f"request: the units of a {design} design are its own")


def _of(kind: type[T], summary: MetricSummary) -> T:
    if not isinstance(summary, kind):
        raise InvalidInput("summary", summary, f"a {kind.__name__}")
    return summary
