"""How a store of an older schema becomes one of today's: a list of statements for each version, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

MIGRATIONS: Mapping[int, tuple[str, ...]] = {
    # Shadow pairs, and where an answer came from. What was recorded before was served by what had been loaded.
    1: (
        "ALTER TABLE requests ADD COLUMN pair_id VARCHAR",
        "ALTER TABLE requests ADD COLUMN weights_digest VARCHAR",
        "ALTER TABLE requests ADD COLUMN tier VARCHAR DEFAULT 'resident'",
        "ALTER TABLE requests ADD COLUMN switch_path VARCHAR DEFAULT 'load'",
        "ALTER TABLE requests ALTER COLUMN tier DROP DEFAULT",
        "ALTER TABLE requests ALTER COLUMN switch_path DROP DEFAULT",
        "ALTER TABLE requests ALTER COLUMN tier SET NOT NULL",
        "ALTER TABLE requests ALTER COLUMN switch_path SET NOT NULL",
    ),
}
"""Schema version → what leads to the next one."""


def migrate(connection: duckdb.DuckDBPyConnection, found: int, wanted: int) -> None:
    """Bring a store from one schema version to another, step by step; each step is committed whole or not at all."""
    for version in range(found, wanted):
        connection.begin()
        try:
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute("UPDATE meta SET schema_version = ?", [version + 1])
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
