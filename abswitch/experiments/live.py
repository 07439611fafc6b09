"""Live traffic under an A/B test, a switchback or a bandit, compared by the design that drew it; and `run_bandit`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from abswitch.domain import Sampling, SwitchingStrategyType
from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments.ab_test import result_of
from abswitch.experiments.arrivals import Arrivals, ClosedLoop
from abswitch.experiments.asking import NO_LIMIT, Asking, Progress, RequestBudget, RequestCounts
from abswitch.experiments.prompts import questions_of
from abswitch.experiments.trial import ExperimentResult, Trial, began_at_s, counts_of, verdict_of
from abswitch.looking import Looks, plan_of
from abswitch.rollout.strategies import BanditStrategy, SwitchbackStrategy
from abswitch.serving.handle import SwitchHandle
from abswitch.stats import AnalysisPlan, FamilyPlan, Metric
from abswitch.stats.plan import BANDIT, RANDOMISED, SWITCHBACK
from abswitch.store.evidence import check_columns
from abswitch.store.joint_evidence import check_metrics


def switchback_plan(
    baseline: str,
    candidate: str,
    metrics: Sequence[Metric],
    strategy: SwitchbackStrategy,
    *,
    alpha: float = 0.05,
) -> AnalysisPlan:
    """The plan of live traffic in blocks, for `start_switch("v2", "switchback", strategy, plan=…)`."""
    return AnalysisPlan(
        baseline=baseline,
        candidate=candidate,
        metrics=tuple(metrics),
        expected_share=0.5,
        planned_n=strategy.blocks,
        alpha=alpha,
        min_units=2,
        design=SWITCHBACK,
        blocks=strategy.order,
    )


def bandit_plan(
    baseline: str,
    candidate: str,
    metrics: Sequence[Metric],
    strategy: BanditStrategy,
    *,
    units: int,
    alpha: float = 0.05,
) -> AnalysisPlan:
    """The plan of live traffic under a bandit, for `start_switch("v2", "bandit", strategy, plan=…)`.

    Args:
        units: after how many the verdict is taken, once; a unit counts anew in each batch.
    """
    return AnalysisPlan(
        baseline=baseline,
        candidate=candidate,
        metrics=tuple(metrics),
        expected_share=strategy.initial_percentage / 100.0,
        planned_n=units,
        alpha=alpha,
        design=BANDIT,
    )


async def compare_live(engine: SwitchingEngine, operation_id: str) -> ExperimentResult:
    """Compare the traffic of a switch by `ab_test`, `switchback` or `bandit`, by the plan it was started with.

    Of an A/B test this is the last look, whether its plan has ended it or it still goes on.

    Raises:
        InvalidInput: no such operation, one of another strategy, or one that was started without a plan.
    """
    status = engine.operation_status(operation_id)
    kinds = (SwitchingStrategyType.AB_TEST, SwitchingStrategyType.SWITCHBACK, SwitchingStrategyType.BANDIT)
    if status.strategy not in kinds:
        raise InvalidInput("operation_id", operation_id, f"a switch by {' or '.join(kinds)}; this is {status.strategy}")
    plan = plan_of(engine.store, operation_id)
    if plan is None:
        raise InvalidInput("operation_id", operation_id, "a switch that was started with a plan")
    began_s = began_at_s(engine, operation_id)
    counts = counts_of(engine, operation_id)
    if isinstance(plan, FamilyPlan) or plan.design == RANDOMISED:
        await engine.scored()
        standing = await asyncio.to_thread(lambda: Looks(engine.store, operation_id, plan).close())
        handle = SwitchHandle(engine, operation_id)
        return result_of(handle, plan, standing, experiment=None, counts=counts, started_at_s=began_s)
    return await _verdict(engine, operation_id, plan, counts, began_s)


async def _verdict(
    engine: SwitchingEngine,
    operation_id: str,
    plan: AnalysisPlan,
    counts: RequestCounts,
    started_at_s: float,
    experiment: str | None = None,
) -> ExperimentResult:
    strategy = engine.switcher.operation(operation_id).strategy
    warmup_s = 60.0 * strategy.warmup_minutes if isinstance(strategy, SwitchbackStrategy) else 0.0
    model_id = engine.operation_status(operation_id).model_id
    trial = Trial(engine, operation_id, model_id, plan, time.monotonic())
    handle = SwitchHandle(engine, operation_id)
    return await verdict_of(
        trial, handle, experiment=experiment, counts=counts, started_at_s=started_at_s, warmup_s=warmup_s
    )


async def run_bandit(
    engine: SwitchingEngine,
    candidate: str,
    prompts: Iterable[Any],
    *,
    metrics: Sequence[Metric],
    strategy: BanditStrategy,
    alpha: float = 0.05,
    model_id: str | None = None,
    experiment: str | None = None,
    arrivals: Arrivals | None = None,
    budget: RequestBudget = NO_LIMIT,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **sampling: Any,
) -> ExperimentResult:
    """Ask prompts of whichever version looks better so far, and tell soundly afterwards how they differ.

    Args:
        engine: its scorers give the rewards.
        candidate: a registered version.
        prompts: see `questions_of`; each is a unit of its own unless it names one.
        metrics: means and rates, one of them primary: usually the rate of the strategy's `reward`. All are corrected
            for the shares having followed the outcomes.
        strategy: the reward, the length of a batch, the floor.
        alpha: error rate of the primary comparison, two-sided; for one look, at the end.
        experiment: name that the assignment depends on.
        arrivals: by default 16 users. Batches go by time, so that few requests a second make few decisions.
        budget: what the run may use up.
        on_progress: called after every request, on the caller's loop.
        **sampling: fields of `Sampling` for every request.

    Returns:
        The result with its verdict. Shares go on following the outcomes until `result.promote()` or `result.keep()`.

    Raises:
        InvalidInput: a malformed argument, or no prompts; nothing was started.
        SwitchFailed: the candidate did not come to serve; the active version still does.
        SwitchRefused, OperationInProgress: see `SwitchingEngine.start_switch`.
    """
    questions = questions_of(prompts)
    Sampling().merged(sampling)
    model = engine.registry.resolve_model(model_id)
    candidate = engine.registry.get(model, candidate).version
    baseline = engine.registry.active_version(model)
    if baseline is None:
        raise SwitchRefused(f"model {model!r} has no active version to compare with; use `await engine.deploy(…)`")
    asking = Asking(
        engine, questions, model, sampling, on_progress, arrivals=arrivals or ClosedLoop(), budget=budget
    )  # fmt: skip
    units = len({question.unit_id or str(i) for i, question in enumerate(questions[: asking.total])})
    plan = bandit_plan(baseline, candidate, metrics, strategy, units=units, alpha=alpha)
    check_columns(plan, engine.scorers)
    check_metrics(plan)
    asking.tell(f"loading {candidate}")
    handle = await engine.start_switch(
        candidate, strategy.type, strategy, model_id=model, experiment=experiment, plan=plan
    )
    await handle.serving()
    counts = await asking.ask_all(handle.operation_id, lambda: handle.status.finished)
    asking.tell("deciding")
    result = await _verdict(engine, handle.operation_id, plan, counts, asking.started_at_s, experiment)
    asking.tell(str(result.verdict.decision))
    return result
