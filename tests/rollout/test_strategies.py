from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.judging import Guardrail
from abswitch.rollout.strategies import (
    MOST_STAGES,
    ABTestStrategy,
    BanditStrategy,
    CanaryStrategy,
    GradualStrategy,
    ImmediateStrategy,
    ShadowStrategy,
    Stage,
    SwitchbackStrategy,
    strategy_of,
)


def test_the_documented_dictionary_is_accepted() -> None:
    strategy = strategy_of("ab_test", {"traffic_percentage": 25, "test_duration_hours": 2})
    assert strategy == ABTestStrategy(traffic_percentage=25, test_duration_hours=2)
    assert strategy.stages == (Stage(share=0.25, hold_s=7200.0),)


def test_a_typed_strategy_passes_through() -> None:
    typed = ABTestStrategy(traffic_percentage=10)
    assert strategy_of(SwitchingStrategyType.AB_TEST, typed) is typed
    assert strategy_of(SwitchingStrategyType.IMMEDIATE) == ImmediateStrategy()


@pytest.mark.parametrize("share", [-1, 0, 100.1, math.nan, math.inf, True, "50"])
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
    with pytest.raises(InvalidInput, match="immediate, gradual, canary, ab_test, shadow"):
        strategy_of(kind)


def test_a_configuration_must_be_a_dictionary_or_of_the_right_type() -> None:
    with pytest.raises(InvalidInput, match="strategy_config"):
        strategy_of("ab_test", ImmediateStrategy())


def shares(strategy: GradualStrategy | CanaryStrategy) -> list[float]:
    return [round(stage.share, 4) for stage in strategy.stages]


def test_a_gradual_ramp_in_equal_steps() -> None:
    strategy = strategy_of("gradual", {"duration_minutes": 30, "steps": 3})
    assert isinstance(strategy, GradualStrategy)
    assert shares(strategy) == [0.3333, 0.6667, 1.0]
    assert {stage.hold_s for stage in strategy.stages} == {600.0}


def test_a_gradual_ramp_with_shares_and_times_of_its_own() -> None:
    strategy = GradualStrategy(percentages=(1, 10, 100), minutes=(5, 10, 1))
    assert shares(strategy) == [0.01, 0.1, 1.0]
    assert [stage.hold_s for stage in strategy.stages] == [300.0, 600.0, 60.0]


def test_what_was_left_out_of_a_ramp_follows_from_the_rest() -> None:
    assert GradualStrategy() == GradualStrategy(duration_minutes=30, steps=3)
    assert repr(GradualStrategy()) == "GradualStrategy(duration_minutes=30.0, steps=3, percentages=(), minutes=())"
    own = GradualStrategy(percentages=(1, 100), minutes=(0.1, 0.2))
    assert (own.steps, own.duration_minutes) == (2, 0.1 + 0.2)
    assert GradualStrategy(percentages=(1, 100)).duration_minutes == 30.0
    assert replace(own) == own == strategy_of("gradual", asdict(own)), "what says the same may be said twice"


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"percentages": [10, 100], "steps": 5}, "steps", "left out, as percentages say the 2 steps"),
        ({"percentages": [10, 100], "steps": 3}, "steps", "left out"),
        ({"percentages": [10, 100], "minutes": [1, 2], "duration_minutes": 9}, "duration_minutes", "3 in all"),
        ({"percentages": [10, 100], "minutes": [1, 2], "duration_minutes": 30}, "duration_minutes", "left out"),
    ],
)
def test_two_ways_of_a_ramp_that_contradict_each_other_are_refused(
    given: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        strategy_of("gradual", given)
    assert caught.value.field == f"strategy_config.{field}" and words in caught.value.allowed


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"duration_minutes": 0}, "duration_minutes"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"percentages": [50, 20, 100]}, "percentages"),
        ({"percentages": [20, 50]}, "percentages"),
        ({"percentages": "20, 100"}, "percentages"),
        ({"percentages": [20, 100], "minutes": [1]}, "minutes"),
        ({"minutes": [1]}, "minutes"),
        ({"percentages": [20, math.nan, 100]}, "percentages"),
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        strategy_of("gradual", given)
    assert caught.value.field == f"strategy_config.{field}"


