"""One DuckDB file: opened, its schema laid or checked, its connection replaced after a fatal error, read safely."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch.errors import InvalidInput, StoreError
from abswitch.store import reading
from abswitch.store.migrations import MIGRATIONS, migrate
from abswitch.store.reading import Params

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

SCHEMA_VERSION = 4
MEMORY = ":memory:"

CONFIG = {
    # Extensions cannot be fetched on an offline machine, and DuckDB would try for seconds; json, parquet and icu are
    # built in.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # A table name must never resolve to a Python variable that happens to be in scope.
    "python_enable_replacements": "false",
}
_ROW_GROUP = 122_880
"""DuckDB reads so many rows in one thread, however many it has."""
_HOLDER = re.compile(r"lock is held in (?P<program>.+?) \(PID (?P<pid>\d+)\)")

# DuckDB shares a file among the connections of one process, so its lock does not stop a second recorder there; two
# writers would publish the outbox twice. This set mirrors, within the process, the lock that the system keeps between
# processes.
_OPEN_PATHS: set[Path] = set()
_OPEN_LOCK = threading.Lock()


class Unavailable(StoreError):
    """The file cannot be opened or written now; later it may."""


class Held(Unavailable):
    """The file is open in another process; it can be opened once that lets go of it."""


class Database:
    """An open store. `cursor` and `select` may be called from any thread.

    Args:
        path: the file, made (with its folder) when it is not there; `":memory:"` keeps nothing.
        may_be_held: a file that another process holds is no error; `ensure_open` opens it once it can be.

    Raises:
        StoreError: it is open elsewhere (naming who holds it), is not a store of abswitch, or is of a newer schema.
        InvalidInput: not a path.
    """

    def __init__(self, path: Path | str, *, may_be_held: bool = False) -> None:
        if not isinstance(path, str | Path) or not str(path):
            raise InvalidInput("path", path, 'a file, or ":memory:"')
        self.path: Path | None = None if path == MEMORY else Path(path).expanduser().resolve()
        self._lock = threading.Lock()
        self._closed = False
        self._root: duckdb.DuckDBPyConnection | None = None
        self._laid = False
        self._readers, self._readers_lock = 0, threading.Lock()
        self._most_threads = 1
        self._claim()
        try:
            self.ensure_open()
        except Unavailable as error:
            if not (may_be_held and isinstance(error, Held)):
                self._release()
                raise StoreError(str(error)) from error.__cause__
        except BaseException:
            self._release()
            raise

    @property
    def name(self) -> str:
        """The file, for messages."""
        return MEMORY if self.path is None else str(self.path)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own for one thread; the caller closes it.

        Raises:
            StoreError: the store was closed.
        """
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.name} is closed; open it again with Recorder({self.name!r})")
            if self._root is None:
                raise Held(f"{self.name} is held by another process; what is recorded waits in its spool")
            return self._root.cursor()

    @property
    def is_open(self) -> bool:
        """Whether it can be read and written now; otherwise another process holds the file."""
        return self._root is not None

    def ensure_open(self) -> None:
        """Open the file unless it is.

        Raises:
            Held: another process has it.
            StoreError: it cannot be opened, or is not a store of this schema.
        """
        with self._lock:
            if self._root is not None or self._closed:
                return
            self._root = self._connect()
            if not self._laid:
                self._lay_schema()
                self._laid = True

    def reopen(self) -> None:
        """Replace the connection after DuckDB gave the database up; in memory there is nothing to go back to."""
        if self.path is None:
            return
        with self._lock:
            self._let_go()
        self.ensure_open()

    def select(self, sql: str, params: Params = None) -> pd.DataFrame:
        """Rows of one reading statement; see `abswitch.store.reading.select`."""
        with self._reading() as cursor:
            return reading.select(cursor, self.name, sql, params)

    def rows(self, sql: str, params: Params = None) -> list[tuple[Any, ...]]:
        """`select` as tuples, without looking at the statement; for the store's own modules."""
        with self._reading() as cursor:
            return reading.rows(cursor, self.name, sql, params)

    def export(self, source: str, path: Path | str) -> Path:
        """A table, or what a statement selects, as a file; see `abswitch.store.reading.export`."""
        with self._reading() as cursor:
            return reading.export(cursor, self.name, source, path)

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor; while one of a large store is in use, DuckDB has all its threads.

        Otherwise it has that of the caller alone. Its others help with many rows only, but wake up at every commit,
        too, and hold for milliseconds the cores that requests and switches need.
        """
        cursor = self.cursor()
        large = _is_large(cursor)
        try:
            if large:
                self._threads(cursor, readers=1)
            yield cursor
        finally:
            if large:
                self._threads(cursor, readers=-1)
            cursor.close()

    def _threads(self, cursor: duckdb.DuckDBPyConnection, *, readers: int) -> None:
        with self._readers_lock:
            self._readers += readers
            # A store that was closed, or given up, meanwhile is told of by whatever reads it.
            with suppress(Exception):
                cursor.execute(f"SET threads = {self._most_threads if self._readers else 1}")

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._let_go()
        self._release()

    def _let_go(self) -> None:
        root, self._root = self._root, None
        if root is not None:
            # Refused while another thread reads; the file is let go of once that has its answer.
            with suppress(Exception):
                root.close()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = duckdb.connect(self.name, config=dict(CONFIG))
            self._most_threads = int(connection.execute("SELECT current_setting('threads')").fetchall()[0][0])
            connection.execute("SET threads = 1")
            return connection
        except (duckdb.Error, OSError) as error:
            kind = Held if _HOLDER.search(str(error)) else Unavailable
            raise kind(_why_not_open(self.name, error)) from error

    def _lay_schema(self) -> None:
        assert self._root is not None, "just opened"
        connection = self._root.cursor()
        try:
            tables = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
            if tables and "meta" not in tables:
                raise StoreError(f"{self.name} is a database of something else (it has {', '.join(sorted(tables))})")
            if tables:
                self._bring_up_to_date(connection)
            else:
                _create(connection)
            connection.execute(packaged("views.sql")).fetchall()
        except BaseException:
            self._let_go()
            raise
        finally:
            connection.close()

    def _bring_up_to_date(self, connection: duckdb.DuckDBPyConnection) -> None:
        rows = connection.execute("SELECT schema_version FROM meta").fetchall()
        found = rows[0][0] if rows else None
        if found is not None and found in MIGRATIONS:
            migrate(connection, found, SCHEMA_VERSION)
        elif found != SCHEMA_VERSION:
            raise StoreError(
                f"{self.name} has schema version {found}, this abswitch writes {SCHEMA_VERSION}; "
                "open it with the abswitch that made it, or begin a new file"
            )

    def _claim(self) -> None:
        with _OPEN_LOCK:
            if self.path is not None and self.path in _OPEN_PATHS:
                raise StoreError(
                    f"{self.path} is already open in this process; close() the engine or recorder that holds it, "
                    "or use its query()"
                )
            if self.path is not None:
                _OPEN_PATHS.add(self.path)

    def _release(self) -> None:
        with _OPEN_LOCK:
            if self.path is not None:
                _OPEN_PATHS.discard(self.path)


def _is_large(cursor: duckdb.DuckDBPyConnection) -> bool:
    """Whether there is more than one thread can be busy with; DuckDB knows the number without counting."""
    try:
        return bool(cursor.execute("SELECT count(*) FROM requests").fetchall()[0][0] > _ROW_GROUP)
    except Exception:  # what is wrong is told by the reading itself
        return False


def _create(connection: duckdb.DuckDBPyConnection) -> None:
    connection.begin()
    connection.execute(packaged("schema.sql"))
    connection.execute("INSERT INTO meta VALUES (?, ?, ?)", [SCHEMA_VERSION, time.time(), _package()])
    connection.commit()


def packaged(name: str) -> str:
    """A SQL file of this package."""
    return files("abswitch.store").joinpath(name).read_text(encoding="utf-8")


def _package() -> str:
    try:
        return f"abswitch {version('abswitch')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "abswitch"


def _why_not_open(name: str, error: Exception) -> str:
    holder = _HOLDER.search(str(error))
    if holder is None:
        return f"cannot open {name}: {reading.first_line(error)}"
    return (
        f"{name} is held by another process: {holder['program']}, PID {holder['pid']}. One process at a time can have "
        "it open: close the engine there (or shut that notebook's kernel down), or choose another file"
    )
