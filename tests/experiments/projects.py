"""A user's project in a folder of its own: a spec on scripted versions, functions that it names, and a notebook."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).parents[2]
REAL_NOTEBOOK = "notebooks/run_experiment.ipynb"

# Versions are called by how often they add right, in percent. Everything that is asked leaves a line in `asked.txt`.
PARTS = """
import os
import pathlib
import re
import zlib

from abswitch.serving.scripted import ScriptedBackend

ASKED = pathlib.Path(__file__).with_name("asked.txt")


def problems(n):
    pairs = [(10 + i % 90, 10 + (7 * i + i // 90) % 90) for i in range(n)]
    return [(f"{a}+{b}=", str(a + b)) for a, b in pairs]


def adder(percent):
    def answer(prompt):
        if not re.fullmatch(r"\\d+\\+\\d+=", str(prompt)):
            return ("0",)  # the engine's own, when a version comes up
        with ASKED.open("a") as log:
            log.write(f"{prompt}\\n")
        a, b = str(prompt).rstrip("=").split("+")
        right = zlib.crc32(f"{percent}{prompt}".encode()) % 100 < percent
        return tuple(str(int(a) + int(b) + (not right)))
    return answer


def adders():
    return ScriptedBackend(answers={f"v{percent}": adder(percent) for percent in (20, 58, 95)})


def length(sample):
    return len(sample.output)
"""
SPEC: dict[str, Any] = {
    "name": "sums",
    "model_id": "adder",
    "versions": {name: {"backend": "scripted", "model": "script"} for name in ("v58", "v95", "v20")},
    "baseline": "v58",
    "candidate": "v95",
    "prompts": {"kind": "generator", "function": "parts:problems", "arguments": {"n": 300}},
    "scorers": [{"kind": "exact_match"}],
    "metrics": [{"kind": "rate", "column": "exact_match", "margin": 0.05}],
    "engine": {"backends": {"scripted": {"function": "parts:adders"}}},
    "accelerators": [],
    "notebook": {"path": "notebooks/n.ipynb"},
}


def project_in(folder: Path, *cells: str, parameters: str = 'run_dir: str = ""', **fields: Any) -> Path:
    """A project; returns its spec.

    Args:
        cells: of its notebook; without any it is the one that is shipped.
        fields: replace those of `SPEC`.
    """
    for name in ("experiments", "notebooks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "parts.py").write_text(PARTS)
    if cells:
        write_notebook(folder / SPEC["notebook"]["path"], parameters, *cells)
    else:
        shutil.copy(ROOT / REAL_NOTEBOOK, folder / SPEC["notebook"]["path"])
    return write_spec(folder / "experiments/sums.yaml", SPEC | fields)


def write_spec(path: Path, plain: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(plain), sort_keys=False), encoding="utf-8")
    return path


def write_notebook(path: Path, parameters: str, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    first = nbformat.v4.new_code_cell(parameters)
    first.metadata["tags"] = ["parameters"]
    notebook.cells = [first, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(notebook, path)


# A notebook's cell that ends a run with a verdict of one's own, for tests of what comes before and after; without
# imports that take a second.
FINISH = """
import json, pathlib
folder = pathlib.Path(run_dir)
state = json.loads((folder / "run.json").read_text())
spec = json.loads((folder / "spec.json").read_text())
(folder / "result.json").write_text(json.dumps({
    "run_id": state["run_id"], "experiment": spec["name"], "exit_status": EXIT, "decision": "ship",
    "headline": "SHIP it", "reasons": ["because"],
    "requests": {"sent": 3, "answered": 3, "failed": 0, "lost": 0},
    "started_at_s": state["started_at_s"], "ended_at_s": state["started_at_s"] + 1, "alerts": [],
}))
"""


def finishing(exit_status: int | str = 0) -> str:
    """Args:
    exit_status: or a Python expression with `spec` in it.
    """
    return FINISH.replace("EXIT", str(int(exit_status) if isinstance(exit_status, int) else exit_status))
