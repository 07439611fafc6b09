"""`run_due` on real files and locks: what is remembered, what a crash leaves, who is refused, what is said."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abswitch.errors import StoreError
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.schedules.running import Schedule, decision_of, run_due
from abswitch.experiments.schedules.state import ScheduleState, Shelf, at_a_glance, key_of, states_in
from tests.experiments.schedules.projects import HALF_PAST_2_S, Nights, Scripted, spec_file

ROOT = Path(__file__).parents[3]


class PowerCut(BaseException):
    """The process ends here and now: nothing of what follows is run."""


def test_nothing_is_due_then_it_runs_once(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    first = nights.look()
    assert (first.status, first.idle) == (ExitStatus.SUCCESS, True)
    assert first.words == "nothing to do before Mon 2026-06-01 02:30 UTC"
    assert nights.look_at(2.5).words == "ended with 0: the verdict is one that the plan calls success"
    assert nights.look().idle
    assert len(nights.launch.occasions) == 1
    assert nights.launch.occasions[0].endswith("@2026-06-01T02:30:00Z")
    assert nights.state.last is not None
    assert (nights.state.last.due_at_s, nights.state.last.status) == (HALF_PAST_2_S, ExitStatus.SUCCESS)


def test_what_runs_is_on_disk_before_it_begins(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    seen: list[ScheduleState] = []
    nights.launch.meanwhile = lambda: seen.append(nights.state)
    nights.look_at(2.5)
    running = seen[0].running
    assert running is not None
    assert (running.due_at_s, running.pid) == (HALF_PAST_2_S, os.getpid())
    assert seen[0].handled_until_s == HALF_PAST_2_S
    assert nights.state.running is None


def test_after_a_crash_the_same_occurrence_is_gone_on_with(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    nights.launch.ends = [PowerCut(), ExitStatus.SHIP]
    with pytest.raises(PowerCut):
        nights.look_at(2.5)
    assert nights.state.running is not None
    nights.clock.advance(60.0)
    assert nights.look().status is ExitStatus.SHIP
    assert len(set(nights.launch.occasions)) == 1, "the launch is told that it is the same"
    assert "going on with Mon 2026-06-01 02:30 UTC, whose process died" in nights.told.getvalue()
    nights.clock.advance(60.0)
    assert nights.look().idle


def test_a_run_that_kills_its_process_each_time_is_given_up(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    nights.launch.ends = [PowerCut()]
    nights.clock.advance(2.5 * 3600.0)
    for _ in range(4):
        with pytest.raises(PowerCut):
            nights.look()
    assert nights.look().idle
    assert "given up: its process died 4 times" in nights.told.getvalue()


def test_errors_are_tried_again_and_each_attempt_is_told(tmp_path: Path) -> None:
    nights = Nights(tmp_path, retries=1, backoff_s=120.0)
    nights.look()
    nights.launch.ends = [ExitStatus.FAILED]
    outcome = nights.look_at(2.5)
    assert outcome.status is ExitStatus.FAILED
    assert outcome.words == "it went wrong; attempt 2 of 2 after Mon 2026-06-01 02:32 UTC"
    nights.clock.advance(60.0)
    assert nights.look().idle
    nights.clock.advance(60.0)
    assert nights.look().words == "it went wrong"
    assert len(set(nights.launch.occasions)) == 1
    nights.clock.advance(3600.0)
    assert nights.look().idle


def test_a_bug_in_a_run_is_a_failure_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    nights.launch.ends = [ZeroDivisionError("by nothing")]
    outcome = nights.look_at(2.5)
    assert (outcome.status, outcome.words) == (ExitStatus.FAILED, "ZeroDivisionError: by nothing")
    assert "Traceback" in nights.told.getvalue()
    assert nights.state.last is not None
    assert nights.state.last.status == ExitStatus.FAILED


def test_what_a_person_interrupts_is_over(tmp_path: Path) -> None:
    nights = Nights(tmp_path, retries=3)
    nights.look()
    nights.launch.ends = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        nights.look_at(2.5)
    assert nights.state.last is not None
    assert nights.state.last.status == ExitStatus.INTERRUPTED
    assert nights.look().idle


def test_a_busy_accelerator_is_asked_again_at_each_look(tmp_path: Path) -> None:
    nights = Nights(tmp_path, wait_for_accelerator_s=30.0)
    nights.look()
    nights.launch.ends = [ExitStatus.BUSY, ExitStatus.BUSY, ExitStatus.SUCCESS]
    assert nights.look_at(2.5).words.endswith("; it is tried again at each look")
    assert [nights.look().status for _ in range(2)] == [ExitStatus.BUSY, ExitStatus.SUCCESS]
    assert nights.launch.waits_s == [30.0] * 3
    assert nights.look().idle


def test_skipped_times_are_told(tmp_path: Path) -> None:
    nights = Nights(tmp_path, missed="skip", grace_minutes=5.0)
    nights.look()
    assert nights.look_at(9, day=1).idle
    assert nights.launch.occasions == []
    words = "2 occurrences, the latest of Tue 2026-06-02 02:30 UTC, are more than 5 minutes late: skipped"
    assert words in nights.told.getvalue()
    assert nights.state.skipped == 2


def test_missed_times_are_run_once_and_told(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    nights.look_at(9, day=2)
    assert "due Wed 2026-06-03 02:30 UTC; 2 earlier one(s) were missed" in nights.told.getvalue()
    assert len(nights.launch.occasions) == 1


def test_a_clock_that_jumps_back_runs_nothing_again(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    nights.look_at(2.5)
    nights.clock.jump_wall(-7200.0)
    assert nights.look().words == "nothing to do before Tue 2026-06-02 02:30 UTC"
    nights.clock.jump_wall(-300 * 86_400.0)
    assert nights.look().words.startswith("nothing to do before"), "and one that was a year ahead is no end"
    nights.clock.advance(86_400.0)
    assert not nights.look().idle


HOLDER = """
import sys
from pathlib import Path
from abswitch.clock import VirtualClock
from abswitch.experiments.schedules.running import Schedule, run_due
from abswitch.experiments.launch import Launched
from abswitch.experiments.exits import ExitStatus

