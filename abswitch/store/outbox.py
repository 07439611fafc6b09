"""The durable queue between the store and a tracking sink, and the one thread that empties it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from abswitch.errors import StoreError
from abswitch.store.recorder import Recorder, json_text
from abswitch.store.tracking import TrackingStatus

log = logging.getLogger("abswitch.tracking")

_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 30.0
_MOST_ATTEMPTS = 5


class Unreachable(Exception):
    """The sink's server does not answer; the job waits."""


class Refused(Exception):
    """The sink's server will never take this job."""


@dataclass(frozen=True, slots=True)
class _Job:
    job_id: str
    body: Mapping[str, Any]


class Outbox:
    """One sink's rows of the table `outbox`."""

    def __init__(self, recorder: Recorder, sink: str) -> None:
        self._recorder = recorder
        self._sink = sink

    def add(self, job_id: str, body: Mapping[str, Any]) -> None:
        """Commit a job; the same id again changes nothing.

        Raises:
            StoreError: it could not be committed.
        """
        sql = (
            "INSERT INTO outbox SELECT ?, (SELECT coalesce(max(sequence), 0) + 1 FROM outbox WHERE sink = ?), ?, ?, ?, "
            "NULL, NULL ON CONFLICT DO NOTHING"
        )
        row = (self._sink, self._sink, job_id, json_text("job", body), time.time())
        self._recorder.execute((sql, row)).result()

    def next(self, away: Collection[str] = ()) -> _Job | None:
        """The oldest job that waits, but for those whose server (`uri` of the body) is one of these."""
        rows = self._recorder.rows(
            "SELECT job_id, body FROM outbox WHERE sink = ? AND published_at_s IS NULL "
            "AND NOT list_contains(?::VARCHAR[], coalesce(body->>'uri', '')) ORDER BY sequence LIMIT 1",
            (self._sink, list(away)),
        )
        return _Job(rows[0][0], json.loads(rows[0][1])) if rows else None

    def done(self, job_id: str, result: Mapping[str, Any]) -> None:
        """Commit that a job is dealt with, and how. Its copies of requests go: they must not outlive the requests."""
        sql = (
            "UPDATE outbox SET published_at_s = ?, result = ?, body = json_merge_patch(body, '{\"traces\": null}') "
            "WHERE sink = ? AND job_id = ?"
        )
        row = (time.time(), json_text("result", result), self._sink, job_id)
        self._recorder.execute((sql, row)).result()

    def withdraw(self, job_id: str, reason: str) -> None:
        """Commit that a job that still waits is not to be delivered any more."""
        sql = (
            "UPDATE outbox SET published_at_s = ?, result = ? WHERE sink = ? AND job_id = ? AND published_at_s IS NULL"
        )
        row = (time.time(), json_text("result", {"error": reason}), self._sink, job_id)
        self._recorder.execute((sql, row)).result()

    def result(self, operation_id: str) -> Mapping[str, Any] | None:
        """What the sink answered to the latest published job of an operation."""
        rows = self._recorder.rows(
            "SELECT result FROM outbox WHERE sink = ? AND body->>'operation_id' = ? AND published_at_s IS NOT NULL "
            "AND result->>'error' IS NULL ORDER BY sequence DESC LIMIT 1",
            (self._sink, operation_id),
        )
        return json.loads(rows[0][0]) if rows else None

    def published(self, job_id: str) -> Mapping[str, Any] | None:
        """What the sink answered to a job, a refusal included; None while it waits."""
        rows = self._recorder.rows("SELECT result FROM outbox WHERE sink = ? AND job_id = ?", (self._sink, job_id))
        return json.loads(rows[0][0]) if rows and rows[0][0] is not None else None

    def counts(self) -> tuple[int, int, int]:
        """Jobs published, pending, given up."""
        rows = self._recorder.rows(
            "SELECT count(*) FILTER (published_at_s IS NOT NULL AND result->>'error' IS NULL), "
            "count(*) FILTER (published_at_s IS NULL), "
            "count(*) FILTER (published_at_s IS NOT NULL AND result->>'error' IS NOT NULL) FROM outbox WHERE sink = ?",
            (self._sink,),
        )
        return rows[0]


