"""Segments of an experiment: each one's comparison, and whether they differ. Reported; no verdict rests on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abswitch.stats.comparison import Comparison, finite
from abswitch.stats.evidence import Evidence, SegmentEvidence
from abswitch.stats.many import holm
from abswitch.stats.metrics import Metric, Paired
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.segments import Heterogeneity, cochran_q_test
from abswitch.stats.srm import SampleRatio, sample_ratio_mismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFinding:
    """One metric, broken out.

    Attributes:
        metric: its name.
        by: the column that makes the segments.
        comparisons: by segment. One whose units were not split as planned has no result, and says so.
        adjusted_p: by segment, the p-value after Holm's correction for how many segments were looked at; None where
            there is no result.
        splits: by segment, the check of the split.
        heterogeneity: whether the segments differ (Cochran's Q), which is what to look at first.
    """

    metric: str
    by: str
    comparisons: Mapping[str, Comparison]
    adjusted_p: Mapping[str, float | None]
    splits: Mapping[str, SampleRatio]
    heterogeneity: Heterogeneity

    def to_dict(self) -> dict[str, Any]:
        """JSON values under the names of the fields."""
        return {
            "metric": self.metric,
            "by": self.by,
            "comparisons": {name: one.to_dict() for name, one in self.comparisons.items()},
            "adjusted_p": finite(dict(self.adjusted_p)),
            "splits": {name: one.to_dict() for name, one in self.splits.items()},
            "heterogeneity": self.heterogeneity.to_dict(),
        }


def segment_findings(plan: AnalysisPlan, evidence: Evidence) -> dict[str, SegmentFinding]:
    """Every metric that the plan breaks out and the evidence has segments of, by name.

    The error rate of a comparison is the plan's; of the splits' checks the plan's `srm_alpha`, shared by the segments.

    Raises:
        InvalidInput: a summary is of another kind than its metric.
    """
    return {
        metric.name: _finding(metric, metric.segments.column, plan, evidence.segments[metric.name])
        for metric in plan.metrics
        if metric.segments is not None and metric.name in evidence.segments
    }


def _finding(metric: Metric, by: str, plan: AnalysisPlan, segments: Mapping[str, SegmentEvidence]) -> SegmentFinding:
    splits = {name: _split(metric, plan, one, len(segments)) for name, one in segments.items()}
    comparisons = {
        name: _unless_split_off(metric.compare(one.baseline, one.candidate, alpha=plan.alpha), splits[name])
        for name, one in segments.items()
    }
    return SegmentFinding(
        metric=metric.name,
        by=by,
        comparisons=comparisons,
        adjusted_p=_adjusted(comparisons, plan.alpha),
        splits=splits,
        heterogeneity=cochran_q_test(comparisons, alpha=plan.alpha),
    )


def _split(metric: Metric, plan: AnalysisPlan, one: SegmentEvidence, segments: int) -> SampleRatio:
    share = 0.5 if isinstance(metric, Paired) else plan.expected_share  # both versions answered every pair's prompt
    return sample_ratio_mismatch(
        one.baseline_units, one.candidate_units, expected_share=share, alpha=plan.srm_alpha / max(1, segments)
    )


def _unless_split_off(found: Comparison, split: SampleRatio) -> Comparison:
    """What chooses a segment must not depend on the arm; where it does, the split shows it."""
    if not split.mismatch:
        return found
    why_not = (
        f"INVALID: sample-ratio mismatch; {split.candidate} of this segment's {split.baseline + split.candidate} units "
        f"met the candidate, {split.observed_share:.1%} instead of {split.expected_share:.1%} (p = {split.p_value:.2g})"
    )
    return Comparison(
        method=found.method,
        alpha=found.alpha,
        baseline=found.baseline,
        candidate=found.candidate,
        why_not=why_not,
    )


def _adjusted(comparisons: Mapping[str, Comparison], alpha: float) -> dict[str, float | None]:
    tested = [name for name, one in comparisons.items() if one.attainable]
    adjusted = holm([comparisons[name].p_value for name in tested], alpha=alpha).adjusted if tested else ()
    by_name = dict(zip(tested, map(float, adjusted), strict=True))
    return {name: by_name.get(name) for name in comparisons}
