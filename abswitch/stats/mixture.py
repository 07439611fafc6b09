"""`mixture_sprt`: two arms compared at any time, from summaries, with a guard where the sequence would err.

With every tenth observation a look and no guard, A/A tests of a 1 % error rate in a 5 % canary erred in 24 % of runs by
this method, and such tests of lognormal latencies (σ 1.5) in 7 %. What goes wrong is that the difference of uneven arms
is as skewed as the values are; where both arms are of one size it is not, whatever they look like.
So the skewness of the difference is what decides whether there is a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.components import error_rate
from abswitch.stats.means import WELCH, Estimate, compare_by_t
from abswitch.stats.ratios import ratio_delta_test
from abswitch.stats.sequential import MIXTURE_SPRT, anytime_valid, without_intervals
from abswitch.stats.strata import StratifiedSummary, stratified_test
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary, Summary

MAX_SKEWNESS = 0.2
"""Largest skewness of the difference at which its sequence is used. A/A tests of 1 % errors at a 5 % share, peeked at
every tenth observation, erred in 3 % of runs with this, in 6 % with 0.3, in 10 % with 0.5, in 24 % without a limit."""
EVEN_SHARE = 0.25
"""Arms as even as this or more are not asked for their skewness: with lognormal values of σ 1.5 (skewness 33) or 2 %
errors, A/A tests erred in 1 to 4 % of runs."""
LEAST = 5
"""Observations of the smaller arm. A/A tests of normal values at a 5 % share that were planned for 200 or 600
observations, and peeked at from 2 in each arm on, erred in 8 and 6 % of runs although t is used; from 5 on in 2 %."""
TOO_FEW_EVENTS = (
    "not attainable: too few events for arms this uneven; use the error-label e-process or the beta-binomial sequence"
)
TOO_SPREAD_OUT = (
    "not attainable: too few observations for values this spread out in arms this uneven; compare logarithms, bounded "
    "scores with a betting sequence, or “slower than the objective” as a label of the error-label e-process"
)
_RATES = "difference of rates, t"


def mixture_sprt(
    baseline: Summary | StratifiedSummary,
    candidate: Summary | StratifiedSummary,
    *,
    planned_n: int,
    share: float = 0.5,
    alpha: float = 0.05,
    logarithms: bool = False,
    look: int | None = None,
) -> Comparison:
    """Compare two means, rates or ratios of sums at any time, as often as wanted.

    Over a ramp give `StratifiedSummary`s by stage: arms are compared within stages, and the differences weighted by
    their precision. Pooled over stages whose load differs, two copies of one version are told apart nearly always.

    Args:
        baseline, candidate: of one kind; a `RatioSummary` of per-unit sums and counts is clustered by unit.
        planned_n: observations (units, if clustered) of both arms together at which the sequence is to be narrowest.
            Beyond it the sequence holds as well, and goes on narrowing.
        share: the candidate's planned share of them, in (0, 1); of a ramp, the last stage's.
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.
        logarithms: the values are logarithms (of latencies, say): their tails are light, so arms may be uneven.
        look: number of this look, from 1, for the record.

    Returns:
        A `Comparison` with `e_value`. `why_not` is set when an arm has fewer than five observations, neither varies, or
        the arms are so uneven (`EVEN_SHARE`) and the values so skewed (`MAX_SKEWNESS`) that the difference is not about
        normal yet. Of a mean or ratio only its spread is known, and it is taken for as skewed as a lognormal variable
        with the same coefficient of variation.

    Raises:
        InvalidInput: summaries of different kinds, or an argument outside its range.

    References:
        As `anytime_valid`.

    >>> found = mixture_sprt(RateSummary(950, 9), RateSummary(50, 0), planned_n=1000, share=0.05)
    >>> found.why_not
    'not attainable: too few events for arms this uneven; use the error-label e-process or the beta-binomial sequence'
    """
    checks.integer("planned_n", planned_n, low=2)
    if checks.number("share", share, low=0.0, high=1.0, above=True) == 1.0:
        raise InvalidInput("share", share, "a number above 0 and below 1")
    found = _single_look(baseline, candidate, error_rate(alpha))
    pairs = _pairs(baseline, candidate)
    if not found.attainable:
        return without_intervals(found, f"{found.method}; {MIXTURE_SPRT}", look, found.why_not or "")
    why_not = _why_too_few(pairs) or (None if logarithms else _why_too_skewed(pairs))
    if why_not is not None:
        return without_intervals(found, f"{found.method}; {MIXTURE_SPRT}", look, why_not)
    if logarithms:
        found = replace(found, notes=(*found.notes, "of logarithms: exp(difference) is the ratio of geometric means"))
    fraction = sum(pair.worth for pair in pairs) / (planned_n * share * (1 - share))
    return anytime_valid(found, fraction=fraction, look=look)


def difference_skewness(skewness: float, sizes: Sequence[tuple[int, int]]) -> float:
    """Skewness of the difference of two means of values that are this skewed; 0 where the arms are of one size.

    Args:
        skewness: of the values, the same in both arms.
        sizes: of baseline and candidate, for each stratum; strata weighted by precision.

    >>> round(difference_skewness(9.85, [(19000, 1000)]), 3)
    0.288
    """
    worth = [n * m / (n + m) for n, m in sizes]
    cubes = sum(h**3 * (1 / m**2 - 1 / n**2) for h, (n, m) in zip(worth, sizes, strict=True))
    return float(abs(cubes) / sum(worth) ** 1.5 * abs(skewness))


class _Pair(NamedTuple):
    """Both arms in one stratum, with at least one observation each."""

    baseline: Summary
    candidate: Summary

    @property
    def sizes(self) -> tuple[int, int]:
        return self.baseline.n, self.candidate.n

    @property
    def worth(self) -> float:
        """Observations' worth of the difference; its variance is that of one observation over this."""
        n, m = self.sizes
        return n * m / (n + m)

    def variance(self) -> tuple[int, float, float]:
        """Of both arms together: observations, mean, and variance of one observation's part in it."""
        a, b = self
        if isinstance(a, RatioSummary) and isinstance(b, RatioSummary):
            return a.n + b.n, (a + b).mean, (a + b).linearised_variance
        if isinstance(a, MeanSummary) and isinstance(b, MeanSummary):
            return a.n + b.n, (a + b).mean, (a + b).variance
        rate = (a.n * a.mean + b.n * b.mean) / (a.n + b.n)
        return a.n + b.n, rate, rate * (1 - rate)


