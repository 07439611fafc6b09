from __future__ import annotations

from typing import Any

import pytest

from abswitch.clock import VirtualClock
from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import DuplicateVersion, InvalidInput, UnknownModel, UnknownVersion
from abswitch.serving.registry import DynamicModelRegistry

CONFIG = {"model_id": "bot", "model": "org/name"}


def registry(**hooks: Any) -> DynamicModelRegistry:
    return DynamicModelRegistry(VirtualClock(), **hooks)


def test_register_returns_the_model_id_and_keeps_metadata() -> None:
    models = registry()
    assert models.register_model(CONFIG, "v1", metadata={"performance": "improved"}) == "bot"
    assert models.get("bot", "v1").metadata == {"performance": "improved"}
    assert models.get("bot", "v1").config == ModelConfig(model_id="bot", model="org/name")


def test_a_duplicate_version_is_refused_and_the_first_one_stays() -> None:
    models = registry()
    models.register_model(CONFIG, "v1")
    with pytest.raises(DuplicateVersion, match="'v1'.*not yet taken.*v1"):
        models.register_model({**CONFIG, "model": "other/name"}, "v1")
    assert models.get("bot", "v1").config.model == "org/name"


def test_an_unknown_version_names_the_known_and_the_closest() -> None:
    models = registry()
    models.register_model(CONFIG, "v1.0")
    models.register_model(CONFIG, "v2.0")
    with pytest.raises(UnknownVersion) as caught:
        models.get("bot", "v2")
    assert caught.value.value == "v2"
    assert "v1.0, v2.0" in caught.value.allowed
    assert "did you mean 'v2.0'" in caught.value.allowed


def test_an_unknown_model_is_named() -> None:
    models = registry()
    with pytest.raises(UnknownModel, match="none is registered yet"):
        models.resolve_model("bot")
    models.register_model(CONFIG, "v1")
    assert models.resolve_model() == "bot"
    models.register_model({**CONFIG, "model_id": "cat"}, "v1")
    with pytest.raises(UnknownModel, match="bot, cat"):
        models.resolve_model()


@pytest.mark.parametrize("hook", ["check", "keep"])
def test_a_refused_version_leaves_nothing_behind(hook: str) -> None:
    def refuse(_: ModelVersion) -> None:
        raise InvalidInput("x", 1, "y")

    models = registry(**{hook: refuse})
    with pytest.raises(InvalidInput):
        models.register_model(CONFIG, "v1")
    assert models.list_models() == ()


@pytest.mark.parametrize("version", ["", " v1", 1, None, "v1\n", "a" * 129, "é"])
def test_a_malformed_version_name_is_refused(version: Any) -> None:
    with pytest.raises(InvalidInput, match="version"):
        registry().register_model(CONFIG, version)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"model_id": "bot"}, "model_config.model"),
        ({"model": "x"}, "model_config.model_id"),
        ({**CONFIG, "modle": 1}, "model_config.modle"),
        ({**CONFIG, "prompt_template": "no slot"}, "model_config.prompt_template"),
        ({**CONFIG, "trust_remote_code": 1}, "model_config.trust_remote_code"),
        ({**CONFIG, "sampling": {"temperature": -1}}, "sampling.temperature"),
        ({**CONFIG, "sampling": {"temprature": 1}}, "sampling.temprature"),
        ({**CONFIG, "engine_args": [1]}, "model_config.engine_args"),
        (3, "model_config"),
    ],
)
def test_a_malformed_configuration_names_the_field(config: Any, field: str) -> None:
    models = registry()
    with pytest.raises(InvalidInput) as caught:
        models.register_model(config, "v1")
    assert caught.value.field == field
    assert models.list_models() == ()


def test_history_keeps_every_activation() -> None:
    models = registry()
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    assert models.active_version() is None
    for version, operation in (("v1", "op-1"), ("v2", "op-2"), ("v2", "op-2"), ("v1", "op-3")):
        models.activate("bot", version, operation)
    assert [(entry.version, entry.operation_id) for entry in models.history()] == [
        ("v1", "op-1"),
        ("v2", "op-2"),
        ("v1", "op-3"),
    ]
    assert models.active_version("bot") == "v1"
