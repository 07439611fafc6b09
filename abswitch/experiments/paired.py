"""`run_paired`: every prompt to both versions, compared pair by pair; and the same from a shadow's copies.

What varies between prompts cancels out, so that a pair tells as much as many requests of a split. Users notice nothing:
requests name their version, and traffic stays where it is until the verdict moves it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

from abswitch import checks
from abswitch.domain import Placement, Sampling, SwitchingStrategyType
from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments.ab_test import result_of
from abswitch.experiments.arrivals import Arrivals, ClosedLoop
from abswitch.experiments.asking import NO_LIMIT, Asked, Asking, Progress, RequestBudget, RequestCounts
from abswitch.experiments.prompts import Question, questions_of
from abswitch.experiments.trial import (
    ARMS,
    ExperimentResult,
    LeftBehind,
    Trial,
    TrialHandle,
    baseline_of,
    began_at_s,
    begin,
    counts_of,
    fit_together,
    left_behind,
    serve,
    stored_plan,
    verdict_of,
)
from abswitch.experiments.watching import Watching
from abswitch.looking import Looks
from abswitch.serving.handle import SwitchHandle
from abswitch.stats import AnalysisPlan, Metric
from abswitch.stats.plan import FIXED, GROUP_SEQUENTIAL, PAIRED, SEQUENTIAL
from abswitch.store.evidence import check_columns
from abswitch.store.joint_evidence import check_metrics

_SEEDS = 2**31
Found = TypeVar("Found")


async def run_paired(
    engine: SwitchingEngine,
    candidate: str,
    prompts: Iterable[Any],
    *,
    metrics: Sequence[Metric],
    alpha: float = 0.05,
    evaluation: str | None = None,
    look_every: int | None = None,
    looks: int | None = None,
    spending: str | None = None,
    concurrency: int = 16,
    model_id: str | None = None,
    experiment: str | None = None,
    together: bool | None = None,
    arrivals: Arrivals | None = None,
    budget: RequestBudget = NO_LIMIT,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **sampling: Any,
) -> ExperimentResult:
    """Ask every prompt of both the active version and a candidate, and compare the answers pair by pair.

    A coin per prompt says which version is asked first, so that warm caches favour neither. Where a version draws its
    answers (a temperature above 0) both sides of a pair draw with the same seed, unless you give one.

    Args:
        engine: its scorers give the scores that `metrics` name.
        candidate: a registered version.
        prompts: see `questions_of`; each is a unit of its own unless it names one. Of a unit with several, the answers
            are averaged on either side. They are the budget: a sequential comparison stops before their end as soon as
            it is decided.
        metrics: what to compare, one of them primary.
        alpha: error rate of the primary comparison, two-sided, over all looks.
        evaluation: `sequential`: a look every `look_every` whole pairs, or more where they come faster; the
            comparison stops when one decides. `group_sequential`: so many planned `looks`, between which alpha is
            spent. `fixed`: one look, at the end. By default sequential where both versions are held `together`, and
            fixed otherwise: as long as one version alone has answered there are no pairs to look at.
        look_every: of `sequential`: pairs between two looks; by default a fiftieth of the units, and 20 at least.
        looks, spending: of `group_sequential`: how many, 5 by default; `obrien-fleming` (default), `pocock` or `power`.
        concurrency: pairs under way at once; of a pair, one request at a time.
        experiment: name that the order within pairs depends on.
        together: both versions are held in memory; without it one answers every prompt, leaves, and the other follows:
            then latencies are of different times, and what drifts between them is not the version's. By default
            together where both fit.
        arrivals: when pairs begin, see `ClosedLoop`, `Poisson` and `Trace`; by default `concurrency` at once.
        budget: what the run may use up; a pair is two requests.
        resume: go on with the comparison that an earlier process left in the same store; no answer is asked for again.
        on_progress: called after every request, on the caller's loop.
        **sampling: fields of `Sampling` for every request.

    Returns:
        The result with its verdict. Traffic moves by `result.promote()` alone.

    Raises:
        InvalidInput: a malformed argument, no prompts, not the plan of the comparison to go on with, or several looks
            at versions that are not held together.
        SwitchRefused: no version is active, or the candidate is, or they do not fit `together`.
        LoadFailed: a version cannot be loaded.
    """
    questions = questions_of(prompts)
    checks.integer("concurrency", concurrency, low=1)
    Sampling().merged(sampling)
    model = engine.registry.resolve_model(model_id)
    candidate = engine.registry.get(model, candidate).version
    left = left_behind(engine, PAIRED, model, candidate) if resume else None
    baseline = baseline_of(engine, model, candidate, left)
    asking = PairAsking(
        engine,
        questions,
        model,
        sampling,
        on_progress,
        versions=(baseline, candidate),
        arrivals=arrivals or ClosedLoop(concurrency=concurrency),
        budget=budget,
    )
    units = _units(questions[: asking.total // 2])
    once = paired_plan(baseline, candidate, metrics, units=units, alpha=alpha)
    check_columns(once, engine.scorers)
    check_metrics(once)
    if together is None and left is not None and left.plan.evaluation != FIXED:
        together = True  # as before
    beside = await _beside(engine, model, baseline, candidate, together)
    plan = paired_plan(
        baseline,
        candidate,
        metrics,
        units=units,
        alpha=alpha,
        evaluation=_evaluation(evaluation, left, beside=beside),
        look_every=look_every,
        looks=looks,
        spending=spending,
    )
    trial = await begin(engine, model, plan, left)
    asking.salt = experiment or trial.trial_id
    asking.tell(f"loading {candidate}")
    if plan.evaluation != FIXED:
        result = await _together(trial, partial(_watched, trial, asking, experiment))
    else:
        if beside:
            counts = await _together(trial, partial(asking.ask_all, trial.trial_id, lambda: False))
        else:
            counts = await _in_turn(trial, asking)
        asking.tell("deciding")
        result = await verdict_of(
            trial, TrialHandle(trial), experiment=experiment, counts=counts, started_at_s=asking.started_at_s
        )
    asking.tell(str(result.verdict.decision))
    return result


def _evaluation(given: str | None, left: LeftBehind | None, *, beside: bool) -> str:
    """When results are read: as asked for, or as the comparison to go on with does, or by what the versions allow."""
    if given is None:
        given = left.plan.evaluation if left is not None else SEQUENTIAL if beside else FIXED
    if given != FIXED and not beside:
        allowed = f"{FIXED}, as one version answers everything before the other: there are no pairs until the end"
        raise InvalidInput("evaluation", given, allowed)
    return given


def paired_plan(
    baseline: str,
    candidate: str,
    metrics: Sequence[Metric],
    *,
    units: int,
    alpha: float = 0.05,
    evaluation: str = FIXED,
    look_every: int | None = None,
    looks: int | None = None,
    spending: str | None = None,
) -> AnalysisPlan:
    """The plan of a paired comparison, to be handed to `start_switch("v2", "shadow", plan=…)` beforehand.

    Args:
        units: prompts, or whatever they belong to, after which the verdict is taken at the latest.
        evaluation, look_every, looks, spending: as of `run_paired`; of a shadow, whose pairs are compared when somebody
            asks, `fixed` (the default) or `sequential`.
    """
    return AnalysisPlan(
        baseline=baseline,
        candidate=candidate,
        metrics=tuple(metrics),
        expected_share=0.5,
        planned_n=2 * units,
        alpha=alpha,
        design=PAIRED,
        evaluation=evaluation,
        look_every=look_every,
        look_count=looks,
        spending=spending,
    )


async def paired_from_shadow(
    engine: SwitchingEngine, operation_id: str, metrics: Sequence[Metric] | None = None, *, alpha: float = 0.05
) -> ExperimentResult:
    """Compare the pairs of a shadow: what users were answered, and what the candidate answered to the copies.

    Args:
        operation_id: of a switch by the strategy `shadow`, ended or under way.
        metrics: what to compare; by default those of the plan that the shadow was started with (`paired_plan`). Without
            such a plan nothing was committed to beforehand: the estimates are there, the verdict is `invalid`.
        alpha: error rate of the primary comparison, where there is no plan.

    Raises:
        InvalidInput: no such operation, not a shadow, or neither a plan nor metrics.
    """
    status = engine.operation_status(operation_id)
    if status.strategy != SwitchingStrategyType.SHADOW or status.stable is None:
        raise InvalidInput("operation_id", operation_id, f"a shadow; this is {status.strategy}")
    rows = engine.store.rows("SELECT body FROM plans WHERE operation_id = ?", (operation_id,))
    plan = stored_plan(rows[0][0]) if rows else None
    if plan is None and metrics is None:
        raise InvalidInput("metrics", None, "metrics, as the shadow was started without a plan")
    if metrics is not None and (plan is None or tuple(metrics) != plan.metrics):
        units = 1 if plan is None else plan.planned_n // 2
        plan = paired_plan(status.stable, status.candidate, metrics, units=units, alpha=alpha)
    assert plan is not None, "made where none was stored"
    if plan.evaluation == GROUP_SEQUENTIAL:
        raise InvalidInput(
            "plan.evaluation", plan.evaluation, f"{FIXED} or {SEQUENTIAL}: nobody takes a shadow's looks"
        )
    check_columns(plan, engine.scorers)
    check_metrics(plan)
    trial = Trial(engine, operation_id, status.model_id, plan, time.monotonic())
    counts = counts_of(engine, operation_id)
    handle = SwitchHandle(engine, operation_id)
    began_s = began_at_s(engine, operation_id)
    return await verdict_of(trial, handle, experiment=None, counts=counts, started_at_s=began_s)


def _units(questions: Sequence[Question]) -> int:
    return max(1, len({question.unit_id or str(i) for i, question in enumerate(questions)}))


async def _beside(engine: SwitchingEngine, model_id: str, baseline: str, candidate: str, wanted: bool | None) -> bool:
    if wanted is False or engine.registry.active_version(model_id) != baseline:
        return bool(wanted)
    if wanted:
        validation = await engine.validate_switch_request(model_id, candidate, SwitchingStrategyType.AB_TEST)
        if validation.error is not None:
            raise validation.error  # with the numbers and the ways out
    return wanted or await fit_together(engine, model_id, candidate)


async def _together(trial: Trial, run: Callable[[], Awaitable[Found]]) -> Found:
    """While both versions are held."""
    engine, model = trial.engine, trial.model_id
    for version in trial.versions:
        await engine.pin(version, model_id=model)
    try:
        await asyncio.gather(*(engine.load(version, model_id=model) for version in trial.versions))
        return await run()
    finally:
        for version in trial.versions:
            await engine.unpin(version, model_id=model)


async def _watched(trial: Trial, asking: PairAsking, experiment: str | None) -> ExperimentResult:
    """Ask, look at the pairs meanwhile, and stop when a look decides."""
    engine, plan = trial.engine, trial.plan
    looks = await asyncio.to_thread(Looks, engine.store, trial.trial_id, plan, planned_requests=asking.total)
    watching = Watching(engine, asking, looks)
    async with watching:
        counts = await asking.ask_all(trial.trial_id, lambda: watching.is_over)
    asking.tell("deciding")
    await engine.scored()
    standing = await watching.close()
    asking.verdicts = standing.verdicts
    return result_of(
        TrialHandle(trial), plan, standing, experiment=experiment, counts=counts, started_at_s=asking.started_at_s
    )  # fmt: skip


async def _in_turn(trial: Trial, asking: PairAsking) -> RequestCounts:
    """One version after the other; a coin says which is first. Afterwards the baseline serves again."""
    engine, model = trial.engine, trial.model_id
    first = asking.order(-1)
    for side in first:
        asking.sides = (side,)
        if not asking.is_missing(trial.trial_id):
            continue
        await serve(engine, model, trial.versions[side], reason=f"its turn in {trial.trial_id}")
        await asking.ask_all(trial.trial_id, lambda: False)
    await serve(engine, model, trial.plan.baseline, reason=f"{trial.trial_id} has asked everything")
    return asking.counts


class PairAsking(Asking):
    """Asks prompts of two versions. Request 2n is the baseline's answer to prompt n, request 2n + 1 the candidate's.

    Attributes:
        salt: the order within pairs, and seeds, depend on it.
        sides: whose requests are sent, by number: 0 the baseline's, 1 the candidate's.
    """

    def __init__(
        self,
        engine: SwitchingEngine,
        questions: Sequence[Question],
        model_id: str,
        sampling: Mapping[str, Any],
        on_progress: Callable[[Progress], None],
        *,
        versions: tuple[str, str],
        arrivals: Arrivals,
        budget: RequestBudget,
    ) -> None:
        super().__init__(engine, questions, model_id, sampling, on_progress, arrivals=arrivals, budget=budget)
        self.salt = ""
        self.sides: tuple[int, ...] = (0, 1)
        self._versions = versions
        configs = (engine.registry.get(model_id, version).config.sampling.merged(sampling) for version in versions)
        self._draws = any(one.temperature > 0 and one.seed is None for one in configs)

    @property
    def total(self) -> int:
        """Requests, two a prompt."""
        most, everything = self._budget.requests, 2 * len(self._questions)
        return everything if most is None else min(most - most % 2, everything)

    def order(self, pair: int) -> tuple[int, int]:
        """Which side of a pair is asked first."""
        return (1, 0) if self._coin(f"order\0{pair}") & 1 else (0, 1)

    def _coin(self, what: str) -> int:
        return int.from_bytes(blake2b(f"{self.salt}\0{what}".encode(), digest_size=8).digest(), "big")

    def is_missing(self, operation_id: str) -> bool:
        """Whether an answer of these sides is."""
        self._asked = Asked.before(self._engine, operation_id)
        return any(True for _ in self._numbers())

    def _numbers(self) -> Iterator[int]:
        """Pairs with an answer that is missing."""
        pairs = range(self.total // 2)
        return (n for n in pairs if any(2 * n + side not in self._asked.ended for side in self.sides))

    def _question(self, number: int) -> Question:
        return self._questions[number // 2]

    async def _ask(self, operation_id: str, number: int) -> None:
        how = {"seed": self._coin(f"seed\0{number}") % _SEEDS} if self._draws else {}
        for side in self.order(number):
            request = 2 * number + side
            if side in self.sides and request not in self._asked.ended:
                place = Placement(operation_id=operation_id, arm=ARMS[side], pair_id=f"{operation_id}-pair-{number}")
                await self._send(
                    operation_id,
                    request,
                    self._questions[number],
                    f"question-{number}",
                    version=self._versions[side],
                    placement=place,
                    **how,
                )
