"""Rows of evidence, for tests that need some whatever a run brought."""

from __future__ import annotations

from abswitch.records import LookRecord


def look(
    number: int,
    *,
    operation_id: str = "op-1",
    arm: str = "candidate",
    metric: str = "exact",
    role: str = "primary",
    estimate: float | None = 0.2,
) -> LookRecord:
    """A look whose interval narrows with its number; no estimate means no interval."""
    half = 1.0 / number
    low, high = (None, None) if estimate is None else (estimate - half, estimate + half)
    return LookRecord(
        operation_id, number, metric, role, "mixture", arm, 10 * number, 12 * number, estimate, low, high, None, None,
        None, "undecided", 1_790_000_000.0 + number,
    )  # fmt: skip