def launch(path, **_):
    print("running", flush=True)
    sys.stdin.readline()
    yield Launched(status=ExitStatus.SUCCESS, cell={})

outcome = run_due(Schedule(Path(sys.argv[1])), clock=VirtualClock(wall_s=float(sys.argv[2])), launch=launch)
print(int(outcome.status), outcome.words, flush=True)
"""


def other_process(path: Path, now_s: float) -> subprocess.Popen[str]:
    """Another process that runs what is due and holds on to it until a line arrives."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(now_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_at_once_and_a_killed_one(tmp_path: Path) -> None:
    """Overlap is refused while the other process lives; killed, it frees the schedule and is gone on with."""
    nights = Nights(tmp_path)
    nights.look()
    nights.clock.advance(2.5 * 3600.0)
    other = other_process(nights.path, nights.clock.wall_s())
    try:
        assert line_of(other) == "running"
        same = nights.look()
        assert (same.status, same.idle) == (ExitStatus.SUCCESS, True)
        assert same.words == f"under way since Mon 2026-06-01 02:30 UTC (process {other.pid})"
        later = nights.look_at(2.5, day=1)
        assert later.status is ExitStatus.BUSY
        assert "Tue 2026-06-02 02:30 UTC is due, but the run that began Mon 2026-06-01 02:30 UTC" in later.words
        assert nights.launch.occasions == []
        assert at_a_glance(nights.schedule.shelf, nights.path, HALF_PAST_2_S + 60.0) is ExitStatus.SUCCESS
    finally:
        other.kill()
        other.communicate(timeout=200)
    assert at_a_glance(nights.schedule.shelf, nights.path, HALF_PAST_2_S + 60.0) is None, "it died: look closer"
    nights.clock.jump_wall(60.0 + HALF_PAST_2_S - nights.clock.wall_s())
    assert not nights.look().idle
    assert "whose process died" in nights.told.getvalue()


