"""`Recorder`: every request, score, route and transition becomes a row, without the request path ever waiting."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from abswitch import checks
from abswitch.domain import (
    ModelConfig,
    ModelVersion,
    RequestRecord,
    RouteRecord,
    ScoreRecord,
    TransitionRecord,
    VersionKey,
)
from abswitch.errors import InvalidInput, StoreError
from abswitch.records import (
    AlertRecord,
    ArtifactRecord,
    AssignmentRecord,
    HealthSample,
    HistoryEntry,
    LookRecord,
    RunRecord,
)
from abswitch.rollout.operation import Operation
from abswitch.store.database import Database
from abswitch.store.housekeeping import Chore, Housekeeper
from abswitch.store.items import Job, Refusal, Row
from abswitch.store.ledger import RecorderStats
from abswitch.store.published import Publisher
from abswitch.store.reader import open_readonly
from abswitch.store.reading import Params, source_of
from abswitch.store.redaction import Redact, Redaction
from abswitch.store.retention import Retainer, Retention
from abswitch.store.spool import LARGEST_BYTES
from abswitch.store.writer import Writer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PlanRecord", "Recorder", "RecorderStats", "VerdictRecord"]

_CLOSE_TIMEOUT_S = 10.0
_RETENTION_INTERVAL_S = 3600.0
_UNPUBLISHED_EPOCHS = 1_000
_EVIDENCE = """
    SELECT 1 FROM requests WHERE model_id = ? AND ? IN (assigned_version, served_version)
    UNION ALL SELECT 1 FROM routes WHERE model_id = ? AND version = ? LIMIT 1
