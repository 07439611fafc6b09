"""`TransitionManager`: who is in flight on which version, and when a version has nobody left."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from abswitch.domain import VersionKey


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """One in-flight request's hold on a version; nothing leased is drained, slept or evicted."""

    request_id: str
    key: VersionKey
    arm: str
    unit_id: str
    admitted_mono_s: float


class TransitionManager:
    """Owner of leases and drains. Lives on the engine's loop; `in_flight` may be read from any thread."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._held: Counter[VersionKey] = Counter()
        self._waiting: dict[VersionKey, list[asyncio.Future[None]]] = {}

    def acquire(self, lease: Lease) -> None:
        """Begin to hold; never waits, so that choosing an arm and holding it are one step."""
        self._leases[id(lease)] = lease
        self._held[lease.key] += 1

    def release(self, lease: Lease) -> None:
        """End the hold. A lease that is not held is ignored, so that a `finally` may always call this."""
        if self._leases.pop(id(lease), None) is None:
            return
        self._held[lease.key] -= 1
        if not self._held[lease.key]:
            del self._held[lease.key]
            for waiter in self._waiting.pop(lease.key, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def holders(self, key: VersionKey) -> int:
        """How many requests hold the version."""
        return self._held[key]

    def in_flight(self, model_id: str | None = None) -> tuple[Lease, ...]:
        """Every request under way, oldest first."""
        leases = tuple(self._leases.values())
        return leases if model_id is None else tuple(one for one in leases if one.key[0] == model_id)

    async def drain(self, key: VersionKey, timeout_s: float) -> int:
        """Wait until nobody holds the version.

        Returns:
            How many still hold it after `timeout_s`; they are left to finish.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        # Again, where a request that names the version came between the last one's end and this turn of the loop.
        while self._held[key] and (left_s := until_s - loop.time()) > 0.0:
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(key, []).append(waiter)
            await asyncio.wait([waiter], timeout=left_s)
        return self._held[key]
