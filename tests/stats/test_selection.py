"""Which requests a metric is about, and by what it is broken out."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.stats import Segments, Where
from abswitch.stats.selection import NO_SEGMENT, OUTCOMES


@pytest.mark.parametrize(
    ("condition", "holding", "failing"),
    [
        ({"above": 10}, [10.5, 11], [10, 9, None, math.nan]),
        ({"at_least": 10, "below": 20}, [10, 19.9], [9.9, 20]),
        ({"at_most": 3}, [3, -1], [3.1]),
        ({"equals": 2}, [2, 2.0], [3]),
        ({"differs": 2}, [3], [2, None]),
        ({"one_of": [1, 2]}, [1, 2.0], [3]),
    ],
)
def test_conditions_on_numbers(condition: dict[str, Any], holding: list[Any], failing: list[Any]) -> None:
    where = Where.of({"column": "prompt_tokens", **condition})
    assert all(where.holds(value) for value in holding) and not any(where.holds(value) for value in failing)
    assert Where.of(json.loads(json.dumps(where.to_dict()))) == where


def test_conditions_on_units() -> None:
    german = Where(column="unit_id", starts_with="de/", differs="de/test")
    assert german.holds("de/7") and not german.holds("de/test") and not german.holds("fr/7")
    assert Where(column="unit_id", one_of=("a", "b")).holds("b")


@pytest.mark.parametrize("column", sorted(OUTCOMES))
def test_what_the_version_moves_chooses_nothing(column: str) -> None:
    for bad in (lambda: Where(column=column, above=1), lambda: Segments(column=column)):
        with pytest.raises(InvalidInput, match="the version moves this one"):
            bad()


BAD: list[Any] = [
    {"column": "prompt_tokens"},
    {"above": 3},
    {"column": "prompt_tokens", "over": 3},
    {"column": "prompt_tokens; DROP TABLE requests", "above": 3},
    {"column": "prompt_tokens", "above": "10"},
    {"column": "prompt_tokens", "above": math.nan},
    {"column": "prompt_tokens", "above": True},
    {"column": "prompt_tokens", "above": 5, "below": 5},
    {"column": "prompt_tokens", "at_least": 6, "at_most": 5},
    {"column": "prompt_tokens", "starts_with": "a"},
    {"column": "prompt_tokens", "one_of": "abc"},
    {"column": "unit_id", "above": 3},
    {"column": "unit_id", "equals": 3},
    {"column": "unit_id", "starts_with": 3},
    "prompt_tokens > 10",
    None,
]


@pytest.mark.parametrize("bad", BAD)
def test_conditions_that_are_none(bad: Any) -> None:
    with pytest.raises(InvalidInput) as told:
        Where.of(bad)
    assert told.value.field.startswith("where") and told.value.allowed


def test_bounds_between_which_one_value_lies() -> None:
    assert Where(column="step", at_least=2, at_most=2).holds(2)


def test_segments_by_edges_values_and_prefix() -> None:
    by_length = Segments.of({"column": "prompt_tokens", "edges": [32, 128]})
    assert by_length.labels == ("up to 32", "32 to 128", "above 128")
    assert [by_length.label(n) for n in (1, 32, 33, 128, 129, None)] == [
        "up to 32", "up to 32", "32 to 128", "32 to 128", "above 128", NO_SEGMENT,
    ]  # fmt: skip
    assert Segments.of("step").label(2.0) == "2"
    by_country = Segments(column="unit_id", separator="/")
    assert [by_country.label(unit) for unit in ("de/7/a", "de", None)] == ["de", NO_SEGMENT, NO_SEGMENT]
    for one in (by_length, Segments.of("step"), by_country):
        assert Segments.of(json.loads(json.dumps(one.to_dict()))) == one and Segments.of(one) is one


@pytest.mark.parametrize(
    "bad",
    [
        "prompt_tokens",
        "admitted_at_s",
        "unit_id",
        {"column": "unit_id", "separator": "/", "edges": [1]},
        {"column": "step", "separator": "/"},
        {"column": "prompt_tokens", "edges": [128, 32]},
        {"column": "prompt_tokens", "edges": [32, 32]},
        {"column": "prompt_tokens", "edges": ["32"]},
        {"column": "prompt_tokens", "edges": [math.inf]},
        {"column": "prompt_tokens", "bins": [32]},
        {"edges": [32]},
        7,
    ],
)
def test_segments_that_are_none(bad: Any) -> None:
    with pytest.raises(InvalidInput) as told:
        Segments.of(bad)
    assert told.value.field.startswith("segments") and told.value.allowed
