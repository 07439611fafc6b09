"""What is to be done about a schedule now: pure, from its spec, its state and the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.schedules.occurrences import due_between, next_after
from abswitch.experiments.schedules.state import Attempt, Ended, ScheduleState

if TYPE_CHECKING:
    from abswitch.experiments.spec_parts import ScheduleSpec

MOST_DEATHS = 3
_DAY_S = 86_400.0
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Begin this attempt, or go on with it.

    Attributes:
        missed: earlier occurrences that this one stands for.
    """

    attempt: Attempt
    missed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """Leave occurrences out: they came while nothing could run, and are too late now."""

    until_s: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Its process died too often."""

    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to do before this instant; None for ever."""

    until_s: float | None


Decision = Start | Skip | GiveUp | Wait


def fitted(schedule: ScheduleSpec, state: ScheduleState, now_s: float) -> ScheduleState:
    """The state for the schedule as it is today, with the clock as it is now.

    A schedule that is new, or was changed, begins with the current minute: what its new times would have been before
    says nothing. So does one whose clock went back by more than a day; by less, times that were handled do not come
    again.
    """
    began_s = now_s - now_s % _MINUTE_S - 1.0
    if (state.cron, state.time_zone) != (schedule.cron, schedule.time_zone):
        state = replace(state, cron=schedule.cron, time_zone=schedule.time_zone, quiet_until_s=None)
        state = replace(state, handled_until_s=max(began_s, state.handled_until_s))
    if state.handled_until_s > now_s + _DAY_S:
        state = replace(state, handled_until_s=began_s, retry=None, quiet_until_s=None)
    return state


def decide(schedule: ScheduleSpec, state: ScheduleState, now_s: float) -> Decision:
    """What is to be done, while no process works on it.

    Args:
        state: as `fitted` gives it; `running` means that the process of that attempt died.
    """
    due = due_between(schedule.cron, schedule.time_zone, state.handled_until_s, now_s)
    left = state.running or state.retry
    if due is not None:
        late_s = now_s - due.latest_s
        if schedule.missed == "skip" and late_s > 60.0 * schedule.grace_minutes:
            return Skip(until_s=due.latest_s, count=due.many)
        never_begun = state.retry is not None and state.retry.waits
        return Start(attempt=Attempt(due_at_s=due.latest_s), missed=due.many - 1 + never_begun)
    if left is None:
        return Wait(until_s=next_after(schedule.cron, schedule.time_zone, max(now_s, state.handled_until_s)))
    if state.running is not None:
        again = replace(left, deaths=left.deaths + 1)
        return Start(attempt=again) if again.deaths <= MOST_DEATHS else GiveUp(attempt=left)
    if left.waits and schedule.missed == "skip" and now_s - left.due_at_s > 60.0 * schedule.grace_minutes:
        return Skip(until_s=left.due_at_s, count=1)
    ready_s = min(left.not_before_s, now_s + _pause_s(schedule, left.number - 1))  # the clock may have gone back
    return Start(attempt=left) if ready_s <= now_s else Wait(until_s=ready_s)


def begun(state: ScheduleState, start: Start, *, now_s: float, pid: int) -> ScheduleState:
    """The state to write before anything is run."""
    attempt = replace(start.attempt, started_at_s=now_s, pid=pid, waits=False, not_before_s=0.0)
    return replace(
        state,
        handled_until_s=max(state.handled_until_s, attempt.due_at_s),
        running=attempt,
        retry=None,
        last=_last(state, attempt, now_s),
        skipped=start.missed if attempt.number == 1 and not attempt.deaths else state.skipped,
    )


def skipped(state: ScheduleState, skip: Skip, *, now_s: float) -> ScheduleState:
    """The state once occurrences were left out; what was left of an earlier one is over, too."""
    return replace(
        state,
        handled_until_s=max(state.handled_until_s, skip.until_s),
        running=None,
        retry=None,
        last=_last(state, None, now_s),
        skipped=state.skipped + skip.count,
    )


def ended(schedule: ScheduleSpec, state: ScheduleState, status: ExitStatus, *, now_s: float) -> ScheduleState:
    """The state once the attempt that runs is over: kept for later, to be tried again, or done."""
    attempt = state.running
    assert attempt is not None, "an attempt was begun before"
    if status is ExitStatus.BUSY:
        return replace(state, running=None, retry=replace(attempt, not_before_s=now_s, waits=True))
    retry = None
    if status.is_error and status is not ExitStatus.INTERRUPTED and attempt.number <= schedule.retries:
        pause_s = _pause_s(schedule, attempt.number)
        retry = Attempt(due_at_s=attempt.due_at_s, number=attempt.number + 1, not_before_s=now_s + pause_s)
    return replace(state, running=None, retry=retry, last=_over(attempt, now_s, int(status)))


def given_up(state: ScheduleState, *, now_s: float) -> ScheduleState:
    """The state once an attempt is not gone on with any more."""
    return replace(state, running=None, retry=None, last=_last(state, None, now_s))


def quiet(state: ScheduleState, until_s: float | None, *, now_s: float) -> ScheduleState:
    """The state that says when to look again: within a day, as a time zone's rules may change."""
    tomorrow_s = now_s + _DAY_S
    return replace(state, looked_at_s=now_s, quiet_until_s=min(until_s or tomorrow_s, tomorrow_s), problem="")


def _pause_s(schedule: ScheduleSpec, failed: int) -> float:
    return 0.0 if failed < 1 else schedule.backoff_s * 2.0 ** (failed - 1)


def _last(state: ScheduleState, goes_on: Attempt | None, now_s: float) -> Ended | None:
    """The latest attempt that is over: of one whose process died, this is so once it is not gone on with."""
    died = state.running
    if died is None or (goes_on is not None and goes_on.due_at_s == died.due_at_s):
        return state.last
    return _over(died, now_s, None)


def _over(attempt: Attempt, now_s: float, status: int | None) -> Ended:
    return Ended(
        due_at_s=attempt.due_at_s,
        number=attempt.number,
        started_at_s=attempt.started_at_s,
        ended_at_s=now_s,
        status=status,
    )
