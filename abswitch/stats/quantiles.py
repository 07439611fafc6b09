"""Quantiles such as p50, p95 and p99: intervals from order statistics, and the difference of two arms.

Two ways in: arrays, or, for data that stay in a database, ranks first and then the values at these ranks:

1. `quantile_ranks(n, q)` (or `clustered_quantile_ranks`) says which of the sorted values are needed,
2. the database delivers these, and `QuantileRanks.interval(low, value, high)` makes the interval of them.

In DuckDB the value of rank r of n is `quantile_disc(x, (r - 0.5) / n)`, and several come from one pass.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.means import t_quantile
from abswitch.stats.mover import implied_error, recovered_interval, recovered_p
from abswitch.stats.ratios import design_effect
from abswitch.stats.summaries import RatioSummary, numbers

QUANTILE = "difference of p{:g}, order statistics"
CLUSTERED_QUANTILE = "difference of p{:g}, order statistics, clustered by unit"

_WHOLE = 1e-9
"""0.07 · 100 is 7.000…1, and rank 7 is meant."""
_LEAST_WEIGHT = 0.5
"""Independent values' worth that an interval's end has at and beyond it, for clustered values: with less, the clusters
say nothing about how far out the end is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileRanks:
    """Which of n sorted values make a quantile and its interval.

    Attributes:
        n: values in all.
        q: the quantile, in (0, 1).
        alpha: the interval of these ranks has confidence of at least 1 − alpha.
        low, point, high: ranks from 1 (least) to n; `low` and `high` are None where n is too small.
        units: clusters that the values belong to; None where they are independent.
        design_effect: how many times more uncertain than independent values; 1 where they are independent.
        why_not: why there is no interval; None when there is one.
    """

    n: int
    q: float
    alpha: float
    low: int | None
    point: int | None
    high: int | None
    units: int | None = None
    design_effect: float = 1.0
    why_not: str | None = None

    @property
    def needed(self) -> tuple[int, ...]:
        """The ranks whose values are to be looked up, in the order in which `interval` takes them."""
        return tuple(rank for rank in (self.low, self.point, self.high) if rank is not None)

    def interval(self, *values: float) -> QuantileInterval:
        """The interval, from the values at the `needed` ranks: three, or one where there is no interval.

        Raises:
            InvalidInput: another number of values, one that is not finite, or values that are not sorted.
        """
        if len(values) != len(self.needed):
            raise InvalidInput("values", values, f"those of ranks {self.needed}")
        found = [checks.number("values", value) for value in values]
        if found != sorted(found):
            raise InvalidInput("values", values, "sorted, as ranks are")
        low, value, high = found if len(found) == 3 else (math.nan, *(found or [math.nan]), math.nan)
        return QuantileInterval(ranks=self, value=value, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileInterval:
    """A quantile of one arm with its interval, in the metric's own unit; NaN where there is none (`why_not`)."""

    ranks: QuantileRanks
    value: float
    low: float
    high: float

    @property
    def attainable(self) -> bool:
        """Whether there is an interval."""
        return self.ranks.why_not is None

    @property
    def why_not(self) -> str | None:
        """Why there is no interval; None when there is one."""
        return self.ranks.why_not


def quantile_interval(values: ArrayLike, q: float, *, alpha: float = 0.05) -> QuantileInterval:
    """A quantile with its distribution-free interval, from independent values.

    The quantile is the least value that at least a share q of all does not exceed (SQL's `quantile_disc`). The interval
    runs between two order statistics and has confidence of at least 1 − alpha whatever the distribution, with at most
    alpha / 2 on either side. The least and the largest value never serve as ends: one outlier would move them at will.

    Args:
        values: shape (n,).
        q: in (0, 1), 0.95 for p95.
        alpha: two-sided error rate, in (0, 0.5]; 0.05 by convention.

    Returns:
        A `QuantileInterval`; `why_not` is set when n is too small (`least_n_for_quantile`).

    Raises:
        InvalidInput: values that are not finite numbers, or q or alpha outside its range.

    References:
        W. R. Thompson, Annals of Mathematical Statistics 7 (1936) 122–128; G. J. Hahn, W. Q. Meeker, Statistical
        Intervals (1991), §5.2.

    >>> found = quantile_interval(range(1, 101), 0.5)
    >>> found.value, found.low, found.high
    (50.0, 40.0, 61.0)
    """
    array = numbers("values", values)
    return _at(array, quantile_ranks(array.size, q, alpha=alpha))


def clustered_quantile_interval(
    values: ArrayLike, units: ArrayLike, q: float, *, alpha: float = 0.05
) -> QuantileInterval:
    """A quantile with its interval where one unit (user, session, prompt) has several values.

    Treated as independent, such intervals of p95 cover 68 % instead of 95 %. See `clustered_quantile_ranks`.

    Args:
        values: shape (n,).
        units: shape (n,), whose value each is: strings or whole numbers.
        q, alpha: as for `quantile_interval`.

    Raises:
        InvalidInput: as `quantile_interval`; or units that cannot be told apart, or of another length.
    """
    array = numbers("values", values)
    _check(q, alpha)
    return _at(array, clustered_quantile_ranks(*shares_up_to(array, units, q), q, alpha=alpha))


def shares_up_to(values: ArrayLike, units: ArrayLike, q: float) -> tuple[RatioSummary, RatioSummary]:
    """Per unit, how many of its values are up to the quantile, and how many there are; and the same of the median.

    What `clustered_quantile_ranks` takes.

    Raises:
        InvalidInput: values that are not finite numbers, units that cannot be told apart, or of another length.
    """
    array, codes = numbers("values", values), _codes(units)
    if codes.size != array.size:
        raise InvalidInput("units", codes.size, f"as many as values ({array.size})")
    _check(q, 0.05)
    return _counts_up_to(array, codes, q), _counts_up_to(array, codes, 0.5)


def quantile_ranks(n: int, q: float, *, alpha: float = 0.05) -> QuantileRanks:
    """Which of n independent sorted values make the quantile and its interval; see `quantile_interval`.

    >>> quantile_ranks(1000, 0.95).needed
    (936, 950, 964)
    >>> quantile_ranks(50, 0.95).why_not
    'not attainable: p95 needs 110 values, and there are 50'
    """
    checks.integer("n", n, low=0)
    _check(q, alpha)
    low, high = _ends(n, q, alpha, 1.0)
    why_not = f"not attainable: p{100 * q:g} needs {least_n_for_quantile(q, alpha=alpha)} values, and there are {n}"
    return _ranks(n, q, alpha, low, high, why_not)


def clustered_quantile_ranks(
    below: RatioSummary, below_median: RatioSummary, q: float, *, alpha: float = 0.05
) -> QuantileRanks:
    """Which of n sorted values make the quantile and its interval where units have several.

    The share of values up to the quantile is a clustered rate, and its design effect (delta method) says how many
    independent values these are worth. Near p99 few units speak and those that would have spoken are missed, so the
    design effect is never taken below that at the median, where all units do, nor below 1; and the quantile is that of
    t, with as many degrees of freedom as units carry the rarer side, less 1. In simulations this covers 94 % and more
    of lognormal values with normal differences between units, and 91 % and more where a few units are much slower than
    the rest.

    Args:
        below: per unit, x counts its values up to the arm's quantile (the value of rank ⌈n·q⌉), y all of them.
        below_median: the same, up to the arm's median (the value of rank ⌈n/2⌉).
        q, alpha: as for `quantile_interval`.

    Returns:
        `QuantileRanks`; `why_not` is set when the values are worth too few, or there are fewer units than reach beyond
        the quantile once on average (20 for p95, 100 for p99).

    Raises:
        InvalidInput: q or alpha outside its range, x is not a count among y, or the two do not belong together.

    References:
        R. S. Woodruff, Journal of the American Statistical Association 47 (1952) 635–646; E. L. Korn, B. I. Graubard,
        Survey Methodology 24 (1998) 193–201 (effective size, with degrees of freedom).
    """
    _check(q, alpha)
    _check_shares(below, below_median)
    n = round(below.n * below.mean_y) if below.n else 0
    least = max(2, math.ceil(1 / min(q, 1 - q) - _WHOLE))
    if below.n < least:
        why_not = f"not attainable: p{100 * q:g} needs {least} units, and there are {below.n}"
        return _ranks(n, q, alpha, None, None, why_not, below.n)
    wider = t_quantile(1 - alpha / 2, _degrees_of_freedom(below)) / float(special.ndtri(1 - alpha / 2))
    effect = max(design_effect(below), design_effect(below_median)) * wider * wider
    low, high = _ends(n, q, alpha, effect)
    worth = f"{n} values of {below.n} units are worth {math.floor(n / effect)} independent ones"
    why_not = f"not attainable: {worth}, too few for p{100 * q:g}"
    return _ranks(n, q, alpha, low, high, why_not, below.n, effect)


def least_n_for_quantile(q: float, *, alpha: float = 0.05) -> int:
    """How many independent values a quantile's interval takes.

    >>> [least_n_for_quantile(q) for q in (0.5, 0.95, 0.99)]
    [9, 110, 555]
    """
    _check(q, alpha)
    return _least_n(q, alpha)


def quantile_test(baseline: QuantileInterval, candidate: QuantileInterval) -> Comparison:
    """Difference of one quantile between two arms, from each arm's interval.

    Keeps the skewness of the arms' intervals, which near p99 is large. The p-value follows from the interval: below
    alpha exactly where that excludes 0.

    Args:
        baseline, candidate: of one q and one alpha; clustered or not.

    Returns:
        A `Comparison`; `why_not` is set where an arm has no interval, or both intervals have no width (ties).

    Raises:
        InvalidInput: different q or alpha.

    References:
        G. Y. Zou, A. Donner, Statistics in Medicine 27 (2008) 1693–1702; R. M. Price, D. G. Bonett, Journal of
        Statistical Computation and Simulation 72 (2002) 119–124 (errors of quantiles from order statistics).

    >>> fast, slow = quantile_interval(range(1, 1001), 0.95), quantile_interval(range(101, 1101), 0.95)
    >>> c = quantile_test(fast, slow)
    >>> c.estimate, round(c.low, 1), round(c.high, 1)
    (100.0, 80.2, 119.8)
    """
    for name in ("q", "alpha"):
        want, got = getattr(baseline.ranks, name), getattr(candidate.ranks, name)
        if want != got:
            raise InvalidInput(f"candidate.{name}", got, f"that of the baseline, {want:g}")
    clustered = baseline.ranks.units is not None or candidate.ranks.units is not None
    method = (CLUSTERED_QUANTILE if clustered else QUANTILE).format(100 * baseline.ranks.q)
    alpha, a, b = baseline.ranks.alpha, _arm(baseline), _arm(candidate)
    why_not = _why_no_difference(baseline, candidate)
    if why_not is not None:
        return Comparison(method=method, alpha=alpha, baseline=a, candidate=b, why_not=why_not)
    low, high = recovered_interval(a, b)
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=b.value - a.value,
        low=low,
        high=high,
        p_value=recovered_p(b.value - a.value, low, high, alpha),
        standard_error=implied_error(low, high, alpha),
    )


