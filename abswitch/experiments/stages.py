"""What a canary did at each of its steps: shares, requests, errors, latencies and scores by arm, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abswitch.engine import SwitchingEngine
from abswitch.experiments.canary import CanaryMove, CanaryResult
from abswitch.experiments.subject import Subject
from abswitch.stats import SampleRatio, StageCounts, sequential_sample_ratio

_ARMS = """
SELECT arm, count(DISTINCT unit_id) AS assigned,
    count(DISTINCT unit_id) FILTER (error_type IS NULL AND NOT fallback) AS analysed, count(*) AS requests,
    count(*) FILTER (error_type IS NOT NULL) AS failed, count(*) FILTER (fallback) AS fallbacks
FROM requests WHERE operation_id = ? AND arm IN ('stable', 'candidate') AND coalesce(error_type, '') <> 'Cancelled'
GROUP BY arm
"""
_STEPS = """
SELECT step, arm, count(*) AS requests, count(*) FILTER (error_type IS NOT NULL) AS failed,
    quantile_cont(total_s, 0.95) FILTER (error_type IS NULL) AS latency_p95_s
FROM requests WHERE operation_id = ? AND arm IN ('stable', 'candidate') AND coalesce(error_type, '') <> 'Cancelled'
GROUP BY ALL ORDER BY ALL
"""
_SCORES = """
SELECT step, arm, scorer, avg(value) AS value FROM (
    SELECT r.step, r.arm, s.scorer, arg_max(s.value, s.scored_at_s) AS value
    FROM requests r JOIN scores s USING (request_id)
    WHERE r.operation_id = ? AND r.arm IN ('stable', 'candidate') AND NOT r.fallback AND s.value IS NOT NULL
    GROUP BY r.request_id, r.step, r.arm, s.scorer
) GROUP BY ALL
"""
_NEW_UNITS = """
WITH first AS (
    SELECT arg_min(route_epoch, admitted_at_s) AS epoch, arg_min(arm, admitted_at_s) AS arm FROM requests
    WHERE operation_id = $operation AND arm IN ('stable', 'candidate') GROUP BY unit_id
), shares AS (
    SELECT epoch, sum(share) AS share FROM routes WHERE model_id = $model AND arm = 'candidate' GROUP BY epoch
)
SELECT count(*) FILTER (arm = 'stable'), count(*) FILTER (arm = 'candidate'), coalesce(share, 0.0) AS planned
FROM first LEFT JOIN shares USING (epoch) GROUP BY planned ORDER BY planned
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSide:
    """One arm at one step.

    Attributes:
        latency_p95_s: of answered requests; None without any.
        scores: means by scorer; of several scores of one answer the latest counts.
    """

    requests: int = 0
    failed: int = 0
    latency_p95_s: float | None = None
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a canary.

    Attributes:
        share: of units on the candidate, fraction 0–1.
        outcome: how it ended: `next step`, `promoted`, `sent back`, or another phase; `under way` where it has not.
        why: what ended it, in the judge's words; empty where nothing did.
    """

    step: int
    share: float
    baseline: StepSide
    candidate: StepSide
    outcome: str
    why: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def arms_of_canary(engine: SwitchingEngine, subject: Subject) -> dict[str, dict[str, Any]]:
    """Units and requests by role, with the keys that a comparison's arms have."""
    names = ("assigned", "analysed", "requests", "failed", "fallbacks")
    found = {
        row[0]: dict(zip(names, row[1:], strict=True)) for row in engine.store.rows(_ARMS, (subject.operation_id,))
    }
    nothing = dict.fromkeys(names, 0)
    return {
        arm.role: {"version": arm.version, **found.get(arm.name, nothing), "score_failures": {}} for arm in subject.arms
    }


def steps_of(engine: SwitchingEngine, result: CanaryResult) -> tuple[Step, ...]:
    """Every step that began, in order."""
    scores: dict[tuple[int, str], dict[str, float]] = {}
    for step, arm, scorer, value in engine.store.rows(_SCORES, (result.operation_id,)):
        scores.setdefault((step, arm), {})[scorer] = value
    sides = {
        (step, arm): StepSide(requests=n, failed=failed, latency_p95_s=p95, scores=scores.get((step, arm), {}))
        for step, arm, n, failed, p95 in engine.store.rows(_STEPS, (result.operation_id,))
    }
    empty = StepSide(scores={})
    return tuple(
        Step(
            step=step,
            share=share,
            baseline=sides.get((step, "stable"), empty),
            candidate=sides.get((step, "candidate"), empty),
            outcome=outcome,
            why=why,
        )
        for step, share, outcome, why in _course(result.moves)
    )


def split_of(engine: SwitchingEngine, subject: Subject) -> SampleRatio | None:
    """Whether units met the candidate as often as the routes said, each unit by the share it first came at.

    Returns:
        None where no unit came.
    """
    of = {"operation": subject.operation_id, "model": subject.model_id}
    stages = [StageCounts(*row) for row in engine.store.rows(_NEW_UNITS, of)]
    return sequential_sample_ratio(stages) if stages else None


def _course(moves: Sequence[CanaryMove]) -> list[tuple[int, float, str, str]]:
    """(step, its share, how it ended, why) of every step whose share came into force."""
    course: list[tuple[int, float, str, str]] = []
    for move in moves:
        if move.phase_to == "evaluating":
            if not course or course[-1][0] != move.stage:
                course.append((move.stage, move.share, "under way", ""))
        elif move.phase_from == "evaluating" and course:
            step, share, *_ = course[-1]
            course[-1] = (step, share, _WORDS.get(move.phase_to, move.phase_to), move.reason)
    return course


_WORDS = {"shifting": "next step", "promoting": "promoted", "rolling back": "sent back"}
