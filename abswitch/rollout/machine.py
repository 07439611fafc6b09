"""The state machine of one switch: `step(operation, event, now_s) -> (operation, effects)`. Pure.

`TABLE` says which phases may follow which (phase, event) pair; a pair that is not in it raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from abswitch.errors import IllegalTransition
from abswitch.rollout.operation import (
    Abort,
    CandidateLost,
    Conclude,
    Drain,
    Drained,
    Effect,
    Event,
    Load,
    Loaded,
    LoadFailed,
    Operation,
    Pause,
    Phase,
    Resume,
    Route,
    Routed,
    RouteFailed,
    SetTimer,
    StageElapsed,
    Start,
    Unpin,
    Warm,
    Warmed,
    WarmFailed,
)
from abswitch.rollout.strategies import AtEnd

P = Phase
_ENDINGS = frozenset({P.SUCCEEDED, P.ROLLED_BACK, P.ABORTED, P.FAILED})

TABLE: Mapping[Phase, Mapping[type[Event], frozenset[Phase]]] = {
    P.PENDING: {
        Start: frozenset({P.LOADING}),
        Abort: frozenset({P.ABORTED}),
    },
    P.LOADING: {
        Loaded: frozenset({P.WARMING}),
        LoadFailed: frozenset({P.FAILED}),
        CandidateLost: frozenset({P.FAILED}),
        Abort: frozenset({P.ABORTED}),
    },
    P.WARMING: {
        Warmed: frozenset({P.SHIFTING, P.PROMOTING}),
        WarmFailed: frozenset({P.FAILED}),
        CandidateLost: frozenset({P.FAILED}),
        Abort: frozenset({P.ABORTED}),
    },
    P.SHIFTING: {
        Routed: frozenset({P.EVALUATING}),
        RouteFailed: frozenset({P.ROLLING_BACK}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.EVALUATING: {
        StageElapsed: frozenset({P.SHIFTING, P.PROMOTING, P.ROLLING_BACK}),
        Conclude: frozenset({P.PROMOTING, P.ROLLING_BACK}),
        Pause: frozenset({P.PAUSED}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.PAUSED: {
        Resume: frozenset({P.EVALUATING}),
        Conclude: frozenset({P.PROMOTING, P.ROLLING_BACK}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.PROMOTING: {
        Routed: frozenset({P.DRAINING}),
        RouteFailed: frozenset({P.ROLLING_BACK}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.ROLLING_BACK: {
        Routed: frozenset({P.DRAINING}),
        RouteFailed: frozenset({P.FAILED}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.DRAINING: {
        Drained: _ENDINGS,
        CandidateLost: frozenset({P.ROLLING_BACK, P.DRAINING}),
        Abort: frozenset({P.ROLLING_BACK, P.DRAINING}),
    },
    P.SUCCEEDED: {},
    P.ROLLED_BACK: {},
    P.ABORTED: {},
    P.FAILED: {},
}

Step = tuple[Operation, tuple[Effect, ...]]


def step(operation: Operation, event: Event, now_s: float) -> Step:
    """Take one event.

    Args:
        operation: as it stands.
        event: what happened. Answers and timers of an earlier epoch are dropped: the operation comes back unchanged.
        now_s: monotonic seconds, for the record only; no decision reads it.

    Returns:
        The operation after the event and what must now be done, in order.

    Raises:
        IllegalTransition: the phase does not take the event; nothing changed.
    """
    if event.epoch is not None and event.epoch != operation.epoch:
        return operation, ()
    allowed = TABLE[operation.phase].get(type(event))
    if allowed is None:
        raise IllegalTransition(operation.phase, type(event).__name__)
    after, effects = _HANDLERS[type(event)](operation, event)
    if after.phase not in allowed:
        raise IllegalTransition(operation.phase, f"{type(event).__name__} (to {after.phase})")
    if after.phase is operation.phase and not effects:
        return after, ()  # the work under way goes on, and may still report
    return replace(after, epoch=operation.epoch + 1, phase_since_s=now_s), effects


def _start(op: Operation, _: Start) -> Step:
    return replace(op, phase=P.LOADING, reason="loading the candidate"), (Load(op.candidate),)


def _loaded(op: Operation, _: Loaded) -> Step:
    return replace(op, phase=P.WARMING, reason="loaded; generating a first token"), (Warm(op.candidate),)


def _never_routed(op: Operation, event: LoadFailed | WarmFailed) -> Step:
    return replace(op, phase=P.FAILED, reason=event.reason), (Unpin(op.candidate),)


def _warmed(op: Operation, _: Warmed) -> Step:
    if not op.strategy.stages:
        return _promote(op, "the candidate generated a token")
    return _shift(op, 0, "the candidate generated a token")


def _routed(op: Operation, _: Routed) -> Step:
    if op.phase is P.SHIFTING:
        hold_s = op.strategy.stages[op.stage].hold_s
        return replace(op, phase=P.EVALUATING), () if hold_s is None else (SetTimer(hold_s),)
    leaving = op.stable if op.promoted else op.candidate
    return replace(op, phase=P.DRAINING), (Drain(leaving),)


def _route_failed(op: Operation, event: RouteFailed) -> Step:
    if op.phase is P.ROLLING_BACK:
        return replace(op, phase=P.FAILED, reason=f"no way back: {event.reason}"), (Unpin(op.candidate),)
    return _back(op, P.ROLLED_BACK, event.reason)


def _stage_elapsed(op: Operation, _: StageElapsed) -> Step:
    if op.stage + 1 < len(op.strategy.stages):
        return _shift(op, op.stage + 1, f"stage {op.stage} held its time")
    if op.strategy.at_end is AtEnd.PROMOTE:
        return _promote(op, "the last stage held its time")
    return _back(op, P.SUCCEEDED, "the test's time is over; the stable version is kept")


def _conclude(op: Operation, event: Conclude) -> Step:
    return _promote(op, event.reason) if event.promote else _back(op, P.SUCCEEDED, event.reason)


def _pause(op: Operation, event: Pause) -> Step:
    return replace(op, phase=P.PAUSED, reason=event.reason), ()


def _resume(op: Operation, _: Resume) -> Step:
    hold_s = op.strategy.stages[op.stage].hold_s
    # A pause is a judgement that time alone proves nothing yet: the stage begins anew.
    return replace(op, phase=P.EVALUATING, reason="resumed"), () if hold_s is None else (SetTimer(hold_s),)


def _abort(op: Operation, event: Abort) -> Step:
    if op.phase in (P.PENDING, P.LOADING, P.WARMING):
        return replace(op, phase=P.ABORTED, reason=event.reason), (Unpin(op.candidate),)
    return _give_up(op, P.ABORTED, event.reason)


def _candidate_lost(op: Operation, event: CandidateLost) -> Step:
    if op.phase in (P.LOADING, P.WARMING):
        return replace(op, phase=P.FAILED, reason=event.reason), (Unpin(op.candidate),)
    if op.phase is P.ROLLING_BACK or (op.phase is P.DRAINING and not op.promoted):
        return op, ()  # traffic is already leaving it; the way it ends does not change
    return _give_up(op, P.ROLLED_BACK, event.reason)


def _give_up(op: Operation, ending: Phase, reason: str) -> Step:
    if op.phase is P.ROLLING_BACK or (op.phase is P.DRAINING and not op.promoted):
        return replace(op, ending=ending, reason=reason), ()
    return _back(op, ending, reason)


def _drained(op: Operation, event: Drained) -> Step:
    assert op.ending is not None, "a drain begins only after a promotion or a way back set its ending"
    reason = op.reason if not event.left else f"{op.reason}; {event.left} request(s) finish on the version that left"
    leaving = op.stable if op.promoted else op.candidate
    effects = () if leaving is None else (Unpin(leaving),)
    return replace(op, phase=op.ending, reason=reason), effects


def _shift(op: Operation, stage: int, reason: str) -> Step:
    share = op.strategy.stages[stage].share
    shifted = replace(op, phase=P.SHIFTING, stage=stage, share=share, reason=reason)
    return shifted, (Route(op.stable, op.candidate, share),)


def _promote(op: Operation, reason: str) -> Step:
    promoted = replace(op, phase=P.PROMOTING, share=1.0, promoted=True, ending=P.SUCCEEDED, reason=reason)
    return promoted, (Route(op.candidate, None, 0.0),)


def _back(op: Operation, ending: Phase, reason: str) -> Step:
    back = replace(op, phase=P.ROLLING_BACK, share=0.0, promoted=False, ending=ending, reason=reason)
    return back, (Route(op.stable, None, 0.0),)


_HANDLERS: Mapping[type[Event], Callable[[Operation, Any], Step]] = {
    Start: _start,
    Loaded: _loaded,
    LoadFailed: _never_routed,
    Warmed: _warmed,
    WarmFailed: _never_routed,
    Routed: _routed,
    RouteFailed: _route_failed,
    StageElapsed: _stage_elapsed,
    Conclude: _conclude,
    Pause: _pause,
    Resume: _resume,
    Abort: _abort,
    CandidateLost: _candidate_lost,
    Drained: _drained,
}
