"""`Grader`: runs scorers beside the requests, never in their way. A scorer that raises costs a score, not an answer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from abswitch.clock import Clock
from abswitch.domain import ScoreRecord
from abswitch.scoring import Sample, Scorer, checked, is_async
from abswitch.serving.threads import LoneThread

log = logging.getLogger(__name__)
JUDGE_CONCURRENCY = 8
BACKLOG = 10_000
_STALL_S = 10.0
"""How long `close` waits for the next score before it leaves what is left."""
_CLOSE_S = 30.0
"""How long it waits in all."""
_CANCEL_S = 1.0


@dataclass(slots=True, eq=False)
class _Owed:
    """A sample and the scorers whose scores are still to come."""

    sample: Sample
    scorers: list[Scorer]


class Grader:
    """Scores samples as they come. Lives on the engine's loop; slow scorers run on one daemon thread of their own.

    Answers that come while as many as `backlog` wait for slow scorers stay unscored, as no request waits for a score:
    they are counted, and each such score's row says why it is missing, so that a verdict does not trust the rest.

    Args:
        record: takes one row per score; must not block.
        backlog: answers that wait at most; 10,000 of them, with prompts and outputs of 4 KB together, take 40 MB.

    Attributes:
        unscored: answers that lack slow scores, as too many waited or the engine was closed before their turn.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        clock: Clock,
        *,
        record: Callable[[ScoreRecord], None],
        backlog: int = BACKLOG,
    ) -> None:
        self._inline = [s for s in scorers if s.inline]
        self._slow = sorted((s for s in scorers if not s.inline), key=is_async)  # those that are awaited come last
        self._clock = clock
        self._record = record
        self._backlog = backlog
        self._told: set[str] = set()
        self._waiting: dict[asyncio.Task[None], _Owed] = {}
        self._went_on = asyncio.Event()
        self._slots = asyncio.Semaphore(JUDGE_CONCURRENCY)
        self._thread = LoneThread("abswitch-scorer")
        self._closed = False
        self.names = tuple(scorer.name for scorer in scorers)
        self.unscored = 0

    @property
    def has_room(self) -> bool:
        """Whether who sends requests of its own accord should go on: less than half of the backlog waits."""
        return 2 * len(self._waiting) < self._backlog

    def submit(self, sample: Sample, names: Collection[str] | None = None) -> None:
        """Score a sample; fast scorers at once, the others soon.

        Args:
            names: of the scorers, all by default.
        """
        wanted = self.names if names is None else names
        for scorer in self._inline:
            if scorer.name in wanted:
                self._settle(scorer, sample, _tried(scorer, sample))
        slow = [scorer for scorer in self._slow if scorer.name in wanted]
        if not slow:
            return
        if self._closed or len(self._waiting) >= self._backlog:
            self._leave_out(sample, slow)
            return
        owed = _Owed(sample, slow)
        task = asyncio.get_running_loop().create_task(self._score_slowly(owed))
        self._waiting[task] = owed
        task.add_done_callback(self._ended)

    async def room(self) -> None:
        """Wait until `has_room`."""
        while not self.has_room:
            self._went_on.clear()
            await self._went_on.wait()

    async def idle(self) -> None:
        """Wait until nothing is left to score."""
        while self._waiting:
            await asyncio.wait(tuple(self._waiting))

    async def caught_up(self) -> None:
        """Wait until what was submitted before this call is scored, whatever comes meanwhile."""
        if waiting := tuple(self._waiting):
            await asyncio.wait(waiting)

    async def close(self) -> None:
        """Finish what was submitted, while scores keep coming: up to 10 s without one, and 30 s in all.

        What is left then stays without its scores, as after a crash, and is told by a warning.
        """
        await self._finish()
        self._closed = True
        left = dict(self._waiting)
        for task in left:
            task.cancel()
        self._thread.close()
        if left:
            self.unscored += len(left)
            owing = Counter(scorer.name for owed in left.values() for scorer in owed.scorers)
            names = ", ".join(f"{name} of {n}" for name, n in owing.items())
            log.warning("%d answer(s) are left without scores, which took too long: %s", len(left), names)
            await asyncio.wait(left, timeout=_CANCEL_S)

    async def _finish(self) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + _CLOSE_S
        while self._waiting:
            self._went_on.clear()
            try:
                async with asyncio.timeout(min(_STALL_S, end_s - loop.time())):
                    await self._went_on.wait()
            except TimeoutError:
                return

    async def _score_slowly(self, owed: _Owed) -> None:
        for scorer in tuple(owed.scorers):
            self._settle(scorer, owed.sample, await self._outcome(scorer, owed.sample))
            owed.scorers.remove(scorer)
            self._went_on.set()

    async def _outcome(self, scorer: Scorer, sample: Sample) -> float | Exception | None:
        if is_async(scorer):
            async with self._slots:
                return await _tried_awaiting(scorer, sample)
        try:
            return await asyncio.wrap_future(self._thread.begin(lambda: _tried(scorer, sample)))
        except RuntimeError as error:  # it called sys.exit(), or the interpreter is ending and gives out no thread
            return error

    def _leave_out(self, sample: Sample, scorers: Sequence[Scorer]) -> None:
        why = "the engine was closed" if self._closed else f"{self._backlog:,} answers were waiting to be scored"
        for scorer in scorers:
            row = ScoreRecord(sample.request_id, scorer.name, None, f"not scored: {why}", self._clock.wall_s())
            self._record(row)
        self.unscored += 1
        if self.unscored == 1:
            names = ", ".join(scorer.name for scorer in scorers)
            log.warning("%s: %s; further answers stay unscored and are counted (told once)", names, why)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._waiting[task]
        self._went_on.set()

    def _settle(self, scorer: Scorer, sample: Sample, outcome: float | Exception | None) -> None:
        if isinstance(outcome, Exception):
            self._failed(scorer, sample, outcome)
        elif outcome is not None:
            self._record(ScoreRecord(sample.request_id, scorer.name, outcome, None, self._clock.wall_s()))

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


def _tried(scorer: Scorer, sample: Sample) -> float | Exception | None:
    """The score, or what the scorer raised."""
    try:
        return checked(scorer.score(sample))
    except Exception as error:
        return error


async def _tried_awaiting(scorer: Scorer, sample: Sample) -> float | Exception | None:
    try:
        result = scorer.score(sample)
        return checked(await result if isinstance(result, Awaitable) else result)
    except Exception as error:
        return error
