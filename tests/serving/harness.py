"""The serving shell put together with scripted instances and a virtual clock; evidence goes into plain lists."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from abswitch.clock import VirtualClock
from abswitch.domain import EMPTY, RequestRecord, RouteRecord, ScoreRecord, TransitionRecord
from abswitch.rollout.judging import Judge
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import Strategy, strategy_of
from abswitch.serving.alertdesk import AlertDesk
from abswitch.serving.backoff import RestartPolicy
from abswitch.serving.cache import CachedVersion, ModelCache
from abswitch.serving.dispatch import Dispatcher, Submission
from abswitch.serving.findings import HealthPolicy
from abswitch.serving.health import HealthMonitor, Wiring
from abswitch.serving.judges import judgement_on
from abswitch.serving.moves import JournalEntry
from abswitch.serving.queueing import AdmissionQueue
from abswitch.serving.readiness import Readiness
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.router import RequestRouter
from abswitch.serving.scripted import ScriptedBackend, ScriptedInstance
from abswitch.serving.switcher import ModelSwitcher
from abswitch.serving.tally import StepTally
from abswitch.serving.transition import TransitionManager
from tests.patience import PATIENCE_S

MODEL = "bot"


class Shell:
    """One model `bot` with versions v1, v2, v3, each answering with its own name."""

    def __init__(
        self,
        *,
        max_cached_models: int = 5,
        drain_timeout_s: float = 60.0,
        load_timeout_s: float = 300.0,
        configure: Callable[[ScriptedInstance], None] | None = None,
        restarts: RestartPolicy | None = None,
        max_wait_s: float = 60.0,
        max_waiting: int = 1000,
        clock: VirtualClock | None = None,
        backend: ScriptedBackend | None = None,
        last_epochs: Mapping[str, int] = EMPTY,
        versions: Sequence[str] = ("v1", "v2", "v3"),
        health: HealthPolicy = HealthPolicy(),  # noqa: B008 (a frozen value)
    ) -> None:
        self.clock = clock or VirtualClock()
        self.backend = backend or ScriptedBackend(
            answers={v: (lambda _, v=v: ("I ", "am ", v)) for v in versions},  # type: ignore[misc]
            configure=configure,
        )
        self.requests: list[RequestRecord] = []
        self.routes: list[RouteRecord] = []
        self.journal: list[TransitionRecord] = []
        self.entries: list[JournalEntry] = []
        self.journal_error: Exception | None = None
        self.transitions = TransitionManager()
        self.router = RequestRouter(self.clock, last_epochs=last_epochs)
        self.cache = ModelCache(
            {"scripted": self.backend},
            max_cached_models=max_cached_models,
            in_use=lambda key: self.transitions.holders(key) > 0 or self.router.is_routed(*key),
        )
        self.readiness = Readiness(self.cache, clock=self.clock, load_timeout_s=load_timeout_s)
        self.registry = DynamicModelRegistry(self.clock)
        self.tally = StepTally(self.clock)
        self.desk = AlertDesk(self.clock, cooldown_s=health.cooldown_s, history=health.history)
        self.switcher = ModelSwitcher(
            self.registry,
            self.cache,
            self.readiness,
            self.router,
            self.transitions,
            self.clock,
            journal=self._journal,
            judge=judgement_on(self.tally),
            record_route=self._route,
            on_move=self._moved,
            drain_timeout_s=drain_timeout_s,
            load_timeout_s=load_timeout_s,
            restarts=restarts,
        )
        self.queue = AdmissionQueue(
            self.router,
            self.clock,
            expected=self.switcher.expected,
            awaited=self.switcher.awaited,
            failure=self.switcher.failure,
            max_wait_s=max_wait_s,
            max_waiting=max_waiting,
        )
        self.health = HealthMonitor(
            self.cache,
            self.router,
            self.transitions,
            self.clock,
            policy=health,
            desk=self.desk,
            wiring=Wiring(
                waiting=self.queue.waiting,
                queues=lambda: self.queue.models,
                operation=self.switcher.running,
                lost=self.switcher.instance_lost,
                breached=self.switcher.breached,
            ),
        )
        self.dispatcher = Dispatcher(
            self.queue,
            self.router,
            self.transitions,
            self.clock,
            load=self._load,
            ready=lambda key: self.readiness.ready(key) is not None,
            residency=self.cache.tier,
            record=self._record,
            on_answer=lambda _: None,
            on_lost=self.health.instance_lost,
            record_text=True,
        )
        self._ids = itertools.count()
        for version in versions:
            self.registry.register_model({"model_id": MODEL, "model": "script", "backend": "scripted"}, version)

    def _journal(self, entry: JournalEntry) -> None:
        if self.journal_error is not None:
            raise self.journal_error
        self.entries.append(entry)
        self.journal.append(entry.transition)

    def _route(self, record: RouteRecord) -> None:
        self.routes.append(record)

    def _record(self, record: RequestRecord) -> None:
        self.requests.append(record)
        self.tally.request(record)
        self.health.request(record)

    def _moved(self, operation: Operation) -> None:
        self.tally.moved(operation)
        self.health.moved(operation)

    def score(self, request_id: str, scorer: str, value: float) -> None:
        self.tally.score(ScoreRecord(request_id, scorer, value, None, self.clock.wall_s()))

    async def _load(self, model_id: str, version: str) -> CachedVersion:
        return await self.readiness.prove(self.registry.get(model_id, version))

    async def start(
        self,
        version: str,
        kind: str = "immediate",
        config: Mapping[str, Any] | Strategy | None = None,
        judge: Judge | None = None,
    ) -> str:
        operation_id = f"op-{next(self._ids)}"
        await self.switcher.start(
            MODEL, version, strategy_of(kind, config), operation_id=operation_id, salt=operation_id, judge=judge
        )
        return operation_id

    async def until(self, operation_id: str, *phases: Phase) -> Operation:
        async with asyncio.timeout(PATIENCE_S):
            return await self.switcher.wait(operation_id, lambda o: o.phase in phases)

    async def deploy(self, version: str) -> Operation:
        return await self.until(await self.start(version), Phase.SUCCEEDED)

    async def split(self, version: str, percentage: float = 50.0, **config: Any) -> str:
        operation_id = await self.start(version, "ab_test", {"traffic_percentage": percentage, **config})
        await self.until(operation_id, Phase.EVALUATING)
        return operation_id

    def submission(self, unit_id: str = "", overrides: Mapping[str, object] = EMPTY) -> Submission:
        name = f"r{next(self._ids)}"
        return Submission(
            request_id=name,
            model_id=MODEL,
            prompt="who are you?",
            unit_id=unit_id or name,
            overrides=dict(overrides),
            submitted_mono_s=self.clock.monotonic_s(),
        )

    async def ask(self, unit_id: str = "") -> str:
        return (await self.dispatcher.complete(self.submission(unit_id))).text

    def instance(self, version: str) -> ScriptedInstance:
        return self.backend[MODEL, version]

    async def pass_time(self, seconds: float, step_s: float = 1.0) -> None:
        """Move the clock on in steps, letting the loop run after each."""
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            for _ in range(60):
                await asyncio.sleep(0)

    async def close(self) -> None:
        await self.health.close()
        await self.dispatcher.close()
        await self.switcher.close()
        await self.cache.close()
        await self.desk.close()


async def eventually(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Let the loop run until a condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{what} never held")
