"""`run_ab_test`: split real traffic between the active version and candidates, and let the evidence speak.

The plan is fixed and stored before the first request meets a candidate. By default the evidence is looked at while
traffic flows, by methods that stay right however often, and the test ends as soon as the rules decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from abswitch import checks
from abswitch.domain import Sampling, SwitchingStrategyType
from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments.arrivals import Arrivals, ClosedLoop
from abswitch.experiments.asking import NO_LIMIT, Asking, Progress, RequestBudget, RequestCounts
from abswitch.experiments.prompts import Question, questions_of
from abswitch.experiments.watching import Watching
from abswitch.looking import Looks, Standing
from abswitch.rollout.strategies import ABTestStrategy
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.status import OperationStatus
from abswitch.stats import AnalysisPlan, Decision, Evidence, FamilyPlan, Metric, Verdict
from abswitch.stats.plan import SEQUENTIAL
from abswitch.store.evidence import check_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ABTestResult:
    """An A/B test that has its verdict; traffic is still split until `promote` or `keep`.

    Attributes:
        experiment: the name it was given, else the operation's id.
        plan, evidence, verdict: of the candidate against the baseline; of several candidates, of the first.
        started_at_s: seconds since the epoch.
        elapsed_s: loading the candidate included.
        verdicts, all_evidence: of several candidates, each one's, the first included.
        winner: of several candidates, the best of those that are shown better; of one, that one where it ships.
    """

    experiment: str
    handle: SwitchHandle
    plan: AnalysisPlan
    evidence: Evidence
    verdict: Verdict
    requests: RequestCounts
    started_at_s: float
    elapsed_s: float
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    all_evidence: Mapping[str, Evidence] = field(default_factory=dict)
    winner: str | None = None

    def __post_init__(self) -> None:
        if not self.verdicts:
            object.__setattr__(self, "verdicts", {self.plan.candidate: self.verdict})
            object.__setattr__(self, "all_evidence", {self.plan.candidate: self.evidence})
            shipped = self.verdict.decision is Decision.SHIP
            object.__setattr__(self, "winner", self.plan.candidate if shipped else None)

    @property
    def operation_id(self) -> str:
        return self.handle.operation_id

    def in_words(self) -> str:
        """Every candidate's verdict; of several, the winner first."""
        told = "\n".join(verdict.in_words() for verdict in self.verdicts.values())
        if len(self.verdicts) == 1:
            return told
        return f"{'No candidate wins' if self.winner is None else f'{self.winner} wins'}.\n{told}"

    async def promote(self, reason: str | None = None) -> OperationStatus:
        """Send all traffic to the candidate; of several to the winner, or the first where none won."""
        version = self.plan.candidate if self.winner is None else self.winner
        reason = reason or f"verdict: {self.verdicts[version].decision}"
        if len(self.verdicts) == 1:
            return await self.handle.promote(reason)
        return await self.handle.promote(reason, version=version)

    async def keep(self, reason: str | None = None) -> OperationStatus:
        """Send all traffic back to the version that was active before."""
        return await self.handle.keep(reason or f"verdict: {self.verdict.decision}")


