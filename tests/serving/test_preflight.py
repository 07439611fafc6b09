"""Before a switch: what it would take, whether it fits, and what can be done when it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from abswitch import ModelSwitchingConfig, SwitchingEngine
from abswitch.errors import BadModelSource, InvalidInput, SwitchRefused
from abswitch.serving.instance import ModelInstance
from abswitch.serving.policy import Footprint
from abswitch.serving.scripted import ScriptedBackend, ScriptedInstance

GIB = 2**30


def heavy(instance: ScriptedInstance) -> None:
    instance.memory_bytes = 4 * GIB if instance.version.version == "huge" else 2 * GIB


def engine_with(limit_gb: float | None, store: Path | str = ":memory:") -> SwitchingEngine:
    engine = SwitchingEngine(
        ModelSwitchingConfig(cache_memory_limit_gb=limit_gb),
        store=store,
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


async def test_the_way_back_needs_no_place_for_two() -> None:
    async with engine_with(3) as engine:
        for version in ("v1", "v2"):
            handle = await engine.start_switch(version, "immediate", {"drain_first": True})
            await handle.done()
        asked = [asyncio.create_task(engine.generate("who", model_id="bot")) for _ in range(5)]
        assert (await engine.rollback()).phase == "succeeded"
        assert engine.get_switching_status()["bot"].loaded == ("v1",)
        assert {(await one).served_version for one in asked} <= {"v1", "v2"}
        assert await asyncio.to_thread(engine.registry.switch_model, "bot", "v2")
        assert engine.get_switching_status()["bot"].loaded == ("v2",)


async def test_a_version_that_breaks_gives_way_although_there_is_no_place_for_two() -> None:
    async with engine_with(3) as engine:
        for version in ("v1", "v2"):
            handle = await engine.start_switch(version, "immediate", {"drain_first": True})
            await handle.done()
        assert await engine.call(_breaks(engine, "v2"))
        (back,) = [one for one in engine.switcher.operations.values() if one.stable == "v2"]
        assert (await engine.get_switch(back.operation_id).done()).phase == "succeeded"
        assert (await engine.generate("who", model_id="bot")).served_version == "v1"


async def test_a_version_whose_files_are_gone_can_be_rolled_back_from() -> None:
    """It died, and cannot be loaded again: what it would take beside the other is not known, nor does it matter."""
    gone: set[str] = set()

    async def unreadable() -> Footprint:
        raise BadModelSource("model_config.model", "a folder", "a folder that exists")

    def configure(instance: ScriptedInstance) -> None:
        if instance.version.version in gone:
            instance.needs = unreadable  # type: ignore[method-assign]

    async with SwitchingEngine(store=":memory:", backends={"scripted": ScriptedBackend(configure=configure)}) as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model({"model_id": "bot", "model": "script", "backend": "scripted"}, version)
            await engine.deploy(version)
        gone.add("v2")
        scripted = engine._parts.cache.loaded["bot", "v2"].instance
        await engine.call(_lose(engine, scripted))
        assert (await engine.rollback()).phase == "succeeded"
        assert (await engine.generate("who", model_id="bot")).served_version == "v1"
        with pytest.raises(BadModelSource):
            await engine.rollback(to="v2")


async def _lose(engine: SwitchingEngine, instance: ModelInstance) -> None:
    engine.switcher.instance_lost("bot", instance, "bus error")


async def _breaks(engine: SwitchingEngine, version: str) -> bool:
    taken = engine.switcher.breached("bot", version, "everything fails")
    while not engine.switcher.running("bot"):
        await asyncio.sleep(0)
    return taken


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


async def test_a_plan_says_what_start_switch_says() -> None:
    async with engine_with(None) as engine:
        assert "ab_test compares" in str(await engine.plan_switch("v2", "ab_test"))
        await engine.deploy("v1")
        plan = await engine.plan_switch("v1")
        assert plan.refusal == "version 'v1' is already the active version of model 'bot'" and not plan.ways_out
        assert "can begin" not in str(plan) and str(plan).count("\nv1: ") == 1, plan
        handle = await engine.start_switch("v2", "ab_test")
        await handle.serving()
        held = await engine.plan_switch("v3", "canary")
        assert held.refusal is not None and handle.operation_id in held.refusal
        for target, kind in (("v1", "immediate"), ("v3", "canary")):
            plan = await engine.plan_switch(target, kind)
            with pytest.raises(SwitchRefused) as refused:
                await engine.start_switch(target, kind)
            assert str(refused.value) == plan.refusal
        assert (await engine.validate_switch_request("bot", "v3")).plan == await engine.plan_switch("v3")
        await handle.abort()


async def test_what_was_active_before_a_restart_may_be_planned_again(tmp_path: Path) -> None:
    for round_ in range(2):
        async with engine_with(3, store=tmp_path / "s.duckdb") as engine:
            assert engine.registry.active_version("bot") == ("v1" if round_ else None)
            for config in ({}, {"in_place": True}):
                plan = await engine.plan_switch("v1", "immediate", config)
                assert plan.refusal is None and plan.stable is None and plan.paths["v1"] == "load", plan
            compared = await engine.plan_switch("v1", "canary")
            assert compared.refusal is not None and ("already" in compared.refusal) == bool(round_)
            await engine.deploy("v1")


async def test_a_first_deployment_that_does_not_fit_is_offered_nothing_of_a_stable_version() -> None:
    async with engine_with(1) as engine:
        with pytest.raises(SwitchRefused, match="'v1' does not fit: 1.00 GiB of host memory are missing") as told:
            await engine.deploy("v1")
        assert "larger budget; or a quantised candidate" in str(told.value)
        assert not {"stable", "drain_first", "switchback"} & set(str(told.value).replace("=", " ").split()), told.value


async def test_what_does_not_fit_alone_is_not_offered_to_drain_first() -> None:
    async with engine_with(3) as engine:
        await engine.deploy("v1")
        engine.registry.register_model({"model_id": "bot", "model": "huge", "backend": "scripted"}, "huge")
        for kind in ("immediate", "canary"):
            plan = await engine.plan_switch("huge", kind)
            assert not plan.fits and not any("drain_first" in way or "switchback" in way for way in plan.ways_out), plan


async def test_a_pin_that_is_in_the_way_is_named() -> None:
    async with engine_with(5) as engine:
        await engine.deploy("v1")
        await engine.load("v3")
        await engine.pin("v3")
        with pytest.raises(
            SwitchRefused, match=r"unloaded, but for 'bot:v3', which is pinned; or engine\.unpin for 'bot:v3'"
        ):
            await engine.start_switch("v2", "canary")
        await engine.unpin("bot:v3")
        handle = await engine.start_switch("v2", "canary")
        await handle.serving()
        assert "pinned" not in str(await engine.plan_switch("v3"))
        await handle.abort()


async def test_a_pin_that_is_not_what_blocks_is_no_way_out() -> None:
    async with engine_with(3) as engine:
        await engine.deploy("v1")
        await engine.pin("v1")
        plan = await engine.plan_switch("v2", "canary")
        assert plan.refusal is not None and "pin" not in str(plan)


async def test_times_of_another_backend_are_not_expected_of_a_version() -> None:
    scripted = {name: ScriptedBackend(configure=heavy) for name in ("scripted", "other")}
    async with SwitchingEngine(store=":memory:", backends=scripted) as engine:
        for version, backend in (("v1", "scripted"), ("v2", "scripted"), ("v3", "other")):
            engine.registry.register_model({"model_id": "bot", "model": "one", "backend": backend}, version)
        await engine.deploy("v1")
        same, other = await engine.plan_switch("v2"), await engine.plan_switch("v3")
        assert same.expected["v2"].of_others and same.expected["v2"].n == 1
        assert other.expected["v3"].seconds is None
        assert "v3: cold now, ready by loading it, which was not measured yet; needs" in str(other)


async def test_a_plan_reads_well() -> None:
    async with engine_with(None) as engine:
        first = str(await engine.plan_switch("v1"))
        assert "ready by loading it, which was not measured yet" in first and "drain" not in first
        await engine.deploy("v1")
        in_place = str(await engine.plan_switch("v2", "immediate", {"in_place": True}))
        assert "v2: cold now, ready by putting its weights in place, which was not measured yet" in in_place
        await engine.load("v2")
        assert "v2: resident now, ready at once; needs" in str(await engine.plan_switch("v2", "canary"))


async def test_a_version_of_a_backend_that_is_not_here_is_refused(tmp_path: Path) -> None:
    async with engine_with(None, store=tmp_path / "s.duckdb") as engine:
        await engine.deploy("v1")
    async with SwitchingEngine(store=tmp_path / "s.duckdb") as engine:
        for call in (engine.plan_switch("v2"), engine.start_switch("v2"), engine.deploy("v1")):
            with pytest.raises(InvalidInput, match=r"backend: got 'scripted'; allowed: one of openai, vllm"):
                await call
        assert "backend: got 'scripted'" in str(await engine.validate_switch_request("bot", "v2"))


def sharing_engine() -> tuple[SwitchingEngine, ScriptedBackend]:
    """`base` and its adapters `ad1` and `ad2`; whichever of them comes second joins the engine `one` of the first."""

    def configure(instance: ScriptedInstance) -> None:
        first = next((other for other in scripted.made if other.counts.loads), None)
        if first is not None:
            first.shared_engine = instance.shared_engine = "one"

    scripted = ScriptedBackend(configure=configure)
    engine = SwitchingEngine(store=":memory:", backends={"scripted": scripted})
    for version in ("base", "ad1", "ad2"):
        adapter = {} if version == "base" else {"adapter": version}
        engine.registry.register_model({"model_id": "bot", "model": "one", "backend": "scripted", **adapter}, version)
    return engine, scripted


@pytest.mark.parametrize(
    ("first", "second", "path", "words"),
    [("ad1", "base", "join", "joining an engine that runs already"), ("base", "ad1", "adapter", "loading its adapter")],
)
async def test_joining_an_engine_is_planned_timed_and_recorded_as_what_it_is(
    first: str, second: str, path: str, words: str
) -> None:
    engine, _ = sharing_engine()
    async with engine:
        assert (await engine.plan_switch(first)).paths[first] == "load", "there is no engine yet"
        await engine.deploy(first)
        plan = await engine.plan_switch(second, "canary")
        assert plan.paths[second] == path and plan.expected[second].seconds is None, "a load says nothing of a join"
        assert f"{second}: cold now, ready by {words}, which was not measured yet" in str(plan)
        assert (await engine.load(second)).shared_engine
        resident = await engine.plan_switch(second, "canary")
        assert resident.paths[second] == path and "ready at once" in str(resident)
        for version in (first, second):
            await engine.generate("who?", version=version, request_id=version)
        rows = engine.query("SELECT request_id, switch_path FROM requests").set_index("request_id").switch_path
        assert dict(rows) == {first: "load", second: path}
        expected = engine._parts.cache.timings.expect
        assert (expected("bot", first, "load").n, expected("bot", second, "load").of_others) == (1, True)
        assert expected("bot", second, path).n == 1


async def test_who_is_to_join_an_engine_that_leaves_for_the_switch_is_loaded() -> None:
    engine, scripted = sharing_engine()
    async with engine:
        await engine.deploy("base")
        drained = await engine.plan_switch("ad1", "immediate", {"drain_first": True})
        assert drained.paths["ad1"] == "load" and drained.expected["ad1"].of_others
        await engine.load("ad2")
        assert scripted["bot", "ad2"].engine_key == scripted["bot", "base"].engine_key
        kept = await engine.plan_switch("ad1", "immediate", {"drain_first": True})
        assert kept.paths["ad1"] == "adapter", "another version keeps the engine"
