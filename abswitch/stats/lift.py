"""Relative lift: how many percent more or less, with an interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from abswitch import checks
from abswitch.stats.comparison import finite
from abswitch.stats.means import Estimate, compare_by_t, satterthwaite, t_quantile, two_sided_p, why_no_t
from abswitch.stats.summaries import MeanSummary, RateSummary, Summary

GEOMETRIC = "ratio of geometric means (Welch t of logarithms)"

_LARGEST_LOG = 700.0
"""e to a larger power is no double."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeLift:
    """(candidate − baseline) / |baseline| as a fraction: 0.1 is 10 % more.

    Attributes:
        low, high: two-sided interval of confidence 1 − alpha.
        p_value: two-sided, of no lift.
        why_not: why there is none; None when there is one.
    """

    method: str
    alpha: float
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    df: float | None = None
    why_not: str | None = None

    @property
    def attainable(self) -> bool:
        """Whether there is a result at all."""
        return self.why_not is None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN and infinity become None."""
        plain: dict[str, Any] = finite(asdict(self) | {"attainable": self.attainable})
        return plain


def relative_lift(baseline: Summary, candidate: Summary, *, alpha: float = 0.05, scale: str = "linear") -> RelativeLift:
    """Relative lift by the delta method, on the linear scale or the logarithmic one.

    `log` keeps the interval above −100 % and is the better one for positive, skewed values such as latencies.

    Args:
        scale: `linear` or `log`.
        alpha: two-sided error rate, in (0, 0.5].

    Returns:
        A `RelativeLift`; `why_not` is set where the arms cannot be compared by t, where the baseline's own interval
        reaches 0 (any lift would then be possible), and on the log scale where an arm is not above 0.

    References:
        A. Deng, U. Knoblich, J. Lu, "Applying the Delta Method in Metric Analytics", KDD 2018;
        E. C. Fieller, Journal of the Royal Statistical Society B 16 (1954) 175–185 (why a baseline near 0 has none).

    >>> a, b = MeanSummary.of([9.0, 10.0, 11.0]), MeanSummary.of([10.0, 11.0, 12.0])
    >>> round(relative_lift(a, b).estimate, 3)
    0.1
    """
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    method = f"relative lift, {checks.one_of('scale', scale, ('linear', 'log'))} delta method"
    a, b = _estimate(baseline), _estimate(candidate)
    why_not = why_no_t(a, b) or _why_no_lift(a, b, scale, alpha)
    if why_not is not None:
        return RelativeLift(method=method, alpha=alpha, why_not=why_not)
    return _log(method, alpha, a, b) if scale == "log" else _linear(method, alpha, a, b)


def geometric_lift(baseline: MeanSummary, candidate: MeanSummary, *, alpha: float = 0.05) -> RelativeLift:
    """Ratio of geometric means, less 1, from summaries of logarithms: Welch's t on the log scale.

    For positive, skewed values such as latencies: one slow request moves it far less than the mean. Of lognormal values
    it is the lift of the median too.

    Args:
        baseline, candidate: of the natural logarithms of the values.
        alpha: two-sided error rate, in (0, 0.5]; 0.05 by convention.

    Returns:
        A `RelativeLift`; `why_not` is set where the arms cannot be compared by t, or the ratio is no number.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        J. M. Bland, D. G. Altman, BMJ 312 (1996) 1079 (transformations, means, and confidence intervals).

    >>> import math
    >>> a, b = ([math.log(x) for x in xs] for xs in ([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]))
    >>> round(geometric_lift(MeanSummary.of(a), MeanSummary.of(b)).estimate, 3)
    1.0
    """
    found = compare_by_t(GEOMETRIC, alpha, _estimate(baseline), _estimate(candidate))
    why_not = found.why_not
    if found.attainable and abs(found.estimate) > _LARGEST_LOG:
        why_not = "not attainable: the ratio is too large for a number"
    if why_not is not None:
        return RelativeLift(method=GEOMETRIC, alpha=alpha, why_not=why_not)
    estimate, low, high = (_expm1(x) for x in (found.estimate, found.low, found.high))
    return RelativeLift(
        method=GEOMETRIC, alpha=alpha, estimate=estimate, low=low, high=high, p_value=found.p_value, df=found.df
    )


def _linear(method: str, alpha: float, a: Estimate, b: Estimate) -> RelativeLift:
    size, ratio = abs(a.value), b.value / a.value
    parts = _scaled(a, ratio / size), _scaled(b, 1 / size)
    if not sum(one.squared_error for one in parts) > 0:  # a candidate that is 0 throughout, or too near to it to tell
        why_not = "not attainable: the candidate is 0 without variation, so nothing can be said about chance"
        return RelativeLift(method=method, alpha=alpha, why_not=why_not)
    error, df = satterthwaite(*parts)
    lift = (b.value - a.value) / size
    half = t_quantile(1 - alpha / 2, df) * error
    p_value = two_sided_p(lift / error, df)
    return RelativeLift(
        method=method, alpha=alpha, estimate=lift, low=lift - half, high=lift + half, p_value=p_value, df=df
    )


def _log(method: str, alpha: float, a: Estimate, b: Estimate) -> RelativeLift:
    error, df = satterthwaite(_scaled(a, 1 / a.value), _scaled(b, 1 / b.value))
    logarithm = math.log(b.value / a.value)
    half = t_quantile(1 - alpha / 2, df) * error
    estimate, low, high = (_expm1(x) for x in (logarithm, logarithm - half, logarithm + half))
    p_value = two_sided_p(logarithm / error, df)
    return RelativeLift(method=method, alpha=alpha, estimate=estimate, low=low, high=high, p_value=p_value, df=df)


def _expm1(logarithm: float) -> float:
    return math.expm1(logarithm) if logarithm <= _LARGEST_LOG else math.inf


def _scaled(arm: Estimate, factor: float) -> Estimate:
    return Estimate(arm.n, arm.value * factor, arm.variance * factor * factor)


def _estimate(arm: Summary) -> Estimate:
    if isinstance(arm, MeanSummary):
        return Estimate(arm.n, arm.mean, arm.variance)
    if isinstance(arm, RateSummary):
        spread = arm.mean * (1 - arm.mean) * arm.n / (arm.n - 1) if arm.n > 1 else math.nan
        return Estimate(arm.n, arm.mean, spread)
    return Estimate(arm.n, arm.mean, arm.linearised_variance)


def _why_no_lift(a: Estimate, b: Estimate, scale: str, alpha: float) -> str | None:
    if abs(a.value) <= t_quantile(1 - alpha / 2, a.n - 1) * math.sqrt(a.squared_error):
        return "not attainable: the baseline cannot be told from 0"
    if scale == "log" and min(a.value, b.value) <= 0:
        return "not attainable: logarithms need values above 0"
    return None
