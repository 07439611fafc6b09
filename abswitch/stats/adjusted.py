"""CUPED for rates and for ratios of sums: where it helps, and what is compared where it cannot."""

from __future__ import annotations

import math
from dataclasses import replace

from abswitch.errors import InvalidInput
from abswitch.stats.adjustment import CovariateSummary, RatioCovariateSummary, cuped_test
from abswitch.stats.comparison import Comparison
from abswitch.stats.proportions import two_proportion_z_test
from abswitch.stats.ratios import clustered_rate_test, ratio_delta_test
from abswitch.stats.summaries import RateSummary

CUPED_RATIO = "CUPED, pooled theta, of a ratio of sums (delta method)"
LEAST_OUTCOMES = 10
"""Successes, and failures, that each arm needs for a rate to be adjusted: t intervals of rarer ones err."""


def adjusted_ratio_test(
    baseline: RatioCovariateSummary, candidate: RatioCovariateSummary, *, alpha: float = 0.05
) -> Comparison:
    """Difference of two ratios of sums with a covariate's share of the noise taken out, see `cuped_test`.

    Also of means over requests where units have several: x is a unit's sum, y its count.

    Returns:
        A `Comparison`; that of `ratio_delta_test` (`why_not` set) where an arm's denominators sum to 0, or to so little
        that the ratio is beyond what a number can hold.

    Raises:
        InvalidInput: alpha outside its range.
    """
    if not (_has_linear_form(baseline) and _has_linear_form(candidate)):
        return replace(ratio_delta_test(baseline.ratio, candidate.ratio, alpha=alpha), method=CUPED_RATIO)
    return replace(cuped_test(baseline.linearised, candidate.linearised, alpha=alpha), method=CUPED_RATIO)


def adjusted_rate_test(
    baseline: CovariateSummary | RatioCovariateSummary,
    candidate: CovariateSummary | RatioCovariateSummary,
    *,
    alpha: float = 0.05,
) -> Comparison:
    """Difference of two rates with a covariate's share of the noise taken out (the linear probability model).

    Rare outcomes have no t interval worth the name: with fewer than `LEAST_OUTCOMES` of either outcome in an arm the
    covariate is left aside, and rates are compared as without one.

    Raises:
        InvalidInput: alpha outside its range, an arm that is no rate, or the arms' summaries are of two kinds.
    """
    note = (f"without the covariate: an arm has fewer than {LEAST_OUTCOMES} of an outcome",)
    if isinstance(baseline, CovariateSummary) and isinstance(candidate, CovariateSummary):
        rates = [RateSummary(arm.n, round(arm.n * arm.mean) if arm.n else 0) for arm in (baseline, candidate)]
        if min(min(arm.successes, arm.n - arm.successes) for arm in rates) >= LEAST_OUTCOMES:
            return cuped_test(baseline, candidate, alpha=alpha)
        found = two_proportion_z_test(rates[0], rates[1], alpha=alpha)
    else:
        a, b = _by_unit(baseline), _by_unit(candidate)
        if min(_rarer(a), _rarer(b)) >= LEAST_OUTCOMES:
            return adjusted_ratio_test(a, b, alpha=alpha)
        found = clustered_rate_test(a.ratio, b.ratio, alpha=alpha)
    return replace(found, notes=(*found.notes, *note))


def _has_linear_form(arm: RatioCovariateSummary) -> bool:
    """Whether the ratio and its spread are finite numbers; of nothing, too."""
    ratio = arm.ratio
    if not ratio.n:
        return True
    spread = ratio.linearised_variance * (ratio.n - 1) if ratio.n > 1 and ratio.mean_y else 0.0
    return math.isfinite(ratio.mean) and math.isfinite(spread)


def _by_unit(arm: CovariateSummary | RatioCovariateSummary) -> RatioCovariateSummary:
    if not isinstance(arm, RatioCovariateSummary):
        raise InvalidInput("summary", arm, "a RatioCovariateSummary, as the other arm has")
    return arm


def _rarer(arm: RatioCovariateSummary) -> float:
    """How many of the rarer outcome."""
    ratio = arm.ratio
    return ratio.n * min(ratio.mean_x, ratio.mean_y - ratio.mean_x) if ratio.n else 0.0
