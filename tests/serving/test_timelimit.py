"""What takes too long is ended by the clock of whoever asks; what does not is left alone."""

from __future__ import annotations

import asyncio

import pytest

from abswitch.clock import VirtualClock
from abswitch.errors import LoadFailed
from abswitch.serving.timelimit import time_limit


def late() -> Exception:
    return LoadFailed("too late")


async def test_what_takes_too_long_is_cancelled_and_raises_what_was_given() -> None:
    clock, ended = VirtualClock(), asyncio.Event()

    async def long() -> None:
        async with time_limit(5.0, clock, late):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    task = asyncio.create_task(long())
    await asyncio.sleep(0)
    clock.advance(4.9)
    await asyncio.sleep(0)
    assert not ended.is_set()
    clock.advance(0.1)
    with pytest.raises(LoadFailed, match="too late"):
        await task
    assert ended.is_set()


async def test_what_ends_in_time_leaves_no_timer_and_keeps_its_own_errors() -> None:
    clock = VirtualClock()
    async with time_limit(5.0, clock, late):
        pass
    with pytest.raises(TimeoutError, match="its own"):
        async with time_limit(5.0, clock, late):
            raise TimeoutError("its own")
    assert clock.next_timer_s() is None


async def test_whoever_cancels_from_outside_is_obeyed() -> None:
    async def long() -> None:
        async with time_limit(5.0, VirtualClock(), late):
            await asyncio.Event().wait()

    task = asyncio.create_task(long())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_clock_may_call_while_the_loop_stands() -> None:
    clock, loop = VirtualClock(), asyncio.new_event_loop()

    async def long() -> None:
        async with time_limit(5.0, clock, late):
            await asyncio.Event().wait()

    task = loop.create_task(long())
    loop.run_until_complete(asyncio.sleep(0))
    clock.advance(5.0)
    with pytest.raises(LoadFailed, match="too late"):
        loop.run_until_complete(task)
    loop.close()


async def test_what_ends_at_the_very_moment_is_not_too_late() -> None:
    clock = VirtualClock()
    async with time_limit(5.0, clock, late):
        clock.advance(5.0)
    await asyncio.sleep(0)
