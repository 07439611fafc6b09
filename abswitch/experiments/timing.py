"""How long a switch took, read from what was recorded of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput

_QUERY = """
WITH decided AS (
    SELECT model_id, at_s FROM transitions
    WHERE operation_id = $operation AND phase_to = 'promoting' ORDER BY sequence LIMIT 1
), routed AS (
    SELECT r.model_id, r.epoch, r.committed_at_s FROM routes r JOIN decided d USING (model_id)
    WHERE r.committed_at_s >= d.at_s ORDER BY r.epoch LIMIT 1
), first_token AS (
    SELECT min(q.admitted_at_s - q.queue_s + q.first_token_s) AS at_s FROM requests q JOIN routed r USING (model_id)
    WHERE q.route_epoch >= r.epoch AND q.first_token_s IS NOT NULL
), drained AS (
    SELECT at_s FROM transitions WHERE operation_id = $operation AND event = 'Drained'
)
SELECT
    (SELECT committed_at_s FROM routed) - d.at_s AS routed_s,
    (SELECT at_s FROM first_token) - d.at_s AS first_token_s,
    (SELECT at_s FROM drained) - d.at_s AS drained_s
FROM decided d
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchTiming:
    """Seconds from the decision to promote; None where it has not happened.

    Attributes:
        routed_s: until every new request went to the new version.
        first_token_s: until the first token of a request admitted to the new version afterwards.
        drained_s: until the last request on the old version had ended.
    """

    operation_id: str
    routed_s: float | None
    first_token_s: float | None
    drained_s: float | None


def switch_timing(engine: SwitchingEngine, operation_id: str) -> SwitchTiming:
    """Timing of a promotion.

    Raises:
        InvalidInput: the operation never promoted its candidate.
    """
    rows = engine.query(_QUERY, {"operation": operation_id})
    if rows.empty:
        raise InvalidInput("operation_id", operation_id, "an operation that promoted its candidate")
    values = {name: None if isnan(value) else float(value) for name, value in rows.iloc[0].items()}  # NaN: not yet
    return SwitchTiming(
        operation_id=operation_id,
        routed_s=values["routed_s"],
        first_token_s=values["first_token_s"],
        drained_s=values["drained_s"],
    )
