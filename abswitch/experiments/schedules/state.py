"""What is remembered of a schedule between two looks, in one small file. Cheap to import: the host looks every minute.

reports/.schedules/<key>.json    the state, replaced at once
reports/.schedules/<key>.lock    held by the process that runs it
reports/.schedules/<key>.log     what unattended runs said
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from abswitch.errors import StoreError
from abswitch.experiments.exits import ExitStatus

VERSION = 1
_LOG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A run that was begun, or is to be.

    Attributes:
        due_at_s: the occurrence it belongs to.
        number: 1 for the first, one more for each retry.
        deaths: how often its process ended without saying how.
        not_before_s: of a retry, when it may begin.
        waits: nothing was begun yet, as the accelerator was busy.
    """

    due_at_s: float
    number: int = 1
    deaths: int = 0
    started_at_s: float = 0.0
    pid: int | None = None
    not_before_s: float = 0.0
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An attempt that is over.

    Attributes:
        status: the exit status; None when the process died, and was not gone on with.
    """

    due_at_s: float
    number: int
    started_at_s: float
    ended_at_s: float
    status: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """A spec file as it was when it was read."""

    modified_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """Of a file; None where there is none."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(modified_ns=found.st_mtime_ns, size=found.st_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """One schedule.

    Attributes:
        spec: the file.
        handled_until_s: every occurrence up to here was begun or skipped; never given to anybody again.
        running: the attempt that a process works on, or died over.
        retry: what is to be tried again.
        last: the latest attempt that is over.
        skipped: occurrences left out since the last attempt began.
        looked_at_s, quiet_until_s: at the first it was clear that nothing is to be done before the second.
        stamp: of the spec file at that moment.
        problem: why the spec could not be read.
    """

    spec: str
    cron: str = ""
    time_zone: str = ""
    handled_until_s: float = 0.0
    running: Attempt | None = None
    retry: Attempt | None = None
    last: Ended | None = None
    skipped: int = 0
    looked_at_s: float = 0.0
    quiet_until_s: float | None = None
    stamp: Stamp | None = None
    problem: str = ""

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """From JSON values.

        Raises:
            TypeError, KeyError: they are none of a state.
        """
        if plain["version"] != VERSION:
            raise TypeError(f"version {plain['version']}")
        fields = {name: value for name, value in plain.items() if name != "version"}
        for name, part in (("running", Attempt), ("retry", Attempt), ("last", Ended), ("stamp", Stamp)):
            fields[name] = None if fields[name] is None else part(**fields[name])
        return cls(**fields)


def key_of(spec: Path) -> str:
    """A name for the schedule of this very file, fit for file names, units and crontabs."""
    whole = str(spec.expanduser().resolve())
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", spec.stem)[:40]
    return f"{stem}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The files of one schedule.

    Args:
        reports: the folder of the project's reports.
    """

    reports: Path
    key: str

    @property
    def folder(self) -> Path:
        """Where they lie; shared by the schedules of a project."""
        return self.reports / ".schedules"

    @property
    def state(self) -> Path:
        """The state's file."""
        return self.folder / f"{self.key}.json"

    @property
    def lock(self) -> Path:
        """Held by the process that runs it."""
        return self.folder / f"{self.key}.lock"

    @property
    def log(self) -> Path:
        """What unattended runs said."""
        return self.folder / f"{self.key}.log"

    def roomy_log(self) -> Path:
        """The log, once the one before was put aside where it had grown large; its folder is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.is_file() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log

    def read(self) -> ScheduleState | None:
        """The state; None where nothing is remembered.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            return ScheduleState.from_plain(json.loads(self.state.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self.state} cannot be read ({error})") from error

    def write(self, state: ScheduleState) -> None:
        """Replace the state at once, on disk before this returns.

        Raises:
            OSError: it cannot be written.
        """
        from abswitch.experiments.files import to_json, write_atomically

        write_atomically(self.state, to_json(state.to_plain()))

    def is_held(self) -> bool:
        """Whether a process runs it now."""
        from filelock import FileLock, Timeout

        if not self.folder.is_dir():
            return False
        try:
            with FileLock(self.lock, timeout=0):
                return False
        except Timeout:
            return True


def at_a_glance(shelf: Shelf, spec: Path, now_s: float) -> ExitStatus | None:
    """The exit status of a look that finds nothing to do, without reading the spec.

    Returns:
        `SUCCESS`, or what is wrong with the spec and was said before; None where a closer look is needed.
    """
    try:
        state = shelf.read()
    except StoreError:
        return None
    if state is None or state.stamp != Stamp.of(spec):
        return None
    if state.problem:
        return ExitStatus.NO_SPEC if state.stamp is None else ExitStatus.BAD_SPEC
    if state.quiet_until_s is None or not state.looked_at_s <= now_s < state.quiet_until_s:
        return None
    if state.running is not None and not shelf.is_held():
        return None  # its process died
    return ExitStatus.SUCCESS


def states_in(reports: Path) -> list[tuple[Shelf, ScheduleState]]:
    """Every schedule that something is remembered of; damaged ones are left out."""
    shelves = [Shelf(reports, path.stem) for path in sorted((reports / ".schedules").glob("*.json"))]
    found = []
    for shelf in shelves:
        try:
            state = shelf.read()
        except StoreError:
            continue
        if state is not None:
            found.append((shelf, state))
    return found
