"""The one thread that writes: a single queue in order, batches as transactions, a spool while the store cannot be."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from uuid import uuid4

from abswitch.errors import StoreError
from abswitch.store.committer import Committer, may_pass, weight
from abswitch.store.database import Database
from abswitch.store.items import Event, Item, Job, Row
from abswitch.store.ledger import Ledger, RecorderStats
from abswitch.store.spool import Spool, left_behind

log = logging.getLogger("abswitch.store")

_BATCH_ROWS = 4096
_WAKE_ROWS = 2048  # below this many waiting rows the writer is left to its interval, which saves the hot path a lock
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 1.0


class Writer:
    """A queue and the thread that empties it into the database.

    While the database cannot be written (another process holds the file, the disk is full), what comes goes to the
    spool and is replayed, in order and once, as soon as it can be. While the spool cannot be written either, it stays
    in memory up to `capacity`; then rows are dropped and counted.

    The thread is a daemon: a program that forgot `close` would otherwise never end, as the interpreter joins ordinary
    threads before it runs any exit callback. Daemon threads still run during exit callbacks, so the recorder's
    finalizer calls `close` there and nothing accepted is lost.

    Args:
        capacity: rows that may wait in memory.
        spool_bytes: how large the spool may grow.
        prepare: applied to each item in the writer's thread before it is written anywhere; must not raise.
        on_commit: called in the writer's thread after each commit, with whether tables of current state may have
            changed; must not raise.
    """

    def __init__(
        self,
        database: Database,
        *,
        capacity: int,
        flush_interval_s: float,
        spool_bytes: int,
        prepare: Callable[[Item], Item] = lambda item: item,
        on_commit: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._capacity = capacity
        self._flush_interval_s = flush_interval_s
        self._prepare, self._on_commit = prepare, on_commit
        self._items: deque[Item] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._abandon = threading.Event()
        self._lock = threading.Lock()
        # Of the writer's thread alone:
        self._spool = _spool_for(database, spool_bytes)
        self._ledger = Ledger(uuid4().hex if self._spool is None else self._spool.writer_id)
        self._number = 0
        self._held: list[Event] = []
        self._barriers: list[Job] = []
        self._behind = False  # the store does not have everything that was taken
        self._retry_s, self._retry_at_s = _FIRST_RETRY_S, 0.0
        self._committer = Committer(database)
        self._begin()
        self._thread = threading.Thread(target=self._run, name="abswitch-recorder", daemon=True)
        self._thread.start()

    @property
    def writer_id(self) -> str:
        """How the store knows this writer."""
        return self._ledger.writer_id

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
        return self._ledger.stats(len(self._items))

    def missing_since(self, at_s: float) -> int:
        """Rows that were dropped, rejected or lost from `at_s` (seconds since the epoch, rounded down) on."""
        return self._ledger.missing_since(at_s)

    def close(self, timeout_s: float) -> None:
        """Write what is left, for at most about `timeout_s`, and end the thread. Idempotent.

        What the store does not take by then stays in the spool, and is written when the store is opened next.

        Raises:
            StoreError: some rows could be written to neither; says how many and why.
        """
        with self._lock:
            self._stopping = True
        self._wake.set()
        if threading.current_thread() is self._thread:
            return  # a forgotten recorder was collected here, in the writer's own thread; it ends by itself
        self._thread.join(timeout_s)
        self._abandon.set()
        self._thread.join()
        if lost := self._ledger.lost:
            raise StoreError(f"{lost} rows could not be written to {self._database.name}: {self._ledger.last_error}")

    def _drop(self) -> None:
        self._ledger.miss("dropped", 1)
        why = "it is closed" if self._stopping else f"its queue of {self._capacity} rows is full"
        self._ledger.tell_once("dropped", "%s: %s, further rows are counted and dropped", self._database.name, why)

    # --- the writer's thread ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Write what earlier processes left in their spools, before anything of this one."""
        try:
            self._committer.last_event(self.writer_id)
            self._recover()
        except Exception as error:
            self._fall_behind(error)

    def _recover(self) -> None:
        if self._database.path is not None:
            for spool in left_behind(self._database.path):
                try:
                    self._replay(spool)
                    spool.clear()
                finally:
                    spool.close()

    def _run(self) -> None:
        while True:
            self._wake.wait(min(self._flush_interval_s, self._retry_s) if self._behind else self._flush_interval_s)
            self._wake.clear()
            stopping = self._stopping  # read before the queue is emptied, so that nothing accepted stays behind
            self._empty_queue()
            self._catch_up(at_once=stopping)
            if stopping and (not (self._items or self._held) or self._abandon.wait(self._retry_s)):
                break
        self._end()

    def _empty_queue(self) -> None:
        while not self._held and self._items:
            events = self._take()
            if events and not self._behind:
                self._write(events)
            if events and self._behind:
                self._held = events
                self._spool_held()
            self._pass_barriers()

    def _take(self) -> list[Event]:
        """The next items, numbered; barriers are put aside until everything taken so far is committed."""
        events: list[Event] = []
        while self._items and len(events) < _BATCH_ROWS:
            item = self._items.popleft()
            if isinstance(item, Job) and item.is_barrier:
                self._barriers.append(item)
                break
            self._number += 1
            events.append(Event(self._number, self._prepare(item)))
        self._ledger.taken += len(events)
        return events

    def _write(self, events: list[Event]) -> None:
        try:
            self._commit(self.writer_id, events)
        except Exception as error:
            self._fall_behind(error)

    def _commit(self, writer_id: str, events: list[Event], *, spooled: bool = False) -> None:
        """Commit events; what is dealt with leaves the list.

        Raises:
            Exception: the database is at fault, and what is left may succeed later.
        """
        gaps = self._ledger.gaps() if writer_id == self.writer_id else ()
        try:
            self._committer.commit(writer_id, events, gaps)
        except Exception as error:
            self._committer.roll_back(error)
            if may_pass(error):
                raise
            self._commit_each(writer_id, events, error, spooled=spooled)
            return
        self._ledger.kept(gaps)
        self._settle(writer_id, events, spooled=spooled)

    def _commit_each(self, writer_id: str, events: list[Event], error: Exception, *, spooled: bool) -> None:
        """One bad row must not take the others with it: commit each alone."""
        if len(events) == 1:
            self._refuse(writer_id, events.pop(), error, spooled=spooled)
        while events:
            self._commit(writer_id, events[:1], spooled=spooled)
            del events[0]

    def _settle(self, writer_id: str, events: list[Event], *, spooled: bool) -> None:
        if events:
            self._ledger.committed(writer_id, len(events), events[-1].number, spooled=spooled)
            _resolve(events)
            self._on_commit(any(isinstance(event.item, Job) for event in events))
            events.clear()

    def _refuse(self, writer_id: str, event: Event, error: Exception, *, spooled: bool) -> None:
        self._ledger.refused(writer_id, event.number, error, spooled=spooled)
        if isinstance(event.item, Row):
            self._ledger.miss("rejected", 1)
            table = event.item.table
            self._ledger.tell_once("rejected", "%s refused a row for %s: %s", self._database.name, table, error)
        elif spooled or not _fail(event.item, error):  # it was answered when it was spooled: nobody else will learn
            self._ledger.miss("rejected", 1)
            log.error("%s refused what it had taken while it could not be written: %s", self._database.name, error)

    # --- while the store cannot be written --------------------------------------------------------------------------

    def _fall_behind(self, error: Exception) -> None:
        self._ledger.flush_errors += 1
        self._ledger.failed(error)
        message = "%s cannot be written (%s); rows are kept and tried again"
        self._ledger.tell_once("failing", message, self._database.name, error)
        self._behind = True
        self._retry_at_s = time.monotonic() + self._retry_s

    def _spool_held(self) -> None:
        """Have what is held safe on disk; it stays in memory where even that fails."""
        if self._spool is None or not self._held:
            return
        try:
            self._spool.append(self._held)
        except TypeError:
            self._spool_each(self._spool)
        except OSError as error:
            self._ledger.failed(error)
            self._ledger.tell_once("spool", "the spool of %s cannot be written (%s)", self._database.name, error)
        else:
            self._spooled(self._held)
            self._held = []

    def _spool_each(self, spool: Spool) -> None:
        """One of them cannot be written down; a database would not take it, either."""
        while self._held:
            event = self._held[0]
            try:
                spool.append([event])
            except TypeError as error:
                self._refuse(self.writer_id, event, error, spooled=False)
            except OSError:
                return
            else:
                self._spooled([event])
            del self._held[0]

    def _spooled(self, events: Sequence[Event]) -> None:
        self._ledger.spooled += len(events)
        _resolve(events)  # durable: they cannot get lost any more

    def _catch_up(self, *, at_once: bool) -> None:
        """Bring the store up to date, if it is time to try."""
        if not self._behind:
            return
        self._spool_held()
        if not at_once and time.monotonic() < self._retry_at_s:
            return
        try:
            self._replay_all()
        except Exception as error:
            self._committer.roll_back(error)
            self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
            self._fall_behind(error)
            return
        self._behind, self._retry_s = False, _FIRST_RETRY_S
        self._ledger.forget("failing", "spool")
        self._pass_barriers()
        self._empty_queue()

    def _replay_all(self) -> None:
        self._recover()
        done = self._committer.last_event(self.writer_id)
        if self._spool is not None:
            self._replay(self._spool)
            self._spool.clear()
        self._apply(self.writer_id, self._held, done, spooled=False)

    def _replay(self, spool: Spool) -> None:
        """Commit what a spool holds and the store does not."""
        done = self._committer.last_event(spool.writer_id)
        settled = self._ledger.settled[spool.writer_id]
        waiting = (event for event in spool.events() if event.number > settled)
        while batch := list(islice(waiting, _BATCH_ROWS)):
            self._apply(spool.writer_id, batch, done, spooled=True)

    def _apply(self, writer_id: str, events: list[Event], done: int, *, spooled: bool) -> None:
        """Commit those after number `done`; the others are in, though their commit had seemed to fail."""
        known = [event for event in events if event.number <= done]
        del events[: len(known)]
        self._settle(writer_id, known, spooled=spooled)
        if events:
            self._commit(writer_id, events, spooled=spooled)

    def _end(self) -> None:
        self._give_up()
        if self._spool is not None:
            if self._ledger.spooled:
                log.warning("%s: %d rows wait in %s", self._database.name, self._ledger.spooled, self._spool.path)
            self._spool.close()
        self._committer.close()

    def _give_up(self) -> None:
        left = [*(event.item for event in self._held), *self._items]
        if lost := weight(left):
            self._ledger.lost += lost
            self._ledger.miss("lost", lost)
        self._ledger.taken += weight(self._items)
        self._held = []
        self._items.clear()
        for item in [*left, *self._barriers]:
            if isinstance(item, Job):
                _fail(item, StoreError(f"{self._database.name} could not be written: {self._ledger.last_error}"))

    def _pass_barriers(self) -> None:
        if not self._behind and not self._held:
            for barrier in self._barriers:
                _finish(barrier)
            self._barriers = []


def _spool_for(database: Database, largest_bytes: int) -> Spool | None:
    if database.path is None:
        return None
    try:
        return Spool.fresh(database.path, largest_bytes=largest_bytes)
    except OSError as error:
        log.warning("%s: no spool can be made beside it (%s); rows wait in memory instead", database.name, error)
        return None


def _resolve(events: Sequence[Event]) -> None:
    for _, item in events:
        if isinstance(item, Job):
            _finish(item)


def _finish(job: Job) -> None:
    if not job.done.done() and job.done.set_running_or_notify_cancel():
        job.done.set_result(None)


def _fail(job: Job, error: Exception) -> bool:
    """Tell whoever waits; False when the job was answered before."""
    if job.done.done() or not job.done.set_running_or_notify_cancel():
        return False
    job.done.set_exception(error if isinstance(error, StoreError) else StoreError(str(error)))
    return True
