"""`ModelCache`: sole owner of instances. Loads each version once however many ask, and gives memory back by LRU."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from abswitch.domain import LoadFacts, ModelVersion, SwitchPath, VersionKey
from abswitch.errors import EngineClosed, InvalidInput, LoadFailed
from abswitch.serving.instance import InstanceFactory, ModelInstance

log = logging.getLogger(__name__)


def choose_evictions(
    least_recent_first: Sequence[VersionKey], protected: Collection[VersionKey], limit: int
) -> tuple[VersionKey, ...]:
    """Which versions to unload so that at most `limit` stay. Pure.

    A protected version is never chosen, even when that leaves more than `limit`.
    """
    surplus = len(least_recent_first) - limit
    unprotected = [key for key in least_recent_first if key not in protected]
    return tuple(unprotected[: max(0, surplus)])


@dataclass(frozen=True, slots=True)
class CachedVersion:
    """A version that is loaded: the instance and what loading it cost."""

    instance: ModelInstance
    facts: LoadFacts
    path: SwitchPath = SwitchPath.LOAD
    weights_digest: str | None = None


class ModelCache:
    """Instances by version. Lives on the engine's loop.

    Args:
        backends: instance factory by backend name.
        max_cached_models: how many loaded versions to keep at most; those in use do not fall under it.
        in_use: tells whether requests or routes need a version now.
    """

    def __init__(
        self,
        backends: Mapping[str, InstanceFactory],
        *,
        max_cached_models: int,
        in_use: Callable[[VersionKey], bool],
    ) -> None:
        self._backends = dict(backends)
        self._limit = max_cached_models
        self._in_use = in_use
        self._loaded: dict[VersionKey, CachedVersion] = {}  # least recently used first
        self._loading: dict[VersionKey, asyncio.Task[CachedVersion]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._pins: Counter[VersionKey] = Counter()
        self._closed = False

    def check_backend(self, version: ModelVersion) -> None:
        """Refuse a version that no backend can serve."""
        backend = version.config.backend
        if backend not in self._backends:
            raise InvalidInput("model_config.backend", backend, "one of " + ", ".join(sorted(self._backends)))

    @property
    def loaded(self) -> Mapping[VersionKey, CachedVersion]:
        """What is loaded now, least recently used first."""
        return dict(self._loaded)

    def pin(self, key: VersionKey) -> None:
        """Keep a version from being evicted until `unpin`."""
        self._pins[key] += 1

    def unpin(self, key: VersionKey) -> None:
        """Undo one `pin`."""
        self._pins[key] -= 1
        if self._pins[key] <= 0:
            del self._pins[key]

    async def ensure(self, version: ModelVersion) -> CachedVersion:
        """The loaded version; loads it when needed. Concurrent calls share one load.

        Raises:
            LoadFailed: with the reason; the next call tries again.
        """
        if self._closed:
            raise EngineClosed("the engine was shut down")
        key = version.key
        cached = self._loaded.pop(key, None)
        if cached is not None:
            self._loaded[key] = cached  # now the most recently used
            return cached
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load(version), name=f"load {version}")
            self._loading[key] = task
            task.add_done_callback(lambda done: self._load_ended(key, done))
        # Shielded: one caller that goes away must not end the load for the others.
        return await asyncio.shield(task)

    def _load_ended(self, key: VersionKey, task: asyncio.Task[CachedVersion]) -> None:
        self._loading.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s", error)  # also when everybody who waited for it has gone

    async def _load(self, version: ModelVersion) -> CachedVersion:
        instance = self._backends[version.config.backend](version)
        try:
            facts = await instance.start()
        except LoadFailed:
            raise
        except Exception as error:
            raise LoadFailed(f"{version} did not load: {type(error).__name__}: {error}") from error
        log.info("loaded %s in %.1f s", version, facts.load_s)
        cached = CachedVersion(instance, facts)
        self._loaded[version.key] = cached
        await self.trim(keep=version.key)
        return cached

    async def trim(self, keep: VersionKey | None = None) -> None:
        """Unload what is over the limit and not needed."""
        protected = {key for key in self._loaded if key == keep or self._pins[key] or self._in_use(key)}
        for key in choose_evictions(tuple(self._loaded), protected, self._limit):
            await self.discard(key)

    def evict(self, key: VersionKey) -> asyncio.Task[None] | None:
        """Forget a version now and begin to stop its instance; None when it is not loaded."""
        cached = self._loaded.pop(key, None)
        if cached is None:
            return None
        log.info("unloading %s:%s", *key)
        task = asyncio.create_task(cached.instance.stop(), name=f"stop {key}")
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        return task

    async def discard(self, key: VersionKey) -> None:
        """Evict, and wait until nothing of the version is left."""
        task = self.evict(key)
        if task is not None:
            await asyncio.shield(task)  # a stop that is cut short could leave a process behind

    async def close(self) -> None:
        """Stop every instance, loading ones included."""
        self._closed = True
        for task in tuple(self._loading.values()):
            # A load cannot be interrupted half-way without leaving a process behind: let it end, then stop it.
            await asyncio.wait([task])
        await asyncio.gather(*(self.discard(key) for key in tuple(self._loaded)), *self._stopping)
