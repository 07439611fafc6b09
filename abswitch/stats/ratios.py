"""Comparisons of ratios of sums, such as tokens per second, and of anything measured several times per unit."""

from __future__ import annotations

from dataclasses import replace

from abswitch.stats.comparison import Comparison
from abswitch.stats.means import Estimate, compare_by_t
from abswitch.stats.proportions import two_proportion_z_test
from abswitch.stats.summaries import RateSummary, RatioSummary

DELTA = "ratio of sums, delta method"
CLUSTERED = "mean over requests, clustered by unit (delta method)"
CLUSTERED_ALIKE = "rate over requests, clustered by unit (one trial a unit, Newcombe interval)"


def ratio_delta_test(baseline: RatioSummary, candidate: RatioSummary, *, alpha: float = 0.05) -> Comparison:
    """Compare Σx / Σy of two arms by the delta method, with Welch–Satterthwaite degrees of freedom.

    The unit of analysis is one (x, y) pair; where several belong to one user, sum them by user first.

    Args:
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha.

    Returns:
        A `Comparison`; `why_not` is set when an arm has fewer than two pairs or a denominator of 0, or neither varies.

    References:
        A. Deng, U. Knoblich, J. Lu, "Applying the Delta Method in Metric Analytics", KDD 2018.
    """
    return compare_by_t(DELTA, alpha, _estimate(baseline), _estimate(candidate))


def clustered_mean_test(baseline: RatioSummary, candidate: RatioSummary, *, alpha: float = 0.05) -> Comparison:
    """Compare a mean over requests when units have several: x is a unit's sum, y its count.

    Requests of one unit are not independent; treated as if, such comparisons err in over 40 % of sound experiments.
    """
    return replace(ratio_delta_test(baseline, candidate, alpha=alpha), method=CLUSTERED)


def clustered_rate_test(baseline: RatioSummary, candidate: RatioSummary, *, alpha: float = 0.05) -> Comparison:
    """Compare a rate over requests when units have several: x is a unit's successes, y its trials.

    As `clustered_mean_test`, except where within each arm all trials agree (no error anywhere, say): there the variance
    is 0 and says nothing, so each unit counts as one trial, as if all of its trials had to agree (the most cautious
    reading of how alike they are).
    """
    if all(arm.n and arm.mean in (0.0, 1.0) for arm in (baseline, candidate)):
        rates = (RateSummary(arm.n, arm.n if arm.mean else 0) for arm in (baseline, candidate))
        return replace(two_proportion_z_test(*rates, alpha=alpha), method=CLUSTERED_ALIKE)
    return clustered_mean_test(baseline, candidate, alpha=alpha)


def _estimate(arm: RatioSummary) -> Estimate:
    return Estimate(arm.n, arm.mean, arm.linearised_variance)