"""
"""Routing epochs that a process may have made within the second before it was killed, and not published."""

log = logging.getLogger("abswitch.store")


class PlanRecord(NamedTuple):
    """What an experiment committed itself to; column order is that of the table `plans`, `body` is JSON values."""

    operation_id: str
    digest: str
    body: Mapping[str, Any]
    at_s: float


class VerdictRecord(NamedTuple):
    """One look at an experiment; column order is that of the table `verdicts`, `body` is JSON values."""

    operation_id: str
    look: int
    decision: str
    rule: str
    reason: str
    body: Mapping[str, Any]
    at_s: float


class Recorder:
    """The store of evidence. Every method may be called from any thread.

    `request` and `score` cost about a microsecond, never wait and never raise: when the queue is full (the disk is,
    say) the row is dropped, counted in `stats().dropped` and told once by a warning. Routes and the durable calls are
    never dropped. All go through one queue and are committed in the order of the calls; a durable call's future
    resolves once it, and everything accepted before it, is committed.

    A program that ends without `close` loses nothing that was accepted: a finalizer flushes at interpreter exit.

    While the file cannot be written (the disk is full, another process holds it), what comes is kept in a spool beside
    it, safe from a crash, and is written exactly once as soon as it can be; a durable call counts as done once it is
    there.

    Args:
        path: the DuckDB file, made with its folder when it is not there; `":memory:"` keeps nothing.
        capacity: rows that may wait in memory before further ones are dropped.
        flush_interval_s: how long a row waits at most before it is written.
        spool_bytes: how large the spool may grow (256 MiB); the first 8 MiB of it are reserved on the disk at once.
        spool_while_held: begin in the spool when another process holds the file, rather than refuse.
        redact: applied to prompts, outputs and error messages before they are stored; see `Redaction`.
        publish_interval_s: how often other processes are shown what is new; None shows them nothing.
        retention: what may go, looked at once an hour; everything is kept by default.

    Raises:
        StoreError: the file is open elsewhere, is not a store of abswitch, or has another schema version.
        InvalidInput: an argument is malformed.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        capacity: int = 65_536,
        flush_interval_s: float = 0.25,
        spool_bytes: int = LARGEST_BYTES,
        spool_while_held: bool = False,
        redact: Redact | None = None,
        publish_interval_s: float | None = 1.0,
        retention: Retention | None = None,
    ) -> None:
        checks.integer("capacity", capacity, low=1)
        checks.number("flush_interval_s", flush_interval_s, low=0.0, above=True)
        checks.integer("spool_bytes", spool_bytes, low=0)
        if redact is not None and not callable(redact):
            raise InvalidInput("redact", redact, "a callable that is given a text and returns what may be stored of it")
        if publish_interval_s is not None:
            checks.number("publish_interval_s", publish_interval_s, low=0.0, above=True)
        self._redaction = Redaction(redact)
        self._database = Database(path, may_be_held=checks.flag("spool_while_held", spool_while_held))
        publisher = Publisher(self._database, is_on=publish_interval_s is not None)
        self._writer = Writer(
            self._database,
            capacity=capacity,
            flush_interval_s=flush_interval_s,
            spool_bytes=spool_bytes,
            prepare=self._redaction,
            on_commit=publisher.changed,
        )
        self._retainer = Retainer(retention or Retention(), self._database, self._writer.submit, publisher.forget)
        chores = [Chore(f"{self._database.name} cannot be published", publish_interval_s or 1.0, publisher.refresh)]
        if retention is not None and not retention.is_unbounded:
            name = f"old rows of {self._database.name} cannot be deleted"
            chores.insert(0, Chore(name, _RETENTION_INTERVAL_S, self._retainer))
        housekeeper = Housekeeper(chores if self.path is not None else ())
        # Nothing handed to the finalizer may refer back to this object.
        self._closing = weakref.finalize(self, _close, self._writer, housekeeper, publisher, self._database)

    @property
    def path(self) -> Path | None:
        """The file, absolute; None in memory."""
        return self._database.path

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called: nothing can be written any more."""
        return not self._closing.alive

    def __repr__(self) -> str:
        state = ", closed" if self.is_closed else ""
        return f"<{type(self).__name__}: {self.path or 'in memory'}{state}>"

    # --- the request path: never waits, never raises ----------------------------------------------------------------

    def request(self, record: RequestRecord) -> None:
        """Keep one finished request."""
        self._writer.offer(Row("requests", record))

    def score(self, record: ScoreRecord) -> None:
        """Keep one score of one answer."""
        self._writer.offer(Row("scores", record))

    def assignment(self, record: AssignmentRecord) -> None:
        """Keep that a unit met an arm."""
        self._writer.offer(Row("assignments", record))

    def health_sample(self, record: HealthSample) -> None:
        """Keep one look at an instance."""
        self._writer.offer(Row("health_samples", record))

    def alert(self, record: AlertRecord) -> None:
        """Keep one change of an alert's state. Never dropped."""
        self._writer.put(Row("alerts", record))

    def look(self, record: LookRecord) -> None:
        """Keep one metric at one look. Never dropped: a sequential curve with holes misleads."""
        self._writer.put(Row("looks", record))

    def route(self, record: RouteRecord) -> None:
        """Keep one arm of a routing snapshot. Never dropped: requests are judged against it."""
        self._writer.put(Row("routes", record))

    # --- durable: the future resolves once committed -----------------------------------------------------------------

    def transition(self, record: TransitionRecord, operation: Operation | None = None) -> Future[None]:
        """Commit one move of an operation, with the state it led to.

        Args:
            operation: the operation after the move; written to `operations` in the same transaction.
        """
        statements: list[tuple[str, Sequence[Any]]] = [(_insert("transitions", len(record)), record)]
        if operation is not None:
            statements.append(_operation_statement(operation, record.at_s))
        return self._writer.submit(Job(tuple(statements)))

    def operation(self, operation: Operation, *, at_s: float) -> Future[None]:
        """Insert or replace the current state of an operation."""
        return self._writer.submit(Job((_operation_statement(operation, at_s),)))

    def version(self, version: ModelVersion, entry: HistoryEntry | None = None) -> Future[None]:
        """Insert or replace a registered version, together with its entry of the registry's history.

        Raises:
            InvalidInput: its metadata or engine arguments are not JSON values.
        """
        config = json_text("model_config", version.config.to_dict())
        metadata = json_text("metadata", dict(version.metadata))
        row = (version.model_id, version.version, config, metadata, version.registered_at_s, version.commit)
        statements = [(_insert("model_versions", len(row), replace=True), row)]
        return self._writer.submit(Job((*statements, *([] if entry is None else [_history_statement(entry)]))))

    def history(self, entry: HistoryEntry) -> Future[None]:
        """Commit an entry of the registry's history.

        Raises:
            InvalidInput: its detail is not JSON values.
        """
        return self._writer.submit(Job((_history_statement(entry),)))

    def plan(self, record: PlanRecord) -> Future[None]:
        """Insert an experiment's plan. The same plan again changes nothing.

        The future fails with `StoreError` when the operation already has a different plan: plans are pre-registered.
        """

        refusal = Refusal(
            "SELECT digest FROM plans WHERE operation_id = ? AND digest <> ?",
            (record.operation_id, record.digest),
            f"operation {record.operation_id} is committed to plan {{0}}; it cannot change",
        )
        row = record._replace(body=json_text("plan.body", record.body))  # type: ignore[arg-type]  # the row holds JSON text
        sql = _insert("plans", len(row)) + " ON CONFLICT DO NOTHING"
        return self._writer.submit(Job(((sql, row),), refusal))

    def verdict(self, record: VerdictRecord) -> Future[None]:
        """Insert or replace one look at an experiment."""
        row = record._replace(body=json_text("verdict.body", record.body))  # type: ignore[arg-type]  # as above
        return self._writer.submit(Job(((_insert("verdicts", len(row), replace=True), row),)))

    def run(self, record: RunRecord) -> Future[None]:
        """Insert or replace one execution of an experiment's specification.

        Raises:
            InvalidInput: specification, parameters or environment are not JSON values.
        """
        texts = [json_text(f"run.{name}", getattr(record, name)) for name in ("spec", "parameters", "environment")]
        row = (*record[:6], *texts, *record[9:])
        return self._writer.submit(Job(((_insert("runs", len(row), replace=True), row),)))

    def artifact(self, record: ArtifactRecord) -> Future[None]:
        """Insert or replace one file that came out of a run or an operation."""
        return self._writer.submit(Job(((_insert("artifacts", len(record), replace=True), record),)))

    def execute(self, *statements: tuple[str, Sequence[Any]]) -> Future[None]:
        """Commit statements together, in order with everything else; for the store's own modules."""
        return self._writer.submit(Job(statements))

    # --- reading and ending ------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return once everything accepted before this call is committed.

        Raises:
            StoreError: it is not within `timeout_s`; says why.
        """
        try:
            self._writer.submit(Job()).result(timeout_s)
        except TimeoutError:
            stats = self.stats()
            why = stats.last_error or "the writer is busy"
            name = self._database.name
            raise StoreError(f"{stats.queued} rows not yet in {name} after {timeout_s:g} s: {why}") from None

    def query(self, sql: str, params: Params = None) -> pd.DataFrame:
        """Flush, then read; `params` fill `?` (a sequence) or `$name` (a mapping).

        Raises:
            InvalidInput: not one reading statement.
            StoreError: it failed, or the store is closed.
        """
        self.flush()
        return self._database.select(sql, params)

    def table(self, name: str) -> pd.DataFrame:
        """A whole table or view of docs/schema.md.

        Raises:
            InvalidInput: there is none of that name.
        """
        return self.query(source_of(name))

    def export(self, source: str, path: Path | str) -> Path:
        """Write a table, or what a statement selects, to a `.parquet`, `.csv` or `.csv.gz` file; returns its path.

        Raises:
            InvalidInput: no such table, not one reading statement, or another ending.
            StoreError: the file cannot be written.
        """
        self.flush()
        return self._database.export(source, path)

    def retain(self, now_s: float | None = None) -> dict[str, int]:
        """Apply the retention now; returns how many rows went, by table.

        Args:
            now_s: seconds since the epoch; the present by default.
        """
        self.flush()
        return self._retainer.apply(now_s)

    def rows(self, sql: str, params: Params = ()) -> list[tuple[Any, ...]]:
        """`query` as plain tuples, without pandas; for the store's own modules."""
        self.flush()
        return self._database.rows(sql, params)

    def versions(self) -> list[ModelVersion]:
        """Every version that was ever registered, in order of registration."""
        columns = "version, config, metadata, registered_at_s, commit_sha"
        rows, _ = self._last_known(f"SELECT {columns} FROM model_versions ORDER BY registered_at_s")
        return [
            ModelVersion(
                version=version,
                config=ModelConfig.of(json.loads(config)),
                metadata=MappingProxyType(json.loads(metadata)),
                registered_at_s=at_s,
                commit=commit,
            )
            for version, config, metadata, at_s, commit in rows
        ]

    def registry_history(self) -> list[HistoryEntry]:
        """Every entry of every model's history, in order."""
        rows, _ = self._last_known("SELECT * FROM registry_history ORDER BY model_id, sequence, at_s")
        return [HistoryEntry._make((*row[:9], MappingProxyType(json.loads(row[9])), row[10])) for row in rows]

    def has_evidence(self, key: VersionKey) -> bool:
        """Whether requests to a version, or traffic to it, are recorded; also true while that cannot be seen."""
        found, complete = self._last_known(_EVIDENCE, (*key, *key))
        return bool(found) or not complete

    def last_epochs(self) -> dict[str, int]:
        """The highest routing epoch recorded for each model; a new process goes on from there."""
        rows, complete = self._last_known("SELECT model_id, max(epoch) FROM routes GROUP BY model_id")
        return {model_id: epoch + (0 if complete else _UNPUBLISHED_EPOCHS) for model_id, epoch in rows}

    def _last_known(self, sql: str, params: Params = ()) -> tuple[list[tuple[Any, ...]], bool]:
        """What the store holds, or what was published of it while another process holds the file; whether that is all.

        Raises:
            StoreError: neither can be read.
        """
        if self._database.is_open or self.path is None:
            return self.rows(sql, params), True
        with open_readonly(self.path, patience_s=0.0) as reader:
            return reader.rows(sql, params), reader.as_of_s is None

    def stats(self) -> RecorderStats:
        """What became of everything handed in."""
        return replace(self._writer.stats(), unredacted=self._redaction.failures)

    def missing_since(self, at_s: float) -> int:
        """Rows handed in from `at_s` (seconds since the epoch) on that are not, and will not be, in the store.

        Those that earlier processes counted are included.
        """
        sql = "SELECT coalesce(sum(row_count), 0) FROM gaps WHERE at_s >= ? AND writer_id <> ?"
        earlier = int(self.rows(sql, (int(at_s), self._writer.writer_id))[0][0])
        return earlier + self._writer.missing_since(at_s)

    def close(self) -> None:
        """Write what is left and let go of the file. Idempotent; later rows are counted as dropped.

        Raises:
            StoreError: rows could not be written within 10 s; the file is released all the same.
        """
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _close(writer: Writer, housekeeper: Housekeeper, publisher: Publisher, database: Database) -> None:
    try:
        housekeeper.close()  # before the writer, whose answers its chores may await
        writer.close(_CLOSE_TIMEOUT_S)
        if database.is_open:
            _finish(publisher, database.name)
    finally:
        database.close()


