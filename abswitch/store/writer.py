"""The one thread that writes: a single queue in order, batches as transactions, patience with a full disk."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from abswitch.errors import StoreError
from abswitch.store.database import Database

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger("abswitch.store")

_BATCH_ROWS = 4096
_CHUNK_ROWS = (
    512  # the appender converts rows while holding the interpreter lock: 512 rows are about half a millisecond
)
_WAKE_ROWS = 2048  # below this many waiting rows the writer is left to its interval, which saves the hot path a lock
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 1.0


class Row(NamedTuple):
    """A row for the appender of `table`, in the order of the table's columns."""

    table: str
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Job:
    """Statements that are committed together; `done` resolves once they are.

    Attributes:
        check: called inside the transaction, before the statements; raises `StoreError` to refuse the job.
    """

    statements: tuple[tuple[str, Sequence[Any]], ...] = ()
    check: Callable[[duckdb.DuckDBPyConnection], None] | None = None
    done: Future[None] = field(default_factory=Future)

    @property
    def is_barrier(self) -> bool:
        """It writes nothing, and resolves when everything before it is committed."""
        return not self.statements


Item = Row | Job


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderStats:
    """What became of the rows and jobs handed to a recorder.

    Attributes:
        accepted: taken into the queue (`written` + `rejected` + `lost` + `queued`).
        written: committed.
        queued: accepted and not yet committed.
        dropped: not accepted, as the queue was full.
        rejected: refused by the database for what they hold (a wrong type, a plan that was already there).
        lost: given up, as the store could not be written until it was closed.
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


class Writer:
    """A queue and the thread that empties it into the database.

    The thread is a daemon: a program that forgot `close` would otherwise never end, as the interpreter joins ordinary
    threads before it runs any exit callback. Daemon threads still run during exit callbacks, so the recorder's
    finalizer calls `close` there and nothing accepted is lost.
    """

    def __init__(self, database: Database, *, capacity: int, flush_interval_s: float) -> None:
        self._database = database
        self._capacity = capacity
        self._flush_interval_s = flush_interval_s
        self._items: deque[Item] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._abandon = threading.Event()
        self._taken = self._written = self._rejected = self._lost = self._dropped = self._flush_errors = 0
        self._last_error: str | None = None
        self._missing: Counter[int] = Counter()
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._connect()
        self._thread = threading.Thread(target=self._run, name="abswitch-recorder", daemon=True)
        self._thread.start()

    # --- any thread -------------------------------------------------------------------------------------------------

    def offer(self, row: Row) -> bool:
        """Take a row if there is room; never waits, never raises. True when it was taken."""
        return self._append_row(row, self._capacity)

    def put(self, row: Row) -> None:
        """Take a row whether there is room or not."""
        self._append_row(row, math.inf)

    def _append_row(self, row: Row, capacity: float) -> bool:
        waiting = len(self._items)
        if waiting >= capacity or self._stopping:
            self._drop()
            return False
        self._items.append(row)
        if waiting >= _WAKE_ROWS and not self._wake.is_set():
            self._wake.set()
        return True

    def submit(self, job: Job) -> Future[None]:
        """Take a job and have it committed at once, after everything accepted before it."""
        with self._lock:  # against `close`: a job is either taken and resolved, or refused
            if self._stopping:
                job.done.set_exception(StoreError(f"{self._database.name} is closed"))
                return job.done
            self._items.append(job)
        self._wake.set()
        return job.done

    def stats(self) -> RecorderStats:
        """Counts as of now."""
        queued = len(self._items) + self._taken - self._written - self._rejected - self._lost
        return RecorderStats(
            accepted=self._taken + len(self._items),
            written=self._written,
            queued=queued,
            dropped=self._dropped,
            rejected=self._rejected,
            lost=self._lost,
            flush_errors=self._flush_errors,
            last_error=self._last_error,
        )

    def missing_since(self, at_s: float) -> int:
        """Rows that were dropped, rejected or lost from `at_s` (seconds since the epoch, rounded down) on."""
        with self._lock:
            return sum(n for second, n in self._missing.items() if second >= int(at_s))

    def close(self, timeout_s: float) -> None:
        """Write what is left, for at most about `timeout_s`, and end the thread. Idempotent.

        Raises:
            StoreError: some rows could not be written; says how many and why.
        """
        with self._lock:
            self._stopping = True
        self._wake.set()
        if threading.current_thread() is self._thread:
            return  # a forgotten recorder was collected here, in the writer's own thread; it ends by itself
        self._thread.join(timeout_s)
        self._abandon.set()
        self._thread.join()
        if self._lost:
            raise StoreError(f"{self._lost} rows could not be written to {self._database.name}: {self._last_error}")

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1
            self._missing[int(time.time())] += 1
        why = "it is closed" if self._stopping else f"its queue of {self._capacity} rows is full"
        self._tell_once("dropped", "%s: %s, further rows are counted and dropped", self._database.name, why)

    def _tell_once(self, key: str, message: str, *args: object) -> None:
        if key not in self._told:
            self._told.add(key)
            log.warning(message, *args)

    # --- the writer's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait(self._flush_interval_s)
            self._wake.clear()
            stopping = self._stopping  # read before the queue is emptied, so that nothing accepted stays behind
            while batch := self._take():
                self._write(batch)
            if stopping:
                break
        self._connection.close()

    def _take(self) -> list[Item]:
        batch: list[Item] = []
        while self._items and len(batch) < _BATCH_ROWS:
            batch.append(self._items.popleft())
        self._taken += _weight(batch)
        return batch

    def _write(self, batch: list[Item]) -> None:
        delay_s = _FIRST_RETRY_S
        while not self._attempt(batch):
            if self._abandon.wait(delay_s):
                self._give_up(batch)
                return
            delay_s = min(2 * delay_s, _LONGEST_RETRY_S)

    def _attempt(self, batch: list[Item]) -> bool:
        """Commit a batch; True when it is dealt with, False when it should be tried again."""
        try:
            self._commit(batch)
        except Exception as error:
            self._roll_back()
            if _may_pass(error):
                self._note_failure(error)
                return False
            if len(batch) == 1:
                self._reject(batch[0], error)
                return True
            return self._attempt_each(batch)
        self._told.discard("failing")
        self._written += _weight(batch)
        _resolve(batch)
        return True

    def _attempt_each(self, batch: list[Item]) -> bool:
        """One bad row must not take the others with it: commit each alone; what is dealt with leaves the batch."""
        while batch:
            if not self._attempt(batch[:1]):
                return False
            del batch[0]
        return True

    def _commit(self, batch: list[Item]) -> None:
        rows: dict[str, list[Sequence[Any]]] = defaultdict(list)
        jobs = []
        for item in batch:
            if isinstance(item, Row):
                rows[item.table].append(item.values)
            else:
                jobs.append(item)
        if not rows and all(job.is_barrier for job in jobs):
            return
        self._connection.begin()
        for table, values in rows.items():
            self._append(table, values)
        for job in jobs:
            self._execute(job)
        self._connection.commit()

    def _append(self, table: str, values: list[Sequence[Any]]) -> None:
        if table not in self._appenders:
            self._appenders[table] = self._connection.appender(table)
        appender = self._appenders[table]
        for start in range(0, len(values), _CHUNK_ROWS):
            appender.append_rows(values[start : start + _CHUNK_ROWS])
        appender.flush()

    def _execute(self, job: Job) -> None:
        if job.check is not None:
            job.check(self._connection)
        for sql, params in job.statements:
            self._connection.execute(sql, params).fetchall()  # fetched, as an open result refuses the next statement

    def _connect(self) -> None:
        self._connection = self._database.cursor()
        self._appenders: dict[str, duckdb.Appender] = {}

    def _roll_back(self) -> None:
        for appender in self._appenders.values():
            with suppress(Exception):  # the error that led here is the one to tell
                appender.clear()
        with suppress(Exception):  # a commit that failed has already ended its transaction
            self._connection.rollback()

    def _note_failure(self, error: Exception) -> None:
        self._flush_errors += 1
        self._last_error = f"{type(error).__name__}: {error}"
        self._tell_once(
            "failing", "%s cannot be written (%s); rows are kept and tried again", self._database.name, error
        )
        if _is_fatal(error):
            with suppress(Exception):  # still failing: the next attempt says so
                self._connection.close()
                self._database.reopen()
                self._connect()

    def _reject(self, item: Item, error: Exception) -> None:
        self._rejected += 1
        self._last_error = f"{type(error).__name__}: {error}"
        if isinstance(item, Job):
            _fail(item, error)  # whoever asked for it is told, so it is not missing unnoticed
        else:
            with self._lock:
                self._missing[int(time.time())] += 1
            self._tell_once("rejected", "%s refused a row for %s: %s", self._database.name, item.table, error)

    def _give_up(self, batch: list[Item]) -> None:
        self._lost += _weight(batch)
        with self._lock:
            self._missing[int(time.time())] += _weight(batch)
        for item in batch:
            if isinstance(item, Job):
                _fail(item, StoreError(f"{self._database.name} could not be written: {self._last_error}"))


def _weight(batch: list[Item]) -> int:
    return sum(isinstance(item, Row) or not item.is_barrier for item in batch)


def _may_pass(error: Exception) -> bool:
    """Whether the same batch can succeed later: the disk or the database is at fault, not the rows."""
    import duckdb

    return isinstance(error, duckdb.OperationalError | OSError) or _is_fatal(error)


def _is_fatal(error: Exception) -> bool:
    """Whether DuckDB has given this database (or connection) up."""
    import duckdb

    return isinstance(error, duckdb.FatalException | duckdb.InternalError | duckdb.ConnectionException)


def _resolve(batch: list[Item]) -> None:
    for item in batch:
        if isinstance(item, Job) and item.done.set_running_or_notify_cancel():
            item.done.set_result(None)


def _fail(job: Job, error: Exception) -> None:
    if job.done.set_running_or_notify_cancel():
        job.done.set_exception(error if isinstance(error, StoreError) else StoreError(str(error)))
