"""What is to be done now, on a virtual clock: days in microseconds, with outages, crashes, jumping clocks."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest

from abswitch.clock import VirtualClock
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.schedules.deciding import (
    MOST_DEATHS,
    Decision,
    GiveUp,
    Skip,
    Start,
    Wait,
    begun,
    decide,
    ended,
    fitted,
    given_up,
    skipped,
)
from abswitch.experiments.schedules.occurrences import due_between
from abswitch.experiments.schedules.state import ScheduleState
from abswitch.experiments.spec_parts import ScheduleSpec

MIDNIGHT_S = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


class Host:
    """A schedule that is looked at, with what became of it."""

    def __init__(self, cron: str = "30 2 * * *", **fields: Any) -> None:
        self.plan = ScheduleSpec(cron=cron, **fields)
        self.clock = VirtualClock(wall_s=MIDNIGHT_S)
        self.state = fitted(self.plan, ScheduleState(spec="x.yaml"), self.now_s)

    @property
    def now_s(self) -> float:
        return self.clock.wall_s()

    def at(self, hour: float, day: int = 0) -> Host:
        self.clock.advance(max(0.0, MIDNIGHT_S + day * DAY_S + hour * HOUR_S - self.now_s))
        return self

    def look(self) -> Decision:
        self.state = fitted(self.plan, self.state, self.now_s)
        return decide(self.plan, self.state, self.now_s)

    def start(self) -> Start:
        decision = self.look()
        assert isinstance(decision, Start), decision
        self.state = begun(self.state, decision, now_s=self.now_s, pid=1)
        return decision

    def end(self, status: ExitStatus) -> None:
        self.state = ended(self.plan, self.state, status, now_s=self.now_s)

    def run(self, status: ExitStatus = ExitStatus.SUCCESS) -> Start:
        decision = self.start()
        self.end(status)
        return decision


def due_hour(start: Start) -> float:
    return (start.attempt.due_at_s - MIDNIGHT_S) / HOUR_S


def test_it_waits_for_its_time_runs_once_and_waits_for_the_next() -> None:
    host = Host()
    assert host.look() == Wait(until_s=MIDNIGHT_S + 2.5 * HOUR_S)
    host.at(2.5)
    assert due_hour(host.run()) == 2.5
    assert host.look() == Wait(until_s=MIDNIGHT_S + 26.5 * HOUR_S)
    assert host.state.last is not None
    assert host.state.last.status == ExitStatus.SUCCESS


def test_the_minute_in_which_it_is_first_seen_counts_and_nothing_before() -> None:
    plan = ScheduleSpec(cron="30 2 * * *")
    for second, expected in ((0.0, True), (59.0, True), (60.0, False)):
        now_s = MIDNIGHT_S + 2.5 * HOUR_S + second
        state = fitted(plan, ScheduleState(spec="x"), now_s)
        assert isinstance(decide(plan, state, now_s), Start) is expected


def test_missed_times_are_run_once() -> None:
    start = Host(missed="run_once").at(12, day=3).start()
    assert (due_hour(start), start.missed) == (3 * 24 + 2.5, 3)


def test_missed_times_are_skipped_where_the_spec_says_so() -> None:
    host = Host(missed="skip").at(12, day=3)
    decision = host.look()
    assert decision == Skip(until_s=MIDNIGHT_S + (3 * 24 + 2.5) * HOUR_S, count=4)
    host.state = skipped(host.state, decision, now_s=host.now_s)
    assert isinstance(host.look(), Wait)
    assert host.state.skipped == 4
    host.at(2.5, day=4).start()
    assert host.state.skipped == 0


@pytest.mark.parametrize(("late_minutes", "runs"), [(0, True), (10, True), (10.5, False)])
def test_a_start_within_the_grace_time_is_on_time(late_minutes: float, runs: bool) -> None:
    host = Host(missed="skip", grace_minutes=10.0).at(2.5 + late_minutes / 60)
    assert isinstance(host.look(), Start) is runs


def test_errors_are_tried_again_with_growing_pauses() -> None:
    host = Host(retries=2, backoff_s=60.0).at(2.5)
    assert host.run(ExitStatus.FAILED).attempt.number == 1
    assert host.look() == Wait(until_s=host.now_s + 60.0)
    host.clock.advance(60.0)
    assert host.run(ExitStatus.TIMED_OUT).attempt.number == 2
    assert host.look() == Wait(until_s=host.now_s + 120.0)
    host.clock.advance(120.0)
    third = host.run(ExitStatus.FAILED)
    assert (third.attempt.number, due_hour(third)) == (3, 2.5)
    assert host.look() == Wait(until_s=MIDNIGHT_S + 26.5 * HOUR_S), "no fourth attempt"


@pytest.mark.parametrize("status", [ExitStatus.KEEP, ExitStatus.INVALID, ExitStatus.REGRESSED, ExitStatus.INTERRUPTED])
def test_verdicts_and_what_a_person_stopped_are_not_tried_again(status: ExitStatus) -> None:
    host = Host(retries=5).at(2.5)
    host.run(status)
    assert isinstance(host.look(), Wait)
    assert host.state.retry is None
    assert host.state.last is not None
    assert host.state.last.status == status


def test_a_busy_accelerator_keeps_it_due_without_using_up_attempts() -> None:
    host = Host(retries=1).at(2.5)
    for _ in range(5):
        assert host.run(ExitStatus.BUSY).attempt.number == 1
        host.clock.advance(60.0)
    assert host.run().attempt.number == 1
    assert isinstance(host.look(), Wait)


def test_what_could_never_begin_in_time_is_skipped() -> None:
    host = Host(missed="skip", grace_minutes=10.0).at(2.5)
    host.run(ExitStatus.BUSY)
    host.clock.advance(11 * 60.0)
    assert host.look() == Skip(until_s=MIDNIGHT_S + 2.5 * HOUR_S, count=1)


def test_a_new_time_replaces_what_is_left_of_an_old_one() -> None:
    host = Host(retries=3, backoff_s=80_000.0).at(2.5)
    host.run(ExitStatus.FAILED)
    fresh = host.at(2.5, day=1).start()
    assert (due_hour(fresh), fresh.attempt.number, fresh.missed) == (26.5, 1, 0)
    busy = Host(cron="0 * * * *").at(1)
    busy.run(ExitStatus.BUSY)
    assert busy.at(2).start().missed == 1, "one that never began was missed"


def test_a_run_whose_process_died_is_gone_on_with_and_not_for_ever() -> None:
    host = Host().at(2.5)
    host.start()
    for deaths in range(1, MOST_DEATHS + 1):
        host.clock.advance(60.0)
        again = host.start()
        assert (due_hour(again), again.attempt.number, again.attempt.deaths) == (2.5, 1, deaths)
    decision = host.look()
    assert isinstance(decision, GiveUp)
    host.state = given_up(host.state, now_s=host.now_s)
    assert isinstance(host.look(), Wait)
    assert host.state.last is not None
    assert host.state.last.status is None


def test_a_dead_run_gives_way_to_the_next_time_and_is_told() -> None:
    host = Host().at(2.5)
    host.start()
    assert due_hour(host.at(3, day=1).start()) == 26.5
    assert host.state.last is not None
    assert (host.state.last.status, host.state.last.due_at_s) == (None, MIDNIGHT_S + 2.5 * HOUR_S)


def test_a_clock_that_goes_back_brings_no_time_again() -> None:
    host = Host().at(2.5)
    host.run()
    host.clock.jump_wall(-2 * HOUR_S)
    assert host.look() == Wait(until_s=MIDNIGHT_S + 26.5 * HOUR_S)


def test_a_clock_that_was_years_ahead_does_not_end_the_schedule() -> None:
    host = Host(retries=1)
    host.clock.jump_wall(4 * 365 * DAY_S)
    host.run(ExitStatus.FAILED)
    host.clock.jump_wall(-4 * 365 * DAY_S)
    assert host.look() == Wait(until_s=MIDNIGHT_S + 2.5 * HOUR_S)


def test_a_retry_does_not_wait_for_a_future_that_a_clock_made_up() -> None:
    host = Host(retries=1, backoff_s=60.0).at(2.5)
    host.run(ExitStatus.FAILED)
    host.clock.jump_wall(-HOUR_S)
    assert host.look() == Wait(until_s=host.now_s + 60.0)


def test_a_changed_time_counts_from_now_on() -> None:
    host = Host().at(2.5)
    host.run()
    host.at(12)
    host.plan = ScheduleSpec(cron="0 5 * * *")
    assert host.look() == Wait(until_s=MIDNIGHT_S + 29 * HOUR_S), "not as a missed 5 o'clock of this morning"
    host.plan = ScheduleSpec(cron="0 5 * * *", time_zone="Asia/Tokyo")
    assert host.look() == Wait(until_s=MIDNIGHT_S + 20 * HOUR_S)


class Trouble:
    """A host that is often off, whose runs fail, die, find the accelerator busy, or take longer than the interval."""

    def __init__(self, seed: int, missed: str) -> None:
        self.chance = random.Random(seed)
        self.host = Host(cron=self.chance.choice(["30 2 * * *", "0 * * * *", "*/20 * * * *"]), missed=missed, retries=2)
        self.first_s = self.host.state.handled_until_s
        self.begun: list[float] = []
        self.finished: list[float] = []
        self.left_out = 0

    def step(self, *, calm: bool = False) -> Decision:
        """One look, and what follows from it; with `calm` everything works."""
        host, decision = self.host, self.host.look()
        before_s = host.state.handled_until_s
        waited = host.state.retry is not None and host.state.retry.waits
        match decision:
            case Skip():
                self.left_out += decision.count if decision.until_s > before_s else 0
                host.state = skipped(host.state, decision, now_s=host.now_s)
            case GiveUp():
                host.state = given_up(host.state, now_s=host.now_s)
            case Start(attempt=attempt):
                if attempt.due_at_s > before_s:
                    self.begun.append(attempt.due_at_s)
                    self.left_out += decision.missed - waited
                host.start()
                self._run(attempt.due_at_s, "fine" if calm else self.chance.choice(["fine", "fails", "dies", "busy"]))
        return decision

    def _run(self, due_s: float, how: str) -> None:
        assert due_s <= self.host.now_s
        assert due_s not in self.finished, "it came to its end before"
        self.host.clock.advance(self.chance.choice([5.0, 900.0, 5 * HOUR_S]) if how != "busy" else 1.0)
        statuses = {"fine": ExitStatus.SUCCESS, "fails": ExitStatus.FAILED, "busy": ExitStatus.BUSY}
        if how in statuses:
            self.host.end(statuses[how])
        if how == "fine":
            self.finished.append(due_s)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("missed", ["run_once", "skip"])
def test_months_of_outages_and_crashes_run_nothing_twice_and_forget_nothing(seed: int, missed: str) -> None:
    trouble = Trouble(seed, missed)
    host = trouble.host
    for _ in range(100):
        host.clock.advance(trouble.chance.choice([60.0, 60.0, 60.0, 600.0, HOUR_S, 30 * HOUR_S]))
        trouble.step()
    while not isinstance(trouble.step(calm=True), Wait) or host.state.retry is not None:
        host.clock.advance(60.0)
    assert host.state.running is None
    assert host.state.retry is None
    assert trouble.begun == sorted(set(trouble.begun)), "each time once, in order"
    came = due_between(host.plan.cron, "UTC", trouble.first_s, host.now_s)
    assert came is not None
    assert came.many < 10_000, "counted to the end"
    assert came.many == len(trouble.begun) + trouble.left_out, "every time was begun, or is known to be left out"
    if missed == "run_once":
        assert trouble.begun[-1] == came.latest_s
