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
