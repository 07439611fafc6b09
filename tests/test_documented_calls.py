"""Every call that users were shown, in the very shape they were shown it, against one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from abswitch import ModelConfig, ModelSwitchingConfig, SwitchingEngine, SwitchingStrategyType
from abswitch.errors import SwitchRefused
from abswitch.serving.scripted import ScriptedBackend

STRATEGIES = [
    (SwitchingStrategyType.IMMEDIATE, {}, {"v3.0": 1.0}),
    (SwitchingStrategyType.GRADUAL, {"duration_minutes": 30, "steps": 3}, {"v2.0": 2 / 3, "v3.0": 1 / 3}),
    (
        SwitchingStrategyType.CANARY,
        {
            "initial_percentage": 5,
            "step_percentage": 15,
            "evaluation_period_minutes": 15,
            "max_error_rate_threshold": 0.05,
        },
        {"v2.0": 0.95, "v3.0": 0.05},
    ),
    (SwitchingStrategyType.AB_TEST, {"traffic_percentage": 50, "test_duration_hours": 24}, {"v2.0": 0.5, "v3.0": 0.5}),
]


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SwitchingEngine]:
    config = ModelSwitchingConfig(
        max_cached_models=10,
        enable_health_checks=True,
        default_switch_strategy="gradual",
        alert_thresholds={"error_rate": 0.05, "latency_p95": 5000.0},  # milliseconds
    )
    async with SwitchingEngine(config, store=":memory:", backends={"scripted": ScriptedBackend()}) as made:
        registry = made.registry
        model_config = ModelConfig(model_id="support-bot", model="script", backend="scripted")
        model_id = registry.register_model(model_config, "v2.0", metadata={"performance": "improved"})
        assert model_id == "support-bot"
        assert registry.get_model_versions(model_id)[0].metadata == {"performance": "improved"}
        assert registry.register_model(model_config, "v3.0") == model_id
        yield made


async def test_a_switch_is_started_looked_at_and_aborted(engine: SwitchingEngine) -> None:
    registry, switcher = engine.registry, engine.switcher
    model_id = registry.list_models()[0]
    success = registry.switch_model(model_id, "v2.0")
    assert success is True and registry.active_version(model_id) == "v2.0"

    result = await engine.start_switch(
        target_version="v3.0",
        strategy_type=SwitchingStrategyType.CANARY,
        strategy_config={
            "initial_percentage": 5,
            "step_percentage": 15,
            "evaluation_period_minutes": 15,
            "max_error_rate_threshold": 0.05,
        },
    )
    operation_id = result.operation_id
    await result.serving()
    status = engine.get_switching_status()
    operation = status[model_id].operation
    assert operation is not None
    assert (operation.operation_id, operation.phase, operation.ramp[:3]) == (
        operation_id,
        "evaluating",
        (0.05, 0.2, 0.35),
    )
    success = await engine.abort_switch(operation_id)
    assert success is True and (await result.done()).phase == "aborted"
    assert engine.get_switching_status()[model_id].shares == {"v2.0": 1.0}
    stats = switcher.get_switcher_stats()
    assert (stats.started, stats.succeeded, stats.aborted, stats.running) == (2, 1, 1, 0)


@pytest.mark.parametrize(("kind", "config", "shares"), STRATEGIES, ids=str)
@pytest.mark.parametrize("typed", [True, False], ids=["by-member", "by-word"])
async def test_each_strategy_takes_its_documented_dictionary(
    engine: SwitchingEngine,
    kind: SwitchingStrategyType,
    config: dict[str, float],
    shares: dict[str, float],
    *,
    typed: bool,
) -> None:
    await engine.deploy("v2.0")
    result = await engine.start_switch("v3.0", kind if typed else kind.value, config)
    await result.serving()
    assert engine.get_switching_status()["support-bot"].shares == pytest.approx(shares)
    await result.abort()
    await result.done()


async def test_what_is_configured_is_what_a_switch_does_by_default(engine: SwitchingEngine) -> None:
    await engine.deploy("v2.0")
    result = await engine.start_switch("v3.0")
    assert result.status.strategy == "gradual"
    await result.abort()
    limits = engine.config.limits
    assert limits.error_rate is not None and limits.error_rate.warning == 0.05
    assert limits.latency_p95 is not None and limits.latency_p95.warning == 5000.0
    assert (engine.config.max_cached_models, engine.config.enable_health_checks) == (10, True)


async def test_the_names_of_the_earlier_proposal(engine: SwitchingEngine) -> None:
    await engine.deploy("v2.0")
    arguments = ("support-bot", "v3.0", "ab_test", {"traffic_percentage": 10})
    assert await engine.validate_switch_request(*arguments)
    begun = await engine.switch_model(*arguments, {"ticket": "EXP-7"})
    await begun.serving()
    assert [one.operation_id for one in engine.list_active_switches()] == [begun.operation_id]
    assert engine.get_switch_status(begun.operation_id).shares == (("v2.0", 0.9), ("v3.0", 0.1))
    with pytest.raises(SwitchRefused, match=begun.operation_id):
        await engine.deregister_model("support-bot", "v3.0")
    await begun.abort()
    await begun.done()
    named = await engine.switch_model(
        model_id="support-bot", target_version="v3.0", strategy_type=None, strategy_config=None, metadata={}
    )
    await named.abort()
    await named.done()
    assert not engine.list_active_switches()

    registry = engine.registry
    assert registry.list_models() == ("support-bot",)
    assert [one.version for one in registry.get_model_versions("support-bot")] == ["v2.0", "v3.0"]
    assert (registry.get_registry_stats().models, registry.get_registry_stats().versions) == (1, 2)
    assert await engine.deregister_model("support-bot", "v3.0") is True
    assert [one.version for one in registry.get_model_versions("support-bot")] == ["v2.0"]
