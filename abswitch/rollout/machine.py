"""The state machine of one switch: `step(operation, event, now_s) -> (operation, effects)`. Pure.

`TABLE` says which phases may follow which (phase, event) pair; a pair that is not in it raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from abswitch.errors import IllegalTransition, InvalidInput
from abswitch.rollout.judging import Ruling
from abswitch.rollout.operation import (
    Abort,
    AskJudge,
    Breached,
    CandidateLost,
    Conclude,
    DeadlineElapsed,
    Drain,
    Drained,
    Effect,
    Event,
    Judged,
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
    SetDeadline,
    SetTimer,
    StageElapsed,
    Start,
    Unpin,
    Warm,
    Warmed,
    WarmFailed,
    Withdraw,
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
        LoadFailed: frozenset({P.FAILED, P.ROLLING_BACK}),
        CandidateLost: frozenset({P.FAILED, P.ROLLING_BACK}),
        Breached: frozenset({P.LOADING}),
        Abort: frozenset({P.ABORTED, P.ROLLING_BACK}),
    },
    P.WARMING: {
        Warmed: frozenset({P.SHIFTING, P.PROMOTING}),
        WarmFailed: frozenset({P.FAILED, P.ROLLING_BACK}),
        CandidateLost: frozenset({P.FAILED, P.ROLLING_BACK}),
        Breached: frozenset({P.WARMING}),
        Abort: frozenset({P.ABORTED, P.ROLLING_BACK}),
    },
    P.SHIFTING: {
        Routed: frozenset({P.EVALUATING}),
        RouteFailed: frozenset({P.ROLLING_BACK}),
        DeadlineElapsed: frozenset({P.ROLLING_BACK}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Breached: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.EVALUATING: {
        StageElapsed: frozenset({P.EVALUATING, P.SHIFTING, P.PROMOTING, P.ROLLING_BACK}),
        Judged: frozenset({P.EVALUATING, P.SHIFTING, P.PROMOTING, P.ROLLING_BACK}),
        DeadlineElapsed: frozenset({P.ROLLING_BACK}),
        Conclude: frozenset({P.PROMOTING, P.ROLLING_BACK}),
        Pause: frozenset({P.PAUSED}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Breached: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.PAUSED: {
        Resume: frozenset({P.EVALUATING, P.SHIFTING, P.PROMOTING, P.LOADING}),
        DeadlineElapsed: frozenset({P.ROLLING_BACK}),
        Conclude: frozenset({P.PROMOTING, P.ROLLING_BACK, P.LOADING}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Breached: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.PROMOTING: {
        Routed: frozenset({P.DRAINING}),
        RouteFailed: frozenset({P.ROLLING_BACK}),
        DeadlineElapsed: frozenset({P.PROMOTING}),
        CandidateLost: frozenset({P.ROLLING_BACK, P.PROMOTING}),
        Breached: frozenset({P.ROLLING_BACK, P.PROMOTING}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.ROLLING_BACK: {
        Routed: frozenset({P.DRAINING}),
        RouteFailed: frozenset({P.FAILED}),
        DeadlineElapsed: frozenset({P.ROLLING_BACK}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Breached: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
    },
    P.DRAINING: {
        Drained: _ENDINGS,
        DeadlineElapsed: frozenset({P.DRAINING}),
        CandidateLost: frozenset({P.ROLLING_BACK, P.DRAINING}),
        Breached: frozenset({P.ROLLING_BACK, P.DRAINING}),
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
    instead_of = op.stable if op.strategy.drains_first and op.stable not in op.candidates else None
    reason = "loading the candidate" if instead_of is None else f"{instead_of} leaves to make room for the candidate"
    return replace(op, phase=P.LOADING, detached=False, reason=reason), (Load(op.candidates, instead_of),)


def _loaded(op: Operation, _: Loaded) -> Step:
    return replace(op, phase=P.WARMING, reason="loaded; generating a first token"), (Warm(op.candidates),)


def _never_routed(op: Operation, event: LoadFailed | WarmFailed) -> Step:
    return _before_traffic(op, P.FAILED, event.reason)


def _before_traffic(op: Operation, ending: Phase, reason: str) -> Step:
    if op.strategy.drains_first and op.stable is not None and op.phase is not P.PENDING:
        return _back(op, ending, reason)  # requests are waiting: the stable version must serve them again
    return replace(op, phase=ending, reason=reason), (Unpin(op.leaving),)


def _warmed(op: Operation, _: Warmed) -> Step:
    return _go_on(op, "the candidate generated a token")


def _go_on(op: Operation, reason: str) -> Step:
    if not op.strategy.stages:
        return _promote(op, op.candidate, reason)
    return _shift(op, op.stage, reason)


def _routed(op: Operation, _: Routed) -> Step:
    if op.phase is not P.SHIFTING:
        return replace(op, phase=P.DRAINING), (Drain(op.leaving),)
    effects: tuple[Effect, ...] = _stage_timer(op)
    if not op.exposed and op.strategy.deadline_s is not None:
        effects += (SetDeadline(op.strategy.deadline_s),)
    return replace(op, phase=P.EVALUATING, exposed=True), effects


def _stage_timer(op: Operation) -> tuple[Effect, ...]:
    hold_s = op.strategy.stages[op.stage].hold_s
    return () if hold_s is None else (SetTimer(hold_s),)


def _route_failed(op: Operation, event: RouteFailed) -> Step:
    if op.phase is not P.ROLLING_BACK:
        return _back(op, P.ROLLED_BACK, event.reason)
    failed = replace(op, phase=P.FAILED, reason=f"no way back: {event.reason}")
    if event.serving is None:
        return failed, (Withdraw(), Unpin(failed.leaving))
    # It had been promoted, and there is nothing else: what still answers is not taken away.
    stays = replace(failed, winner=event.serving, share=1.0, reason=f"{failed.reason}; {event.serving} goes on serving")
    return stays, (Unpin(stays.leaving),)


def _stage_elapsed(op: Operation, _: StageElapsed) -> Step:
    if op.strategy.stages[op.stage].judged:
        return op, (AskJudge(op.stage, op.evaluation + 1),)
    return _advance(op, op.candidate, f"stage {op.stage} held its time")


def _advance(op: Operation, winner: str, reason: str) -> Step:
    if op.stage + 1 < len(op.strategy.stages):
        return _shift(op, op.stage + 1, reason)
    if op.strategy.at_end is AtEnd.PROMOTE:
        return _promote(op, winner, reason)
    return _back(op, P.SUCCEEDED, "the test's time is over; the stable version is kept")


def _judged(op: Operation, event: Judged) -> Step:
    ruling, reason = event.judgement.ruling, event.judgement.reason
    judged = replace(op, evaluation=op.evaluation + 1, reason=reason)
    if ruling is Ruling.HOLD and event.judgement.share is not None:
        return _shift(judged, op.stage, reason, share=event.judgement.share)
    if ruling is Ruling.HOLD:
        return judged, _stage_timer(op)
    if ruling is Ruling.ROLL_BACK:
        return _back(judged, P.ROLLED_BACK, reason)
    winner = event.judgement.version or op.candidate
    if op.strategy.at_end is AtEnd.RETURN:  # a test: its judge names the winner, and there is no further stage
        return _promote(judged, winner, reason)
    return _advance(judged, winner, reason)


def _deadline_elapsed(op: Operation, _: DeadlineElapsed) -> Step:
    if op.phase in (P.PROMOTING, P.ROLLING_BACK, P.DRAINING):
        return op, ()  # it was decided in time
    ending = P.SUCCEEDED if op.strategy.at_end is AtEnd.RETURN else P.ROLLED_BACK
    return _back(op, ending, f"its longest duration is over; the last word was: {op.reason}")


def _conclude(op: Operation, event: Conclude) -> Step:
    if not event.promote:
        return _back(op, P.SUCCEEDED, event.reason)
    winner = event.version or op.candidate
    if winner not in op.candidates:
        raise InvalidInput("version", winner, f"one of this operation's candidates: {', '.join(op.candidates)}")
    if _must_make_room(op):
        started, effects = _start(op, Start())
        return replace(started, reason=f"{event.reason}; {started.reason}"), effects
    return _promote(op, winner, event.reason)


def _pause(op: Operation, event: Pause) -> Step:
    return replace(op, phase=P.PAUSED, reason=event.reason), ()


def _resume(op: Operation, _: Resume) -> Step:
    if _must_make_room(op):
        return _start(op, Start())
    if op.detached:
        return _go_on(op, "resumed after a restart")
    # A pause is a judgement that time alone proves nothing yet: the stage begins anew.
    return replace(op, phase=P.EVALUATING, reason="resumed"), _stage_timer(op)


def _must_make_room(op: Operation) -> bool:
    """Of one that a restart interrupted: the stable version serves again, where there may be room for one."""
    return op.detached and op.strategy.drains_first


def _abort(op: Operation, event: Abort) -> Step:
    if op.phase in (P.PENDING, P.LOADING, P.WARMING):
        return _before_traffic(op, P.ABORTED, event.reason)
    return _give_up(op, P.ABORTED, event.reason)


def _candidate_lost(op: Operation, event: CandidateLost | Breached) -> Step:
    if op.phase in (P.LOADING, P.WARMING):
        if isinstance(event, Breached):
            return op, ()  # nobody meets the candidate yet; whether it may serve is being found out
        return _before_traffic(op, P.FAILED, event.reason)
    if _is_leaving(op) or (op.winner is not None and event.version not in (None, op.winner)):
        return op, ()  # traffic is already leaving it; the way it ends does not change
    return _give_up(op, P.ROLLED_BACK, event.reason)


def _is_leaving(op: Operation) -> bool:
    return op.phase is P.ROLLING_BACK or (op.phase is P.DRAINING and not op.promoted)


def _give_up(op: Operation, ending: Phase, reason: str) -> Step:
    if _is_leaving(op):
        return replace(op, ending=ending, reason=reason), ()
    return _back(op, ending, reason)


def _drained(op: Operation, event: Drained) -> Step:
    assert op.ending is not None, "a drain begins only after a promotion or a way back set its ending"
    reason = op.reason if not event.left else f"{op.reason}; {event.left} request(s) finish on the version that left"
    return replace(op, phase=op.ending, reason=reason), (Unpin(op.leaving),) if op.leaving else ()


def _shift(op: Operation, index: int, reason: str, *, share: float | None = None) -> Step:
    """Put a stage in force, at its own share unless a judge gave another."""
    stage = op.strategy.stages[index]
    if share is not None:
        stage = replace(stage, share=share)
    evaluation = op.evaluation if index == op.stage else 0
    shifted = replace(
        op,
        phase=P.SHIFTING,
        stage=index,
        share=stage.share,
        mirror=stage.mirror,
        evaluation=evaluation,
        detached=False,
        reason=reason,
    )
    arms = tuple((version, part * stage.share) for version, part in op.arms) if stage.share else ()
    shadow = op.candidate if stage.mirror else None
    return shifted, (Route(op.stable, arms, stage.share, shadow, stage.mirror),)


def _promote(op: Operation, winner: str, reason: str) -> Step:
    promoted = replace(
        op, phase=P.PROMOTING, share=1.0, mirror=0.0, detached=False, winner=winner, ending=P.SUCCEEDED, reason=reason
    )
    return promoted, (Route(winner),)


def _back(op: Operation, ending: Phase, reason: str) -> Step:
    back = replace(
        op, phase=P.ROLLING_BACK, share=0.0, mirror=0.0, detached=False, winner=None, ending=ending, reason=reason
    )
    return back, (Route(op.stable),)


_HANDLERS: Mapping[type[Event], Callable[[Operation, Any], Step]] = {
    Start: _start,
    Loaded: _loaded,
    LoadFailed: _never_routed,
    Warmed: _warmed,
    WarmFailed: _never_routed,
    Routed: _routed,
    RouteFailed: _route_failed,
    StageElapsed: _stage_elapsed,
    Judged: _judged,
    DeadlineElapsed: _deadline_elapsed,
    Conclude: _conclude,
    Pause: _pause,
    Resume: _resume,
    Abort: _abort,
    CandidateLost: _candidate_lost,
    Breached: _candidate_lost,
    Drained: _drained,
}