class OutboxFlusher:
    """Delivers an outbox's jobs in order, each until it is delivered or refused, from one daemon thread.

    Args:
        outbox: the queue; jobs that an earlier process left are delivered first.
        deliver: publishes a job's body and returns what to remember; called again for the same job after a failure or
            a crash, so it must find what an earlier attempt already made. Raises `Unreachable` or `Refused`; anything
            else is tried again, five times in all.
        target: the sink in words, for messages.
        prepare: called in the flusher's thread before it looks for jobs, to add those that could not be added at once.
    """

    def __init__(
        self,
        outbox: Outbox,
        deliver: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        *,
        target: str,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._outbox = outbox
        self._prepare = prepare
        self._deliver = deliver
        self._target = target
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._idle = threading.Condition()
        self._rounds = 0
        self._asked = 0
        self._last_error: str | None = None
        self._told = False
        self._thread = threading.Thread(target=self._run, name="abswitch-tracking", daemon=True)
        self._thread.start()

    def add(self, job_id: str, body: Mapping[str, Any]) -> None:
        """Queue a job durably."""
        self._outbox.add(job_id, body)
        self._wake.set()

    def wake(self) -> None:
        """Have it look for jobs soon."""
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Try now; True once nothing is pending, False after a round that failed or `timeout_s`."""
        with self._idle:
            self._asked += 1
            asked = self._asked
            self._wake.set()
            self._idle.wait_for(lambda: self._rounds >= asked or not self._thread.is_alive(), timeout_s)
        return self._outbox.counts()[1] == 0

    def status(self) -> TrackingStatus:
        """What became of everything."""
        published, pending, given_up = self._outbox.counts()
        return TrackingStatus(published=published, pending=pending, given_up=given_up, last_error=self._last_error)

    def close(self, timeout_s: float) -> None:
        """Flush and stop. A delivery that hangs past `timeout_s` is left to the daemon thread and, later, to replay."""
        if self._stop.is_set():
            return
        deadline_s = time.monotonic() + timeout_s
        if self._thread.is_alive():
            self.flush(timeout_s)
        self._stop.set()
        self._wake.set()
        self._thread.join(max(0.1, deadline_s - time.monotonic()))

    # --- the flusher's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        delay_s = _FIRST_RETRY_S
        while not self._stop.is_set():
            self._wake.clear()
            asked = self._asked
            try:
                caught_up = self._round()
            except StoreError:  # the store was closed first: what is pending stays there for the next process
                break
            with self._idle:
                self._rounds = asked
                self._idle.notify_all()
            self._wake.wait(None if caught_up else delay_s)
            delay_s = _FIRST_RETRY_S if caught_up else min(2 * delay_s, _LONGEST_RETRY_S)
        with self._idle:
            self._idle.notify_all()

    def _round(self) -> bool:
        """Deliver what waits; False when a server failed and what is meant for it must wait."""
        attempts, away = 0, set[str]()
        self._prepare()
        while not self._stop.is_set() and (job := self._outbox.next(away)) is not None:
            attempts += 1
            try:
                result = self._deliver(job.body)
            except Unreachable as error:
                self._failed(error)
                if "uri" not in job.body:
                    return False
                away.add(job.body["uri"])  # another server's jobs do not wait for this one
                attempts = 0
                continue
            except Exception as error:  # a library's errors are many; only the count of attempts bounds them
                if isinstance(error, Refused) or attempts >= _MOST_ATTEMPTS:
                    self._give_up(job, error)
                    attempts = 0
                else:
                    self._failed(error)
                    self._stop.wait(_FIRST_RETRY_S)
                continue
            self._outbox.done(job.job_id, result)
            if not away:
                self._delivered()
            attempts = 0
        return not away

    def _failed(self, error: Exception) -> None:
        self._last_error = str(error)
        if not self._told:
            self._told = True
            log.warning(
                "%s takes no results now (%s); work goes on, results wait in the store and are published later",
                self._target,
                error,
            )

    def _delivered(self) -> None:
        if self._told:
            log.info("%s answers again; publishing what waited", self._target)
        self._told = False
        self._last_error = None

    def _give_up(self, job: _Job, error: Exception) -> None:
        self._last_error = str(error)
        log.warning("%s refused %s: %s", self._target, job.job_id, error)
        self._outbox.done(job.job_id, {"error": str(error)})
