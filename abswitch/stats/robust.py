"""Comparisons of means that do not lean on the tails or on a distribution: trimmed means and permutations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.means import Estimate, compare_by_t
from abswitch.stats.summaries import MeanSummary, numbers

YUEN = "Yuen t (trimmed means, {:g} of each tail)"
PERMUTATION = "permutation test (studentised)"

_BATCH_VALUES = 4_000_000
"""Values permuted at a time: 32 MB per array."""
_SLACK = 1e-9
"""Statistics this much apart are one: the same split summed in another order."""
_WHOLE = 1e-9
"""0.29 · 100 is 28.999…, and 29 values are meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedSummary:
    """What Yuen's test reads of one arm: count, trimmed mean, and the squared deviations of the winsorised values.

    Not mergeable: where to trim depends on all values.

    Attributes:
        n: values before trimming.
        trim: share cut off each tail, in [0, 0.5).
        mean: of the values that are left.
        m2: sum of squared deviations of all n values after pulling the trimmed ones in to the last that is left.
    """

    n: int
    trim: float
    mean: float
    m2: float

    def __post_init__(self) -> None:
        checks.integer("n", self.n, low=0)
        check_trim(self.trim)
        if self.n:
            checks.number("mean", self.mean)
            checks.number("m2", self.m2, low=0.0)

    @classmethod
    def of(cls, values: ArrayLike, trim: float = 0.2) -> Self:
        """From an array of shape (n,); 20 % is what Wilcox recommends.

        Raises:
            InvalidInput: not finite numbers, or trim outside [0, 0.5).
        """
        array, cut = np.sort(numbers("values", values)), check_trim(trim)
        if not array.size:
            return cls(n=0, trim=cut, mean=math.nan, m2=math.nan)
        gone = trimmed_count(array.size, cut)
        left = array[gone : array.size - gone]
        pulled_in = MeanSummary.of(np.clip(array, left[0], left[-1]))
        return cls(n=array.size, trim=cut, mean=MeanSummary.of(left).mean, m2=pulled_in.m2)

    @classmethod
    def from_moments(cls, n: int, trim: float, mean: float, winsorised_variance: float) -> Self:
        """From SQL: `avg` of the values whose ranks lie in (g, n − g], and `var_samp` of all, clamped to the first and
        last of those, with g = `trimmed_count(n, trim)`.
        """
        return cls(n=n, trim=trim, mean=mean, m2=winsorised_variance * max(n - 1, 0) if n else math.nan)

    @property
    def left(self) -> int:
        """Values that are left after trimming."""
        return self.n - 2 * trimmed_count(self.n, self.trim)


def yuen_t_test(baseline: TrimmedSummary, candidate: TrimmedSummary, *, alpha: float = 0.05) -> Comparison:
    """Yuen's t-test of two trimmed means: for skewed or heavy-tailed values, where the typical request matters.

    It says nothing about the tails: a version that is slower only in its slowest tenth looks equal. With trim 0 it is
    Welch's test.

    Args:
        baseline, candidate: of one trim.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison` of trimmed means, each arm with Tukey & McLaughlin's interval; `why_not` is set when trimming
        leaves an arm fewer than two values, or neither arm varies.

    Raises:
        InvalidInput: alpha outside its range, or the arms were trimmed differently.

    References:
        K. K. Yuen, Biometrika 61 (1974) 165–170; R. R. Wilcox, Introduction to Robust Estimation and Hypothesis
        Testing (2017).

    >>> a, b = TrimmedSummary.of([1, 2, 3, 4, 5, 60]), TrimmedSummary.of([4, 5, 6, 7, 8, 90])
    >>> yuen_t_test(a, b).estimate
    3.0
    """
    if baseline.trim != candidate.trim:
        raise InvalidInput("candidate.trim", candidate.trim, f"that of the baseline, {baseline.trim:g}")
    arms = {"baseline": baseline, "candidate": candidate}
    found = compare_by_t(YUEN.format(baseline.trim), alpha, *(_estimate(arm) for arm in arms.values()))
    for name, arm in reversed(arms.items()):
        if arm.n > 1 and arm.left < 2:
            found = replace(found, why_not=f"not attainable: trimming leaves {arm.left} of the {name}'s {arm.n} values")
    return replace(
        found, baseline=replace(found.baseline, n=baseline.n), candidate=replace(found.candidate, n=candidate.n)
    )


