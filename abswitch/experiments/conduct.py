"""`Experiment`: carries a run's spec out, step by step, so that a notebook can show each; and again after a crash."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from abswitch import scoring
from abswitch.domain import ModelConfig, SwitchingStrategyType
from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments import sources
from abswitch.experiments.ab_test import run_ab_test, unfinished
from abswitch.experiments.arrivals import Arrivals, ClosedLoop, Poisson, Trace
from abswitch.experiments.artifacts import keep_artifacts
from abswitch.experiments.asking import Progress, RequestBudget
from abswitch.experiments.canary import CanaryResult, run_canary
from abswitch.experiments.environment import environment
from abswitch.experiments.exits import exit_status
from abswitch.experiments.overview import refresh
from abswitch.experiments.paired import run_paired
from abswitch.experiments.project import folder_or_address, store_uri
from abswitch.experiments.prompts import Question
from abswitch.experiments.publishing import publish
from abswitch.experiments.report import write_report
from abswitch.experiments.report_comparison import headline as headline_of
from abswitch.experiments.runs import RunFolder, RunResult, last_good, result_of, working_on
from abswitch.experiments.spec_parts import (
    Call,
    CanaryDesign,
    ClosedLoopLoad,
    ExactMatchScorer,
    JudgeSpec,
    MatchesScorer,
    PoissonLoad,
    Scorer,
    VersionSpec,
)
from abswitch.experiments.switchback import run_switchback
from abswitch.experiments.timing import switch_timing
from abswitch.experiments.trial import ExperimentResult
from abswitch.experiments.watch import regressions, send_alerts, watched
from abswitch.records import RunRecord
from abswitch.rollout.strategies import CanaryStrategy
from abswitch.serving.router import candidate_name
from abswitch.serving.status import OperationStatus
from abswitch.settings import ModelSwitchingConfig
from abswitch.stats import Decision
from abswitch.stats.family import overall
from abswitch.store.tracking import TrackedDataset

Result = ExperimentResult | CanaryResult
_DESIGNS: Mapping[str, Callable[..., Awaitable[ExperimentResult]]] = {
    "randomised": run_ab_test,
    "paired": run_paired,
    "switchback": run_switchback,
}
_JUDGES = "judge-"
KERNEL_WAIT_S = 60.0
"""How long the kernel of a killed command may take to go away."""


class Experiment:
    """One run of a spec.

    Args:
        run: a run's folder, see `open_run`.

    Raises:
        InvalidInput: the folder holds no run.
    """

    def __init__(self, run: RunFolder | Path | str) -> None:
        self.run = run if isinstance(run, RunFolder) else RunFolder(run)
        self.spec = self.run.spec
        self.project = self.run.project
        self._held = AsyncExitStack()

    # --- before -----------------------------------------------------------------------------------------------------

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """The prompts, in the order they are asked in.

        Raises:
            InvalidInput: they cannot be read, or are not those that the interrupted run asked.
        """
        questions = sources.read_prompts(self.spec.prompts, self.project, seed=self.spec.seed)
        digest = _digest(questions)
        asked = self.run.state.prompts_digest
        if asked is not None and asked != digest:
            raise InvalidInput(
                "prompts", digest[:12], f"the prompts that this run began with ({asked[:12]}); use --fresh"
            )
        self.run.update(prompts_digest=digest)
        return questions

    async def start(self) -> SwitchingEngine:
        """An engine on the run's own store, every version registered, the baseline serving.

        Raises:
            SwitchRefused: another process works on this run.
            InvalidInput, SwitchFailed: a version cannot be registered, or the baseline does not come to serve.
        """
        self._held.enter_context(self.run.held("kernel", KERNEL_WAIT_S))
        try:
            working_on(self.run)
            _ = self.questions
            engine = self._engine()
            self._held.push_async_callback(engine.aclose)
            await asyncio.to_thread(self._register, engine)
            if self.spec.engine.register_in_mlflow:
                await asyncio.to_thread(engine.registry.export_to_mlflow, self.spec.model_id)
            await self._serve(engine)
        except BaseException:
            await self._held.aclose()  # so that the cell can be run again
            raise
        return engine

    def _engine(self) -> SwitchingEngine:
        spec, holder = self.spec, []  # type: ignore[var-annotated]  # the judge asks the engine that is made below
        scorers = [_scorer(scorer, self.project) for scorer in spec.scorers]
        if spec.judge is not None:
            scorers.append(_JudgeScorer(spec.judge, self._judge_model, lambda: holder[0]))
        uri = spec.engine.mlflow
        engine = SwitchingEngine(
            ModelSwitchingConfig(max_cached_models=spec.engine.max_cached_models),
            store=self.run.path / "evidence.duckdb",
            scorers=scorers,
            mlflow=None if uri is None else store_uri(uri, self.project),
            wandb=folder_or_address(spec.engine.wandb, self.project),
            record_text=spec.engine.record_text,
            backends={
                name: sources.call(made.function, made.arguments, self.project, field=f"engine.backends.{name}")
                for name, made in spec.engine.backends.items()
            },
        )
        holder.append(engine)
        return engine

    @property
    def _judge_model(self) -> str:
        return f"{_JUDGES}{self.spec.model_id}"

    def _register(self, engine: SwitchingEngine) -> None:
        models = {self.spec.model_id: dict(self.spec.all_versions)}
        if self.spec.judge is not None:
            models[self._judge_model] = {"judge": self.spec.judge.version}
        known = set(engine.registry.list_models())
        for model_id, versions in models.items():
            there = {v.version for v in engine.registry.get_model_versions(model_id)} if model_id in known else set()
            for name, version in versions.items():
                if name not in there:
                    engine.registry.register_model(self._config(model_id, version), name, metadata=version.metadata)

    def _config(self, model_id: str, version: VersionSpec) -> ModelConfig:
        return version.config(model_id, model=self._made(version.model), adapter=self._made(version.adapter))

    def _made(self, source: str | Call | None) -> str | None:
        if isinstance(source, Call):
            return str(sources.call(source.function, source.arguments, self.project, field="versions.model"))
        return sources.in_project(source, self.project)

    async def _serve(self, engine: SwitchingEngine) -> None:
        """The baseline serves, unless an interrupted run already goes on from somewhere else."""
        spec = self.spec
        if self._switch(engine) is None:
            await self._end_left_behind(engine)
            if engine.registry.active_version(spec.model_id) != spec.baseline:
                await engine.deploy(spec.baseline, model_id=spec.model_id)
            else:
                await engine.load(spec.baseline, model_id=spec.model_id)
        if spec.judge is not None and engine.registry.active_version(self._judge_model) is None:
            await engine.deploy("judge", model_id=self._judge_model)

    async def _end_left_behind(self, engine: SwitchingEngine) -> None:
        """A deployment that an interrupted attempt had begun holds its model; it begins anew."""
        for operation in list(engine.switcher.operations.values()):
            if not operation.phase.is_final:
                await engine.abort_switch(operation.operation_id)

    @property
    def _candidates(self) -> tuple[str, ...]:
        return tuple(self.spec.candidates)

    @property
    def arm_names(self) -> dict[str, str]:
        """Arm → version, as `ProgressView` takes it."""
        return {"stable": self.spec.baseline} | {candidate_name(i): name for i, name in enumerate(self._candidates)}

    def _switch(self, engine: SwitchingEngine) -> Any:
        kinds = {"canary": SwitchingStrategyType.CANARY, "randomised": SwitchingStrategyType.AB_TEST}
        kind = kinds.get(self.spec.design.kind)  # the other designs move no traffic before their end
        return None if kind is None else unfinished(engine, self.spec.model_id, self._candidates[0], kind)

    # --- the run ----------------------------------------------------------------------------------------------------

    async def conduct(
        self, engine: SwitchingEngine, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> Result:
        """Ask, and decide; what an earlier attempt already asked is not asked again.

        Raises:
            InvalidInput, SwitchFailed, SwitchRefused: as the design's own function.
        """
        spec = self.spec
        shared: dict[str, Any] = {
            "arrivals": self._arrivals(),
            "budget": RequestBudget(**spec.budget.model_dump()),
            "model_id": spec.model_id,
            "experiment": spec.name if not spec.seed else f"{spec.name}/seed-{spec.seed}",
            "resume": True,
            "on_progress": on_progress,
            **spec.sampling,
        }
        fields = {name: getattr(spec.design, name) for name in type(spec.design).model_fields if name != "kind"}
        if isinstance(spec.design, CanaryDesign):
            strategy = CanaryStrategy(**fields)
            result: Result = await run_canary(engine, spec.candidate, self.questions, strategy=strategy, **shared)
        else:
            run = _DESIGNS[spec.design.kind]
            compared = {"metrics": spec.metrics, "alpha": spec.alpha}
            candidate = self._candidates if spec.arms else spec.candidate
            result = await run(engine, candidate, self.questions, **compared, **fields, **shared)
        self.run.update(operation_id=result.operation_id)
        return result

    def _arrivals(self) -> Arrivals:
        load = self.spec.load
        if isinstance(load, ClosedLoopLoad):
            return ClosedLoop(concurrency=load.concurrency)
        if isinstance(load, PoissonLoad):
            return Poisson(rate_per_s=load.rate_per_s, seed=self.spec.seed, concurrency=load.concurrency)
        instants = load.at_s if load.path is None else sources.read_instants(self.project / load.path)
        return Trace(at_s=tuple(instants or ()), speed=load.speed, concurrency=load.concurrency)

    async def apply(self, result: Result) -> OperationStatus:
        """Move traffic as the verdict says: to the candidate when it ships, else back; does nothing when it is over."""
        status = result.handle.status
        if status.finished or not self.spec.policy.apply:
            return status
        if isinstance(result, CanaryResult):
            return await result.handle.keep(f"verdict: {result.decision}")
        decision = overall(result.verdicts)
        reason = f"verdict: {decision}"
        return await (result.promote(reason) if decision is Decision.SHIP else result.keep(reason))

    # --- after ------------------------------------------------------------------------------------------------------

    async def report(self, engine: SwitchingEngine, result: Result) -> Path:
        """Write the page, and publish to MLflow where the spec names a store.

        Returns:
            The page.
        """
        status = result.handle.status
        moved_by = result.handle.moved_by
        switch = switch_timing(engine, moved_by) if status.promoted and moved_by is not None else None
        facts = {"run": self.run.state.run_id, "spec digest": self.run.state.spec_digest, **self.run.state.cell}
        await engine.scored()
        if engine.tracking is not None:
            publish(engine, result, dataset=self._dataset())
            await asyncio.to_thread(engine.tracking.flush, 120.0)
        page = await asyncio.to_thread(write_report, engine, result, self.run.path, switch=switch, extra=facts)
        if engine.tracking is not None:
            publish(engine, result, report=page, dataset=self._dataset())
        run_id, operation_id = self.run.state.run_id, result.operation_id
        await keep_artifacts(engine, self.run.path, run_id=run_id, operation_id=operation_id)
        return page

    def _dataset(self) -> TrackedDataset:
        return TrackedDataset(
            name=f"{self.spec.name} prompts",
            source=self.spec.prompts.model_dump(mode="json"),
            digest=_digest(self.questions),
            rows=len(self.questions),
        )

    async def finish(self, engine: SwitchingEngine, result: Result, *, report: Path | None = None) -> RunResult:
        """Write the run's result, compare it with the last good run, tell whoever is to be told, and rewrite the page
        over all runs.

        Args:
            report: the page that was written.
        """
        told = self._result(result, report)
        record = self._record(told, result.operation_id)
        await asyncio.wrap_future(engine.store.run(record))
        if told.alerts and self.spec.watch is not None:
            send = partial(send_alerts, told.experiment, told.alerts, self.spec.watch, run_id=told.run_id)
            told = replace(told, not_posted=await asyncio.to_thread(send))
        self.run.finish(told)
        await asyncio.to_thread(refresh, self.run.path.parent.parent)
        return told

    async def close(self, engine: SwitchingEngine) -> None:
        """Stop the engine and let go of the run."""
        await engine.aclose()
        await self._held.aclose()

    def _result(self, result: Result, report: Path | None) -> RunResult:
        state, canary = self.run.state, isinstance(result, CanaryResult)
        decision, headline, reasons = _said(result)
        told = RunResult(
            run_id=state.run_id,
            experiment=self.spec.name,
            exit_status=0,
            decision=decision,
            headline=headline,
            reasons=reasons,
            requests={**asdict(result.requests), "lost": result.requests.lost},
            started_at_s=state.started_at_s,
            ended_at_s=time.time(),
            report=None if report is None else str(report),
            watched=None if canary else watched(result),  # type: ignore[arg-type]  # not a canary's, then
        )
        told = self._held_against_before(told)
        status = exit_status(decision, success=self.spec.success, regressed=bool(told.alerts))
        return replace(told, exit_status=int(status))

    def _held_against_before(self, told: RunResult) -> RunResult:
        """What the regression watch says to it."""
        watch, reports = self.spec.watch, self.run.path.parent.parent
        if watch is None or told.watched is None:
            return told
        if watch.against is not None:
            good = result_of(self.spec.name, reports, watch.against)
            if good is None:
                lost = f"there is no result of run {watch.against}, which the watch compares with"
                return replace(told, alerts=(lost,))
        else:
            good = last_good(self.run, reports)
            if good is None:
                return told
        found = regressions(told.watched, good, self.spec.metrics, watch)
        return replace(told, alerts=tuple(map(str, found)), compared_with=good.run_id)

    def _record(self, told: RunResult, operation_id: str) -> RunRecord:
        return RunRecord(
            run_id=told.run_id,
            experiment=told.experiment,
            status="finished",
            exit_code=told.exit_status,
            operation_id=operation_id,
            spec_digest=self.run.state.spec_digest,
            spec=self.spec.to_plain(),
            parameters=dict(self.run.state.cell),
            environment=environment(),
            folder=str(self.run.path),
            started_at_s=told.started_at_s,
            ended_at_s=told.ended_at_s,
        )


def _said(result: Result) -> tuple[str, str, tuple[str, ...]]:
    """Decision, headline and reasons; of several candidates those of all together."""
    if isinstance(result, CanaryResult):
        return result.decision, result.headline, tuple(result.reasons)
    decision = str(overall(result.verdicts))
    if len(result.verdicts) == 1:
        return decision, result.verdict.headline, tuple(result.verdict.reasons)
    told = (f"{version}: {verdict.headline}" for version, verdict in result.verdicts.items())
    return decision, headline_of(result), tuple(told)


def _digest(questions: tuple[Question, ...]) -> str:
    plain = [(q.prompt, q.reference, q.unit_id) for q in questions]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=True).encode()).hexdigest()


def _scorer(spec: Scorer, project: Path) -> scoring.Scorer:
    if isinstance(spec, ExactMatchScorer):
        return scoring.ExactMatch(name=spec.name, ignore_case=spec.ignore_case)
    if isinstance(spec, MatchesScorer):
        return scoring.Matches(spec.pattern, name=spec.name, full=spec.full)
    return scoring.Function(sources.function_of(spec.function, project, field="scorers"), name=spec.name)


class _JudgeScorer:
    """A judge model on the same engine; its own answers are not judged."""

    inline: ClassVar[bool] = False

    def __init__(self, spec: JudgeSpec, model_id: str, engine: Callable[[], SwitchingEngine]) -> None:
        self.name = spec.name
        self._engine, self._model_id = engine, model_id
        given = {} if spec.template is None else {"template": spec.template}
        self._judge = scoring.Judge(self._ask, name=spec.name, low=spec.low, high=spec.high, **given)
        self._numbers = iter(range(10**18))

    async def _ask(self, prompt: str) -> str:
        request_id = f"{_JUDGES}{time.time_ns():x}-{next(self._numbers)}"
        completion = await self._engine().generate(prompt, model_id=self._model_id, request_id=request_id)
        return completion.text

    async def score(self, sample: scoring.Sample) -> float | None:
        """The judge's grade."""
        return None if sample.request_id.startswith(_JUDGES) else await self._judge.score(sample)
