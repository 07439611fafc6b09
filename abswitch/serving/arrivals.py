"""`Arrivals`: how a version comes to serve: loaded from its files, woken, or put into the engine of another one.

As long as it has not arrived nobody else knows of it; so what goes wrong after something began to run ends that here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from abswitch.clock import Clock
from abswitch.domain import LoadFacts, ModelVersion, SwitchPath
from abswitch.errors import InstanceError, LoadFailed
from abswitch.serving.departures import Departures, Hangs, or_hangs
from abswitch.serving.instance import ModelInstance
from abswitch.serving.policy import Footprint
from abswitch.serving.timings import Timings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedVersion:
    """A version that is able to serve: the instance, what it cost, and how it came to be so."""

    instance: ModelInstance
    facts: LoadFacts
    path: SwitchPath = SwitchPath.LOAD
    weights_digest: str | None = None


class Arrived(NamedTuple):
    """A version that came to serve, and the memory that its whole engine takes."""

    cached: CachedVersion
    memory: Footprint


class SwapRefused(InstanceError):
    """An engine does not take another version's weights; nothing changed."""


def load_path(version: ModelVersion, *, joins: bool) -> SwitchPath:
    """How a cold version comes to serve, depending on whether it `joins` an engine that runs already."""
    if not joins:
        return SwitchPath.LOAD
    return SwitchPath.JOIN if version.config.adapter is None else SwitchPath.ADAPTER


class Arrivals:
    """Lives on the engine's loop.

    Args:
        departures: where instances stop.
        timings: takes note of how long loads, wakes and swaps took.
        digest: of a version's weights.
        change_timeout_s: how long an instance may take to wake, or to take other weights; one that takes longer hangs.
    """

    def __init__(
        self,
        departures: Departures,
        timings: Timings,
        digest: Callable[[ModelVersion], Awaitable[str | None]],
        clock: Clock,
        *,
        change_timeout_s: float,
    ) -> None:
        self._departures = departures
        self._timings = timings
        self._digest = digest
        self._clock = clock
        self._change_timeout_s = change_timeout_s

    async def load(self, version: ModelVersion, instance: ModelInstance) -> Arrived:
        """Start a new instance.

        Raises:
            LoadFailed: nothing is left running.
        """
        reading = asyncio.ensure_future(self._digest(version))  # the same bytes that the load reads, beside it
        try:
            facts = await instance.start()
        except LoadFailed:
            reading.cancel()
            raise
        except Exception as error:
            reading.cancel()
            raise LoadFailed(f"{version} did not load: {type(error).__name__}: {error}") from error
        log.info("loaded %s in %.1f s", version, facts.load_s)
        async with self._or_stopped(version, instance):
            path = load_path(version, joins=facts.shared_engine)
            self._timings.took(*version.key, path, facts.load_s)
            await reading
            digest = await self._digest(version)  # again, as what the load downloaded tells what a branch means; quick
            return Arrived(CachedVersion(instance, facts, path, digest), await instance.memory())

    async def wake(self, version: ModelVersion, asleep: CachedVersion, fresh: ModelInstance) -> Arrived:
        """Wake an instance; what does not wake is stopped, and a fresh one is loaded.

        Raises:
            LoadFailed: nothing is left running.
        """
        began_s = self._clock.monotonic_s()
        try:
            async with or_hangs(self._change_timeout_s, self._clock):
                await asleep.instance.wake()
        except Exception as error:
            log.warning("%s did not wake and is loaded anew: %s", version, error)
            await self._departures.stop(asleep.instance, str(error) if isinstance(error, Hangs) else None)
            return await self.load(version, fresh)
        async with self._or_stopped(version, asleep.instance):
            self._timings.took(*version.key, SwitchPath.WAKE, self._clock.monotonic_s() - began_s)
            return Arrived(replace(asleep, path=SwitchPath.WAKE), await asleep.instance.memory())

    async def swap(self, old: CachedVersion, version: ModelVersion) -> Arrived:
        """Put a version's weights into the engine of another one, which is drained.

        Raises:
            SwapRefused: nothing changed.
            LoadFailed: the old instance was stopped.
        """
        began_s = self._clock.monotonic_s()
        reading = asyncio.ensure_future(self._digest(version))
        async with self._or_stopped(version, old.instance):
            try:
                async with or_hangs(self._change_timeout_s, self._clock):
                    instance = await old.instance.become(version)
            except BaseException as error:
                reading.cancel()
                if isinstance(error, InstanceError) and not isinstance(error, LoadFailed | Hangs):
                    raise SwapRefused(str(error)) from error
                raise
        async with self._or_stopped(version, instance):
            took_s = self._clock.monotonic_s() - began_s
            self._timings.took(*version.key, SwitchPath.IN_PLACE, took_s)
            memory = await instance.memory()
            facts = LoadFacts(
                load_s=took_s, memory_bytes=memory.host_bytes, device_memory_bytes=memory.device_bytes or None
            )
            return Arrived(CachedVersion(instance, facts, SwitchPath.IN_PLACE, await reading), memory)

    @asynccontextmanager
    async def _or_stopped(self, version: ModelVersion, instance: ModelInstance) -> AsyncIterator[None]:
        """What goes wrong here ends the instance, which runs; unless it was refused, and that left it as it is."""
        try:
            yield
        except SwapRefused:
            raise
        except BaseException as error:
            hangs = isinstance(error, Hangs)
            await self._departures.stop(instance, str(error) if hangs else None)
            if isinstance(error, LoadFailed) or not isinstance(error, Exception):
                raise
            reason = str(error) if hangs else f"{type(error).__name__}: {error}"
            raise LoadFailed(f"{version} did not load: {reason}") from error
