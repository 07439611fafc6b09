"""Which arm a unit met, told once per unit and operation, at admission."""

from __future__ import annotations

from collections.abc import Callable

from abswitch.clock import Clock
from abswitch.records import AssignmentRecord
from abswitch.serving.router import RoutedArm, RouteSnapshot

_REMEMBERED = 50_000
"""Units per operation; when more than these came, some are told again, which does no harm."""


class Assignments:
    """Remembers whom it told of. Lives on the engine's loop.

    Args:
        record: takes one row per unit, arm and operation; must not block.
    """

    def __init__(self, clock: Clock, record: Callable[[AssignmentRecord], None]) -> None:
        self._clock = clock
        self._record = record
        self._met: dict[str, set[tuple[str, str]]] = {}
        self._current: dict[str, str] = {}

    def note(self, snapshot: RouteSnapshot, arm: RoutedArm, unit_id: str, request_id: str) -> None:
        """A unit's request was admitted to an arm of the snapshot's operation."""
        operation_id = snapshot.operation_id
        assert operation_id is not None, "only called during an operation"
        met = self._met.get(operation_id)
        if met is None:
            met = self._begin(snapshot.model_id, operation_id)
        key = (unit_id, arm.name)
        if key in met:
            return
        if len(met) >= _REMEMBERED:
            met.clear()
        met.add(key)
        self._record(
            AssignmentRecord(
                operation_id,
                snapshot.model_id,
                unit_id,
                arm.name,
                arm.version,
                arm.share,
                snapshot.step,
                snapshot.epoch,
                request_id,
                self._clock.wall_s(),
            )
        )

    def _begin(self, model_id: str, operation_id: str) -> set[tuple[str, str]]:
        """A model has one operation at a time: what was remembered of the one before goes."""
        self._met.pop(self._current.get(model_id, ""), None)
        self._current[model_id] = operation_id
        return self._met.setdefault(operation_id, set())
