"""Where evidence is kept: DuckDB as the system of record, and what is derived from it (statistics, tracking)."""

from abswitch.store.reader import Reader, open_readonly

__all__ = ["Reader", "open_readonly"]
