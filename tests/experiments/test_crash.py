"""`kill -9` of the whole process tree, at awkward moments, and then the same command: with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import psutil
import pytest

import abswitch
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.runs import RunFolder
from tests.experiments.projects import ROOT, project_in
from tests.patience import PATIENCE_S

N = 400
ENDED = """
SELECT prompt, count(*) FROM requests WHERE operation_id IS NOT NULL AND error_type IS NULL GROUP BY prompt
"""


class Command:
    """`abswitch run` of a project, as a shell starts it."""

    def __init__(self, spec: Path) -> None:
        self.project = spec.parent.parent
        self._words = [sys.executable, "-m", "abswitch.cli", "run", str(spec)]
        self._environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "ABSWITCH_LOCK_DIR": str(self.project / "locks"),
        }

    def start(self) -> subprocess.Popen[str]:
        # As in the foreground: scripts start others with the interrupt ignored, and that is inherited.
        ours = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            return subprocess.Popen(
                self._words,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=self._environment,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, ours)

    def killed_when(self, it_is_time: Callable[[], bool]) -> None:
        """Start it, and kill every process of it at a moment."""
        command = self.start()
        deadline_s = time.monotonic() + PATIENCE_S
        while not it_is_time():
            assert command.poll() is None, command.communicate()[0]
            assert time.monotonic() < deadline_s, "it never came to that"
            time.sleep(0.002)
        tree = [psutil.Process(command.pid), *psutil.Process(command.pid).children(recursive=True)]
        for process in tree:
            process.kill()
        psutil.wait_procs(tree, timeout=PATIENCE_S)
        command.communicate()

    def to_its_end(self) -> tuple[int, str]:
        command = self.start()
        told, _ = command.communicate(timeout=PATIENCE_S)
        return command.returncode, told

    @property
    def folder(self) -> Path | None:
        """Of its only run, once there is one."""
        found = list((self.project / "reports/sums").glob("2*"))
        assert len(found) < 2, "the same command goes on with the same run"
        return found[0] if found else None

    def has(self, pattern: str) -> bool:
        return self.folder is not None and any(self.folder.glob(pattern))

    def asked(self) -> Counter[str]:
        """How often each prompt reached a version, in all attempts."""
        log = self.project / "asked.txt"
        return Counter(log.read_text().splitlines() if log.exists() else ())

    def stored(self) -> dict[str, int]:
        """How many answers to each prompt survived."""
        assert self.folder is not None
        with abswitch.read(self.folder / "evidence.duckdb") as reader:
            return dict(reader.rows(ENDED))


@pytest.mark.timeout(300)
def test_nothing_is_asked_twice_and_totals_are_exact_however_often_it_is_killed(tmp_path: Path) -> None:
    spec = project_in(
        tmp_path,
        prompts={"kind": "generator", "function": "parts:problems", "arguments": {"n": N}},
        load={"kind": "poisson", "rate_per_s": 200.0},
        # Neither version's answers are cut short: nothing to be found, so that no look ends the test early.
        metrics=[{"kind": "rate", "column": "truncated"}],
        policy={"success": ["inconclusive"]},
        scorers=[{"kind": "exact_match"}, {"kind": "function", "function": "parts:length", "name": "length"}],
    )
    command = Command(spec)

    command.killed_when(lambda: command.has("evidence.duckdb*"))  # before the first request
    assert not command.asked()

    command.killed_when(lambda: command.asked().total() >= N // 2)  # in the middle
    survived, asked = command.stored(), command.asked()
    assert len(survived) > 0, "something was written by then"
    assert set(survived.values()) == {1}

    command.killed_when(lambda: command.has("index.html"))  # while the report is written
    again = [prompt for prompt in survived if command.asked()[prompt] > asked[prompt]]
    assert again == [], "what was stored is not asked again"
    whole = command.stored()
    assert len(whole) == N
    asked = command.asked()

    status, told = command.to_its_end()
    assert status == ExitStatus.SUCCESS, told
    assert command.asked() == asked, "there was nothing left to ask"
    assert f"Requests  {N} sent, {N} answered, 0 failed, 0 lost" in told
    assert "going on with an interrupted run" in told
    assert command.folder is not None
    run = RunFolder(command.folder)
    assert run.state.attempts == 4
    with duckdb.connect(command.folder / "evidence.duckdb", read_only=True) as store:
        counts = "SELECT count(*), count(DISTINCT request_id) FROM requests WHERE operation_id = ? AND arm <> 'pinned'"
        assert store.execute(counts, [run.state.operation_id]).fetchall() == [(N, N)]
        scores = "SELECT scorer, count(DISTINCT request_id) FROM scores GROUP BY scorer ORDER BY scorer"
        assert store.execute(scores).fetchall() == [("exact_match", N), ("length", N)]
        assert store.execute("SELECT count(*) FROM plans").fetchall() == [(1,)]


@pytest.mark.timeout(120)
def test_a_second_command_is_refused_and_a_key_interrupts_the_first(tmp_path: Path) -> None:
    cell = "import pathlib, threading\npathlib.Path(run_dir, 'there').touch()\nthreading.Event().wait(60)"
    command = Command(project_in(tmp_path, cell, accelerators=["gpu-7"]))
    first = command.start()
    deadline_s = time.monotonic() + PATIENCE_S
    while not command.has("there"):
        assert first.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    status, told = command.to_its_end()
    assert status == ExitStatus.BUSY
    assert f"accelerator gpu-7 is busy with sums (process {first.pid})" in told
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    told, _ = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == ExitStatus.INTERRUPTED, told
    assert told.rstrip().endswith("abswitch run: interrupted")
    assert command.folder is not None
    assert RunFolder(command.folder).result is None
