"""`ModelCache`: sole owner of instances and of their residency.

Loads each version once however many ask, wakes what sleeps, and keeps the whole within its budget: what to bring down,
and to which tier, is decided by the pure `policy.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from abswitch.clock import Clock, SystemClock
from abswitch.domain import ModelVersion, Residency, VersionKey
from abswitch.errors import EngineClosed, InstanceError, InvalidInput, LoadFailed, OutOfBudget
from abswitch.serving.arrivals import Arrivals, Arrived, CachedVersion, SwapRefused
from abswitch.serving.departures import Departures, Hangs, or_hangs
from abswitch.serving.instance import InstanceFactory, ModelInstance
from abswitch.serving.policy import Budget, Footprint, Held, Room, Step, lacking, make_room, usage
from abswitch.serving.timings import Timings
from abswitch.serving.weights import weights_of

__all__ = ["CachedVersion", "ModelCache"]

log = logging.getLogger(__name__)
_LEVELS = {Residency.SLEEPING: 1, Residency.DISCARDED: 2}


@dataclass(slots=True)
class _Parked:
    """A version whose instance exists but does not serve now."""

    cached: CachedVersion
    tier: Residency


class ModelCache:
    """Instances by version. Lives on the engine's loop.

    Args:
        backends: instance factory by backend name.
        max_cached_models: how many versions to hold at most; those in use do not fall under it.
        in_use: tells whether requests or routes need a version now.
        device_bytes, host_bytes: memory that all versions together may take; None is no limit.
        timings: takes note of how long loads, wakes and swaps took.
        digest: of a version's weights.
        change_timeout_s: how long an instance may take to go to sleep, or to wake; one that takes longer hangs. Others
            wait for the room that it is to make.
    """

    def __init__(
        self,
        backends: Mapping[str, InstanceFactory],
        *,
        max_cached_models: int,
        in_use: Callable[[VersionKey], bool],
        device_bytes: int | None = None,
        host_bytes: int | None = None,
        timings: Timings | None = None,
        digest: Callable[[ModelVersion], Awaitable[str | None]] = weights_of,
        clock: Clock | None = None,
        change_timeout_s: float = 300.0,
    ) -> None:
        self._backends = dict(backends)
        self.budget = Budget(max_models=max_cached_models, device_bytes=device_bytes, host_bytes=host_bytes)
        self.timings = timings or Timings()
        self._in_use = in_use
        self._loaded: dict[VersionKey, CachedVersion] = {}  # least recently used first
        self._parked: dict[VersionKey, _Parked] = {}  # brought down longest ago first
        self._loading: dict[VersionKey, asyncio.Task[CachedVersion]] = {}
        self._reserved: dict[VersionKey, Footprint] = {}
        self._memory: dict[VersionKey, Footprint] = {}
        self._kept: dict[VersionKey, int] = {}  # bytes of the device that it kept when it slept last
        self._departures = Departures()
        self._clock, self._change_timeout_s = clock or SystemClock(), change_timeout_s
        self._arrivals = Arrivals(
            self._departures, self.timings, digest, self._clock, change_timeout_s=change_timeout_s
        )
        self._pins: Counter[VersionKey] = Counter()
        self._room = asyncio.Lock()
        self._closed = False

    def check_backend(self, version: ModelVersion) -> None:
        """Refuse a version that no backend can serve."""
        backend = version.config.backend
        if backend not in self._backends:
            give = f"for {version}, give the engine one: SwitchingEngine(backends={{{backend!r}: …}})"
            raise InvalidInput("model_config.backend", backend, f"one of {', '.join(sorted(self._backends))}; {give}")

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> Mapping[VersionKey, CachedVersion]:
        """What is able to serve now, least recently used first."""
        return dict(self._loaded)

    @property
    def tiers(self) -> Mapping[VersionKey, Residency]:
        """The tier of all that is held, what serves now first; what is not in here is cold. From any thread."""
        resident = dict.fromkeys(tuple(self._loaded), Residency.RESIDENT)
        return resident | {key: parked.tier for key, parked in tuple(self._parked.items())}

    def tier(self, key: VersionKey) -> Residency:
        """How much of a version is held."""
        parked = self._parked.get(key)
        return parked.tier if parked else Residency.RESIDENT if key in self._loaded else Residency.COLD

    @property
    def held(self) -> list[Held]:
        """Everything that takes memory and stays, the first to leave first: parked, resident, and what is being loaded.

        Not what is on its way out: it makes no other leave, but a load waits until it has gone.
        """
        parked = [self._held(key, one.cached.instance, one.tier) for key, one in self._parked.items()]
        resident = [self._held(key, cached.instance, Residency.RESIDENT) for key, cached in self._loaded.items()]
        loading = [
            Held(
                key=key,
                tier=Residency.RESIDENT,
                tiers=((Residency.RESIDENT, footprint),),
                engine=("loading", key),
                protected=True,
            )
            for key, footprint in self._reserved.items()
        ]
        return parked + resident + loading

    def _held(self, key: VersionKey, instance: ModelInstance, tier: Residency) -> Held:
        awake = self._memory.get(key, Footprint())
        tiers = [(Residency.RESIDENT, awake)]
        if instance.can_sleep:
            kept = min(self._kept.get(key, 0), awake.device_bytes)
            tiers.append((Residency.SLEEPING, Footprint(kept, awake.host_bytes + awake.device_bytes - kept)))
            tiers.append((Residency.DISCARDED, Footprint(kept, awake.host_bytes)))
        return Held(
            key=key,
            tier=tier,
            tiers=tuple(tiers),
            engine=instance.engine_key,
            protected=key in self._loading or bool(self._pins[key]) or self._in_use(key),
        )

    async def needs(self, version: ModelVersion) -> Footprint:
        """Memory that bringing a version up would take beyond what it holds: measured if it was loaded before."""
        return await self._needs(version, self._backends[version.config.backend](version))

    async def engine_to_join(self, version: ModelVersion) -> Hashable | None:
        """The `engine_key` of a running engine that loading a cold version would join; None where it starts its own."""
        return await self._backends[version.config.backend](version).engine_to_join()

    async def _needs(self, version: ModelVersion, instance: ModelInstance) -> Footprint:
        key = version.key
        if key in self._loaded:
            return Footprint()
        known = self._memory.get(key)
        if known is not None and key in self._parked:
            now = self._held(key, self._parked[key].cached.instance, self._parked[key].tier).footprint
            return Footprint(known.device_bytes - now.device_bytes, max(0, known.host_bytes - now.host_bytes))
        return await instance.needs()

    def why_needed(self, key: VersionKey) -> str | None:
        """Why a version must stay, or come, whatever its traffic; None when nothing here needs it."""
        if key in self._loading:
            return "it is being loaded"
        return "it is pinned" if self._pins.get(key) else None

    # --- pinning ----------------------------------------------------------------------------------------------------

    def pin(self, key: VersionKey) -> None:
        """Keep a version from being brought down until `unpin`."""
        self._pins[key] += 1

    def unpin(self, key: VersionKey) -> None:
        """Undo one `pin`."""
        self._pins[key] -= 1
        if self._pins[key] <= 0:
            del self._pins[key]

    # --- bringing up ------------------------------------------------------------------------------------------------

    async def ensure(self, version: ModelVersion) -> CachedVersion:
        """The version, able to serve; loads or wakes it when needed. Concurrent calls share the work.

        Raises:
            OutOfBudget: it does not fit beside what is in use; nothing was loaded.
            LoadFailed: with the reason; the next call tries again.
        """
        key = version.key
        while True:
            if self._closed:
                raise EngineClosed("the engine was shut down")
            cached = self._loaded.pop(key, None)
            if cached is not None:
                self._loaded[key] = cached  # now the most recently used
                return cached
            task = self._loading.get(key) or self._begin(version, self._bring_up(version))
            try:
                # Shielded: one caller that goes away must not end the load for the others.
                return await asyncio.shield(task)
            except SwapRefused as refused:
                log.info("%s; it is loaded from its files", refused)

    def _begin(self, version: ModelVersion, work: Coroutine[Any, Any, CachedVersion]) -> asyncio.Task[CachedVersion]:
        """Let work bring a version up; whoever asks for the version meanwhile waits for it."""
        task = self._loading[version.key] = asyncio.create_task(work, name=f"load {version}")
        task.add_done_callback(lambda done: self._load_ended(version.key, done))
        return task

    def _load_ended(self, key: VersionKey, task: asyncio.Task[CachedVersion]) -> None:
        self._loading.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s", error)  # also when everybody who waited for it has gone

    async def _bring_up(self, version: ModelVersion) -> CachedVersion:
        key = version.key
        try:
            instance = self._backends[version.config.backend](version)
            await self._reserve(version, instance)
            parked = self._parked.pop(key, None)
            if parked is None:
                arrived = await self._arrivals.load(version, instance)
            else:
                self._reserved[key] += self._held(key, parked.cached.instance, parked.tier).footprint
                arrived = await self._arrivals.wake(version, parked.cached, instance)
            self._take_in(key, arrived)
        finally:
            self._reserved.pop(key, None)
        await self.trim(keep=key)
        return arrived.cached

    def _take_in(self, key: VersionKey, arrived: Arrived) -> None:
        self._loaded[key], self._memory[key] = arrived

    async def _reserve(self, version: ModelVersion, instance: ModelInstance) -> None:
        """Make room for a version, and hold it until its memory can be measured."""
        key = version.key
        async with self._room:
            need = await self._needs_of(version, instance)
            await self._fit(need, models=0 if key in self._parked else 1, what=str(version))
            self._reserved[key] = need

    async def _needs_of(self, version: ModelVersion, instance: ModelInstance) -> Footprint:
        try:
            return await self._needs(version, instance)
        except InvalidInput:
            raise
        except Exception as error:
            raise LoadFailed(f"{version} did not load: {error}") from error

    async def swap(self, old: VersionKey, version: ModelVersion) -> CachedVersion:
        """Put a version's weights into the engine of another one, which is drained and is forgotten.

        Whoever asks for the new version meanwhile waits for it.

        Raises:
            InstanceError: that is not possible here, or the old version is in use; nothing changed.
            LoadFailed: the engine did not take the weights; it was stopped.
        """
        cached = self._swappable(old, version)
        reason = await cached.instance.why_not_in_place(version)
        if reason is not None:
            raise InstanceError(f"{version} cannot take the place of {old[0]}:{old[1]}: {reason}")
        cached = self._swappable(old, version)  # again: it took time to find that out
        del self._loaded[old]  # nobody may lease it while its weights change
        self._reserved[version.key] = self._memory.get(old, Footprint())
        return await asyncio.shield(self._begin(version, self._swap(old, cached, version)))

    def _swappable(self, old: VersionKey, version: ModelVersion) -> CachedVersion:
        """The version whose place is to be taken.

        Raises:
            InstanceError: it is not there, or needed; or the new one is there, too.
        """
        if self._closed:
            raise EngineClosed("the engine was shut down")
        cached = self._loaded.get(old)
        if cached is None:
            raise InstanceError(f"{old[0]}:{old[1]} is not loaded")
        if self._in_use(old):
            raise InstanceError(f"{old[0]}:{old[1]} is in use")
        if version.key in self._loading or self.tier(version.key) is not Residency.COLD:
            raise InstanceError(f"{version} is held, or being loaded, beside {old[0]}:{old[1]}")
        return cached

    async def _swap(self, old: VersionKey, cached: CachedVersion, version: ModelVersion) -> CachedVersion:
        try:
            arrived = await self._arrivals.swap(cached, version)
            self._take_in(version.key, arrived)
        except SwapRefused:
            await self._put_back(old, cached)
            raise
        finally:
            self._reserved.pop(version.key, None)
        return arrived.cached

    async def _put_back(self, key: VersionKey, cached: CachedVersion) -> None:
        """Of a version that was to be swapped and stays: if it serves still, and was not loaded anew meanwhile."""
        serves = await _serves(cached.instance)
        if serves and key not in self._loading and self.tier(key) is Residency.COLD:
            self._loaded[key] = cached
        else:
            await self._departures.stop(cached.instance)

    # --- bringing down ----------------------------------------------------------------------------------------------

    def plan_room(self, need: Footprint, *, models: int = 1) -> Room:
        """What would have to leave for `need` more bytes."""
        return make_room(self.held, need, self.budget, models=models)

    async def trim(self, keep: VersionKey | None = None) -> None:
        """Bring down what is over the budget and not needed."""
        if keep is not None:
            self.pin(keep)
        try:
            async with self._room:
                await self._follow(lambda: self.plan_room(Footprint(), models=0))
        finally:
            if keep is not None:
                self.unpin(keep)

    async def _fit(self, need: Footprint, *, models: int, what: str) -> None:
        room = self.plan_room(need, models=models)
        if room.fits:
            room = await self._follow(lambda: self.plan_room(need, models=models))
        while room.fits and self._is_taken_still(need):
            await self._departures.next_gone()
            room = await self._follow(lambda: self.plan_room(need, models=models))
        if not room.fits:
            raise OutOfBudget(
                f"{what} did not load: it needs {need}, of which {room.lacking} do not fit; "
                f"{usage(self.held)} are held by {_named(self.held)}, and the budget is {self.budget}"
            )

    def _is_taken_still(self, need: Footprint) -> bool:
        """Whether memory that `need` is to have has not been given back yet by what is on its way out."""
        taken = usage([*self.held, *self._departures.held])
        return lacking(taken + need, self.budget) != Footprint()

    async def _follow(self, plan: Callable[[], Room]) -> Room:
        """Take a plan's steps one by one, and make it anew after each: what is needed changes while one is taken."""
        while (room := plan()).steps:
            await self._bring_down(room.steps[0])
        return room

    async def _bring_down(self, step: Step) -> None:
        key, cached = step.key, self._loaded.get(step.key)
        if step.to is Residency.COLD or cached is None:
            await self.discard(key)
            return
        del self._loaded[key]  # at once: nobody may lease what goes to sleep
        log.info("%s:%s goes to sleep (%s)", *key, step.to)
        try:
            async with or_hangs(self._change_timeout_s, self._clock):
                await cached.instance.sleep(_LEVELS[step.to])
                self._kept[key] = (await cached.instance.memory()).device_bytes
        except BaseException as error:  # who waited for room has gone, it may be; nobody holds this one now
            log.warning("%s:%s did not go to sleep and is unloaded: %s", *key, error)
            killed_for = str(error) if isinstance(error, Hangs) else None
            self._leave(key, cached.instance, Residency.RESIDENT, killed_for)
            if not isinstance(error, Exception):
                raise
            await self._departures.gone(key)
            return
        self._parked[key] = _Parked(cached, step.to)

    def evict(self, key: VersionKey, *, killed_for: str | None = None) -> None:
        """Forget a version now and begin to stop its instance; does nothing when nothing of it is held.

        Args:
            killed_for: the instance hangs or is gone, for this reason, and cannot help.
        """
        if (parked := self._parked.pop(key, None)) is not None:
            self._leave(key, parked.cached.instance, parked.tier, killed_for)
        if (cached := self._loaded.pop(key, None)) is not None:
            self._leave(key, cached.instance, Residency.RESIDENT, killed_for)

    def _leave(self, key: VersionKey, instance: ModelInstance, tier: Residency, killed_for: str | None = None) -> None:
        self._departures.begin(self._held(key, instance, tier), instance, killed_for)

    async def settled(self, key: VersionKey) -> None:
        """Return once nothing is on its way to bring the version up; that cannot be cut short."""
        while (loading := self._loading.get(key)) is not None:
            await asyncio.wait([loading])

    async def discard(self, key: VersionKey) -> None:
        """Evict, and wait until nothing of the version is left."""
        self.evict(key)
        await self._departures.gone(key)

    async def close(self) -> None:
        """Stop every instance, loading ones included.

        Raises:
            InstanceError: naming those that did not stop; everything else was stopped.
        """
        self._closed = True
        for task in tuple(self._loading.values()):
            # A load cannot be interrupted half-way without leaving a process behind: let it end, then stop it.
            await asyncio.wait([task])
        for key in (*self._loaded, *self._parked):
            self.evict(key)
        if failures := await self._departures.all_gone():
            raise InstanceError("; ".join(failures))


async def _serves(instance: ModelInstance) -> bool:
    try:
        facts = await instance.health()
    except Exception as error:
        log.warning("%s: its health could not be seen: %s", instance.version, error)
        return False
    return facts.alive and facts.residency is Residency.RESIDENT


def _named(held: list[Held]) -> str:
    return ", ".join(f"{one.key[0]}:{one.key[1]}{' (in use)' if one.protected else ''}" for one in held) or "nothing"