def _finish(publisher: Publisher, name: str) -> None:
    try:
        publisher.finish()
    except Exception as error:
        log.warning("%s could not be published (%s); readers will read the file itself", name, error)


def _insert(table: str, columns: int, *, replace: bool = False) -> str:
    verb = "INSERT OR REPLACE" if replace else "INSERT"
    return f"{verb} INTO {table} VALUES ({', '.join('?' * columns)})"


def _history_statement(entry: HistoryEntry) -> tuple[str, Sequence[Any]]:
    row = (*entry[:9], json_text("detail", entry.detail), *entry[10:])
    return _insert("registry_history", len(row)), row


def _operation_statement(operation: Operation, at_s: float) -> tuple[str, Sequence[Any]]:
    strategy = operation.strategy
    config: dict[str, Any] = asdict(strategy) if is_dataclass(strategy) and not isinstance(strategy, type) else {}
    row = (
        operation.operation_id,
        operation.model_id,
        operation.stable,
        operation.candidate,
        str(strategy.type),
        json_text("strategy_config", config),
        str(operation.phase),
        operation.stage,
        operation.share,
        operation.epoch,
        None if operation.ending is None else str(operation.ending),
        operation.promoted,
        operation.reason,
        operation.created_s,
        operation.phase_since_s,
        at_s,
    )
    return _insert("operations", len(row), replace=True), row


def json_text(field: str, value: object) -> str:
    """JSON of a value; paths become strings.

    Raises:
        InvalidInput: it holds something that JSON has no word for, NaN included.
    """
    try:
        return json.dumps(value, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidInput(field, value, f"JSON values only ({error})") from error


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
