"""The registry as people use it through an engine: aliases, rollback, validation, restarts, and MLflow's registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from abswitch import SwitchingEngine
from abswitch.errors import InvalidInput, SwitchRefused, UnknownVersion
from abswitch.serving.scripted import ScriptedBackend


def engine_on(path: Path | str, **options: object) -> SwitchingEngine:
    engine = SwitchingEngine(store=path, backends={"scripted": ScriptedBackend()}, **options)  # type: ignore[arg-type]
    for version in ("v1", "v2", "v3"):
        engine.registry.register_model({"model_id": "bot", "model": "m", "backend": "scripted"}, version)
    return engine


async def test_aliases_work_wherever_a_version_is_asked_for() -> None:
    async with engine_on(":memory:") as engine:
        await engine.deploy("v1")
        engine.registry.set_alias("nightly", "v2")
        assert (await engine.generate("x", version="nightly")).served_version == "v2"
        assert (await engine.generate("x", version="champion")).served_version == "v1"
        handle = await engine.start_switch("nightly", "ab_test", metadata={"ticket": "EXP-7"})
        await handle.serving()
        assert engine.registry.aliases()["challenger"] == "v2" and handle.status.candidate == "v2"
        assert [status.candidate for status in engine.list_active_switches()] == ["v2"]
        assert engine.get_switch_status(handle.operation_id).phase == "evaluating"
        with pytest.raises(SwitchRefused, match="candidate of operation"):
            await engine.deregister_model("bot", "v2")
        await handle.promote()
        assert engine.registry.aliases() == {"champion": "v2", "nightly": "v2"} and not engine.list_active_switches()
        asked = next(e for e in engine.registry.full_history() if e.operation_id == handle.operation_id)
        assert asked.action == "requested" and asked.detail["metadata"] == {"ticket": "EXP-7"}
        with pytest.raises(InvalidInput, match="metadata"):
            await engine.start_switch("v3", metadata={"when": object()})


async def test_back_to_any_earlier_version() -> None:
    async with engine_on(":memory:") as engine:
        with pytest.raises(SwitchRefused, match="no earlier version"):
            await engine.rollback()
        for version in ("v1", "v2", "v3"):
            await engine.deploy(version)
        await engine.rollback()
        assert engine.registry.active_version() == "v2"
        await engine.rollback(to="v1")
        assert engine.registry.active_version() == "v1"
        await engine.deregister_model("bot", "v3")
        with pytest.raises(UnknownVersion):
            await engine.rollback(to="v3")
        assert "v3" not in engine.get_switching_status()["bot"].loaded


def test_the_documented_shape_switches_and_blocks() -> None:
    engine = engine_on(":memory:")
    assert engine.registry.switch_model("bot", "v2") is True
    assert engine.registry.switch_model("bot", "v2") is True, "it is there already"
    assert engine.registry.active_version() == "v2"
    engine.close()


async def test_validation_says_why_and_changes_nothing() -> None:
    async with engine_on(":memory:") as engine:
        refused = await engine.validate_switch_request("bot", "v2", "canary")
        assert not refused and refused.reason is not None and "none" in refused.reason
        await engine.deploy("v1")
        assert await engine.validate_switch_request("bot", "v2", "canary", {"initial_percentage": 5})
        for arguments, words in (
            (("v9",), "v1, v2, v3"),
            (("v2", "canary", {"initial": 5}), "initial"),
            (("v1",), "active"),
        ):
            refused = await engine.validate_switch_request("bot", *arguments)
            assert not refused.valid and words in str(refused.reason)
        assert not engine.list_active_switches() and len(engine.registry.history()) == 1
        handle = await engine.switch_model("bot", "v2", "ab_test", {"traffic_percentage": 10})
        assert "operation" in str((await engine.validate_switch_request("bot", "v3")).reason)
        await handle.abort()


async def test_a_restart_finds_history_aliases_tags_and_what_left(tmp_path: Path) -> None:
    store = tmp_path / "evidence.duckdb"
    async with engine_on(store) as engine:
        await engine.deploy("v1")
        await engine.deploy("v2")
        engine.registry.set_alias("nightly", "v1")
        engine.registry.set_tag("v1", "stage", "approved")
        await engine.deregister_model("bot", "v3")
        before = engine.registry.full_history()
        assert len(engine.query("SELECT * FROM registry_history")) == len(before)
    again = SwitchingEngine(store=store, backends={"scripted": ScriptedBackend()})
    async with again:
        assert again.registry.full_history()[: len(before)] == before
        assert again.registry.aliases() == {"champion": "v2", "nightly": "v1"}
        assert again.registry.tags("v1") == {"stage": "approved"}
        assert [v.version for v in again.registry.get_model_versions()] == ["v1", "v2"]
        assert [entry.version for entry in again.registry.history()] == ["v1", "v2"]
        await again.rollback()
        assert again.registry.active_version() == "v1"


async def test_versions_go_to_mlflow_and_come_back_and_aliases_follow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    async with engine_on(tmp_path / "a.duckdb", mlflow=uri) as engine:
        await engine.deploy("v1")
        engine.registry.set_alias("v2-like", "v3")
        assert await engine.export_to_mlflow(name="support-bot") == {"v1": "1", "v2": "2", "v3": "3"}
        assert await engine.export_to_mlflow(name="support-bot") == {"v1": "1", "v2": "2", "v3": "3"}, "once"
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        assert client.get_model_version_by_alias("support-bot", "champion").version == 1
        handle = await engine.start_switch("v2", "ab_test")
        await handle.serving()
        await handle.promote("the test shipped it")
        engine.registry.register_model({"model_id": "bot", "model": "m", "backend": "scripted"}, "v4")
        engine.registry.set_alias("nightly", "v4")
        assert engine._parts.link.flush(60.0)
        promoted = client.get_model_version_by_alias("support-bot", "champion")
        assert promoted.version == 2 and "the test shipped it" in promoted.tags["abswitch.verdict"]
        assert client.get_model_version_by_alias("support-bot", "nightly").version == 4
        assert "challenger" not in client.get_registered_model("support-bot").aliases
    async with SwitchingEngine(store=":memory:", backends={"scripted": ScriptedBackend()}, mlflow=uri) as other:
        assert await other.import_from_mlflow("support-bot", model_id="bot") == ("v1", "v2", "v3", "v4")
        assert other.registry.aliases() == {"v2-like": "v3", "nightly": "v4"}, "nothing serves here yet"
        assert other.registry.get("bot", "v2").metadata["mlflow"] == "support-bot/2"
        await other.deploy("nightly")
        with pytest.raises(InvalidInput, match="registered model"):
            await other.import_from_mlflow("nothing")
    async with engine_on(":memory:") as without:
        with pytest.raises(InvalidInput, match="mlflow"):
            await without.export_to_mlflow()
