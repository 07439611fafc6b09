"""Every kind of evidence that a metric compares: sufficient statistics of one arm, or of pairs of both."""

from __future__ import annotations

from abswitch.stats.adjustment import CovariateSummary, RatioCovariateSummary
from abswitch.stats.paired import PairedRateSummary, PairedSummary
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary

MetricSummary = (
    MeanSummary
    | RateSummary
    | RatioSummary
    | CovariateSummary
    | RatioCovariateSummary
    | PairedSummary
    | PairedRateSummary
)
"""What `metric.compare` takes. A summary of pairs belongs to both arms: each arm's evidence holds the same one."""

BY_UNIT = (RatioSummary, RatioCovariateSummary, PairedSummary, PairedRateSummary)
"""Kinds whose observation can be a unit with several requests."""
