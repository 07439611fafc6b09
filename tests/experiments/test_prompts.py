from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from abswitch.domain import ChatMessage
from abswitch.errors import InvalidInput
from abswitch.experiments.prompts import Question, questions_of


@dataclass
class Problem:
    prompt: str
    answer: str


def test_every_accepted_form() -> None:
    forms: list[Any] = [
        "1+1=",
        ("1+1=", "2"),
        {"prompt": "1+1=", "reference": "2", "unit_id": "u"},
        [{"role": "user", "content": "1+1="}],
        Problem("1+1=", "2"),
        Question("1+1=", "2"),
    ]
    assert questions_of(forms) == (
        Question("1+1="),
        Question("1+1=", "2"),
        Question("1+1=", "2", "u"),
        Question((ChatMessage("user", "1+1="),)),
        Question("1+1=", "2"),
        Question("1+1=", "2"),
    )


@pytest.mark.parametrize(
    ("prompts", "field"),
    [
        ([], "prompts"),
        ("one string", "prompts"),
        ({"prompt": "x"}, "prompts"),
        (["fine", ""], "prompts[1]"),
        ([{"prompt": "x", "answer": "y"}], "prompts[0].answer"),
        ([{"prompt": "x", "reference": 2}], "prompts[0].reference"),
        ([None], "prompts[0]"),
    ],
)
def test_what_is_malformed_is_named_by_position(prompts: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        questions_of(prompts)
    assert caught.value.field == field