def _why_no_difference(baseline: QuantileInterval, candidate: QuantileInterval) -> str | None:
    for name, arm in (("baseline", baseline), ("candidate", candidate)):
        if arm.why_not is not None:
            return f"{arm.why_not} (the {name})"
    if baseline.low == baseline.high and candidate.low == candidate.high:
        return "not attainable: neither arm varies around its quantile, so nothing can be said about chance"
    return None


def _arm(found: QuantileInterval) -> ArmEstimate:
    return ArmEstimate(n=found.ranks.n, value=found.value, low=found.low, high=found.high)


def _at(values: NDArray[np.float64], ranks: QuantileRanks) -> QuantileInterval:
    if not values.size:
        return ranks.interval()
    places = [rank - 1 for rank in ranks.needed]
    ordered = np.partition(values, places)
    return ranks.interval(*(float(ordered[place]) for place in places))


def _codes(units: ArrayLike) -> NDArray[np.intp]:
    """Units as whole numbers from 0."""
    array = np.asarray(units)
    if array.ndim != 1:
        raise InvalidInput("units", array.shape, "one dimension")
    if array.dtype.kind == "O" and all(isinstance(unit, str) for unit in array):
        array = array.astype(np.str_)
    if array.size and array.dtype.kind not in "biuUS":
        raise InvalidInput("units", str(array.dtype), "strings, or whole numbers")
    return np.unique(array, return_inverse=True)[1]


