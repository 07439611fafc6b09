"""A trial: an experiment whose design, and no route, says which version answers what; the plan is its only record
until the verdict, and traffic moves only afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from abswitch.engine import SwitchingEngine
from abswitch.errors import IllegalTransition, InvalidInput, OperationFinished, SwitchRefused
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.asking import RequestCounts
from abswitch.rollout import operation as ops
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import ABTestStrategy, ImmediateStrategy
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.status import OperationStatus
from abswitch.stats import AnalysisPlan, decide
from abswitch.store.joint_evidence import collect_joint_evidence
from abswitch.store.recorder import PlanRecord, VerdictRecord

ExperimentResult = ABTestResult
"""The result of an experiment, whatever its design: `result.plan.design` says which."""
ARMS = ("stable", "candidate")


@dataclass(slots=True)
class Trial:
    """One trial, as a `SwitchHandle` sees it: under way until somebody concludes it, then all traffic moves at once.

    Attributes:
        moved_by: the switch that moved the traffic at the end; None where nothing had to move.
    """

    engine: SwitchingEngine
    trial_id: str
    model_id: str
    plan: AnalysisPlan
    began_mono_s: float
    phase: Phase = Phase.EVALUATING
    since_mono_s: float = 0.0
    reason: str = "asking"
    winner: str | None = None
    moved_by: str | None = None

    @property
    def versions(self) -> tuple[str, str]:
        """Baseline and candidate."""
        return self.plan.baseline, self.plan.candidate

    def _check(self, operation_id: str) -> None:
        if operation_id != self.trial_id:
            raise InvalidInput("operation_id", operation_id, f"this trial: {self.trial_id}")

    def operation_status(self, operation_id: str) -> OperationStatus:
        """The trial as it stands."""
        self._check(operation_id)
        now_s = time.monotonic()
        active = self.engine.registry.active_version(self.model_id)
        share = float(active == self.plan.candidate)
        return OperationStatus(
            operation_id=self.trial_id,
            model_id=self.model_id,
            strategy=self.plan.design,
            stable=self.plan.baseline,
            candidate=self.plan.candidate,
            candidates=(self.plan.candidate,),
            phase=self.phase.value,
            finished=self.phase.is_final,
            stage=0,
            stages=1,
            share=share,
            shares=((self.plan.baseline, 1.0 - share), (self.plan.candidate, share)),
            ramp=(share,),
            mirror=0.0,
            promoted=self.winner is not None,
            winner=self.winner,
            detached=False,
            reason=self.reason,
            age_s=now_s - self.began_mono_s,
            in_phase_s=now_s - (self.since_mono_s or self.began_mono_s),
        )

    async def wait_for_switch(self, operation_id: str, _: Callable[[Operation], bool]) -> None:
        """A trial serves no traffic of its own, and ends within `conclude_switch`: there is nothing to wait for."""
        self._check(operation_id)

    async def conclude_switch(
        self, operation_id: str, *, promote: bool, reason: str, version: str | None = None
    ) -> None:
        """Send all traffic to the candidate, or back to the baseline where that does not serve."""
        self._check(operation_id)
        if self.phase.is_final:
            raise OperationFinished(self.trial_id, self.phase)
        if version not in (None, self.plan.candidate):
            raise InvalidInput("version", version, f"this trial's candidate: {self.plan.candidate}")
        wanted = self.versions[promote]
        self.moved_by = await serve(self.engine, self.model_id, wanted, reason=reason, experiment=self.trial_id)
        self.phase, self.since_mono_s = Phase.SUCCEEDED, time.monotonic()
        self.winner, self.reason = wanted if promote else None, reason

    async def tell_switch(self, operation_id: str, event: ops.Event) -> None:
        """A trial has no shares to hold."""
        self._check(operation_id)
        raise IllegalTransition(self.phase, type(event).__name__)

    async def abort_switch(self, operation_id: str) -> bool:
        """Back to the baseline; False when it had already ended."""
        if self.phase.is_final:
            return False
        await self.conclude_switch(operation_id, promote=False, reason="aborted by hand")
        self.phase = Phase.ABORTED
        return True


class TrialHandle(SwitchHandle):
    """A trial as its caller holds it."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial, trial.trial_id)
        self._trial = trial

    @property
    def moved_by(self) -> str | None:
        return self._trial.moved_by


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A trial of an earlier process: its id and the plan it committed itself to."""

    trial_id: str
    plan: AnalysisPlan


def left_behind(engine: SwitchingEngine, design: str, model_id: str, candidate: str) -> LeftBehind | None:
    """The last trial of this candidate that the store knows, whether or not it came to its verdict."""
    sql = """SELECT operation_id, body FROM plans
        WHERE starts_with(operation_id, ?) AND body->>'candidate' = ? ORDER BY at_s DESC LIMIT 1"""
    rows = engine.store.rows(sql, (_prefix(design, model_id), candidate))
    return LeftBehind(rows[0][0], stored_plan(rows[0][1])) if rows else None


def stored_plan(body: str) -> AnalysisPlan:
    """A plan as the table `plans` has it."""
    return AnalysisPlan.of(json.loads(body))


def _prefix(design: str, model_id: str) -> str:
    return f"{design}-{model_id}-"


async def begin(engine: SwitchingEngine, model_id: str, plan: AnalysisPlan, left: LeftBehind | None) -> Trial:
    """Store the plan of a new trial, or take up the one that an earlier process left.

    Raises:
        InvalidInput: that one had another plan.
    """
    if left is not None and left.plan.digest() != plan.digest():
        raise InvalidInput("resume", plan.digest()[:12], f"the plan it began with: {left.plan.digest()[:12]}")
    trial_id = _prefix(plan.design, model_id) + uuid4().hex[:12] if left is None else left.trial_id
    if left is None:
        record = PlanRecord(trial_id, plan.digest(), plan.to_dict(), time.time())
        await asyncio.wrap_future(engine.store.plan(record))
    return Trial(engine=engine, trial_id=trial_id, model_id=model_id, plan=plan, began_mono_s=time.monotonic())


async def fit_together(engine: SwitchingEngine, model_id: str, candidate: str) -> bool:
    """Whether the candidate may be held beside the active version, and there is memory for both."""
    if engine.config.max_cached_models < len(ARMS):
        return False
    found = await engine.plan_switch(candidate, ABTestStrategy.type, ABTestStrategy(), model_id=model_id)
    return found.fits


async def serve(
    engine: SwitchingEngine,
    model_id: str,
    version: str,
    *,
    reason: str,
    in_place: bool = False,
    experiment: str | None = None,
) -> str | None:
    """Have a version serve alone; returns the id of the switch, None where it does already.

    Where both do not fit, the version that serves finishes what it began and leaves first; `in_place` has its engine
    take over the other's weights.
    """
    if engine.registry.active_version(model_id) == version:
        await engine.load(version, model_id=model_id)
        return None
    together = not in_place and await fit_together(engine, model_id, version)
    way = ImmediateStrategy(in_place=in_place, drain_first=not together and not in_place)
    behind = {} if experiment is None else {"experiment": experiment}
    handle = await engine.start_switch(version, way.type, way, model_id=model_id, reason=reason, metadata=behind)
    await handle.serving()
    await handle.done()
    return handle.operation_id


def counts_of(engine: SwitchingEngine, operation_id: str) -> RequestCounts:
    """What became of the requests of a switch, by the store."""
    sql = "SELECT count(*), count(*) FILTER (error_type IS NULL) FROM requests WHERE operation_id = ?"
    sent, answered = engine.store.rows(sql, (operation_id,))[0]
    return RequestCounts(sent=sent, answered=answered, failed=sent - answered)


def began_at_s(engine: SwitchingEngine, operation_id: str) -> float:
    """When the first request of a switch was admitted, seconds since the epoch; now, where none was."""
    rows = engine.store.rows("SELECT min(admitted_at_s) FROM requests WHERE operation_id = ?", (operation_id,))
    return time.time() if rows[0][0] is None else float(rows[0][0])


async def verdict_of(
    trial: Trial,
    handle: SwitchHandle,
    *,
    experiment: str | None,
    counts: RequestCounts,
    started_at_s: float,
    warmup_s: float = 0.0,
) -> ExperimentResult:
    """Read the evidence, decide, and write the verdict down."""
    engine, plan = trial.engine, trial.plan
    await engine.scored()
    collect = partial(collect_joint_evidence, engine.store, trial.trial_id, plan, warmup_s=warmup_s)
    evidence = await asyncio.to_thread(collect)
    verdict = decide(plan, evidence)
    record = VerdictRecord(
        operation_id=trial.trial_id,
        look=1,
        decision=verdict.decision.value,
        rule=verdict.rule,
        reason=verdict.reasons[0],
        body=verdict.to_dict(),
        at_s=time.time(),
    )
    await asyncio.wrap_future(engine.store.verdict(record))
    return ExperimentResult(
        experiment=experiment or trial.trial_id,
        handle=handle,
        plan=plan,
        evidence=evidence,
        verdict=verdict,
        requests=counts,
        started_at_s=started_at_s,
        elapsed_s=time.time() - started_at_s,
    )


def baseline_of(engine: SwitchingEngine, model_id: str, candidate: str, left: LeftBehind | None) -> str:
    """The version that the candidate is compared with: the active one; of a trial to take up, its plan's.

    Raises:
        SwitchRefused: there is none, or the candidate itself is active.
    """
    if left is not None:
        return left.plan.baseline
    active = engine.registry.active_version(model_id)
    if active is None:
        raise SwitchRefused(f"model {model_id!r} has no active version to compare with; use `await engine.deploy(…)`")
    if active == candidate:
        raise SwitchRefused(f"version {candidate!r} is already the active version of model {model_id!r}")
    return active