def test_the_documented_canary() -> None:
    strategy = strategy_of(
        "canary",
        {
            "initial_percentage": 5,
            "step_percentage": 15,
            "evaluation_period_minutes": 15,
            "max_error_rate_threshold": 0.05,
            "guardrails": [{"metric": "latency_p95_s", "max_ratio": 1.2}],
        },
    )
    assert isinstance(strategy, CanaryStrategy)
    assert shares(strategy) == [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]
    assert all(stage.judged and stage.hold_s == 900.0 for stage in strategy.stages)
    assert strategy.guardrails == (Guardrail(metric="latency_p95_s", max_ratio=1.2),)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"initial_percentage": 0}, "strategy_config.initial_percentage"),
        ({"step_percentage": -5}, "strategy_config.step_percentage"),
        ({"max_error_rate_threshold": 5}, "strategy_config.max_error_rate_threshold"),
        ({"min_requests": 0}, "strategy_config.min_requests"),
        ({"max_duration_hours": 1}, "strategy_config.max_duration_hours"),
        ({"guardrails": {"metric": "x"}}, "strategy_config.guardrails"),
        ({"guardrails": [{"metric": "x"}]}, "guardrail x"),
        ({"guardrails": [{"max": 1}]}, "strategy_config.guardrails[0].metric"),
        ({"guardrails": [{"metric": "x", "maximum": 1}]}, "strategy_config.guardrails[0].maximum"),
        ({"guardrails": [{"metric": "x", "max": math.nan}]}, "guardrail.max"),
    ],
)
def test_a_canary_that_makes_no_sense_is_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        strategy_of("canary", given)
    assert caught.value.field == field


def test_a_test_of_several_arms() -> None:
    strategy = strategy_of("ab_test", {"arms": {"v2": 20, "v3": 30}})
    assert isinstance(strategy, ABTestStrategy)
    assert strategy.traffic_percentage == 50.0
    assert strategy.candidates("v3") == (("v3", 0.6), ("v2", 0.4)), "the target comes first"
    with pytest.raises(InvalidInput, match="'v4'"):
        strategy.candidates("v4")


@pytest.mark.parametrize("arms", [{"v2": 60, "v3": 50}, {"v2": 0}, {"v2": "10"}, {3: 10}, "v2", ["v2"]])
def test_arms_that_make_no_sense_are_refused(arms: Any) -> None:
    with pytest.raises(InvalidInput, match=r"strategy_config\.arms"):
        strategy_of("ab_test", {"arms": arms})


def test_arms_and_a_traffic_percentage_must_agree() -> None:
    with pytest.raises(InvalidInput, match=r"strategy_config\.traffic_percentage.*sum of arms \(30\)"):
        strategy_of("ab_test", {"arms": {"v2": 30}, "traffic_percentage": 50})


def test_a_shadow_has_no_share() -> None:
    strategy = strategy_of("shadow", {"mirror_percentage": 10, "test_duration_hours": 1})
    assert isinstance(strategy, ShadowStrategy)
    assert strategy.stages == (Stage(0.0, 3600.0, mirror=0.1),)
    with pytest.raises(InvalidInput, match="mirror_percentage"):
        strategy_of("shadow", {"mirror_percentage": 0})


