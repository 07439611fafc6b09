"""`tests/all.sh` passes when every test passed, beside others or by itself, and never otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "all.sh"
PYTEST = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
words = sys.argv[3:]
folder = Path(words[1].removeprefix("cache_dir="))
part, again = folder.name, (folder.parent / (folder.name + ".status")).exists()
status, failed = json.loads(os.environ["PLANNED"]).get(part + " again" * again, [0, []])
with open(os.environ["CALLED"], "a") as file:
    print(part, *words[2:], file=file)
cache = folder / "v/cache/lastfailed"
cache.parent.mkdir(parents=True, exist_ok=True)
if failed:
    cache.write_text(json.dumps(dict.fromkeys(failed, True), indent=2))
sys.exit(status)
"""


def run(folder: Path, planned: dict[str, tuple[int, list[str]]], *words: str) -> tuple[int, str, list[str]]:
    """Status and output of the script, and how pytest was called, where its parts end as planned."""
    python = folder / "python"
    python.write_text(PYTEST)
    python.chmod(0o755)
    called = folder / "called"
    called.touch()
    environment = {"PYTHON": str(python), "NOTEBOOKS": "a.ipynb b.ipynb", "TMPDIR": str(folder)}
    environment |= {"PLANNED": json.dumps(planned), "CALLED": str(called)}
    ran = subprocess.run(
        [SCRIPT, *words], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert not [path for path in folder.iterdir() if path.name.startswith("tmp.")], "it leaves nothing behind"
    return ran.returncode, ran.stdout, sorted(called.read_text().splitlines())


def test_three_parts_that_pass(tmp_path: Path) -> None:
    status, _, called = run(tmp_path, {})
    assert status == 0
    assert called == [
        "engines tests/benchmarks tests/browser tests/integration",
        "notebooks --nbval-lax --nbval-current-env a.ipynb b.ipynb",
        "others tests --ignore=tests/benchmarks --ignore=tests/browser --ignore=tests/integration",
    ]


def test_without_engines(tmp_path: Path) -> None:
    status, _, called = run(tmp_path, {}, "beside")
    assert status == 0 and [line.split()[0] for line in called] == ["notebooks", "others"]


@pytest.mark.parametrize("part", ["engines", "others", "notebooks"])
def test_what_fails_once_is_run_again_by_itself_and_told(tmp_path: Path, part: str) -> None:
    status, told, called = run(tmp_path, {part: (1, ["tests/x.py::test_y[a b]"])})
    assert status == 0
    assert "passed only with nothing beside it: tests/x.py::test_y[a b]" in told
    assert len(called) == 4
    assert sum("--last-failed" in line for line in called) == (part != "notebooks"), (
        "a notebook's cells need each other"
    )


@pytest.mark.parametrize("part", ["engines", "others", "notebooks"])
def test_what_fails_twice_has_failed(tmp_path: Path, part: str) -> None:
    failed = (1, ["tests/x.py::test_y"])
    status, told, _ = run(tmp_path, {part: failed, f"{part} again": failed})
    assert status == 1 and "passed only" not in told


@pytest.mark.parametrize("part", ["engines", "others", "notebooks"])
@pytest.mark.parametrize(
    "end", [(1, [f"t.py::test_{i}" for i in range(6)]), (1, []), (2, []), (5, []), (139, ["t.py::test_1"])]
)
def test_a_broken_part_is_not_run_again(tmp_path: Path, part: str, end: tuple[int, list[str]]) -> None:
    status, told, called = run(tmp_path, {part: end})
    assert status == 1 and "once more" not in told
    assert len(called) == 3
