"""Quantiles, at any time: sequences of one arm, and the two-sample sequential test of their difference.

How many of n independent values lie below the true quantile is binomial whatever their distribution, and a
beta-binomial mixture says which counts are believable at all looks together: these are ranks, and the values at them
are the interval. An interval for a single look that is peeked at a hundred times misses in 29 to 35 % of runs.

Values that stay in a database: `sequential_quantile_ranks` says which ranks are needed, as for single looks (see
`abswitch.stats.quantiles`), and `sequential_quantile_difference` compares two such intervals. Arrays of both arms give
a narrower difference: `sequential_quantile_test`. Users who have several values: give one of each, the first.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.components import unattainable
from abswitch.stats.crossing import mixture_scale
from abswitch.stats.quantiles import QuantileInterval, QuantileRanks, quantile_ranks
from abswitch.stats.sequential import z_boundary
from abswitch.stats.summaries import numbers

QUANTILE_SEQUENCE = "difference of p{:g}, confidence sequences of both arms"
QUANTILE_TEST = "two-sample sequential quantile test of p{:g}"

Floats = NDArray[np.float64]
_LARGEST = 700.0


@dataclass(frozen=True, slots=True)
class _Counts:
    """Evidence against "so many of n values lie below the quantile", for all counts."""

    n: int
    q: float
    prior: float

    def log_e(self, count: ArrayLike) -> Floats:
        """Convex in the count."""
        k = np.asarray(count, dtype=np.float64)
        below, above = self.q * self.prior, (1 - self.q) * self.prior
        mixed = special.betaln(below + k, above + self.n - k) - special.betaln(below, above)
        found: Floats = mixed - k * math.log(self.q) - (self.n - k) * math.log1p(-self.q)
        return found

    @property
    def likeliest(self) -> int:
        """The count with the least evidence against it."""
        near = np.clip(round(self.n * self.q) + np.arange(-2, 3), 0, self.n)
        return int(near[int(np.argmin(self.log_e(near)))])

    def open(self, bound: float) -> tuple[int, int]:
        """The least and largest count with less evidence against it than `bound`; at least the likeliest."""
        middle = self.likeliest
        low = bisect.bisect_left(range(middle), True, key=lambda k: float(self.log_e(k)) < bound)
        above = range(middle + 1, self.n + 1)
        return low, middle + bisect.bisect_left(above, True, key=lambda k: float(self.log_e(k)) >= bound)


def sequential_quantile_ranks(n: int, q: float, *, planned_n: int, alpha: float = 0.05) -> QuantileRanks:
    """Which of n independent sorted values make an interval of the quantile that holds at all looks together.

    Args:
        n: values so far.
        q: the quantile, in (0, 1).
        planned_n: values at which the interval is to be narrowest; fixed beforehand.
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.

    Returns:
        `QuantileRanks`, whose `interval` takes the values at these ranks; `why_not` is set while n is too small. As for
        single looks, neither the least nor the largest value is ever an end.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        S. R. Howard, A. Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm
        identification", Bernoulli 28 (2022) 1704–1728, theorem 1 and § 2 (beta-binomial, one quantile).

    >>> sequential_quantile_ranks(1000, 0.5, planned_n=1000).needed
    (453, 500, 548)
    """
    single = quantile_ranks(n, q, alpha=alpha)  # checks n, q and alpha, and knows the point
    counts = _Counts(n, q, _prior(planned_n, alpha))
    low, above = counts.open(-math.log(alpha))
    high = above + 1
    attainable = n > 0 and low >= 2 and high <= n - 1
    why_not = f"not attainable: {n} values are too few for p{100 * q:g} at all looks together"
    return QuantileRanks(
        n=n,
        q=q,
        alpha=alpha,
        low=low if attainable else None,
        point=single.point,
        high=high if attainable else None,
        why_not=None if attainable else why_not,
    )


def quantile_sequence(values: ArrayLike, q: float, *, planned_n: int, alpha: float = 0.05) -> QuantileInterval:
    """A quantile with an interval that holds at all looks together; values of shape (n,), see above."""
    array = np.sort(numbers("values", values))
    ranks = sequential_quantile_ranks(array.size, q, planned_n=planned_n, alpha=alpha)
    return ranks.interval(*(float(array[rank - 1]) for rank in ranks.needed))


def sequential_quantile_difference(baseline: QuantileInterval, candidate: QuantileInterval) -> Comparison:
    """Difference of one quantile between two arms, each known by its sequence.

    Args:
        baseline, candidate: by `sequential_quantile_ranks` or `quantile_sequence`, each with half of the error rate
            that the difference is to have.

    Returns:
        A `Comparison` whose alpha is that of both together. It has no p-value (NaN): its interval decides. `why_not` is
        set where an arm has no interval.

    Raises:
        InvalidInput: different q.

    References:
        Howard & Ramdas (2022), § 3.
    """
    q = baseline.ranks.q
    if candidate.ranks.q != q:
        raise InvalidInput("candidate.q", candidate.ranks.q, f"that of the baseline, {q:g}")
    method, alpha = QUANTILE_SEQUENCE.format(100 * q), baseline.ranks.alpha + candidate.ranks.alpha
    a, b = (ArmEstimate(n=one.ranks.n, value=one.value, low=one.low, high=one.high) for one in (baseline, candidate))
    for name, arm in (("baseline", baseline), ("candidate", candidate)):
        if arm.why_not is not None:
            return unattainable(method, alpha, a, b, f"{arm.why_not} (the {name})")
    low, high = b.low - a.high, b.high - a.low
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=b.value - a.value,
        low=low,
        high=high,
        standard_error=_implied_error(low, high, alpha),
    )


def sequential_quantile_test(
    baseline: ArrayLike, candidate: ArrayLike, q: float, *, planned_n: int, share: float = 0.5, alpha: float = 0.05
) -> Comparison:
    """Test whether a quantile differs between two arms, at any time, with the sequence of the difference.

    Equal quantiles are refuted when, for each value that both could have, the product of the arms' evidence against it
    exceeds 1 / alpha; another difference in the same way, with one arm moved by it.

    Args:
        baseline, candidate: values so far, shapes (n,) and (m,), independent, in any order.
        q: the quantile, in (0, 1).
        planned_n: values of both arms together at which the test is to be sharpest; fixed beforehand.
        share: the candidate's planned share of them, in (0, 1).
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.

    Returns:
        A `Comparison` with `e_value`. `why_not` is set while the difference has no ends.

    Raises:
        InvalidInput: values that are not finite numbers, or an argument outside its range.

    References:
        Howard & Ramdas (2022), § 3 (sequential A/B tests of quantiles); least over the common quantile of the
        product of both arms' mixtures.

    >>> rng = np.random.default_rng(3)
    >>> a, b = rng.lognormal(0.0, 1.0, 3000), rng.lognormal(0.3, 1.0, 3000)
    >>> sequential_quantile_test(a, b, 0.95, planned_n=6000).excludes_zero()
    True
    """
    first, second = np.sort(numbers("baseline", baseline)), np.sort(numbers("candidate", candidate))
    if not 0 < checks.number("share", share) < 1:
        raise InvalidInput("share", share, "a number above 0 and below 1")
    checks.integer("planned_n", planned_n, low=2)
    own = [
        quantile_sequence(values, q, planned_n=max(2, round(planned_n * part)), alpha=alpha)
        for values, part in ((first, 1 - share), (second, share))
    ]
    a, b = (ArmEstimate(n=one.ranks.n, value=one.value, low=one.low, high=one.high) for one in own)
    method = QUANTILE_TEST.format(100 * q)
    counts = [
        _Counts(values.size, q, _prior(max(2, round(planned_n * part)), alpha))
        for values, part in ((first, 1 - share), (second, share))
    ]
    if not first.size or not second.size:
        return unattainable(method, alpha, a, b, "not attainable: an arm has no values")
    low, high = _open_differences(first, second, counts[0], counts[1], -math.log(alpha))
    if not math.isfinite(low) or not math.isfinite(high):
        why_not = f"not attainable: {first.size} and {second.size} values are too few for p{100 * q:g} at all looks"
        return unattainable(method, alpha, a, b, why_not)
    log_e = _log_e_of_equals(first, second, counts[0], counts[1])
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=b.value - a.value,
        low=low,
        high=high,
        p_value=math.exp(-max(log_e, 0.0)),
        e_value=math.exp(min(log_e, _LARGEST)),
        standard_error=_implied_error(low, high, alpha),
    )


def _implied_error(low: float, high: float, alpha: float) -> float:
    """As of the normal sequence that is as wide, at its planned size."""
    return (high - low) / (2 * float(z_boundary(1.0, alpha=alpha)))


def _prior(planned_n: int, alpha: float) -> float:
    """Concentration of the beta prior around q: as wide as the normal mixture that is narrowest at `planned_n`."""
    return max(1.0, checks.integer("planned_n", planned_n, low=2) * mixture_scale(alpha))


def _open_differences(first: Floats, second: Floats, a: _Counts, b: _Counts, bound: float) -> tuple[float, float]:
    """Ends of all differences for which some pair of counts is open."""
    low, high = a.open(bound - float(b.log_e(b.likeliest)))
    k = np.arange(low, high + 1)
    left = bound - a.log_e(k)
    lowest, highest = b.open(float(left.max()))
    others = np.arange(lowest, highest + 1)
    against = b.log_e(others)
    turn = int(np.argmin(against))
    # Evidence falls up to the turn and rises after it: both ends by binary search.
    from_here = turn - np.searchsorted(against[: turn + 1][::-1], left, side="left") + 1
    to_here = turn + np.searchsorted(against[turn:], left, side="left") - 1
    some = from_here <= to_here
    below, above = others[from_here[some]], others[to_here[some]]
    edges_a, edges_b = (np.concatenate([[-math.inf], values, [math.inf]]) for values in (first, second))
    # With count k the quantile lies between the values of ranks k and k + 1.
    return float((edges_b[below] - edges_a[k[some] + 1]).min()), float((edges_b[above + 1] - edges_a[k[some]]).max())


def _log_e_of_equals(first: Floats, second: Floats, a: _Counts, b: _Counts) -> float:
    """Least evidence against a common quantile, over all values it could have; ties count as is least against it."""
    at = np.concatenate([first, second])
    total = np.zeros(at.size)
    for values, counts in ((first, a), (second, b)):
        below, up_to = (np.searchsorted(values, at, side=side) for side in ("left", "right"))
        total += counts.log_e(np.clip(counts.likeliest, below, up_to))
    return float(total.min())
