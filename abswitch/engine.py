"""`SwitchingEngine`: the composition root and facade. Everything is put together here, and nowhere else.

The engine lives on a thread of its own; its coroutines may be awaited from any event loop (a notebook's top-level
`await`, a server, a test), and `engine.run(...)` is the blocking form for scripts.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import multiprocessing.util  # noqa: F401 (registers its exit callback, which must be older than ours)
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

from abswitch import checks
from abswitch.clock import Clock, SystemClock
from abswitch.domain import (
    Completion,
    LoadFacts,
    ModelVersion,
    Sampling,
    ScoreRecord,
    SwitchingStrategyType,
    TokenChunk,
    TransitionRecord,
    prompt_of,
)
from abswitch.errors import EngineClosed, InvalidInput
from abswitch.rollout import operation as ops
from abswitch.rollout.operation import Operation
from abswitch.rollout.strategies import Strategy, strategy_of
from abswitch.scoring import Sample, Score, Scorer, checked, scorers_of
from abswitch.serving.cache import ModelCache
from abswitch.serving.dispatch import Dispatcher, Submission
from abswitch.serving.grading import Grader
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.instance import InstanceFactory, ModelInstance
from abswitch.serving.loop import EngineLoop
from abswitch.serving.openai import OpenAIInstance
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.router import RequestRouter
from abswitch.serving.source import check_source
from abswitch.serving.status import ModelStatus, OperationStatus, SwitchingStatus, shares_of
from abswitch.serving.switcher import ModelSwitcher
from abswitch.serving.transition import Lease, TransitionManager
from abswitch.serving.vllm import VllmEnginePool, vllm_backend
from abswitch.settings import ModelSwitchingConfig
from abswitch.stats.plan import AnalysisPlan
from abswitch.store.mlflow_sink import MlflowSink
from abswitch.store.recorder import PlanRecord, Recorder
from abswitch.store.tracking import TrackingSink

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class SwitchingEngine:
    """Serves versions of models, switches traffic between them, and keeps the evidence.

    Args:
        config: settings; see `ModelSwitchingConfig`.
        store: DuckDB file of the evidence, or ":memory:".
        scorers: applied to every answer as it is given; scores end up in the table `scores`.
        mlflow: where experiments are published: `sqlite:///folder/mlflow.db`, or a server's address; None publishes
            nothing. The server need not be there: what is published waits in the store until it is.
        record_text: keep prompts and outputs in the table `requests` (off by default: they may be private).
        backends: instance factories by backend name, beside the built-in `vllm` and `openai`.
        clock: time; virtual in tests.

    Use it as `async with SwitchingEngine() as engine`, or call `close()` at the end.
    """

    def __init__(
        self,
        config: ModelSwitchingConfig | None = None,
        *,
        store: Path | str = "abswitch.duckdb",
        scorers: Sequence[Scorer | Callable[[Sample], Score]] = (),
        mlflow: str | None = None,
        record_text: bool = False,
        backends: Mapping[str, InstanceFactory] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = config or ModelSwitchingConfig()
        self._clock = clock or SystemClock()
        checks.flag("record_text", record_text)
        accepted_scorers = scorers_of(scorers)
        self.store = Recorder(store)
        try:
            self.tracking = None if mlflow is None else MlflowSink(mlflow, recorder=self.store)
        except InvalidInput:
            self.store.close()
            raise
        self._loop = EngineLoop()
        pool = VllmEnginePool()
        transitions = TransitionManager()
        grader = Grader(accepted_scorers, self._clock, record=self.store.score)
        router = RequestRouter(self._clock, last_epochs=self.store.last_epochs())
        builtin: dict[str, InstanceFactory] = {"vllm": vllm_backend(pool), "openai": OpenAIInstance}
        cache = ModelCache(
            builtin | dict(backends or {}),
            max_cached_models=self.config.max_cached_models,
            in_use=lambda key: transitions.holders(key) > 0 or router.is_routed(*key),
        )
        self.registry = DynamicModelRegistry(self._clock, check=_version_check(cache), keep=self.store.version)
        self.switcher = ModelSwitcher(
            self.registry,
            cache,
            router,
            transitions,
            self._clock,
            journal=_journal_to(self.store),
            record_route=self.store.route,
            drain_timeout_s=self.config.max_transition_time_seconds,
        )
        self._dispatcher = Dispatcher(
            router,
            transitions,
            self._clock,
            load=_loader(self.registry, cache),
            record=self.store.request,
            on_answer=_grading(grader),
            on_lost=self.switcher.instance_lost,
            record_text=record_text,
        )
        self._cache, self._router, self._transitions, self._grader = cache, router, transitions, grader
        self._session, self._numbers = uuid4().hex[:16], itertools.count()
        # Also when the object is dropped or the interpreter ends without `close`: no engine process may stay behind.
        # For that, nothing handed to the finalizer may refer back to this object.
        self._finalizer = weakref.finalize(
            self, _shut_down, self._loop, self.switcher, self._cache, self._grader, self.tracking, self.store
        )
        # Exit callbacks run last in, first out: so this one comes before multiprocessing ends vLLM's processes itself.
        atexit.register(self._finalizer)

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
            **sampling: fields of `Sampling` that differ from the version's defaults.

        Raises:
            InvalidInput: a malformed argument; nothing was sent.
            NoActiveVersion, PromptTooLong, InstanceDied, StreamBroken: see `abswitch.errors`.
        """
        submission = self._submission(prompt, unit_id, model_id, version, reference, request_id, sampling)
        return await self._loop.call(self._dispatcher.complete(submission))

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
        return self._loop.iterate(self._dispatcher.stream(submission))

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
        for field, value in (("unit_id", unit_id), ("request_id", request_id), ("reference", reference)):
            if value is not None and (not isinstance(value, str) or (not value and field != "reference")):
                raise InvalidInput(field, value, "a non-empty string, or None")
        model = self.registry.resolve_model(model_id)
        if version is not None:
            self.registry.get(model, version)
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
        registered = self.registry.get(self.registry.resolve_model(model_id), version)
        return (await self._loop.call(self._cache.ensure(registered))).instance

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine that must run on the engine's own loop, e.g. one that uses an instance directly."""
        self._refuse_closed()
        return await self._loop.call(coroutine)

    async def load(self, version: str, *, model_id: str | None = None) -> LoadFacts:
        """Load a version ahead of its use; returns what its load cost, whenever that was.

        Raises:
            LoadFailed: with the reason.
        """
        self._refuse_closed()
        registered = self.registry.get(self.registry.resolve_model(model_id), version)
        return (await self._loop.call(self._cache.ensure(registered))).facts

    # --- switching --------------------------------------------------------------------------------------------------

    async def start_switch(
        self,
        target_version: str,
        strategy_type: SwitchingStrategyType | str | None = None,
        strategy_config: Mapping[str, Any] | Strategy | None = None,
        *,
        model_id: str | None = None,
        experiment: str | None = None,
        plan: AnalysisPlan | None = None,
    ) -> SwitchHandle:
        """Begin a switch to another version; returns as soon as it is accepted.

        Args:
            target_version: the candidate.
            strategy_type: how traffic moves; the configured default when left out.
            strategy_config: the strategy's fields as a dictionary, or a typed strategy.
            experiment: name that the assignment of units depends on; a fresh one by default. The same name splits
                the same units the same way.
            plan: what will be compared and how; stored before the first request meets the candidate.

        Raises:
            InvalidInput: unknown version, strategy or field, or a value outside its range; nothing changed.
            OperationInProgress: another operation holds the model.
            SwitchRefused: an A/B test without an active version, or a target that is already active.
        """
        self._refuse_closed()
        strategy = strategy_of(strategy_type or self.config.default_switch_strategy, strategy_config)
        model = self.registry.resolve_model(model_id)
        operation_id = f"op-{uuid4().hex[:12]}"
        salt = operation_id if experiment is None else checks.name("experiment", experiment)
        await self._loop.call(self._start(model, target_version, strategy, operation_id, salt, plan))
        return SwitchHandle(self, operation_id)

    async def _start(
        self,
        model_id: str,
        target: str,
        strategy: Strategy,
        operation_id: str,
        salt: str,
        plan: AnalysisPlan | None,
    ) -> None:
        if plan is not None:
            record = PlanRecord(operation_id, plan.digest(), plan.to_dict(), self._clock.wall_s())
            await asyncio.wrap_future(self.store.plan(record))
        await self.switcher.start(model_id, target, strategy, operation_id=operation_id, salt=salt)

    async def deploy(self, version: str, *, model_id: str | None = None) -> OperationStatus:
        """Switch to a version at once and wait until the switch ended; the short form of an immediate switch.

        Raises:
            SwitchFailed: it did not come to serve; what served before still does.
        """
        handle = await self.start_switch(version, SwitchingStrategyType.IMMEDIATE, model_id=model_id)
        await handle.serving()
        return await handle.done()

    async def conclude_switch(self, operation_id: str, *, promote: bool, reason: str) -> None:
        """Decide a running switch: promote the candidate, or keep the stable version."""
        await self.tell_switch(operation_id, ops.Conclude(promote=promote, reason=reason))

    async def tell_switch(self, operation_id: str, event: ops.Event) -> None:
        """Give a command to a running switch.

        Raises:
            InvalidInput: no such operation.
            OperationFinished: it already ended.
            IllegalTransition: its phase does not take the command.
        """
        await self._loop.call(self.switcher.tell(operation_id, event))

    async def abort_switch(self, operation_id: str) -> bool:
        """Abort a switch: all traffic back to the stable version. False when it had already ended."""
        return await self._loop.call(self.switcher.abort(operation_id))

    async def wait_for_switch(self, operation_id: str, until: Callable[[Operation], bool]) -> None:
        """Wait until a switch satisfies a condition or ended."""
        await self._loop.call(self.switcher.wait(operation_id, until))

    # --- looking ----------------------------------------------------------------------------------------------------

    def operation_status(self, operation_id: str) -> OperationStatus:
        """One switch as it stands."""
        return OperationStatus.of(self.switcher.operation(operation_id), self._clock.monotonic_s())

    def get_switching_status(self) -> SwitchingStatus:
        """Every model: active version, shares, and the latest operation."""
        return SwitchingStatus(models=tuple(self._model_status(m) for m in self.registry.list_models()))

    def _model_status(self, model_id: str) -> ModelStatus:
        operations = [o for o in self.switcher.operations.values() if o.model_id == model_id]
        return ModelStatus(
            model_id=model_id,
            active_version=self.registry.active_version(model_id),
            shares=shares_of(self._router.snapshots.get(model_id)),
            loaded=tuple(version for model, version in self._cache.loaded if model == model_id),
            in_flight=len(self.in_flight(model_id)),
            operation=OperationStatus.of(operations[-1], self._clock.monotonic_s()) if operations else None,
        )

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names of the scorers applied to every answer."""
        return self._grader.names

    def in_flight(self, model_id: str | None = None) -> tuple[Lease, ...]:
        """Every request under way, oldest first."""
        return self._transitions.in_flight(model_id)

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Read the evidence with SQL; everything recorded so far is included. See docs/schema.md for the tables.

        Args:
            sql: one reading statement.
            parameters: fill `?` (a sequence) or `$name` (a mapping).

        Raises:
            InvalidInput: not one reading statement.
            StoreError: it failed.
        """
        return self.store.query(sql, parameters)

    def score(self, request_id: str, name: str, value: float) -> None:
        """Add a score by hand: a person's judgement, or one that came late."""
        checks.name("name", name)
        self.store.score(ScoreRecord(request_id, name, checked(value), None, self._clock.wall_s()))

    async def scored(self) -> None:
        """Wait until every answer given so far has its scores."""
        await self._loop.call(self._grader.idle())

    # --- life -------------------------------------------------------------------------------------------------------

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
        self._finalizer()
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


