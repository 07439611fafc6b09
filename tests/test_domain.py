from __future__ import annotations

import json
import math
from typing import Any

import pytest

from abswitch.domain import ChatMessage, ModelConfig, Sampling, prompt_of
from abswitch.errors import InvalidInput


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", True),
        ("temperature", "1"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("seed", -1),
        ("stop", ""),
        ("stop", [1]),
        ("stop", 3),
        ("presence_penalty", 3),
        ("repetition_penalty", 0),
        ("ignore_eos", 1),
    ],
)
def test_sampling_names_the_field_and_the_value(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        Sampling.of({field: value})
    assert caught.value.field == f"sampling.{field}"
    assert str(value) in str(caught.value)


def test_sampling_overrides_leave_the_defaults_alone() -> None:
    base = Sampling(temperature=0.0, stop="\n")  # type: ignore[arg-type]  # one string is accepted too
    assert base.stop == ("\n",)
    assert base.merged({}) is base
    assert base.merged({"max_tokens": 3}) == Sampling(temperature=0.0, stop=("\n",), max_tokens=3)
    with pytest.raises(InvalidInput, match=r"sampling\.tempature.*temperature"):
        base.merged({"tempature": 1})


def test_a_configuration_is_frozen_all_the_way_down_and_goes_to_json() -> None:
    given = {"max_model_len": 128}
    config = ModelConfig.of({"model_id": "m", "model": "x", "engine_args": given, "sampling": {"temperature": 0}})
    given["max_model_len"] = 1
    assert config.engine_args["max_model_len"] == 128
    with pytest.raises(TypeError):
        config.engine_args["max_model_len"] = 2  # type: ignore[index]
    assert json.loads(json.dumps(config.to_dict()))["sampling"]["temperature"] == 0


def test_prompts_are_text_or_chat() -> None:
    assert prompt_of("hello") == "hello"
    assert prompt_of([{"role": "user", "content": "hi"}]) == (ChatMessage("user", "hi"),)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("", "prompt"),
        (None, "prompt"),
        ([], "prompt"),
        (7, "prompt"),
        ([{"role": "robot", "content": "x"}], "prompt[0].role"),
        ([{"role": "user"}], "prompt[0]"),
        ([{"role": "user", "content": "x", "name": "y"}], "prompt[0].name"),
    ],
)
def test_a_malformed_prompt_is_named(prompt: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        prompt_of(prompt)
    assert caught.value.field == field
