"""`run_due`: runs what is due of one schedule. What is remembered is on disk before anything begins, and at its end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TextIO

from abswitch.clock import Clock, SystemClock
from abswitch.errors import InvalidInput, StoreError, SwitchRefused
from abswitch.experiments.exits import ExitStatus, worst
from abswitch.experiments.launch import Launched, launch
from abswitch.experiments.project import project_of
from abswitch.experiments.schedules.deciding import (
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
    quiet,
    skipped,
)
from abswitch.experiments.schedules.occurrences import due_between, in_zone, next_after
from abswitch.experiments.schedules.state import ScheduleState, Shelf, Stamp, key_of
from abswitch.experiments.spec import ExperimentSpec
from abswitch.experiments.spec_parts import ScheduleSpec
from abswitch.experiments.specfile import read_spec
from abswitch.experiments.watch import send_alerts


class Launch(Protocol):
    """How a spec is run: `launch`."""

    def __call__(
        self,
        path: Path,
        *,
        reports: Path | None,
        wait_s: float,
        told: TextIO | None,
        occasion: str,
    ) -> Iterator[Launched]:
        """Run it, each run given as it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a look at a schedule came to.

    Attributes:
        words: one line for people.
        idle: nothing was to be done.
    """

    status: ExitStatus
    words: str
    idle: bool = False


class NotScheduled(InvalidInput):
    """A spec that is to run by itself has no schedule."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One spec's schedule, with its place on disk.

    Args:
        path: of the spec.
        reports: folder of the reports; `reports` in the spec's project by default.
    """

    path: Path
    reports: Path | None = None

    @property
    def shelf(self) -> Shelf:
        """Its files."""
        return Shelf(self.reports or project_of(self.path) / "reports", key_of(self.path))

    def spec(self) -> ScheduleSpec:
        """When it runs, as the file says now.

        Raises:
            NotScheduled: it has no schedule.
            InvalidInput: it is no spec.
            OSError: it is not there.
        """
        return self.experiment()[1]

    def experiment(self) -> tuple[ExperimentSpec, ScheduleSpec]:
        """What runs, and when; raises as `spec`."""
        whole = read_spec(self.path)
        if whole.schedule is None:
            raise NotScheduled(f"{self.path}: schedule", None, "a schedule, for what is to run by itself")
        return whole, whole.schedule

    def state(self, schedule: ScheduleSpec, now_s: float) -> ScheduleState:
        """What is remembered, for the schedule as it is today.

        Raises:
            StoreError: the state's file is damaged.
        """
        known = self.shelf.read() or ScheduleState(spec=str(self.path.expanduser().resolve()))
        return fitted(schedule, known, now_s)

    def adopt(self, clock: Clock | None = None) -> None:
        """Remember it from now on, where nothing is remembered yet.

        Raises:
            InvalidInput, OSError: as `spec`, or the folder cannot be written.
            StoreError: the state's file is damaged.
        """
        state = self.state(self.spec(), (clock or SystemClock()).wall_s())
        self.shelf.folder.mkdir(parents=True, exist_ok=True)
        if self.shelf.read() is None:
            self.shelf.write(state)


def run_due(
    schedule: Schedule,
    *,
    clock: Clock | None = None,
    launch: Launch = launch,
    told: TextIO | None = None,
    on_ended: Callable[[Launched], None] = lambda _: None,
) -> Outcome:
    """Run it where it is due. What another process works on is left alone; what one died over is gone on with.

    Args:
        told: where to say what is going on; standard error by default.
        on_ended: called with each run as it ends.

    Returns:
        The worst status of what was run; `BUSY` when an occurrence came while an earlier one is still under way.
    """
    look = _Look(schedule, clock or SystemClock(), launch, told or sys.stderr, on_ended)
    try:
        look.whole, plan = schedule.experiment()
    except OSError as error:
        return look.problem(ExitStatus.NO_SPEC, f"{error.strerror}: {schedule.path}")
    except InvalidInput as error:
        return look.problem(ExitStatus.BAD_SPEC, str(error))
    try:
        with _held(schedule.shelf):
            return look.closer(plan)
    except SwitchRefused:
        return look.overlapping(plan)
    except OSError as error:
        return Outcome(status=ExitStatus.CANNOT_WRITE, words=f"cannot write to {schedule.shelf.folder}: {error}")


@contextmanager
def _held(shelf: Shelf) -> Iterator[None]:
    """Work on the schedule alone; a process that ends lets go of it, however it ends."""
    from filelock import FileLock, Timeout

    shelf.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(shelf.lock, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SwitchRefused(f"{shelf.key} is run by another process") from None
    try:
        yield
    finally:
        lock.release()


@dataclass(slots=True)
class _Look:
    schedule: Schedule
    clock: Clock
    launch: Launch
    told: TextIO
    on_ended: Callable[[Launched], None]
    whole: ExperimentSpec | None = None

    @property
    def _shelf(self) -> Shelf:
        return self.schedule.shelf

    def _say(self, words: str) -> None:
        self.told.write(f"{self.schedule.path.name}: {words}\n")

    def problem(self, status: ExitStatus, words: str) -> Outcome:
        """The spec cannot be read; a known schedule remembers why."""
        try:
            if self._shelf.read() is not None:
                with _held(self._shelf):
                    state = self._shelf.read()
                    if state is not None:
                        self._shelf.write(replace(state, problem=words, stamp=Stamp.of(self.schedule.path)))
        except (SwitchRefused, StoreError, OSError):
            pass  # it is told all the same, and told again
        return Outcome(status=status, words=words)

    def overlapping(self, plan: ScheduleSpec) -> Outcome:
        """Another process runs it."""
        try:
            state = self._shelf.read()
        except StoreError:
            state = None
        if state is None or state.running is None:
            return Outcome(status=ExitStatus.SUCCESS, words="another process is looking at it", idle=True)
        due = due_between(plan.cron, plan.time_zone, state.running.due_at_s, self.clock.wall_s())
        began = in_zone(state.running.started_at_s, plan.time_zone)
        if due is None:
            words = f"under way since {began} (process {state.running.pid})"
            return Outcome(status=ExitStatus.SUCCESS, words=words, idle=True)
        when = in_zone(due.latest_s, plan.time_zone)
        words = f"{when} is due, but the run that began {began} is still under way (process {state.running.pid})"
        return Outcome(status=ExitStatus.BUSY, words=words)

    def closer(self, plan: ScheduleSpec) -> Outcome:
        """Decide and do, alone."""
        stamp = Stamp.of(self.schedule.path)
        state = replace(self._state(plan), stamp=stamp)
        while True:
            now_s = self.clock.wall_s()
            decision = decide(plan, state, now_s)
            match decision:
                case Skip():
                    self._say(_skip_words(decision, plan))
                    state = skipped(state, decision, now_s=now_s)
                case GiveUp():
                    words = f"given up: its process died {decision.attempt.deaths + 1} times"
                    self._say(words)
                    state = given_up(state, now_s=now_s)
                    self._shelf.write(state)
                    self._alert(ExitStatus.FAILED, words)
                case Wait():
                    self._shelf.write(quiet(state, decision.until_s, now_s=now_s))
                    return Outcome(status=ExitStatus.SUCCESS, words=_wait_words(decision, plan), idle=True)
                case Start():
                    return self._run(plan, state, decision)

    def _state(self, plan: ScheduleSpec) -> ScheduleState:
        now_s = self.clock.wall_s()
        try:
            return self.schedule.state(plan, now_s)
        except StoreError as error:
            aside = self._shelf.state.with_suffix(".damaged")
            self._shelf.state.replace(aside)
            self._say(f"{error}; set aside as {aside.name}, the schedule begins anew")
            return self.schedule.state(plan, now_s)

    def _run(self, plan: ScheduleSpec, state: ScheduleState, start: Start) -> Outcome:
        now_s = self.clock.wall_s()
        next_s = next_after(plan.cron, plan.time_zone, now_s)
        state = quiet(begun(state, start, now_s=now_s, pid=os.getpid()), next_s, now_s=now_s)
        self._shelf.write(state)
        self._say(_start_words(start, plan))
        try:
            status, words = self._launched(plan, start)
        except KeyboardInterrupt:
            self._over(plan, state, ExitStatus.INTERRUPTED)
            raise
        following = self._over(plan, state, status)
        if not following:
            self._alert(status, words)
        return Outcome(status=status, words=words + following)

    def _alert(self, status: ExitStatus, words: str) -> None:
        """A watch that fell silent would look like one that found nothing. Regressions were told by the run itself."""
        if self.whole is None or self.whole.watch is None or status in (ExitStatus.SUCCESS, ExitStatus.REGRESSED):
            return
        headline = f"the scheduled run of {self.whole.name} did not succeed"
        problem = send_alerts(self.whole.name, [words], self.whole.watch, headline=headline)
        if problem is not None:
            self._say(f"the alert was not posted: {problem}")

    def _launched(self, plan: ScheduleSpec, start: Start) -> tuple[ExitStatus, str]:
        due = datetime.fromtimestamp(start.attempt.due_at_s, UTC)
        statuses, problems = [], []
        try:
            for one in self.launch(
                self.schedule.path,
                reports=self.schedule.reports,
                wait_s=plan.wait_for_accelerator_s,
                told=self.told,
                occasion=f"{self._shelf.key}@{due:%Y-%m-%dT%H:%M:%SZ}",
            ):
                self.on_ended(one)
                statuses.append(one.status)
                problems += [one.problem] if one.problem else []
        except Exception as error:
            self.told.write(traceback.format_exc())
            return ExitStatus.FAILED, f"{type(error).__name__}: {error}"
        status = _status_of(statuses)
        return status, problems[0] if problems else f"ended with {int(status)}: {status.meaning}"

    def _over(self, plan: ScheduleSpec, state: ScheduleState, status: ExitStatus) -> str:
        """Write how it ended; what comes next in words."""
        now_s = self.clock.wall_s()
        state = ended(plan, state, status, now_s=now_s)
        following = decide(plan, state, now_s)
        quiet_until_s = following.until_s if isinstance(following, Wait) else now_s  # it looks again at once
        self._shelf.write(quiet(state, quiet_until_s, now_s=now_s))
        if state.retry is None:
            return ""
        if state.retry.waits:
            return "; it is tried again at each look"
        again = in_zone(state.retry.not_before_s, plan.time_zone)
        return f"; attempt {state.retry.number} of {plan.retries + 1} after {again}"


def _status_of(statuses: list[ExitStatus]) -> ExitStatus:
    """Of several runs: errors first; then that some could not begin; then the worst verdict."""
    failed = [status for status in statuses if status.is_error and status is not ExitStatus.BUSY]
    return worst(failed or statuses)


def _start_words(start: Start, plan: ScheduleSpec) -> str:
    due = in_zone(start.attempt.due_at_s, plan.time_zone)
    if start.attempt.deaths:
        return f"going on with {due}, whose process died"
    if start.attempt.number > 1:
        return f"attempt {start.attempt.number} of {plan.retries + 1} for {due}"
    return f"due {due}" + (f"; {start.missed} earlier one(s) were missed" if start.missed else "")


def _skip_words(skip: Skip, plan: ScheduleSpec) -> str:
    when = in_zone(skip.until_s, plan.time_zone)
    many = f"{skip.count} occurrences, the latest of {when}, are" if skip.count > 1 else f"{when} is"
    return f"{many} more than {plan.grace_minutes:g} minutes late: skipped, as the spec says"


def _wait_words(wait: Wait, plan: ScheduleSpec) -> str:
    return "it never comes" if wait.until_s is None else f"nothing to do before {in_zone(wait.until_s, plan.time_zone)}"


def decision_of(schedule: Schedule, plan: ScheduleSpec, now_s: float) -> Decision:
    """What `run_due` would do now; nothing is changed.

    Raises:
        StoreError: the state's file is damaged.
    """
    return decide(plan, schedule.state(plan, now_s), now_s)
