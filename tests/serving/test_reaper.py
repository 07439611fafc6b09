"""Nobody's engines are left behind, and nobody else's are touched. Real processes, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from abswitch.serving import reaper as reaper_module
from abswitch.serving.reaper import MARKER_VARIABLE, Marker, ProcessReaper, marked, reap_orphans
from tests.patience import PATIENCE_S

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]
ENGINE = [*SLEEPER, "--multiprocessing-fork"]  # how a child of multiprocessing looks like from outside

OWNER = """
import os, signal, subprocess, sys
from abswitch.serving.reaper import ProcessReaper
def start(*more):
    command = [sys.executable, "-c", "import signal; signal.pause()", *more]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
reaper = ProcessReaper()
with reaper.marking():
    engine = start("--multiprocessing-fork")
    other = start()
unmarked = start("--multiprocessing-fork")
forked = os.fork() if "fork" in sys.argv else 0
if "fork" in sys.argv and forked == 0:
    os.close(1)
    signal.pause()
print(engine.pid, other.pid, unmarked.pid, forked or "", flush=True)
sys.stdin.read() if "exit" in sys.argv else signal.pause()
"""


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Pids that the test is answerable for."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(started: list[int]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def run(command: list[str], *, marker: object = None) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != MARKER_VARIABLE}
        if marker is not None:
            environment[MARKER_VARIABLE] = str(marker)
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def owner(
    request: pytest.FixtureRequest, start: Callable[..., subprocess.Popen[str]], started: list[int]
) -> subprocess.Popen[str]:
    """A process that owns one engine, one marked process that is no engine, and one engine that is not marked."""
    process = start([sys.executable, "-c", OWNER, *getattr(request, "param", "").split()])
    assert process.stdout is not None
    started.extend(map(int, process.stdout.readline().split()))
    return process


def assert_only_the_engine_ends(started: list[int]) -> None:
    engine, other, unmarked = started[:3]
    wait_until(lambda: not is_running(engine), "the engine of a dead owner ends")
    assert is_running(other) and is_running(unmarked)


def test_an_engine_ends_when_its_owner_is_killed(owner: subprocess.Popen[str], started: list[int]) -> None:
    owner.kill()
    owner.wait()
    assert_only_the_engine_ends(started)


def test_the_supervisor_ends_engines_when_its_pipe_closes(start: Callable[..., subprocess.Popen[str]]) -> None:
    """The owner is alive, so that nobody else who looks for orphans has a hand in it."""
    marker = Marker.of_this_process()
    engine = start(ENGINE, marker=marker)
    supervisor = start([sys.executable, "-P", str(reaper_module.__file__), str(marker)])
    wait_until(lambda: bool(marked(lambda found: found == marker)), "the engine can be seen")
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    wait_until(lambda: not is_running(engine.pid), "the engine ends")


@pytest.mark.parametrize("owner", ["exit"], indirect=True)
def test_an_engine_ends_when_its_owner_exits_and_forgot_it(owner: subprocess.Popen[str], started: list[int]) -> None:
    owner.communicate()
    assert owner.returncode == 0
    assert_only_the_engine_ends(started)


@pytest.mark.parametrize("owner", ["fork"], indirect=True)
def test_a_forked_child_that_holds_the_pipe_delays_nothing(owner: subprocess.Popen[str], started: list[int]) -> None:
    owner.kill()
    owner.wait()
    assert_only_the_engine_ends(started)
    assert is_running(started[3]), "the forked child is no engine"


def test_the_whole_process_group_may_be_killed_with_the_owner(
    start: Callable[..., subprocess.Popen[str]], started: list[int]
) -> None:
    process = start(["setsid", "--wait", sys.executable, "-c", OWNER])
    assert process.stdout is not None
    started.extend(map(int, process.stdout.readline().split()))
    os.killpg(os.getpgid(started[0]), signal.SIGKILL)
    wait_until(lambda: not is_running(started[0]), "the engine ends")


def supervisors(reaper: ProcessReaper) -> list[psutil.Process]:
    """Of this reaper: engines of other tests may have theirs."""
    return [child for child in psutil.Process().children() if str(reaper.marker) in command_of(child)]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # ended meanwhile
        return []


def test_nothing_runs_before_the_first_engine_and_after_close() -> None:
    reaper = ProcessReaper()
    assert not supervisors(reaper)
    with reaper.marking():
        assert len(supervisors(reaper)) == 1
    with reaper.marking():
        assert len(supervisors(reaper)) == 1, "one supervisor is enough"
    reaper.close()
    assert not supervisors(reaper)
    reaper.close()


def test_close_leaves_engines_alone_and_reap_ends_them(start: Callable[..., subprocess.Popen[str]]) -> None:
    reaper = ProcessReaper()
    with reaper.marking():
        engine = start(ENGINE, marker=reaper.marker)
        other = start(SLEEPER, marker=reaper.marker)
    reaper.close()
    assert is_running(engine.pid)
    wait_until(lambda: bool(marked(lambda marker: marker == reaper.marker)), "the engine can be seen")
    assert reaper.reap() == [engine.pid]
    assert is_running(other.pid)


def test_a_supervisor_that_was_killed_is_replaced() -> None:
    reaper = ProcessReaper()
    with reaper.marking():
        (first,) = supervisors(reaper)
        first.kill()
        wait_until(lambda: not is_running(first.pid), "the supervisor ends")
    with reaper.marking():
        (second,) = [process for process in supervisors(reaper) if is_running(process.pid)]
        assert second.pid != first.pid
    reaper.close()


def test_the_environment_is_marked_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKER_VARIABLE, "somebody else's")
    reaper = ProcessReaper()
    with reaper.marking():
        with reaper.marking():
            assert os.environ[MARKER_VARIABLE] == str(reaper.marker)
        assert os.environ[MARKER_VARIABLE] == str(reaper.marker), "the other start is still under way"
    assert os.environ[MARKER_VARIABLE] == "somebody else's"
    monkeypatch.delenv(MARKER_VARIABLE)
    with reaper.marking():
        pass
    assert MARKER_VARIABLE not in os.environ
    reaper.close()


def test_a_process_title_does_not_hide_the_marker(start: Callable[..., subprocess.Popen[str]]) -> None:
    reaper = ProcessReaper()
    with reaper.marking():
        titled = start(
            [
                sys.executable,
                "-c",
                "import setproctitle, signal; setproctitle.setproctitle('VLLM::EngineCore'); print(1, flush=True);"
                "signal.pause()",
            ],
            marker=reaper.marker,
        )
        assert titled.stdout is not None
        titled.stdout.readline()
    reaper.close()
    assert reaper.reap() == [titled.pid]


def test_orphans_of_earlier_runs_are_ended_and_the_living_spared(
    start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that nobody else's engine, started at this moment, looks for orphans in.
    monkeypatch.setattr(reaper_module, "_pid_namespace", lambda: "of-this-test")
    mine = Marker.of_this_process()
    recycled = replace(mine, birth=mine.birth + "0")
    orphan = start(ENGINE, marker=recycled)
    spared = [
        start(ENGINE, marker=mine),
        start(ENGINE, marker=replace(recycled, namespace="1")),
        start(ENGINE, marker="nonsense"),
        start(ENGINE),
    ]
    wait_until(lambda: bool(marked(lambda marker: marker == recycled)), "the orphan can be seen")
    assert orphan.pid in reap_orphans()
    assert not is_running(orphan.pid)
    assert all(is_running(process.pid) for process in spared)


def test_a_marker_reads_back() -> None:
    marker = Marker.of_this_process()
    assert Marker.parse(str(marker)) == marker
    assert marker.owner_is_alive
    assert not replace(marker, birth="1").owner_is_alive
    assert Marker.of_this_process() != marker, "two reapers of one process are told apart"
    assert [Marker.parse(text) for text in ("", "x:y:z:t", "1:2", "1:2:3:4:5")] == [None] * 4
