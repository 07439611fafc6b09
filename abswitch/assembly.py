"""Everything an engine is made of, put together here and nowhere else; `SwitchingEngine` is the facade over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abswitch.clock import Clock
from abswitch.domain import ModelConfig, ModelVersion, RequestRecord, ScoreRecord, VersionKey
from abswitch.errors import InvalidInput
from abswitch.looking import PlannedJudge
from abswitch.machinery import Machinery
from abswitch.persistence import SwitchLog, keeper, noter, open_journal
from abswitch.registries import ExportStatus, ImportedModel
from abswitch.rollout.operation import Operation
from abswitch.scoring import Sample, Score, Scorer, scorers_of
from abswitch.serving.alertdesk import AlertDesk
from abswitch.serving.backoff import RestartPolicy
from abswitch.serving.cache import CachedVersion, ModelCache
from abswitch.serving.desk import SwitchDesk
from abswitch.serving.dispatch import Dispatcher, Submission
from abswitch.serving.exchange import Exchange
from abswitch.serving.findings import HealthPolicy
from abswitch.serving.golden import GoldenPrompts
from abswitch.serving.grading import Grader
from abswitch.serving.health import HealthMonitor, Wiring
from abswitch.serving.hub import commit_of
from abswitch.serving.instance import InstanceFactory, ModelInstance
from abswitch.serving.intents import Intent
from abswitch.serving.judges import judgement_on
from abswitch.serving.loop import EngineLoop
from abswitch.serving.openai import OpenAIInstance, ServerArgs
from abswitch.serving.preflight import Preflight
from abswitch.serving.queueing import AdmissionQueue
from abswitch.serving.readiness import Readiness
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.router import RequestRouter
from abswitch.serving.rows import alert_record, health_sample
from abswitch.serving.sinks import LogSink
from abswitch.serving.source import SourceFacts, check_source
from abswitch.serving.switcher import ModelSwitcher
from abswitch.serving.tally import StepTally
from abswitch.serving.timings import Timings
from abswitch.serving.transition import TransitionManager
from abswitch.serving.vllm import VllmEnginePool, vllm_backend
from abswitch.serving.vllm_args import check_args
from abswitch.serving.webhook import WebhookSink
from abswitch.settings import ModelSwitchingConfig
from abswitch.store.mlflow_registry import MlflowRegistry
from abswitch.store.mlflow_sink import MlflowSink
from abswitch.store.recorder import Recorder
from abswitch.store.redaction import Redact
from abswitch.store.retention import Retention
from abswitch.store.sinks import together
from abswitch.store.tracking import TrackingSink
from abswitch.store.wandb_sink import WandbSink


def assemble(
    config: ModelSwitchingConfig,
    *,
    store: Path | str,
    scorers: Sequence[Scorer | Callable[[Sample], Score]],
    mlflow: str | None,
    wandb: Path | str | None,
    record_text: bool,
    redact: Redact | None,
    retention: Retention,
    backends: Mapping[str, InstanceFactory],
    clock: Clock,
) -> Machinery:
    """Put an engine together; its files are open and its thread runs afterwards.

    Raises:
        InvalidInput, StoreError: an argument is malformed, or a file is held by another process; nothing stays open.
    """
    accepted_scorers = scorers_of(scorers)
    with ExitStack() as undo:
        # The journal first: it tells another engine, which must not share a store, from a program that only reads it.
        journal = open_journal(store)
        undo.callback(journal.close if journal.clean else journal.abandon)
        recorder = Recorder(store, spool_while_held=True, redact=redact, retention=retention)
        undo.callback(recorder.close)
        switch_log = SwitchLog(journal, recorder)
        sinks: list[TrackingSink] = []
        registry_uri = None
        if mlflow is not None:
            sinks.append(to_mlflow := MlflowSink(mlflow, recorder=recorder))
            undo.callback(to_mlflow.close)
            registry_uri = to_mlflow.tracking_uri
        if wandb is not None:
            sinks.append(to_wandb := WandbSink(wandb, recorder=recorder))
            undo.callback(to_wandb.close)
        tracking = together(sinks)
        machinery = _wire(
            config, clock, recorder, switch_log, tracking, registry_uri, accepted_scorers, record_text, backends
        )
        undo.callback(machinery.loop.close)
        _take_over(machinery)
        undo.pop_all()
    return machinery


def _wire(
    config: ModelSwitchingConfig,
    clock: Clock,
    store: Recorder,
    switch_log: SwitchLog,
    tracking: TrackingSink | None,
    registry_uri: str | None,
    scorers: Sequence[Scorer],
    record_text: bool,
    backends: Mapping[str, InstanceFactory],
) -> Machinery:
    transitions, tally = TransitionManager(), StepTally(clock)
    router = RequestRouter(clock, last_epochs=store.last_epochs())
    builtin: dict[str, InstanceFactory] = {
        "vllm": vllm_backend(VllmEnginePool(cpu_groups=config.cpu_core_groups)),
        "openai": OpenAIInstance,
    }
    recovery = switch_log.recovery(clock.monotonic_s())
    cache = ModelCache(
        builtin | dict(backends),
        max_cached_models=config.max_cached_models,
        in_use=lambda key: transitions.holders(key) > 0 or router.is_routed(*key),
        device_bytes=config.device_memory_budget_bytes,
        host_bytes=config.host_memory_budget_bytes,
        timings=Timings(recovery.timings, keep=switch_log.timing, backend_of=lambda key: _backend_of(registry, key)),
        clock=clock,
        change_timeout_s=config.switch_timeout_seconds,
    )
    golden = GoldenPrompts(recovery.golden, keep=switch_log.golden) if config.golden_prompt_check else None
    readiness = Readiness(cache, golden, clock=clock, load_timeout_s=config.switch_timeout_seconds)
    registry = DynamicModelRegistry(
        clock,
        check=_version_check(cache, backends),
        resolve=commit_of,
        keep=keeper(store),
        note=noter(store),
        in_use=lambda key: _in_use(key, transitions, router, cache),
        recorded=lambda key: _is_recorded(key, store, golden),
        max_versions=config.max_version_history,
    )
    grader = Grader(scorers, clock, record=_scored(store, tally))
    preflight = Preflight(registry, cache, serves=lambda key: _serves(key, router, switcher))
    switcher = ModelSwitcher(
        registry,
        cache,
        readiness,
        router,
        transitions,
        clock,
        journal=switch_log.write,
        evidence=switch_log.copy,
        judge=judgement_on(tally, PlannedJudge(store, grader.caught_up)),
        record_route=store.route,
        on_move=lambda operation: _moved(operation, tally, health),
        drain_timeout_s=config.max_transition_time_seconds,
        load_timeout_s=config.switch_timeout_seconds,
        max_running=config.max_concurrent_switches,
        restarts=_restarts(config),
        fall_back=config.enable_automatic_rollback,
        way_back=preflight.way,
    )
    queue = AdmissionQueue(
        router,
        clock,
        expected=switcher.expected,
        awaited=switcher.awaited,
        failure=switcher.failure,
        max_wait_s=config.max_queue_wait_seconds,
        max_waiting=config.max_queued_requests,
    )
    alerts = AlertDesk(
        clock,
        cooldown_s=config.alert_cooldown_seconds,
        history=config.alert_history_size,
        record=lambda alert: store.alert(alert_record(alert)),
    )
    _add_sinks(alerts, config)
    health = HealthMonitor(
        cache,
        router,
        transitions,
        clock,
        policy=_health_policy(config),
        desk=alerts,
        wiring=Wiring(
            waiting=queue.waiting,
            queues=lambda: queue.models,
            operation=switcher.running,
            lost=switcher.instance_lost,
            breached=switcher.breached,
            may_probe_idle=_costs_nothing,
            sampled=lambda health: store.health_sample(health_sample(health, clock.wall_s())),
        ),
    )
    dispatcher = Dispatcher(
        queue,
        router,
        transitions,
        clock,
        load=_loader(registry, readiness),
        ready=lambda key: readiness.ready(key) is not None,
        residency=cache.tier,
        record=_requested(store, tally, health),
        assigned=store.assignment,
        on_answer=_grading(grader),
        on_lost=health.instance_lost,
        record_text=record_text,
    )
    turned_off = None if config.enabled else config.place_of("enabled")
    loop = EngineLoop()
    desk = SwitchDesk(registry, switcher, preflight, cache, router, turned_off=turned_off)
    link = MlflowRegistry(store, registry_uri)
    exchange = Exchange(registry, link)
    registry.connect(_Surroundings(loop, desk, exchange), exchange.changed)
    return Machinery(
        config=config,
        clock=clock,
        loop=loop,
        store=store,
        log=switch_log,
        tracking=tracking,
        registry=registry,
        link=link,
        exchange=exchange,
        cache=cache,
        readiness=readiness,
        preflight=preflight,
        router=router,
        transitions=transitions,
        queue=queue,
        switcher=switcher,
        desk=desk,
        dispatcher=dispatcher,
        grader=grader,
        health=health,
        alerts=alerts,
        tally=tally,
        recovery=recovery,
    )


def _take_over(machinery: Machinery) -> None:
    """What an earlier process knew: its operations, and which version served each model."""
    registry = machinery.registry
    registry.restore(machinery.store.versions(), machinery.store.registry_history())
    known = registry.list_models()
    for adopted in machinery.recovery.operations:
        operation = adopted.operation
        if operation.model_id in known:
            machinery.switcher.adopt(operation, adopted.salt, adopted.sequence)
    registry.catch_up(machinery.recovery.activations)
    for operation in machinery.switcher.operations.values():
        registry.moved(operation)
    registry.settle({one.operation_id for one in machinery.switcher.operations.values() if not one.phase.is_final})


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What the registry can have done; it blocks the caller's thread, never the engine's."""

    loop: EngineLoop
    desk: SwitchDesk
    exchange: Exchange

    def switch(self, model_id: str, version: str, intent: Intent) -> bool:
        return self.loop.run(self.desk.switch(model_id, version, intent))

    def release(self, model_id: str, version: str, intent: Intent) -> bool:
        return self.loop.run(self.desk.release(model_id, version, intent))

    def retire(self, model_id: str, newest: str) -> dict[str, Future[None] | None]:
        return self.loop.ask(lambda: self.desk.retire(model_id, newest))

    def export_model(self, model_id: str, name: str | None, uri: str | None, timeout_s: float) -> ExportStatus:
        return self.exchange.export(model_id, name, uri, timeout_s)

    def import_model(
        self, name: str, uri: str | None, model_id: str | None, config: Mapping[str, Any], intent: Intent
    ) -> ImportedModel:
        return self.exchange.import_(name, uri, model_id, config, intent)


