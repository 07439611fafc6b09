"""What becomes of an operation whose process ended in the middle of it. Pure.

The rule: the stable version serves (or the candidate, when its promotion had been completed), and nothing that still
wanted a decision goes on by itself: it is paused, and says what it was doing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import lru_cache
from typing import Any

from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import Strategy, strategy_of

_FIELDS = tuple(field.name for field in fields(Operation))


def recovered(operation: Operation, now_s: float) -> Operation:
    """The operation as a new process takes it over.

    Args:
        operation: as the last durable transition left it.
        now_s: monotonic seconds of the new process; the old one's mean nothing here.

    Returns:
        A finished operation unchanged. One that was draining, or on its way back, has ended: no request of the old
        process is left. Any other is paused and `detached`: its shares are not in force until somebody resumes it.
    """
    if operation.phase.is_final:
        return operation
    clocked = replace(operation, epoch=operation.epoch + 1, created_s=now_s, phase_since_s=now_s, exposed=False)
    was = f"the process ended while it was {_doing(operation)}"
    if operation.phase in (Phase.DRAINING, Phase.ROLLING_BACK):
        assert operation.ending is not None, "set when the drain or the way back began"
        return replace(clocked, phase=operation.ending, reason=f"{operation.reason}; {was}")
    return replace(
        clocked,
        phase=Phase.PAUSED,
        share=0.0,
        mirror=0.0,
        winner=None,
        ending=None,
        detached=True,
        reason=f"{was}; the stable version serves; resume, promote, keep or abort it, "
        f"with engine.get_switch({operation.operation_id!r})",
    )


def superseded(operation: Operation) -> Operation:
    """An operation that another one of its model came after: it had ended, and that was never written down."""
    reason = f"{operation.reason}; a later operation of the model says that it had ended"
    return replace(operation, phase=Phase.ABORTED, winner=None, detached=False, reason=reason)


def _doing(operation: Operation) -> str:
    if operation.phase in (Phase.SHIFTING, Phase.EVALUATING, Phase.PAUSED):
        shares = ", ".join(f"{part * operation.share:.0%} on {version}" for version, part in operation.arms)
        return f"{operation.phase} at stage {operation.stage} ({shares})"
    return operation.phase.value


def operation_to_dict(operation: Operation) -> dict[str, Any]:
    """JSON values; `operation_of` reads them back."""
    plain = {name: getattr(operation, name) for name in _FIELDS}
    strategy = {"type": operation.strategy.type.value, "config": dict(_config(operation.strategy))}
    return plain | {"strategy": strategy, "phase": operation.phase.value, "ending": operation.ending}


@lru_cache(maxsize=64)
def _config(strategy: Strategy) -> Mapping[str, Any]:
    """The same at every move of an operation."""
    return asdict(strategy)


def operation_of(plain: Mapping[str, Any]) -> Operation:
    """An operation from its dictionary.

    Raises:
        InvalidInput: its strategy is unknown here, e.g. written by a newer version of abswitch.
    """
    strategy = strategy_of(plain["strategy"]["type"], _without_idle_fields(plain["strategy"]["config"]))
    ending = None if plain["ending"] is None else Phase(plain["ending"])
    read = {"strategy": strategy, "phase": Phase(plain["phase"]), "ending": ending, "reason": str(plain["reason"])}
    return Operation(**{**plain, **read})


def _without_idle_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Earlier versions wrote a ramp's defaults down also where `percentages` and `minutes` were in force instead."""
    instead = {"steps": "percentages", "duration_minutes": "minutes"}
    return {name: value for name, value in config.items() if not config.get(instead.get(name, ""))}
