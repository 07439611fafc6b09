"""`Journal`: what must be durable before a switch goes on. A line of JSON per entry, in a small file beside the store.

Appending is a write and an fdatasync, done in place on purpose: that costs a fraction of a millisecond, where handing
it to a thread costs more, and a commit of the analytical store five times that. See
docs/decisions/0015-a-journal-beside-the-database.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from abswitch.errors import StoreError

FORMAT = 1
_SPACE_BYTES = 256 * 1024
"""Reserved ahead, so that a disk that fills up does not stop the last moves back."""
OPENED, CLOSED = "opened", "closed"
_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class Record(NamedTuple):
    """One entry."""

    sequence: int
    kind: str
    at_s: float
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Found:
    records: tuple[Record, ...]
    damaged: str | None


class Journal:
    """An open journal. `append` may be called from any thread.

    Args:
        path: the file, made when it is not there; None keeps nothing.
        keep: of the entries found at opening, those still needed; the others are dropped from the file.

    Attributes:
        entries: what was found and is still needed, in order.
        clean: whether the last process that wrote here ended in order (also true of a new file).
        damaged: what was wrong with the file, in words; the damaged original is kept beside it. None if nothing was.

    Raises:
        StoreError: it is open elsewhere, of a newer format, or cannot be written.
    """

    def __init__(
        self, path: Path | None, *, keep: Callable[[Iterable[Record]], Iterable[Record]] = lambda entries: entries
    ) -> None:
        self.path = path
        self.entries: tuple[Record, ...] = ()
        self.clean = True
        self.damaged: str | None = None
        self._lock = threading.Lock()
        self._file: int | None = None
        self._guard: int | None = None
        self._end = 0
        self._sequence = 0
        if path is not None:
            self._guard = _claim(path)
            try:
                self._open(path, keep)
            except BaseException:
                self._release()
                raise

    def _open(self, path: Path, keep: Callable[[Iterable[Record]], Iterable[Record]]) -> None:
        found = _read(path)
        if found.damaged is not None:
            self._set_aside(path, found.damaged)
        self.clean = not found.records or (found.records[-1].kind == CLOSED and found.damaged is None)
        self.entries = tuple(keep(one for one in found.records if one.kind not in (OPENED, CLOSED)))
        self._sequence = found.records[-1].sequence if found.records else 0
        _replace(path, b"".join(map(_line, self.entries)))
        self._file = os.open(path, os.O_RDWR)
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        self._reserve()
        self.append(OPENED, {"format": FORMAT, "pid": os.getpid()})

    def _set_aside(self, path: Path, damage: str) -> None:
        aside = path.with_name(path.name + ".damaged")
        aside.write_bytes(path.read_bytes())
        self.damaged = f"{damage}; the file as it was is kept as {aside}"

    def append(self, kind: str, body: Mapping[str, Any]) -> None:
        """Add an entry; it is durable when this returns.

        Raises:
            StoreError: it could not be written; the journal is as it was before.
            TypeError: the body is not made of JSON values.
        """
        with self._lock:
            if self.path is None:
                return
            if self._file is None:
                raise StoreError(f"{self.path} is closed")
            record = Record(self._sequence + 1, kind, time.time(), body)
            line = _line(record)
            try:
                _write_all(self._file, line, self._end)
                os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)
            except OSError as error:
                self._take_back(len(line))
                raise StoreError(f"{self.path} could not be written: {error}") from error
            self._sequence, self._end = record.sequence, self._end + len(line)

    def _take_back(self, length: int) -> None:
        assert self._file is not None, "only called while it is open"
        with suppress(OSError):
            os.pwrite(self._file, b"\0" * length, self._end)
        with suppress(OSError):
            os.ftruncate(self._file, self._end)

    def _reserve(self) -> None:
        """Best effort: not every file system can, and none must."""
        assert self._file is not None, "only called while it is open"
        if hasattr(os, "posix_fallocate"):
            with suppress(OSError):
                os.posix_fallocate(self._file, self._end, _SPACE_BYTES)

    def close(self) -> None:
        """Note that the process ended in order, and let go of the file. Idempotent."""
        if self._file is None:
            return
        try:
            self.append(CLOSED, {})
            os.ftruncate(self._file, self._end)
        finally:
            self._release()

    def abandon(self) -> None:
        """Let go of the file without a word: what was found in it goes on to be how the last process ended."""
        self._release()

    def _release(self) -> None:
        for descriptor in (self._file, self._guard):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._guard = None


def _claim(path: Path) -> int:
    """An exclusive lock of its own file, as the journal itself is replaced when it is compacted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreError(f"{path} is open in {_closing(holder)}") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _closing(holder: str) -> str:
    """Where it is open, and what is to be done about that."""
    if holder == str(os.getpid()):
        return "this process, by another engine; close that one first (await engine.aclose())"
    return f"process {holder or 'unknown'}; close that engine first"


def _line(record: Record) -> bytes:
    text = _JSON.encode([*record[:3], dict(record.body)])
    return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()


def _read(path: Path) -> _Found:
    """The valid entries from the beginning on. A torn or empty end was never acknowledged."""
    try:
        content = path.read_bytes().rstrip(b"\0")
    except FileNotFoundError:
        return _Found((), None)
    *whole, torn = content.split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(whole, 1):
        record = _parsed(line)
        if record is None or (records and record.sequence <= records[-1].sequence):
            return _Found(tuple(records), f"{path}: line {number} of {len(whole)} is damaged")
        if record.kind == OPENED and record.body.get("format", 0) > FORMAT:
            raise StoreError(f"{path} has format {record.body['format']}, this abswitch reads {FORMAT}")
        records.append(record)
    del torn
    return _Found(tuple(records), None)


def _parsed(line: bytes) -> Record | None:
    checksum, _, text = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        sequence, kind, at_s, body = json.loads(text)
    except ValueError:
        return None
    return Record(sequence, kind, at_s, body)


def _write_all(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole, or not at all."""
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error}") from error
