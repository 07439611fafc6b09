"""`run_switchback`: one version serves at a time, in blocks whose order is drawn; for when only one fits.

Two adjacent blocks make a pair, one for each version, and a coin decides which comes first. A block counts once, by its
mean: what is compared is time under either version. The order is part of the plan, so it is stored before the first
block. After a crash the block that was under way is asked anew; those before it are not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any
from uuid import uuid4

from abswitch import checks
from abswitch.domain import Placement, Sampling
from abswitch.engine import SwitchingEngine
from abswitch.errors import AbswitchError, InvalidInput
from abswitch.experiments.arrivals import Arrivals, ClosedLoop, send_all
from abswitch.experiments.asking import NO_LIMIT, Asked, Asking, Progress, RequestBudget, RequestCounts
from abswitch.experiments.prompts import Question, questions_of
from abswitch.experiments.trial import (
    ARMS,
    ExperimentResult,
    Trial,
    TrialHandle,
    baseline_of,
    begin,
    left_behind,
    serve,
    verdict_of,
)
from abswitch.rollout.strategies import MOST_STAGES
from abswitch.stats import AnalysisPlan, Metric, SwitchbackSchedule
from abswitch.stats.plan import SWITCHBACK
from abswitch.stats.switchback import CANDIDATE
from abswitch.store.evidence import check_columns
from abswitch.store.joint_evidence import check_metrics

_MOST = 1_000_000
"""Requests of a block of time, at most: their numbers tell the blocks apart."""


async def run_switchback(
    engine: SwitchingEngine,
    candidate: str,
    prompts: Iterable[Any],
    *,
    metrics: Sequence[Metric],
    blocks: int = 8,
    block_s: float | None = None,
    warmup_requests: int = 0,
    warmup_s: float = 0.0,
    in_place: bool = False,
    alpha: float = 0.05,
    concurrency: int = 16,
    model_id: str | None = None,
    experiment: str | None = None,
    arrivals: Arrivals | None = None,
    budget: RequestBudget = NO_LIMIT,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **sampling: Any,
) -> ExperimentResult:
    """Compare the active version with a candidate in alternating blocks of time; one slot for a version is enough.

    Between blocks all traffic of the model moves at once: to the other version where both are in memory; else the one
    that serves finishes what it began and leaves, and requests wait until the other is there. None is lost.

    Args:
        engine: its scorers give the scores that `metrics` name.
        candidate: a registered version.
        prompts: see `questions_of`.
        metrics: what to compare, one of them primary; of each the block means are compared.
        blocks: an even number from 4 to 10,000. 8 (four pairs) finds large differences only.
        block_s: how long a block lasts, the prompts asked again and again. Without it every block asks an equal part of
            the prompts, each prompt once.
        warmup_requests, warmup_s: the start of each block, not counted: caches are cold, queues are worked off.
        in_place: the engine takes over the other version's weights; see `ImmediateStrategy`.
        alpha: error rate of the primary comparison, two-sided.
        concurrency: requests under way at once.
        experiment: name that the order of blocks depends on.
        arrivals: when requests are sent, from the start of each block on.
        budget: what the run may use up, looked at before each block: one that began is asked to its end.
        resume: go on with the switchback that an earlier process left in the same store.
        on_progress: called after every counted request, on the caller's loop.
        **sampling: fields of `Sampling` for every request.

    Returns:
        The result with its verdict; its units are blocks. The baseline serves again; `result.promote()` moves traffic.

    Raises:
        InvalidInput: a malformed argument, fewer prompts than the blocks need, or not the plan of the switchback to go
            on with.
        SwitchRefused: no version is active, or the candidate is.
        SwitchFailed: a version did not come to serve its block.
    """
    questions = questions_of(prompts)
    checks.integer("concurrency", concurrency, low=1)
    checks.flag("in_place", in_place)
    Sampling().merged(sampling)
    model = engine.registry.resolve_model(model_id)
    candidate = engine.registry.get(model, candidate).version
    left = left_behind(engine, SWITCHBACK, model, candidate) if resume else None
    baseline = baseline_of(engine, model, candidate, left)
    asking = BlockAsking(
        engine,
        questions,
        model,
        sampling,
        on_progress,
        blocks=blocks,
        block_s=block_s,
        warmup_requests=warmup_requests,
        warmup_s=warmup_s,
        arrivals=arrivals or ClosedLoop(concurrency=concurrency),
        budget=budget,
    )
    plan = AnalysisPlan(
        baseline=baseline,
        candidate=candidate,
        metrics=tuple(metrics),
        expected_share=0.5,
        planned_n=blocks,
        alpha=alpha,
        min_units=2,
        design=SWITCHBACK,
        blocks=left.plan.blocks if left is not None and experiment is None else _order(experiment, blocks),
    )
    check_columns(plan, engine.scorers)
    check_metrics(plan)
    trial = await begin(engine, model, plan, left)
    counts = await _take_turns(trial, asking, in_place=in_place)
    asking.tell("deciding")
    result = await verdict_of(
        trial, TrialHandle(trial), experiment=experiment, counts=counts, started_at_s=asking.started_at_s
    )
    asking.tell(str(result.verdict.decision))
    return result


def _order(experiment: str | None, blocks: int) -> tuple[str, ...]:
    schedule = SwitchbackSchedule(experiment or uuid4().hex, block_s=1.0)
    return tuple(arm for pair in range(blocks // 2) for arm in schedule.order(pair))


async def _take_turns(trial: Trial, asking: BlockAsking, *, in_place: bool) -> RequestCounts:
    engine, model = trial.engine, trial.model_id
    asking.take_up(trial.trial_id)
    await asking.score_what_is_unscored(trial.trial_id)
    for index, arm in enumerate(trial.plan.blocks):
        if asking.is_whole(index):
            continue
        if asking.used_up:
            break
        side = int(arm == CANDIDATE)
        version = trial.versions[side]
        asking.tell(f"block {index + 1} of {len(trial.plan.blocks)}: {version}")
        reason = f"block {index + 1} of {trial.trial_id}"
        await serve(engine, model, version, reason=reason, in_place=in_place)
        await asking.ask_block(trial.trial_id, index, ARMS[side], version)
    await serve(engine, model, trial.plan.baseline, reason=f"{trial.trial_id} has asked everything", in_place=in_place)
    return asking.counts


class BlockAsking(Asking):
    """Asks a switchback's prompts, block by block.

    Raises:
        InvalidInput: an argument outside its range, or fewer prompts than the blocks need.
    """

    def __init__(
        self,
        engine: SwitchingEngine,
        questions: Sequence[Question],
        model_id: str,
        sampling: Mapping[str, Any],
        on_progress: Callable[[Progress], None],
        *,
        blocks: int,
        block_s: float | None,
        warmup_requests: int,
        warmup_s: float,
        arrivals: Arrivals,
        budget: RequestBudget,
    ) -> None:
        super().__init__(engine, questions, model_id, sampling, on_progress, arrivals=arrivals, budget=budget)
        checks.integer("blocks", blocks, low=4, high=MOST_STAGES)
        if blocks % 2:
            raise InvalidInput("blocks", blocks, "an even number: one for each version in every pair")
        if block_s is not None:
            checks.number("block_s", block_s, low=0.0, above=True)
        checks.integer("warmup_requests", warmup_requests, low=0)
        checks.number("warmup_s", warmup_s, low=0.0)
        if block_s is not None and warmup_s >= block_s:
            raise InvalidInput("warmup_s", warmup_s, f"below block_s ({block_s:g})")
        self._blocks, self._block_s = blocks, block_s
        self._warmup_requests, self._warmup_s = warmup_requests, warmup_s
        self._each = min(len(questions), budget.requests or len(questions)) // blocks
        if block_s is None and self._each <= warmup_requests:
            needed = blocks * (warmup_requests + 1)
            raise InvalidInput("prompts", len(questions), f"at least {needed}: {blocks} blocks, warm-up included")
        self._begun: Mapping[int, tuple[int, int]] = {}

    @property
    def total(self) -> int:
        """Requests that count; 0 where time limits them."""
        return self._blocks * (self._each - self._warmup_requests) if self._block_s is None else 0

    @property
    def used_up(self) -> bool:
        """Whether the budget is."""
        return self._used_up()

    def take_up(self, trial_id: str) -> None:
        """Read from the store which blocks are done."""
        self._asked = Asked.before(self._engine, trial_id)
        self._sent = self._asked.by_arm.total() + self._asked.failed
        self._asking_since_s = self._clock.monotonic_s()
        sql = """SELECT step, max(pair_id) AS attempt, count(*) FILTER (error_type IS DISTINCT FROM 'Cancelled')
            FROM requests WHERE operation_id = ? AND arm IN ('stable', 'candidate') GROUP BY step, pair_id
            QUALIFY pair_id = max(pair_id) OVER (PARTITION BY step)"""
        rows = self._engine.store.rows(sql, (trial_id,))
        self._begun = {step: (int(attempt.rsplit("-", 1)[1]), n) for step, attempt, n in rows}

    def is_whole(self, index: int) -> bool:
        """Whether a block was asked to its end."""
        if index not in self._begun:
            return False
        if self._block_s is None:
            return self._begun[index][1] >= self._each - self._warmup_requests
        return index < max(self._begun)  # a later one began when it had ended

    async def ask_block(self, trial_id: str, index: int, arm: str, version: str) -> None:
        """Ask one block's prompts of its version; a block that was begun before is begun again."""
        attempt = self._begun[index][0] + 1 if index in self._begun else 0
        place = Placement(
            operation_id=trial_id, arm=arm, step=index, pair_id=f"{trial_id}-block-{index:04d}-{attempt:03d}"
        )
        began_s = self._clock.monotonic_s()

        def elapsed_s() -> float:
            return self._clock.monotonic_s() - began_s

        async def ask(j: int) -> None:
            number = index * self._stride + j
            question = self._question(number)
            if j < self._warmup_requests or elapsed_s() < self._warmup_s:
                await self._warm_up(question, version)
                return
            self._asked.attempts[number] = attempt
            await self._send(trial_id, number, question, f"question-{number}", version=version, placement=place)

        def is_over() -> bool:
            return self._block_s is not None and elapsed_s() >= self._block_s

        await send_all(self._of_a_block(), self._arrivals, ask, self._clock, enough=is_over)

    def _of_a_block(self) -> Iterator[int]:
        return iter(range(self._each)) if self._block_s is None else iter(count())

    @property
    def _stride(self) -> int:
        """Numbers of a block's requests begin at its index times this."""
        return self._each if self._block_s is None else _MOST

    def _question(self, number: int) -> Question:
        return self._questions[number if self._block_s is None else number % _MOST % len(self._questions)]

    async def _warm_up(self, question: Question, version: str) -> None:
        """A request that takes part in no comparison."""
        with suppress(AbswitchError):  # its row says what happened
            await self._engine.generate(
                question.prompt,  # type: ignore[arg-type]  # already normalised: a string or chat messages
                model_id=self._model_id,
                version=version,
                reference=question.reference,
                **self._sampling,
            )
