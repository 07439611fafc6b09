"""`AdmissionQueue`: requests that nothing can serve right now wait, a bounded time and a bounded number of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from abswitch.clock import Clock
from abswitch.errors import EngineClosed, NoActiveVersion, QueueFull, QueueTimeout
from abswitch.serving.cache import CachedVersion
from abswitch.serving.router import RequestRouter, RouteSnapshot
from abswitch.serving.timelimit import time_limit


class AdmissionQueue:
    """Waits for a route. Lives on the engine's loop; `waiting` may be read from any thread.

    Args:
        expected: tells why a route for the model is to be expected (and, where that is needed, begins to bring it up);
            None when there is nothing to wait for.
        failure: why what was to serve the model did not come up, for the error.
        max_wait_s: how long one request waits at most.
        max_waiting: how many requests of one model wait at most.
    """

    def __init__(
        self,
        router: RequestRouter,
        clock: Clock,
        *,
        expected: Callable[[str], str | None],
        failure: Callable[[str], str | None],
        max_wait_s: float,
        max_waiting: int,
    ) -> None:
        self._router = router
        self._clock = clock
        self._expected = expected
        self._failure = failure
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._waiting: Counter[str] = Counter()
        self._closed = False

    def waiting(self, model_id: str | None = None) -> int:
        """How many requests wait now."""
        return self._waiting.total() if model_id is None else self._waiting[model_id]

    async def route(self, model_id: str, *, newer_than: int = 0) -> RouteSnapshot:
        """The model's snapshot, as soon as there is one of a later epoch than `newer_than`.

        Returns without an `await` when there is one now, so that an arm may be chosen from it at once.

        Raises:
            NoActiveVersion: there is nothing to wait for.
            QueueFull: too many wait already.
            QueueTimeout: none came in time.
            EngineClosed: the engine was shut down meanwhile.
        """
        snapshot = self._router.current(model_id)
        if snapshot is not None and snapshot.epoch > newer_than:
            return snapshot
        if self._expected(model_id) is None:
            raise self._nothing(model_id)
        if self._waiting[model_id] >= self._max_waiting:
            raise QueueFull(
                f"model {model_id!r}: {self._waiting[model_id]} requests wait already "
                f"(max_queued_requests = {self._max_waiting}) while {self._expected(model_id)}"
            )
        self._waiting[model_id] += 1
        try:
            return await self._wait(model_id, newer_than)
        finally:
            self._waiting[model_id] -= 1

    def close(self) -> None:
        """Tell whoever waits that the engine ends."""
        self._closed = True
        for model_id in tuple(self._waiting):
            self._router.tell(model_id)

    async def loaded(self, model_id: str, version: str, load: Awaitable[CachedVersion]) -> CachedVersion:
        """What loads the version that a request names itself; waited for no longer than a route.

        Raises:
            QueueTimeout: it was not ready in time; the load goes on, for whoever asks next.
        """

        def late() -> Exception:
            words = f"version {version!r} is being loaded, and still is; await engine.load({version!r}) waits for it"
            return self._late(model_id, words)

        async with time_limit(self._max_wait_s, self._clock, late):
            return await load

    def _late(self, model_id: str, reason: str) -> QueueTimeout:
        return QueueTimeout(
            f"model {model_id!r}: waited {self._max_wait_s:g} s (max_queue_wait_seconds) while {reason}"
        )

    async def _wait(self, model_id: str, newer_than: int) -> RouteSnapshot:
        overdue = asyncio.Event()
        late = asyncio.ensure_future(overdue.wait())
        timer = self._clock.call_later(self._max_wait_s, overdue.set)
        try:
            while True:
                changed = self._router.changed(model_id)
                try:
                    await asyncio.wait((changed, late), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if self._closed:
                    raise EngineClosed("the engine was shut down while the request waited")
                snapshot = self._router.current(model_id)
                if snapshot is not None and snapshot.epoch > newer_than:
                    return snapshot
                reason = self._expected(model_id)
                if reason is None:
                    raise self._nothing(model_id)
                if overdue.is_set():
                    raise self._late(model_id, reason)
        finally:
            timer.cancel()
            late.cancel()

    def _nothing(self, model_id: str) -> NoActiveVersion:
        failure = self._failure(model_id)
        if failure is not None:
            return NoActiveVersion(f"model {model_id!r}: what was to serve it did not come up: {failure}")
        return NoActiveVersion(
            f"model {model_id!r} has no active version; deploy one with await engine.deploy(version)"
        )
