"""`Departures`: instances on their way out. One that does not stop is reported, and is nobody else's failure."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager

from abswitch.clock import Clock
from abswitch.domain import Residency, VersionKey
from abswitch.errors import InstanceError
from abswitch.serving.instance import ModelInstance
from abswitch.serving.policy import Held
from abswitch.serving.timelimit import time_limit

log = logging.getLogger(__name__)


class Hangs(InstanceError):
    """An instance did not do in time what it was to do, and cannot help to end it."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"it hangs: it took longer than {limit_s:g} s (switch_timeout_seconds)")


def or_hangs(limit_s: float, clock: Clock) -> AbstractAsyncContextManager[None]:
    """What an instance is told to do inside ends with `Hangs` when it takes longer."""
    return time_limit(limit_s, clock, lambda: Hangs(limit_s))


class Departures:
    """Lives on the engine's loop; one task per instance, which nobody who waits for it can cut short."""

    def __init__(self) -> None:
        self._going: dict[asyncio.Task[str | None], Held] = {}

    def begin(self, held: Held, instance: ModelInstance, killed_for: str | None = None) -> None:
        """Have an instance stop.

        Args:
            held: what is held of it until it has gone.
            killed_for: it hangs or is gone, for this reason, and cannot help.
        """
        log.info("unloading %s:%s", *held.key)
        task = asyncio.create_task(_ended(held.key, instance, killed_for), name=f"stop {held.key}")
        self._going[task] = held
        task.add_done_callback(self._going.pop)

    @property
    def held(self) -> list[Held]:
        """What takes memory still, as none of it has gone."""
        return list(self._going.values())

    async def stop(self, instance: ModelInstance, killed_for: str | None = None) -> None:
        """Stop an instance whose memory the caller accounts for until it has gone."""
        key = instance.version.key
        held = Held(key=key, tier=Residency.COLD, tiers=(), engine=instance.engine_key, protected=True)
        self.begin(held, instance, killed_for)
        await self.gone(key)

    async def next_gone(self) -> None:
        """Return once one of those on their way out has gone."""
        await asyncio.wait(self._going, return_when=asyncio.FIRST_COMPLETED)

    async def gone(self, key: VersionKey) -> None:
        """Return once nothing of a version is on its way out."""
        while going := [task for task, held in self._going.items() if held.key == key]:
            await asyncio.wait(going)

    async def all_gone(self) -> list[str]:
        """Return once nothing is on its way out, with what did not stop, in words."""
        failures: list[str] = []
        while self._going:
            ended, _ = await asyncio.wait(self._going)
            failures += [failure for task in ended if (failure := task.result()) is not None]
        return failures


async def _ended(key: VersionKey, instance: ModelInstance, killed_for: str | None) -> str | None:
    """Why the instance did not stop; None when it did."""
    try:
        await (instance.stop() if killed_for is None else instance.kill(killed_for))
    except Exception as error:
        failure = f"{key[0]}:{key[1]} did not stop: {type(error).__name__}: {error}"
        log.error("%s; a part of it may still run", failure)
        return failure
    return None
