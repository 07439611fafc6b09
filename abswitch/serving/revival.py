"""`Reviver`: keeps routed versions alive: restarts what died, brings up what is to serve, says what is expected."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, NamedTuple

from abswitch.clock import Clock
from abswitch.domain import RouteRecord, SwitchPath, VersionKey
from abswitch.serving.backoff import BackOff, RestartPolicy
from abswitch.serving.cache import CachedVersion
from abswitch.serving.readiness import Readiness
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.router import STABLE, RequestRouter, RoutedArm

log = logging.getLogger(__name__)


class _Coming(NamedTuple):
    """A version on its way, and how who waits for it is told so."""

    words: str
    task: asyncio.Task[None]


class Reviver:
    """Lives on the engine's loop; one task per version that comes back.

    Args:
        record_route: takes the rows of a snapshot as it comes into force.
        is_switching: whether an operation holds the model; then a version is tried again for as long as it takes.
        give_up: told of a version that cannot be brought back: (model_id, version, reason).
    """

    def __init__(
        self,
        registry: DynamicModelRegistry,
        readiness: Readiness,
        router: RequestRouter,
        clock: Clock,
        *,
        policy: RestartPolicy,
        record_route: Callable[[RouteRecord], None],
        is_switching: Callable[[str], bool],
        give_up: Callable[[str, str, str], None],
    ) -> None:
        self._registry = registry
        self._readiness = readiness
        self._router = router
        self._clock = clock
        self._policy = policy
        self._record_route = record_route
        self._is_switching = is_switching
        self._give_up = give_up
        self._backoffs: dict[VersionKey, BackOff] = {}
        self._coming: dict[VersionKey, _Coming] = {}
        self._expected: dict[str, str] = {}
        self._failures: dict[str, tuple[float, str]] = {}

    def failure(self, model_id: str) -> str | None:
        """Why the model's version did not come up, for as long as it is too early to try again."""
        failed_s, reason = self._failures.get(model_id, (-math.inf, ""))
        return reason if self._clock.monotonic_s() - failed_s < self._policy.max_s else None

    def failed(self, model_id: str, reason: str) -> None:
        """Nothing can serve the model now; who waits for it is told."""
        self._failures[model_id] = (self._clock.monotonic_s(), reason)
        self._expected.pop(model_id, None)
        self._router.withdraw(model_id)

    def expected(self, model_id: str) -> str | None:
        """Why a route for the model is to be expected; None when it is not."""
        return self._expected.get(model_id)

    def expect(self, model_id: str, reason: str) -> None:
        """Requests for the model wait from now on while nothing serves it."""
        self._expected[model_id] = reason

    def settled(self, model_id: str) -> None:
        """There is nothing to wait for any more, unless a version is on its way; who waits is told."""
        self._expected.pop(model_id, None)
        if coming := [one.words for key, one in self._coming.items() if key[0] == model_id]:
            self._expected[model_id] = coming[-1]
        self._router.tell(model_id)

    def bring_up(self, model_id: str, version: str) -> None:
        """Load a version and let it serve its model; does nothing when that is under way."""
        self._begin(model_id, version, f"version {version!r} is being loaded", self._serve(model_id, version))

    def restart(self, model_id: str, version: str, reason: str) -> None:
        """Start a routed version again whose instance died; does nothing when that is under way."""
        words = f"version {version!r} is being started again after it was lost ({reason})"
        self._begin(model_id, version, words, self._restart(model_id, version, reason))

    def let_go(self, model_id: str, version: str) -> None:
        """No longer bring a version up that is to leave. A load goes on: it cannot be cut short."""
        if (coming := self._coming.get((model_id, version))) is not None:
            coming.task.cancel()

    async def close(self) -> None:
        """End the attempts."""
        tasks = [one.task for one in self._coming.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, model_id: str, version: str, words: str, work: Coroutine[Any, Any, None]) -> None:
        key = (model_id, version)
        if key in self._coming:
            work.close()
            return
        self._expected[model_id] = words
        task = asyncio.get_running_loop().create_task(work)
        self._coming[key] = _Coming(words, task)
        task.add_done_callback(lambda _: self._ended(key))

    def _ended(self, key: VersionKey) -> None:
        self._coming.pop(key, None)
        if not any(model_id == key[0] for model_id, _ in self._coming):
            self._expected.pop(key[0], None)

    async def _serve(self, model_id: str, version: str) -> None:
        try:
            cached = await self._attempt(model_id, version)
        except Exception as error:
            log.error("model %s: version %s did not come up: %s", model_id, version, error)
            if self._router.current(model_id) is not None:
                return  # a switch was quicker, and what it brought serves
            self.failed(model_id, str(error))
            self._give_up_in_the_end(model_id, version, str(error))
            return
        if self._router.current(model_id) is None and self._registry.active_version(model_id) == version:
            self._told(self._router.commit(model_id, stable=arm_of(STABLE, version, cached)).records())

    def _give_up_in_the_end(self, model_id: str, version: str, reason: str) -> None:
        """The next request tries again, but not for ever. An operation under way decides for itself what serves."""
        delay_s = self._backoff(model_id, version).next_delay_s(self._clock.monotonic_s())
        if delay_s is not None or self._is_switching(model_id):
            return
        if self._registry.active_version(model_id) == version:
            self._give_up(model_id, version, f"{reason}; more than {self._policy.max_restarts} attempt(s) were in vain")

    async def _restart(self, model_id: str, version: str, reason: str) -> None:
        backoff = self._backoff(model_id, version)
        while self._router.is_routed(model_id, version):
            delay_s = backoff.next_delay_s(self._clock.monotonic_s())
            if delay_s is None and self._is_switching(model_id):
                delay_s = self._policy.max_s
            if delay_s is None:
                self._give_up(model_id, version, f"{reason}; restarted {self._policy.max_restarts} time(s) in vain")
                return
            await self._pause(delay_s)
            try:
                cached = await self._attempt(model_id, version)
            except Exception as error:
                log.error("model %s: version %s did not come back: %s", model_id, version, error)
                reason = str(error)
                continue
            restarted = replace(arm_of(STABLE, version, cached), path=SwitchPath.RESTART)
            snapshot = self._router.replace_instance(model_id, restarted)
            self._told(snapshot.records() if snapshot else ())
            return

    async def _attempt(self, model_id: str, version: str) -> CachedVersion:
        began_s = self._clock.monotonic_s()
        try:
            return await self._readiness.prove_in_time(self._registry.get(model_id, version))
        except Exception:
            self._backoff(model_id, version).in_vain(self._clock.monotonic_s() - began_s)
            raise

    def _backoff(self, model_id: str, version: str) -> BackOff:
        return self._backoffs.setdefault((model_id, version), BackOff(self._policy))

    def _told(self, rows: tuple[RouteRecord, ...]) -> None:
        for row in rows:
            self._record_route(row)

    async def _pause(self, delay_s: float) -> None:
        if delay_s <= 0.0:
            return
        over = asyncio.Event()
        timer = self._clock.call_later(delay_s, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()


def arm_of(name: str, version: str, cached: CachedVersion, share: float = 1.0) -> RoutedArm:
    """A routed arm of a version as it is loaded now."""
    return RoutedArm(name, version, cached.instance, share, cached.path, cached.weights_digest)
