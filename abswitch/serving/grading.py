"""`Grader`: runs scorers beside the requests, never in their way. A scorer that raises costs a score, not an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from abswitch.clock import Clock
from abswitch.domain import ScoreRecord
from abswitch.scoring import Sample, Scorer, checked, is_async

log = logging.getLogger(__name__)
JUDGE_CONCURRENCY = 8


class Grader:
    """Scores samples as they come. Lives on the engine's loop; slow scorers run on one thread of their own.

    Args:
        record: takes one row per score; must not block.
    """

    def __init__(self, scorers: Sequence[Scorer], clock: Clock, *, record: Callable[[ScoreRecord], None]) -> None:
        self._inline = [s for s in scorers if s.inline]
        self._threaded = [s for s in scorers if not s.inline and not is_async(s)]
        self._awaited = [s for s in scorers if not s.inline and is_async(s)]
        self._clock = clock
        self._record = record
        self._told: set[str] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(JUDGE_CONCURRENCY)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="abswitch-scorer") if self._threaded else None
        self.names = tuple(scorer.name for scorer in scorers)

    def submit(self, sample: Sample, names: Collection[str] | None = None) -> None:
        """Score a sample; fast scorers at once, the others soon.

        Args:
            names: of the scorers, all by default.
        """
        wanted = self.names if names is None else names
        for scorer in self._inline:
            if scorer.name in wanted:
                self._score(scorer, sample)
        if any(scorer.name in wanted for scorer in (*self._threaded, *self._awaited)):
            task = asyncio.get_running_loop().create_task(self._score_slowly(sample, wanted))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def idle(self) -> None:
        """Wait until nothing is left to score."""
        while self._waiting:
            await asyncio.wait(tuple(self._waiting))

    async def caught_up(self) -> None:
        """Wait until what was submitted before this call is scored, whatever comes meanwhile."""
        if waiting := tuple(self._waiting):
            await asyncio.wait(waiting)

    async def close(self) -> None:
        """Finish what was submitted."""
        await self.idle()
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _score(self, scorer: Scorer, sample: Sample) -> None:
        try:
            value = checked(scorer.score(sample))
        except Exception as error:
            self._failed(scorer, sample, error)
        else:
            self._scored(scorer, sample, value)

    async def _score_slowly(self, sample: Sample, wanted: Collection[str]) -> None:
        loop = asyncio.get_running_loop()
        for scorer in self._threaded:
            if scorer.name in wanted:
                await loop.run_in_executor(self._pool, self._score, scorer, sample)
        for scorer in self._awaited:
            if scorer.name in wanted:
                async with self._slots:
                    await self._score_awaited(scorer, sample)

    async def _score_awaited(self, scorer: Scorer, sample: Sample) -> None:
        try:
            result = scorer.score(sample)
            value = checked(await result if isinstance(result, Awaitable) else result)
        except Exception as error:
            self._failed(scorer, sample, error)
        else:
            self._scored(scorer, sample, value)

    def _scored(self, scorer: Scorer, sample: Sample, value: float | None) -> None:
        if value is not None:
            self._record(ScoreRecord(sample.request_id, scorer.name, value, None, self._clock.wall_s()))

    def _failed(self, scorer: Scorer, sample: Sample, error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        self._record(ScoreRecord(sample.request_id, scorer.name, None, message, self._clock.wall_s()))
        if scorer.name not in self._told:
            self._told.add(scorer.name)
            log.warning(
                "scorer %r raised %s on request %s; the answer is kept, this score is missing (told once)",
                scorer.name,
                message,
                sample.request_id,
            )
