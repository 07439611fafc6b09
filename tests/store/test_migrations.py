"""A store made by an older abswitch opens, with everything in it, and is then the same as a new one."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import StoreError
from abswitch.store.database import SCHEMA_VERSION, Database
from abswitch.store.migrations import MIGRATIONS, migrate

OLD = Path(__file__).with_name("schema_1.sql")
COLUMNS = (
    "SELECT table_name, column_name, data_type, is_nullable, column_default FROM duckdb_columns() "
    "WHERE NOT internal ORDER BY table_name, column_index"
)


def store_of_version_1(path: Path) -> Path:
    with duckdb.connect(str(path)) as connection:
        connection.execute(OLD.read_text(encoding="utf-8"))
        connection.execute("INSERT INTO meta VALUES (1, 0.0, 'abswitch of old')")
        connection.execute(
            "INSERT INTO requests VALUES ('r1', 'bot', NULL, 0, 1, 'stable', 'v1', 'v1', 'u1', false, 1.0, 2.0, 0.0, "
            "0.1, 0.2, 3, 4, 'stop', NULL, NULL, NULL, NULL)"
        )
    return path


def test_an_old_store_becomes_one_of_today(tmp_path: Path) -> None:
    migrated, fresh = Database(store_of_version_1(tmp_path / "old.duckdb")), Database(tmp_path / "new.duckdb")
    assert migrated.rows(COLUMNS) == fresh.rows(COLUMNS)
    assert migrated.rows("SELECT schema_version FROM meta") == [(SCHEMA_VERSION,)]
    assert migrated.rows("SELECT request_id, tier, switch_path, pair_id FROM requests") == [
        ("r1", "resident", "load", None)
    ]


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store_of_version_1(tmp_path / "old.duckdb")
    broken = {1: (*MIGRATIONS[1], "ALTER TABLE no_such_table ADD COLUMN x VARCHAR")}
    monkeypatch.setattr("abswitch.store.migrations.MIGRATIONS", broken)
    with pytest.raises(duckdb.Error, match="no_such_table"):
        Database(path)
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT schema_version FROM meta").fetchall() == [(1,)]
        assert len(connection.execute("DESCRIBE requests").fetchall()) == 22


def test_every_version_up_to_today_has_its_step() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, 99])
def test_a_version_from_elsewhere_is_refused(tmp_path: Path, version: int) -> None:
    path = store_of_version_1(tmp_path / "s.duckdb")
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE meta SET schema_version = ?", [version])
    with pytest.raises(StoreError, match=f"schema version {version}"):
        Database(path)


def test_a_history_of_the_first_form_is_carried_over(tmp_path: Path) -> None:
    """Stores of version 3 have it, or have none."""
    path = store_of_version_1(tmp_path / "old.duckdb")
    with duckdb.connect(str(path)) as connection:
        migrate(connection, 1, 3)
        connection.execute(
            "INSERT INTO model_versions VALUES ('bot', 'v1', '{}', '{}', 1.0), ('bot', 'v2', '{}', '{}', 2.0)"
        )
        connection.execute(
            "CREATE TABLE registry_history (model_id VARCHAR NOT NULL, version VARCHAR, event VARCHAR NOT NULL, "
            "detail JSON NOT NULL, operation_id VARCHAR, at_s DOUBLE NOT NULL)"
        )
        for row in (
            ("v2", "registered", "{}", None, 2.0),
            ("v1", "challenged", "{}", "op-1", 3.0),
            ("v1", "activated", "{}", "op-1", 3.1),
            ("v2", "aliased", '{"alias": "nightly"}', None, 4.0),
            (None, "aliased", '{"alias": "nightly"}', None, 5.0),
            ("v2", "tagged", '{"key": "stage", "value": "x"}', None, 6.0),
            ("v2", "tagged", '{"key": "stage", "value": null}', None, 7.0),
            (None, "linked", '{"name": "bot"}', None, 8.0),
            ("v2", "deregistered", "{}", None, 9.0),
        ):
            connection.execute("INSERT INTO registry_history VALUES ('bot', ?, ?, ?, ?, ?)", list(row))
    found = Database(path).rows(
        "SELECT sequence, action, version, alias, operation_id FROM registry_history ORDER BY 1"
    )
    assert found == [
        (1, "registered", "v1", None, None),
        (2, "registered", "v2", None, None),
        (3, "promoted", "v1", "champion", "op-1"),
        (4, "alias set", "v2", "nightly", None),
        (5, "alias removed", None, "nightly", None),
        (6, "tagged", "v2", None, None),
        (7, "untagged", "v2", None, None),
        (8, "deregistered", "v2", None, None),
    ]


def version(name: str) -> ModelVersion:
    return ModelVersion(version=name, config=ModelConfig(model_id="bot", model="org/name"))
