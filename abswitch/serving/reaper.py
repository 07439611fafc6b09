"""`ProcessReaper`: no engine process outlives the process that started it, however that one ends.

Engines are started inside `marking()`, which puts a marker naming their owner into the environment they inherit. A
small supervisor process, in a session of its own, holds one end of a pipe; when the owner ends, by `kill -9` too, the
pipe closes, and the supervisor ends every engine process that carries this owner's marker.

What is ended must both carry the marker and look like an engine, as whatever else the owner starts in those seconds
inherits the marker, too. The supervisor is this very file, run by path and importing the standard library and psutil
alone, so that it is up before any engine and costs little.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Self

import psutil

MARKER_VARIABLE = "ABSWITCH_OWNER"
# vLLM gives its processes titles, which without this variable wipes the environment that others can read.
_KEEP_ENVIRONMENT = "SPT_NOENV"
# What every engine would print into the notebook's cell at its start; a value the user has set stands.
_QUIET = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
_GOODBYE = b"."
_GRACE_S = 2.0  # for the kernel to take a killed process down
_ROUNDS = 5  # a process stuck in the kernel cannot be ended by anybody
_WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class Marker:
    """Who owns a process, written as `pid:birth:namespace:token`.

    Attributes:
        pid: the owner.
        birth: when it started, in a form that no later process with the same pid can share and no clock change alters.
        namespace: of the pid, as other containers' processes may be visible with owners that cannot be looked up here.
        token: tells the reapers of one process apart.
    """

    pid: int
    birth: str
    namespace: str
    token: str

    @classmethod
    def of_this_process(cls) -> Self:
        pid = os.getpid()
        return cls(pid, _birth(pid) or "", _pid_namespace(), uuid.uuid4().hex[:8])

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The marker, or None when the text is none."""
        parts = text.split(":")
        if len(parts) != 4 or not parts[0].isdecimal():
            return None
        return cls(int(parts[0]), *parts[1:])

    @property
    def owner_is_alive(self) -> bool:
        return _birth(self.pid) == self.birth

    def __str__(self) -> str:
        return f"{self.pid}:{self.birth}:{self.namespace}:{self.token}"


class ProcessReaper:
    """Marks engine processes while they are started, and sees to it that none is left behind.

    Costs nothing until the first `marking()`. After `close()` it may be used again.
    """

    def __init__(self) -> None:
        self.marker = Marker.of_this_process()
        self._lock = threading.Lock()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._depth = 0
        self._before: dict[str, str | None] = {}

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Processes started inside carry the marker; may be entered by several threads at once."""
        # It would inherit the marker if it came up inside; it belongs to the owner, and ends by itself.
        resource_tracker.ensure_running()
        with self._lock:
            self._supervise()
            if self._depth == 0:
                self._mark()
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._unmark()

    def _mark(self) -> None:
        quiet = {name: value for name, value in _QUIET.items() if name not in os.environ}
        variables = {MARKER_VARIABLE: str(self.marker), _KEEP_ENVIRONMENT: "1", **quiet}
        self._before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)

    def _unmark(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _supervise(self) -> None:
        if self._supervisor is not None and self._supervisor.poll() is None:
            return
        self._supervisor = subprocess.Popen(
            # -P: this file's folder holds modules named like libraries (openai, vllm) and must not be searched first.
            [sys.executable, "-P", str(Path(__file__).resolve()), str(self.marker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the owner's process group must not take the supervisor along
        )

    def reap(self) -> list[int]:
        """End the engines that carry this reaper's marker now; returns their pids. Blocks."""
        return end_marked(lambda marker: marker == self.marker)

    def close(self) -> None:
        """Let the supervisor go; engines that still run are no longer watched. Blocks for a moment; idempotent."""
        with self._lock:
            supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.communicate(_GOODBYE)


def reap_orphans() -> list[int]:
    """End engines whose owner is gone, of this and earlier runs; returns their pids. Blocks.

    Needed only where a supervisor was killed together with its owner, as a container's memory killer may do.
    """
    return end_marked(lambda marker: not marker.owner_is_alive)


def marked(wanted: Callable[[Marker], bool]) -> list[psutil.Process]:
    """Engine processes with a wanted marker, of this pid namespace; never this process or an ancestor of it."""
    namespace = _pid_namespace()
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        marker = None if process.pid in spared else _engine_marker(process)
        if marker is not None and marker.namespace == namespace and wanted(marker):
            found.append(process)
    return found


def end_marked(wanted: Callable[[Marker], bool]) -> list[int]:
    """Kill every marked process that is wanted, and what it still starts; returns the pids. Blocks.

    At once, not after a request to end: an engine takes seconds over that, its memory is wanted back now, and what it
    shared is removed by the resource tracker of multiprocessing, which ends after it.
    """
    ended: set[int] = set()
    for _ in range(_ROUNDS):
        left = marked(wanted)
        if not left:
            break
        for process in left:
            ended.add(process.pid)
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_GRACE_S)
    return sorted(ended)


def _engine_marker(process: psutil.Process) -> Marker | None:
    # Gone, a zombie, or somebody else's: in each case none of ours that could be ended.
    with suppress(psutil.Error, OSError):
        marker = Marker.parse(process.environ().get(MARKER_VARIABLE, ""))
        return marker if marker is not None and _looks_like_engine(process.cmdline()) else None
    return None


def _looks_like_engine(command: list[str]) -> bool:
    """A child of multiprocessing, which it becomes at first, or one with a title of vLLM's, e.g. `VLLM::EngineCore`."""
    return "--multiprocessing-fork" in command or (bool(command) and "::" in command[0])


def _birth(pid: int) -> str | None:
    """When a process started, or None when there is none (a zombie counts as none)."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        # Linux: ticks since boot. psutil's seconds since the epoch move when the machine's clock is set.
        return stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else f"{process.create_time():.0f}"
    except (psutil.NoSuchProcess, OSError):
        return None


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "0"


def supervise(marker: Marker) -> None:
    """Wait until the owner is gone, then end the engines that carry its marker."""
    stdin = sys.stdin.fileno()
    # The pipe says so at once; asking for the parent covers a forked child of the owner that still holds the pipe.
    while os.getppid() == marker.pid and not select.select([stdin], [], [], _WATCH_S)[0]:
        pass
    if select.select([stdin], [], [], 0.0)[0] and os.read(stdin, 1) == _GOODBYE:
        return
    # A process that was being started in that moment shows its environment only an instant later: look again.
    for patience_s in (0.3, 1.0, 0.0):
        end_marked(lambda found: found == marker)
        select.select([], [], [], patience_s)


if __name__ == "__main__":
    owner = Marker.parse(sys.argv[1])
    if owner is not None:
        supervise(owner)