def permutation_test(
    baseline: ArrayLike, candidate: ArrayLike, *, resamples: int = 9999, seed: int = 0, alpha: float = 0.05
) -> Comparison:
    """Permutation test of two means with Welch's t as its statistic (SciPy's), and the interval that goes with it.

    Exact for equal distributions whatever they are, and, being studentised, right in large samples where only the
    means are equal. All splits are tried where there are at most `resamples` of them. The interval is the estimate ±
    the permutation quantile of |t| times the standard error: it excludes 0 exactly where p ≤ alpha.

    Args:
        baseline, candidate: arrays of shape (n,) and (m,), one value per unit: average the requests of one user first.
        resamples: random splits, at least 99; 9,999 gives p = .05 a Monte-Carlo error of .002.
        seed: of the random splits; the same seed gives the same result.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison`, each arm with its t interval; `why_not` is set as for `welch_t_test`, and where there are so few
        splits that none could have p ≤ alpha.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        E. Chung, J. P. Romano, Annals of Statistics 41 (2013) 484–507; A. Janssen, Statistics & Probability Letters 36
        (1997) 9–21.

    >>> c = permutation_test([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.5])
    >>> round(c.p_value, 4)
    0.0286
    """
    a, b = numbers("baseline", baseline), numbers("candidate", candidate)
    checks.integer("resamples", resamples, low=99)
    checks.integer("seed", seed, low=0)
    summaries = (MeanSummary.of(arm) for arm in (a, b))
    found = replace(
        compare_by_t(PERMUTATION, alpha, *(Estimate(arm.n, arm.mean, arm.variance) for arm in summaries)), df=None
    )
    if not found.attainable:
        return found
    statistics, observed = _null_statistics(a, b, resamples, seed)
    return _by_permutation(found, statistics, observed)


def trimmed_count(n: int, trim: float) -> int:
    """How many of n values are cut off each tail."""
    return math.floor(trim * n + _WHOLE)


def check_trim(trim: float) -> float:
    """A share to trim off each tail, from 0 to below one half."""
    if checks.number("trim", trim, low=0.0, high=0.5) == 0.5:
        raise InvalidInput("trim", trim, "a number from 0 to below 0.5")
    return float(trim)


def _estimate(arm: TrimmedSummary) -> Estimate:
    variance = arm.m2 / (arm.left - 1) if arm.left > 1 else math.nan
    return Estimate(arm.left, arm.mean, variance)


def _null_statistics(
    a: NDArray[np.float64], b: NDArray[np.float64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], float]:
    """|t| of every split (the observed one among them), and of the observed one."""
    batch = max(1, _BATCH_VALUES // (a.size + b.size))
    rng = np.random.default_rng(seed)
    with np.errstate(invalid="ignore"):  # of an infinite statistic SciPy's own p-value is none; it is not used
        result = stats.permutation_test(
            (a, b), _absolute_t, n_resamples=resamples, vectorized=True, batch=batch, alternative="greater", rng=rng
        )
    null, observed = np.asarray(result.null_distribution, dtype=np.float64), float(result.statistic)
    every_split = math.comb(a.size + b.size, a.size) <= resamples
    return (null if every_split else np.append(null, observed)), observed


def _absolute_t(a: NDArray[np.float64], b: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Welch's |t| along an axis; a split without spread is as far out as can be."""
    distance = np.abs(b.mean(axis=axis) - a.mean(axis=axis))
    error = np.sqrt(a.var(axis=axis, ddof=1) / a.shape[axis] + b.var(axis=axis, ddof=1) / b.shape[axis])
    flat = error <= _SLACK * distance
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = np.where(flat, np.where(distance > 0, np.inf, 0.0), distance / error)
    return found


def _by_permutation(found: Comparison, statistics: NDArray[np.float64], observed: float) -> Comparison:
    ordered = np.sort(statistics)[::-1]
    least = observed * (1 - _SLACK) if math.isfinite(observed) else observed
    p_value = float((ordered >= least).mean())
    critical = float(ordered[math.floor(found.alpha * ordered.size + _WHOLE)])
    if critical >= ordered[0] * (1 - _SLACK):
        why_not = f"not attainable: with {ordered.size} splits of these values, none can have p ≤ {found.alpha:g}"
        return Comparison(
            method=found.method, alpha=found.alpha, baseline=found.baseline, candidate=found.candidate, why_not=why_not
        )
    half = critical * (1 + _SLACK) * found.standard_error  # the same statistic summed in another order is not beyond
    return replace(found, low=found.estimate - half, high=found.estimate + half, p_value=p_value)