def _counts_up_to(values: NDArray[np.float64], codes: NDArray[np.intp], q: float) -> RatioSummary:
    """Per unit: values up to the quantile, and all."""
    point = quantile_rank(values.size, q)
    if point is None:
        return RatioSummary.of([], [])
    value = np.partition(values, point - 1)[point - 1]
    return RatioSummary.of(np.bincount(codes, weights=values <= value), np.bincount(codes))


def _check_shares(below: RatioSummary, below_median: RatioSummary) -> None:
    for name, share in (("below", below), ("below_median", below_median)):
        if share.n and not 0.0 <= share.mean <= 1.0:
            raise InvalidInput(f"{name}.mean", share.mean, "a share from 0 to 1")
    if below.n != below_median.n or (below.n and not math.isclose(below.mean_y, below_median.mean_y, rel_tol=1e-6)):
        raise InvalidInput("below_median", below_median, "the same units with the same values as below")


def _degrees_of_freedom(below: RatioSummary) -> float:
    """Units that carry the rarer side of the quantile (by the inverse of their squared shares), less 1."""
    mean_above = below.mean_y - below.mean_x
    m2_above = max(below.m2_x + below.m2_y - 2 * below.c_xy, 0.0)
    carried = [
        below.n * mean * mean / (m2 / below.n + mean * mean) if mean > 0 else 0.0
        for mean, m2 in ((below.mean_x, below.m2_x), (mean_above, m2_above))
    ]
    return min(max(min(carried) - 1, 1.0), below.n - 1.0)


