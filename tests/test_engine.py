"""The facade: everything put together on scripted instances and a real DuckDB store."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from abswitch import (
    ABTestStrategy,
    CanaryStrategy,
    ExactMatch,
    ModelSwitchingConfig,
    SwitchingEngine,
    SwitchingStrategyType,
)
from abswitch.errors import (
    EngineClosed,
    InvalidInput,
    NoActiveVersion,
    OperationInProgress,
    QueueFull,
    StoreError,
    SwitchFailed,
    SwitchRefused,
    UnknownModel,
    UnknownVersion,
)
from abswitch.scoring import Sample
from abswitch.serving.scripted import Gate, ScriptedBackend, ScriptedInstance
from abswitch.store.reader import Reader
from tests.patience import PATIENCE_S

CONFIG = {"model_id": "bot", "model": "script", "backend": "scripted"}


def backend() -> ScriptedBackend:
    return ScriptedBackend(answers={v: (lambda _, v=v: ("I ", "am ", v)) for v in ("v1", "v2")})  # type: ignore[misc]


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SwitchingEngine]:
    scripted = backend()
    async with SwitchingEngine(
        store=":memory:", scorers=[ExactMatch()], record_text=True, backends={"scripted": scripted}
    ) as made:
        made.scripted = scripted  # type: ignore[attr-defined]  # for the tests that reach in
        for version in ("v1", "v2"):
            made.registry.register_model(CONFIG, version)
        yield made


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_generate_and_stream_say_the_same(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    completion = await engine.generate("who?", unit_id="u1", reference="I am v1")
    assert (completion.text, completion.served_version, completion.unit_id) == ("I am v1", "v1", "u1")
    assert 0 <= completion.queue_s <= completion.first_token_s <= completion.total_s
    chunks = [chunk async for chunk in engine.stream("who?")]
    assert "".join(chunk.text for chunk in chunks) == "I am v1"
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    rows = engine.query("SELECT * FROM requests ORDER BY admitted_mono_s")
    assert list(rows["output"]) == ["I am v1", "I am v1"]
    await engine.scored()
    scores = engine.query("SELECT request_id, scorer, value FROM scores")
    assert scores.to_dict("records") == [
        {"request_id": completion.request_id, "scorer": "exact_match", "value": 1.0}
    ], "the stream had no reference, so it has no score"


async def test_the_same_coroutines_work_on_the_engines_own_loop(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")

    async def inside() -> tuple[str, str]:
        text = (await engine.generate("who?")).text
        return text, "".join([chunk.text async for chunk in engine.stream("who?")])

    assert await engine.call(inside()) == ("I am v1", "I am v1")


def test_the_blocking_form_for_scripts() -> None:
    engine = SwitchingEngine(store=":memory:", backends={"scripted": backend()})
    engine.registry.register_model(CONFIG, "v1")
    engine.run(engine.deploy("v1"))
    assert engine.run(engine.generate("who?")).text == "I am v1"
    engine.close()


async def test_a_blocked_caller_does_not_stop_the_engine(engine: SwitchingEngine) -> None:
    """A long cell blocks the kernel's loop; what the engine was doing goes on."""
    await engine.deploy("v1")
    handle = await engine.start_switch("v2")
    waiting = threading.Thread(target=lambda: engine.run(handle.done()))
    waiting.start()
    waiting.join(10)  # this blocks the caller's loop; the switch must finish all the same
    assert handle.status.phase == "succeeded"


