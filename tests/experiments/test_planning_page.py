"""The page on plans and replays names every field, and its calls are those there are."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from abswitch.experiments import WhatIf, plan, replay
from abswitch.experiments.replaying import Replayed

PAGE = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [field.name for field in fields(WhatIf)])
def test_every_effect_is_on_the_page(name: str) -> None:
    assert f"{name}=" in PAGE


@pytest.mark.parametrize("name", ["endings", "share", "false_alarms", "hours", "exposed", "in_words"])
def test_what_a_replay_tells_is_on_the_page(name: str) -> None:
    assert re.search(rf"(found\.|\)\.){name}", PAGE) and hasattr(Replayed, name)


def test_what_the_page_passes_is_taken() -> None:
    for call, made in (("plan", plan), ("replay", replay)):
        known = set(inspect.signature(made).parameters)
        for given in re.findall(rf"\b{call}\(engine, (.*)\)", PAGE):
            assert set(re.findall(r"(?<![\w(])(\w+)=", re.sub(r"\w+\([^()]*\)", "", given))) <= known
    assert (Path(__file__).parents[2] / "docs" / "figures" / "power.png").read_bytes()[:4] == b"\x89PNG"
