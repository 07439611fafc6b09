"""The worst answers of a test, for people who want to see what the numbers are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from abswitch.engine import SwitchingEngine
from abswitch.experiments.ab_test import ABTestResult

_WORST = """
SELECT r.prompt, r.output, r.error_type, r.error_message, r.total_s, s.value
FROM requests r LEFT JOIN scores s ON s.request_id = r.request_id AND s.scorer = $scorer
WHERE r.operation_id = $operation AND r.arm = $arm AND NOT r.fallback AND r.prompt IS NOT NULL
    AND r.admitted_at_s <= $until AND coalesce(r.error_type, '') <> 'Cancelled'
    AND (r.error_type IS NOT NULL OR $of_scores = (s.value IS NOT NULL))
ORDER BY r.error_type IS NULL, $sign * s.value, r.total_s DESC, r.request_id
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


def worst_examples(engine: SwitchingEngine, result: ABTestResult, arm: str, *, most: int = 5) -> tuple[Example, ...]:
    """Failed requests first, then the answers that scored worst by the primary metric, then the slowest.

    Args:
        arm: `stable` or `candidate`.
        most: how many.

    Returns:
        Nothing where the engine was not asked to record text.
    """
    primary = result.plan.primary
    scorer = primary.columns[0] if len(primary.columns) == 1 else ""
    rows = engine.query(
        _WORST,
        {
            "operation": result.operation_id,
            "arm": arm,
            "scorer": scorer,
            "of_scores": scorer in engine.scorers,
            "sign": primary.sign,
            "until": result.started_at_s + result.elapsed_s,
            "most": most,
        },
    )
    return tuple(_example(*row) for row in rows.itertuples(index=False, name=None))


def _example(
    prompt: str, output: str | None, error_type: object, error_message: object, total_s: float, score: float | None
) -> Example:
    failed = isinstance(error_type, str)
    return Example(
        prompt=_cut(prompt),
        output=None if failed or not isinstance(output, str) else _cut(output),
        error=f"{error_type}: {error_message}" if failed else None,
        score=None if score is None or math.isnan(score) else float(score),
        total_s=float(total_s),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"