def test_a_switchbacks_blocks_come_in_pairs_whose_order_is_drawn() -> None:
    strategy = strategy_of("switchback", {"block_minutes": 5, "blocks": 40, "seed": 3})
    assert isinstance(strategy, SwitchbackStrategy)
    assert {stage.hold_s for stage in strategy.stages} == {300.0}
    shares = [stage.share for stage in strategy.stages]
    pairs = list(zip(shares[::2], shares[1::2], strict=True))
    assert set(pairs) == {(0.0, 1.0), (1.0, 0.0)}
    assert SwitchbackStrategy(blocks=40, seed=3).order == strategy.order != SwitchbackStrategy(blocks=40).order


def test_a_bandit_begins_with_its_first_share_and_is_judged_batch_by_batch() -> None:
    strategy = strategy_of("bandit", {"reward": "exact_match", "initial_percentage": 20, "batch_minutes": 2})
    assert strategy.stages == (Stage(share=0.2, hold_s=120.0, judged=True),)
    assert isinstance(strategy, BanditStrategy) and strategy.direction == "increase"
    assert BanditStrategy().direction == "decrease", "of errors, less is better"
    assert BanditStrategy(max_duration_hours=2).deadline_s == 7200.0


@pytest.mark.parametrize(
    ("kind", "config", "field"),
    [
        ("switchback", {"block_minutes": 0}, "block_minutes"),
        ("switchback", {"blocks": 2}, "blocks"),
        ("switchback", {"blocks": 7}, "blocks"),
        ("switchback", {"warmup_minutes": 15}, "warmup_minutes"),
        ("switchback", {"seed": -1}, "seed"),
        ("bandit", {"reward": ""}, "reward"),
        ("bandit", {"direction": "up"}, "direction"),
        ("bandit", {"floor_percentage": 0}, "floor_percentage"),
        ("bandit", {"floor_percentage": 51}, "floor_percentage"),
        ("bandit", {"initial_percentage": 2}, "initial_percentage"),
        ("bandit", {"initial_percentage": 99}, "initial_percentage"),
        ("bandit", {"batch_minutes": 0}, "batch_minutes"),
        ("bandit", {"min_rewards": 0}, "min_rewards"),
        ("bandit", {"max_duration_hours": 0}, "max_duration_hours"),
    ],
)
def test_what_a_design_does_not_allow_is_named(kind: str, config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        strategy_of(kind, config)
    assert caught.value.field == f"strategy_config.{field}"


HUGE = 10**400


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        ("canary", {"step_percentage": 1e-300}, "step_percentage"),
        ("canary", {"step_percentage": 5e-324, "initial_percentage": 5e-324}, "step_percentage"),
        ("canary", {"step_percentage": 1e-6, "evaluation_period_minutes": 1e-9}, "step_percentage"),
        ("canary", {"evaluation_period_minutes": HUGE}, "evaluation_period_minutes"),
        ("canary", {"max_duration_hours": 1e308}, "max_duration_hours"),
        ("canary", {"min_requests": 10**5000}, "min_requests"),
        ("canary", {"max_error_rate_threshold": -HUGE}, "max_error_rate_threshold"),
        ("gradual", {"steps": 1001}, "steps"),
        ("gradual", {"duration_minutes": 1e308}, "duration_minutes"),
        ("gradual", {"percentages": range(1, 10**9)}, "percentages"),
        ("gradual", {"percentages": [50, 100], "minutes": [1e308, 1]}, "minutes"),
        ("ab_test", {"traffic_percentage": HUGE}, "traffic_percentage"),
        ("ab_test", {"test_duration_hours": 1e308}, "test_duration_hours"),
        ("ab_test", {"evaluation_period_minutes": 1e308}, "evaluation_period_minutes"),
        ("shadow", {"max_in_flight": HUGE}, "max_in_flight"),
        ("shadow", {"test_duration_hours": HUGE}, "test_duration_hours"),
        ("switchback", {"blocks": 10_002}, "blocks"),
        ("switchback", {"blocks": 10**9}, "blocks"),
        ("switchback", {"block_minutes": 1e308}, "block_minutes"),
        ("switchback", {"seed": HUGE}, "seed"),
        ("bandit", {"batch_minutes": HUGE}, "batch_minutes"),
        ("bandit", {"min_rewards": HUGE}, "min_rewards"),
        ("bandit", {"max_duration_hours": 1e306}, "max_duration_hours"),
    ],
)
def test_a_value_that_would_never_end_is_refused_at_once(kind: str, given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        strategy_of(kind, given)
    assert caught.value.field == f"strategy_config.{field}"
    assert caught.value.value == given[field] or caught.value.value in given[field]
    assert caught.value.allowed and len(str(caught.value)) < 2500


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("canary", "evaluation_period_minutes"),
        ("ab_test", "evaluation_period_minutes"),
        ("bandit", "batch_minutes"),
        ("switchback", "block_minutes"),
    ],
)
def test_a_period_too_short_for_an_engine_is_refused(kind: str, field: str) -> None:
    for minutes in (1e-300, 0.009 / 60):
        with pytest.raises(InvalidInput, match=r"at least 0\.01 seconds, in minutes") as caught:
            strategy_of(kind, {field: minutes})
        assert caught.value.field == f"strategy_config.{field}"
    assert strategy_of(kind, {field: 0.001}).stages[0].hold_s == pytest.approx(0.06)


