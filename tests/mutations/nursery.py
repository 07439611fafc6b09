"""`Nursery`: runs pytest again and again, in forks of one process that has the libraries imported already.

Importing pytest, NumPy, SciPy, pandas and DuckDB takes longer than most of what is run here. None of this project's own
modules is imported before the fork, so that each run sees the code of its folder and no other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

_LIBRARIES = ("numpy", "scipy.stats", "pandas", "duckdb", "hypothesis.stateful", "psutil")
_PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout", "_hypothesis_pytestplugin")
"""Named, as looking for plugins goes through every distribution that is installed."""
_OWN = ("abswitch", "tests")
_LONGEST_S = 240.0
_CRASHED = 70  # none of pytest's own


class Ran(NamedTuple):
    """How a run ended: pytest's status, and what it said."""

    status: int
    said: str


class Nursery:
    """One run at a time; several nurseries run side by side. A context manager."""

    def __enter__(self) -> Nursery:
        # A thread of the numerical libraries would not survive a fork.
        fixed = {
            "ABSWITCH_TEST_PATIENCE_S": "20",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **fixed},
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, folder: Path, *arguments: str) -> Ran:
        """Run pytest in a folder. Blocks."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join((str(folder), *arguments)) + "\n")
        self._process.stdin.flush()
        status = self._process.stdout.readline()
        assert status, "the nursery died"
        return Ran(int(status), (folder / "said.txt").read_text(encoding="utf-8", errors="replace"))


def _serve() -> None:
    for library in (*_LIBRARIES, *_PLUGINS):
        __import__(library)
    for line in sys.stdin:
        folder, *arguments = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            _run(Path(folder), arguments)
        print(_end_of(child), flush=True)  # noqa: T201 (it is the answer)


def _end_of(child: int) -> int:
    """Its status; of one that hangs, that of a killed process."""
    deadline_s = time.monotonic() + _LONGEST_S
    while True:
        ended, how = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(how)
        if time.monotonic() > deadline_s:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _run(folder: Path, arguments: list[str]) -> None:
    """The child's whole life."""
    status = _CRASHED
    try:
        (folder / "said.txt").unlink(missing_ok=True)  # it may have other names, under which others are writing
        said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder)
        assert not [name for name in sys.modules if name.partition(".")[0] in _OWN], "of another folder"
        sys.path.insert(0, str(folder))
        import pytest

        status = int(pytest.main([*(word for plugin in _PLUGINS for word in ("-p", plugin)), *arguments]))
        sys.stdout.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve()
