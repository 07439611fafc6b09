"""Scores that end at known bounds: sequences that hold exactly, for any sample size, split and shape.

Betting: a gambler who bets against a mean and is not ruined by it learns that it is not the mean. The mean's confidence
sequence is what no gambler got rich against. It is the narrowest for bounded scores, and costs a few hundred operations
for each new score. The empirical-Bernstein sequence is wider and costs a few. Both are states: give each look's new
scores to `update`, and keep what it returns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.components import bare_arm, error_rate, unattainable
from abswitch.stats.summaries import numbers

BETTING = "betting confidence sequence (hedged capital)"
EMPIRICAL_BERNSTEIN = "empirical-Bernstein confidence sequence"

Floats = NDArray[np.float64]
_CELLS = 1000
"""Means are told apart to a thousandth of the range; ends are rounded outward."""
_EDGES: Floats = np.linspace(0.0, 1.0, _CELLS + 1)
_MOST = 0.5
"""A bet loses at most this share of the capital. Waudby-Smith & Ramdas, § 4.4: 1/2 or 3/4."""
_CHUNK = 2048
"""Rows at a time, to bound memory to 16 MB."""
_LARGEST = 700.0


class _Seen(NamedTuple):
    """Scores so far, scaled to 0–1: count, sum, and squared distances from the running mean."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def variance(self) -> float:
        return (0.25 + self.squares) / (self.n + 1)

    def bets(self, new: Floats, alpha: float) -> tuple[_Seen, Floats, Floats]:
        """After new scores: what was seen, the bet on each score and its expected value, from those before it alone."""
        count = self.n + np.arange(1, new.size + 1)
        means = (0.5 + self.total + np.cumsum(new)) / (count + 1)
        squares = self.squares + np.cumsum((new - means) ** 2)
        variances = np.concatenate([[self.variance], ((0.25 + squares) / (count + 1))[:-1]])
        expected = np.concatenate([[(0.5 + self.total) / (self.n + 1)], means[:-1]])
        bets = np.sqrt(2 * math.log(2 / alpha) / (variances * count * np.log1p(count)))
        return _Seen(self.n + new.size, self.total + float(new.sum()), float(squares[-1])), bets, expected


_NOTHING = _Seen()


@dataclass(frozen=True, slots=True, eq=False)
class BettingSequence:
    """Betting confidence sequence of the mean of bounded scores.

    Args:
        alpha: error rate over all looks, in (0, 0.5]; 0.05 by convention.
        least, most: bounds that every score keeps; 0 and 1 by default.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal
        Statistical Society B 86 (2024) 1–27: hedged capital with predictable plug-in bets, theorem 3.

    >>> scores = BettingSequence().update([0.9, 0.8, 1.0, 0.7, 0.9] * 40)
    >>> [round(end, 3) for end in scores.interval()]
    [0.826, 0.883]
    """

    alpha: float = 0.05
    least: float = 0.0
    most: float = 1.0
    seen: _Seen = _NOTHING
    up: Floats = field(default_factory=lambda: np.zeros(_CELLS + 1), repr=False)
    down: Floats = field(default_factory=lambda: np.zeros(_CELLS + 1), repr=False)

    def __post_init__(self) -> None:
        _check(self.alpha, self.least, self.most)

    @property
    def n(self) -> int:
        """Scores so far."""
        return self.seen.n

    @property
    def mean(self) -> float:
        """Of the scores so far; NaN without any."""
        return _mean(self.seen, self.least, self.most)

    def update(self, scores: ArrayLike) -> BettingSequence:
        """With new scores, shape (n,), in the order in which they came.

        Raises:
            InvalidInput: scores that are not numbers within the bounds.
        """
        new = _scaled(scores, self.least, self.most)
        if not new.size:
            return self
        seen, bets, _ = self.seen.bets(new, self.alpha)
        up, down = self.up, self.down
        for start in range(0, new.size, _CHUNK):
            gain_up, gain_down = _gains(new[start : start + _CHUNK], bets[start : start + _CHUNK])
            up, down = up + gain_up, down + gain_down
        return replace(self, seen=seen, up=up, down=down)

    def interval(self) -> tuple[float, float]:
        """Means that are not refuted, at all looks together; the whole range without scores."""
        open_cells = np.flatnonzero(self.cells() < -math.log(self.alpha))
        if not open_cells.size:  # capital was won against every mean: the scores contradict any one
            return math.nan, math.nan
        width = self.most - self.least
        low, high = float(_EDGES[open_cells[0]]), float(_EDGES[open_cells[-1] + 1])
        return self.least + width * low, self.least + width * high

    def cells(self) -> Floats:
        """Logarithm of the capital, at least, against all means in each thousandth of the range, shape (1000,).

        Capital from betting on "more" falls with the mean that is bet against, from betting on "less" it rises, so the
        ends of a cell tell what there is at least in it.
        """
        return np.logaddexp(self.up[1:], self.down[:-1]) - math.log(2)


