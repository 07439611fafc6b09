"""Each failure is planted into a copy of the code, and the tests that are to notice it must fail there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations.plants import PLANTS, Plant

ROOT = Path(__file__).parents[2]
FAILED = 1  # pytest's status for tests that ran and failed; anything else is no catch


def copied(to: Path) -> Path:
    """The package and its tests, alone: nothing of this checkout is imported there."""
    skipped = shutil.ignore_patterns("__pycache__", "integration", "browser", "mutations", "benchmarks")
    for name in ("abswitch", "tests", "docs"):
        shutil.copytree(ROOT / name, to / name, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=60", *tests.split()]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def test_they_are_many_and_different() -> None:
    assert len(PLANTS) >= 30
    assert len({plant.name for plant in PLANTS}) == len(PLANTS)


@pytest.mark.timeout(300)
def test_without_a_plant_they_pass(tmp_path: Path) -> None:
    files = sorted({file for plant in PLANTS for file in plant.tests.split()})
    ran = run(copied(tmp_path), " ".join(files))
    assert ran.returncode == 0, ran.stdout[-3000:]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name.replace(" ", "-"))
def test_it_is_noticed(plant: Plant, tmp_path: Path) -> None:
    code = copied(tmp_path) / "abswitch" / plant.file
    text = code.read_text(encoding="utf-8")
    assert text.count(plant.old) == 1, f"the plant no longer fits: it matches {text.count(plant.old)} times"
    code.write_text(text.replace(plant.old, plant.new), encoding="utf-8")
    ran = run(tmp_path, plant.tests)
    assert ran.returncode == FAILED, f"nobody noticed (status {ran.returncode}):\n{ran.stdout[-2000:]}"


def test_the_page_lists_them() -> None:
    page = (ROOT / "docs" / "peer-failures.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == [plant.row for plant in PLANTS], "after the heading: every plant, in its order, and no other"


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant.seen], ids=lambda plant: plant.seen)
def test_a_source_is_the_path_of_a_thread(plant: Plant) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+/(issues|pull)/\d+", plant.seen)
