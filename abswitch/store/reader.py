"""`open_readonly`: read a store from any process, also while an engine writes it. See docs/store.md for how."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from abswitch import checks
from abswitch.errors import InvalidInput, StoreError
from abswitch.store import reading
from abswitch.store.database import CONFIG, SCHEMA_VERSION, Unavailable, packaged
from abswitch.store.published import Manifest, folder_of
from abswitch.store.reading import Params

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

T = TypeVar("T")
_ATTEMPTS = 3
_POLL_S = 0.05


def open_readonly(path: Path | str, *, patience_s: float = 5.0) -> Reader:
    """A reader of the store at `path`; works while an engine in this or another process writes it.

    Args:
        patience_s: how long to wait for an engine that has only just opened the store to publish it.

    Raises:
        StoreError: there is no store, or it cannot be read now; says why.
    """
    return Reader(path, patience_s=patience_s)


read = open_readonly
"""`abswitch.read(path)`."""


class Reader:
    """Reads a store, never holds it: an engine can be started on it at any time. Safe in several threads.

    While an engine has the store, what it published is read, which is at most about a second old (`as_of_s` tells).
    After an engine was closed the published files are complete; after a crash, the file itself is read.

    Attributes:
        path: of the store.
        as_of_s: everything recorded before is in the last answer; None: everything there is.
    """

    def __init__(self, path: Path | str, *, patience_s: float = 5.0) -> None:
        checks.number("patience_s", patience_s, low=0.0)
        if not isinstance(path, str | Path) or not str(path) or str(path) == ":memory:":
            raise InvalidInput("path", path, "a store's file")
        self.path = Path(path).expanduser().resolve()
        self.as_of_s: float | None = None
        self._folder = folder_of(self.path)
        self._lock = threading.Lock()
        self._shown: tuple[Manifest, duckdb.DuckDBPyConnection] | None = None
        if not self.path.exists() and Manifest.read(self._folder) is None:
            raise StoreError(f"there is no store at {self.path}")
        self._await(time.monotonic() + patience_s)

    def _await(self, end_s: float) -> None:
        """Return once it can be read."""
        poll = threading.Event()
        while True:
            try:
                with self._lock, self._connection():
                    return
            except Unavailable:
                if time.monotonic() >= end_s:
                    raise
            poll.wait(_POLL_S)

    def query(self, sql: str, params: Params = None) -> pd.DataFrame:
        """Rows of one reading statement; docs/schema.md has the tables.

        Raises:
            InvalidInput: not one reading statement.
            StoreError: it failed, or the store cannot be read now.
        """
        reading.check_reading(sql)
        return self._try(lambda connection: reading.select(connection, str(self.path), sql, params))

    def rows(self, sql: str, params: Params = None) -> list[tuple[Any, ...]]:
        """`query` as tuples, without pandas."""
        reading.check_reading(sql)
        return self._try(lambda connection: reading.rows(connection, str(self.path), sql, params))

    def table(self, name: str) -> pd.DataFrame:
        """A whole table or view."""
        return self.query(reading.source_of(name))

    def export(self, source: str, path: Path | str) -> Path:
        """Write a table, or what a statement selects, to a `.parquet`, `.csv` or `.csv.gz` file."""
        return self._try(lambda connection: reading.export(connection, str(self.path), source, path))

    def close(self) -> None:
        """Let go of what is open. Idempotent; a later query opens it again."""
        with self._lock:
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _try(self, read: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """A file that went between manifest and scan (an hour-long query, say) is no error: there is a newer one."""
        with self._lock:
            for attempt in range(_ATTEMPTS):
                try:
                    with self._connection() as connection:
                        return read(connection)
                except StoreError:
                    if attempt == _ATTEMPTS - 1 or not self._has_gone():
                        raise
                    self._let_go()
        raise AssertionError("the last attempt returns or raises")

    def _has_gone(self) -> bool:
        if self._shown is None:
            return False
        files = [file for many in self._shown[0].files().values() for file in many]
        return not all((self._folder / file).exists() for file in files)

    def _let_go(self) -> None:
        if self._shown is not None:
            with suppress(Exception):  # it is not needed any more
                self._shown[1].close()
        self._shown = None

    @contextmanager
    def _connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The published files, or else the file itself for as long as the question takes."""
        manifest = Manifest.read(self._folder)
        if manifest is None or not manifest.complete:
            direct, why_not = self._attach()
            if direct is not None:
                self.as_of_s = None
                try:
                    yield direct
                finally:
                    direct.close()
                return
            if manifest is None:
                raise Unavailable(f"{self.path} cannot be read now, and nothing of it is published: {why_not}")
        self.as_of_s = None if manifest.complete else manifest.as_of_s
        yield self._published(manifest)

    def _attach(self) -> tuple[duckdb.DuckDBPyConnection | None, str]:
        import duckdb

        if not self.path.exists():
            return None, "the file is not there"
        try:
            connection = duckdb.connect(str(self.path), read_only=True, config=dict(CONFIG))
        except duckdb.Error as error:
            return None, reading.first_line(error)
        try:
            found = connection.execute("SELECT schema_version FROM meta").fetchall()[0][0]
        except duckdb.Error as error:
            connection.close()
            raise StoreError(f"{self.path} is not a store of abswitch: {reading.first_line(error)}") from error
        if found != SCHEMA_VERSION:
            connection.close()
            raise StoreError(
                f"{self.path} has schema version {found}, this abswitch reads {SCHEMA_VERSION}; "
                "start an engine on it once, which brings an older one up to date"
            )
        return connection, ""

    def _published(self, manifest: Manifest) -> duckdb.DuckDBPyConnection:
        if self._shown is None or self._shown[0] != manifest:
            self._let_go()
            self._shown = (manifest, self._over(manifest))
        return self._shown[1]

    def _over(self, manifest: Manifest) -> duckdb.DuckDBPyConnection:
        """A database in memory whose tables are the published files."""
        import duckdb

        connection = duckdb.connect(":memory:", config=dict(CONFIG))
        connection.execute(packaged("schema.sql")).fetchall()
        for table, files in manifest.files().items():
            if files:
                paths = ", ".join("'" + str(self._folder / file).replace("'", "''") + "'" for file in files)
                connection.execute(f"DROP TABLE {table}").fetchall()
                connection.execute(f"CREATE VIEW {table} AS FROM read_parquet([{paths}])").fetchall()
        connection.execute(packaged("views.sql")).fetchall()
        return connection
