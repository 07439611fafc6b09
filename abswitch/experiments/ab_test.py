"""`run_ab_test`: split real traffic between the active version and a candidate, and let the evidence speak.

The plan is fixed and stored before the first request meets the candidate; the verdict is taken once, at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from abswitch import checks
from abswitch.domain import Completion, Sampling, SwitchingStrategyType
from abswitch.engine import SwitchingEngine
from abswitch.errors import AbswitchError, SwitchRefused
from abswitch.experiments.prompts import Question, questions_of
from abswitch.rollout.strategies import ABTestStrategy
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.status import OperationStatus
from abswitch.stats import AnalysisPlan, Evidence, Metric, Verdict, decide
from abswitch.store.evidence import check_columns, collect_evidence
from abswitch.store.recorder import VerdictRecord


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
    """How far an experiment is; estimates are left out on purpose, as the plan allows one look, at the end.

    Attributes:
        by_arm: answered requests by arm name.
        phase: what the experiment is doing, in a few words.
    """

    phase: str
    done: int
    total: int
    failed: int
    by_arm: dict[str, int]
    elapsed_s: float


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
        on_progress: called after every request, on the caller's loop.
        **sampling: fields of `Sampling` for every request.

    Returns:
        The result with its verdict. The candidate keeps its share until `result.promote()` or `result.keep()`.

    Raises:
        InvalidInput: a malformed argument, or no prompts; nothing was started.
        SwitchFailed: the candidate did not come to serve; the active version still does.
        SwitchRefused, OperationInProgress: see `SwitchingEngine.start_switch`.
    """
    questions = questions_of(prompts)
    checks.integer("concurrency", concurrency, low=1)
    Sampling().merged(sampling)
    model = engine.registry.resolve_model(model_id)
    engine.registry.get(model, candidate)
    strategy = ABTestStrategy(traffic_percentage=traffic_percentage)
    baseline = engine.registry.active_version(model)
    if baseline is None:
        raise SwitchRefused(f"model {model!r} has no active version to compare with; use `await engine.deploy(…)`")
    plan = AnalysisPlan(
        baseline=baseline,
        candidate=candidate,
        metrics=tuple(metrics),
        expected_share=strategy.stages[0].share,
        alpha=alpha,
        planned_n=len({question.unit_id or str(index) for index, question in enumerate(questions)}),
    )
    check_columns(plan, engine.scorers)
    run = _Run(engine, questions, model, sampling, on_progress)
    run.tell(f"loading {candidate}")
    handle = await engine.start_switch(
        candidate, SwitchingStrategyType.AB_TEST, strategy, model_id=model, experiment=experiment, plan=plan
    )
    await handle.serving()
    counts = await run.ask_all(handle, concurrency)
    run.tell("scoring")
    await engine.scored()
    run.tell("deciding")
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
        started_at_s=run.started_at_s,
        elapsed_s=run.elapsed_s,
    )
    run.tell(str(verdict.decision))
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


class _Run:
    """The asking of one experiment's questions."""

    def __init__(
        self,
        engine: SwitchingEngine,
        questions: Sequence[Question],
        model_id: str,
        sampling: dict[str, Any],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._engine = engine
        self._questions = questions
        self._model_id = model_id
        self._sampling = sampling
        self._on_progress = on_progress
        self._sent = self._failed = 0
        self._by_arm: Counter[str] = Counter()
        self._start_s = time.monotonic()
        self.started_at_s = time.time()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    def tell(self, phase: str) -> None:
        """Report how far the run is."""
        self._on_progress(
            Progress(
                phase=phase,
                done=self._by_arm.total() + self._failed,
                total=len(self._questions),
                failed=self._failed,
                by_arm=dict(self._by_arm),
                elapsed_s=self.elapsed_s,
            )
        )

    async def ask_all(self, handle: SwitchHandle, concurrency: int) -> RequestCounts:
        """Ask every question, `concurrency` at a time; stops when somebody ends the switch."""
        waiting = iter(enumerate(self._questions))

        async def worker() -> None:
            for index, question in waiting:
                if handle.status.finished:
                    return
                await self._ask(f"{handle.operation_id}-{index}", question, f"question-{index}")

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return RequestCounts(sent=self._sent, answered=self._by_arm.total(), failed=self._failed)

    async def _ask(self, request_id: str, question: Question, own_unit: str) -> None:
        self._sent += 1
        try:
            completion: Completion = await self._engine.generate(
                question.prompt,  # type: ignore[arg-type]  # already normalised: a string or chat messages
                unit_id=question.unit_id or own_unit,
                request_id=request_id,
                model_id=self._model_id,
                reference=question.reference,
                **self._sampling,
            )
        except AbswitchError:
            self._failed += 1  # its row says which error; the verdict counts it
        else:
            self._by_arm[completion.arm] += 1
        self.tell("asking")
