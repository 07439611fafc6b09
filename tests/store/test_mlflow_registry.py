"""Models in MLflow's own registry, a SQLite store and a real server: exported, kept in step, and read back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from abswitch import SwitchingEngine
from abswitch.clock import VirtualClock
from abswitch.errors import BadModelSource, DuplicateVersion, InvalidInput, StoreError, SwitchRefused
from abswitch.experiments import run_ab_test, run_paired
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.scripted import ScriptedBackend
from abswitch.serving.weights import weights_digest
from abswitch.store.mlflow_import import alias_here
from abswitch.store.mlflow_registry import alias_there
from tests.experiments.scripted import METRICS, engine_for, problems
from tests.store.live_mlflow import Server, wait_until

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONFIG: dict[str, Any] = {"model_id": "bot", "model": "script", "backend": "scripted"}


@asynccontextmanager
async def opened(store: Path, **arguments: Any) -> AsyncIterator[SwitchingEngine]:
    backend = ScriptedBackend(answers={v: (lambda _, v=v: (v,)) for v in ("v1", "v2", "v3")})  # type: ignore[misc]
    async with SwitchingEngine(store=store, backends={"scripted": backend}, **arguments) as engine:
        yield engine


def client_of(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def aliases_there(uri: str, name: str = "bot") -> dict[str, str]:
    """Alias → the abswitch version it points to."""
    client = client_of(uri)
    found = client.get_registered_model(name).aliases
    return {a: client.get_model_version(name, str(n)).tags.get("abswitch.version", f"#{n}") for a, n in found.items()}


def versions_there(uri: str, name: str = "bot") -> dict[str, Any]:
    found = client_of(uri).search_model_versions(f"name = '{name}'")
    assert len({one.tags["abswitch.version"] for one in found}) == len(found), "each once"
    return {one.tags["abswitch.version"]: one for one in found}


async def test_versions_tags_metadata_and_aliases_are_there_and_follow(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    async with opened(tmp_path / "s.duckdb", mlflow=uri) as engine:
        registry = engine.registry
        registry.register_model(
            CONFIG, "v1", metadata={"exact": 0.58, "description": "half trained"}, tags={"team": "a"}
        )
        registry.register_model(CONFIG | {"sampling": {"max_tokens": 7}}, "v2")
        await engine.deploy("v1")
        registry.set_alias("latest", "v2", model_id="bot")
        status = registry.export_to_mlflow("bot")
        assert status and status.versions == {"v1": "1", "v2": "2"} and status.name == "bot"
        found = versions_there(uri)
        assert found["v1"].source == "scripted:///script" and found["v1"].description == "half trained"
        assert found["v1"].tags["team"] == "a" and found["v1"].tags["metadata.exact"] == "0.58"
        assert json.loads(found["v2"].tags["abswitch.config"])["sampling"]["max_tokens"] == 7
        assert aliases_there(uri) == {"champion": "v1", "abswitch-latest": "v2"}

        test = await engine.start_switch("v2", "ab_test")
        await test.serving()
        assert engine._parts.link.flush()
        assert aliases_there(uri) == {"champion": "v1", "challenger": "v2", "abswitch-latest": "v2"}
        await test.promote()
        registry.delete_alias("latest", model_id="bot")
        registry.set_tag("v1", "team", "b", model_id="bot")
        registry.set_tag("v1", "team", None, model_id="bot")
        registry.register_model(CONFIG, "v3")
        assert engine._parts.link.flush()
        assert aliases_there(uri) == {"champion": "v2"}
        assert "team" not in versions_there(uri)["v1"].tags
        assert versions_there(uri).keys() == {"v1", "v2", "v3"}
        await engine.deregister_model("bot", "v1")
        assert engine._parts.link.flush()
        assert versions_there(uri)["v1"].tags["abswitch.registered"] == "false"


@pytest.mark.parametrize("run", [run_ab_test, run_paired])
async def test_the_champion_has_the_verdict_that_made_it_so(run: Any, tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    async with engine_for({"v1": 0.58, "v2": 0.95}, store=tmp_path / "s.duckdb", mlflow=uri) as engine:
        await engine.deploy("v1")
        engine.registry.export_to_mlflow("adder")
        result = await run(engine, "v2", problems(200), metrics=METRICS[:1])
        await result.promote()
        assert engine._parts.link.flush()
        assert aliases_there(uri, "adder") == {"champion": "v2"}
        tags = versions_there(uri, "adder")["v2"].tags
        told = {
            name: tags[f"abswitch.{name}"] for name in ("decision", "rule", "reason", "plan_digest", "operation_id")
        }
        verdict = result.verdict
        assert told == {
            "decision": "ship",
            "rule": "primary-better",
            "reason": verdict.reasons[0],
            "plan_digest": verdict.plan_digest,
            "operation_id": result.operation_id,
        }
        await engine.deploy("v1")
        await engine.deploy("v2", model_id="adder")
        assert engine._parts.link.flush()
        tags = versions_there(uri, "adder")["v2"].tags
        assert "abswitch.decision" not in tags, "this time it was nobody's verdict"
        assert tags["abswitch.operation_id"] != result.operation_id


async def test_what_somebody_else_set_there_stays(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    async with opened(tmp_path / "s.duckdb", mlflow=uri) as engine:
        engine.registry.register_model(CONFIG, "v1", tags={"team": "a"})
        engine.registry.export_to_mlflow()
        client = client_of(uri)
        client.set_registered_model_alias("bot", "theirs", "1")
        client.set_model_version_tag("bot", "1", "approved", "yes")
        engine.registry.register_model(CONFIG, "v2")
        engine.registry.set_tag("v1", "team", None, model_id="bot")
        assert engine._parts.link.flush()
        assert aliases_there(uri) == {"theirs": "v1"}
        assert versions_there(uri)["v1"].tags["approved"] == "yes"


async def test_a_restart_goes_on_telling_and_tells_what_was_missed(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    async with opened(tmp_path / "s.duckdb") as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model(CONFIG, version)
        with pytest.raises(InvalidInput, match="tracking_uri"):
            engine.registry.export_to_mlflow()
        assert engine.registry.export_to_mlflow(name="chat", tracking_uri=uri)
        await engine.deploy("v1")
    assert aliases_there(uri, "chat") == {"champion": "v1"}, "told before it closed"
    async with opened(tmp_path / "s.duckdb") as engine:
        await engine.deploy("v2")
        assert engine._parts.link.flush()
        assert aliases_there(uri, "chat") == {"champion": "v2"}
        assert engine.registry.export_to_mlflow().tracking_uri == uri, "where it was exported before"


async def test_exported_versions_come_back_as_they_were(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    rich = CONFIG | {"sampling": {"temperature": 0.5}, "prompt_template": "Q: {prompt}", "engine_args": {"x": [1, 2]}}
    async with opened(tmp_path / "one.duckdb", mlflow=uri) as engine:
        engine.registry.register_model(
            rich, "v1", metadata={"deep": {"n": [1]}}, tags={"a tag".replace(" ", "-"): "x=y"}
        )
        engine.registry.register_model(CONFIG, "v2")
        engine.registry.register_model(CONFIG, "v3")
        await engine.deploy("v1")
        engine.registry.set_alias("v7", "v2", model_id="bot")
        await engine.deregister_model("bot", "v3")
        assert engine.registry.export_to_mlflow("bot", name="chat")
        was = {v.version: v for v in engine.registry.get_model_versions()}
    async with opened(tmp_path / "two.duckdb", mlflow=uri) as engine:
        brought = engine.registry.import_from_mlflow("chat")
        assert (brought.model_id, brought.registered, brought.champion) == ("bot", ("v1", "v2"), "v1")
        assert brought.aliases == {"v7": "v2"}
        for version in engine.registry.get_model_versions():
            assert version.config == was[version.version].config
            came_from = {"mlflow": f"chat/{version.version[1:]}"}
            assert version.metadata == {**was[version.version].metadata, **came_from}
        assert engine.registry.tags("v1", model_id="bot") == {"a-tag": "x=y"}
        assert engine.registry.aliases() == {"v7": "v2"}, "nothing is deployed by importing it"
        assert engine.registry.full_history("bot")[0].reason == "imported from MLflow's 'chat'"
        again = engine.registry.import_from_mlflow("chat")
        assert (again.registered, again.known) == ((), ("v1", "v2"))
        assert (await engine.deploy(brought.champion or "")).phase == "succeeded"
        with pytest.raises(InvalidInput, match="a registered model: one of chat"):
            engine.registry.import_from_mlflow("chatt")
        copy = engine.registry.import_from_mlflow("chat", model_id="copy")
        assert copy.registered == ("v1", "v2") and engine.registry.list_models() == ("bot", "copy")


async def test_two_models_do_not_share_a_registered_model(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    async with opened(tmp_path / "s.duckdb", mlflow=uri) as engine:
        engine.registry.register_model(CONFIG, "v1")
        engine.registry.register_model(CONFIG | {"model_id": "org/cat:1"}, "v1")
        assert engine.registry.export_to_mlflow("bot", name="shared")
        refused = engine.registry.export_to_mlflow("org/cat:1", name="shared")
        assert not refused and refused.error is not None and "holds model 'bot'" in refused.error
        assert engine.registry.export_to_mlflow("org/cat:1", name="cat")
        with pytest.raises(InvalidInput, match="without / and :"):
            engine.registry.export_to_mlflow("org/cat:1", name="a/b")


NOWHERE = "http://127.0.0.1:9"


async def test_an_export_that_does_not_arrive_leaves_the_good_one_in_step(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    async with opened(tmp_path / "s.duckdb", mlflow=uri) as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model(CONFIG, version)
        await engine.deploy("v1")
        assert engine.registry.export_to_mlflow("bot")
        lost = engine.registry.export_to_mlflow("bot", tracking_uri=NOWHERE, timeout_s=5.0)
        assert not lost and f"kept in step with 'bot' at {uri}, as before" in str(lost.error)
        client_of(uri).create_registered_model("taken", tags={"abswitch.model_id": "cat"})
        refused = engine.registry.export_to_mlflow("bot", name="taken")
        assert not refused and "holds model 'cat'" in str(refused.error) and "as before" in str(refused.error)
        with pytest.raises(StoreError, match="as before"):
            await engine.export_to_mlflow(tracking_uri=NOWHERE)
        await engine.deploy("v2")
        assert engine._parts.link.flush()
        assert aliases_there(uri) == {"champion": "v2"}
        assert engine.registry.export_to_mlflow("bot", name="other"), "this one arrives, and is followed from now on"
        await engine.deploy("v1")
        assert engine._parts.link.flush()
        assert (aliases_there(uri), aliases_there(uri, "other")) == ({"champion": "v2"}, {"champion": "v1"})


async def test_what_waits_for_one_server_holds_up_no_other(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    async with opened(tmp_path / "s.duckdb") as engine:
        engine.registry.register_model(CONFIG, "v1")
        waiting = engine.registry.export_to_mlflow("bot", tracking_uri=NOWHERE, timeout_s=5.0)
        assert not waiting and engine.registry.link("bot") == {"name": "bot", "uri": NOWHERE}, "the first one waits"
        assert engine.registry.export_to_mlflow("bot", tracking_uri=uri)
        await engine.deploy("v1")
        wait_until(lambda: engine._parts.link.flush(1.0) or aliases_there(uri) == {"champion": "v1"})


def a_model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(with_weights(bytes(4)))
    return folder


def with_weights(content: bytes) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + content


async def test_models_that_mlflow_has_from_elsewhere(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    client = client_of(uri)
    client.create_registered_model("foreign")
    plain, flavoured = a_model_folder(tmp_path / "plain"), tmp_path / "flavoured"
    a_model_folder(flavoured / "model")
    (flavoured / "components" / "tokenizer").mkdir(parents=True)
    client.create_model_version("foreign", str(plain), description="from a colleague", tags={"team": "b"})
    client.create_model_version("foreign", flavoured.as_uri())
    client.set_registered_model_alias("foreign", "champion", "1")
    client.set_registered_model_alias("foreign", "challenger", "2")
    async with opened(tmp_path / "s.duckdb", mlflow=uri) as engine:
        brought = engine.registry.import_from_mlflow("foreign", config={"engine_args": {"max_model_len": 64}})
        assert (brought.registered, brought.champion, brought.aliases) == (("v1", "v2"), "v1", {"challenger": "v2"})
        first, second = engine.registry.get_model_versions("foreign")
        assert (first.config.model, first.config.engine_args) == (str(plain), {"max_model_len": 64})
        assert second.config.model == str(flavoured / "model")
        assert second.config.engine_args["tokenizer"] == str(flavoured / "components" / "tokenizer")
        assert first.metadata["description"] == "from a colleague"
        assert engine.registry.tags("v1", model_id="foreign") == {"team": "b"}
        with pytest.raises(DuplicateVersion, match="engine_args differ"):
            engine.registry.import_from_mlflow("foreign", config={"engine_args": {"max_model_len": 32}})

        client.create_model_version("foreign", str(tmp_path / "missing"))
        with pytest.raises(BadModelSource, match="is not there"):
            engine.registry.import_from_mlflow("foreign", config={"engine_args": {"max_model_len": 64}})


async def test_names_that_only_mlflow_takes_stop_no_import(tmp_path: Path, database: Path) -> None:
    uri = f"sqlite:///{database}"
    client = client_of(uri)
    client.create_registered_model("My Model")
    odd = {"Task Type": "LLM", "Région": "é", "_private": "x", "k" * 250: "long"}
    taken = {"team": "b", "empty": "", "lines": 'a\n"b"\\', "much": "x" * 20_000}
    about = "two lines\n" + "d" * 4000
    client.create_model_version("My Model", str(a_model_folder(tmp_path / "m")), description=about, tags=odd | taken)
    for alias in ("prod", "_x", "Ünï", "a" * 255, "abswitch-v1"):
        client.set_registered_model_alias("My Model", alias, "1")
    async with opened(tmp_path / "s.duckdb", mlflow=uri) as engine:
        with pytest.raises(InvalidInput, match="'My Model'; allowed: .*model_id=…"):
            engine.registry.import_from_mlflow("My Model")
        with pytest.raises(InvalidInput, match="model_id: got 'My Model'"):
            engine.registry.import_from_mlflow("My Model", model_id="My Model")
        brought = engine.registry.import_from_mlflow("My Model", model_id="mine")
        assert (brought.registered, brought.aliases) == (("v1",), {"prod": "v1"})
        assert set(brought.left_out) == {"_x", "Ünï", "a" * 255, "v1"}
        assert "a name that no version has" in brought.left_out["v1"]
        (version,) = engine.registry.get_model_versions("mine")
        assert (version.metadata["mlflow.tags"], version.metadata["description"]) == (odd, about)
        assert engine.registry.tags("v1", model_id="mine") == taken
        assert engine.registry.import_from_mlflow("My Model", model_id="mine").known == ("v1",)
        assert engine.registry.export_to_mlflow("mine", name="back")
        engine.registry.set_alias("nightly", "v1", model_id="mine")
        assert engine._parts.link.flush()
        assert aliases_there(uri, "back") == {"prod": "v1", "nightly": "v1"}
        assert versions_there(uri, "back")["v1"].tags["team"] == "b"
        copy = engine.registry.import_from_mlflow("back", model_id="copy")
        assert (copy.aliases, copy.left_out) == ({"prod": "v1", "nightly": "v1"}, {})
        assert engine.registry.get("copy", "v1").metadata["mlflow.tags"] == odd


async def test_a_server_that_is_down_delays_nothing_and_is_caught_up(tmp_path: Path, server: Server) -> None:
    async with opened(tmp_path / "s.duckdb", mlflow=server.url) as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model(CONFIG, version)
        waiting = engine.registry.export_to_mlflow(timeout_s=5.0)
        assert not waiting and waiting.error is not None and "refused" in waiting.error
        for version in ("v1", "v2", "v1"):
            assert (await engine.deploy(version)).phase == "succeeded"
        with pytest.raises(StoreError, match="cannot be reached"):
            engine.registry.import_from_mlflow("bot")
        server.start()
        wait_until(lambda: engine._parts.link.flush(5.0))
        assert aliases_there(server.url) == {"champion": "v1"}
        assert versions_there(server.url)["v2"].source == "scripted:///script"
        server.kill()
        await engine.deploy("v2")
        server.start()
        wait_until(lambda: engine._parts.link.flush(5.0))
        assert aliases_there(server.url) == {"champion": "v2"}
        assert versions_there(server.url).keys() == {"v1", "v2"}
    folder = a_model_folder(tmp_path / "model")
    async with opened(tmp_path / "t.duckdb", mlflow=server.url) as engine:
        engine.registry.register_model({"model_id": "adder", "model": str(folder)}, "v1")
        assert engine.registry.export_to_mlflow("adder"), "a server takes no file:// source without a run"
        assert versions_there(server.url, "adder")["v1"].source == f"folder://{folder}"
        assert engine.registry.import_from_mlflow("adder").known == ("v1",)


async def test_artifacts_of_a_server_are_downloaded(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABSWITCH_CACHE_DIR", str(tmp_path / "cache"))
    server.start()
    client = client_of(server.url)
    run = client.create_run(client.create_experiment("kept by the server"))
    client.log_artifacts(run.info.run_id, str(a_model_folder(tmp_path / "model")), "model")
    client.create_registered_model("trained")
    client.create_model_version("trained", f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    async with opened(tmp_path / "s.duckdb", mlflow=server.url) as engine:
        assert await engine.import_from_mlflow("trained") == ("v1",)
        (version,) = engine.registry.get_model_versions()
        folder = Path(version.config.model)
        assert folder.is_relative_to(tmp_path / "cache") and (folder / "model.safetensors").is_file()
        assert version.metadata["mlflow.run_id"] == run.info.run_id
        was = weights_digest(version.config)
        client.delete_registered_model("trained")
        client.create_registered_model("trained")
        (tmp_path / "model" / "model.safetensors").write_bytes(with_weights(b"\1\1\1\1"))
        client.log_artifacts(run.info.run_id, str(tmp_path / "model"), "other")
        client.create_model_version("trained", f"{run.info.artifact_uri}/other", run_id=run.info.run_id)
        assert await engine.import_from_mlflow("trained", model_id="anew") == ("v1",)
        assert weights_digest(version.config) == was != weights_digest(engine.registry.get("anew", "v1").config)
    client.create_model_version("trained", f"{run.info.artifact_uri}/gone", run_id=run.info.run_id)
    async with opened(tmp_path / "t.duckdb", mlflow=server.url) as engine:
        with pytest.raises(BadModelSource):
            await engine.import_from_mlflow("trained")


@pytest.mark.parametrize(
    ("alias", "there"),
    [
        ("latest", "abswitch-latest"),
        ("Latest", "abswitch-Latest"),
        ("v2", "abswitch-v2"),
        ("v2-good", "v2-good"),
        ("abswitch-a", "abswitch-a"),
    ],
)
def test_reserved_aliases_are_renamed(alias: str, there: str) -> None:
    from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

    assert alias_there(alias) == there and alias_here(there) == alias
    _validate_model_alias_name(there)
    _validate_model_alias_name_reserved(there)


def test_a_registry_without_an_engine_says_so() -> None:
    registry = DynamicModelRegistry(VirtualClock())
    registry.register_model(CONFIG, "v1")
    for call in (registry.export_to_mlflow, lambda: registry.switch_model("bot", "v1")):
        with pytest.raises(SwitchRefused, match="registry of an engine"):
            call()
