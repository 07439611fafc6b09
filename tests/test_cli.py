import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from abswitch import __version__, cli
from abswitch.cli import demo
from abswitch.experiments.exits import ExitStatus

PARAMETERS = ("n_questions", "candidate", "report_dir", "mlflow_uri", "project_dir")
SUMMARY = {
    "verdict": {
        "decision": "ship",
        "headline": "SHIP v2: it is better than v1",
        "reasons": ["exact_match: +33.0 points (27.1 to 38.6)", "latency_s: not worse than its margin"],
    },
    "requests": {"sent": 1600, "answered": 1599, "failed": 1, "lost": 0},
    "switch": {"routed_s": 0.0012, "first_token_s": 0.0071, "drained_s": 0.043},
    "store": "/somewhere/evidence.duckdb",
    "tracking": {"compare": "http://127.0.0.1:5000/#/compare-runs?runs=1", "experiment": "", "runs": {}},
}


def notebook_of(folder: Path, *sources: str) -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    parameters = nbformat.v4.new_code_cell("\n".join(f"{name} = 0" for name in PARAMETERS))
    parameters.metadata["tags"] = ["parameters"]
    notebook.cells = [parameters, *map(nbformat.v4.new_code_cell, sources)]
    path = folder / cli.NOTEBOOK
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"abswitch {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["dmeo"], "dmeo"),
        (["demo", "--questions", "many"], "got 'many'; allowed: a whole number of at least 40"),
        (["demo", "--questions", "-5"], "--questions"),
        (["demo", "--questions", "39"], "got '39'"),
        (["demo", "--questions", "²"], "got '²'"),
        (["demo", "--candidate", "best"], "best"),
        (["demo", "--colour"], "--colour"),
    ],
)
def test_bad_options_are_one_line_and_exit_64(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == ExitStatus.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert named in told.err


def test_closing_words_say_verdict_counts_switch_and_where_to_look() -> None:
    folder = Path("/r/quickstart")
    words = cli.closing_words(SUMMARY, folder, folder / "01_quickstart.ipynb")
    assert "SHIP v2: it is better than v1" in words
    assert "exact_match: +33.0 points (27.1 to 38.6)" in words
    assert "1,600 sent, 1,599 answered, 1 failed, 0 lost" in words
    assert "all new requests on the new version after 1 ms" in words
    assert "last request on the old one ended after 43 ms" in words
    for place in (
        "/r/quickstart/index.html",
        "01_quickstart.ipynb",
        "evidence.duckdb",
        "make mlflow, then http://127.0.0.1:5000/#/",
        "make lab",
    ):
        assert place in words


def test_closing_words_without_a_switch() -> None:
    words = cli.closing_words(SUMMARY | {"switch": None, "store": None, "tracking": None}, Path("r"), Path("r/n.ipynb"))
    assert "Switch    none" in words
    assert "duckdb" not in words


def test_the_repository_has_the_notebook() -> None:
    assert demo._find_notebook().is_file()


def test_without_a_checkout_it_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "site-packages" / "abswitch" / "cli" / "demo.py"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == ExitStatus.FAILED
    told = capsys.readouterr().err
    assert str(tmp_path) in told
    assert "Run this from a checkout" in told


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "file" / "reports")]) == ExitStatus.CANNOT_WRITE
    assert capsys.readouterr().err.startswith("abswitch demo: cannot write to")


def test_the_demo_runs_the_notebook_and_ends_with_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = notebook_of(
        tmp_path,
        f"import json, pathlib\nsummary = json.loads({json.dumps(SUMMARY)!r})",
        "summary['verdict']['headline'] += f' of {n_questions} questions, {candidate}'",
        "pathlib.Path(report_dir, 'summary.json').write_text(json.dumps(summary))",
    )
    monkeypatch.setattr(demo, "_find_notebook", lambda: notebook)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--output", "out/here", "--questions", "50", "--candidate", "regressed"]) == 0
    told = capsys.readouterr()
    assert "it is better than v1 of 50 questions, regressed" in told.out
    assert "100%" in told.err  # papermill's bar came to its end
    assert (tmp_path / "out/here/01_quickstart.ipynb").is_file()


def test_what_processes_print_goes_to_a_log_and_not_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    notebook = notebook_of(
        tmp_path,
        "import json, os, pathlib\nos.system('echo said by a process; echo and in anger >&2')",
        f"pathlib.Path(report_dir, 'summary.json').write_text({json.dumps(SUMMARY)!r})",
    )
    monkeypatch.setattr(demo, "_find_notebook", lambda: notebook)
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 0
    told = capfd.readouterr()
    assert "SHIP v2" in told.out
    assert "100%" in told.err
    assert "said by" not in told.out + told.err
    assert "anger" not in told.out + told.err
    log = (tmp_path / "out" / "01_quickstart.log").read_text()
    assert "said by a process" in log
    assert "and in anger" in log


def test_a_failed_run_tells_the_cell_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = notebook_of(tmp_path, "def serve():\n    raise RuntimeError('the version did not load')", "serve()")
    monkeypatch.setattr(demo, "_find_notebook", lambda: notebook)
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text(json.dumps(SUMMARY))  # of an earlier run: must not be told as this one's
    assert cli.main(["demo", "--output", str(out)]) == ExitStatus.FAILED
    told = capsys.readouterr()
    words = told.err[told.err.index("abswitch demo: ") :]
    assert "serve()" in words
    assert "RuntimeError: the version did not load" in words
    assert "Traceback" not in words
    assert len(words.splitlines()) <= 12
    assert told.out == ""
    assert not (out / "summary.json").exists()


def test_as_a_program_it_starts_quickly_and_without_heavy_libraries(tmp_path: Path) -> None:
    probe = (
        "import sys, abswitch.cli; heavy = ('vllm', 'torch', 'mlflow', 'pandas', 'duckdb', 'matplotlib', 'papermill'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    root = str(Path(cli.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", probe],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_reports_are_listed_whatever_lies_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e" / "run").mkdir(parents=True)
    (tmp_path / "e" / "run" / "run.json").write_text("{")
    assert cli.main(["reports", str(tmp_path)]) == ExitStatus.SUCCESS
    told = capsys.readouterr()
    assert f"1 run of 1 experiment: {tmp_path / 'index.html'}" in told.out
    assert "e/run cannot be read: run.json is no JSON" in told.err
    assert cli.main(["reports", str(tmp_path / "nowhere")]) == ExitStatus.NO_SPEC
    assert "a folder that exists" in capsys.readouterr().err
