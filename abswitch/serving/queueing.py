"""`AdmissionQueue`: requests that nothing can serve right now wait, a bounded time and a bounded number of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from abswitch.clock import Clock
from abswitch.errors import EngineClosed, NoActiveVersion, QueueFull, QueueTimeout
from abswitch.serving.cache import CachedVersion
from abswitch.serving.router import RequestRouter, RouteSnapshot
from abswitch.serving.timelimit import time_limit


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRequest:
    """A request that nothing serves yet, as it stood when it was looked at.

    Attributes:
        version: the version that the request names itself; None where the route is to choose.
        since_mono_s: when it began to wait, on the monotonic clock.
        waited_s: for how long it had waited.
        reason: what it waits for, in words.
    """

    request_id: str
    model_id: str
    unit_id: str
    version: str | None
    since_mono_s: float
    waited_s: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.request_id} of {self.model_id} has waited {self.waited_s:.1f} s: {self.reason}"


class AdmissionQueue:
    """Where requests wait for a route, or for the version that they name.

    Lives on the engine's loop; `waiting` and `requests` may be read from any thread.

    Args:
        expected: tells why a route for the model is to be expected (and, where that is needed, begins to bring it up);
            None when there is nothing to wait for.
        awaited: the same without beginning anything; may be called from any thread.
        failure: why what was to serve the model did not come up, for the error.
        max_wait_s: how long one request waits at most.
        max_waiting: how many requests of one model wait at most, whatever for.
    """

    def __init__(
        self,
        router: RequestRouter,
        clock: Clock,
        *,
        expected: Callable[[str], str | None],
        awaited: Callable[[str], str | None],
        failure: Callable[[str], str | None],
        max_wait_s: float,
        max_waiting: int,
    ) -> None:
        self._router = router
        self._clock = clock
        self._expected = expected
        self._awaited = awaited
        self._failure = failure
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._places: dict[str, dict[int, WaitingRequest]] = {}
        """By model, those that wait; a model that had any stays."""
        self._closed = False

    def waiting(self, model_id: str | None = None) -> int:
        """How many requests wait now."""
        return sum(map(len, self._of(model_id)))

    def requests(self, model_id: str | None = None) -> tuple[WaitingRequest, ...]:
        """Every request that waits, the one that has waited longest first."""
        now_s = self._clock.monotonic_s()
        waiting = [one for places in self._of(model_id) for one in tuple(places.values())]
        waiting.sort(key=lambda one: one.since_mono_s)
        return tuple(replace(one, waited_s=now_s - one.since_mono_s, reason=self._reason(one)) for one in waiting)

    def _of(self, model_id: str | None) -> tuple[dict[int, WaitingRequest], ...]:
        return tuple(self._places.values()) if model_id is None else (self._places.get(model_id, {}),)

    @property
    def models(self) -> tuple[str, ...]:
        """Models whose requests wait, or have waited."""
        return tuple(self._places)

    async def route(self, request: WaitingRequest, *, newer_than: int = 0) -> RouteSnapshot:
        """The snapshot of the request's model, as soon as there is one of a later epoch than `newer_than`.

        Returns without an `await` when there is one now, so that an arm may be chosen from it at once.

        Raises:
            NoActiveVersion: there is nothing to wait for.
            QueueFull: too many wait already.
            QueueTimeout: none came in time.
            EngineClosed: the engine was shut down meanwhile.
        """
        model_id = request.model_id
        snapshot = self._router.current(model_id)
        if snapshot is not None and snapshot.epoch > newer_than:
            return snapshot
        reason = self._expected(model_id)
        if reason is None:
            raise self._nothing(model_id)
        with self._place(request, f"while {reason}"):
            return await self._wait(model_id, newer_than)

    def close(self) -> None:
        """Tell whoever waits that the engine ends."""
        self._closed = True
        for model_id in self.models:
            self._router.tell(model_id)

    async def loaded(self, request: WaitingRequest, load: Callable[[], Awaitable[CachedVersion]]) -> CachedVersion:
        """What loads the version that a request names itself; waited for no longer than a route, and by no more.

        Raises:
            QueueFull: too many wait already; what they wait for goes on.
            QueueTimeout: it was not ready in time; the load goes on, for whoever asks next.
        """
        advice = f"await engine.load({request.version!r}) waits for it"

        def late() -> Exception:
            return self._late(request.model_id, f"{self._reason(request)}, and still is; {advice}")

        with self._place(request, f"and version {request.version!r} is not ready; {advice}"):
            async with time_limit(self._max_wait_s, self._clock, late):
                return await load()

    @contextmanager
    def _place(self, request: WaitingRequest, why: str) -> Iterator[None]:
        """A place among those that wait; `why` is what to tell a request for which there is none."""
        places = self._places.setdefault(request.model_id, {})
        if len(places) >= self._max_waiting:
            raise QueueFull(
                f"model {request.model_id!r}: {len(places)} requests wait already "
                f"(max_queued_requests = {self._max_waiting}) {why}"
            )
        places[id(request)] = request
        try:
            yield
        finally:
            del places[id(request)]

    def _reason(self, request: WaitingRequest) -> str:
        if request.version is not None:
            return f"version {request.version!r} is being loaded"
        return self._awaited(request.model_id) or "nothing serves the model"

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
