"""Before a switch: what it would take, whether it fits, and what can be done when it does not."""

from __future__ import annotations

import pytest

from abswitch import ModelSwitchingConfig, SwitchingEngine
from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.serving.scripted import ScriptedBackend, ScriptedInstance

GIB = 2**30


def heavy(instance: ScriptedInstance) -> None:
    instance.memory_bytes = 2 * GIB


def engine_with(limit_gb: float | None) -> SwitchingEngine:
    engine = SwitchingEngine(
        ModelSwitchingConfig(cache_memory_limit_gb=limit_gb),
        store=":memory:",
        backends={"scripted": ScriptedBackend(configure=heavy)},
    )
    for version, model in (("v1", "one"), ("v2", "one"), ("v3", "other")):
        engine.registry.register_model({"model_id": "bot", "model": model, "backend": "scripted"}, version)
    return engine


async def test_a_plan_tells_tiers_times_and_memory() -> None:
    async with engine_with(10) as engine:
        first = await engine.plan_switch("v1")
        assert first.fits and first.refusal is None and first.expected["v1"].seconds is None
        await engine.deploy("v1")
        plan = await engine.plan_switch("v2", "canary")
        assert plan.fits and plan.stable == "v1" and plan.candidates == ("v2",)
        assert (plan.tiers["v1"], plan.tiers["v2"], plan.during["v1"]) == ("resident", "cold", "resident")
        assert plan.needs["v2"].host_bytes == 2 * GIB and plan.held.host_bytes == 2 * GIB
        assert plan.expected["v2"].seconds is not None and plan.expected["v2"].of_others
        assert "ready by load" in str(plan) and "<table" in plan._repr_html_()
        await engine.load("v2")
        assert (await engine.plan_switch("v2", "canary")).expected["v2"].seconds == 0.0
        assert engine.get_switching_status()["bot"].active_version == "v1", "nothing was changed by looking"


async def test_versions_that_do_not_fit_together_are_refused_with_numbers_and_ways_out() -> None:
    async with engine_with(3) as engine:
        await engine.deploy("v1")
        for kind in ("canary", "gradual", "ab_test", "shadow", "immediate"):
            with pytest.raises(SwitchRefused, match=r"'v2' does not fit beside 'v1': 1\.00 GiB of host memory") as told:
                await engine.start_switch("v2", kind)
            assert "drain_first" in str(told.value) and "KV cache" in str(told.value), told.value
            assert ("switchback" in str(told.value)) == (kind != "immediate")
        handle = await engine.start_switch("v2", "immediate", {"drain_first": True})
        assert (await handle.done()).phase == "succeeded"
        assert engine.get_switching_status()["bot"].loaded == ("v2",)
        with pytest.raises(InvalidInput):
            await engine.plan_switch("v9")


async def test_others_that_are_idle_make_room() -> None:
    async with engine_with(4) as engine:
        await engine.deploy("v1")
        await engine.load("v3")
        plan = await engine.plan_switch("v2", "canary")
        assert plan.fits and [step.key for step in plan.leaving] == [("bot", "v3")]
        await engine.pin("v3")
        assert not (await engine.plan_switch("v2", "canary")).fits
        await engine.unpin("v3")
        handle = await engine.start_switch("v2", "canary")
        await handle.serving()
        assert set(engine.get_switching_status()["bot"].loaded) == {"v1", "v2"}


async def test_in_place_where_it_can_be_and_refused_where_not() -> None:
    async with engine_with(3) as engine:
        await engine.deploy("v1")
        with pytest.raises(SwitchRefused, match="'v3' cannot take the place of 'v1': it is another script"):
            await engine.start_switch("v3", "immediate", {"in_place": True})
        assert (await engine.plan_switch("v2", "immediate", {"in_place": True})).paths["v2"] == "in-place"
        handle = await engine.start_switch("v2", "immediate", {"in_place": True})
        assert (await handle.done()).phase == "succeeded"
        await engine.generate("who?", request_id="r1")
        row = engine.query("SELECT served_version, switch_path, tier FROM requests WHERE request_id = 'r1'").iloc[0]
        assert tuple(row) == ("v2", "in-place", "resident")


async def test_prefetch_returns_at_once_and_the_version_is_there_later() -> None:
    async with engine_with(None) as engine:
        await engine.prefetch("v2")
        assert (await engine.load("v2")).memory_bytes == 2 * GIB
        assert engine.get_switching_status()["bot"].loaded == ("v2",)
