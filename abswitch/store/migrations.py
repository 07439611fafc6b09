"""How a store of an older schema becomes one of today's: a list of statements for each version, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

# As they were when version 3 was made: a migration must not change when schema.sql does.
_NEW_TABLES_3 = (
    """
    CREATE TABLE assignments (
        operation_id VARCHAR NOT NULL, model_id VARCHAR NOT NULL, unit_id VARCHAR NOT NULL,
        arm VARCHAR NOT NULL, version VARCHAR NOT NULL, share DOUBLE NOT NULL, step INTEGER NOT NULL,
        route_epoch BIGINT NOT NULL, request_id VARCHAR NOT NULL, assigned_at_s DOUBLE NOT NULL
    )
    """,
    """
    CREATE TABLE health_samples (
        at_s DOUBLE NOT NULL, model_id VARCHAR NOT NULL, version VARCHAR NOT NULL, alive BOOLEAN NOT NULL,
        residency VARCHAR NOT NULL, in_flight INTEGER NOT NULL, waiting INTEGER NOT NULL,
        last_token_age_s DOUBLE, memory_bytes BIGINT NOT NULL, window_s DOUBLE NOT NULL,
        requests INTEGER NOT NULL, errors INTEGER NOT NULL, requests_per_s DOUBLE,
        output_tokens_per_s DOUBLE, latency_p50_s DOUBLE, latency_p95_s DOUBLE, latency_p99_s DOUBLE,
        first_token_p50_s DOUBLE, first_token_p95_s DOUBLE, error VARCHAR
    )
    """,
    """
    CREATE TABLE alerts (
        alert_id VARCHAR NOT NULL, state VARCHAR NOT NULL, severity VARCHAR NOT NULL,
        metric VARCHAR NOT NULL, model_id VARCHAR NOT NULL, version VARCHAR, operation_id VARCHAR,
        value DOUBLE, threshold DOUBLE, message VARCHAR NOT NULL, at_s DOUBLE NOT NULL
    )
    """,
    """
    CREATE TABLE looks (
        operation_id VARCHAR NOT NULL, look INTEGER NOT NULL, metric VARCHAR NOT NULL,
        role VARCHAR NOT NULL, method VARCHAR NOT NULL, arm VARCHAR NOT NULL, n_baseline BIGINT NOT NULL,
        n_candidate BIGINT NOT NULL, estimate DOUBLE, low DOUBLE, high DOUBLE, p_value DOUBLE,
        e_value DOUBLE, alpha_spent DOUBLE, decision VARCHAR NOT NULL, at_s DOUBLE NOT NULL
    )
    """,
    """
    CREATE TABLE runs (
        run_id VARCHAR PRIMARY KEY, experiment VARCHAR NOT NULL, status VARCHAR NOT NULL, exit_code INTEGER,
        operation_id VARCHAR, spec_digest VARCHAR NOT NULL, spec JSON NOT NULL, parameters JSON NOT NULL,
        environment JSON NOT NULL, folder VARCHAR, started_at_s DOUBLE NOT NULL, ended_at_s DOUBLE
    )
    """,
    """
    CREATE TABLE artifacts (
        artifact_id VARCHAR PRIMARY KEY, run_id VARCHAR, operation_id VARCHAR, kind VARCHAR NOT NULL,
        name VARCHAR NOT NULL, uri VARCHAR NOT NULL, media_type VARCHAR NOT NULL, size_bytes BIGINT,
        sha256 VARCHAR, created_at_s DOUBLE NOT NULL
    )
    """,
    """
    CREATE TABLE writers (
        writer_id VARCHAR NOT NULL, last_event BIGINT NOT NULL, pid INTEGER NOT NULL,
        began_at_s DOUBLE NOT NULL
    )
    """,
    """
    CREATE TABLE gaps (
        writer_id VARCHAR NOT NULL, at_s DOUBLE NOT NULL, row_count BIGINT NOT NULL, reason VARCHAR NOT NULL
    )
    """,
)

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
    # Bandits' propensities, late scores and human feedback; what runs, monitors and writers tell of themselves.
    2: (
        "ALTER TABLE requests ADD COLUMN propensity DOUBLE",
        "ALTER TABLE scores ADD COLUMN source VARCHAR DEFAULT 'scorer'",
        "ALTER TABLE scores ADD COLUMN comment VARCHAR",
        "ALTER TABLE scores ALTER COLUMN source DROP DEFAULT",
        "ALTER TABLE scores ALTER COLUMN source SET NOT NULL",
        *_NEW_TABLES_3,
    ),
    # The commits behind hub ids, and the registry's history with who and why. Some stores of version 3 had a history
    # without those; of the others, only the registrations are known.
    3: (
        "ALTER TABLE model_versions ADD COLUMN commit_sha VARCHAR",
        """
        CREATE TABLE IF NOT EXISTS registry_history (
            model_id VARCHAR NOT NULL, version VARCHAR, event VARCHAR NOT NULL, detail JSON NOT NULL,
            operation_id VARCHAR, at_s DOUBLE NOT NULL
        )
        """,
        "ALTER TABLE registry_history RENAME TO registry_history_3",
        """
        INSERT INTO registry_history_3
        SELECT model_id, version, 'registered', '{}', NULL, registered_at_s FROM model_versions
        WHERE (model_id, version) NOT IN (SELECT (model_id, version) FROM registry_history_3 WHERE event = 'registered')
        """,
        """
        CREATE TABLE registry_history (
            model_id VARCHAR NOT NULL, sequence BIGINT NOT NULL, action VARCHAR NOT NULL, version VARCHAR,
            previous VARCHAR, alias VARCHAR, actor VARCHAR NOT NULL, reason VARCHAR NOT NULL, operation_id VARCHAR,
            detail JSON NOT NULL, at_s DOUBLE NOT NULL
        )
        """,
        """
        INSERT INTO registry_history
        SELECT model_id, row_number() OVER (PARTITION BY model_id ORDER BY at_s),
            CASE event
                WHEN 'activated' THEN CASE WHEN version IS NULL THEN 'withdrawn' ELSE 'promoted' END
                WHEN 'aliased' THEN CASE WHEN version IS NULL THEN 'alias removed' ELSE 'alias set' END
                WHEN 'tagged' THEN CASE WHEN detail->>'value' IS NULL THEN 'untagged' ELSE 'tagged' END
                ELSE event
            END,
            version, NULL, CASE event WHEN 'activated' THEN 'champion' ELSE detail->>'alias' END, 'user', '',
            operation_id, detail, at_s
        FROM registry_history_3 WHERE event IN ('registered', 'activated', 'aliased', 'tagged', 'deregistered')
        """,
        "DROP TABLE registry_history_3",
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
