"""`SwitchingEngine`: the facade. `assembly.py` puts its parts together.

The engine lives on a thread of its own; its coroutines may be awaited from any event loop (a notebook's top-level
`await`, a server, a test), and `engine.run(...)` is the blocking form for scripts.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import multiprocessing.util  # noqa: F401 (registers its exit callback, which must be older than ours)
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

from abswitch import checks
from abswitch.assembly import assemble
from abswitch.clock import Clock, SystemClock
from abswitch.domain import (
    EMPTY,
    Completion,
    Placement,
    Sampling,
    SwitchingStrategyType,
    TokenChunk,
    prompt_of,
)
from abswitch.errors import EngineClosed, InvalidInput
from abswitch.keeping import Keeping
from abswitch.recording import Recording
from abswitch.rollout import operation as ops
from abswitch.rollout.judging import Judge
from abswitch.rollout.operation import Operation
from abswitch.rollout.strategies import Strategy
from abswitch.scoring import Sample, Score, Scorer
from abswitch.serving.dispatch import Submission
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.instance import InstanceFactory, ModelInstance, factories_of
from abswitch.serving.intents import USER, Intent
from abswitch.serving.judges import check_judge
from abswitch.serving.queueing import WaitingRequest
from abswitch.serving.status import ModelStatus, OperationStatus, SwitchingStatus, shares_of
from abswitch.serving.transition import Lease
from abswitch.settings import ModelSwitchingConfig
from abswitch.stats.family import FamilyPlan
from abswitch.stats.plan import AnalysisPlan
from abswitch.store.recorder import PlanRecord
from abswitch.store.retention import Retention
from abswitch.switching import StrategyConfig, Switching
from abswitch.watching import Watching

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class SwitchingEngine(Keeping, Recording, Switching, Watching):
    """Serves versions of models, switches traffic between them, and keeps the evidence.

    Args:
        config: settings, or a dictionary of some of them; see `ModelSwitchingConfig`.
        store: DuckDB file of the evidence, or ":memory:".
        scorers: applied to every answer as it is given; scores end up in the table `scores`.
        mlflow: where experiments are published: `sqlite:///folder/mlflow.db`, or a server's address; None publishes
            nothing. The server need not be there: what is published waits in the store until it is.
        wandb: likewise for Weights & Biases, beside MLflow or alone: a folder for offline runs, or
            `https://api.wandb.ai/ENTITY`; see `WandbSink`. Needs the extra `abswitch[wandb]`.
        record_text: keep prompts and outputs in the table `requests` (off by default: they may be private).
        redact: text → what may be stored of it (None: nothing); applied to prompts, outputs and error messages before
            they reach a disk. Where it fails, nothing is stored and `engine.store.stats().unredacted` counts it.
        retention_days: requests, scores, assignments and health samples older than this go, looked at once an hour;
            never those of a switch that has not ended. Everything is kept by default.
        max_request_rows: of more requests than this the oldest go, likewise.
        backends: instance factories by backend name, beside the built-in `vllm` and `openai`.
        clock: time; virtual in tests.

    Use it as `async with SwitchingEngine() as engine`, or call `close()` at the end.
    """

    def __init__(
        self,
        config: ModelSwitchingConfig | Mapping[str, Any] | None = None,
        *,
        store: Path | str = "abswitch.duckdb",
        scorers: Sequence[Scorer | Callable[[Sample], Score]] = (),
        mlflow: str | None = None,
        wandb: Path | str | None = None,
        record_text: bool = False,
        redact: Callable[[str], str | None] | None = None,
        retention_days: float | None = None,
        max_request_rows: int | None = None,
        backends: Mapping[str, InstanceFactory] | None = None,
        clock: Clock | None = None,
    ) -> None:
        checks.flag("record_text", record_text)
        factories = factories_of(backends)
        self.config = ModelSwitchingConfig() if config is None else ModelSwitchingConfig.of(config)
        self._clock = clock or SystemClock()
        parts = self._parts = assemble(
            self.config,
            store=store,
            scorers=scorers,
            mlflow=mlflow,
            wandb=wandb,
            record_text=record_text,
            redact=redact,
            retention=Retention(days=retention_days, max_requests=max_request_rows),
            backends=factories,
            clock=self._clock,
        )
        self.store, self.tracking = parts.store, parts.tracking
        self.registry, self.switcher = parts.registry, parts.switcher
        self._loop = parts.loop
        self._session, self._numbers = uuid4().hex[:16], itertools.count()
        # Also when the object is dropped or the interpreter ends without `close`: no engine process may stay behind.
        # For that, nothing handed to the finalizer may refer back to this object.
        self._finalizer = weakref.finalize(self, parts.let_go)
        # Exit callbacks run last in, first out: so this one comes before multiprocessing ends vLLM's processes itself.
        atexit.register(self._finalizer)
        parts.resume()

    # --- requests ---------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        unit_id: str | None = None,
        model_id: str | None = None,
        version: str | None = None,
        reference: str | None = None,
        request_id: str | None = None,
        placement: Placement | None = None,
        **sampling: Any,
    ) -> Completion:
        """Answer one prompt.

        Args:
            prompt: text, or chat messages `[{"role": "user", "content": "…"}]`.
            unit_id: what is randomised (a user, a session); the same unit always meets the same arm of an operation.
                Without it every request is a unit of its own.
            model_id: may be left out while there is one model.
            version: ask this version, whatever the routes say; such requests take no part in comparisons.
            reference: the right answer, for scorers that need one.
            request_id: your own id; a fresh one by default.
            placement: of an experiment whose design, and no route, chose the `version`: what the request's row says
                of its arm.
            **sampling: fields of `Sampling` that differ from the version's defaults.

        Raises:
            InvalidInput: a malformed argument; nothing was sent.
            NoActiveVersion, PromptTooLong, InstanceDied, StreamBroken: see `abswitch.errors`.
        """
        submission = self._submission(prompt, unit_id, model_id, version, reference, request_id, sampling)
        if placement is not None and version is None:
            raise InvalidInput("placement", placement, "none, as no version is named")
        submission.placement = placement
        return await self._loop.call(self._parts.dispatcher.complete(submission))

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        unit_id: str | None = None,
        model_id: str | None = None,
        version: str | None = None,
        reference: str | None = None,
        request_id: str | None = None,
        **sampling: Any,
    ) -> AsyncGenerator[TokenChunk, None]:
        """Answer one prompt as a stream of `TokenChunk`; arguments and errors as in `generate`.

        Leaving the loop early ends the generation; close the generator (`contextlib.aclosing`) to end it at once.
        """
        submission = self._submission(prompt, unit_id, model_id, version, reference, request_id, sampling)
        return self._loop.iterate(self._parts.dispatcher.stream(submission))

    def ask(
        self, version: str, *, model_id: str | None = None, **sampling: Any
    ) -> Callable[[str], Coroutine[Any, Any, str]]:
        """A plain function prompt → answer of one version, e.g. for `Judge(ask=engine.ask("judge-v1"))`."""

        async def ask(prompt: str) -> str:
            return (await self.generate(prompt, version=version, model_id=model_id, **sampling)).text

        return ask

    def _submission(
        self,
        prompt: object,
        unit_id: str | None,
        model_id: str | None,
        version: str | None,
        reference: str | None,
        request_id: str | None,
        sampling: dict[str, Any],
    ) -> Submission:
        self._refuse_closed()
        if sampling:
            Sampling().merged(sampling)
        for field, value in (("unit_id", unit_id), ("request_id", request_id)):
            if value is not None:
                checks.identifier(field, value)
        if reference is not None and not isinstance(reference, str):
            raise InvalidInput("reference", reference, "a string, or None")
        if version is not None:
            model_id, version = self.registry.resolve(version, model_id).key
        model = self.registry.resolve_model(model_id)
        request_id = request_id or f"{self._session}-{next(self._numbers)}"
        return Submission(
            request_id=request_id,
            model_id=model,
            prompt=prompt_of(prompt),
            unit_id=unit_id or request_id,
            overrides=sampling,
            submitted_mono_s=self._clock.monotonic_s(),
            version=version,
            reference=reference,
        )

    async def instance(self, version: str, *, model_id: str | None = None) -> ModelInstance:
        """The loaded instance of a version, loading it when needed; its methods belong on the engine's loop (`call`).

        Raises:
            LoadFailed: with the reason.
        """
        self._refuse_closed()
        return (await self._loop.call(self._proven(version, model_id))).instance

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine that must run on the engine's own loop, e.g. one that uses an instance directly."""
        self._refuse_closed()
        return await self._loop.call(coroutine)

    # --- switching --------------------------------------------------------------------------------------------------

    async def start_switch(
        self,
        target_version: str,
        strategy_type: SwitchingStrategyType | str | None = None,
        strategy_config: StrategyConfig = None,
        *,
        model_id: str | None = None,
        experiment: str | None = None,
        plan: AnalysisPlan | FamilyPlan | None = None,
        judge: Judge | None = None,
        metadata: Mapping[str, Any] = EMPTY,
        actor: str = USER,
        reason: str = "",
    ) -> SwitchHandle:
        """Begin a switch to another version; returns as soon as it is accepted.

        Args:
            target_version: the candidate: a version, an alias such as `challenger`, or `model@alias`.
            strategy_type: how traffic moves; when left out, as a typed `strategy_config` says, else the configured
                default.
            strategy_config: the strategy's fields as a dictionary, or a typed strategy. A metric in it that is neither
                built in nor one of the engine's `scorers` is refused where it is a slip for one of them; any other
                waits for scores that are recorded by hand under its name, with a warning in the log.
            experiment: name that the assignment of units depends on; a fresh one by default. The same name splits
                the same units the same way.
            plan: what will be compared and how; stored before the first request meets the candidate.
            judge: decides each step of a canary, or looks at an A/B test every `evaluation_period_minutes`; called with
                a `StepEvidence` on a thread of its own, answers with a `Judgement`. A canary has a default one; an A/B
                test with a plan is judged by that, and ends with its verdict. Refused where nothing would ask it.
            metadata: why, for whom, from which ticket: JSON values that the registry's history keeps with the switch.
            actor, reason: who begins it and why, for the history.

        Raises:
            InvalidInput: unknown version, strategy or field, a value outside its range, or a judge that the strategy
                does not ask; nothing changed.
            OperationInProgress: another operation holds the model.
            SwitchRefused: a comparison without an active version, a target that is already active, too many switches
                at once, or switching is turned off (`enabled`).
        """
        model, target, strategy = self._wanted(target_version, strategy_type, strategy_config, model_id)
        if experiment is not None:
            checks.name("experiment", experiment)
        if judge is not None:
            check_judge(judge, strategy)
        if plan is not None and not isinstance(plan, AnalysisPlan | FamilyPlan):
            raise InvalidInput("plan", plan, "an AnalysisPlan or a FamilyPlan, as of abswitch.stats")
        intent = Intent(actor=actor, reason=reason, metadata=metadata)
        return await self._begin(model, target, strategy, intent, experiment=experiment, plan=plan, judge=judge)

    async def _begin(
        self,
        model_id: str,
        target: str,
        strategy: Strategy,
        intent: Intent,
        *,
        experiment: str | None = None,
        plan: AnalysisPlan | FamilyPlan | None = None,
        judge: Judge | None = None,
    ) -> SwitchHandle:
        operation_id = f"op-{uuid4().hex[:12]}"
        start = self._start(model_id, target, strategy, operation_id, experiment or operation_id, plan, judge, intent)
        await self._loop.call(start)
        if judge is None:  # which need not ask for what the strategy names
            self._warn_of_unmeasured(operation_id, strategy)
        return self._handle(operation_id)

    def _handle(self, operation_id: str) -> SwitchHandle:
        return SwitchHandle(self, operation_id)

    async def _start(
        self,
        model_id: str,
        target: str,
        strategy: Strategy,
        operation_id: str,
        salt: str,
        plan: AnalysisPlan | FamilyPlan | None,
        judge: Judge | None,
        intent: Intent,
    ) -> None:
        await self._parts.desk.check(model_id, target, strategy)
        if plan is not None:
            record = PlanRecord(operation_id, plan.digest(), plan.to_dict(), self._clock.wall_s())
            await asyncio.wrap_future(self.store.plan(record))
        await self.switcher.start(
            model_id, target, strategy, operation_id=operation_id, salt=salt, judge=judge, intent=intent
        )

    async def deploy(self, version: str, *, model_id: str | None = None) -> OperationStatus:
        """Switch to a version at once and wait until the switch ended; the short form of an immediate switch.

        Where the version serves all traffic already, nothing is done, and the answer says that it does. So a notebook
        can be run again from the top.

        Raises:
            SwitchFailed: it did not come to serve; what served before still does.
        """
        self._refuse_closed()
        model, target = self.registry.resolve(version, model_id).key
        if (standing := self._parts.desk.standing(model, target, self._clock.monotonic_s())) is not None:
            return OperationStatus.of(standing, self._clock.monotonic_s())
        handle = await self.start_switch(version, SwitchingStrategyType.IMMEDIATE, model_id=model_id)
        await handle.serving()
        return await handle.done()

    async def conclude_switch(
        self, operation_id: str, *, promote: bool, reason: str, version: str | None = None
    ) -> None:
        """Decide a running switch: promote a candidate (`version` or alias, of several), or keep the stable version.

        Raises:
            InvalidInput: no such operation, or `promote` is neither True nor False.
            UnknownVersion: no version has that name or alias.
            OperationFinished, IllegalTransition: as in `tell_switch`.
        """
        checks.flag("promote", promote)
        operation = self.switcher.operation(operation_id)
        if version is not None and version not in operation.candidates:
            version = self.registry.get(operation.model_id, version).version
        await self.tell_switch(operation_id, ops.Conclude(promote=promote, reason=reason, version=version))

    async def tell_switch(self, operation_id: str, event: ops.Event) -> None:
        """Give a command to a running switch.

        Raises:
            InvalidInput: no such operation.
            OperationFinished: it already ended.
            IllegalTransition: its phase does not take the command.
        """
        self._refuse_unknown(operation_id)
        await self._loop.call(self.switcher.tell(operation_id, event))

    async def abort_switch(self, operation_id: str) -> bool:
        """Abort a switch: all traffic back to the stable version. False when it had already ended.

        Raises:
            InvalidInput: no such operation.
        """
        self._refuse_unknown(operation_id)
        return await self._loop.call(self.switcher.abort(operation_id))

    async def wait_for_switch(self, operation_id: str, until: Callable[[Operation], bool]) -> None:
        """Wait until a switch satisfies a condition or ended.

        Raises:
            InvalidInput: no such operation.
        """
        self._refuse_unknown(operation_id)
        await self._loop.call(self.switcher.wait(operation_id, until))

    # --- looking ----------------------------------------------------------------------------------------------------

    def operation_status(self, operation_id: str) -> OperationStatus:
        """One switch as it stands.

        Raises:
            InvalidInput: no such operation.
        """
        self._refuse_unknown(operation_id)
        return OperationStatus.of(self.switcher.operation(operation_id), self._clock.monotonic_s())

    def get_switching_status(self) -> SwitchingStatus:
        """Every model: active version, shares, and the latest operation; of an engine that was closed, what is left."""
        records = self.store.stats()
        return SwitchingStatus(
            models=tuple(self._model_status(m) for m in self.registry.list_models()),
            rows_waiting=records.queued + records.spooled,
            rows_missing=records.missing,
            answers_unscored=self._parts.grader.unscored,
            closed=not self._finalizer.alive,
        )

    def _model_status(self, model_id: str) -> ModelStatus:
        operations = [o for o in self.switcher.operations.values() if o.model_id == model_id]
        return ModelStatus(
            model_id=model_id,
            active_version=self.registry.active_version(model_id),
            shares=shares_of(self._parts.router.snapshots.get(model_id)) if self._finalizer.alive else {},
            loaded=tuple(version for model, version in self._parts.cache.loaded if model == model_id),
            in_flight=len(self._parts.transitions.in_flight(model_id)),
            waiting=self._parts.queue.waiting(model_id),
            operation=OperationStatus.of(operations[-1], self._clock.monotonic_s()) if operations else None,
            tiers={version: tier for (model, version), tier in self._parts.cache.tiers.items() if model == model_id},
        )

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names of the scorers applied to every answer."""
        return self._parts.grader.names

    def in_flight(self, model_id: str | None = None) -> tuple[Lease, ...]:
        """Every request under way on a version, oldest first; of one model, or of all.

        Those that nothing serves yet hold no version: `waiting` has them.

        Raises:
            UnknownModel: no such model.
        """
        if model_id is not None:
            self.registry.resolve_model(model_id)
        return self._parts.transitions.in_flight(model_id)

    def waiting(self, model_id: str | None = None) -> tuple[WaitingRequest, ...]:
        """Every request that nothing serves yet, oldest first, with what it waits for; of one model, or of all.

        Such are requests that come while a first version is loaded or while one leaves before the other is there,
        those that name a version which is not ready, and those whose version died before their first token. Together
        with `in_flight` they are all that the engine has taken on and not ended.

        Raises:
            UnknownModel: no such model.
        """
        if model_id is not None:
            self.registry.resolve_model(model_id)
        return self._parts.queue.requests(model_id)

    # --- life -------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = self.registry.in_words() if self._finalizer.alive else "shut down"
        return f"<{type(self).__name__}: {state}; store {self.store.path or 'in memory'}>"

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The blocking form: `engine.run(engine.generate("…"))`, for scripts and threads."""
        try:
            self._refuse_closed()
        except EngineClosed:
            coroutine.close()
            raise
        return self._loop.run(coroutine)

    def _refuse_closed(self) -> None:
        if not self._finalizer.alive:
            raise EngineClosed("the engine was shut down; build a new SwitchingEngine")

    def close(self) -> None:
        """Stop every instance, write what is left, release the store. Idempotent; leaves no process behind."""
        if self._finalizer.detach() is not None:
            self._parts.shut_down()
        atexit.unregister(self._finalizer)

    async def aclose(self) -> None:
        """`close` without blocking the caller's loop."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