def _version_check(cache: ModelCache) -> Callable[[ModelVersion], None]:
    def check(version: ModelVersion) -> None:
        cache.check_backend(version)
        check_source(version.config)

    return check


def _loader(registry: DynamicModelRegistry, cache: ModelCache) -> Callable[[str, str], Awaitable[ModelInstance]]:
    async def load(model_id: str, version: str) -> ModelInstance:
        return (await cache.ensure(registry.get(model_id, version))).instance

    return load


def _grading(grader: Grader) -> Callable[[Submission], None]:
    def grade(answered: Submission) -> None:
        if grader.names:
            grader.submit(
                Sample(
                    request_id=answered.request_id,
                    prompt=answered.prompt,
                    output=answered.text,
                    reference=answered.reference,
                )
            )

    return grade


def _journal_to(store: Recorder) -> Callable[[Operation, TransitionRecord], Coroutine[Any, Any, None]]:
    async def journal(operation: Operation, transition: TransitionRecord) -> None:
        await asyncio.wrap_future(store.transition(transition, operation))

    return journal


def _shut_down(
    loop: EngineLoop,
    switcher: ModelSwitcher,
    cache: ModelCache,
    grader: Grader,
    tracking: TrackingSink | None,
    store: Recorder,
) -> None:
    async def stop() -> None:
        await switcher.close()
        await grader.close()
        await cache.close()

    with ExitStack() as ends:  # each end happens even if the one before it failed
        ends.callback(store.close)
        if tracking is not None:
            ends.callback(tracking.close)
        ends.callback(loop.close)
        loop.run(stop())
