"""A comparison whose variance is a sum of independent parts, each known with its own degrees of freedom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from abswitch import checks
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.means import t_quantile, two_sided_p

NEITHER_VARIES = "not attainable: neither arm varies, so nothing can be said about chance"
TOO_LARGE = "not attainable: the numbers are too large"


class Part(NamedTuple):
    """One independent part of an estimate's variance, with the degrees of freedom it was estimated with."""

    variance: float
    df: float


def combined(parts: Sequence[Part]) -> tuple[float, float]:
    """Standard error and Satterthwaite's degrees of freedom of a sum of independent parts; (0, 0) where none varies."""
    total = sum(part.variance for part in parts)
    if not 0 < total < math.inf:
        return total, 0.0
    return math.sqrt(total), 1.0 / sum((part.variance / total) ** 2 / part.df for part in parts if part.variance)


def compare_parts(
    method: str,
    alpha: float,
    baseline: ArmEstimate,
    candidate: ArmEstimate,
    estimate: float,
    parts: Sequence[Part],
    notes: tuple[str, ...] = (),
) -> Comparison:
    """Comparison by t of an estimate with these parts of variance.

    References:
        F. E. Satterthwaite, Biometrics Bulletin 2 (1946) 110–114.
    """
    error, df = combined(parts)
    if not df or not math.isfinite(estimate):
        finite = math.isfinite(error) and math.isfinite(estimate)
        why_not = NEITHER_VARIES if finite else TOO_LARGE
        return unattainable(method, alpha, baseline, candidate, why_not)
    half = t_quantile(1 - alpha / 2, df) * error
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=baseline,
        candidate=candidate,
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        p_value=two_sided_p(estimate / error, df),
        df=df,
        standard_error=error,
        notes=notes,
    )


def unattainable(
    method: str,
    alpha: float,
    baseline: ArmEstimate,
    candidate: ArmEstimate,
    why_not: str,
    notes: tuple[str, ...] = (),
) -> Comparison:
    """No result, and why."""
    return Comparison(method=method, alpha=alpha, baseline=baseline, candidate=candidate, why_not=why_not, notes=notes)


def arm_estimate(n: int, value: float, parts: Sequence[Part], alpha: float) -> ArmEstimate:
    """One arm's value with its t interval; without an interval where nothing varies."""
    error, df = combined(parts)
    if not df or not math.isfinite(value):
        return bare_arm(n, value)
    half = t_quantile(1 - alpha / 2, df) * error
    return ArmEstimate(n=n, value=value, low=value - half, high=value + half)


def bare_arm(n: int, value: float = math.nan) -> ArmEstimate:
    """An arm without an interval."""
    return ArmEstimate(n=n, value=value, low=math.nan, high=math.nan)


def error_rate(alpha: float) -> float:
    """A two-sided error rate in (0, 0.5].

    Raises:
        InvalidInput: it is not.
    """
    return checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
