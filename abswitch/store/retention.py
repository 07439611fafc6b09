"""Old rows go; what decisions rest on stays, and what an unfinished operation needs is never touched."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from abswitch import checks
from abswitch.store.database import Database
from abswitch.store.items import Job

FINAL_PHASES = ("succeeded", "rolled back", "aborted", "failed")
_SLICE_ROWS = 100_000
"""Deleted in one transaction, so that new rows wait for a fraction of a second at most."""
_DAY_S = 86_400.0

_PHASES = ", ".join(f"'{phase}'" for phase in FINAL_PHASES)
_ENDED = f"(operation_id IS NULL OR operation_id IN (SELECT operation_id FROM operations WHERE phase IN ({_PHASES})))"

OLD: dict[str, str] = {
    "requests": f"admitted_at_s < ? AND {_ENDED}",
    "assignments": f"assigned_at_s < ? AND {_ENDED}",
    # Scores have no operation of their own: they go after the request they belong to.
    "scores": "scored_at_s < ? AND request_id NOT IN (SELECT request_id FROM requests)",
    "health_samples": "at_s < ?",
}
"""Which rows may go once they are older than the cut. Everything else (operations, transitions, routes, plans, looks,
verdicts, alerts, runs, artifacts, versions) is small and stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long requests, scores, assignments and health samples are kept; None keeps them for good.

    Args:
        days: older rows go.
        max_requests: of more requests than this the oldest go, with what belongs to them.

    Raises:
        InvalidInput: a bound is not positive.
    """

    days: float | None = None
    max_requests: int | None = None

    def __post_init__(self) -> None:
        if self.days is not None:
            checks.number("retention_days", self.days, low=0.0, above=True)
        if self.max_requests is not None:
            checks.integer("max_requests", self.max_requests, low=1)

    @property
    def is_unbounded(self) -> bool:
        """Nothing ever goes."""
        return self.days is None and self.max_requests is None


class Retainer:
    """Applies a retention to a store.

    Args:
        submit: commits a job.
        on_gone: told when rows went.
    """

    def __init__(
        self,
        retention: Retention,
        database: Database,
        submit: Callable[[Job], Future[None]],
        on_gone: Callable[[], None],
    ) -> None:
        self._retention = retention
        self._database = database
        self._submit = submit
        self._on_gone = on_gone

    def __call__(self) -> None:
        """`apply`, as a chore."""
        self.apply()

    def apply(self, now_s: float | None = None) -> dict[str, int]:
        """Delete what may go, a slice at a time; returns how many rows went, by table.

        Args:
            now_s: seconds since the epoch; the present by default.

        Raises:
            StoreError: the store cannot be read or written.
        """
        gone = dict.fromkeys(OLD, 0)
        cut = self._cut_s(time.time() if now_s is None else now_s)
        if cut is not None:
            gone = {table: self._delete(table, condition, cut) for table, condition in OLD.items()}
        if any(gone.values()):
            self._on_gone()
        return gone

    def _cut_s(self, now_s: float) -> float | None:
        """The instant before which rows go; None: all may stay."""
        retention = self._retention
        cuts = [] if retention.days is None else [now_s - retention.days * _DAY_S]
        if retention.max_requests is not None:
            sql = "SELECT admitted_at_s FROM requests ORDER BY admitted_at_s DESC LIMIT 1 OFFSET ?"
            cuts += [row[0] for row in self._database.rows(sql, (retention.max_requests - 1,))]
        return max(cuts, default=None)

    def _delete(self, table: str, condition: str, cut: float) -> int:
        gone, before = 0, self._old(table, condition, cut)
        while before:
            oldest = f"SELECT rowid FROM {table} WHERE {condition} LIMIT {_SLICE_ROWS}"
            self._submit(Job(((f"DELETE FROM {table} WHERE rowid IN ({oldest})", (cut,)),))).result()
            left = self._old(table, condition, cut)
            if left >= before:  # the deletion waits in the spool: the store cannot be written now
                break
            gone, before = gone + before - left, left
        return gone

    def _old(self, table: str, condition: str, cut: float) -> int:
        return int(self._database.rows(f"SELECT count(*) FROM {table} WHERE {condition}", (cut,))[0][0])
