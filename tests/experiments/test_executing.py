"""A notebook under papermill; what a whole run makes of it is in test_launch.py."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from abswitch.errors import InvalidInput
from abswitch.experiments.executing import NotExecuted, execute, parameters_of
from abswitch.experiments.exits import ExitStatus
from tests.experiments.projects import write_notebook


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    write_notebook(tmp_path / "n.ipynb", 'color: str = "blue"  # of the shed\nsize = 1', "print(color, size)")
    return tmp_path / "n.ipynb"


def test_the_parameters_are_those_of_the_tagged_cell(notebook: Path) -> None:
    assert parameters_of(notebook) == {"color", "size"}


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_what_is_no_notebook(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "n.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=r"notebook\.path.*n\.ipynb"):
        parameters_of(path)


def test_a_parameter_that_it_does_not_have_is_refused_before_it_runs(notebook: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"notebook\.parameters\.colour.*only color, size"):
        execute(notebook, tmp_path / "done.ipynb", {"colour": "red"}, title="t")
    assert not (tmp_path / "done.ipynb").exists()


def test_the_executed_copy_has_parameters_and_outputs_and_the_original_has_not(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = notebook.read_text()
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    execute(notebook, tmp_path / "done.ipynb", {"color": "red"}, title="painting")
    assert notebook.read_text() == before
    done: Any = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    assert done.cells[-1].outputs[0].text == "red 1\n"
    assert "painting: 100%" in terminal.getvalue()
    assert (tmp_path / "done.log").exists()


def test_a_kernel_that_does_not_start_in_time(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = tmp_path / "jupyter/kernels/python3"
    kernels.mkdir(parents=True)
    argv = [sys.executable, "-c", "import threading; threading.Event().wait(60)", "{connection_file}"]
    (kernels / "kernel.json").write_text(
        f'{{"argv": {argv!r}, "display_name": "deaf", "language": "python"}}'.replace("'", '"')
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    with pytest.raises(NotExecuted, match="did not start within 1 s") as told:
        execute(notebook, tmp_path / "done.ipynb", {}, title="t", start_timeout_s=1)
    assert told.value.status is ExitStatus.TIMED_OUT