async def run_ab_test(
    engine: SwitchingEngine,
    candidate: str | Sequence[str],
    prompts: Iterable[Any],
    *,
    metrics: Sequence[Metric],
    traffic_percentage: float | None = None,
    alpha: float = 0.05,
    evaluation: str = SEQUENTIAL,
    look_every: int | None = None,
    looks: int | None = None,
    spending: str | None = None,
    concurrency: int = 16,
    model_id: str | None = None,
    experiment: str | None = None,
    arrivals: Arrivals | None = None,
    budget: RequestBudget = NO_LIMIT,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **sampling: Any,
) -> ABTestResult:
    """Run an A/B test of the active version against a candidate, or several.

    Args:
        engine: its scorers give the scores that `metrics` name.
        candidate: a registered version; or a list of them, each of which is compared with the active version. They
            share the error rate: a part of `alpha` each (Bonferroni), stepping down (Holm) where there is one look.
        prompts: see `questions_of`; each is a unit of its own unless it names one. They are the budget: a sequential
            test stops before their end as soon as it is decided.
        metrics: what to compare, one of them primary.
        traffic_percentage: the candidate's share in percent, 50 by default; of several candidates their sum, by
            default so that all arms have the same.
        alpha: error rate of the primary comparison, two-sided, over all looks and candidates.
        evaluation: `sequential` (default): a look every `look_every` requests, or more where they come faster than a
            look takes; the test stops when one decides: better, worse, equivalent within the margin, a guardrail
            harmed, or invalid.
            `group_sequential`: so many planned `looks`, between which alpha is spent. `fixed`: one look, at the end.
        look_every: of `sequential`: requests between two looks; by default a fiftieth of the units, and 20 at least.
        looks, spending: of `group_sequential`: how many, 5 by default; `obrien-fleming` (default), `pocock` or `power`.
        concurrency: requests under way at once.
        experiment: name that the assignment depends on; the same name splits the same units the same way.
        arrivals: when requests are sent, see `ClosedLoop`, `Poisson` and `Trace`; by default `concurrency` users.
        budget: what the run may use up. A test for one look that ends before its planned number of units is not
            decided.
        resume: go on with the test of this candidate that an earlier process left in the same store: nothing that was
            answered is asked again, and its plan must be this one. Without such a test a new one begins.
        on_progress: called after every request and look, on the caller's loop.
        **sampling: fields of `Sampling` for every request.

    Returns:
        The result with its verdict. Candidates keep their shares until `result.promote()` or `result.keep()`.

    Raises:
        InvalidInput: a malformed argument, no prompts, or not the plan of the test to go on with; nothing was started.
        SwitchFailed: a candidate did not come to serve; the active version still does.
        SwitchRefused, OperationInProgress: see `SwitchingEngine.start_switch`.
    """
    questions = questions_of(prompts)
    checks.integer("concurrency", concurrency, low=1)
    Sampling().merged(sampling)
    model = engine.registry.resolve_model(model_id)
    candidates = _candidates(engine, model, candidate)
    strategy = _strategy(candidates, traffic_percentage)
    left_behind = unfinished(engine, model, candidates[0], SwitchingStrategyType.AB_TEST) if resume else None
    baseline = engine.registry.active_version(model) if left_behind is None else left_behind.status.stable
    if baseline is None:
        raise SwitchRefused(f"model {model!r} has no active version to compare with; use `await engine.deploy(…)`")
    asking = Asking(
        engine,
        questions,
        model,
        sampling,
        on_progress,
        arrivals=arrivals or ClosedLoop(concurrency=concurrency),
        budget=budget,
    )
    plan = ab_test_plan(
        baseline,
        candidates[0],
        metrics,
        strategy,
        units=_units(questions[: asking.total]),
        alpha=alpha,
        evaluation=evaluation,
        look_every=look_every,
        looks=looks,
        spending=spending,
    )
    check_columns(plan.first if isinstance(plan, FamilyPlan) else plan, engine.scorers)
    asking.tell(f"loading {', '.join(candidates)}")
    handle = (
        left_behind
        if left_behind is not None
        else await engine.start_switch(
            candidates[0], SwitchingStrategyType.AB_TEST, strategy, model_id=model, experiment=experiment, plan=plan
        )
    )
    started_at_s = asking.started_at_s
    if left_behind is not None:
        started_at_s = await _take_up(engine, handle, plan)
    else:
        await handle.serving()
    watching = Watching(
        engine,
        asking,
        await asyncio.to_thread(Looks, engine.store, handle.operation_id, plan, planned_requests=asking.total),
    )
    async with watching:
        counts = await asking.ask_all(handle.operation_id, lambda: handle.status.finished or watching.is_over)
    asking.tell("scoring")
    await engine.scored()
    asking.tell("deciding")
    standing = await watching.close()
    result = result_of(
        handle, plan, standing, experiment=experiment, counts=counts, started_at_s=started_at_s
    )  # fmt: skip
    asking.verdicts = standing.verdicts
    asking.tell(str(standing.decision))
    return result


