"""Comparisons over time, where neighbouring observations resemble each other.

Queue length, load and latency drift: an observation says much about the next one. Treated as independent, such series
tell two copies of one version apart most of the time. Newey–West counts the resemblance in over a few lags; it is for
series whose memory is short against their length. Under load with a long memory randomise blocks instead
(`abswitch.stats.switchback`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.components import Part, bare_arm, compare_parts, error_rate, unattainable
from abswitch.stats.summaries import numbers

NEWEY_WEST = "Newey–West t"

Floats = NDArray[np.float64]
_ROUNDING = 1e-14
"""Residuals below this share of the values are what rounding leaves of equal ones."""


def default_lags(n: int) -> int:
    """Lags of Newey and West's rule of thumb: the whole part of 4 (n / 100)^(2/9).

    References:
        W. K. Newey, K. D. West, Review of Economic Studies 61 (1994) 631–653.

    >>> [default_lags(n) for n in (10, 100, 1000)]
    [2, 4, 6]
    """
    checks.integer("n", n, low=0)
    return int(4 * (n / 100) ** (2 / 9))


def long_run_variance(values: ArrayLike, *, lags: int | None = None) -> float:
    """Newey–West's estimate of n times the variance of the mean of a series; with 0 lags the variance (divisor n).

    Args:
        values: shape (n,), in the order of time, at regular intervals.
        lags: how far resemblance reaches, below n; None is `default_lags`.

    Returns:
        In the square of the values' unit, never negative; NaN without values.

    Raises:
        InvalidInput: values that are not finite numbers, or lags outside their range.

    References:
        W. K. Newey, K. D. West, Econometrica 55 (1987) 703–708.

    >>> long_run_variance([1.0, 2.0, 3.0, 4.0], lags=0), long_run_variance([1.0, 2.0, 3.0, 4.0], lags=1)
    (1.25, 1.5625)
    """
    series = numbers("values", values)
    if not series.size:
        return math.nan
    return _bartlett(_cleared(series - series.mean(), series), _lags(lags, series.size)) / series.size


def newey_west_test(
    values: ArrayLike, candidate: ArrayLike, *, lags: int | None = None, alpha: float = 0.05
) -> Comparison:
    """Difference of two means within one time series, where arms took turns, with Newey–West standard error.

    The least-squares coefficient of the arm, with autocorrelation up to `lags` in its standard error, the factor
    n / (n − 2) and Student's t with n − 2 degrees of freedom. Lags must reach as far as the resemblance does: the rule
    of thumb is for a memory of a few steps. Under load that drifts slowly it errs far more often than alpha.

    Args:
        values: shape (n,), in the order of time, at regular intervals (e.g. means of a minute).
        candidate: shape (n,), true where the candidate served.
        lags: how far resemblance reaches, below n; None is `default_lags`.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison`; `why_not` is set when an arm has no value, there are fewer than three, or nothing varies.

    Raises:
        InvalidInput: values that are not finite numbers, arms that are not true or false, different lengths, or lags or
            alpha outside their range.

    References:
        W. K. Newey, K. D. West, Econometrica 55 (1987) 703–708.
    """
    error_rate(alpha)
    series, arm = numbers("values", values), _arms(candidate)
    if arm.size != series.size:
        raise InvalidInput("candidate", arm.size, f"as many values as there are ({series.size})")
    depth = _lags(lags, series.size)
    n, m = int((~arm).sum()), int(arm.sum())
    if not n or not m or n + m < 3:
        why_not = f"not attainable: {n} and {m} observations, and each arm needs one, both together three"
        return unattainable(NEWEY_WEST, alpha, bare_arm(n), bare_arm(m), why_not)
    a, b = float(series[~arm].mean()), float(series[arm].mean())
    residuals = _cleared(series - np.where(arm, b, a), series)
    influence = residuals * np.where(arm, 1 / m, -1 / n)
    variance = _bartlett(influence, depth) * (n + m) / (n + m - 2)
    notes = (f"{depth} lags",)
    return compare_parts(NEWEY_WEST, alpha, bare_arm(n, a), bare_arm(m, b), b - a, (Part(variance, n + m - 2),), notes)


def _bartlett(series: Floats, lags: int) -> float:
    """Sum of all products of a series with itself, lagged ones with weights that fall to 0 beyond `lags`."""
    total = float(series @ series)
    for lag in range(1, lags + 1):
        total += 2 * (1 - lag / (lags + 1)) * float(series[lag:] @ series[:-lag])
    return max(total, 0.0)


def _cleared(residuals: Floats, series: Floats) -> Floats:
    """Residuals, or zeros where they are rounding alone."""
    size = float(np.abs(series).max(initial=0.0))
    return residuals if np.abs(residuals).max(initial=0.0) > _ROUNDING * size else np.zeros_like(residuals)


def _lags(given: int | None, n: int) -> int:
    if given is None:
        return min(default_lags(n), max(n - 1, 0))
    return checks.integer("lags", given, low=0, high=max(n - 1, 0))


def _arms(given: ArrayLike) -> NDArray[np.bool_]:
    array = numbers("candidate", given)
    if not np.isin(array, (0.0, 1.0)).all():
        raise InvalidInput("candidate", given, "True and False only")
    return array.astype(np.bool_)
