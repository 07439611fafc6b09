"""What became of every row that a recorder was handed: counted, told once, and kept where it concerns a verdict."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass

from abswitch.store.committer import Gap

log = logging.getLogger("abswitch.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderStats:
    """What became of the rows and jobs handed to a recorder.

    Attributes:
        accepted: taken into the queue (`written` + `rejected` + `lost` + `queued` + `spooled`).
        written: committed.
        queued: accepted, and neither committed nor spooled yet.
        spooled: safe on disk beside the store, as that cannot be written now; they follow by themselves.
        dropped: not accepted, as the queue (and before it the spool) was full.
        rejected: refused by the database for what they hold (a wrong type, a plan that was already there).
        lost: given up, as neither store nor spool could be written until it was closed.
        recovered: written here on behalf of earlier processes that had left them in their spools.
        unredacted: texts that were not stored, as the redaction hook failed on them.
        flush_errors: failed attempts to commit; each is followed by another.
        last_error: the latest of them, or of the rejections, in words.
    """

    accepted: int
    written: int
    queued: int
    dropped: int
    rejected: int
    lost: int
    flush_errors: int
    last_error: str | None
    spooled: int = 0
    recovered: int = 0
    unredacted: int = 0

    @property
    def missing(self) -> int:
        """Rows that are not, and will not be, in the store."""
        return self.dropped + self.rejected + self.lost


class Ledger:
    """The counts behind `RecorderStats`. Only `dropped` and `missing` are touched by several threads.

    Attributes:
        settled: of each writer whose events are applied here, the number of the last one that is dealt with.
    """

    def __init__(self, writer_id: str) -> None:
        self.writer_id = writer_id
        self.taken = self.written = self.spooled = self.recovered = 0
        self.rejected = self.lost = self.dropped = self.flush_errors = 0
        self.last_error: str | None = None
        self.settled: Counter[str] = Counter()
        self._missing: Counter[tuple[int, str]] = Counter()
        self._kept: Counter[tuple[int, str]] = Counter()
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def committed(self, writer_id: str, events: int, last: int, *, spooled: bool) -> None:
        """Events up to number `last` are in the store."""
        self.settled[writer_id] = last
        if writer_id != self.writer_id:
            self.recovered += events
            return
        self.written += events
        self.spooled -= events if spooled else 0

    def refused(self, writer_id: str, number: int, error: Exception, *, spooled: bool) -> None:
        """The database did not take one event."""
        self.settled[writer_id] = number
        self.failed(error)
        self.rejected += 1
        self.spooled -= spooled and writer_id == self.writer_id

    def failed(self, error: Exception) -> None:
        """Remember what went wrong."""
        self.last_error = f"{type(error).__name__}: {error}"

    def miss(self, reason: str, rows: int) -> None:
        """Rows will not be in the store."""
        with self._lock:
            self._missing[int(time.time()), reason] += rows
            self.dropped += rows if reason == "dropped" else 0

    def missing_since(self, at_s: float) -> int:
        """Rows missed from `at_s` (seconds since the epoch, rounded down) on."""
        with self._lock:
            return sum(rows for (second, _), rows in self._missing.items() if second >= int(at_s))

    def gaps(self) -> tuple[Gap, ...]:
        """What was missed since `kept` was last called."""
        with self._lock:
            return tuple(Gap(second, rows, why) for (second, why), rows in (self._missing - self._kept).items())

    def kept(self, gaps: tuple[Gap, ...]) -> None:
        """These gaps are in the store."""
        for gap in gaps:
            self._kept[gap.at_s, gap.reason] += gap.rows

    def tell_once(self, key: str, message: str, *args: object) -> None:
        """A warning that is not repeated until `forget`."""
        if key not in self._told:
            self._told.add(key)
            log.warning(message, *args)

    def forget(self, *keys: str) -> None:
        """What is over may be told again."""
        self._told.difference_update(keys)

    def stats(self, waiting: int) -> RecorderStats:
        """Counts as of now; `waiting` is what the queue holds."""
        done = self.written + self.rejected + self.lost + self.spooled
        return RecorderStats(
            accepted=self.taken + waiting,
            written=self.written,
            queued=waiting + self.taken - done,
            dropped=self.dropped,
            rejected=self.rejected,
            lost=self.lost,
            flush_errors=self.flush_errors,
            last_error=self.last_error,
            spooled=self.spooled,
            recovered=self.recovered,
        )
