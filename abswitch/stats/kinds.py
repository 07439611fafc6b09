"""Every kind of evidence that a metric compares: sufficient statistics of one arm, or of pairs of both."""

from __future__ import annotations

from abswitch.stats.adjustment import CovariateSummary, RatioCovariateSummary
from abswitch.stats.paired import PairedRateSummary, PairedSummary
from abswitch.stats.quantile_summary import QuantileSummary
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary

MetricSummary = (
    MeanSummary
    | RateSummary
    | RatioSummary
    | CovariateSummary
    | RatioCovariateSummary
    | QuantileSummary
    | PairedSummary
    | PairedRateSummary
)
"""What `metric.compare` takes. A summary of pairs belongs to both arms: each arm's evidence holds the same one."""


def observations(summary: MetricSummary) -> int:
    """How many: requests, units, or pairs."""
    return summary.ratio.n if isinstance(summary, RatioCovariateSummary) else summary.n


def knows_units(summary: MetricSummary) -> bool:
    """Whether requests of one unit are not taken for independent in it."""
    if isinstance(summary, QuantileSummary):
        return summary.shares is not None or not summary.n
    return isinstance(summary, RatioSummary | RatioCovariateSummary | PairedSummary | PairedRateSummary)
