"""`Readiness`: a version is ready when it is loaded *and* has shown it: it generated, and its answers are its own.

Every load, wake, swap and restart is shown anew; what was shown stays so for as long as the same load lasts.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from itertools import count

from abswitch.clock import Clock, SystemClock
from abswitch.domain import GenerationRequest, ModelVersion, SwitchPath, VersionKey
from abswitch.errors import LoadFailed
from abswitch.serving.cache import CachedVersion, ModelCache
from abswitch.serving.golden import Answers, GoldenPrompts
from abswitch.serving.instance import ModelInstance
from abswitch.serving.timelimit import time_limit

log = logging.getLogger(__name__)
WARM_PROMPT = "1"
_SHORT_CUTS = frozenset({SwitchPath.WAKE, SwitchPath.IN_PLACE})


class _Silent(LoadFailed):
    """It gave no first token in time: it hangs, and cannot help to end it."""


class Readiness:
    """Brings versions up and has them show it. Lives on the engine's loop.

    Args:
        golden: compares a version's answers with those it gave at first; None leaves it at one token.
        load_timeout_s: how long a loaded version may take to show it, and `prove_in_time` from the load on.
    """

    def __init__(
        self,
        cache: ModelCache,
        golden: GoldenPrompts | None = None,
        *,
        clock: Clock | None = None,
        load_timeout_s: float = 300.0,
    ) -> None:
        self._cache = cache
        self._golden = golden
        self._clock = clock or SystemClock()
        self._load_timeout_s = load_timeout_s
        self._shown: dict[VersionKey, CachedVersion] = {}
        self._showing: dict[VersionKey, asyncio.Task[CachedVersion]] = {}
        self._numbers = count()

    def ready(self, key: VersionKey) -> CachedVersion | None:
        """The version as loaded now, if that load has been shown to work; never waits."""
        cached = self._cache.loaded.get(key)
        return cached if cached is not None and self._shown.get(key) is cached else None

    async def prove(self, version: ModelVersion) -> CachedVersion:
        """Load the version if need be, and return once it has shown that it works. Concurrent calls share the work.

        Until the caller goes on it is not brought down, so that who takes a lease at once has one of what runs.

        Raises:
            InvalidInput: the engine has no backend of its name, e.g. after a restart.
            LoadFailed: it did not load, generated nothing (in time), or its answers are not its own.
        """
        self._cache.check_backend(version)
        self._cache.pin(version.key)
        try:
            return await self._proven(version)
        finally:
            self._cache.unpin(version.key)

    async def prove_in_time(self, version: ModelVersion) -> CachedVersion:
        """`prove`, waited for only so long. A load goes on nevertheless: one that is cut short leaves a process behind.

        Raises:
            LoadFailed: as `prove`, or it was not ready in time.
        """

        def late() -> Exception:
            return LoadFailed(f"{version} was not ready within {self._load_timeout_s:g} s (switch_timeout_seconds)")

        async with time_limit(self._load_timeout_s, self._clock, late):
            return await self.prove(version)

    async def _proven(self, version: ModelVersion) -> CachedVersion:
        while True:
            cached = await self._cache.ensure(version)
            if self._shown.get(version.key) is cached:
                return cached
            task = self._showing.get(version.key)
            if task is None:
                task = asyncio.create_task(self._show(version, cached), name=f"first tokens of {version}")
                self._showing[version.key] = task
                task.add_done_callback(lambda done: self._end(version.key, done))
            try:
                if await asyncio.shield(task) is cached:
                    return cached
            except LoadFailed as failure:
                if cached.path not in _SHORT_CUTS:
                    raise
                log.error("%s; it is loaded from its files", failure)  # it was evicted: the next turn loads it

    def _end(self, key: VersionKey, task: asyncio.Task[CachedVersion]) -> None:
        self._showing.pop(key, None)
        if not task.cancelled():
            task.exception()  # was told to whoever waited

    async def _show(self, version: ModelVersion, cached: CachedVersion) -> CachedVersion:
        try:
            tokens, answers = await self._first_tokens_in_time(version, cached.instance)
            if not tokens:
                raise LoadFailed(f"{version} loaded but generated no token")
            if self._golden is not None:
                self._golden.compare(version, cached, answers)
        except Exception as error:
            self._give_up(version, cached, killed_for=str(error) if isinstance(error, _Silent) else None)
            if isinstance(error, LoadFailed):
                raise
            raise LoadFailed(f"{version}: no first token: {type(error).__name__}: {error}") from error
        self._shown[version.key] = cached
        return cached

    def _give_up(self, version: ModelVersion, cached: CachedVersion, *, killed_for: str | None) -> None:
        """What did not show that it works is unloaded, so that the next attempt begins from its files."""
        if self._cache.loaded.get(version.key) is cached:
            self._cache.evict(version.key, killed_for=killed_for)

    async def _first_tokens_in_time(self, version: ModelVersion, instance: ModelInstance) -> tuple[int, Answers]:
        def late() -> Exception:
            return _Silent(
                f"{version} loaded but gave no first token within {self._load_timeout_s:g} s (switch_timeout_seconds)"
            )

        asking = asyncio.ensure_future(self._first_tokens(version, instance))
        try:
            async with time_limit(self._load_timeout_s, self._clock, late):
                return await asyncio.shield(asking)
        finally:
            asking.cancel()  # not waited for: what hangs may hang at that, too

    async def _first_tokens(self, version: ModelVersion, instance: ModelInstance) -> tuple[int, Answers]:
        """How many tokens a first request brought, and the golden answers. They are asked for together: an engine takes
        little longer for a step of many requests than for one of a single request."""
        if self._golden is None:
            return await self._first_token(version, instance), ()
        asked = (self._first_token(version, instance), self._golden.ask(version.key, instance))
        tokens, answers = await asyncio.gather(*asked, return_exceptions=True)  # neither is left behind by the other
        if isinstance(tokens, BaseException):
            raise tokens
        if isinstance(answers, BaseException):
            raise answers
        return tokens, answers

    async def _first_token(self, version: ModelVersion, instance: ModelInstance) -> int:
        request = GenerationRequest(
            request_id=f"warm-{version.version}-{next(self._numbers)}",
            prompt=WARM_PROMPT,
            sampling=version.config.sampling.merged({"max_tokens": 1, "ignore_eos": True, "stop": ()}),
        )
        tokens = 0
        async with aclosing(instance.generate(request)) as chunks:
            async for chunk in chunks:
                tokens = chunk.output_tokens
        return tokens
