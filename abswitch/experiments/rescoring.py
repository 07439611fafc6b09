"""Scores that a killed process owed: its answers are in the store, and are not asked for again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from abswitch.engine import SwitchingEngine
from abswitch.experiments.prompts import Question
from abswitch.scoring import Sample

log = logging.getLogger(__name__)

_ANSWERS = """
SELECT r.request_id, any_value(r.output), list(s.scorer) FILTER (s.scorer IS NOT NULL)
FROM requests r LEFT JOIN scores s USING (request_id)
WHERE r.operation_id = ? AND (r.arm = 'stable' OR starts_with(r.arm, 'candidate')) AND r.error_type IS NULL
GROUP BY r.request_id
"""
Unscored = tuple[Sample, frozenset[str]]


async def score_what_is_unscored(
    engine: SwitchingEngine, operation_id: str, question_of: Callable[[str], Question | None]
) -> int:
    """Have every answer of an operation scored by those scorers whose score it lacks; returns how many were.

    Where the engine keeps no text there is nothing to score: that is logged, and the verdict counts them as unscored.

    Args:
        question_of: a request's id → what was asked, or None where it is not this experiment's.
    """
    if not engine.scorers:
        return 0
    await engine.scored()
    rows = engine.store.rows(_ANSWERS, (operation_id,))
    found = list(_unscored(rows, frozenset(engine.scorers), question_of))
    if lost := sum(sample is None for sample in found):
        log.warning("%d answers of %s have no score, as their text was not kept", lost, operation_id)
    samples = [sample for sample in found if sample is not None]
    await engine.score_again(samples)
    return len(samples)


def _unscored(
    rows: Iterable[tuple[str, str | None, list[str] | None]],
    scorers: frozenset[str],
    question_of: Callable[[str], Question | None],
) -> Iterator[Unscored | None]:
    for request_id, output, scored in rows:
        missing = scorers - set(scored or ())
        question = question_of(request_id) if missing else None
        if question is None:
            continue
        if output is None:
            yield None
        else:
            sample = Sample(request_id=request_id, prompt=question.prompt, output=output, reference=question.reference)
            yield sample, missing
