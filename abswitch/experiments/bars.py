"""`Bar`: an interval on a scale around zero, for a cell of a table; positions are percentages of its width."""

from __future__ import annotations

import math
from dataclasses import dataclass

from abswitch.experiments.readings import Reading
from abswitch.stats import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Where things are drawn, 0–100 from left to right; zero lies in the middle.

    Attributes:
        at, low, high: the estimate and the ends of its interval.
        margin_left, margin_width: what the margin allows; None where there is none.
        words: the same, for who cannot see it.
    """

    at: float
    low: float
    high: float
    margin_left: float | None
    margin_width: float | None
    words: str


def bar_of(reading: Reading) -> Bar | None:
    """The difference of a metric; None where there is no interval to draw."""
    found, margin = reading.comparison, reading.metric.margin
    if found is None or not all(map(math.isfinite, (found.estimate, found.low, found.high))):
        return None
    reach = max(abs(found.low), abs(found.high))
    if margin is not None and margin < 3 * reach:
        reach = max(reach, margin)
    reach = 1.15 * reach or 1.0

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2)

    left = right = None
    if margin is not None:
        # A guardrail may be as much better as it likes.
        one_sided = reading.metric.role == Role.GUARDRAIL
        left = 0.0 if one_sided and reading.metric.sign < 0 else place(-margin)
        right = 100.0 if one_sided and reading.metric.sign > 0 else place(margin)
    return Bar(
        at=place(found.estimate),
        low=place(found.low),
        high=place(found.high),
        margin_left=left,
        margin_width=None if left is None or right is None else round(right - left, 2),
        words=f"difference {reading.difference.value}, interval {reading.interval}, {reading.finding}",
    )
