"""One transaction per batch of events, each event once: the number of the last one is committed with the rows."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from abswitch.errors import StoreError
from abswitch.store.database import Database, Unavailable
from abswitch.store.items import Event, Item, Job, Row

if TYPE_CHECKING:
    import duckdb

_CHUNK_ROWS = (
    512  # the appender converts rows while holding the interpreter lock: 512 rows are about half a millisecond
)


class Gap(NamedTuple):
    """Rows of one second that will not be in the store."""

    at_s: int
    rows: int
    reason: str


class Committer:
    """Writes to the database. Belongs to the writer's thread; connects when it is first needed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._appenders: dict[str, duckdb.Appender] = {}

    def connect(self) -> None:
        """Have a connection; opens a database that was held elsewhere, or was given up.

        Raises:
            Unavailable: it cannot be opened now.
        """
        if self._connection is not None:
            return
        try:
            self._database.ensure_open()
            self._connection = self._database.cursor()
        except Exception as error:  # whatever it is, the rows are not at fault
            raise Unavailable(str(error)) from error
        self._appenders = {}

    def last_event(self, writer_id: str) -> int:
        """The number of the last event of a writer that is committed; a writer that is new is written down."""
        self.connect()
        assert self._connection is not None, "just connected"
        held = self._connection.execute("SELECT last_event FROM writers WHERE writer_id = ?", [writer_id]).fetchall()
        if held:
            return int(held[0][0])
        row = [writer_id, os.getpid(), time.time()]
        self._connection.execute("INSERT INTO writers VALUES (?, 0, ?, ?)", row).fetchall()
        return 0

    def commit(self, writer_id: str, events: Sequence[Event], gaps: Iterable[Gap] = ()) -> None:
        """Commit events, whole or not at all.

        Raises:
            StoreError: a job was refused.
            Unavailable: the database cannot be opened now.
            Exception: whatever DuckDB raises.
        """
        self.connect()
        assert self._connection is not None, "just connected"
        self._connection.begin()
        for table, values in _by_table(events).items():
            self._append(table, values)
        for _, item in events:
            if isinstance(item, Job):
                self._execute(item)
        for gap in gaps:
            self._run("INSERT INTO gaps VALUES (?, ?, ?, ?)", (writer_id, *gap))
        self._run("UPDATE writers SET last_event = ? WHERE writer_id = ?", (events[-1].number, writer_id))
        self._connection.commit()

    def _append(self, table: str, values: list[Sequence[Any]]) -> None:
        assert self._connection is not None, "called by `commit`"
        if table not in self._appenders:
            self._appenders[table] = self._connection.appender(table)
        appender = self._appenders[table]
        for start in range(0, len(values), _CHUNK_ROWS):
            appender.append_rows(values[start : start + _CHUNK_ROWS])
        appender.flush()

    def _execute(self, job: Job) -> None:
        if job.refusal is not None:
            sql, params, message = job.refusal
            if found := self._run(sql, params):
                raise StoreError(message.format(*found[0]))
        for sql, params in job.statements:
            self._run(sql, params)

    def _run(self, sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        assert self._connection is not None, "called by `commit`"
        # Fetched, as an open result refuses the next statement.
        return self._connection.execute(sql, params).fetchall()

    def roll_back(self, error: Exception) -> None:
        """Undo what a failed commit began; after a fatal error the connection goes."""
        for appender in self._appenders.values():
            with suppress(Exception):  # the error that led here is the one to tell
                appender.clear()
        if self._connection is not None:
            with suppress(Exception):  # a commit that failed has already ended its transaction
                self._connection.rollback()
        if is_fatal(error):
            self.close()
            with suppress(Exception):  # still failing: the next attempt says so
                self._database.reopen()

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be the connection that failed
                connection.close()


def _by_table(events: Sequence[Event]) -> dict[str, list[Sequence[Any]]]:
    rows: dict[str, list[Sequence[Any]]] = defaultdict(list)
    for _, item in events:
        if isinstance(item, Row):
            rows[item.table].append(item.values)
    return rows


def may_pass(error: Exception) -> bool:
    """Whether the same events can succeed later: the disk or the database is at fault, not the rows."""
    import duckdb

    return isinstance(error, duckdb.OperationalError | OSError | Unavailable) or is_fatal(error)


def is_fatal(error: Exception) -> bool:
    """Whether DuckDB has given this database (or connection) up."""
    import duckdb

    return isinstance(error, duckdb.FatalException | duckdb.InternalError | duckdb.ConnectionException)


def weight(items: Iterable[Item]) -> int:
    """How many of the items write something."""
    return sum(isinstance(item, Row) or not item.is_barrier for item in items)
