"""Folders of runs: which one the same command goes on with, and what is on disk at every moment."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.runs import RunFolder, RunResult, open_run, runs_of, unfinished_run, working_on
from abswitch.experiments.spec import ExperimentSpec, spec_of

PLAIN: dict[str, Any] = {
    "name": "sums",
    "model_id": "adder",
    "versions": {"v1": {"model": "a"}, "v2": {"model": "b"}},
    "baseline": "v1",
    "candidate": "v2",
    "prompts": {"items": ["1+1="]},
    "metrics": [{"kind": "rate", "column": "error"}],
}


def spec(**fields: Any) -> ExperimentSpec:
    return spec_of(PLAIN | fields)


def begun(tmp_path: Path, **fields: Any) -> RunFolder:
    return open_run(spec(**fields), reports=tmp_path, project=tmp_path)


def ended(run: RunFolder, status: ExitStatus = ExitStatus.SUCCESS) -> RunResult:
    result = RunResult(
        run_id=run.state.run_id,
        experiment="sums",
        exit_status=int(status),
        decision="ship",
        headline="SHIP v2",
        reasons=("because", "and"),
        requests={"sent": 1, "answered": 1, "failed": 0, "lost": 0},
        started_at_s=1.0,
        ended_at_s=2.0,
        alerts=("worse",),
    )
    run.finish(result)
    return result


def test_a_new_run_keeps_its_whole_spec_and_says_where_it_stands(tmp_path: Path) -> None:
    run = open_run(spec(seed=3), reports=tmp_path, project=tmp_path / "p", cell={"seed": 3})
    assert run.path.parent == tmp_path / "sums"
    assert run.path.name.endswith(spec(seed=3).digest()[:8])
    assert RunFolder(run.path).spec == spec(seed=3)
    state = run.state
    assert (state.run_id, state.experiment, state.status, state.attempts) == (run.path.name, "sums", "running", 0)
    assert (run.project, dict(state.cell), run.result) == (tmp_path / "p", {"seed": 3}, None)


def test_the_same_spec_goes_on_with_its_unfinished_run_and_another_does_not(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert begun(tmp_path).path == run.path
    assert begun(tmp_path, description="in other words").path == run.path, "the description decides nothing"
    assert begun(tmp_path, seed=1).path != run.path
    assert open_run(spec(), reports=tmp_path, project=tmp_path, fresh=True).path != run.path


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path) -> None:
    run = begun(tmp_path)
    result = ended(run)
    assert run.result == result == RunResult.read(run.path / "result.json")
    assert run.state.status == "finished"
    assert unfinished_run(spec(), tmp_path) is None
    assert begun(tmp_path).path != run.path


def test_each_attempt_is_counted_with_its_process(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.update(status="failed")
    working_on(run)
    state = working_on(run)
    assert (state.attempts, state.status) == (2, "running")
    assert state.pid is not None


def test_runs_come_latest_first_and_strangers_are_passed_over(tmp_path: Path) -> None:
    runs = [open_run(spec(seed=seed), reports=tmp_path, project=tmp_path) for seed in range(3)]
    (tmp_path / "sums/notes").mkdir()
    (tmp_path / "sums/file.txt").touch()
    found = [run.path.name for run in runs_of("sums", tmp_path)]
    assert found == sorted((run.path.name for run in runs), reverse=True)
    assert list(runs_of("nothing", tmp_path)) == []


@pytest.mark.parametrize("missing", ["spec.json", "run.json"])
def test_a_folder_that_is_no_run(tmp_path: Path, missing: str) -> None:
    run = begun(tmp_path)
    (run.path / missing).unlink()
    with pytest.raises(InvalidInput, match=f"run_dir.*{missing}"):
        RunFolder(run.path)


def test_two_commands_at_once_open_one_run(tmp_path: Path) -> None:
    found: list[Path] = []
    gate = threading.Barrier(4)

    def open_it() -> None:
        gate.wait()
        found.append(begun(tmp_path).path)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_who_works_on_a_run_does_so_alone_until_the_process_ends(tmp_path: Path) -> None:
    run = begun(tmp_path)
    code = (
        "import sys; from abswitch.experiments.runs import RunFolder\n"
        "with RunFolder(sys.argv[1]).held('kernel', 0.0): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    try:
        with pytest.raises(SwitchRefused, match=r"under way in another process \(kernel"), run.held("kernel", 0.0):
            pytest.fail("it was held")
        with run.held("command", 0.0):
            pass
    finally:
        other.kill()
        other.wait()
    run.wait_for_orphan()
    with run.held("kernel", 0.0):
        pass


def test_a_reports_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text("a file")
    with pytest.raises(OSError, match="sums"):
        begun(tmp_path)
