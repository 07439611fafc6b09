"""`abswitch run` and `abswitch spec`, from the command line's words to exit statuses; notebooks of a few lines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from abswitch import cli
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.launch import Launched, launch, planned
from abswitch.experiments.locks import holding
from abswitch.experiments.runs import RunFolder, open_run
from abswitch.experiments.specfile import read_spec
from tests.experiments.projects import ROOT, finishing, project_in, write_notebook


@pytest.fixture(autouse=True)
def _locks_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABSWITCH_LOCK_DIR", str(tmp_path / "locks"))


def launched(spec: Path, *settings: str, **options: Any) -> list[Launched]:
    return list(launch(spec, settings, told=io.StringIO(), **options))


# --- nothing is started when something is wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metrics": []}, "exactly one metric"),
        ({"metrics": [{"kind": "rate", "column": "exact"}]}, "did you mean 'exact_match'"),
        ({"metrics": [{"kind": "paired", "column": "exact_match"}]}, "no prompt meets both"),
        ({"design": {"kind": "paired"}, "metrics": [{"kind": "quantile", "column": "latency_s", "q": 0.9}]}, "metrics"),
        ({"prompts": {"kind": "jsonl", "path": "none.jsonl"}}, "a file that exists"),
        ({"prompts": {"items": ["a", 3]}}, r"prompts\[1\]"),
        ({"prompts": {"kind": "generator", "function": "parts:nothing"}}, "prompts.function"),
        ({"prompts": {"kind": "generator", "function": "parts:problems"}}, "missing a required argument: 'n'"),
        ({"prompts": {"kind": "generator", "function": "nowhere:f"}}, "No module named 'nowhere'"),
        ({"load": {"kind": "trace", "path": "none.csv"}}, "load.path"),
        ({"scorers": [{"kind": "function", "function": "parts:ASKED", "name": "exact_match"}]}, "can be called"),
        ({"notebook": {"path": "notebooks/none.ipynb"}}, "a notebook that exists"),
        ({"notebook": {"path": "notebooks/n.ipynb", "parameters": {"color": 1}}}, "notebook.parameters.color"),
        ({"notebook": {"path": "notebooks/n.ipynb", "parameters": {"run_dir": "x"}}}, "notebook.parameters.run_dir"),
        ({"engine": {"backends": {"scripted": {"function": "parts:adder"}}}}, "engine.backends.scripted.arguments"),
        ({"judge": {"version": {"model": {"function": "parts:none"}}}}, "judge.version.model.function"),
        ({"judge": {"version": {"model": "/no/such/model"}}}, "judge.version.model: got '/no/such/model'"),
        ({"versions": {"v58": {"model": "not an id!"}, "v95": {"model": "b"}}}, "versions.v58.model: got 'not an id!'"),
        (
            {"versions": {"v58": {"model": "a"}, "v95": {"model": "b", "adapter": "./none"}}},
            "versions.v95.adapter: got",
        ),
        (
            {"design": {"kind": "canary", "guardrails": [{"metric": "exact", "min": 0.5}]}, "budget": {"requests": 9}},
            "design.guardrails.0.metric",
        ),
        ({"matrix": {"load.concurrency": [4, 0]}}, "load.concurrency=0"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_spec_that_cannot_run_is_told_before_anything_starts(
    tmp_path: Path, fields: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = project_in(tmp_path, finishing(), **fields)
    assert cli.main(["run", str(spec)]) == ExitStatus.BAD_SPEC
    told = capsys.readouterr()
    assert words in told.err.replace("\\", "") or words.replace("\\", "") in told.err
    assert str(spec) in told.err or "notebook" in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert not (tmp_path / "reports").exists()
    assert cli.main(["spec", str(spec)]) == ExitStatus.BAD_SPEC


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("load.concurrency", "key=value"),
        ("load.concurrency=0", "at least 1"),
        ("load.concurency=4", "did you mean 'concurrency'"),
        ("versions.v96.model=x", "one of the versions: v58, v95, v20"),
        ("sede=3", "did you mean 'seed'"),
        ("colour=red", "did you mean 'color'"),
        ("run_dir=/tmp", "a parameter of its notebook: color"),
        ("metrics.0.column=exact", "did you mean 'exact_match'"),
        ("notebook.path=notebooks/other.ipynb", "a notebook that exists"),
    ],
)
def test_a_setting_that_is_wrong_is_the_command_lines_fault(
    tmp_path: Path, setting: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = project_in(tmp_path, finishing(), parameters='run_dir: str = ""\ncolor: str = "blue"')
    assert cli.main(["run", str(spec), "-p", setting]) == ExitStatus.USAGE
    assert words in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()


def test_a_wrong_file_is_not_blamed_on_a_harmless_setting(tmp_path: Path) -> None:
    spec = project_in(tmp_path, finishing(), metrics=[])
    (one,) = launched(spec, "seed=3")
    assert one.status is ExitStatus.BAD_SPEC


def test_what_the_file_lacks_may_come_from_the_command_line(tmp_path: Path) -> None:
    spec = project_in(tmp_path, finishing(), prompts={"kind": "jsonl", "path": "none.jsonl"})
    (tmp_path / "some.jsonl").write_text('{"prompt": "1+1="}\n')
    (run,) = planned(spec, ["prompts.path=some.jsonl"])
    assert run.spec.prompts.kind == "jsonl"


def test_there_is_no_such_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path / "none.yaml")]) == ExitStatus.NO_SPEC
    assert "none.yaml: No such file or directory" in capsys.readouterr().err


def test_a_folder_for_reports_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = project_in(tmp_path, finishing())
    (tmp_path / "file").write_text("")
    status = cli.main(["run", str(spec), "--reports", str(tmp_path / "file" / "reports")])
    assert status == ExitStatus.CANNOT_WRITE
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "SPEC"),
        (["run", "x.yaml", "--wait", "-1"], "seconds, zero or more"),
        (["run", "x", "--colour"], "--co"),
    ],
)
def test_a_command_line_that_is_wrong(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == ExitStatus.USAGE
    assert words in capsys.readouterr().err


# --- abswitch spec --------------------------------------------------------------------------------------------------


def test_specs_are_checked_without_running_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = project_in(tmp_path / "good", finishing(), matrix={"seed": [1, 2]})
    bad = project_in(tmp_path / "bad", finishing(), metrics=[])
    assert cli.main(["spec", str(good)]) == ExitStatus.SUCCESS
    assert capsys.readouterr().out == f"{good}: sums, 2 runs\n  seed=1\n  seed=2\n"
    assert cli.main(["spec", str(good), str(bad)]) == ExitStatus.BAD_SPEC
    told = capsys.readouterr()
    assert "sums, 2 runs" in told.out
    assert "exactly one metric" in told.err
    assert cli.main(["spec", str(good), "-p", "sede=1"]) == ExitStatus.USAGE


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_can_be_run(path: Path) -> None:
    (run,) = planned(path)
    assert run.spec.name == path.stem
    assert run.spec.description


def test_the_schema_is_printed_for_editors(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["spec", "--schema"]) == ExitStatus.SUCCESS
    assert json.loads(capsys.readouterr().out)["title"] == "abswitch experiment"
    assert cli.main(["spec"]) == ExitStatus.USAGE
    assert "either SPEC or --schema" in capsys.readouterr().err


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_executes_the_notebook_with_its_parameters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = project_in(
        tmp_path,
        "import os; os.system('echo said by a process')",
        "from pathlib import Path; Path(run_dir, 'seen.txt').write_text(f'{color} {size}')",
        finishing(),
        parameters='run_dir: str = ""\ncolor: str = "blue"\nsize: int = 1',
        notebook={"path": "notebooks/n.ipynb", "parameters": {"size": 2}},
    )
    assert cli.main(["run", str(spec), "-p", "color=red", "-p", "seed=7"]) == ExitStatus.SUCCESS
    told = capfd.readouterr()
    (folder,) = (tmp_path / "reports/sums").glob("2*")
    assert (folder / "seen.txt").read_text() == "red 2"
    assert RunFolder(folder).spec.seed == 7
    assert "100%" in told.err, "papermill's bar came to its end"
    assert "said by a process" not in told.out + told.err
    assert "said by a process" in (folder / "n.log").read_text()
    assert "Verdict   SHIP it\n          because\nRequests  3 sent, 3 answered, 0 failed, 0 lost" in told.out
    assert f"Exit      0: {ExitStatus.SUCCESS.meaning}" in told.out
    assert f"Folder    {folder}" in told.out
    state = RunFolder(folder).state
    assert (state.status, state.project) == ("running", str(tmp_path)), "`Experiment.finish` says when it is finished"


def test_the_verdicts_class_is_the_exit_status(tmp_path: Path) -> None:
    (one,) = launched(project_in(tmp_path, finishing(ExitStatus.KEEP)))
    assert one.status is ExitStatus.KEEP
    assert not one.status.is_error
    assert one.result is not None and one.result.headline == "SHIP it"


def test_a_matrix_is_run_after_run_and_the_worst_status_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = project_in(tmp_path, finishing("10 * spec['seed']"), matrix={"seed": [0, 4, 1]})
    assert cli.main(["run", str(spec)]) == ExitStatus.INCONCLUSIVE
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.startswith("Of ")] == [
        f"Of        seed={seed}" for seed in (0, 4, 1)
    ]
    assert "run 2 of 3: seed=4" in told.err
    folders = sorted((tmp_path / "reports/sums").glob("2*"))
    assert sorted(dict(RunFolder(folder).state.cell)["seed"] for folder in folders) == [0, 1, 4]


def test_a_run_of_a_matrix_that_fails_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    spec = project_in(tmp_path, finishing("{2: 0}[spec['seed']]"), matrix={"seed": [1, 2]})
    assert [one.status for one in launched(spec)] == [ExitStatus.FAILED, ExitStatus.SUCCESS]


# --- what goes wrong on the way -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "status", "words"),
    [
        ("raise RuntimeError('no luck')", ExitStatus.FAILED, "RuntimeError: no luck"),
        (
            "from abswitch.errors import UnknownVersion\nraise UnknownVersion('version', 'v9', 'v1')",
            ExitStatus.BAD_SPEC,
            "version: got 'v9'; allowed: v1",
        ),
        ("import os; os._exit(9)", ExitStatus.FAILED, "kernel died"),
        ("import threading; threading.Event().wait(60)", ExitStatus.TIMED_OUT, "took longer than 2 s"),
        ("pass", ExitStatus.FAILED, "without `finish`"),
    ],
)
def test_a_notebook_that_does_not_come_to_a_verdict(tmp_path: Path, cell: str, status: ExitStatus, words: str) -> None:
    spec = project_in(tmp_path, cell, notebook={"path": "notebooks/n.ipynb", "cell_timeout_s": 2})
    (one,) = launched(spec)
    assert one.status is status
    assert words in one.problem
    assert one.result is None
    assert one.folder is not None
    run = RunFolder(one.folder)
    assert run.state.status == "failed"
    again = open_run(read_spec(spec), reports=tmp_path / "reports", project=tmp_path)
    assert again.path == one.folder, "the same command goes on with it"


def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    spec = project_in(tmp_path, finishing())
    monkeypatch.setattr("papermill.execute_notebook", full)
    monkeypatch.setattr(RunFolder, "update", full)
    (one,) = launched(spec)
    assert one.status is ExitStatus.CANNOT_WRITE
    assert "No space left" in one.problem


def test_the_same_command_goes_on_with_a_failed_run(tmp_path: Path) -> None:
    spec = project_in(tmp_path, "raise RuntimeError('no luck')")
    (failed,) = launched(spec)
    write_notebook(tmp_path / "notebooks/n.ipynb", 'run_dir: str = ""', finishing())
    (one,) = launched(spec)
    assert (one.status, one.folder) == (ExitStatus.SUCCESS, failed.folder)


def test_what_is_finished_is_not_gone_on_with(tmp_path: Path) -> None:
    spec = project_in(tmp_path, finishing())
    first, second = launched(spec)[0].folder, launched(spec)[0].folder
    assert first != second


def test_fresh_begins_anew(tmp_path: Path) -> None:
    spec = project_in(tmp_path, finishing())
    left = open_run(read_spec(spec), reports=tmp_path / "reports", project=tmp_path)
    (one,) = launched(spec, fresh=True)
    assert one.folder != left.path
    assert left.result is None


# --- not at the same time -------------------------------------------------------------------------------------------


def test_a_busy_accelerator_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    spec = project_in(tmp_path, finishing(), accelerators=["gpu-0", "gpu-1"])
    with holding(["gpu-1"], holder="nightly"):
        (one,) = launched(spec)
    assert one.status is ExitStatus.BUSY
    assert "gpu-1 is busy with nightly" in one.problem
    assert not (tmp_path / "reports/sums").exists()
    assert launched(spec)[0].status is ExitStatus.SUCCESS


def test_the_same_run_is_not_worked_on_twice(tmp_path: Path) -> None:
    spec = project_in(tmp_path, finishing())
    run = open_run(read_spec(spec), reports=tmp_path / "reports", project=tmp_path)
    with run.held("command", 0.0):
        (one,) = launched(spec)
    assert one.status is ExitStatus.BUSY
    assert f"run {run.state.run_id} is under way in another process" in one.problem
    assert launched(spec)[0].folder == run.path
