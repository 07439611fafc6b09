"""Comparisons held against a margin: not worse than that, not different by that, or worse by more than that."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from scipy import special

from abswitch import checks
from abswitch.stats.comparison import Comparison, finite
from abswitch.stats.means import t_quantile


class MarginOutcome(StrEnum):
    """Whether the claim is shown, its opposite is, or neither."""

    SHOWN = "shown"
    REFUTED = "refuted"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginTest:
    """A claim about a margin, decided by the comparison's interval.

    Attributes:
        margin: in the metric's own unit; above 0, of a harm test 0 or more.
        low, high: the interval of the difference, turned so that up is better (not for equivalence).
        alpha: error rate of the claim: half of the comparison's, as one end of its interval decides.
        p_value: one-sided, of the claim's opposite; below alpha exactly where the claim is shown. By the interval's
            end, so exact for t tests and close for others. NaN where there is no result.
    """

    method: str
    margin: float
    low: float
    high: float
    alpha: float
    outcome: MarginOutcome
    p_value: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def non_inferiority(found: Comparison, *, margin: float, direction: str) -> MarginTest:
    """Whether the candidate is worse than the baseline by less than `margin`.

    Shown when the interval lies above −margin on the scale where up is better; refuted (harm) when it lies below.
    Not attainable comparisons leave it open.

    Args:
        margin: above 0, in the metric's own unit.
        direction: `increase` or `decrease`, whichever is better.

    Raises:
        InvalidInput: margin or direction is not allowed.

    References:
        G. Piaggio et al., JAMA 308 (2012) 2594–2604 (CONSORT, non-inferiority and equivalence trials).

    >>> from abswitch.stats import RateSummary, two_proportion_z_test
    >>> errors = two_proportion_z_test(RateSummary(500, 5), RateSummary(500, 6))
    >>> non_inferiority(errors, margin=0.05, direction="decrease").outcome.value
    'shown'
    """
    checks.number("margin", margin, low=0.0, above=True)
    better = checks.one_of("direction", direction, ("increase", "decrease"))
    turned = _turned(found, better)
    outcome = _outcome(found, shown=turned.low > -margin, refuted=turned.high < -margin)
    return _test("non-inferiority, by the interval", found, margin, turned, outcome, turned.p_above(-margin))


def harm_test(found: Comparison, *, direction: str, margin: float = 0.0) -> MarginTest:
    """Whether the candidate is worse than the baseline by more than `margin`: what rolls a canary back.

    Shown when the interval lies below −margin on the scale where up is better; refuted when it lies above, which is
    non-inferiority. Any one of several harm tests rolls back, so they share their error rate: with k of them make each
    comparison with alpha / k. Claims that must all be shown (non-inferiority of every guardrail) need no sharing.

    Args:
        margin: 0 or more, in the metric's own unit; 0 by default: any harm.
        direction: `increase` or `decrease`, whichever is better.

    Raises:
        InvalidInput: margin or direction is not allowed.

    References:
        R. L. Berger, Technometrics 24 (1982) 295–300 (tests of which all must reject need no correction).

    >>> from abswitch.stats import RateSummary, two_proportion_z_test
    >>> errors = two_proportion_z_test(RateSummary(500, 5), RateSummary(500, 30))
    >>> harm_test(errors, direction="decrease").outcome.value
    'shown'
    """
    checks.number("margin", margin, low=0.0)
    better = checks.one_of("direction", direction, ("increase", "decrease"))
    turned = _turned(found, better)
    outcome = _outcome(found, shown=turned.high < -margin, refuted=turned.low > -margin)
    return _test("harm, by the interval", found, margin, turned, outcome, turned.p_below(-margin))


def tost_equivalence(found: Comparison, *, margin: float) -> MarginTest:
    """Whether candidate and baseline differ by less than `margin` either way: two one-sided tests.

    Shown when the interval lies inside (−margin, margin); refuted when it lies outside. The interval is the
    comparison's own, of confidence 1 − alpha, so each one-sided test has alpha / 2: stricter than the customary
    1 − 2·alpha, and the same interval that decides better and worse.

    References:
        D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987) 657–680.
    """
    checks.number("margin", margin, low=0.0, above=True)
    outcome = _outcome(found, shown=found.within(margin), refuted=found.low > margin or found.high < -margin)
    interval = _turned(found, "increase")
    p_value = max(interval.p_above(-margin), interval.p_below(margin))
    return _test("equivalence, two one-sided tests by the interval", found, margin, interval, outcome, p_value)


class _Interval(NamedTuple):
    """An estimate with its ends, and the quantile that its ends were made with."""

    estimate: float
    low: float
    high: float
    df: float | None
    alpha: float

    def p_above(self, bound: float) -> float:
        """One-sided p-value of "at most bound"."""
        return self._p(self.estimate - bound, self.estimate - self.low)

    def p_below(self, bound: float) -> float:
        """One-sided p-value of "at least bound"."""
        return self._p(bound - self.estimate, self.high - self.estimate)

    def _p(self, distance: float, reach: float) -> float:
        """How far the estimate is from the bound, against how far the interval reaches towards it."""
        if math.isnan(distance) or math.isnan(reach):
            return math.nan
        if reach <= 0:
            return 0.0 if distance > 0 else 1.0
        statistic = -distance / reach
        if self.df is None:
            return float(special.ndtr(statistic * special.ndtri(1 - self.alpha / 2)))
        return float(special.stdtr(self.df, statistic * t_quantile(1 - self.alpha / 2, self.df)))


def _turned(found: Comparison, better: str) -> _Interval:
    """The interval on the scale where up is better."""
    if better == "increase":
        return _Interval(found.estimate, found.low, found.high, found.df, found.alpha)
    return _Interval(-found.estimate, -found.high, -found.low, found.df, found.alpha)


def _outcome(found: Comparison, *, shown: bool, refuted: bool) -> MarginOutcome:
    if not found.attainable or not (shown or refuted):
        return MarginOutcome.OPEN
    return MarginOutcome.SHOWN if shown else MarginOutcome.REFUTED


def _test(
    method: str, found: Comparison, margin: float, interval: _Interval, outcome: MarginOutcome, p_value: float
) -> MarginTest:
    return MarginTest(
        method=method,
        margin=margin,
        low=interval.low,
        high=interval.high,
        alpha=found.alpha / 2,
        outcome=outcome,
        p_value=p_value if found.attainable else math.nan,
    )
