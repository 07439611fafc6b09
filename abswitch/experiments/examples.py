"""The worst answers of an experiment, for people who want to see what the numbers are made of.

Only what was recorded can be shown: without recorded prompts there is nothing here, error messages included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from abswitch.engine import SwitchingEngine
from abswitch.experiments.canary import CanaryResult
from abswitch.experiments.subject import Arm, Result, Subject
from abswitch.rollout.strategies import CanaryStrategy

_SCORED = """
WITH scored AS (
    SELECT request_id, arg_max(value, scored_at_s) AS value FROM scores WHERE scorer = $scorer GROUP BY request_id
), answers AS (
    SELECT r.*, s.value AS score FROM requests r LEFT JOIN scored s USING (request_id)
    WHERE operation_id = $operation AND NOT fallback AND admitted_at_s <= $until
        AND coalesce(error_type, '') <> 'Cancelled'
)
"""
_WORST = f"""{_SCORED}
SELECT prompt, output, error_type, error_message, total_s, score FROM answers
WHERE list_contains($arms, arm) AND prompt IS NOT NULL
    AND (error_type IS NOT NULL OR $of_scores = (score IS NOT NULL))
ORDER BY error_type IS NULL, $sign * score, total_s DESC, request_id
LIMIT $most
"""
_PAIRS = f"""{_SCORED}
, sides AS (SELECT *, coalesce(pair_id, request_id) AS pair FROM answers)
SELECT a.prompt, a.output, a.error_type, a.error_message, a.total_s, a.score,
    b.prompt, b.output, b.error_type, b.error_message, b.total_s, b.score
FROM sides a JOIN sides b USING (pair)
WHERE a.arm = 'stable' AND b.arm IN ('candidate', 'shadow') AND a.prompt IS NOT NULL
ORDER BY b.error_type IS NULL, $sign * (b.score - a.score) NULLS LAST, $sign * b.score NULLS LAST,
    b.total_s DESC, pair
LIMIT $most
"""
_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class Example:
    """One answer; `output` is None where the request failed, and `error` says how."""

    prompt: str
    output: str | None
    error: str | None
    score: float | None
    total_s: float


def scorer_of(engine: SwitchingEngine, result: Result) -> tuple[str, int]:
    """What answers are ordered by, and +1 where more of it is better, −1 where less: the primary metric, or a canary's
    first guardrail, where that is a scorer; else an empty name."""
    if not isinstance(result, CanaryResult):
        primary = result.plan.primary
        name = primary.columns[0] if len(primary.columns) == 1 else ""
        return (name, primary.sign) if name in engine.scorers else ("", 1)
    strategy = engine.switcher.operation(result.operation_id).strategy
    rails = strategy.guardrails if isinstance(strategy, CanaryStrategy) else ()
    for rail in rails:
        if rail.metric in engine.scorers:
            return rail.metric, -1 if (rail.max, rail.max_ratio) != (None, None) else 1
    return "", 1


def worst_examples(
    engine: SwitchingEngine, subject: Subject, arm: Arm, scorer: tuple[str, int], *, most: int = 5
) -> tuple[Example, ...]:
    """Failed requests first, then the answers that scored worst, then the slowest.

    Args:
        scorer: see `scorer_of`.
        most: how many.

    Returns:
        Nothing where the engine was not asked to record text.
    """
    asked = _asked(subject, scorer, most) | {"arms": [arm.name, *arm.others], "of_scores": bool(scorer[0])}
    return tuple(_example(*row) for row in engine.store.rows(_WORST, asked))


def worst_pairs(
    engine: SwitchingEngine, subject: Subject, scorer: tuple[str, int], *, most: int = 5
) -> tuple[tuple[Example, Example], ...]:
    """Of a paired design: prompts that the candidate failed at, then those where it lost most against the baseline.

    Returns:
        The baseline's answer and the candidate's; nothing where the engine was not asked to record text.
    """
    rows = engine.store.rows(_PAIRS, _asked(subject, scorer, most))
    return tuple((_example(*row[:6]), _example(*row[6:])) for row in rows)


def _asked(subject: Subject, scorer: tuple[str, int], most: int) -> dict[str, Any]:
    return {
        "operation": subject.operation_id,
        "until": subject.ended_at_s,
        "scorer": scorer[0],
        "sign": scorer[1],
        "most": most,
    }


def _example(
    prompt: str | None,
    output: str | None,
    error_type: str | None,
    error_message: str | None,
    total_s: float,
    score: float | None,
) -> Example:
    return Example(
        prompt=_cut(prompt or ""),
        output=None if error_type is not None or output is None else _cut(output),
        error=None if error_type is None else f"{error_type}: {_cut(error_message or '')}",
        score=None if score is None or math.isnan(score) else float(score),
        total_s=float(total_s),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"