def _in_use(key: VersionKey, transitions: TransitionManager, router: RequestRouter, cache: ModelCache) -> str | None:
    if router.is_routed(*key):
        return "traffic is routed to it"
    if transitions.holders(key):
        return f"{transitions.holders(key)} request(s) are on it"
    return cache.why_needed(key)


def _backend_of(registry: DynamicModelRegistry, key: VersionKey) -> str | None:
    try:
        return registry.get(*key).config.backend
    except InvalidInput:  # it was deregistered; what it took is still known
        return None


def _serves(key: VersionKey, router: RequestRouter, switcher: ModelSwitcher) -> bool:
    operation = switcher.running(key[0])
    return router.is_routed(*key) or (operation is not None and key[1] in operation.versions)


def _restarts(config: ModelSwitchingConfig) -> RestartPolicy:
    return RestartPolicy(
        initial_s=config.restart_initial_seconds,
        max_s=config.restart_max_seconds,
        max_restarts=config.max_restarts,
        window_s=config.restart_window_seconds,
    )


def _health_policy(config: ModelSwitchingConfig) -> HealthPolicy:
    return HealthPolicy(
        interval_s=config.monitoring_interval_seconds,
        probe_after_s=config.health_probe_interval_seconds,
        hang_after_s=config.health_check_timeout_seconds,
        window_s=config.metrics_window_seconds,
        min_requests=config.alert_min_requests,
        cooldown_s=config.alert_cooldown_seconds,
        history=config.alert_history_size,
        limits=config.limits,
        acts=config.enable_automatic_rollback,
    )


