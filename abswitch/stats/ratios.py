"""Comparisons of ratios of sums, such as tokens per second."""

from __future__ import annotations

from abswitch.stats.comparison import Comparison
from abswitch.stats.means import compare_by_t
from abswitch.stats.summaries import RatioSummary

DELTA = "ratio of sums, delta method"


def ratio_delta_test(baseline: RatioSummary, candidate: RatioSummary, *, alpha: float = 0.05) -> Comparison:
    """Compare Σx / Σy of two arms by the delta method, with Welch–Satterthwaite degrees of freedom.

    The unit of analysis is one (x, y) pair; where several belong to one user, sum them by user first.

    Returns:
        A `Comparison`; `why_not` is set when an arm has fewer than two pairs or a denominator of 0.

    References:
        A. Deng, U. Knoblich, J. Lu, "Applying the Delta Method in Metric Analytics", KDD 2018.
    """
    return compare_by_t(
        DELTA,
        alpha,
        (baseline.n, baseline.mean, baseline.linearised_variance),
        (candidate.n, candidate.mean, candidate.linearised_variance),
    )
