"""`run_ab_test`: split real traffic between the active version and a candidate, and let the evidence speak.

The plan is fixed and stored before the first request meets the candidate; the verdict is taken once, at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from abswitch import checks
from abswitch.domain import Sampling, SwitchingStrategyType
from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments.arrivals import Arrivals, ClosedLoop
from abswitch.experiments.asking import NO_LIMIT, Asking, Progress, RequestBudget, RequestCounts
from abswitch.experiments.prompts import questions_of
from abswitch.rollout.strategies import ABTestStrategy
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.status import OperationStatus
from abswitch.stats import AnalysisPlan, Evidence, Metric, Verdict, decide
from abswitch.store.evidence import check_columns, collect_evidence
from abswitch.store.recorder import VerdictRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ABTestResult:
    """An A/B test that has its verdict; traffic is still split until `promote` or `keep`.

    Attributes:
        experiment: the name it was given, else the operation's id.
        started_at_s: seconds since the epoch.
        elapsed_s: loading the candidate included.
    """

    experiment: str
    handle: SwitchHandle
    plan: AnalysisPlan
    evidence: Evidence
    verdict: Verdict
    requests: RequestCounts
    started_at_s: float
    elapsed_s: float

    @property
    def operation_id(self) -> str:
        return self.handle.operation_id

    async def promote(self, reason: str | None = None) -> OperationStatus:
        """Send all traffic to the candidate."""
        return await self.handle.promote(reason or f"verdict: {self.verdict.decision}")

    async def keep(self, reason: str | None = None) -> OperationStatus:
        """Send all traffic back to the version that was active before."""
        return await self.handle.keep(reason or f"verdict: {self.verdict.decision}")


async def run_ab_test(
    engine: SwitchingEngine,
    candidate: str,
    prompts: Iterable[Any],
    *,
    metrics: Sequence[Metric],
    traffic_percentage: float = 50.0,
    alpha: float = 0.05,
    concurrency: int = 16,
    model_id: str | None = None,
    experiment: str | None = None,
    arrivals: Arrivals | None = None,
    budget: RequestBudget = NO_LIMIT,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **sampling: Any,
) -> ABTestResult:
    """Run an A/B test of the active version against a candidate.

    Args:
        engine: its scorers give the scores that `metrics` name.
        candidate: a registered version.
        prompts: see `questions_of`; each is a unit of its own unless it names one.
        metrics: what to compare, one of them primary.
        traffic_percentage: the candidate's share in percent.
        alpha: error rate of the primary comparison, two-sided.
        concurrency: requests under way at once.
        experiment: name that the assignment depends on; the same name splits the same units the same way.
        arrivals: when requests are sent, see `ClosedLoop`, `Poisson` and `Trace`; by default `concurrency` users.
        budget: what the run may use up. A test that ends before its planned number of units is not decided.
        resume: go on with the test of this candidate that an earlier process left in the same store: nothing that was
            answered is asked again, and its plan must be this one. Without such a test a new one begins.
        on_progress: called after every request, on the caller's loop.
        **sampling: fields of `Sampling` for every request.

    Returns:
        The result with its verdict. The candidate keeps its share until `result.promote()` or `result.keep()`.

    Raises:
        InvalidInput: a malformed argument, no prompts, or not the plan of the test to go on with; nothing was started.
        SwitchFailed: the candidate did not come to serve; the active version still does.
        SwitchRefused, OperationInProgress: see `SwitchingEngine.start_switch`.
    """
    questions = questions_of(prompts)
    checks.integer("concurrency", concurrency, low=1)
    Sampling().merged(sampling)
    model = engine.registry.resolve_model(model_id)
    engine.registry.get(model, candidate)
    strategy = ABTestStrategy(traffic_percentage=traffic_percentage)
    left_behind = unfinished(engine, model, candidate, SwitchingStrategyType.AB_TEST) if resume else None
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
    plan = AnalysisPlan(
        baseline=baseline,
        candidate=candidate,
        metrics=tuple(metrics),
        expected_share=strategy.stages[0].share,
        alpha=alpha,
        planned_n=len({question.unit_id or str(i) for i, question in enumerate(questions[: asking.total])}),
    )
    check_columns(plan, engine.scorers)
    asking.tell(f"loading {candidate}")
    handle = (
        left_behind
        if left_behind is not None
        else await engine.start_switch(
            candidate, SwitchingStrategyType.AB_TEST, strategy, model_id=model, experiment=experiment, plan=plan
        )
    )
    started_at_s = asking.started_at_s
    if left_behind is not None:
        started_at_s = await _take_up(engine, handle, plan)
    else:
        await handle.serving()
    counts = await asking.ask_all(handle.operation_id, lambda: handle.status.finished)
    asking.tell("scoring")
    await engine.scored()
    asking.tell("deciding")
    evidence = await asyncio.to_thread(collect_evidence, engine.store, handle.operation_id, plan)
    verdict = decide(plan, evidence)
    await asyncio.wrap_future(engine.store.verdict(_record(handle.operation_id, verdict)))
    result = ABTestResult(
        experiment=experiment or handle.operation_id,
        handle=handle,
        plan=plan,
        evidence=evidence,
        verdict=verdict,
        requests=counts,
        started_at_s=started_at_s,
        elapsed_s=time.time() - started_at_s,
    )
    asking.tell(str(verdict.decision))
    return result


def _record(operation_id: str, verdict: Verdict) -> VerdictRecord:
    return VerdictRecord(
        operation_id=operation_id,
        look=1,
        decision=verdict.decision.value,
        rule=verdict.rule,
        reason=verdict.reasons[0],
        body=verdict.to_dict(),
        at_s=time.time(),
    )


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


async def _take_up(engine: SwitchingEngine, handle: SwitchHandle, plan: AnalysisPlan) -> float:
    """Have a test's shares in force again; returns when it had begun, seconds since the epoch."""
    rows = engine.store.rows("SELECT digest, at_s FROM plans WHERE operation_id = ?", (handle.operation_id,))
    if not rows or rows[0][0] != plan.digest():
        raise InvalidInput("resume", plan.digest()[:12], f"the plan it began with: {rows[0][0][:12] if rows else None}")
    if handle.status.detached:
        await handle.resume()
    if not handle.status.finished:
        await handle.serving()
    return float(rows[0][1])