async def test_leaving_a_stream_early_ends_the_generation(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    scripted: ScriptedBackend = engine.scripted  # type: ignore[attr-defined]
    gate = scripted["bot", "v1"].token_gate = Gate()
    gate.let(1)
    async with aclosing(engine.stream("who?")) as chunks:
        async for _ in chunks:
            break
    await eventually(lambda: not engine.in_flight())
    assert scripted["bot", "v1"].counts.cancelled == 1


async def test_a_caller_that_is_cancelled_releases_its_request(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    scripted: ScriptedBackend = engine.scripted  # type: ignore[attr-defined]
    scripted["bot", "v1"].token_gate = Gate()
    task = asyncio.create_task(engine.generate("who?"))
    await eventually(lambda: len(engine.in_flight()) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: not engine.in_flight())
    (row,) = engine.query("SELECT error_type FROM requests WHERE arm = 'stable'").itertuples(index=False)
    assert row.error_type == "Cancelled"


async def test_the_documented_calls(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    result = await engine.start_switch(
        target_version="v2",
        strategy_type=SwitchingStrategyType.AB_TEST,
        strategy_config={"traffic_percentage": 20, "test_duration_hours": 24},
    )
    await result.serving()
    status = engine.get_switching_status()
    assert status["bot"].shares == {"v2": 0.2, "v1": 0.8}
    assert "v1 → v2: evaluating at 20%" in str(status)
    assert status.to_dict()["models"][0]["operation"]["phase"] == "evaluating"
    with pytest.raises(OperationInProgress, match=result.operation_id):
        await engine.start_switch("v2")
    assert await engine.abort_switch(result.operation_id)
    assert (await result.done()).phase == "aborted"
    assert await engine.abort_switch(result.operation_id) is False
    stats = engine.switcher.get_switcher_stats()
    assert (stats.started, stats.succeeded, stats.aborted) == (2, 1, 1)
    phases = engine.query(
        "SELECT phase_to FROM transitions WHERE operation_id = ? ORDER BY sequence", [result.operation_id]
    )
    assert list(phases["phase_to"])[-3:] == ["rolling back", "draining", "aborted"]


async def test_promote_and_keep(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    first = await engine.start_switch("v2", "ab_test")
    await first.serving()
    await first.keep()
    assert {(await engine.generate("who?")).text for _ in range(10)} == {"I am v1"}
    second = await engine.start_switch("v2", "ab_test")
    await second.serving()
    await second.pause()
    await second.resume()
    await second.promote("it is better")
    assert {(await engine.generate("who?")).text for _ in range(10)} == {"I am v2"}
    assert (await second.done()).reason == "it is better"
    assert "succeeded" in repr(second)


async def test_only_true_promotes(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    switch = await engine.start_switch("v2", SwitchingStrategyType.AB_TEST)
    await switch.serving()
    for unsure in ("no", None, 1):
        with pytest.raises(InvalidInput, match="promote: got"):
            await engine.conclude_switch(switch.operation_id, promote=unsure, reason="?")  # type: ignore[arg-type]
    assert not switch.status.promoted and not switch.status.finished


async def test_a_switch_is_found_by_its_id_and_an_unknown_one_names_some_that_there_are(
    engine: SwitchingEngine,
) -> None:
    with pytest.raises(InvalidInput, match="none was started yet"):
        engine.get_switch("op-x")
    for number in range(7):
        await engine.deploy(f"v{number % 2 + 1}")
    ended = list(engine.switcher.operations)
    open_ = await engine.start_switch("v2", SwitchingStrategyType.AB_TEST)
    again = engine.get_switch(open_.operation_id)
    await again.serving()
    assert again.status.operation_id == open_.operation_id
    named = ", ".join([open_.operation_id, *reversed(ended[-4:])])
    for unknown in ("op-x", None, ["op-x"]):
        with pytest.raises(InvalidInput, match=f"allowed: one of {named} and 3 earlier ones$"):
            engine.get_switch(unknown)  # type: ignore[arg-type]
    for call in (engine.abort_switch("op-x"), engine.wait_for_switch("op-x", lambda _: True)):
        with pytest.raises(InvalidInput, match="and 3 earlier ones"):
            await call
    with pytest.raises(InvalidInput, match="and 3 earlier ones"):
        engine.get_switch_status("op-x")
    assert (await again.abort()) is True


async def test_a_model_that_is_not_there_has_no_status(engine: SwitchingEngine) -> None:
    with pytest.raises(UnknownModel, match=r"model_id: got 'bt'; allowed: one of bot \(did you mean 'bot'\?\)"):
        _ = engine.get_switching_status()["bt"]


async def test_a_version_asked_by_name_takes_no_part_in_comparisons(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    assert (await engine.generate("who?", version="v2")).text == "I am v2"
    assert await engine.ask("v2")("who?") == "I am v2"
    assert set(engine.query("SELECT arm FROM requests")["arm"]) == {"pinned"}
    assert engine.get_switching_status()["bot"].loaded == ("v1", "v2")
    assert (await engine.load("v2")).load_s >= 0


async def test_a_candidate_that_does_not_load_leaves_the_stable_version_serving(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    scripted: ScriptedBackend = engine.scripted  # type: ignore[attr-defined]
    scripted._configure = lambda instance: setattr(instance, "load_error", "bad weights")
    with pytest.raises(SwitchFailed, match=r"bad weights.*'v1' still serves"):
        await engine.deploy("v2")
    assert (await engine.generate("who?")).text == "I am v1"


BAD_SWITCHES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target_version": "v3"}, UnknownVersion, "one of v1, v2"),
    ({"target_version": "v1"}, SwitchRefused, "already the active version"),
    ({"target_version": "v2", "strategy_type": "canary2"}, InvalidInput, "strategy_type"),
    ({"target_version": "v2", "strategy_type": "ab_test", "strategy_config": {"share": 1}}, InvalidInput, "share"),
    (
        {"target_version": "v2", "strategy_type": "ab_test", "strategy_config": {"traffic_percentage": 101}},
        InvalidInput,
        "traffic_percentage",
    ),
    ({"target_version": "v2", "model_id": "cat"}, InvalidInput, "model_id"),
    ({"target_version": "v2", "experiment": "no spaces"}, InvalidInput, "experiment"),
    ({"target_version": "v2", "strategy_type": "ab_test", "plan": {"a": 1}}, InvalidInput, "plan: got {'a': 1}"),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD_SWITCHES)
async def test_a_bad_switch_is_refused_before_anything_changed(
    engine: SwitchingEngine, call: dict[str, Any], error: type[Exception], says: str
) -> None:
    await engine.deploy("v1")
    with pytest.raises(error, match=says):
        await engine.start_switch(**call)
    assert len(engine.switcher.operations) == 1
    assert engine.get_switching_status()["bot"].loaded == ("v1",)


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": "x", "unit_id": ""}, "unit_id"),
    ({"prompt": "x", "unit_id": 7}, "unit_id"),
    ({"prompt": "x", "unit_id": "\ud800"}, "unit_id"),
    ({"prompt": "x", "request_id": "half a \ud83d"}, "request_id"),
    ({"prompt": "x", "reference": 7}, "reference"),
    ({"prompt": "x", "temperature": -1}, "sampling.temperature"),
    ({"prompt": "x", "max_token": 1}, "sampling.max_token"),
    ({"prompt": "x", "version": "v9"}, "version"),
    ({"prompt": "x", "model_id": "cat"}, "model_id"),
]


@pytest.mark.parametrize(("call", "field"), BAD_REQUESTS)
async def test_a_bad_request_names_the_field_and_leaves_no_row(
    engine: SwitchingEngine, call: dict[str, Any], field: str
) -> None:
    await engine.deploy("v1")
    with pytest.raises(InvalidInput) as caught:
        await engine.generate(**call)
    assert caught.value.field == field
    assert engine.query("SELECT count(*) AS n FROM requests")["n"][0] == 0


async def test_no_version_no_answer(engine: SwitchingEngine) -> None:
    with pytest.raises(NoActiveVersion):
        await engine.generate("who?")


async def test_scores_by_hand_are_checked_and_kept(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    completion = await engine.generate("who?")
    engine.record_score(completion.request_id, "thumbs_up", True)
    with pytest.raises(Exception, match="finite number"):
        engine.record_score(completion.request_id, "thumbs_up", float("nan"))
    for value in (float("nan"), None, "good"):
        with pytest.raises(InvalidInput, match="value: got .*; allowed: a finite number, True or False"):
            engine.feedback(completion.request_id, value)  # type: ignore[arg-type]
    assert list(engine.query("SELECT value FROM scores WHERE scorer = 'thumbs_up'")["value"]) == [1.0]


async def test_answers_that_scorers_did_not_come_to_are_counted_and_no_request_waits() -> None:
    gate = threading.Event()

    def slow(_: Sample) -> float:
        gate.wait(PATIENCE_S)
        return 1.0

    async with SwitchingEngine(store=":memory:", scorers=[slow], backends={"scripted": backend()}) as engine:
        engine.registry.register_model(CONFIG, "v1")
        await engine.deploy("v1")
        engine._parts.grader._backlog = 3
        for n in range(5):
            await engine.generate("who?", request_id=f"r{n}")
        status = engine.get_switching_status()
        assert status.answers_unscored == 2 and "2 answers were not scored" in str(status)
        gate.set()
        await engine.scored()
        rows = engine.query("SELECT value, error FROM scores ORDER BY request_id")
        assert list(rows["value"].notna()) == [True, True, True, False, False]
        assert rows["error"][4] == "not scored: 3 answers were waiting to be scored"


async def test_prompts_and_outputs_are_kept_only_when_asked_for() -> None:
    async with SwitchingEngine(store=":memory:", backends={"scripted": backend()}) as engine:
        engine.registry.register_model(CONFIG, "v1")
        await engine.deploy("v1")
        await engine.generate("a secret")
        row = engine.query("SELECT prompt, output FROM requests").iloc[0]
        assert row.isna().all()


async def test_a_second_process_of_work_goes_on_with_new_epochs(tmp_path: Path) -> None:
    for expected in (1, 2):
        async with SwitchingEngine(store=tmp_path / "s.duckdb", backends={"scripted": backend()}) as engine:
            engine.registry.register_model(CONFIG, "v1")
            await engine.deploy("v1")
            await engine.generate("who?")
            assert engine.query("SELECT max(route_epoch) AS e FROM requests")["e"][0] == expected


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("abswitch")}


def none_but(before: set[threading.Thread]) -> bool:
    """Whether every thread that came since has ended; those of earlier tests may end meanwhile."""
    for thread in engine_threads() - before:
        thread.join(PATIENCE_S)
    return engine_threads() <= before


async def test_an_engine_its_registry_and_its_store_say_what_they_are(tmp_path: Path) -> None:
    engine = SwitchingEngine(store=tmp_path / "e.duckdb", backends={"scripted": backend()})
    assert repr(engine.registry) == "<DynamicModelRegistry: no model is registered>"
    for version in ("v1", "v2"):
        engine.registry.register_model(CONFIG, version)
    engine.registry.register_model(CONFIG | {"model_id": "cat"}, "v1")
    await engine.deploy("v1", model_id="bot")
    models = "bot (2 versions, v1 active), cat (1 version, none active)"
    assert repr(engine.registry) == f"<DynamicModelRegistry: {models}>"
    assert repr(engine) == f"<SwitchingEngine: {models}; store {tmp_path / 'e.duckdb'}>"
    assert repr(engine.store) == f"<Recorder: {tmp_path / 'e.duckdb'}>"
    await engine.aclose()
    assert repr(engine) == f"<SwitchingEngine: shut down; store {tmp_path / 'e.duckdb'}>"
    assert repr(engine.store) == f"<Recorder: {tmp_path / 'e.duckdb'}, closed>"


async def test_a_typed_strategy_says_itself_what_it_is(engine: SwitchingEngine) -> None:
    await engine.deploy("v1")
    switch = await engine.start_switch("v2", strategy_config=ABTestStrategy(traffic_percentage=20))
    assert switch.status.strategy == "ab_test"
    await switch.abort()
    await switch.done()
    assert (await engine.plan_switch("v2", None, CanaryStrategy())).strategy == "canary"
    assert (await engine.plan_switch("v2")).strategy == "immediate", "as configured"
    with pytest.raises(InvalidInput, match="strategy_type: got ''"):
        await engine.plan_switch("v2", "")


async def test_a_model_that_is_not_there_has_no_switches_and_no_requests(engine: SwitchingEngine) -> None:
    assert not engine.list_active_switches("bot") and not engine.in_flight("bot") and not engine.waiting("bot")
    for look in (engine.list_active_switches, engine.in_flight, engine.waiting):
        with pytest.raises(UnknownModel, match="model_id: got 'nope'; allowed: one of bot"):
            look("nope")


async def test_after_closing_nothing_serves_and_the_registry_says_why_it_takes_nothing() -> None:
    engine = SwitchingEngine(store=":memory:", backends={"scripted": backend()})
    engine.registry.register_model(CONFIG, "v1")
    await engine.deploy("v1")
    assert "bot: v1 100%" in str(engine.get_switching_status())
    await engine.aclose()
    status = engine.get_switching_status()
    assert status.closed and status["bot"].shares == {} and status["bot"].loaded == ()
    assert "bot: nothing serves" in str(status) and "the engine was shut down" in str(status)
    registry = engine.registry
    for refused in (
        lambda: registry.register_model(CONFIG, "v2"),
        lambda: registry.set_alias("gold", "v1"),
        lambda: registry.set_tag("v1", "stage", "ok"),
        lambda: registry.deregister_model("bot", "v1"),
        lambda: registry.switch_model("bot", "v1"),
    ):
        with pytest.raises(EngineClosed, match="the engine was shut down"):
            refused()
    assert [one.version for one in registry.get_model_versions("bot")] == ["v1"], "it may still be read"
    with pytest.raises(EngineClosed):
        engine.record_score("r", "judge", 1.0)
    assert engine.get_switching_status().rows_missing == 0, "nothing was taken and then dropped"


async def test_closing_leaves_no_thread_and_nothing_usable(tmp_path: Path) -> None:
    before = engine_threads()
    engine = SwitchingEngine(store=tmp_path / "s.duckdb", backends={"scripted": backend()})
    engine.registry.register_model(CONFIG, "v1")
    await engine.deploy("v1")
    await engine.aclose()
    engine.close()
    assert none_but(before)
    with pytest.raises(EngineClosed):
        await engine.generate("who?")
    with pytest.raises(EngineClosed):
        await engine.start_switch("v1")


async def test_requests_under_way_when_the_engine_ends_are_cancelled_and_nobodys_failure(tmp_path: Path) -> None:
    """Counted as errors they would say something about the version that happened to answer them."""
    scripted, store = backend(), tmp_path / "s.duckdb"
    engine = SwitchingEngine(store=store, backends={"scripted": scripted})
    for version in ("v1", "v2"):
        engine.registry.register_model(CONFIG, version)
    await engine.deploy("v1")
    test = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 50})
    await test.serving()
    gate = Gate()
    for instance in scripted.made:
        instance.token_gate = gate
    silent = [asyncio.create_task(engine.generate("who?", unit_id=f"u{at}")) for at in range(8)]
    await eventually(lambda: gate.waiting == 8)
    gate.let(4)  # these have a token by now
    await eventually(lambda: gate.waiting == 8)
    await engine.aclose()
    ended = await asyncio.gather(*silent, return_exceptions=True)
    assert [type(one) for one in ended] == [EngineClosed] * 8
    with Reader(store) as reader:
        rows = reader.query("SELECT error_type, fallback FROM requests")
    assert list(rows.error_type) == ["Cancelled"] * 8 and not any(rows.fallback)


async def test_a_request_that_waits_for_a_version_is_told_that_the_engine_ends() -> None:
    scripted = backend()
    engine = SwitchingEngine(store=":memory:", backends={"scripted": scripted})
    engine.registry.register_model(CONFIG, "v1")
    gate = Gate()
    scripted._configure = lambda instance: setattr(instance, "load_gate", gate)
    handle = await engine.start_switch("v1")
    waits = asyncio.create_task(engine.generate("who?"))
    await eventually(lambda: engine._parts.queue.waiting() == 1)
    closing = asyncio.create_task(engine.aclose())
    with pytest.raises(EngineClosed, match="while the request waited"):
        await waits
    gate.open()
    await closing
    assert handle.operation_id


async def test_requests_that_wait_are_seen_one_by_one_from_any_thread() -> None:
    scripted = backend()
    gate = Gate()
    scripted._configure = lambda instance: setattr(instance, "load_gate", gate)
    async with SwitchingEngine({"max_queued_requests": 2}, store=":memory:", backends={"scripted": scripted}) as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model(CONFIG, version)
        handle = await engine.start_switch("v1")
        routed = asyncio.create_task(engine.generate("who?", request_id="routed", unit_id="ann"))
        await eventually(lambda: len(engine.waiting()) == 1)
        named = asyncio.create_task(engine.generate("who?", request_id="named", version="v2"))
        await eventually(lambda: len(engine.waiting("bot")) == 2)
        with pytest.raises(QueueFull, match="max_queued_requests = 2"):
            await engine.generate("who?", version="v2")
        first, second = await asyncio.to_thread(engine.waiting)
        assert (first.request_id, first.model_id, first.unit_id, first.version) == ("routed", "bot", "ann", None)
        assert handle.operation_id in first.reason and first.waited_s >= second.waited_s >= 0.0
        assert (second.request_id, second.version, second.reason) == ("named", "v2", "version 'v2' is being loaded")
        assert engine.get_switching_status()["bot"].waiting == 2 and engine.in_flight() == ()
        gate.open()
        await asyncio.gather(routed, named)
        assert engine.waiting() == ()


async def test_the_status_shows_the_tier_of_every_version_that_is_held() -> None:
    def sized(instance: ScriptedInstance) -> None:
        instance.device_bytes = 2**30

    config = {"device_cache_memory_limit_gb": 1.5}
    async with SwitchingEngine(
        config, store=":memory:", backends={"scripted": ScriptedBackend(configure=sized)}
    ) as engine:
        for version in ("v1", "v2", "v3"):
            engine.registry.register_model(CONFIG, version)
        assert "resident" not in str(engine.get_switching_status())
        await engine.load("v1")
        await engine.load("v2")  # which needs the room of v1
        status = engine.get_switching_status()
        assert status["bot"].tiers == {"v2": "resident", "v1": "sleeping"} and status["bot"].loaded == ("v2",)
        assert "0 in flight, 0 waiting; v2 resident, v1 sleeping" in str(status["bot"])
        assert "v2 resident, v1 sleeping" in status._repr_html_()
        assert json.loads(json.dumps(status.to_dict()))["models"][0]["tiers"] == {"v2": "resident", "v1": "sleeping"}
    assert engine.get_switching_status()["bot"].tiers == {}


async def test_a_cell_closes_its_engine_without_await() -> None:
    before = engine_threads()
    scripted = backend()
    engine = SwitchingEngine(store=":memory:", backends={"scripted": scripted})
    engine.registry.register_model(CONFIG, "v1")
    await engine.deploy("v1")
    engine.close()
    assert none_but(before)
    assert scripted["bot", "v1"].counts.stops == 1


def test_an_engine_that_is_dropped_shuts_itself_down() -> None:
    """A re-run cell replaces the engine; the old one must not go on holding memory."""
    before = engine_threads()
    scripted = backend()
    engine = SwitchingEngine(store=":memory:", backends={"scripted": scripted})
    engine.registry.register_model(CONFIG, "v1")
    engine.run(engine.deploy("v1"))
    del engine
    gc.collect()
    assert none_but(before)
    assert scripted["bot", "v1"].counts.stops == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"record_text": 1}, "record_text"),
        ({"scorers": [3]}, "scorers"),
        ({"scorers": [ExactMatch(), ExactMatch()]}, "scorers"),
        ({"scorers": ExactMatch()}, "scorers"),
        ({"scorers": "exact_match"}, "scorers"),
        ({"mlflow": "file:./mlruns"}, "tracking_uri"),
        ({"config": "settings.toml"}, "config"),
        ({"config": {"max_cached": 3}}, "config.max_cached"),
        ({"config": {"max_cached_models": 0}}, "max_cached_models"),
        ({"backends": ["scripted"]}, "backends"),
        ({"backends": {"scripted": 3}}, "backends.scripted"),
        ({"backends": {3: backend()}}, "backends (a name)"),
    ],
)
def test_a_bad_argument_of_the_engine_is_named_and_leaves_nothing(arguments: dict[str, Any], field: str) -> None:
    before = engine_threads()
    with pytest.raises(InvalidInput) as caught:
        SwitchingEngine(store=":memory:", **arguments)
    assert caught.value.field == field
    gc.collect()
    assert none_but(before)


