"""`time_limit`: ends what takes too long, by the clock of whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from abswitch.clock import Clock


@asynccontextmanager
async def time_limit(limit_s: float, clock: Clock, late: Callable[[], Exception]) -> AsyncIterator[None]:
    """Cancel what is done inside when it takes longer than `limit_s`, and raise what `late` makes instead.

    It is `asyncio.timeout` on a `Clock`: all stays in one task, so that what a coroutine hands back is met without a
    turn of the loop in between.
    """
    loop, is_inside = asyncio.get_running_loop(), True

    def due() -> None:
        loop.call_soon(expire)  # a virtual clock may call while the loop stands

    def expire() -> None:
        if is_inside:
            scope.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as scope:
            timer = clock.call_later(limit_s, due)
            try:
                yield
            finally:
                is_inside = False
                timer.cancel()
    except TimeoutError:
        if not scope.expired():  # its own, of what was done inside
            raise
        raise late() from None
