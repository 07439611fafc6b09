"""Asking an experiment's questions: at the times of its load, within its budget, and each one once.

A request's id holds its operation and its number, so that a process that takes over after a crash reads from the store
which questions were answered, and goes on with the others.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from abswitch import checks
from abswitch.clock import Clock, SystemClock
from abswitch.domain import CANCELLED, Completion
from abswitch.engine import SwitchingEngine
from abswitch.errors import AbswitchError
from abswitch.experiments.arrivals import Arrivals, send_all
from abswitch.experiments.prompts import Question
from abswitch.experiments.rescoring import score_what_is_unscored
from abswitch.stats import Verdict

_NUMBER = re.compile(r"-(\d+)(?:~(\d+))?\Z")
_ASKED = """
SELECT request_id, arm, error_type, output_tokens FROM requests
WHERE operation_id = ? AND (arm = 'stable' OR starts_with(arm, 'candidate'))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """What became of the requests.

    Attributes:
        sent: handed to the engine.
        answered: came back whole.
        failed: ended with an explicit error.
        lost: neither; anything but 0 is a defect.
    """

    sent: int
    answered: int
    failed: int

    @property
    def lost(self) -> int:
        return self.sent - self.answered - self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an experiment is.

    Attributes:
        by_arm: answered requests by arm name.
        phase: what the experiment is doing, in a few words.
        verdicts: by candidate, what the latest look found, by methods that hold at all looks; empty before the first,
            and throughout where the plan allows one look alone, at the end.
    """

    phase: str
    done: int
    total: int
    failed: int
    by_arm: dict[str, int]
    elapsed_s: float
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBudget:
    """What a run may use up; None is no limit.

    Args:
        requests: asked in all, those of an interrupted first attempt included.
        time_s: of asking, in this process.
        tokens: generated in all. What is under way when it is reached still ends.

    Raises:
        InvalidInput: a limit is not above 0.
    """

    requests: int | None = None
    time_s: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.requests is not None:
            checks.integer("budget.requests", self.requests, low=1)
        if self.time_s is not None:
            checks.number("budget.time_s", self.time_s, low=0.0, above=True)
        if self.tokens is not None:
            checks.integer("budget.tokens", self.tokens, low=1)


NO_LIMIT = RequestBudget()


@dataclass(slots=True)
class Asked:
    """What was asked so far.

    Attributes:
        ended: numbers of the questions that were answered, or failed.
        attempts: how often a question was begun whose caller went away before it ended; it is asked again.
    """

    ended: set[int] = field(default_factory=set)
    attempts: Counter[int] = field(default_factory=Counter)
    by_arm: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    tokens: int = 0

    @classmethod
    def before(cls, engine: SwitchingEngine, operation_id: str) -> Asked:
        """What the store says of an operation; nothing for a new one."""
        asked = cls()
        for request_id, arm, error, tokens in engine.store.rows(_ASKED, (operation_id,)):
            found = _numbered(operation_id, request_id)
            if found is None:
                continue
            number, attempt = found
            asked.tokens += tokens
            if error == CANCELLED:
                asked.attempts[number] = max(asked.attempts[number], 1 + attempt)
            else:
                asked.ended.add(number)
                asked.failed += error is not None
                asked.by_arm[arm] += error is None
        return asked


def _numbered(operation_id: str, request_id: str) -> tuple[int, int] | None:
    """A request's number and attempt; None for somebody else's question to the same model."""
    found = _NUMBER.search(request_id)
    if found is None or not request_id.startswith(operation_id):
        return None
    return int(found[1]), int(found[2] or 0)


class Asking:
    """The asking of one experiment's questions.

    Args:
        questions: asked in order; `endless` begins anew at the end.
        on_progress: called after every request, on the caller's loop.

    Attributes:
        verdicts: of the latest look, told with the progress.
        on_ended: called after every request, too.
    """

    def __init__(
        self,
        engine: SwitchingEngine,
        questions: Sequence[Question],
        model_id: str,
        sampling: Mapping[str, Any],
        on_progress: Callable[[Progress], None],
        *,
        arrivals: Arrivals,
        budget: RequestBudget = NO_LIMIT,
        endless: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._questions = questions
        self._model_id = model_id
        self._sampling = sampling
        self._on_progress = on_progress
        self._arrivals = arrivals
        self._budget = budget
        self._endless = endless
        self._clock = clock or SystemClock()
        self._asked = Asked()
        self._sent = 0
        self.verdicts: Mapping[str, Verdict] = {}
        self.on_ended: Callable[[], None] = lambda: None
        self._start_s = self._clock.monotonic_s()
        self._asking_since_s = self._start_s
        self.started_at_s = time.time()

    @property
    def total(self) -> int:
        """How many questions there are to ask."""
        most = self._budget.requests
        if self._endless:
            return most or 0
        return len(self._questions) if most is None else min(most, len(self._questions))

    def tell(self, phase: str) -> None:
        """Report how far the run is."""
        self._on_progress(
            Progress(
                phase=phase,
                done=self._asked.by_arm.total() + self._asked.failed,
                total=self.total,
                failed=self._asked.failed,
                by_arm=dict(self._asked.by_arm),
                elapsed_s=self._clock.monotonic_s() - self._start_s,
                verdicts=self.verdicts,
            )
        )

    async def ask_all(self, operation_id: str, over: Callable[[], bool]) -> RequestCounts:
        """Ask every question that was not answered yet, until they, or the budget, end or `over()` says so."""
        self._asked = Asked.before(self._engine, operation_id)
        self._sent = self._asked.by_arm.total() + self._asked.failed
        self._asking_since_s = self._clock.monotonic_s()
        await self.score_what_is_unscored(operation_id)

        async def ask(number: int) -> None:
            await self._ask(operation_id, number)

        await send_all(self._numbers(), self._arrivals, ask, self._clock, enough=lambda: over() or self._used_up())
        return self.counts

    async def score_what_is_unscored(self, operation_id: str) -> None:
        """Make up for scores that an earlier process did not come to write."""

        def question_of(request_id: str) -> Question | None:
            found = _numbered(operation_id, request_id)
            return None if found is None else self._question(found[0])

        await score_what_is_unscored(self._engine, operation_id, question_of)

    def _question(self, number: int) -> Question:
        """What request `number` asks."""
        return self._questions[number % len(self._questions)]

    @property
    def counts(self) -> RequestCounts:
        """What became of the requests so far, those of an earlier attempt included."""
        return RequestCounts(sent=self._sent, answered=self._asked.by_arm.total(), failed=self._asked.failed)

    def _numbers(self) -> Iterator[int]:
        """What is left to ask; no more than the budget has left, as many may be begun before the first is counted."""
        everyone = count() if self._endless else iter(range(len(self._questions)))
        left = (number for number in everyone if number not in self._asked.ended)
        most = self._budget.requests
        return left if most is None else islice(left, max(most - self._sent, 0))

    def _used_up(self) -> bool:
        budget = self._budget
        return (
            (budget.requests is not None and self._sent >= budget.requests)
            or (budget.tokens is not None and self._asked.tokens >= budget.tokens)
            or (budget.time_s is not None and self._clock.monotonic_s() - self._asking_since_s >= budget.time_s)
        )

    async def _ask(self, operation_id: str, number: int) -> None:
        await self._send(operation_id, number, self._question(number), f"question-{number}")

    async def _send(self, operation_id: str, number: int, question: Question, unit_id: str, **how: Any) -> None:
        """Send one request; `number` is its own in the experiment, `how` goes to the engine."""
        attempt = self._asked.attempts[number]
        self._sent += 1
        await self._engine.scorers_keep_up()  # a plan counts on every score
        try:
            completion: Completion = await self._engine.generate(
                question.prompt,  # type: ignore[arg-type]  # already normalised: a string or chat messages
                unit_id=question.unit_id or unit_id,
                request_id=f"{operation_id}-{number}" + (f"~{attempt}" if attempt else ""),
                model_id=self._model_id,
                reference=question.reference,
                **{**self._sampling, **how},
            )
        except AbswitchError:
            self._asked.failed += 1  # its row says which error; the verdict counts it
        else:
            self._asked.by_arm[completion.arm] += 1
            self._asked.tokens += completion.output_tokens
        self.tell("asking")
        self.on_ended()
