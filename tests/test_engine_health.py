"""Health and alerts through the facade, on scripted instances."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from abswitch import Alert, ModelSwitchingConfig, SwitchingEngine
from abswitch.errors import EngineClosed, InvalidInput
from abswitch.serving.findings import HealthState
from abswitch.serving.scripted import Gate, ScriptedBackend, ScriptedInstance
from tests.patience import PATIENCE_S

FAST = ModelSwitchingConfig(
    monitoring_interval_seconds=0.02,
    health_probe_interval_seconds=0.05,
    health_check_timeout_seconds=0.2,
    alert_min_requests=5,
    restart_initial_seconds=0.01,
)


def registered(engine: SwitchingEngine) -> SwitchingEngine:
    for version in ("v1", "v2"):
        engine.registry.register_model({"model_id": "bot", "model": "script", "backend": "scripted"}, version)
    return engine


@pytest_asyncio.fixture
async def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest_asyncio.fixture
async def engine(backend: ScriptedBackend) -> AsyncIterator[SwitchingEngine]:
    async with SwitchingEngine(FAST, store=":memory:", backends={"scripted": backend}) as made:
        yield registered(made)


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


async def test_an_engine_knows_how_its_versions_do(engine: SwitchingEngine) -> None:
    assert engine.health().state is HealthState.UNKNOWN
    await engine.deploy("v1")
    for _ in range(6):
        await engine.generate("abc")
    await until(lambda: engine.health().memory_usage, "memory is measured")
    kept = "SELECT * FROM health_samples WHERE version = 'v1'"
    await until(lambda: len(engine.query(kept)), "what was measured is kept")
    samples = engine.query(kept)
    assert samples.alive.all() and set(samples.residency) == {"resident"}
    health = engine.health().version("v1")
    assert (health.state, health.requests, health.errors) == (HealthState.HEALTHY, 6, 0)
    assert health.latency_p95_ms is not None and health.latency_p95_ms > 0
    assert engine.alerts() == ()
    assert "bot:v1 healthy" in str(engine.health())


def heavy(instance: ScriptedInstance) -> None:
    instance.memory_bytes = 2**30


async def test_a_version_that_just_came_to_serve_is_told_as_it_is_held() -> None:
    backend = ScriptedBackend(configure=heavy)
    never = ModelSwitchingConfig(monitoring_interval_seconds=3600.0)
    async with SwitchingEngine(never, store=":memory:", backends={"scripted": backend}) as engine:
        registered(engine)
        await engine.deploy("v1")
        await engine.generate("abc")
        found = engine.health().version("v1")
        assert found.residency == "resident" and found.memory_bytes == 2**30


async def test_health_may_be_asked_from_the_engines_own_loop(engine: SwitchingEngine) -> None:
    async def inside() -> HealthState:
        return engine.health().state

    assert await engine.call(inside()) is HealthState.UNKNOWN


async def test_a_hang_is_told_acknowledged_and_over(engine: SwitchingEngine, backend: ScriptedBackend) -> None:
    told: queue.Queue[Alert] = queue.Queue()
    engine.add_alert_sink(told.put)
    await engine.deploy("v1")
    backend["bot", "v1"].token_gate = Gate()
    answer = await asyncio.wait_for(engine.generate("abc"), PATIENCE_S)
    assert answer.text == "cba"
    alert = await asyncio.to_thread(told.get, timeout=PATIENCE_S)
    assert (alert.metric, alert.version) == ("hung", "v1")
    await until(lambda: not engine.alerts(active=True), "it generates again")
    assert engine.alerts()[0].alert_id == alert.alert_id
    rows = engine.query("SELECT * FROM alerts ORDER BY at_s")
    assert set(rows.alert_id) == {alert.alert_id} and (rows.version == "v1").all()
    assert list(rows.state) == ["firing", "resolved"]
    with pytest.raises(InvalidInput, match="alert_id"):
        engine.acknowledge_alert(alert.alert_id)


async def test_breach_and_back_with_an_acknowledgement() -> None:
    def failing(prompt: object) -> tuple[str, ...]:
        raise ValueError("a bad version")

    backend = ScriptedBackend(answers={"v2": lambda prompt: ("ok",) if prompt == "1" else failing(prompt)})
    config = ModelSwitchingConfig(monitoring_interval_seconds=0.02, golden_prompt_check=False)
    async with SwitchingEngine(config, store=":memory:", backends={"scripted": backend}) as engine:
        registered(engine)
        await engine.deploy("v1")
        await engine.deploy("v2")
        handles: list[Alert] = []
        engine.add_alert_sink(handles.append)
        for _ in range(10):
            with pytest.raises(Exception, match="a bad version"):
                await engine.generate("abc", version=None)
            if engine.registry.active_version("bot") == "v1":
                break
        await until(lambda: engine.registry.active_version("bot") == "v1", "back to the last good version")
        assert (await engine.generate("abc")).served_version == "v1"
        await until(lambda: any(alert.metric == "error_rate" for alert in handles), "the alert")


async def test_without_health_checks_nobody_is_asked_for_tokens(backend: ScriptedBackend) -> None:
    config = ModelSwitchingConfig(
        enable_health_checks=False, monitoring_interval_seconds=0.01, health_probe_interval_seconds=0.01
    )
    async with SwitchingEngine(config, store=":memory:", backends={"scripted": backend}) as engine:
        registered(engine)
        await engine.deploy("v1")
        await engine.generate("abc")
        before = len(backend["bot", "v1"].requests)
        for _ in range(20):
            await engine.call(asyncio.sleep(0.005))
        assert len(backend["bot", "v1"].requests) == before
        assert engine.health().version("v1").requests == 1


async def test_bad_sinks_and_closed_engines(backend: ScriptedBackend) -> None:
    engine = SwitchingEngine(FAST, store=":memory:", backends={"scripted": backend})
    with pytest.raises(InvalidInput, match="sink"):
        engine.add_alert_sink(3)  # type: ignore[arg-type]
    await engine.aclose()
    with pytest.raises(EngineClosed):
        engine.health()
    with pytest.raises(EngineClosed):
        engine.add_alert_sink(print)
    assert engine.alerts() == ()


async def test_a_webhook_of_the_settings_is_used_and_a_dead_one_delays_no_close(
    backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    config = ModelSwitchingConfig(
        monitoring_interval_seconds=0.02, alert_webhook_url="http://127.0.0.1:9/nobody", alert_webhook_secret="hush"
    )
    engine = registered(SwitchingEngine(config, store=":memory:", backends={"scripted": backend}))
    await engine.deploy("v1")
    with caplog.at_level(logging.WARNING):
        backend["bot", "v1"].die("by the test")
        await engine.generate("abc")
        began_s = asyncio.get_running_loop().time()
        await engine.aclose()
    assert asyncio.get_running_loop().time() - began_s < 4.0
    assert "WebhookSink did not take" in caplog.text
    assert "hush" not in caplog.text