def _add_sinks(alerts: AlertDesk, config: ModelSwitchingConfig) -> None:
    alerts.add_sink(LogSink())
    if config.alert_webhook_url is not None:
        alerts.add_sink(WebhookSink(config.alert_webhook_url, secret=config.alert_webhook_secret))


def _costs_nothing(instance: ModelInstance) -> bool:
    """Whether an idle instance may be asked for a token: not where somebody else's server would bill it."""
    return instance.version.config.backend != "openai"


def _moved(operation: Operation, tally: StepTally, health: HealthMonitor) -> None:
    tally.moved(operation)
    health.moved(operation)


_CHECKS: Mapping[str, Callable[[ModelConfig, SourceFacts], object]] = {
    "vllm": check_args,
    "openai": lambda config, _: ServerArgs.of(config.engine_args),
}
"""By backend, what is known of its engine arguments without an engine."""


def _version_check(cache: ModelCache, replaced: Container[str]) -> Callable[[ModelVersion], None]:
    """What a registration is refused for; a backend that the user put in another's place has arguments of its own."""

    def check(version: ModelVersion) -> None:
        cache.check_backend(version)
        source, backend = check_source(version.config), version.config.backend
        if backend in _CHECKS and backend not in replaced:
            _CHECKS[backend](version.config, source)

    return check


def _is_recorded(key: VersionKey, store: Recorder, golden: GoldenPrompts | None) -> bool:
    return (golden is not None and golden.knows(key)) or store.has_evidence(key)


def _loader(registry: DynamicModelRegistry, readiness: Readiness) -> Callable[[str, str], Awaitable[CachedVersion]]:
    async def load(model_id: str, version: str) -> CachedVersion:
        return await readiness.prove(registry.get(model_id, version))

    return load


def _requested(store: Recorder, tally: StepTally, health: HealthMonitor) -> Callable[[RequestRecord], None]:
    def requested(record: RequestRecord) -> None:
        store.request(record)
        tally.request(record)
        health.request(record)

    return requested


def _scored(store: Recorder, tally: StepTally) -> Callable[[ScoreRecord], None]:
    def scored(record: ScoreRecord) -> None:
        store.score(record)
        tally.score(record)

    return scored


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
