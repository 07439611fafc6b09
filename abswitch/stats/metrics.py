"""Metrics as a user writes them: `Rate("exact_match", margin=0.05)`, `Mean("latency_s", direction="decrease")`.

A metric names a column of evidence (a scorer, or a quantity of the request such as `latency_s`), says which direction
is better and what role it has; how it is tested follows from its kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, get_args

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.means import welch_t_test
from abswitch.stats.paired import PairedRateSummary, PairedSummary, mcnemar_test, paired_t_test
from abswitch.stats.proportions import two_proportion_z_test
from abswitch.stats.ratios import clustered_mean_test, clustered_rate_test, ratio_delta_test
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary

T = TypeVar("T", MeanSummary, RateSummary, RatioSummary, PairedSummary)

LESS_IS_BETTER = frozenset({"error", "fallback", "truncated", "latency_s", "first_token_s", "queue_s", "generation_s"})
"""Quantities of a request of which nobody wants more; their direction is `decrease` unless said otherwise."""

_FORBIDDEN_IN_KEYS = re.compile(r"[^A-Za-z0-9_./:-]")
"""What the MLflow tracking store refuses in a metric's key (and a space)."""


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
        direction: which way is better. By default `decrease` for `LESS_IS_BETTER` (of a ratio: its numerator), else
            `increase`.
        role: `primary` decides, `guardrail` may veto, `secondary` is only reported.
        margin: in the metric's own unit, above 0. For the primary: differences within ±margin do not matter. For a
            guardrail (required): how much worse is still acceptable.
        name: how the metric is called in results, a legal MLflow key; by default after its column.

    Raises:
        InvalidInput: a field is outside its range, or a guardrail has no margin.
    """

    direction: str = ""
    role: str = Role.PRIMARY
    margin: float | None = None
    name: str = ""

    def _check(self, default_name: str, column: str) -> None:
        if self.direction == "":
            less = Direction.DECREASE if column in LESS_IS_BETTER else Direction.INCREASE
            object.__setattr__(self, "direction", less.value)
        checks.one_of("metric.direction", self.direction, [d.value for d in Direction])
        checks.one_of("metric.role", self.role, [r.value for r in Role])
        if self.margin is not None:
            object.__setattr__(self, "margin", checks.number("metric.margin", self.margin, low=0.0, above=True))
        elif self.role == Role.GUARDRAIL:
            raise InvalidInput("metric.margin", None, f"a number above 0; guardrail {default_name!r} needs one")
        if self.name == "":
            object.__setattr__(self, "name", _FORBIDDEN_IN_KEYS.sub("_", default_name))
        if _FORBIDDEN_IN_KEYS.search(checks.name("metric.name", self.name)):
            raise InvalidInput("metric.name", self.name, "letters, digits or . _ : / -, as MLflow takes them")

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
        self._check(self.column, self.column)

    def compare(self, baseline: MetricSummary, candidate: MetricSummary, *, alpha: float) -> Comparison:
        """Candidate against baseline; ratio summaries are per-unit sums and counts, see `clustered_mean_test`."""
        if isinstance(baseline, RatioSummary):
            return clustered_mean_test(baseline, _of(RatioSummary, candidate), alpha=alpha)
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
        self._check(self.column, self.column)

    def compare(self, baseline: MetricSummary, candidate: MetricSummary, *, alpha: float) -> Comparison:
        """Candidate against baseline; ratio summaries are per-unit sums and counts, see `clustered_rate_test`."""
        if isinstance(baseline, RatioSummary):
            return clustered_rate_test(baseline, _of(RatioSummary, candidate), alpha=alpha)
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
        self._check(f"{self.numerator}_per_{self.denominator}", self.numerator)

    def compare(self, baseline: MetricSummary, candidate: MetricSummary, *, alpha: float) -> Comparison:
        """Candidate against baseline."""
        return ratio_delta_test(_of(RatioSummary, baseline), _of(RatioSummary, candidate), alpha=alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of evidence it reads."""
        return (self.numerator, self.denominator)


@dataclass(frozen=True, slots=True)
class Paired(_Common):
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
        """The columns of evidence it reads."""
        return (self.column,)


Metric = Mean | Rate | Ratio | Paired
_KINDS: Mapping[str, type[Metric]] = {cls.kind: cls for cls in get_args(Metric)}


def metric_to_dict(metric: Metric) -> dict[str, Any]:
    """JSON values; `metric_of` reads them back."""
    return {"kind": metric.kind, **asdict(metric)}


def metric_of(value: Metric | Mapping[str, Any]) -> Metric:
    """A metric from itself or from its dictionary.

    Raises:
        InvalidInput: unknown kind or field, or a value that is not allowed.
    """
    if isinstance(value, Metric):
        return value
    if not isinstance(value, Mapping):
        raise InvalidInput("metric", value, "a Mean, Rate, Ratio or Paired, or a dictionary of one")
    cls = _KINDS[checks.one_of("metric.kind", value.get("kind"), _KINDS)]
    fields = {key: one for key, one in value.items() if key != "kind"}
    checks.known_fields("metric", fields, cls.__dataclass_fields__)
    for required in cls.__dataclass_fields__:
        if required in ("column", "numerator", "denominator") and required not in fields:
            raise InvalidInput(f"metric.{required}", None, "a column of evidence; it is required")
    return cls(**fields)


def _of(kind: type[T], summary: MetricSummary) -> T:
    if not isinstance(summary, kind):
        raise InvalidInput("summary", summary, f"a {kind.__name__}")
    return summary
