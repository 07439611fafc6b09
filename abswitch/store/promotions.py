"""What stands behind a promotion: the verdict of the experiment that the switch ended."""

from __future__ import annotations

from abswitch.store.recorder import Recorder

_EXPERIMENT = """
SELECT (detail->'metadata')->>'experiment' FROM registry_history
WHERE operation_id = ? AND action = 'requested' AND json_exists(detail, '$.metadata.experiment')
"""
_VERDICT = """
SELECT v.operation_id, v.decision, v.rule, v.reason, p.digest
FROM verdicts v LEFT JOIN plans p USING (operation_id)
WHERE v.operation_id = ? ORDER BY v.look DESC LIMIT 1
"""
_NAMES = ("operation_id", "decision", "rule", "reason", "plan_digest")
TAGS = frozenset(f"abswitch.{name}" for name in _NAMES)


def verdict_behind(recorder: Recorder, operation_id: str) -> dict[str, str]:
    """The last verdict on a switch, under the names that its runs have as tags; empty where none was taken.

    An experiment whose design moves no traffic (paired, switchback) has an id of its own; the switch that followed its
    verdict names it in the registry's history.
    """
    named = recorder.rows(_EXPERIMENT, (operation_id,))
    found = recorder.rows(_VERDICT, (named[0][0] if named else operation_id,))
    told = dict(zip(_NAMES, found[0], strict=True)) if found else {"operation_id": operation_id}
    return {f"abswitch.{name}": str(value) for name, value in told.items() if value is not None}
