"""Stratification: compare like with like, stage by stage of a ramp, then put the differences together.

While a ramp raises the candidate's share, load and traffic drift too. Pooled over the ramp, the candidate's requests
come mostly from the last stage and the baseline's from the first: two copies of one version are then told apart nearly
always. Within a stage the split is random, so each stage's difference is sound, and so is their weighted mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.components import Part, arm_estimate, bare_arm, compare_parts, error_rate, unattainable
from abswitch.stats.mover import implied_error, recovered_interval, recovered_p
from abswitch.stats.proportions import wilson_interval
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary, Summary, numbers

STRATIFIED = "post-stratified difference"
WEIGHTS = ("population", "precision")
NO_STRATUM = "not attainable: no stratum has enough observations in both arms"


@dataclass(frozen=True, slots=True)
class StratifiedSummary:
    """One arm's summaries by stratum, all of one kind: means, rates or ratios.

    Attributes:
        strata: by the stratum's name, e.g. the ramp's stage.
    """

    strata: Mapping[str, Summary]

    def __post_init__(self) -> None:
        object.__setattr__(self, "strata", MappingProxyType(dict(self.strata)))
        _one_kind("strata", self.strata.values())

    @classmethod
    def of_means(cls, values: ArrayLike, labels: ArrayLike) -> Self:
        """From values and the name of each one's stratum, both of shape (n,).

        Raises:
            InvalidInput: values that are not finite numbers, or another number of labels.
        """
        array = numbers("values", values)
        return cls({name: MeanSummary.of(array[at]) for name, at in _groups(labels, array.size)})

    @classmethod
    def of_rates(cls, values: ArrayLike, labels: ArrayLike) -> Self:
        """From zeros and ones and the name of each one's stratum, both of shape (n,).

        Raises:
            InvalidInput: any other value, or another number of labels.
        """
        array = numbers("values", values)
        return cls({name: RateSummary.of(array[at]) for name, at in _groups(labels, array.size)})

    @property
    def n(self) -> int:
        """Observations in all strata."""
        return sum(one.n for one in self.strata.values())

    def kind_with(self, other: StratifiedSummary) -> type[Summary] | None:
        """The one type of both arms' summaries; None without any.

        Raises:
            InvalidInput: they have several.
        """
        return _one_kind("candidate", (*self.strata.values(), *other.strata.values()))

    def __add__(self, other: StratifiedSummary) -> StratifiedSummary:
        """The summary of both data sets together."""
        merged = dict(self.strata)
        for name, one in other.strata.items():
            merged[name] = _sum(merged[name], one) if name in merged else one
        return StratifiedSummary(merged)


def stratified_test(
    baseline: StratifiedSummary, candidate: StratifiedSummary, *, weights: str = "population", alpha: float = 0.05
) -> Comparison:
    """Post-stratified difference: each stratum's difference, weighted, with the variance within strata alone.

    For means and ratios by t with Satterthwaite's degrees of freedom over all arms of all strata. For rates the
    interval puts Wilson's of every arm and stratum together (MOVER), so that a stratum without errors counts as
    uncertain rather than as exact. With many sparse strata of rates use `cochran_mantel_haenszel_test`.

    Args:
        baseline, candidate: the same kind of summary; strata are matched by name.
        weights: `population` weighs a stratum by its observations in both arms: the effect on the traffic seen.
            `precision` weighs by n·m / (n + m): narrower where the split is uneven, the same estimate in the mean only
            if the effect is the same in all strata.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison` over the strata that have both arms (two observations each; one for rates). Those left out are
        named in the notes: the estimate says nothing about them. The arms' values are weighted as the difference is.
        `why_not` is set when no stratum is left, or neither arm varies.

    Raises:
        InvalidInput: alpha or weights outside their range, or summaries of different kinds.

    References:
        L. W. Miratrix, J. S. Sekhon, B. Yu, Journal of the Royal Statistical Society B 75 (2013) 369–396
        (post-stratification); G. Y. Zou, A. Donner, Statistics in Medicine 27 (2008) 1693–1702 (MOVER).

    >>> a = StratifiedSummary({"5 %": MeanSummary(95, 10.0, 94.0), "50 %": MeanSummary(50, 20.0, 49.0)})
    >>> b = StratifiedSummary({"5 %": MeanSummary(5, 10.0, 4.0), "50 %": MeanSummary(50, 20.0, 49.0)})
    >>> stratified_test(a, b).estimate
    0.0
    """
    error_rate(alpha)
    checks.one_of("weights", weights, WEIGHTS)
    kind = baseline.kind_with(candidate)
    method = f"{STRATIFIED}, {weights} weights"
    kept, notes = _matched(baseline, candidate, least=1 if kind is RateSummary else 2)
    if not kept:
        return unattainable(method, alpha, bare_arm(baseline.n), bare_arm(candidate.n), NO_STRATUM, notes)
    shares = _shares(kept, weights)
    compare = _compare_rates if kind is RateSummary else _compare_by_t
    return compare(method, alpha, kept, shares, notes)


class _Stratum(NamedTuple):
    baseline: Summary
    candidate: Summary


def _compare_by_t(
    method: str, alpha: float, kept: list[_Stratum], shares: list[float], notes: tuple[str, ...]
) -> Comparison:
    arms, parts = [], []
    for of_arm in zip(*kept, strict=True):
        own = [Part(share**2 * _variance(one) / one.n, one.n - 1) for share, one in zip(shares, of_arm, strict=True)]
        value = sum(share * one.mean for share, one in zip(shares, of_arm, strict=True))
        arms.append(arm_estimate(sum(one.n for one in of_arm), value, own, alpha))
        parts += own
    return compare_parts(method, alpha, arms[0], arms[1], arms[1].value - arms[0].value, parts, notes)


def _compare_rates(
    method: str, alpha: float, kept: list[_Stratum], shares: list[float], notes: tuple[str, ...]
) -> Comparison:
    a, b = (_weighted_wilson(of_arm, shares, alpha) for of_arm in zip(*kept, strict=True))
    estimate = b.value - a.value
    low, high = recovered_interval(a, b)
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=estimate,
        low=low,
        high=high,
        p_value=recovered_p(estimate, low, high, alpha),
        standard_error=implied_error(low, high, alpha),
        notes=notes,
    )


def _weighted_wilson(of_arm: Sequence[Summary], shares: Sequence[float], alpha: float) -> ArmEstimate:
    """An arm's weighted rate; its interval is as far from it as Wilson's of the strata together imply."""
    ends = [wilson_interval(one.n, round(one.mean * one.n), alpha=alpha) for one in of_arm]
    value = sum(share * one.mean for share, one in zip(shares, of_arm, strict=True))
    below, above = (
        math.hypot(*(share * (one.mean - end[side]) for share, one, end in zip(shares, of_arm, ends, strict=True)))
        for side in (0, 1)
    )
    return ArmEstimate(n=sum(one.n for one in of_arm), value=value, low=value - below, high=value + above)


def _matched(
    baseline: StratifiedSummary, candidate: StratifiedSummary, least: int
) -> tuple[list[_Stratum], tuple[str, ...]]:
    """Strata with enough in both arms, and a note that names the others."""
    kept, left_out = [], []
    for name in dict.fromkeys((*baseline.strata, *candidate.strata)):
        a, b = baseline.strata.get(name), candidate.strata.get(name)
        if a and b and all(one.n >= least and math.isfinite(one.mean) for one in (a, b)):
            kept.append(_Stratum(a, b))
        else:
            left_out.append(name)
    return kept, (f"left out, with too little in an arm: {', '.join(left_out)}",) if left_out else ()


def _shares(kept: Sequence[_Stratum], weights: str) -> list[float]:
    sizes = [(float(one.baseline.n), float(one.candidate.n)) for one in kept]
    raw = [n + m if weights == "population" else n * m / (n + m) for n, m in sizes]
    return [one / sum(raw) for one in raw]


def _variance(one: Summary) -> float:
    """Variance of one observation's part in its mean."""
    if isinstance(one, RateSummary):
        return one.mean * (1 - one.mean) * one.n / (one.n - 1)
    return one.linearised_variance if isinstance(one, RatioSummary) else one.variance


def _sum(left: Summary, right: Summary) -> Summary:
    if isinstance(left, MeanSummary) and isinstance(right, MeanSummary):
        return left + right
    if isinstance(left, RateSummary) and isinstance(right, RateSummary):
        return left + right
    if isinstance(left, RatioSummary) and isinstance(right, RatioSummary):
        return left + right
    raise InvalidInput("strata", type(right).__name__, f"as before, {type(left).__name__}")


def _one_kind(field: str, summaries: Iterable[Summary]) -> type[Summary] | None:
    """The type that all these summaries have; None without any.

    Raises:
        InvalidInput: they have several, or something is no summary.
    """
    kinds = {type(one) for one in summaries}
    if len(kinds) > 1 or not kinds <= {MeanSummary, RateSummary, RatioSummary}:
        raise InvalidInput(field, sorted(kind.__name__ for kind in kinds), "summaries of one kind: mean, rate or ratio")
    return next(iter(kinds), None)


def _groups(labels: ArrayLike, size: int) -> Iterable[tuple[str, NDArray[np.bool_]]]:
    names = np.asarray(labels, dtype=np.str_)
    if names.shape != (size,):
        raise InvalidInput("labels", names.shape, f"one stratum's name for each of the {size} values")
    return [(str(name), names == name) for name in dict.fromkeys(names.tolist())]