def _single_look(
    baseline: Summary | StratifiedSummary, candidate: Summary | StratifiedSummary, alpha: float
) -> Comparison:
    if isinstance(baseline, StratifiedSummary) and isinstance(candidate, StratifiedSummary):
        return stratified_test(baseline, candidate, weights="precision", alpha=alpha)
    if isinstance(baseline, RatioSummary) and isinstance(candidate, RatioSummary):
        return ratio_delta_test(baseline, candidate, alpha=alpha)
    if isinstance(baseline, MeanSummary) and isinstance(candidate, MeanSummary):
        return compare_by_t(WELCH, alpha, _of_mean(baseline), _of_mean(candidate))
    if isinstance(baseline, RateSummary) and isinstance(candidate, RateSummary):
        return compare_by_t(_RATES, alpha, _of_rate(baseline), _of_rate(candidate))
    raise InvalidInput("candidate", type(candidate).__name__, f"a {type(baseline).__name__}, as the baseline")


def _of_mean(arm: MeanSummary) -> Estimate:
    return Estimate(arm.n, arm.mean, arm.variance)


def _of_rate(arm: RateSummary) -> Estimate:
    return Estimate(arm.n, arm.mean, arm.mean * (1 - arm.mean) * arm.n / (arm.n - 1) if arm.n > 1 else math.nan)


def _pairs(baseline: Summary | StratifiedSummary, candidate: Summary | StratifiedSummary) -> list[_Pair]:
    """Strata that both arms have, as `stratified_test` keeps them; one, where there are none."""
    if not isinstance(baseline, StratifiedSummary) or not isinstance(candidate, StratifiedSummary):
        arms = [arm for arm in (baseline, candidate) if not isinstance(arm, StratifiedSummary)]
        return [_Pair(*arms)] if all(arm.n for arm in arms) else []
    both = [_Pair(one, candidate.strata[name]) for name, one in baseline.strata.items() if name in candidate.strata]
    least = 1 if all(isinstance(pair.baseline, RateSummary) for pair in both) else 2
    return [pair for pair in both if min(pair.sizes) >= least]


def _why_too_few(pairs: Sequence[_Pair]) -> str | None:
    n, m = (sum(sizes) for sizes in zip(*(pair.sizes for pair in pairs), strict=True))
    return (
        None if min(n, m) >= LEAST else f"not attainable: {n} and {m} observations, and {LEAST} are the least at a look"
    )


def _why_too_skewed(pairs: Sequence[_Pair]) -> str | None:
    """By the skewness of both arms together: a small arm that met nothing rare looks harmless."""
    counts, means, variances = zip(*(pair.variance() for pair in pairs), strict=True)
    n = sum(counts)
    mean = sum(count * one for count, one in zip(counts, means, strict=True)) / n
    variance = sum(count * one for count, one in zip(counts, variances, strict=True)) / n
    rates = isinstance(pairs[0].baseline, RateSummary)
    skewness = _bernoulli_skewness(mean) if rates else _lognormal_skewness(variance, mean)
    uneven = difference_skewness(1.0, [pair.sizes for pair in pairs])
    as_even = difference_skewness(1.0, [(round(n * (1 - EVEN_SHARE)), round(n * EVEN_SHARE))]) if n >= 4 else math.inf
    if uneven <= as_even or skewness * uneven <= MAX_SKEWNESS:
        return None
    return TOO_FEW_EVENTS if rates else TOO_SPREAD_OUT


def _bernoulli_skewness(rate: float) -> float:
    return (1 - 2 * rate) / math.sqrt(rate * (1 - rate)) if 0 < rate < 1 else math.inf


def _lognormal_skewness(variance: float, mean: float) -> float:
    """Of a lognormal variable with this coefficient of variation."""
    variation = math.sqrt(variance) / abs(mean) if mean else math.inf
    return 3 * variation + variation**3
