"""What a store shows to other processes while one of them writes it: Parquet files and a manifest that names them.

A folder beside the store holds one file per span of rows for the tables that only grow, and one per table of current
state. The manifest is replaced as a whole, after the files it names are complete, and every file in it is of one and
the same transaction. Files that left the manifest stay for a minute, for readers that still hold the one before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from abswitch.store.database import SCHEMA_VERSION, Database

if TYPE_CHECKING:
    import duckdb

GROWING = (
    "requests",
    "scores",
    "assignments",
    "routes",
    "transitions",
    "health_samples",
    "alerts",
    "looks",
    "registry_history",
)
STATE = ("meta", "model_versions", "operations", "plans", "verdicts", "outbox", "runs", "artifacts", "writers", "gaps")
MANIFEST = "manifest.json"
_MERGE_AT = 16
"""So many neighbouring segments of one level become one of the next: each row is written again at most log16 times."""
_GRACE_S = 60.0
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows `first` to `last` (row ids of the table, both included) in one file."""

    file: str
    first: int
    last: int
    rows: int
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is published.

    Attributes:
        segments: by table that only grows, in order.
        state: file by table of current state.
        as_of_s: everything committed before is in it; seconds since the epoch.
        complete: the writer closed the store in order, and everything is in it.
        created_at_s: of the store that was published; another one of the same name is another store.
    """

    as_of_s: float
    complete: bool
    created_at_s: float = 0.0
    segments: Mapping[str, tuple[Segment, ...]] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    format: int = _FORMAT

    def files(self) -> dict[str, list[str]]:
        """The files of each table."""
        growing = {table: [segment.file for segment in segments] for table, segments in self.segments.items()}
        return growing | {table: [file] for table, file in self.state.items()}

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none, or none of today's format and schema."""
        try:
            body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if (body.get("format"), body.get("schema_version")) != (_FORMAT, SCHEMA_VERSION):
            return None
        segments = {table: tuple(Segment(**one) for one in many) for table, many in body.pop("segments").items()}
        return cls(segments=segments, **body)

    def write(self, folder: Path) -> None:
        """Replace the manifest of a folder.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        fresh = folder / f"{MANIFEST}.new"
        fresh.write_text(json.dumps(asdict(self)), encoding="utf-8")
        fresh.replace(folder / MANIFEST)


def folder_of(store: Path) -> Path:
    """Where a store is published."""
    return store.with_name(store.name + ".published")


class Publisher:
    """Keeps the published folder of one store up to date.

    `changed` may be called from any thread, the others from one at a time.

    Args:
        database: nothing is published of one in memory.
        is_on: False publishes nothing, and withdraws what was published before, as it would grow old.
    """

    def __init__(self, database: Database, *, is_on: bool = True) -> None:
        self._database = database
        self._is_on = is_on and database.path is not None
        self.folder = None if database.path is None else folder_of(database.path)
        self._manifest: Manifest | None = None
        self._leaving: dict[str, float] = {}
        self._gone: set[str] = set()
        self._created_at_s: float | None = None
        self._rows_changed = self._state_changed = True
        if self.folder is not None and not is_on:
            (self.folder / MANIFEST).unlink(missing_ok=True)

    def changed(self, state: bool) -> None:
        """Something was committed; `state`: perhaps in a table of current state."""
        self._rows_changed = True
        self._state_changed = self._state_changed or state

    def refresh(self) -> None:
        """Publish what changed since the last time.

        Raises:
            StoreError, duckdb.Error, OSError: it cannot be; it is tried again by the next call.
        """
        if not (self._is_on and self._rows_changed and self._database.is_open):
            return
        state = self._state_changed
        self._rows_changed = self._state_changed = False  # before, so that a commit meanwhile is seen the next time
        try:
            self.publish(state=state)
        except BaseException:
            self.changed(state)
            raise

    def finish(self) -> None:
        """Publish everything, and that nothing will follow.

        Raises:
            StoreError, duckdb.Error, OSError: it cannot be; readers go on with the file itself.
        """
        if self._is_on:
            self.publish(state=self._state_changed, complete=True)

    def begin(self) -> None:
        """Go on from what the last process published, and say that more will follow; does nothing the second time.

        Raises:
            StoreError, duckdb.Error, OSError: it cannot be.
        """
        if self._created_at_s is not None or self.folder is None:
            return
        created_at_s = float(self._database.rows("SELECT created_at_s FROM meta")[0][0])
        self.folder.mkdir(parents=True, exist_ok=True)
        found = Manifest.read(self.folder)
        if found is not None and found.created_at_s != created_at_s:
            found = None
        if found is None:
            (self.folder / MANIFEST).unlink(missing_ok=True)
        elif found.complete:
            found = replace(found, complete=False)
            found.write(self.folder)
        named = _files(found)
        self._leaving = {path.name: time.monotonic() for path in self.folder.iterdir() if path.name not in named}
        self._leaving.pop(MANIFEST, None)
        self._manifest, self._created_at_s = found, created_at_s

    def publish(self, *, state: bool = True, complete: bool = False) -> None:
        """Publish everything committed so far.

        Args:
            state: tables of current state may have changed since the last time.
            complete: nothing will follow.

        Raises:
            StoreError, duckdb.Error, OSError: it cannot be; what was published before stays.
        """
        self.begin()
        if self.folder is None:
            return
        as_of_s = time.time()
        made: list[str] = []
        try:
            manifest = self._next(as_of_s, made, state=state, complete=complete)
            manifest.write(self.folder)
        except BaseException:
            for file in made:
                self._remove(file)
            raise
        self._swap(manifest, made)

    def forget(self) -> None:
        """Rows went: every row is written anew by the next `publish`."""
        self._gone |= _files(self._manifest)
        self._manifest = None

    def _next(self, as_of_s: float, made: list[str], *, state: bool, complete: bool) -> Manifest:
        known = self._manifest.state if self._manifest and not state else {}
        cursor = self._database.cursor()
        try:
            cursor.execute("BEGIN TRANSACTION READ ONLY")  # one state of all tables
            segments = {table: self._segments(cursor, table, made) for table in GROWING}
            current = {table: known.get(table) or self._copy(cursor, table, "", made) for table in STATE}
        finally:
            cursor.close()
        created_at_s = self._created_at_s or 0.0
        return Manifest(as_of_s=as_of_s, complete=complete, created_at_s=created_at_s, segments=segments, state=current)

    def _segments(self, cursor: duckdb.DuckDBPyConnection, table: str, made: list[str]) -> tuple[Segment, ...]:
        count, last = cursor.execute(f"SELECT count(*), coalesce(max(rowid), -1) FROM {table}").fetchall()[0]
        known = self._manifest.segments.get(table, ()) if self._manifest else ()
        if known and (known[-1].last > last or sum(segment.rows for segment in known) > count):
            known = ()  # rows went: begin anew
        after = known[-1].last if known else -1
        if last > after:
            known = (*known, self._segment(cursor, table, after + 1, last, 0, made))
        if sum(segment.rows for segment in known) != count:
            known = (self._segment(cursor, table, 0, last, _level_of(count), made),)
        return self._merged(cursor, table, known, made)

    def _merged(
        self, cursor: duckdb.DuckDBPyConnection, table: str, segments: tuple[Segment, ...], made: list[str]
    ) -> tuple[Segment, ...]:
        tail = segments[-_MERGE_AT:]
        if len(tail) < _MERGE_AT or len({segment.level for segment in tail}) > 1:
            return segments
        one = self._segment(cursor, table, tail[0].first, tail[-1].last, tail[0].level + 1, made)
        return self._merged(cursor, table, (*segments[:-_MERGE_AT], one), made)

    def _segment(
        self, cursor: duckdb.DuckDBPyConnection, table: str, first: int, last: int, level: int, made: list[str]
    ) -> Segment:
        where = f"WHERE rowid BETWEEN {first} AND {last}"
        rows = cursor.execute(f"SELECT count(*) FROM {table} {where}").fetchall()[0][0]
        return Segment(self._copy(cursor, table, where, made), first, last, rows, level)

    def _copy(self, cursor: duckdb.DuckDBPyConnection, table: str, where: str, made: list[str]) -> str:
        file = f"{table}-{uuid4().hex[:16]}.parquet"
        made.append(file)
        assert self.folder is not None, "nothing in memory is published"
        path = str(self.folder / file).replace("'", "''")
        cursor.execute(
            f"COPY (SELECT * FROM {table} {where}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)"
        ).fetchall()
        return file

    def _swap(self, manifest: Manifest, made: list[str]) -> None:
        before, kept = _files(self._manifest) | self._gone, _files(manifest)
        self._manifest, self._gone = manifest, set()
        for file in set(made) - kept:  # merged at once; nobody has seen it
            self._remove(file)
        now_s = time.monotonic()
        for file in before - kept:
            self._leaving[file] = now_s
        for file, since_s in tuple(self._leaving.items()):
            if now_s - since_s > _GRACE_S:
                self._remove(file)
                del self._leaving[file]

    def _remove(self, file: str) -> None:
        assert self.folder is not None, "nothing in memory is published"
        with suppress(OSError):
            (self.folder / file).unlink(missing_ok=True)


def _level_of(rows: int) -> int:
    level = 0
    while rows > 4096 * _MERGE_AT**level:
        level += 1
    return level


def _files(manifest: Manifest | None) -> set[str]:
    return set() if manifest is None else {file for files in manifest.files().values() for file in files}
