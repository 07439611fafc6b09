"""Comparisons of means."""

from __future__ import annotations

import math

from scipy import special

from abswitch import checks
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.summaries import MeanSummary

WELCH = "Welch t"


def welch_t_test(baseline: MeanSummary, candidate: MeanSummary, *, alpha: float = 0.05) -> Comparison:
    """Welch's t-test of two means with unequal variances.

    Args:
        alpha: two-sided error rate; the interval has confidence 1 − alpha.

    Returns:
        A `Comparison`; `why_not` is set when an arm has fewer than two observations or neither arm varies.

    References:
        B. L. Welch, Biometrika 34 (1947) 28–35; F. E. Satterthwaite, Biometrics Bulletin 2 (1946) 110–114.

    >>> a, b = MeanSummary.of([1.0, 2.0, 3.0, 4.0]), MeanSummary.of([2.0, 4.0, 6.0, 8.0])
    >>> round(welch_t_test(a, b).p_value, 4)
    0.1516
    """
    return compare_by_t(
        WELCH,
        alpha,
        (baseline.n, baseline.mean, baseline.variance),
        (candidate.n, candidate.mean, candidate.variance),
    )


def compare_by_t(
    method: str, alpha: float, baseline: tuple[int, float, float], candidate: tuple[int, float, float]
) -> Comparison:
    """Welch–Satterthwaite comparison of two independent estimates, each (n, value, variance of one observation)."""
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    a, b = arm_by_t(alpha, *baseline), arm_by_t(alpha, *candidate)
    why_not = _why_not(baseline, candidate)
    if why_not is not None:
        return Comparison(method=method, alpha=alpha, baseline=a, candidate=b, why_not=why_not)
    parts = (baseline[2] / baseline[0], candidate[2] / candidate[0])
    standard_error = math.sqrt(sum(parts))
    df = sum(parts) ** 2 / (parts[0] ** 2 / (baseline[0] - 1) + parts[1] ** 2 / (candidate[0] - 1))
    estimate = candidate[1] - baseline[1]
    half = t_quantile(1 - alpha / 2, df) * standard_error
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        p_value=float(2 * special.stdtr(df, -abs(estimate) / standard_error)),
        df=df,
        standard_error=standard_error,
        notes=_notes(baseline, candidate),
    )


def arm_by_t(alpha: float, n: int, value: float, variance: float) -> ArmEstimate:
    """One arm's value with its t interval."""
    if n < 2 or math.isnan(variance):
        return ArmEstimate(n=n, value=value, low=math.nan, high=math.nan)
    half = t_quantile(1 - alpha / 2, n - 1) * math.sqrt(variance / n)
    return ArmEstimate(n=n, value=value, low=value - half, high=value + half)


def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t."""
    return float(special.stdtrit(df, p))


def _why_not(baseline: tuple[int, float, float], candidate: tuple[int, float, float]) -> str | None:
    for name, (n, value, variance) in (("baseline", baseline), ("candidate", candidate)):
        if n < 2:
            return f"not attainable: the {name} has {n} observation(s), and 2 are the least"
        if math.isnan(value) or math.isnan(variance):
            return f"not attainable: the {name}'s denominator is 0"
    if baseline[2] + candidate[2] <= 0:
        return "not attainable: neither arm varies, so nothing can be said about chance"
    return None


def _notes(baseline: tuple[int, float, float], candidate: tuple[int, float, float]) -> tuple[str, ...]:
    arms = (("baseline", baseline), ("candidate", candidate))
    return tuple(f"no variation in the {name}" for name, arm in arms if arm[2] <= 0)
