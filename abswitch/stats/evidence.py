"""What a decision reads: counts and summaries per arm, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.joint import JointSummary
from abswitch.stats.kinds import MetricSummary, knows_units


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEvidence:
    """One arm.

    Attributes:
        version: the version behind the arm.
        assigned: units assigned to it (exposures).
        analysed: units whose answers the metrics were computed from.
        requests: requests admitted to it.
        failed: requests that ended with an error.
        fallbacks: requests answered by another version; left out of comparisons.
        score_failures: answers whose scorer raised, or did not come to them, by scorer.
        summaries: by metric name; one of pairs (`Paired`) is the same in both arms.
    """

    version: str
    assigned: int
    analysed: int
    requests: int = 0
    failed: int = 0
    fallbacks: int = 0
    score_failures: Mapping[str, int] = field(default_factory=dict)
    summaries: Mapping[str, MetricSummary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("assigned", "requests", "failed", "fallbacks"):
            checks.integer(f"evidence.{name}", getattr(self, name), low=0)
        checks.integer("evidence.analysed", self.analysed, low=0, high=self.assigned)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the summaries."""
        names = ("version", "assigned", "analysed", "requests", "failed", "fallbacks")
        return {name: getattr(self, name) for name in names} | {"score_failures": dict(self.score_failures)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEvidence:
    """One metric in one segment.

    Attributes:
        baseline, candidate: each arm's summary.
        baseline_units, candidate_units: units with a request in the segment.
    """

    baseline: MetricSummary
    candidate: MetricSummary
    baseline_units: int
    candidate_units: int

    def __post_init__(self) -> None:
        for name in ("baseline_units", "candidate_units"):
            checks.integer(f"segment.{name}", getattr(self, name), low=0)

    @property
    def summaries(self) -> tuple[MetricSummary, MetricSummary]:
        """The baseline's and the candidate's."""
        return self.baseline, self.candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Both arms of one operation.

    Attributes:
        plan_digest: of the plan stored before the first exposure; None when none was stored.
        dropped_rows: rows the store could not take; anything but 0 voids the test.
        repeated_units: units with more than one request, failed ones included; summaries are then by unit.
        crossed_units: units seen in both arms, where each should be in one.
        segments: by metric name, for metrics that are broken out: each segment with both arms' summaries.
        expected_share: the candidate's, where it was not fixed: the mean chance of what was drawn.
        joint: by metric name, of designs that bind the arms together; these are what is tested there.
    """

    baseline: ArmEvidence
    candidate: ArmEvidence
    plan_digest: str | None
    dropped_rows: int = 0
    repeated_units: int = 0
    crossed_units: int = 0
    segments: Mapping[str, Mapping[str, SegmentEvidence]] = field(default_factory=dict)
    expected_share: float | None = None
    joint: Mapping[str, JointSummary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("dropped_rows", "repeated_units", "crossed_units"):
            checks.integer(f"evidence.{name}", getattr(self, name), low=0)
        if self.repeated_units:
            self._refuse_dependent_requests()

    def _refuse_dependent_requests(self) -> None:
        """Requests of one unit treated as independent make nearly half of all sound experiments err."""
        for arm, found in self.arms:
            for name, summary in found.summaries.items():
                if not knows_units(summary):
                    field = f"evidence.{arm}.summaries.{name}"
                    raise InvalidInput(
                        field,
                        summary,
                        "a RatioSummary by unit (or another kind that is), as units have several requests each",
                    )

    @property
    def arms(self) -> tuple[tuple[str, ArmEvidence], tuple[str, ArmEvidence]]:
        """Both arms with their names."""
        return ("baseline", self.baseline), ("candidate", self.candidate)