def test_settings_may_be_given_as_a_dictionary() -> None:
    engine = SwitchingEngine({"max_cached_models": 3, "enabled": False}, store=":memory:")
    assert engine.config == ModelSwitchingConfig(max_cached_models=3, enabled=False)
    engine.close()


def test_a_store_that_cannot_be_opened_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database")
    before = engine_threads()
    with pytest.raises(StoreError, match=r"notes\.txt"):
        SwitchingEngine(store=tmp_path / "notes.txt")
    assert none_but(before)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_cached_models": 0}, "max_cached_models"),
        ({"max_cached_models": True}, "max_cached_models"),
        ({"default_switch_strategy": "yolo"}, "default_switch_strategy"),
        ({"max_transition_time_seconds": 0}, "max_transition_time_seconds"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ModelSwitchingConfig(**settings)
    assert caught.value.field == field


async def test_switching_can_be_turned_off_but_not_the_first_deployment() -> None:
    config = ModelSwitchingConfig(enabled=False)
    backend = ScriptedBackend()
    async with SwitchingEngine(config, store=":memory:", backends={"scripted": backend}) as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model({"model_id": "bot", "model": "script", "backend": "scripted"}, version)
        await engine.deploy("v1")
        with pytest.raises(SwitchRefused, match=r"turned off: the setting enabled was made False in code\."):
            await engine.start_switch("v2")
        assert engine.registry.active_version("bot") == "v1"


async def test_whoever_waits_for_a_version_as_the_engine_ends_is_told_so() -> None:
    gate = Gate()

    def slow(instance: ScriptedInstance) -> None:
        instance.load_gate = gate if instance.version.version == "v2" else None

    engine = SwitchingEngine(store=":memory:", backends={"scripted": ScriptedBackend(configure=slow)})
    for version in ("v1", "v2"):
        engine.registry.register_model(CONFIG, version)
    await engine.deploy("v1")
    tasks = [asyncio.create_task(engine.generate("who?", version="v2")), asyncio.create_task(engine.deploy("v2"))]
    await eventually(lambda: gate.waiting == 1 and len(engine.list_active_switches()) == 1)
    closing = asyncio.create_task(engine.aclose())
    await eventually(lambda: engine._parts.dispatcher._closed)
    gate.open()
    await closing
    for task in tasks:
        with pytest.raises(EngineClosed, match="shut down"):
            await task


async def test_an_engine_that_the_garbage_collector_finds_on_its_own_thread_is_shut_down() -> None:
    before, scripted = engine_threads(), backend()
    engine = SwitchingEngine(store=":memory:", backends={"scripted": scripted})
    engine.registry.register_model(CONFIG, "v1")
    await engine.deploy("v1")
    loop = engine._loop
    engine.itself = engine  # type: ignore[attr-defined]  # a cycle, which counting references does not end
    del engine

    def collect() -> None:
        gc.collect()

    loop.post(collect)
    await eventually(lambda: none_but(before))
    assert scripted["bot", "v1"].counts.stops == 1