def _gains(scores: Floats, bets: Floats) -> tuple[Floats, Floats]:
    """Growth of the logarithm of capital from betting on "more" and on "less", by the mean that is bet against."""
    with np.errstate(divide="ignore"):
        limits = _MOST / _EDGES
    distance = scores[:, None] - _EDGES[None, :]
    up = np.log1p(np.minimum(bets[:, None], limits[None, :]) * distance).sum(axis=0)
    down = np.log1p(-np.minimum(bets[:, None], limits[None, ::-1]) * distance).sum(axis=0)
    return up, down


def betting_difference(baseline: BettingSequence, candidate: BettingSequence) -> Comparison:
    """Difference of two means of bounded scores, at any time, with any split and any shape of scores.

    Whatever the two means are, the product of the capitals won against them is that of one gambler. A difference is
    refuted when this is so for all pairs of means that have it.

    Args:
        baseline, candidate: of one alpha and the same bounds.

    Returns:
        A `Comparison` with `e_value`; the standard error is that of a single look. `why_not` is set when an arm is
        empty.

    Raises:
        InvalidInput: different alpha or bounds.

    References:
        As `BettingSequence`; product of the arms' e-values, least over the common mean: A. Ramdas et al., Statistical
        Science 38 (2023) 576–601, § 3 (composite nulls).

    >>> rng = np.random.default_rng(1)
    >>> a, b = (BettingSequence().update(rng.beta(*shape, 400)) for shape in ((6, 4), (8, 2)))
    >>> betting_difference(a, b).excludes_zero()
    True
    """
    _same(baseline, candidate)
    why_not = _why_not(baseline.n, candidate.n)
    if why_not is not None:
        return unattainable(BETTING, baseline.alpha, _bare(baseline), _bare(candidate), why_not)
    first, second = baseline.cells(), candidate.cells()
    low, high = _differences(first, second, -math.log(baseline.alpha))
    log_e = float((first + second).min())
    width = baseline.most - baseline.least
    arms = (ArmEstimate(n=arm.n, value=arm.mean, low=ends[0], high=ends[1]) for arm, ends in _ends(baseline, candidate))
    a, b = arms
    return Comparison(
        method=BETTING,
        alpha=baseline.alpha,
        baseline=a,
        candidate=b,
        estimate=b.value - a.value,
        low=low * width,
        high=high * width,
        p_value=math.exp(-max(log_e, 0.0)),
        e_value=math.exp(min(log_e, _LARGEST)),
        standard_error=width * math.sqrt(sum(arm.seen.variance / arm.n for arm in (baseline, candidate))),
    )


def _differences(first: Floats, second: Floats, bound: float) -> tuple[float, float]:
    """Least and largest difference in the range 0–1 that some pair of cells leaves open."""
    i = np.flatnonzero(first + second.min() < bound)
    j = np.flatnonzero(second + first.min() < bound)
    open_pairs = first[i][:, None] + second[j][None, :] < bound
    if not open_pairs.any():
        return math.nan, math.nan
    apart = (j[None, :] - i[:, None])[open_pairs]
    # Means in cells that are d apart differ by d − 1 to d + 1 widths of a cell.
    return (int(apart.min()) - 1) / _CELLS, (int(apart.max()) + 1) / _CELLS


def _ends(*arms: BettingSequence) -> list[tuple[BettingSequence, tuple[float, float]]]:
    return [(arm, arm.interval()) for arm in arms]


