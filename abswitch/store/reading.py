"""Reading a store with SQL, safely: one statement, that cannot write; as pandas, as tuples, or as a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from abswitch import checks
from abswitch.errors import InvalidInput, StoreError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

Params = Sequence[Any] | Mapping[str, Any] | None
"""Fill `?` (a sequence) or `$name` (a mapping)."""


class RowSource(Protocol):
    """What evidence is read from: a recorder, or a reader of its store in another process."""

    def rows(self, sql: str, params: Params = None) -> list[tuple[Any, ...]]:
        """What one reading statement selects."""
        ...


TABLES = (
    "model_versions",
    "registry_history",
    "operations",
    "transitions",
    "routes",
    "assignments",
    "requests",
    "scores",
    "health_samples",
    "alerts",
    "plans",
    "looks",
    "verdicts",
    "runs",
    "artifacts",
    "provenance",
    "outbox",
    "tracking_links",
    "gaps",
    "writers",
    "meta",
)
"""Everything that can be read, the views included."""

_FORMATS = {
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
    ".csv": "FORMAT csv, HEADER",
    ".csv.gz": "FORMAT csv, HEADER",
}


def select(connection: duckdb.DuckDBPyConnection, name: str, sql: str, params: Params = None) -> pd.DataFrame:
    """Rows of one reading statement; nothing it says can change the store.

    Args:
        name: of the store, for messages.

    Raises:
        InvalidInput: not exactly one SELECT (WITH, FROM, VALUES, DESCRIBE, SUMMARIZE count) or EXPLAIN, or not SQL.
        StoreError: the statement failed.
    """
    check_reading(sql)
    with _reading(connection, name, sql):
        frame: pd.DataFrame = connection.execute(sql, params).df()
    return frame


def rows(connection: duckdb.DuckDBPyConnection, name: str, sql: str, params: Params = None) -> list[tuple[Any, ...]]:
    """What a statement of this package's own selects.

    Raises:
        StoreError: the statement failed, or would write.
    """
    with _reading(connection, name, sql):
        return connection.execute(sql, params).fetchall()


def export(connection: duckdb.DuckDBPyConnection, name: str, source: str, path: Path | str) -> Path:
    """Write a table, or what a statement selects, to a file, which is there whole or not at all.

    Args:
        source: name of a table or view, or one reading statement without parameters.
        path: ends in `.parquet`, `.csv` or `.csv.gz`; replaced when it is there.

    Raises:
        InvalidInput: no such table, no reading statement, or another ending.
        StoreError: it could not be written.
    """
    query = source_of(source)
    target = Path(path).expanduser()
    ending = next((ending for ending in _FORMATS if target.name.endswith(ending)), None)
    if ending is None:
        raise InvalidInput("path", str(path), f"a file that ends in {', '.join(_FORMATS)}")
    fresh = target.with_name(f".{target.name}.{os.getpid()}{ending}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _reading(connection, name, query):
            connection.execute(f"COPY ({query}) TO {_quoted(fresh)} ({_FORMATS[ending]})").fetchall()
        fresh.replace(target)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
    return target


def source_of(source: str) -> str:
    """A statement that selects a table, or the statement itself."""
    if isinstance(source, str) and source.strip() and len(source.split()) > 1:
        check_reading(source)
        return source.strip().rstrip(";")
    return f"SELECT * FROM {checks.one_of('table', source, TABLES)}"


def check_reading(sql: object) -> None:
    """It is one statement that reads.

    Raises:
        InvalidInput: it is not.
    """
    import duckdb

    allowed = "one SELECT statement; the store is written by its recorder alone"
    if not isinstance(sql, str) or not sql.strip():
        raise InvalidInput("sql", sql, allowed)
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise InvalidInput("sql", sql, f"{allowed} ({first_line(error)})") from error
    if len(statements) != 1 or statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise InvalidInput("sql", sql, allowed)


@contextmanager
def _reading(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> Iterator[None]:
    import duckdb

    try:
        # A SELECT can still hide a write (WITH x AS (DELETE … RETURNING *)); the transaction refuses those.
        connection.execute("BEGIN TRANSACTION READ ONLY")
        try:
            yield
        finally:
            connection.rollback()
    except duckdb.Error as error:
        raise StoreError(f"{name} did not answer: {first_line(error)}\nin: {sql.strip()}") from error


def first_line(error: Exception) -> str:
    """An error's message without the part that repeats the statement."""
    return str(error).strip().split("\n", 1)[0]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