def test_the_longest_strategies_are_accepted_and_made_once() -> None:
    canary = CanaryStrategy(initial_percentage=0.01, step_percentage=0.01, evaluation_period_minutes=0.1)
    blocks = SwitchbackStrategy(blocks=MOST_STAGES, block_minutes=1)
    assert (len(canary.stages), len(blocks.stages)) == (MOST_STAGES - 1, MOST_STAGES)
    assert blocks.stages is blocks.stages, "asked for at every move"
    assert len(GradualStrategy(steps=1000).stages) == 1000


@pytest.mark.parametrize("kind", [kind.value for kind in SwitchingStrategyType])
def test_a_field_that_is_no_text_is_named(kind: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        strategy_of(kind, {1: 2})  # type: ignore[dict-item]  # what is under test
    assert (caught.value.field, caught.value.value) == ("strategy_config (a field)", 1)
    assert "fields" in caught.value.allowed


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ([("v2", 30), ("v2", 40)], "every version once"),
        ([[["v2"], 5]], "1 to 128 letters"),
        ([({}, 5)], "1 to 128 letters"),
        ([("v2", 30, 1)], "a dictionary version"),
        ([30], "a dictionary version"),
        ({1: 30}, "1 to 128 letters"),
        ({"v2": HUGE}, "a finite number above 0"),
        ({"v2"}, "a dictionary version"),
    ],
)
def test_arms_that_make_no_sense_are_named(arms: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=r"strategy_config\.arms") as caught:
        strategy_of("ab_test", {"arms": arms})
    assert words in caught.value.allowed


def test_guardrails_that_make_no_sense_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"guardrail\.max: .*a finite number"):
        strategy_of("canary", {"guardrails": [{"metric": "error_rate", "max": HUGE}]})
    with pytest.raises(InvalidInput, match=r"guardrails\[0\] \(a field\): got 1"):
        strategy_of("canary", {"guardrails": [{1: 2, "metric": "error_rate"}]})


def test_two_names_of_one_version_are_not_two_arms() -> None:
    given = ABTestStrategy(arms=(("v2", 30), ("best", 30)))
    with pytest.raises(InvalidInput, match=r"strategy_config\.arms: .*every version once, .*; not v2 twice"):
        replace(given, arms=(("v2", 30), ("v2", 30)))  # as the engine does once it has looked up the aliases


@pytest.mark.parametrize("kind", ["canary", "bandit"])
def test_a_duration_without_its_unit_is_refused_with_the_name_that_has_it(kind: str) -> None:
    with pytest.raises(InvalidInput, match=r"strategy_config.max_duration: .*did you mean 'max_duration_hours'"):
        strategy_of(kind, {"max_duration": 1})
