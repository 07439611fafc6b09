"""What `abswitch schedule` says: the rows of the list, and decisions in words."""

from __future__ import annotations

import time
from collections.abc import Sequence

from abswitch.errors import InvalidInput, StoreError
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.schedules.deciding import Decision, GiveUp, Skip, Start, Wait, decide
from abswitch.experiments.schedules.occurrences import in_zone, next_after
from abswitch.experiments.schedules.running import NotScheduled, Schedule
from abswitch.experiments.schedules.state import ScheduleState
from abswitch.experiments.spec_parts import ScheduleSpec

Row = tuple[str, str, str, str, str]
_HEAD: Row = ("SPEC", "WHEN", "NEXT", "LAST", "INSTALLED")


def table(rows: Sequence[Row]) -> str:
    """Columns as wide as they have to be."""
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in (_HEAD, *rows)
    )


def row_of(schedule: Schedule, installed: str) -> tuple[Row, ExitStatus]:
    """One schedule in the list, and whether something is wrong with it."""
    name = schedule.path.name
    try:
        plan = schedule.spec()
        now_s = time.time()
        state = schedule.state(plan, now_s)
    except NotScheduled:
        return (name, "not scheduled", "", "", installed), ExitStatus.BAD_SPEC
    except InvalidInput as error:
        return (name, f"cannot be read: {error}", "", "", installed), ExitStatus.BAD_SPEC
    except StoreError as error:
        return (name, str(error), "", "", installed), ExitStatus.FAILED
    except OSError as error:
        return (name, f"{error.strerror}: {schedule.path}", "", "", installed), ExitStatus.NO_SPEC
    when = plan.cron if plan.time_zone == "UTC" else f"{plan.cron} {plan.time_zone}"
    following = _next_words(plan, state, now_s, held=schedule.shelf.is_held())
    return (name, when, following, _last_words(plan, state), installed), ExitStatus.SUCCESS


def _next_words(plan: ScheduleSpec, state: ScheduleState, now_s: float, *, held: bool) -> str:
    if held and state.running is not None:
        return f"running since {in_zone(state.running.started_at_s, plan.time_zone)}"
    decision = decide(plan, state, now_s)
    if isinstance(decision, Wait):
        return "never" if decision.until_s is None else in_zone(decision.until_s, plan.time_zone) + _again(state)
    if isinstance(decision, Start):
        return f"now{_attempt_words(decision)}"
    following = next_after(plan.cron, plan.time_zone, now_s)
    return "never" if following is None else in_zone(following, plan.time_zone)


def _again(state: ScheduleState) -> str:
    return "" if state.retry is None else f", attempt {state.retry.number}"


def _attempt_words(start: Start) -> str:
    if start.attempt.deaths:
        return ", goes on"
    if start.attempt.waits:
        return ", waits for the accelerator"
    return f", attempt {start.attempt.number}" if start.attempt.number > 1 else ""


def _last_words(plan: ScheduleSpec, state: ScheduleState) -> str:
    if state.last is None:
        words = "none"
    else:
        status = "died" if state.last.status is None else _status_words(state.last.status)
        words = f"{in_zone(state.last.due_at_s, plan.time_zone)}: {status}"
    return words + (f"; {state.skipped} missed" if state.skipped else "")


def _status_words(status: int) -> str:
    try:
        return f"{status} {ExitStatus(status).name.lower().replace('_', ' ')}"
    except ValueError:  # of another version
        return str(status)


def decision_words(decision: Decision, plan: ScheduleSpec, *, held: bool) -> str:
    """What `run-due` would do now."""
    if held:
        return "is under way in another process"
    match decision:
        case Start(attempt=attempt, missed=missed):
            again = f", attempt {attempt.number}" if attempt.number > 1 else ""
            again = ", gone on with after its process died" if attempt.deaths else again
            many = f"; {missed} earlier one(s) were missed" if missed else ""
            return f"would run now, due {in_zone(attempt.due_at_s, plan.time_zone)}{again}{many}"
        case Skip(until_s=until_s, count=count):
            return f"would skip {count}, the latest of {in_zone(until_s, plan.time_zone)}: too late"
        case GiveUp():
            return "would give up a run whose process died too often"
        case Wait(until_s=until_s):
            return "never comes" if until_s is None else f"nothing to do before {in_zone(until_s, plan.time_zone)}"
