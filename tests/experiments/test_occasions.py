"""Runs of an occasion: the same one goes on with its own, is never run again once finished, and leaves others alone."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from abswitch.clock import VirtualClock
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.launch import launch
from abswitch.experiments.runs import RunFolder, open_run
from abswitch.experiments.schedules.running import Schedule, run_due
from abswitch.experiments.spec import spec_of
from tests.experiments.projects import SPEC, finishing, project_in
from tests.experiments.schedules.projects import HALF_PAST_2_S
from tests.experiments.test_watch import result_with

COUNTED = (
    "import pathlib\nwith pathlib.Path(project_dir, 'executed.txt').open('a') as log:\n    log.write(run_dir + '\\n')"
)
PARAMETERS = 'run_dir: str = ""\nproject_dir: str = ""'


def opened(tmp_path: Path, occasion: str, **more: object) -> RunFolder:
    return open_run(spec_of(SPEC | more), reports=tmp_path, project=tmp_path, occasion=occasion)


def test_each_occasion_has_its_own_run(tmp_path: Path) -> None:
    by_hand = opened(tmp_path, "")
    monday = opened(tmp_path, "monday")
    assert monday.path != by_hand.path, "what somebody left unfinished is theirs"
    assert opened(tmp_path, "monday").path == monday.path
    tuesday = opened(tmp_path, "tuesday")
    assert tuesday.path != monday.path, "and what is left of yesterday is yesterday's"
    assert tuesday.state.occasion == "tuesday"


def test_a_finished_one_is_given_whatever_became_of_the_spec(tmp_path: Path) -> None:
    monday = opened(tmp_path, "monday")
    assert opened(tmp_path, "monday", seed=1).path != monday.path, "unfinished, and of another spec: begun anew"
    again = opened(tmp_path, "monday", seed=1)
    again.finish(result_with(None, again.path.name))
    assert opened(tmp_path, "monday", seed=2).path == again.path


def executed(project: Path) -> list[str]:
    path = project / "executed.txt"
    return path.read_text().splitlines() if path.is_file() else []


def test_a_finished_occasion_is_not_executed_again(tmp_path: Path) -> None:
    path = project_in(tmp_path, COUNTED, finishing(20), parameters=PARAMETERS)
    first, second = (list(launch(path, occasion="monday", told=io.StringIO())) for _ in range(2))
    assert [one.status for one in (*first, *second)] == [ExitStatus.KEEP] * 2
    assert first[0].folder == second[0].folder
    assert len(executed(tmp_path)) == 1


def test_of_a_matrix_only_what_is_left_is_executed(tmp_path: Path) -> None:
    path = project_in(tmp_path, COUNTED, finishing(), parameters=PARAMETERS, matrix={"seed": [1, 2]})
    next(launch(path, occasion="monday", told=io.StringIO()))  # the process dies after the first
    assert len(executed(tmp_path)) == 1
    assert [one.status for one in launch(path, occasion="monday", told=io.StringIO())] == [ExitStatus.SUCCESS] * 2
    assert len(set(executed(tmp_path))) == len(executed(tmp_path)) == 2


def test_a_crash_between_the_runs_end_and_its_being_noted_runs_nothing_twice(tmp_path: Path) -> None:
    path = project_in(
        tmp_path, COUNTED, finishing(), parameters=PARAMETERS, schedule={"cron": "30 2 * * *"}
    )  # fmt: skip
    clock, schedule = VirtualClock(wall_s=HALF_PAST_2_S), Schedule(path)
    schedule.adopt(clock)
    before = schedule.shelf.folder.parent / "before.json"

    def noted_not(*_: object) -> None:
        shutil.copy(schedule.shelf.state, before)

    run_due(schedule, clock=clock, told=io.StringIO(), on_ended=noted_not)
    before.replace(schedule.shelf.state)  # as it was when the process died
    state = schedule.shelf.read()
    assert state is not None
    assert state.running is not None
    clock.advance(60.0)
    assert run_due(schedule, clock=clock, told=io.StringIO()).status is ExitStatus.SUCCESS
    assert len(executed(tmp_path)) == 1
    state = schedule.shelf.read()
    assert state is not None
    assert state.last is not None
    assert (state.running, state.last.status) == (None, ExitStatus.SUCCESS)
