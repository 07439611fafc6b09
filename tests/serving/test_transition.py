from __future__ import annotations

import asyncio

from abswitch.serving.transition import Lease, TransitionManager

KEY = ("m", "v1")


def lease(request_id: str = "r1", version: str = "v1") -> Lease:
    return Lease(request_id, ("m", version), "stable", "u", 0.0)


async def test_a_drain_of_nobody_ends_at_once() -> None:
    assert await TransitionManager().drain(KEY, timeout_s=60) == 0


async def test_a_drain_ends_with_the_last_holder_of_that_version() -> None:
    manager = TransitionManager()
    first, second, other = lease("r1"), lease("r2"), lease("r3", "v2")
    for one in (first, second, other):
        manager.acquire(one)
    drain = asyncio.create_task(manager.drain(KEY, timeout_s=60))
    await asyncio.sleep(0)
    manager.release(first)
    await asyncio.sleep(0)
    assert not drain.done()
    manager.release(second)
    assert await drain == 0
    assert manager.in_flight() == (other,)


async def test_one_that_comes_just_as_the_last_one_ends_is_waited_for_as_well() -> None:
    manager = TransitionManager()
    first, second = lease("r1"), lease("r2")
    manager.acquire(first)
    drain = asyncio.create_task(manager.drain(KEY, timeout_s=60))
    await asyncio.sleep(0)
    manager.release(first)
    manager.acquire(second)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not drain.done()
    manager.release(second)
    assert await drain == 0


async def test_a_deadline_reports_who_is_left_and_leaves_them() -> None:
    manager = TransitionManager()
    manager.acquire(lease())
    assert await manager.drain(KEY, timeout_s=0.001) == 1
    assert manager.holders(KEY) == 1


async def test_releasing_twice_counts_once() -> None:
    manager = TransitionManager()
    one, two = lease("same-id"), lease("same-id")
    manager.acquire(one)
    manager.acquire(two)
    manager.release(one)
    manager.release(one)
    assert manager.holders(KEY) == 1, "two requests may carry the same id; each holds for itself"


async def test_in_flight_by_model() -> None:
    manager = TransitionManager()
    manager.acquire(lease())
    assert manager.in_flight("m") and not manager.in_flight("another")
