from __future__ import annotations

import asyncio

import pytest

from abswitch.clock import SystemClock, VirtualClock
from tests.patience import PATIENCE_S


def test_timers_fire_in_order_at_their_own_moment() -> None:
    clock = VirtualClock()
    seen: list[tuple[str, float]] = []
    for name, delay_s in (("late", 5.0), ("early", 1.0), ("also early", 1.0)):
        clock.call_later(delay_s, lambda name=name: seen.append((name, clock.monotonic_s())))  # type: ignore[misc]
    clock.advance(4.0)
    assert seen == [("early", 1.0), ("also early", 1.0)]
    clock.advance(1.0)
    assert seen[-1] == ("late", 5.0)


def test_a_timer_set_by_a_timer_fires_on_the_way() -> None:
    clock = VirtualClock()
    seen: list[float] = []

    def again() -> None:
        seen.append(clock.monotonic_s())
        if len(seen) < 3:
            clock.call_later(1.0, again)

    clock.call_later(1.0, again)
    clock.advance(10.0)
    assert seen == [1.0, 2.0, 3.0]
    assert clock.monotonic_s() == 10.0


def test_a_cancelled_timer_does_not_fire() -> None:
    clock = VirtualClock()
    timer = clock.call_later(1.0, lambda: pytest.fail("it was cancelled"))
    timer.cancel()
    assert clock.next_timer_s() is None
    clock.advance(2.0)


def test_the_wall_clock_may_jump_and_the_monotonic_clock_does_not_notice() -> None:
    clock = VirtualClock(wall_s=1000.0)
    clock.jump_wall(-500.0)
    clock.advance(1.0)
    assert (clock.wall_s(), clock.monotonic_s()) == (501.0, 1.0)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="by_s"):
        VirtualClock().advance(-1.0)


async def test_the_system_clock_calls_back_on_the_loop() -> None:
    clock, fired = SystemClock(), asyncio.Event()
    before_s = clock.monotonic_s()
    clock.call_later(0.0, fired.set)
    await asyncio.wait_for(fired.wait(), PATIENCE_S)
    assert clock.monotonic_s() >= before_s
