"""Comparisons by ranks: of two groups (Mann–Whitney) and of pairs (Wilcoxon), with Hodges and Lehmann's shift."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.mover import implied_error
from abswitch.stats.paired import pairs_of
from abswitch.stats.quantiles import quantile_interval
from abswitch.stats.summaries import numbers

MANN_WHITNEY = "Mann–Whitney, Hodges–Lehmann shift"
WILCOXON = "Wilcoxon signed rank, Hodges–Lehmann shift"

EXACT_UP_TO = 50
"""Values per group, or pairs, up to which the exact null distribution is used where nothing is tied (as R does)."""
_KEPT_SUMS = 1_000_000
"""Pairwise sums that are kept at a time: 8 MB."""


def mann_whitney_test(baseline: ArrayLike, candidate: ArrayLike, *, alpha: float = 0.05) -> Comparison:
    """Mann–Whitney's U-test (SciPy's), with Hodges and Lehmann's shift and Moses' interval for it.

    The estimate is the median of all differences between a candidate's and a baseline's value, which is not the
    difference of the medians. As a test of "neither tends to have the larger values" it needs no more; the shift is
    meaningful where the two distributions have about one shape. Values of one user are not independent: give one per
    unit.

    Args:
        baseline, candidate: arrays of shape (n,) and (m,), one value per unit.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison`; each arm has its median with the order-statistic interval (NaN below 9 values at 95 %). Exact up
        to 50 values per arm without ties; else normal with corrections for ties and continuity. `why_not` is set when
        an arm is empty, all values are one, there are too few for an interval, or too many ties.

    Raises:
        InvalidInput: values that are not finite numbers, or alpha outside its range.

    References:
        H. B. Mann, D. R. Whitney, Annals of Mathematical Statistics 18 (1947) 50–60; J. L. Hodges, E. L. Lehmann,
        Annals of Mathematical Statistics 34 (1963) 598–611; M. Hollander, D. A. Wolfe, Nonparametric Statistical
        Methods (1973), §4.1–4.3.

    >>> at_term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
    >>> c = mann_whitney_test([1.15, 0.88, 0.90, 0.74, 1.21], at_term)
    >>> round(c.p_value, 4), round(c.estimate, 3)
    (0.2544, 0.305)
    """
    a, b = numbers("baseline", baseline), numbers("candidate", candidate)
    empty = _blank(MANN_WHITNEY, a, b, alpha)
    if not a.size or not b.size:
        which = "candidate" if a.size else "baseline"
        return replace(empty, why_not=f"not attainable: the {which} has no observation")
    tied = _ties(np.concatenate((a, b)))
    exact = not tied.any() and max(a.size, b.size) <= EXACT_UP_TO
    differences = _Sums.between(b, -a)
    if exact:
        least = _rank_sum_rank(a.size, b.size, alpha)
    else:
        least = _normal_rank(differences.total, _tied_variance(a.size, b.size, tied), alpha)
    why_not = _why_not(a, b, least)
    if why_not is not None:
        return replace(empty, why_not=why_not)
    p_value = stats.mannwhitneyu(b, a, method="exact" if exact else "asymptotic").pvalue
    return _located(empty, differences, least, float(p_value))


def wilcoxon_signed_rank_test(baseline: ArrayLike, candidate: ArrayLike, *, alpha: float = 0.05) -> Comparison:
    """Wilcoxon's signed-rank test of pairs (SciPy's), with Hodges and Lehmann's shift and Tukey's interval for it.

    The estimate is the pseudomedian: the median of the means of any two differences (one with itself included). Pairs
    that do not differ count: for p by Pratt's method, in the estimate as 0.

    Args:
        baseline, candidate: arrays of shape (n,), in the order of the pairs.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison`; each arm has its median with the order-statistic interval (NaN below 9 values at 95 %). Exact up
        to 50 pairs without ties and zeros (the p-value up to 13 with them); else normal. `why_not` is set when no
        pair differs, there are too few for an interval (6 are enough at 95 %), or so few differ that it has no width.

    Raises:
        InvalidInput: values that are not finite numbers, different lengths, or alpha outside its range.

    References:
        F. Wilcoxon, Biometrics Bulletin 1 (1945) 80–83; J. W. Pratt, Journal of the American Statistical Association
        54 (1959) 655–667; M. Hollander, D. A. Wolfe, Nonparametric Statistical Methods (1973), §3.1–3.3.

    >>> first = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    >>> second = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    >>> c = wilcoxon_signed_rank_test(first, second)
    >>> round(c.p_value, 4), round(c.estimate, 3), round(c.low, 3), round(c.high, 3)
    (0.0391, -0.46, -0.786, -0.01)
    """
    a, b = pairs_of(baseline, candidate)
    empty, differences = _blank(WILCOXON, a, b, alpha), b - a
    n, zeros = differences.size, int((differences == 0).sum())
    if zeros == n:
        return replace(empty, why_not="not attainable: no pair differs" if n else "not attainable: there are no pairs")
    exact = not zeros and not _ties(np.abs(differences)).any() and n <= EXACT_UP_TO
    averages = _Sums.within(differences / 2)
    least = (
        _signed_rank_rank(n, alpha) if exact else _normal_rank(averages.total, n * (n + 1) * (2 * n + 1) / 24, alpha)
    )
    if least < 1:
        return replace(empty, why_not=f"not attainable: {n} pair(s) are too few for an interval")
    p_value = stats.wilcoxon(differences, zero_method="pratt").pvalue
    notes = (f"{zeros} of {n} pairs do not differ",) if zeros else ()
    return replace(_located(empty, averages, least, float(p_value)), notes=notes)


def hodges_lehmann(baseline: ArrayLike, candidate: ArrayLike) -> float:
    """Hodges and Lehmann's shift: the median of all differences candidate − baseline between two groups.

    In n log n time per halving and without keeping all n·m differences, so for millions of values too.

    Raises:
        InvalidInput: values that are not finite numbers, or an empty arm.

    References:
        J. L. Hodges, E. L. Lehmann, Annals of Mathematical Statistics 34 (1963) 598–611.

    >>> hodges_lehmann([1.0, 2.0, 3.0], [2.0, 4.0, 9.0])
    2.0
    """
    a, b = numbers("baseline", baseline), numbers("candidate", candidate)
    for name, arm in (("baseline", a), ("candidate", b)):
        if not arm.size:
            raise InvalidInput(name, [], "at least one value")
    return _Sums.between(b, -a).median()


class _Sums(NamedTuple):
    """All sums of a row and a column, of each row from its column `first` on; selected from without listing them."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    first: NDArray[np.intp]

    @classmethod
    def between(cls, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> _Sums:
        """Every row with every column."""
        return cls(np.sort(rows), np.sort(columns), np.zeros(rows.size, dtype=np.intp))

    @classmethod
    def within(cls, values: NDArray[np.float64]) -> _Sums:
        """Every pair of values once, each with itself too."""
        ordered = np.sort(values)
        return cls(ordered, ordered, np.arange(values.size))

    @property
    def total(self) -> int:
        return int((self.columns.size - self.first).sum())

    def median(self) -> float:
        return (self.smallest((self.total + 1) // 2) + self.smallest(self.total // 2 + 1)) / 2

    def smallest(self, k: int) -> float:
        """The k-th smallest sum, from k = 1: halves the range of values until few enough sums are left to sort."""
        low, high = float(self.rows[0] + self.columns[0]), float(self.rows[-1] + self.columns[-1])
        rounding = (
            4 * np.finfo(np.float64).eps * (np.abs(self.rows[[0, -1]]).max() + np.abs(self.columns[[0, -1]]).max())
        )
        low -= rounding
        before, upto = np.zeros_like(self.first), self.columns.size - self.first
        while (upto - before).sum() > _KEPT_SUMS and high - low > rounding:
            middle = low / 2 + high / 2
            here = self._up_to(middle)
            if here.sum() >= k:
                high, upto = middle, here
            else:
                low, before = middle, here
        return self._kth_between(before, upto, k)

    def _up_to(self, value: float) -> NDArray[np.intp]:
        """Per row, how many of its sums are at most the value."""
        found: NDArray[np.intp] = np.searchsorted(self.columns, value - self.rows, side="right") - self.first
        return found.clip(min=0)

    def _kth_between(self, before: NDArray[np.intp], upto: NDArray[np.intp], k: int) -> float:
        lengths = upto - before
        if lengths.sum() > _KEPT_SUMS:  # more than can be kept, but for rounding all of them are equal
            row = int(lengths.argmax())
            return float(self.rows[row] + self.columns[self.first[row] + before[row]])
        starts = np.cumsum(lengths) - lengths
        column = np.arange(lengths.sum()) - np.repeat(starts - self.first - before, lengths)
        sums = np.repeat(self.rows, lengths) + self.columns[column]
        place = k - 1 - int(before.sum())
        return float(np.partition(sums, place)[place])


def _blank(method: str, a: NDArray[np.float64], b: NDArray[np.float64], alpha: float) -> Comparison:
    """A comparison of two arms' medians without a result yet."""
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    return Comparison(method=method, alpha=alpha, baseline=_median(a, alpha), candidate=_median(b, alpha))


def _median(values: NDArray[np.float64], alpha: float) -> ArmEstimate:
    found = quantile_interval(values, 0.5, alpha=alpha)
    value = float(np.median(values)) if values.size else math.nan
    return ArmEstimate(n=values.size, value=value, low=found.low, high=found.high)


def _why_not(a: NDArray[np.float64], b: NDArray[np.float64], least: int) -> str | None:
    if min(a.min(), b.min()) == max(a.max(), b.max()):
        return "not attainable: all values of both arms are one"
    if not math.isfinite(float(max(a.max(), b.max())) - float(min(a.min(), b.min()))):
        return "not attainable: the numbers are too large"
    if least < 1:
        return f"not attainable: {a.size} and {b.size} values are too few for an interval"
    return None


def _located(empty: Comparison, sums: _Sums, least: int, p_value: float) -> Comparison:
    low, high = sums.smallest(least), sums.smallest(sums.total + 1 - least)
    if low == high:
        return replace(empty, why_not="not attainable: so many values are tied that the interval has no width")
    return replace(
        empty,
        estimate=sums.median(),
        low=low,
        high=high,
        p_value=min(1.0, p_value),
        standard_error=implied_error(low, high, empty.alpha),
    )


def _ties(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sizes of the groups of equal values that have more than one."""
    counts = np.unique(values, return_counts=True)[1].astype(np.float64)
    return counts[counts > 1]


def _tied_variance(n: int, m: int, ties: NDArray[np.float64]) -> float:
    """Of U under no difference (Hollander & Wolfe 4.15)."""
    total = n + m
    return n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))


def _normal_rank(total: int, variance: float, alpha: float) -> int:
    """The last k for which fewer than k sums lie on one side with a chance of at most alpha / 2, about."""
    return math.floor(total / 2 - float(special.ndtri(1 - alpha / 2)) * math.sqrt(variance) + 0.5)


def _exact_rank(lower_half: NDArray[np.float64], outcomes: int, alpha: float) -> int:
    """The same from the exact null distribution: in how many ways each value of its lower half comes about."""
    return int(np.searchsorted(lower_half.cumsum(), alpha / 2 * outcomes, side="right"))


@functools.lru_cache(maxsize=64)
def _rank_sum_rank(n: int, m: int, alpha: float) -> int:
    """By the coefficients of the Gaussian binomial, factor by factor; the lower half needs nothing of the upper."""
    ways = np.zeros(n * m // 2 + 1)
    ways[0] = 1.0
    for i in range(1, min(n, m) + 1):
        step = max(n, m) + i
        ways[step:] = ways[step:] - ways[: max(ways.size - step, 0)]  # times 1 − x^step
        padded = np.concatenate((ways, np.zeros(-ways.size % i)))
        ways = padded.reshape(-1, i).cumsum(axis=0).ravel()[: ways.size]  # over 1 − x^i
    return _exact_rank(ways, math.comb(n + m, n), alpha)


@functools.lru_cache(maxsize=64)
def _signed_rank_rank(n: int, alpha: float) -> int:
    """By which sums the positive ranks can have."""
    ways = np.zeros(n * (n + 1) // 4 + 1)
    ways[0] = 1.0
    for rank in range(1, min(n, ways.size - 1) + 1):
        ways[rank:] = ways[rank:] + ways[:-rank]
    return _exact_rank(ways, 2**n, alpha)
