"""The registry as part of an engine: aliases follow switches, versions come and go, a restart knows everything."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from abswitch import SwitchingEngine, SwitchingStrategyType
from abswitch.domain import ModelVersion
from abswitch.errors import (
    AbswitchError,
    DuplicateVersion,
    InvalidInput,
    OperationInProgress,
    StoreError,
    SwitchFailed,
    SwitchRefused,
    UnknownModel,
    UnknownVersion,
)
from abswitch.records import HistoryEntry
from abswitch.rollout.strategies import Strategy
from abswitch.serving.scripted import Gate, ScriptedBackend
from abswitch.serving.vllm_args import declared_names
from abswitch.settings import ModelSwitchingConfig
from tests.patience import PATIENCE_S

CONFIG = {"model_id": "bot", "model": "script", "backend": "scripted"}
VERSIONS = ("v1", "v2", "v3")


def backend() -> ScriptedBackend:
    return ScriptedBackend(answers={v: (lambda _, v=v: (v,)) for v in VERSIONS})  # type: ignore[misc]


@asynccontextmanager
async def opened(
    store: Path | str = ":memory:", scripted: ScriptedBackend | None = None
) -> AsyncIterator[SwitchingEngine]:
    async with SwitchingEngine(store=store, backends={"scripted": scripted or backend()}) as engine:
        yield engine


@asynccontextmanager
async def prepared(scripted: ScriptedBackend | None = None) -> AsyncIterator[SwitchingEngine]:
    """v1 serves, v2 and v3 are registered."""
    async with opened(scripted=scripted) as engine:
        for version in VERSIONS:
            engine.registry.register_model(CONFIG, version)
        await engine.deploy("v1")
        yield engine


def told(engine: SwitchingEngine, *skipped: str) -> list[tuple[str, str | None]]:
    return [
        (e.action, e.version) for e in engine.registry.full_history("bot") if e.action not in {"registered", *skipped}
    ]


async def test_champion_and_challenger_follow_the_switches() -> None:
    async with prepared() as engine:
        assert engine.registry.aliases("bot") == {"champion": "v1"}
        test = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 50}, reason="is it better?")
        await test.serving()
        assert engine.registry.aliases("bot") == {"champion": "v1", "challenger": "v2"}
        assert (await engine.generate("who?", version="challenger")).text == "v2"
        assert (await engine.generate("who?", version="bot@champion")).text == "v1"
        await test.promote("it is")
        assert engine.registry.aliases("bot") == {"champion": "v2"}
        assert told(engine)[-3:] == [("requested", "v2"), ("promoted", "v2"), ("ended", "v2")]
        requested, promoted, ended = engine.registry.full_history("bot")[-3:]
        assert (requested.reason, requested.actor, requested.alias) == ("is it better?", "user", "challenger")
        assert (promoted.previous, promoted.alias, promoted.reason) == ("v1", "champion", "it is")
        assert ended.detail == {"phase": "succeeded", "winner": "v2"}
        assert {e.operation_id for e in (requested, promoted, ended)} == {test.operation_id}


async def test_a_challenger_set_by_hand_can_be_switched_to_and_goes_with_its_promotion() -> None:
    async with prepared() as engine:
        engine.registry.set_alias("challenger", "v3", model_id="bot", reason="candidate of the week")
        switch = await engine.start_switch(target_version="challenger")
        assert (await switch.done()).candidate == "v3"
        assert engine.registry.aliases("bot") == {"champion": "v3"}
        engine.registry.set_alias("challenger", "v2", model_id="bot")
        test = await engine.start_switch("challenger", "ab_test")
        with pytest.raises(InvalidInput, match=f"while operation {test.operation_id} runs"):
            engine.registry.set_alias("challenger", "v1", model_id="bot")
        await test.abort()
        await test.done()
        assert engine.registry.aliases("bot") == {"champion": "v3", "challenger": "v2"}, "as it was before the test"


async def test_aliases_are_versions_wherever_one_is_accepted() -> None:
    async with prepared() as engine:
        engine.registry.set_alias("next", "v2", model_id="bot")
        assert (await engine.plan_switch("bot@next")).candidates == ("v2",)
        await engine.pin("next")
        await engine.unpin("next")
        await engine.prefetch("next")
        assert (await engine.load("next")).load_s >= 0
        assert (await engine.instance("bot:v2")).version.version == "v2"
        arms = {"next": 20, "v3": 20}
        test = await engine.start_switch("bot@next", "ab_test", {"arms": arms})
        assert (await test.serving()).candidates == ("v2", "v3")
        assert set(engine.get_switching_status()["bot"].shares) == {"v1", "v2", "v3"}
        with pytest.raises(UnknownVersion, match="aliases: .*next → v2"):
            await test.promote(version="nxt")
        with pytest.raises(InvalidInput, match="one of this operation's candidates: v2, v3"):
            await test.promote(version="champion")
        assert (await test.promote(version="next")).winner == "v2"


async def test_an_alias_of_a_model_that_has_none_is_told_of_by_that_model() -> None:
    async with prepared() as engine:
        engine.registry.register_model(CONFIG | {"model_id": "b2"}, "w1")
        with pytest.raises(UnknownVersion, match=r"'b2@champion'.*one of w1; there is no champion of model 'b2'"):
            await engine.generate("who?", version="b2@champion")


async def test_the_shown_calls() -> None:
    async with opened() as engine:
        registry = engine.registry
        model_id = registry.register_model(CONFIG, "v1", metadata={"performance": "baseline"})
        assert registry.register_model(CONFIG, "v2", metadata={"performance": "improved"}) == model_id == "bot"
        assert registry.switch_model(model_id, "v1") is True
        assert registry.switch_model(model_id, "v1") is True, "it serves already"
        assert registry.get("bot", "champion").metadata == {"performance": "baseline"}
        switch = await engine.switch_model(
            model_id, "v2", SwitchingStrategyType.AB_TEST, {"traffic_percentage": 5}, {"ticket": "T-1"}
        )
        await switch.serving()
        (running,) = engine.list_active_switches()
        assert engine.get_switch_status(running.operation_id).phase == running.phase == "evaluating"
        assert (running.operation_id, running.share) == (switch.operation_id, 0.05)
        assert [one.operation_id for one in engine.list_active_switches("bot")] == [switch.operation_id]
        with pytest.raises(UnknownModel):
            engine.list_active_switches("cat")
        assert registry.full_history("bot")[-1].detail["metadata"] == {"ticket": "T-1"}
        await switch.abort()
        await switch.done()
        assert engine.list_active_switches() == ()
        assert registry.list_models() == ("bot",)
        assert [v.version for v in registry.get_model_versions("bot")] == ["v1", "v2"]
        stats = registry.get_registry_stats()
        assert (stats.models, stats.versions, stats.promotions, stats.active) == (1, 2, 1, {"bot": "v1"})
        assert engine.switcher.get_switcher_stats().started == 2


async def test_switch_model_says_when_it_did_not_succeed(caplog: pytest.LogCaptureFixture) -> None:
    scripted = backend()
    async with prepared(scripted) as engine:
        scripted._configure = lambda instance: setattr(instance, "load_error", "bad weights")
        assert await asyncio.to_thread(engine.registry.switch_model, "bot", "v2") is False
        assert "bad weights" in caplog.text
        assert engine.registry.active_version("bot") == "v1"
        assert engine.registry.full_history("bot")[-1].detail["phase"] == "failed"
        with pytest.raises(UnknownVersion):
            engine.registry.switch_model("bot", "v9")


async def test_rollback_goes_to_the_version_before_or_to_any() -> None:
    async with prepared() as engine:
        with pytest.raises(SwitchRefused, match="no earlier version"):
            await engine.rollback("bot")
        await engine.deploy("v2")
        await engine.deploy("v3")
        assert (await engine.rollback("bot", reason="worse answers", actor="mia")).phase == "succeeded"
        assert engine.registry.active_version() == "v2"
        requested, moved, _ = engine.registry.full_history("bot")[-3:]
        assert (requested.actor, requested.reason, requested.detail["rollback"]) == ("mia", "worse answers", True)
        assert (moved.action, moved.version, moved.previous) == ("rolled back", "v2", "v3")
        assert moved.reason.startswith("worse answers; ")
        await engine.rollback(to="v1")
        assert (await engine.generate("who?")).text == "v1"
        assert engine.registry.get_registry_stats().rollbacks == 2
        test = await engine.start_switch("v2", "ab_test")
        with pytest.raises(OperationInProgress, match=test.operation_id):
            await engine.rollback()


async def test_each_rollback_goes_further_back(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    async with opened(store) as engine:
        for version in VERSIONS:
            engine.registry.register_model(CONFIG, version)
        for version in VERSIONS:
            await engine.deploy(version)
        await engine.rollback(reason="v3 is bad")
        assert engine.registry.active_version() == "v2"
    async with opened(store) as engine:
        await engine.rollback(reason="v2 is bad, too")
        assert engine.registry.active_version() == "v1"
        with pytest.raises(
            SwitchRefused, match=r"no earlier version .* not rolled back from \(v2, v3\); name one: to=…"
        ):
            await engine.rollback()
        await engine.rollback(to="v3")
        assert engine.registry.active_version() == "v3"


async def test_an_automatic_way_back_is_told_with_its_reason() -> None:
    async with prepared() as engine:
        await engine.deploy("v2")
        await engine.call(breach(engine, "error rate 40 %"))
        async with asyncio.timeout(PATIENCE_S):
            while engine.registry.active_version() != "v1" or engine.list_active_switches():
                await asyncio.sleep(0.001)
        assert told(engine)[-3:] == [("requested", "v1"), ("rolled back", "v1"), ("ended", "v1")]
        requested, back, _ = engine.registry.full_history("bot")[-3:]
        assert requested.reason == "error rate 40 %"
        assert back.reason == "error rate 40 %; the candidate generated a token"


async def breach(engine: SwitchingEngine, reason: str) -> None:
    engine.switcher.breached("bot", "v2", reason)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target_version": "v9"}, UnknownVersion, "one of v1, v2, v3"),
    ({"target_version": "v1"}, SwitchRefused, "already the active version"),
    ({"target_version": "v2", "strategy_type": "yolo"}, InvalidInput, "strategy_type"),
    ({"target_version": "v2", "model_id": "cat"}, InvalidInput, "model_id"),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD)
async def test_validation_tells_what_start_switch_would_and_changes_nothing(
    call: dict[str, Any], error: type[Exception], says: str
) -> None:
    async with prepared() as engine:
        before = engine.registry.full_history("bot")
        answer = await engine.validate_switch_request(**({"model_id": "bot"} | call))
        assert not answer and says in str(answer.reason) and isinstance(answer.error, error)
        with pytest.raises(error) as raised:
            await engine.start_switch(**call)
        assert str(raised.value) == answer.reason
        assert engine.registry.full_history("bot") == before


async def test_validation_of_what_is_fine_and_of_what_must_wait() -> None:
    async with prepared() as engine:
        answer = await engine.validate_switch_request("bot", "v2", "canary", {"initial_percentage": 5})
        assert answer and answer.reason is None and answer.plan is not None and answer.plan.candidates == ("v2",)
        assert engine.get_switching_status()["bot"].loaded == ("v1",)
        test = await engine.start_switch("v2", "ab_test")
        answer = await engine.validate_switch_request("bot", "v3")
        assert isinstance(answer.error, OperationInProgress) and answer.plan is not None
        await test.abort()


async def test_a_version_in_use_is_not_deregistered() -> None:
    scripted = backend()
    async with prepared(scripted) as engine:
        with pytest.raises(SwitchRefused, match="active version"):
            await engine.deregister_model("bot", "champion")
        test = await engine.start_switch("v2", "ab_test")
        await test.serving()
        with pytest.raises(SwitchRefused, match=f"candidate of operation {test.operation_id}"):
            await engine.deregister_model("bot", "v2")
        await test.abort()
        await test.done()
        gate = scripted["bot", "v2"].token_gate = Gate()
        asking = asyncio.create_task(engine.generate("who?", version="v2"))
        async with asyncio.timeout(PATIENCE_S):
            while not engine.in_flight():
                await asyncio.sleep(0.001)
        with pytest.raises(SwitchRefused, match=r"1 request\(s\) are on it"):
            await asyncio.to_thread(engine.registry.deregister_model, "bot", "v2")
        gate.let(10)
        assert (await asking).text == "v2"
        await engine.pin("v2")
        with pytest.raises(SwitchRefused, match="pinned"):
            await engine.deregister_model("bot", "v2")
        assert [v.version for v in engine.registry.get_model_versions()] == ["v1", "v2", "v3"]


async def test_a_deregistered_version_is_unloaded_and_its_name_stays_taken() -> None:
    scripted = backend()
    async with prepared(scripted) as engine:
        await engine.load("v2")
        engine.registry.set_alias("next", "v2", model_id="bot")
        assert engine.registry.deregister_model("bot", "next", actor="mia", reason="superseded") is True
        assert scripted["bot", "v2"].counts.stops == 1
        assert engine.get_switching_status()["bot"].loaded == ("v1",)
        assert engine.registry.aliases("bot") == {"champion": "v1"}
        with pytest.raises(UnknownVersion, match="one of v1, v3"):
            await engine.start_switch("v2")
        with pytest.raises(DuplicateVersion, match="prompt_template"):
            engine.registry.register_model(CONFIG | {"prompt_template": "Q: {prompt}"}, "v2")
        engine.registry.register_model(CONFIG, "v2")
        assert (await engine.deploy("v2")).phase == "succeeded"
        actions = [entry.action for entry in engine.registry.full_history("bot", version="v2")]
        assert actions[:4] == ["registered", "alias set", "deregistered", "registered"]
        assert len(engine.table("registry_history")) == len(engine.registry.full_history("bot"))


# --- max_version_history ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def crowded() -> AsyncIterator[SwitchingEngine]:
    """v1 serves, v2 and v3 are registered, and there is no room for more."""
    config = ModelSwitchingConfig(max_version_history=3)
    async with SwitchingEngine(config, store=":memory:", backends={"scripted": backend()}) as engine:
        for version in VERSIONS:
            engine.registry.register_model(CONFIG, version)
        await engine.deploy("v1")
        yield engine


def names(engine: SwitchingEngine) -> list[str]:
    return [one.version for one in engine.registry.get_model_versions()]


async def test_a_version_that_makes_room_is_gone_for_switches_before_the_disk_has_it() -> None:
    async with crowded() as engine:
        keep, note = engine.registry._keep, engine.registry._note
        at_disk, written = threading.Event(), threading.Event()

        def kept(entry: HistoryEntry, version: ModelVersion | None) -> object:
            if entry.action == "deregistered":
                at_disk.set()
                assert written.wait(PATIENCE_S)
            return keep(entry, version)

        def noted(entry: HistoryEntry) -> Future[None] | None:
            safe = note(entry)
            if entry.action != "deregistered" or safe is None:
                return safe
            at_disk.set()
            return slow.submit(lambda: (written.wait(PATIENCE_S), safe.result())[1])

        engine.registry._keep, engine.registry._note = kept, noted
        with ThreadPoolExecutor() as slow:
            registering = asyncio.create_task(asyncio.to_thread(engine.registry.register_model, CONFIG, "v4"))
            assert await asyncio.to_thread(at_disk.wait, PATIENCE_S)
            try:
                with pytest.raises(UnknownVersion, match="'v2'"):
                    await engine.start_switch("v2", "ab_test")
                assert not registering.done(), "it returns once what it did is safe"
            finally:
                written.set()
            await registering
        assert names(engine) == ["v1", "v3", "v4"]
        table = engine.table("registry_history")
        assert list(table[table["action"] == "deregistered"]["version"]) == ["v2"]


async def test_a_version_that_a_switch_has_taken_makes_no_room() -> None:
    async with crowded() as engine:
        await engine.load("v3")
        test = await engine.start_switch("v2", "ab_test")
        await asyncio.to_thread(engine.registry.register_model, CONFIG, "v4")
        assert names(engine) == ["v1", "v2", "v4"]
        assert "v3" not in engine.get_switching_status()["bot"].loaded, "its instance went with it"
        await test.serving()
        assert (await test.promote()).phase == "succeeded"
        assert engine.registry.active_version() == "v2"


async def test_a_switch_whose_version_makes_room_while_it_is_planned_is_refused_by_name() -> None:
    async with crowded() as engine:
        check, planned, go = engine._parts.preflight.check, asyncio.Event(), asyncio.Event()
        here = asyncio.get_running_loop()

        async def slowly(model_id: str, target: str, strategy: Strategy, stable: str | None) -> None:
            here.call_soon_threadsafe(planned.set)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go.wait(), here))
            await check(model_id, target, strategy, stable)

        engine._parts.preflight.check = slowly  # type: ignore[method-assign]  # where the time passes
        starting = asyncio.create_task(engine.start_switch("v2", "ab_test"))
        await planned.wait()
        await asyncio.to_thread(engine.registry.register_model, CONFIG, "v4")
        go.set()
        with pytest.raises(UnknownVersion, match="'v2'"):
            await starting
        assert not engine.list_active_switches() and names(engine) == ["v1", "v3", "v4"]


async def test_versions_registered_on_the_engines_loop_and_beside_it_wait_for_nobody() -> None:
    async with crowded() as engine:

        async def on_the_loop(version: str) -> str:
            return engine.registry.register_model(CONFIG, version)

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(
                *(engine.call(on_the_loop(f"a{n}")) for n in range(5)),
                *(asyncio.to_thread(engine.registry.register_model, CONFIG, f"b{n}") for n in range(5)),
            )
        assert len(names(engine)) == 3 and "v1" in names(engine)


# --- a notebook run again from the top -------------------------------------------------------------------------------


async def test_a_notebook_is_run_again_from_the_top(tmp_path: Path) -> None:
    """Twice in one kernel, and once in a later one."""
    store = tmp_path / "s.duckdb"

    async def cells(engine: SwitchingEngine) -> tuple[str, str]:
        for version in VERSIONS[:2]:
            engine.registry.register_model(CONFIG, version, metadata={"n": version}, tags={"team": "a"})
        deployed = await engine.deploy("v1")
        assert (deployed.phase, deployed.finished, deployed.winner) == ("succeeded", True, "v1")
        assert (await engine.generate("who?")).text == "v1"
        return deployed.operation_id, deployed.reason

    async with opened(store) as engine:
        first, again = await cells(engine), await cells(engine)
        assert again == (first[0], "it serves already")
        with pytest.raises(SwitchRefused, match="already the active"):
            await engine.start_switch("v1", "immediate")
        with pytest.raises(StoreError, match=r"open in this process, by another engine.*await engine\.aclose\(\)"):
            SwitchingEngine(store=store)
    async with opened(store) as engine:
        assert (await cells(engine))[0] != first[0]
        await cells(engine)
        assert len(engine.registry.full_history("bot")) == 9, "two versions, their tags, v1 promoted once, two switches"


SERVED = {"model_id": "bot", "model": "m", "backend": "openai"}


@pytest.mark.parametrize("engine_args", [{}, {"base_ur": "http://127.0.0.1:9/v1"}, {"base_url": "localhost:8000"}])
async def test_arguments_that_a_server_cannot_have_are_refused_at_registration(engine_args: dict[str, Any]) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidInput, match=r"engine_args\.base_ur"):
            engine.registry.register_model(SERVED | {"engine_args": engine_args}, "gpt")
        engine.registry.register_model(SERVED | {"engine_args": {"base_url": "http://127.0.0.1:9/v1"}}, "gpt")
    async with SwitchingEngine(store=":memory:", backends={"openai": backend()}) as engine:
        engine.registry.register_model(SERVED | {"engine_args": engine_args}, "gpt")


async def test_arguments_that_vllm_does_not_know_are_refused_at_registration(tmp_path: Path) -> None:
    if not declared_names():
        pytest.skip("no vLLM is installed")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    config = {"model_id": "bot", "model": str(tmp_path)}
    async with opened() as engine:
        with pytest.raises(InvalidInput, match="did you mean 'max_model_len'"):
            engine.registry.register_model(config | {"engine_args": {"max_modl_len": 64}}, "v1")
        engine.registry.register_model(config | {"engine_args": {"max_model_len": 64}}, "v1")


async def test_a_name_is_free_again_unless_something_was_answered_or_switched_under_it(tmp_path: Path) -> None:
    store, other = tmp_path / "s.duckdb", CONFIG | {"prompt_template": "Q: {prompt}"}
    async with opened(store) as engine:
        for version in VERSIONS:
            engine.registry.register_model(CONFIG, version)
        await engine.generate("who?", version="v2")
        await engine.load("v3")
        for version in ("v1", "v2", "v3"):
            await engine.deregister_model("bot", version)
    async with opened(store) as engine:
        engine.registry.register_model(other, "v1")
        for version in ("v2", "v3"):
            with pytest.raises(DuplicateVersion, match="prompt_template differs.*answers are recorded under it"):
                engine.registry.register_model(other, version)
    async with opened(store) as engine:
        assert engine.registry.get("bot", "v1").config.prompt_template == "Q: {prompt}"
        assert [e.action for e in engine.registry.full_history(version="v1")] == [
            "registered",
            "deregistered",
            "registered",
        ]


async def test_what_shares_its_traffic_is_not_yet_deployed() -> None:
    async with prepared() as engine:
        test = await engine.start_switch("v2", "ab_test")
        await test.serving()
        for version in ("v1", "v2"):
            with pytest.raises(OperationInProgress, match=test.operation_id):
                await engine.deploy(version)
        await test.abort()
        await test.done()
        assert (await engine.deploy("bot@champion")).reason == "it serves already"


# --- restarts ---------------------------------------------------------------------------------------------------------


async def test_a_restart_knows_everything(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    async with opened(store) as engine:
        for version in VERSIONS:
            engine.registry.register_model(CONFIG, version, metadata={"n": version}, tags={"team": "a"})
        await engine.deploy("v1")
        await engine.deploy("v2")
        await engine.rollback()
        engine.registry.set_alias("gold", "v3", model_id="bot")
        engine.registry.set_alias("old", "v2", model_id="bot")
        engine.registry.delete_alias("old", model_id="bot")
        engine.registry.set_tag("v3", "team", "b", model_id="bot")
        await engine.deregister_model("bot", "v2")
        before = engine.registry.full_history("bot")
    async with opened(store) as engine:
        registry = engine.registry
        assert registry.full_history("bot") == before
        assert registry.aliases("bot") == {"champion": "v1", "gold": "v3"}
        assert (registry.tags("v3", model_id="bot"), registry.tags("v1", model_id="bot")) == (
            {"team": "b"},
            {"team": "a"},
        )
        assert [(v.version, v.metadata["n"]) for v in registry.get_model_versions()] == [("v1", "v1"), ("v3", "v3")]
        with pytest.raises(DuplicateVersion):
            registry.register_model(CONFIG | {"prompt_template": "Q: {prompt}"}, "v2")
        await engine.deploy("v3")
        sequences = [entry.sequence for entry in registry.full_history("bot")]
        assert sequences == list(range(1, len(sequences) + 1))


async def test_a_backend_that_is_missing_after_a_restart_is_named(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    async with opened(store) as engine:
        for version in VERSIONS:
            engine.registry.register_model(CONFIG, version)
        await engine.deploy("v1")
    says = r"'scripted'; allowed: one of openai, vllm; for bot:v2, .*SwitchingEngine\(backends=\{'scripted': …\}\)"
    async with SwitchingEngine(store=store) as engine:
        for call in (engine.deploy("v2"), engine.plan_switch("v2"), engine.load("v2"), engine.rollback(to="v2")):
            with pytest.raises(InvalidInput, match=says):
                await call
        assert "for bot:v2" in str((await engine.validate_switch_request("bot", "v2")).reason)
        with pytest.raises(AbswitchError, match="for bot:v1, give the engine one"):
            await engine.generate("who?")
        with pytest.raises(InvalidInput, match="for bot:v2"):
            await engine.generate("who?", version="v2")
        assert not engine.list_active_switches()


async def test_a_switch_that_was_running_still_has_its_challenger_after_a_restart(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    async with opened(store) as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model(CONFIG, version)
        await engine.deploy("v1")
        test = await engine.start_switch("v2", "ab_test")
        await test.serving()
    async with opened(store) as engine:
        assert engine.registry.aliases("bot") == {"champion": "v1", "challenger": "v2"}
        (running,) = engine.list_active_switches()
        assert await engine.abort_switch(running.operation_id)
        await engine.wait_for_switch(running.operation_id, lambda _: False)
        assert engine.registry.aliases("bot") == {"champion": "v1"}


WALK = """
import asyncio, os, signal, sys
from concurrent.futures import Future
from pathlib import Path
from abswitch import SwitchingEngine
from abswitch.serving.scripted import ScriptedBackend
from abswitch.store.recorder import Recorder

