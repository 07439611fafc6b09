from __future__ import annotations

import math
from typing import Any

import pytest

from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.strategies import ABTestStrategy, ImmediateStrategy, Stage, strategy_of


def test_the_documented_dictionary_is_accepted() -> None:
    strategy = strategy_of("ab_test", {"traffic_percentage": 25, "test_duration_hours": 2})
    assert strategy == ABTestStrategy(traffic_percentage=25, test_duration_hours=2)
    assert strategy.stages == (Stage(share=0.25, hold_s=7200.0),)


def test_a_typed_strategy_passes_through() -> None:
    typed = ABTestStrategy(traffic_percentage=10)
    assert strategy_of(SwitchingStrategyType.AB_TEST, typed) is typed
    assert strategy_of(SwitchingStrategyType.IMMEDIATE) == ImmediateStrategy()


@pytest.mark.parametrize("share", [-1, 0, 100.1, math.nan, math.inf, True, "50", None])
def test_a_percentage_outside_0_to_100_is_named(share: Any) -> None:
    with pytest.raises(InvalidInput, match="strategy_config.traffic_percentage") as caught:
        strategy_of("ab_test", {"traffic_percentage": share})
    assert caught.value.value is share or caught.value.value == share
    assert "above 0 and at most 100" in caught.value.allowed


def test_an_unknown_field_is_named_with_those_there_are() -> None:
    with pytest.raises(InvalidInput) as caught:
        strategy_of("ab_test", {"trafic_percentage": 50})
    assert caught.value.field == "strategy_config.trafic_percentage"
    assert "traffic_percentage" in caught.value.allowed


def test_an_immediate_switch_takes_no_fields() -> None:
    with pytest.raises(InvalidInput, match=r"strategy_config\.traffic_percentage"):
        strategy_of("immediate", {"traffic_percentage": 50})


@pytest.mark.parametrize("kind", ["blue_green", "", 3, None])
def test_an_unknown_strategy_is_named_with_those_there_are(kind: Any) -> None:
    with pytest.raises(InvalidInput, match="immediate, ab_test"):
        strategy_of(kind)


def test_a_configuration_must_be_a_dictionary_or_of_the_right_type() -> None:
    with pytest.raises(InvalidInput, match="strategy_config"):
        strategy_of("ab_test", ImmediateStrategy())
