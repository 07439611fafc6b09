"""Comparisons of means."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy import special

from abswitch import checks
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.summaries import MeanSummary

WELCH = "Welch t"


class Estimate(NamedTuple):
    """An arm's estimate: count, value, and variance of one observation's part in it (NaN where there is none)."""

    n: int
    value: float
    variance: float

    @property
    def squared_error(self) -> float:
        """Variance of the estimate itself."""
        return self.variance / self.n


def welch_t_test(baseline: MeanSummary, candidate: MeanSummary, *, alpha: float = 0.05) -> Comparison:
    """Welch's t-test of two means with unequal variances.

    Args:
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison`; `why_not` is set when an arm has fewer than two observations or neither arm varies.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        B. L. Welch, Biometrika 34 (1947) 28–35; F. E. Satterthwaite, Biometrics Bulletin 2 (1946) 110–114.

    >>> a, b = MeanSummary.of([1.0, 2.0, 3.0, 4.0]), MeanSummary.of([2.0, 4.0, 6.0, 8.0])
    >>> round(welch_t_test(a, b).p_value, 4)
    0.1516
    """
    return compare_by_t(
        WELCH,
        alpha,
        Estimate(baseline.n, baseline.mean, baseline.variance),
        Estimate(candidate.n, candidate.mean, candidate.variance),
    )


def compare_by_t(method: str, alpha: float, baseline: Estimate, candidate: Estimate) -> Comparison:
    """Welch–Satterthwaite comparison of two independent estimates."""
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    a, b = _arm(alpha, baseline), _arm(alpha, candidate)
    why_not = why_no_t(baseline, candidate)
    if why_not is not None:
        return Comparison(method=method, alpha=alpha, baseline=a, candidate=b, why_not=why_not)
    standard_error, df = satterthwaite(baseline, candidate)
    estimate = candidate.value - baseline.value
    half = t_quantile(1 - alpha / 2, df) * standard_error
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        p_value=two_sided_p(estimate / standard_error, df),
        df=df,
        standard_error=standard_error,
        notes=_notes(baseline, candidate),
    )


def satterthwaite(baseline: Estimate, candidate: Estimate) -> tuple[float, float]:
    """Standard error of the difference, and its degrees of freedom; at least one arm varies."""
    total = baseline.squared_error + candidate.squared_error
    parts = ((arm.squared_error / total, arm.n - 1) for arm in (baseline, candidate))
    return math.sqrt(total), 1.0 / sum(part * part / freedom for part, freedom in parts)


def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t."""
    return float(special.stdtrit(df, p))


def two_sided_p(statistic: float, df: float) -> float:
    """Chance that |t| is at least this large."""
    return float(2 * special.stdtr(df, -abs(statistic)))


def why_no_t(baseline: Estimate, candidate: Estimate) -> str | None:
    """Why these two cannot be compared by t; None when they can."""
    for name, arm in (("baseline", baseline), ("candidate", candidate)):
        if arm.n < 2:
            return f"not attainable: the {name} has {arm.n} observation(s), and 2 are the least"
        if math.isnan(arm.value):
            return f"not attainable: the {name}'s denominator is 0"
        if not math.isfinite(arm.value) or not math.isfinite(arm.squared_error):
            return f"not attainable: the {name}'s numbers are too large"
    total = baseline.squared_error + candidate.squared_error
    if not math.isfinite(total) or not math.isfinite(candidate.value - baseline.value):
        return "not attainable: the numbers are too large"
    return None if total > 0 else "not attainable: neither arm varies, so nothing can be said about chance"


def _arm(alpha: float, arm: Estimate) -> ArmEstimate:
    # Equal values give no interval: a width of 0 would claim certainty.
    if arm.n < 2 or not 0 < arm.variance < math.inf:
        return ArmEstimate(n=arm.n, value=arm.value, low=math.nan, high=math.nan)
    half = t_quantile(1 - alpha / 2, arm.n - 1) * math.sqrt(arm.squared_error)
    return ArmEstimate(n=arm.n, value=arm.value, low=arm.value - half, high=arm.value + half)


def _notes(baseline: Estimate, candidate: Estimate) -> tuple[str, ...]:
    arms = (("baseline", baseline), ("candidate", candidate))
    return tuple(f"no variation in the {name}" for name, arm in arms if arm.variance <= 0)