store, fatal, lose = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "lost"
writes = 0
history, version = Recorder.history, Recorder.version

def counted(write):
    def call(self, *arguments):
        global writes
        writes += 1
        if writes == fatal and lose:  # before it is safe
            os.kill(os.getpid(), signal.SIGKILL)
        done = write(self, *arguments)
        if writes == fatal:
            done.result()
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call

Recorder.history, Recorder.version = counted(history), counted(version)

async def main():
    backend = ScriptedBackend(answers={v: (lambda _, v=v: (v,)) for v in ("v1", "v2", "v3")})
    engine = SwitchingEngine(store=store, backends={"scripted": backend})
    for name in ("v1", "v2", "v3"):
        engine.registry.register_model({"model_id": "bot", "model": "script", "backend": "scripted"}, name)
        print("registered", name, flush=True)
    await engine.deploy("v1")
    engine.registry.set_alias("gold", "v3", model_id="bot")
    print("alias gold", flush=True)
    await engine.deploy("v2")
    await engine.rollback()
    await engine.deregister_model("bot", "v2")
    print("deregistered v2", flush=True)
    print("writes", writes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
WRITES = 14


def walk(store: Path, fatal: int, when: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", WALK, str(store), str(fatal), when],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    return ran.stdout.splitlines()


def test_the_walk_has_as_many_writes_as_are_killed(tmp_path: Path) -> None:
    assert walk(tmp_path / "s.duckdb", 10_000, "kept")[-1] == f"writes {WRITES}"


@pytest.mark.parametrize("when", ["kept", "lost"])
@pytest.mark.parametrize("fatal", range(1, WRITES + 1))
async def test_kill_9_at_each_write_of_the_history(tmp_path: Path, fatal: int, when: str) -> None:
    store = tmp_path / "s.duckdb"
    said = walk(store, fatal, when)
    async with opened(store) as engine:
        registry = engine.registry
        known = set(registry.list_models())
        names = {v.version for v in registry.get_model_versions("bot")} if known else set()
        promised = {line.split()[1] for line in said if line.startswith("registered")}
        promised -= {line.split()[1] for line in said if line.startswith("deregistered")} | {"v2"}
        assert promised <= names, "what was acknowledged is there"
        if not known:
            return
        if "alias gold" in said:
            assert registry.aliases("bot")["gold"] == "v3"
        history, active = registry.full_history("bot"), registry.active_version("bot")
        assert [e.sequence for e in history] == list(range(1, len(history) + 1))
        journalled = engine.switcher.operations.values()
        if active is not None:
            assert (await engine.generate("who?")).text == active, "what the history says is what serves"
            assert active in names
            assert registry.aliases("bot")["champion"] == active
        running = {o.candidate for o in journalled if not o.phase.is_final}
        assert {v for a, v in registry.aliases("bot").items() if a == "challenger"} == running
        for operation in engine.list_active_switches():
            assert await engine.abort_switch(operation.operation_id)
            await engine.wait_for_switch(operation.operation_id, lambda _: False)
        for name in VERSIONS:
            if name not in names:
                registry.register_model(CONFIG, name)
        if registry.active_version("bot") != "v3":
            assert (await engine.deploy("v3")).phase == "succeeded"
        assert registry.aliases("bot")["champion"] == "v3"
        assert list(engine.table("registry_history").query("model_id == 'bot'").sort_values("sequence").action) == [
            e.action for e in registry.full_history("bot")
        ]


def test_blocking_calls_work_without_an_event_loop() -> None:
    engine = SwitchingEngine(store=":memory:", backends={"scripted": backend()})
    for version in ("v1", "v2"):
        engine.registry.register_model(CONFIG, version)
    assert engine.registry.switch_model("bot", "v1") and engine.registry.switch_model("bot", "v2")
    assert engine.registry.deregister_model("bot", "v1")
    with pytest.raises(SwitchRefused, match="no earlier version"):
        engine.run(engine.rollback())
    assert engine.run(engine.generate("who?")).text == "v2"
    engine.close()


async def test_a_rollback_whose_version_does_not_load_leaves_what_serves() -> None:
    scripted = backend()
    async with prepared(scripted) as engine:
        await engine.deploy("v2")
        await engine.deploy("v3")
        await engine.deregister_model("bot", "v1")
        engine.registry.register_model(CONFIG, "v1")
        scripted._configure = lambda instance: setattr(instance, "load_error", "gone from the disk")
        with pytest.raises(SwitchFailed, match=r"gone from the disk.*'v3' still serves"):
            await engine.rollback(to="v1")
        assert engine.registry.active_version() == "v3"
        assert told(engine)[-2:] == [("requested", "v1"), ("ended", "v1")]
