"""schema.sql, the records of the domain and of evidence, and docs/schema.md tell the same story."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from abswitch.domain import RequestRecord, RouteRecord, ScoreRecord, TransitionRecord
from abswitch.records import AlertRecord, ArtifactRecord, AssignmentRecord, HealthSample, LookRecord, RunRecord
from abswitch.store.database import SCHEMA_VERSION
from abswitch.store.recorder import PlanRecord, Recorder, VerdictRecord

DOCS = Path(__file__).parents[2] / "docs" / "schema.md"
NULLABLE = re.compile(r"\bNone\b")


@pytest.fixture(scope="module")
def columns() -> dict[str, dict[str, bool]]:
    """Table → column → whether it may be NULL, in the order of the columns."""
    with Recorder(":memory:") as recorder:
        frame = recorder.query(
            "SELECT table_name, column_name, is_nullable FROM duckdb_columns() WHERE schema_name = 'main' "
            "AND NOT internal ORDER BY table_name, column_index"
        )
    return {
        str(table): dict(zip(rows.column_name, rows.is_nullable, strict=True))
        for table, rows in frame.groupby("table_name")
    }


@pytest.mark.parametrize(
    ("table", "record"),
    [
        ("requests", RequestRecord),
        ("scores", ScoreRecord),
        ("routes", RouteRecord),
        ("transitions", TransitionRecord),
        ("plans", PlanRecord),
        ("verdicts", VerdictRecord),
        ("assignments", AssignmentRecord),
        ("health_samples", HealthSample),
        ("alerts", AlertRecord),
        ("looks", LookRecord),
        ("runs", RunRecord),
        ("artifacts", ArtifactRecord),
    ],
)
def test_columns_are_the_records_fields_in_order(
    columns: dict[str, dict[str, bool]], table: str, record: type[RequestRecord]
) -> None:
    assert list(columns[table]) == list(record._fields)
    optional = {name for name, kind in record.__annotations__.items() if NULLABLE.search(str(kind))}
    assert {name for name, nullable in columns[table].items() if nullable} == optional


def test_every_table_and_column_is_documented(columns: dict[str, dict[str, bool]]) -> None:
    documented = _documented(DOCS.read_text(encoding="utf-8"))
    assert documented == {table: list(names) for table, names in columns.items()}


def test_the_schema_version_is_recorded() -> None:
    with Recorder(":memory:") as recorder:
        rows = recorder.query("SELECT schema_version, created_by FROM meta")
    assert rows.schema_version.tolist() == [SCHEMA_VERSION]
    assert rows.created_by[0].startswith("abswitch")


def test_the_documented_queries_run() -> None:
    (block,) = re.findall(r"```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    queries = [query for query in block.split(";") if query.strip()]
    with Recorder(":memory:") as recorder:
        for query in queries:
            assert len(recorder.query(query, {"operation_id": "op"} if "$operation_id" in query else None)) == 0
    assert len(queries) == 3


def _documented(text: str) -> dict[str, list[str]]:
    sections = re.split(r"^## `(\w+)`.*$", text, flags=re.MULTILINE)[1:]
    return {
        table: re.findall(r"^\| `(\w+)` \|", body, flags=re.MULTILINE)
        for table, body in zip(sections[::2], sections[1::2], strict=True)
    }
