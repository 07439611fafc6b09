"""Time as an interface, so that a 24-hour canary can be tested in a millisecond.

Durations and instants are seconds. `monotonic_s` orders events and never jumps; `wall_s` is for people and for rows.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A callback waiting for its moment."""

    def cancel(self) -> None:
        """Do not call back; harmless when it already happened."""


class Clock(Protocol):
    """What abswitch knows of time."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""

    def wall_s(self) -> float:
        """Seconds since the Unix epoch."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back once, `delay_s` from now, on the loop that asked."""


class SystemClock:
    """The machine's clocks; timers run on the asyncio loop that sets them."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay_s, callback)


class _VirtualTimer:
    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """A clock that moves only when told to; timers fire in order of their moment, then of their setting."""

    def __init__(self, *, monotonic_s: float = 0.0, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._wall_offset_s = wall_s - monotonic_s
        self._heap: list[tuple[float, int, _VirtualTimer]] = []
        self._order = itertools.count()

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_s(self) -> float:
        return self._monotonic_s + self._wall_offset_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = _VirtualTimer(callback)
        heapq.heappush(self._heap, (self._monotonic_s + delay_s, next(self._order), timer))
        return timer

    def jump_wall(self, by_s: float) -> None:
        """Move the wall clock alone, as a time server or a person would."""
        self._wall_offset_s += by_s

    def next_timer_s(self) -> float | None:
        """When the next live timer is due, or None."""
        while self._heap and self._heap[0][2].cancelled:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def advance(self, by_s: float) -> None:
        """Move forward, firing every timer that falls due on the way at its own moment.

        Raises:
            ValueError: `by_s` is negative.
        """
        if by_s < 0:
            raise ValueError(f"by_s: got {by_s!r}; allowed: zero or more")
        until_s = self._monotonic_s + by_s
        while (due_s := self.next_timer_s()) is not None and due_s <= until_s:
            _, _, timer = heapq.heappop(self._heap)
            self._monotonic_s = max(self._monotonic_s, due_s)
            timer.callback()
        self._monotonic_s = until_s
