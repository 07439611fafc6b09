from __future__ import annotations

import math
from typing import Any

import pytest

from abswitch import checks
from abswitch.errors import InvalidInput


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "0.5", None, -0.1, 1.1])
def test_a_share_is_a_fraction(value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        checks.share("share", value)
    assert caught.value.allowed == "a number from 0 to 1"
    assert checks.share("share", 1) == 1.0


@pytest.mark.parametrize("value", [-1, 100.5, math.nan, False, "5"])
def test_a_percentage_goes_to_a_hundred(value: Any) -> None:
    with pytest.raises(InvalidInput, match="from 0 to 100"):
        checks.percentage("p", value)
    assert checks.percentage("p", 100) == 100.0


@pytest.mark.parametrize("value", [0, 1.0, True, "1"])
def test_an_integer_is_no_float_and_no_boolean(value: Any) -> None:
    with pytest.raises(InvalidInput, match="whole number of at least 1"):
        checks.integer("n", value, low=1)
    with pytest.raises(InvalidInput, match="at most 3"):
        checks.integer("n", 4, low=1, high=3)


def test_an_unknown_field_is_told_with_the_closest_and_a_readable_list() -> None:
    with pytest.raises(InvalidInput, match=r"only the fields alpha, beta \(did you mean 'beta'\?\)"):
        checks.known_fields("where", {"betta": 1}, ["beta", "alpha"])
    with pytest.raises(InvalidInput, match=r"one of its 300 fields \(did you mean 'max_model_len'"):
        checks.known_fields("where", {"max_modle_len": 1}, ["max_model_len", *(f"field_{i}" for i in range(299))])
    with pytest.raises(InvalidInput, match="no fields"):
        checks.known_fields("where", {"x": 1}, [])
    with pytest.raises(InvalidInput, match=r"where \(a field\): got 1; allowed: only the fields alpha, beta"):
        checks.known_fields("where", {1: 1}, ["beta", "alpha"])  # type: ignore[dict-item]  # what is under test


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["large", "small", "unspeakable"])
def test_a_whole_number_beyond_every_float_is_no_finite_number(value: int) -> None:
    with pytest.raises(InvalidInput, match="allowed: a finite number") as caught:
        checks.number("n", value)
    assert caught.value.value == value


def test_bounds_are_written_in_full() -> None:
    with pytest.raises(InvalidInput, match="above 0 and at most 5256000$"):
        checks.number("n", 0, low=0.0, high=5_256_000.0, above=True)


def test_a_value_that_is_endless_or_cannot_be_shown_is_still_refused_in_words() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(InvalidInput, match="n: got a value of type Shy that cannot be shown; allowed: a text"):
        checks.text("n", Shy())
    assert len(str(InvalidInput("n", "x" * 10**6, "less"))) < 3000