@dataclass(frozen=True, slots=True)
class EmpiricalBernsteinSequence:
    """Empirical-Bernstein confidence sequence of the mean of bounded scores: closed form, a few operations a score.

    Args:
        alpha, least, most: as of `BettingSequence`.

    References:
        Waudby-Smith & Ramdas (2024), theorem 2 (predictable plug-in); S. R. Howard et al., Annals of Statistics 49
        (2021) 1055–1080, theorem 4.

    >>> scores = EmpiricalBernsteinSequence().update([0.9, 0.8, 1.0, 0.7, 0.9] * 40)
    >>> [round(end, 3) for end in scores.interval()]
    [0.819, 0.901]
    """

    alpha: float = 0.05
    least: float = 0.0
    most: float = 1.0
    seen: _Seen = _NOTHING
    bet: float = 0.0
    bet_on: float = 0.0
    cost: float = 0.0

    def __post_init__(self) -> None:
        _check(self.alpha, self.least, self.most)

    @property
    def n(self) -> int:
        """Scores so far."""
        return self.seen.n

    @property
    def mean(self) -> float:
        """Of the scores so far; NaN without any."""
        return _mean(self.seen, self.least, self.most)

    def update(self, scores: ArrayLike) -> EmpiricalBernsteinSequence:
        """With new scores, shape (n,), in the order in which they came; see `BettingSequence.update`."""
        new = _scaled(scores, self.least, self.most)
        if not new.size:
            return self
        seen, raw, expected = self.seen.bets(new, self.alpha)
        bets = np.minimum(raw, _MOST)
        cost = (new - expected) ** 2 @ (-np.log1p(-bets) - bets)
        return replace(
            self,
            seen=seen,
            bet=self.bet + float(bets.sum()),
            bet_on=self.bet_on + float(bets @ new),
            cost=self.cost + float(cost),
        )

    def interval(self, *, alpha: float | None = None) -> tuple[float, float]:
        """Means that are not refuted at all looks together; at another alpha than it was tuned for, if wanted."""
        if not self.bet:
            return self.least, self.most
        half = (math.log(2 / (alpha or self.alpha)) + self.cost) / self.bet
        centre, width = self.bet_on / self.bet, self.most - self.least
        return self.least + width * max(centre - half, 0.0), self.least + width * min(centre + half, 1.0)


def empirical_bernstein_difference(
    baseline: EmpiricalBernsteinSequence, candidate: EmpiricalBernsteinSequence
) -> Comparison:
    """Difference of two means of bounded scores from each arm's sequence, with half of alpha for each.

    Returns:
        A `Comparison`; the p-value is the least alpha at which 0 is excluded. `why_not` is set when an arm is empty.

    Raises:
        InvalidInput: different alpha or bounds.

    References:
        As `EmpiricalBernsteinSequence`.
    """
    _same(baseline, candidate)
    alpha, why_not = baseline.alpha, _why_not(baseline.n, candidate.n)
    if why_not is not None:
        return unattainable(EMPIRICAL_BERNSTEIN, alpha, _bare(baseline), _bare(candidate), why_not)
    a, b = (arm.interval(alpha=alpha / 2) for arm in (baseline, candidate))
    own = [(arm, arm.interval()) for arm in (baseline, candidate)]
    first, second = (ArmEstimate(n=arm.n, value=arm.mean, low=low, high=high) for arm, (low, high) in own)
    width = baseline.most - baseline.least
    return Comparison(
        method=EMPIRICAL_BERNSTEIN,
        alpha=alpha,
        baseline=first,
        candidate=second,
        estimate=second.value - first.value,
        low=b[0] - a[1],
        high=b[1] - a[0],
        p_value=_least_alpha(baseline, candidate),
        standard_error=width * math.sqrt(sum(arm.seen.variance / arm.n for arm in (baseline, candidate))),
    )


def _least_alpha(baseline: EmpiricalBernsteinSequence, candidate: EmpiricalBernsteinSequence) -> float:
    """Where the intervals of the two arms, at half of it each, just touch."""
    apart = abs(candidate.bet_on / candidate.bet - baseline.bet_on / baseline.bet)
    inverse = 1 / baseline.bet + 1 / candidate.bet
    needed = (apart - baseline.cost / baseline.bet - candidate.cost / candidate.bet) / inverse
    return min(1.0, 4 * math.exp(-max(needed, 0.0)))


def _check(alpha: float, least: float, most: float) -> None:
    error_rate(alpha)
    if checks.number("least", least) >= checks.number("most", most):
        raise InvalidInput("most", most, f"a number above least ({least:g})")


def _scaled(scores: ArrayLike, least: float, most: float) -> Floats:
    given = numbers("scores", scores)
    outside = (given < least) | (given > most)
    if outside.any():
        raise InvalidInput("scores", float(given[outside][0]), f"numbers from {least:g} to {most:g}")
    return (given - least) / (most - least)


def _mean(seen: _Seen, least: float, most: float) -> float:
    return least + (most - least) * seen.total / seen.n if seen.n else math.nan


Sequence = BettingSequence | EmpiricalBernsteinSequence


def _same(baseline: Sequence, candidate: Sequence) -> None:
    for name in ("alpha", "least", "most"):
        want, got = getattr(baseline, name), getattr(candidate, name)
        if want != got:
            raise InvalidInput(f"candidate.{name}", got, f"that of the baseline, {want:g}")


def _bare(arm: Sequence) -> ArmEstimate:
    return bare_arm(arm.n, arm.mean)


def _why_not(baseline: int, candidate: int) -> str | None:
    for name, n in (("baseline", baseline), ("candidate", candidate)):
        if not n:
            return f"not attainable: the {name} has no scores"
    return None
