"""Where evidence is kept: DuckDB as the system of record, and what is derived from it (statistics, tracking)."""