def test_of_processes_that_look_in_the_same_moment_one_runs_it(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    others = [other_process(nights.path, HALF_PAST_2_S) for _ in range(2)]
    said = [other.communicate("\n", timeout=200)[0] for other in others]
    assert sum("running" in words for words in said) == 1, said
    assert all(other.returncode == 0 for other in others)


def test_a_damaged_state_is_set_aside_and_nothing_runs_twice(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    nights.look_at(2.5)
    nights.schedule.shelf.state.write_text("{not json")
    with pytest.raises(StoreError, match="cannot be read"):
        decision_of(nights.schedule, nights.schedule.spec(), nights.clock.wall_s())
    nights.clock.advance(60.0)
    assert nights.look().idle
    assert "set aside as" in nights.told.getvalue()
    assert len(nights.launch.occasions) == 1
    assert not nights.look_at(2.5, day=1).idle


def test_a_state_of_another_version_is_not_guessed_at(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    state = nights.schedule.shelf.state
    state.write_text(json.dumps(json.loads(state.read_text()) | {"version": 99}))
    with pytest.raises(StoreError, match="version 99"):
        nights.schedule.shelf.read()


def test_a_spec_that_went_wrong_or_away_is_told_once_and_mended_at_once(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    shelf, good = nights.schedule.shelf, nights.path.read_text()
    nights.path.write_text(good.replace("30 2", "61 2"))
    outcome = nights.look_at(2.5)
    assert outcome.status is ExitStatus.BAD_SPEC
    assert "schedule.cron: got '61 2 * * *'" in outcome.words
    assert at_a_glance(shelf, nights.path, nights.clock.wall_s()) is ExitStatus.BAD_SPEC, "known already"
    nights.path.unlink()
    assert at_a_glance(shelf, nights.path, nights.clock.wall_s()) is None, "that is news"
    assert nights.look().status is ExitStatus.NO_SPEC
    assert at_a_glance(shelf, nights.path, nights.clock.wall_s()) is ExitStatus.NO_SPEC
    nights.path.write_text(good)
    assert not nights.look().idle, "mended, it runs what was due"


def test_a_spec_without_a_schedule_is_refused(tmp_path: Path) -> None:
    path = spec_file(tmp_path, schedule=None)
    outcome = run_due(Schedule(path), launch=Scripted())
    assert outcome.status is ExitStatus.BAD_SPEC
    assert "schedule: got None; allowed: a schedule" in outcome.words
    assert not (tmp_path / "reports").exists(), "nothing was written for it"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    (tmp_path / "reports").write_text("in the way")
    outcome = nights.look()
    assert outcome.status is ExitStatus.CANNOT_WRITE
    assert str(tmp_path / "reports") in outcome.words


def test_a_glance_says_when_a_closer_look_is_needed(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    shelf = nights.schedule.shelf
    assert at_a_glance(shelf, nights.path, nights.clock.wall_s()) is None, "never seen"
    nights.look()
    now_s = nights.clock.wall_s()
    assert at_a_glance(shelf, nights.path, now_s + 60.0) is ExitStatus.SUCCESS
    assert at_a_glance(shelf, nights.path, HALF_PAST_2_S) is None, "due"
    assert at_a_glance(shelf, nights.path, now_s - 1.0) is None, "the clock went back"
    os.utime(nights.path, ns=(1, 1))
    assert at_a_glance(shelf, nights.path, now_s + 60.0) is None, "the spec was changed"
    shelf.state.write_text("")
    assert at_a_glance(shelf, nights.path, now_s + 60.0) is None, "damaged"


def test_what_was_adopted_counts_from_then_on(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.schedule.adopt(nights.clock)
    before = nights.state
    nights.clock.advance(3600.0)
    nights.schedule.adopt(nights.clock)
    assert nights.state == before
    assert nights.look_at(9).idle is False, "it came while nobody looked"


def test_keys_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    one, two = spec_file(tmp_path / "a"), spec_file(tmp_path / "b")
    assert key_of(one) != key_of(two)
    assert key_of(one) == key_of(one.parent / ".." / "experiments" / one.name)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", key_of(Path("x/süß & böse.yaml")))


def test_a_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "nightly-1")
    shelf.roomy_log().write_text("small")
    assert shelf.roomy_log().read_text() == "small"
    shelf.log.write_bytes(b"x" * ((1 << 20) + 1))
    assert not shelf.roomy_log().exists()
    assert shelf.log.with_suffix(".log.1").stat().st_size > 1 << 20


def test_states_are_found_again(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.look()
    (nights.schedule.shelf.folder / "broken.json").write_text("[]")
    found = states_in(tmp_path / "reports")
    assert [(shelf, state.spec) for shelf, state in found] == [
        (Shelf(tmp_path / "reports", key_of(nights.path)), str(nights.path))
    ]