def _candidates(engine: SwitchingEngine, model_id: str, given: str | Sequence[str]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names:
        raise InvalidInput("candidate", given, "a version, or a list of versions")
    versions = tuple(engine.registry.get(model_id, name).version for name in names)
    if len(set(versions)) < len(versions):
        raise InvalidInput("candidate", given, "versions that differ from each other")
    return versions


def _strategy(candidates: Sequence[str], traffic_percentage: float | None) -> ABTestStrategy:
    if len(candidates) == 1:
        return ABTestStrategy(traffic_percentage=50.0 if traffic_percentage is None else traffic_percentage)
    k = len(candidates)
    total = 100.0 * k / (k + 1) if traffic_percentage is None else traffic_percentage
    checks.number("strategy_config.traffic_percentage", total, low=0.0, high=100.0, above=True)
    return ABTestStrategy(arms=tuple((version, total / k) for version in candidates))


def ab_test_plan(
    baseline: str,
    candidate: str,
    metrics: Sequence[Metric],
    strategy: ABTestStrategy,
    *,
    units: int,
    alpha: float = 0.05,
    evaluation: str = SEQUENTIAL,
    look_every: int | None = None,
    looks: int | None = None,
    spending: str | None = None,
) -> AnalysisPlan | FamilyPlan:
    """The plan of live traffic under an A/B test, for `start_switch("v2", "ab_test", strategy, plan=…)`.

    Where the strategy has an `evaluation_period_minutes`, the test is looked at that often and ends with its verdict.

    Args:
        candidate: the switch's target; of a strategy with several `arms`, one of them.
        units: the budget, of all arms together.
        evaluation, look_every, looks, spending: as of `run_ab_test`.

    Raises:
        InvalidInput: a field is outside its range.
    """
    (_, part), *others = strategy.candidates(candidate)
    share = strategy.stages[0].share
    first = AnalysisPlan(
        baseline=baseline,
        candidate=candidate,
        metrics=tuple(metrics),
        expected_share=share * part,
        alpha=alpha,
        planned_n=units,
        evaluation=evaluation,
        look_every=look_every,
        look_count=looks,
        spending=spending,
    )
    return FamilyPlan(first, tuple((version, share * part) for version, part in others)) if others else first


def result_of(
    handle: SwitchHandle,
    plan: AnalysisPlan | FamilyPlan,
    standing: Standing,
    *,
    experiment: str | None,
    counts: RequestCounts,
    started_at_s: float,
) -> ABTestResult:
    """The result of a test, as its last look left it."""
    several = isinstance(plan, FamilyPlan)
    return ABTestResult(
        experiment=experiment or handle.operation_id,
        handle=handle,
        plan=plan.pair(plan.candidate) if isinstance(plan, FamilyPlan) else plan,
        evidence=standing.evidence[plan.candidate],
        verdict=standing.verdicts[plan.candidate],
        requests=counts,
        started_at_s=started_at_s,
        elapsed_s=time.time() - started_at_s,
        verdicts=standing.verdicts if several else {},
        all_evidence=standing.evidence if several else {},
        winner=standing.winner,
    )


def _units(questions: Sequence[Question]) -> int:
    return len({question.unit_id or str(i) for i, question in enumerate(questions)})


def unfinished(
    engine: SwitchingEngine, model_id: str, candidate: str, strategy: SwitchingStrategyType
) -> SwitchHandle | None:
    """The last operation of this kind that the store knows, whether an earlier process left it open or concluded it."""
    found = [
        operation.operation_id
        for operation in engine.switcher.operations.values()
        if (operation.model_id, operation.candidate) == (model_id, candidate) and operation.strategy.type is strategy
    ]
    return SwitchHandle(engine, found[-1]) if found else None


async def _take_up(engine: SwitchingEngine, handle: SwitchHandle, plan: AnalysisPlan | FamilyPlan) -> float:
    """Have a test's shares in force again; returns when it had begun, seconds since the epoch."""
    rows = engine.store.rows("SELECT digest, at_s FROM plans WHERE operation_id = ?", (handle.operation_id,))
    if not rows or rows[0][0] != plan.digest():
        raise InvalidInput("resume", plan.digest()[:12], f"the plan it began with: {rows[0][0][:12] if rows else None}")
    if handle.status.detached:
        await handle.resume()
    if not handle.status.finished:
        await handle.serving()
    return float(rows[0][1])
