"""The interval of a difference from the intervals of its two sides: the method of variance estimates recovery."""

from __future__ import annotations

import math

from scipy import special

from abswitch.stats.comparison import ArmEstimate
from abswitch.stats.means import t_quantile, two_sided_p


def recovered_interval(baseline: ArmEstimate, candidate: ArmEstimate) -> tuple[float, float]:
    """Interval of candidate − baseline from each independent arm's own interval, of the same confidence.

    Keeps what the arms' intervals know: a skewed arm gives a skewed difference. With Wilson's it is Newcombe's.

    References:
        G. Y. Zou, A. Donner, Statistics in Medicine 27 (2008) 1693–1702.

    >>> a, b = ArmEstimate(n=9, value=1.0, low=0.7, high=1.3), ArmEstimate(n=9, value=3.0, low=2.6, high=3.6)
    >>> [round(x, 2) for x in recovered_interval(a, b)]
    [1.5, 2.67]
    """
    estimate = candidate.value - baseline.value
    low = estimate - math.hypot(candidate.value - candidate.low, baseline.high - baseline.value)
    high = estimate + math.hypot(candidate.high - candidate.value, baseline.value - baseline.low)
    return low, high


def recovered_p(estimate: float, low: float, high: float, alpha: float, df: float | None = None) -> float:
    """Two-sided p-value of no difference that is below alpha exactly where the interval excludes 0.

    Normal, or by t where `df` is given, with the standard error that the interval's end towards 0 implies.
    """
    if math.isnan(estimate) or estimate == 0:
        return math.nan if math.isnan(estimate) else 1.0
    towards_zero = estimate - low if estimate > 0 else high - estimate
    if towards_zero <= 0:
        return 0.0
    statistic = abs(estimate) / towards_zero * _quantile(alpha, df)
    return float(2 * special.ndtr(-statistic)) if df is None else two_sided_p(statistic, df)


def implied_error(low: float, high: float, alpha: float, df: float | None = None) -> float:
    """Standard error that an interval of confidence 1 − alpha implies: half its width over its quantile."""
    return (high - low) / (2 * _quantile(alpha, df))


def _quantile(alpha: float, df: float | None) -> float:
    return float(special.ndtri(1 - alpha / 2)) if df is None else t_quantile(1 - alpha / 2, df)
