"""The registry's history is its truth: aliases, tags, what served before, and the same after a restart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.clock import VirtualClock
from abswitch.errors import InvalidInput, SwitchRefused, UnknownVersion
from abswitch.serving.lineage import Book, HistoryEntry, What
from abswitch.serving.registry import DynamicModelRegistry


def registry(**hooks: Any) -> tuple[DynamicModelRegistry, list[HistoryEntry]]:
    noted: list[HistoryEntry] = []
    models = DynamicModelRegistry(VirtualClock(), note=noted.append, **hooks)
    for version in ("v1", "v2", "v3"):
        models.register_model({"model_id": "bot", "model": "org/name"}, version)
    return models, noted


def test_champion_and_challenger_follow_and_others_are_free() -> None:
    models, _ = registry()
    models.activate("bot", "v1", "op-1")
    models.challenge("bot", "v2", "op-2")
    models.set_alias("nightly", "champion")
    assert models.aliases() == {"champion": "v1", "challenger": "v2", "nightly": "v1"}
    assert models.get("bot", "challenger").version == "v2" and models.get("bot", "nightly").version == "v1"
    models.activate("bot", "v2", "op-2")
    models.challenge("bot", None, "op-2")
    assert models.aliases() == {"champion": "v2", "nightly": "v1"}
    models.delete_alias("nightly")
    with pytest.raises(UnknownVersion, match="champion"):
        models.get("bot", "nightly")


@pytest.mark.parametrize(("alias", "allowed"), [("champion", "by themselves"), ("v1", "no version has"), ("", "")])
def test_aliases_that_cannot_be(alias: str, allowed: str) -> None:
    models, noted = registry()
    with pytest.raises(InvalidInput, match=allowed):
        models.set_alias(alias, "v2")
    assert len(noted) == 3, "nothing changed"
    with pytest.raises(InvalidInput):
        models.delete_alias("never-set")


def test_tags_change_and_metadata_do_not() -> None:
    models, _ = registry()
    models.set_tag("v1", "stage", "candidate")
    models.set_tag("v1", "stage", "approved")
    models.set_tag("v1", "owner", "ada")
    models.set_tag("v1", "owner", None)
    assert models.tags("v1") == {"stage": "approved"} and models.tags("v2") == {}
    assert [e.detail["value"] for e in models.full_history() if e.what is What.TAGGED] == [
        "candidate", "approved", "ada", None,
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="value"):
        models.set_tag("v1", "stage", 3)  # type: ignore[arg-type]


def test_what_served_before_is_what_a_rollback_goes_to() -> None:
    models, _ = registry()
    assert models.previous_version() is None
    for version in ("v1", "v2", "v3", "v2"):
        models.activate("bot", version, "op")
    assert models.previous_version() == "v3"
    models.deregister_model("bot", "v3")
    assert models.previous_version() == "v1"


def test_a_version_that_is_needed_stays_and_one_that_left_may_come_back() -> None:
    models, noted = registry(in_use=lambda key: "two requests are on it" if key == ("bot", "v2") else None)
    models.activate("bot", "v1", "op")
    with pytest.raises(SwitchRefused, match="active"):
        models.deregister_model("bot", "v1")
    with pytest.raises(SwitchRefused, match="two requests"):
        models.deregister_model("bot", "v2")
    models.set_alias("old", "v3")
    models.deregister_model("bot", "old")
    assert [v.version for v in models.get_model_versions()] == ["v1", "v2"] and "old" not in models.aliases()
    assert noted[-1].what is What.DEREGISTERED
    models.register_model({"model_id": "bot", "model": "org/other"}, "v3")
    assert models.get("bot", "v3").config.model == "org/other"
    assert models.get_registry_stats().versions == 3


def test_without_an_engine_nothing_switches() -> None:
    models, _ = registry()
    with pytest.raises(SwitchRefused, match="no engine"):
        models.switch_model("bot", "v2")
    asked: list[tuple[str, str]] = []
    models.bind(lambda model, version: asked.append((model, version)) or True)  # type: ignore[func-returns-value]
    models.set_alias("nightly", "v3")
    assert models.switch_model("bot", "nightly") and asked == [("bot", "v3")]


steps = st.lists(
    st.tuples(st.sampled_from(["activate", "alias", "unalias", "tag", "gone", "again"]), st.sampled_from("123"),
              st.sampled_from(["x", "y"])),
    max_size=30,
)  # fmt: skip


@given(steps)
def test_a_restart_finds_what_was(taken: list[tuple[str, str, str]]) -> None:
    models, noted = registry()
    for what, number, name in taken:
        version = f"v{number}"
        try:
            match what:
                case "activate":
                    models.activate("bot", version, "op")
                case "alias":
                    models.set_alias(name, version)
                case "unalias":
                    models.delete_alias(name)
                case "tag":
                    models.set_tag(version, name, number)
                case "gone":
                    models.deregister_model("bot", version)
                case "again":
                    models.register_model({"model_id": "bot", "model": "org/name"}, version)
        except (InvalidInput, SwitchRefused):
            pass
    again = DynamicModelRegistry(VirtualClock())
    kept = {v.version: v for v in models.get_model_versions()}
    again.restore(kept.values(), noted)
    assert again.aliases() == models.aliases() and again.active_version() == models.active_version()
    assert again.get_model_versions() == models.get_model_versions()
    assert all(again.tags(version) == models.tags(version) for version in kept)
    assert again.full_history() == tuple(noted) == models.full_history()
    assert Book.of(noted).all_aliases == models.aliases()
