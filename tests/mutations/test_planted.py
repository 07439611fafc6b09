"""Each failure is planted into a copy of the code, and the test that is to notice it must fail there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.mutations.nursery import Nursery, Ran
from tests.mutations.plants import PLANTS, Plant

ROOT = Path(__file__).parents[2]
FAILED = 1  # pytest's status for tests that ran and failed; anything else is no catch
AT_ONCE = 2
MISFIT = "the plant no longer fits: it matches {} times"


class Garden:
    """Copies of the package and its tests: nothing of this checkout is imported there. Runs begin in advance."""

    def __init__(self, folder: Path, nurseries: ExitStack) -> None:
        self._folder = folder
        self._free: SimpleQueue[Nursery] = SimpleQueue()
        for _ in range(AT_ONCE):
            self._free.put(nurseries.enter_context(Nursery()))
        self._threads = nurseries.enter_context(ThreadPoolExecutor(AT_ONCE))
        nurseries.callback(self._threads.shutdown, cancel_futures=True)
        skipped = shutil.ignore_patterns("__pycache__", "integration", "browser", "mutations", "benchmarks")
        for name in ("abswitch", "tests", "docs"):
            shutil.copytree(ROOT / name, folder / "whole" / name, ignore=skipped)
        shutil.copy(ROOT / "pyproject.toml", folder / "whole")
        self.untouched = self._begin(folder / "whole", *sorted({plant.test for plant in PLANTS}))
        self._planted: dict[str, Future[Ran]] = {}

    def plant(self, plant: Plant) -> None:
        """Begin its run, once; it waits for the untouched copy's, which leaves the compiled modules behind."""
        if plant.name not in self._planted:
            self._planted[plant.name] = self._threads.submit(self._run_planted, plant)

    def outcome(self, plant: Plant) -> Ran:
        self.plant(plant)
        return self._planted[plant.name].result()

    def _run_planted(self, plant: Plant) -> Ran:
        self.untouched.exception()
        folder = self._folder / plant.name.replace(" ", "-")
        shutil.copytree(self._folder / "whole", folder, copy_function=os.link)
        code = folder / "abswitch" / plant.file
        text = code.read_text(encoding="utf-8")
        assert text.count(plant.old) == 1, MISFIT.format(text.count(plant.old))
        code.unlink()  # its other names stay as they were
        code.write_text(text.replace(plant.old, plant.new), encoding="utf-8")
        for compiled in (code.parent / "__pycache__").glob(f"{code.stem}.*"):
            compiled.unlink()
        ran = self._run(folder, plant.test)
        shutil.rmtree(folder)
        return ran

    def _begin(self, folder: Path, *tests: str) -> Future[Ran]:
        return self._threads.submit(self._run, folder, *tests)

    def _run(self, folder: Path, *tests: str) -> Ran:
        nursery = self._free.get()
        try:
            return nursery.run(folder, "-q", "-x", "-p", "no:cacheprovider", "--timeout=60", *tests)
        finally:
            self._free.put(nursery)


@pytest.fixture(scope="session")
def garden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Garden]:
    with ExitStack() as nurseries:
        made = Garden(tmp_path_factory.mktemp("garden"), nurseries)
        for item in request.session.items:  # those chosen by -k, while the first is waited for
            params = getattr(getattr(item, "callspec", None), "params", {})
            if isinstance(params.get("plant"), Plant) and "garden" in getattr(item, "fixturenames", ()):
                made.plant(params["plant"])
        yield made


def test_they_are_many_and_different() -> None:
    assert len(PLANTS) >= 30
    assert len({plant.name for plant in PLANTS}) == len(PLANTS)


@pytest.mark.timeout(600)
def test_without_a_plant_they_pass(garden: Garden) -> None:
    ran = garden.untouched.result()
    assert ran.status == 0, ran.said[-3000:]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name.replace(" ", "-"))
def test_it_is_noticed(plant: Plant, garden: Garden) -> None:
    ran = garden.outcome(plant)
    assert ran.status == FAILED, f"nobody noticed (status {ran.status}):\n{ran.said[-2000:]}"


def test_the_page_lists_them() -> None:
    page = (ROOT / "docs" / "peer-failures.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == [plant.row for plant in PLANTS], "after the heading: every plant, in its order, and no other"


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant.seen], ids=lambda plant: plant.seen)
def test_a_source_is_the_path_of_a_thread(plant: Plant) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+/(issues|pull)/\d+", plant.seen)
