"""`Spool`: events that the store cannot take now, safe in a file beside it until it can.

A line per event, with a checksum, appended with one write and one fdatasync per batch. Space is reserved ahead, so that
a disk that is full still takes what comes first. What was applied is told by the store itself (the table `writers`), in
the same transaction as the rows, so reading a spool again after a crash applies nothing twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from abswitch.store.items import Event, of_text, to_text

RESERVED_BYTES = 8 << 20
LARGEST_BYTES = 256 << 20
_SUFFIX = ".spool"
_READ_BYTES = 1 << 20


def folder_of(store: Path) -> Path:
    """Where the spools of a store lie."""
    return store.with_name(store.name + ".spool")


class Spool:
    """One writer's spool, open and locked. Belongs to one thread.

    Args:
        path: its file; made when it is not there.
        largest_bytes: `append` refuses to grow beyond it.
        reserved_bytes: taken from the disk at once.

    Raises:
        BlockingIOError: a living process has it open.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, *, largest_bytes: int = LARGEST_BYTES, reserved_bytes: int = RESERVED_BYTES) -> None:
        self.path = path
        self.writer_id = path.name.removesuffix(_SUFFIX)
        self._largest_bytes, self._reserved_bytes = largest_bytes, min(reserved_bytes, largest_bytes)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # it may hold what people wrote
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise
        self._end = sum(len(line) + 1 for line in self._lines())
        self._reserve()

    @classmethod
    def fresh(cls, store: Path, *, largest_bytes: int = LARGEST_BYTES) -> Spool:
        """A new writer's."""
        return cls(folder_of(store) / f"{uuid4().hex}{_SUFFIX}", largest_bytes=largest_bytes)

    @property
    def size_bytes(self) -> int:
        """Of what waits in it."""
        return self._end

    def append(self, events: Sequence[Event]) -> None:
        """Add events; they are durable when this returns.

        Raises:
            OSError: they could not be written, or the spool is as large as it may be; it is as it was before.
            TypeError: a value that cannot be written down.
        """
        data = b"".join(_line(event) for event in events)
        if self._end + len(data) > self._largest_bytes:
            raise OSError(errno.EFBIG, f"the spool would grow beyond {self._largest_bytes} bytes", str(self.path))
        try:
            _write_all(self._file, data, self._end)
            os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)
        except OSError:
            self._take_back(len(data))
            raise
        self._end += len(data)

    def events(self) -> Iterator[Event]:
        """What waits in it, in order."""
        for line in self._lines():
            yield of_text(line.partition(b" ")[2])

    def clear(self) -> None:
        """Forget what is in it: all of it is in the store."""
        os.ftruncate(self._file, 0)
        self._end = 0
        self._reserve()

    def close(self) -> None:
        """Let go of it; an empty one goes. Idempotent."""
        if self._file < 0:
            return
        if not self._end:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # others are still in it
                self.path.parent.rmdir()
        else:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
        os.close(self._file)
        self._file = -1

    def _lines(self) -> Iterator[bytes]:
        """Whole lines from the beginning on, up to the first that is torn: that one was never acknowledged."""
        offset, rest = 0, b""
        while chunk := os.pread(self._file, _READ_BYTES, offset):
            offset += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not _is_whole(line):
                    return
                yield line
            if rest.startswith(b"\0"):
                return

    def _reserve(self) -> None:
        """Best effort: not every file system can, and none must."""
        if hasattr(os, "posix_fallocate") and self._reserved_bytes > self._end:
            with suppress(OSError):
                os.posix_fallocate(self._file, self._end, self._reserved_bytes - self._end)

    def _take_back(self, length: int) -> None:
        """Zeros where the torn lines are; the reserved space stays reserved."""
        with suppress(OSError):
            kept = max(self._end, min(os.fstat(self._file).st_size, self._reserved_bytes))
            os.ftruncate(self._file, kept)
        with suppress(OSError):
            written = max(0, os.fstat(self._file).st_size - self._end)
            os.pwrite(self._file, b"\0" * min(length, written), self._end)


def left_behind(store: Path) -> Iterator[Spool]:
    """Spools of writers that are gone, oldest first; each is open and locked, and the caller closes it."""
    for path in sorted(folder_of(store).glob(f"*{_SUFFIX}"), key=_changed_at_s):
        with suppress(OSError):  # of a living writer, or just gone
            yield Spool(path, reserved_bytes=0)


def _changed_at_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _line(event: Event) -> bytes:
    text = to_text(event).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _is_whole(line: bytes) -> bool:
    checksum, _, text = line.partition(b" ")
    try:
        return int(checksum, 16) == zlib.crc32(text)
    except ValueError:
        return False


def _write_all(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