def _ranks(
    n: int,
    q: float,
    alpha: float,
    low: int | None,
    high: int | None,
    why_not: str,
    units: int | None = None,
    effect: float = 1.0,
) -> QuantileRanks:
    both = low is not None and high is not None
    return QuantileRanks(
        n=n,
        q=q,
        alpha=alpha,
        low=low if both else None,
        point=quantile_rank(n, q),
        high=high if both else None,
        units=units,
        design_effect=effect,
        why_not=None if both else why_not,
    )


def quantile_rank(n: int, q: float) -> int | None:
    """The rank of the least value that a share q of all does not exceed; None of nothing."""
    return min(max(math.ceil(n * q - _WHOLE * n), 1), n) if n else None


def _ends(n: int, q: float, alpha: float, effect: float) -> tuple[int | None, int | None]:
    """Ranks of the interval's ends; the distribution function at rank r of n is Beta(r, n + 1 − r).

    Values worth fewer are as uncertain as that many fewer.
    """

    def share_below(rank: int) -> float:  # chance that the value of this rank is at most the quantile
        return float(special.betainc(rank / effect, (n + 1 - rank) / effect, q))

    low = _last(n, lambda rank: share_below(rank) >= 1 - alpha / 2)
    high = _last(n, lambda rank: share_below(rank) > alpha / 2) + 1
    point = quantile_rank(n, q) or 0
    low_holds = 2 <= low <= point and low / effect >= _LEAST_WEIGHT
    high_holds = point <= high <= n - 1 and (n + 1 - high) / effect >= _LEAST_WEIGHT
    return (low if low_holds else None), (high if high_holds else None)


def _last(n: int, holds: Callable[[int], bool]) -> int:
    """The last rank of 1…n at which something holds that, once it does not, never does again; 0 where it never does."""
    return bisect.bisect_left(range(1, n + 1), True, key=lambda rank: not holds(rank))


@functools.lru_cache(maxsize=256)
def _least_n(q: float, alpha: float) -> int:
    def enough(n: int) -> bool:
        return None not in _ends(n, q, alpha, 1.0)

    high = 4
    while not enough(high):
        high *= 2
    return bisect.bisect_left(range(high + 1), True, key=enough)


def _check(q: float, alpha: float) -> None:
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    if checks.number("q", q, low=0.0, high=1.0, above=True) == 1.0:
        raise InvalidInput("q", q, "a number above 0 and below 1")
