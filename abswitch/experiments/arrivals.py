"""When requests are sent: a fixed number of users, Poisson arrivals, or the instants of a trace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from abswitch import checks
from abswitch.clock import Clock
from abswitch.errors import InvalidInput

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """So many requests under way at once; the next starts when one ends. Says little about latency under real load.

    Raises:
        InvalidInput: fewer than one.
    """

    concurrency: int = 16

    def __post_init__(self) -> None:
        checks.integer("load.concurrency", self.concurrency, low=1)

    def arrivals_s(self) -> Iterator[float]:
        """No instant: a request is sent as soon as there is room."""
        while True:
            yield 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Requests arrive at random, at a mean rate, however fast they are answered.

    Args:
        rate_per_s: mean arrivals per second.
        seed: the same seed gives the same arrivals.
        concurrency: under way at most; what arrives above it waits for its turn.

    Raises:
        InvalidInput: a field is outside its range.
    """

    rate_per_s: float
    seed: int = 0
    concurrency: int = 256

    def __post_init__(self) -> None:
        checks.number("load.rate_per_s", self.rate_per_s, low=0.0, above=True)
        checks.integer("load.seed", self.seed, low=0)
        checks.integer("load.concurrency", self.concurrency, low=1)

    def arrivals_s(self) -> Iterator[float]:
        """Instants from the start, without end."""
        chance, now_s = random.Random(self.seed), 0.0
        while True:
            now_s += chance.expovariate(self.rate_per_s)
            yield now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests arrive as they once did; a trace that ends before the prompts do begins anew.

    Args:
        at_s: instants in order, seconds from any origin; at least two, not all the same.
        speed: 2 replays it twice as fast.
        concurrency: under way at most.

    Raises:
        InvalidInput: a field is outside its range, or the instants are not in order.
    """

    at_s: tuple[float, ...]
    speed: float = 1.0
    concurrency: int = 256

    def __post_init__(self) -> None:
        for instant in self.at_s:
            checks.number("load.at_s", instant)
        if len(self.at_s) < 2 or any(b < a for a, b in pairwise(self.at_s)) or self.at_s[0] == self.at_s[-1]:
            raise InvalidInput("load.at_s", self.at_s[:5], "at least two rising instants (s)")
        checks.number("load.speed", self.speed, low=0.0, above=True)
        checks.integer("load.concurrency", self.concurrency, low=1)

    def arrivals_s(self) -> Iterator[float]:
        """Instants from the start, without end; between two rounds lies the trace's mean gap."""
        first, last = self.at_s[0], self.at_s[-1]
        round_s = (last - first) * len(self.at_s) / (len(self.at_s) - 1)
        offset_s = 0.0
        while True:
            for instant in self.at_s:
                yield (offset_s + instant - first) / self.speed
            offset_s += round_s


Arrivals = ClosedLoop | Poisson | Trace


async def send_all(
    items: Iterable[T],
    arrivals: Arrivals,
    send: Callable[[T], Awaitable[None]],
    clock: Clock,
    *,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Send every item at its time, until they end or `enough()` says so; returns when all that was sent has ended.

    Args:
        send: must not raise; what it raises ends everything.
        enough: asked before each item.
    """
    room = asyncio.Semaphore(arrivals.concurrency)
    began_s = clock.monotonic_s()

    async def one(item: T) -> None:
        try:
            await send(item)
        finally:
            room.release()

    async with asyncio.TaskGroup() as under_way:
        for item, at_s in zip(items, arrivals.arrivals_s(), strict=False):
            if enough():
                break
            if (wait_s := began_s + at_s - clock.monotonic_s()) > 0:
                await _sleep(clock, wait_s)
            await room.acquire()
            if enough():
                break
            under_way.create_task(one(item))


async def _sleep(clock: Clock, delay_s: float) -> None:
    over = asyncio.Event()
    timer = clock.call_later(delay_s, over.set)
    try:
        await over.wait()
    finally:
        timer.cancel()
