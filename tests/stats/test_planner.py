"""Plans add up, agree with the functions they are made of, and hold in simulation."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats.crossing import mixture_boundary, mixture_scale
from abswitch.stats.means import welch_t_test
from abswitch.stats.planner import Traffic, anytime_inflation, plan_experiment
from abswitch.stats.power import power_rate, required_n_mean, required_n_rate
from abswitch.stats.ratios import clustered_mean_test
from abswitch.stats.summaries import MeanSummary, RatioSummary


def test_one_look_is_the_textbooks_number() -> None:
    assert plan_experiment(0.5, std=1.0, horizon="fixed").n == 126
    plan = plan_experiment(-0.03, baseline_rate=0.08, horizon="fixed", traffic=Traffic(share=0.2))
    assert plan.n == required_n_rate(0.08, 0.05, share=0.2) and plan.inflation == 1.0
    assert plan.n_candidate == round(0.2 * plan.n) and plan.n_baseline + plan.n_candidate == plan.n
    assert plan.expected_n == plan.n and plan.duration_s is None


def test_a_group_sequential_plan_is_inflated_as_told() -> None:
    # Jennison & Turnbull (2000), table 2.4: O'Brien–Fleming with 5 looks, power 0.8: 1.028
    plan = plan_experiment(0.5, std=1.0, horizon="group-sequential", inflation=1.028)
    assert math.isclose(plan.inflation, 1.028) and plan.n == math.ceil(126 * 1.028) and plan.expected_n is None


def test_looking_at_any_time_takes_more_at_most_and_about_as_many_on_average() -> None:
    once, anytime = (plan_experiment(0.1, baseline_rate=0.6, horizon=name) for name in ("fixed", "anytime"))
    assert 1.6 < anytime.n / once.n < 1.75 and math.isclose(anytime.inflation, anytime_inflation())
    assert anytime.expected_n is not None and 0.9 < anytime.expected_n / once.n < 1.1


def test_everything_that_costs_or_saves_is_counted() -> None:
    traffic = Traffic(requests_per_s=2.0, requests_per_unit=10, correlation=0.1, unit_size_cv=0.5, spent=100)
    plan = plan_experiment(1.0, std=5.0, horizon="fixed", traffic=traffic, covariate_correlation=0.6)
    deff = 1 + (1.25 * 10 - 1) * 0.1
    assert math.isclose(plan.design_effect, deff) and math.isclose(plan.variance_left, 0.64)
    assert plan.n == math.ceil(required_n_mean(1.0, 5.0) * deff * 0.64)
    assert plan.units == math.ceil(plan.n / 10) and plan.duration_s == plan.n / 2.0
    assert plan.still_needed == plan.n - 100
    assert plan_experiment(5.0, std=5.0, traffic=Traffic(spent=10**6)).still_needed == 0


@pytest.mark.parametrize("horizon", ["fixed", "group-sequential", "anytime"])
def test_the_curve_goes_through_the_plan(horizon: str) -> None:
    inflation = 1.05 if horizon == "group-sequential" else None
    plan = plan_experiment(0.02, baseline_rate=0.1, horizon=horizon, inflation=inflation, power=0.9)
    curve = plan.curve
    assert curve.n.shape == curve.power.shape == curve.detectable.shape
    assert math.isclose(float(np.interp(plan.n, curve.n, curve.power)), 0.9, abs_tol=1e-3)
    assert math.isclose(float(np.interp(plan.n, curve.n, curve.detectable)), 0.02, rel_tol=1e-6)
    assert (np.diff(curve.power) > 0).all() and (np.diff(curve.detectable) < 0).all()


def test_the_curve_of_one_look_is_that_of_power_rate() -> None:
    plan = plan_experiment(0.02, baseline_rate=0.1, horizon="fixed")
    assert np.allclose(plan.curve.power, power_rate(plan.curve.n, 0.1, 0.12), atol=0.01)


@given(st.floats(0.01, 10), st.sampled_from([1e-6, 1e5]), st.sampled_from(["fixed", "anytime"]))
@settings(deadline=None, max_examples=30)
def test_another_unit_needs_as_many(effect: float, scale: float, horizon: str) -> None:
    plain = plan_experiment(effect, std=1.0, horizon=horizon)
    assert abs(plan_experiment(-effect * scale, std=scale, horizon=horizon).n - plain.n) <= 1 + 1e-9 * plain.n


def test_it_is_json() -> None:
    found = json.loads(json.dumps(plan_experiment(0.1, std=1.0).to_dict()))
    assert found["horizon"] == "anytime" and len(found["curve"]["n"]) == len(found["curve"]["power"])


BAD: list[Any] = [
    lambda: plan_experiment(0.0, std=1.0),
    lambda: plan_experiment(math.nan, std=1.0),
    lambda: plan_experiment(0.1),
    lambda: plan_experiment(0.1, std=1.0, baseline_rate=0.5),
    lambda: plan_experiment(0.1, std=0.0),
    lambda: plan_experiment(0.6, baseline_rate=0.5),
    lambda: plan_experiment(0.1, baseline_rate=math.nan),
    lambda: plan_experiment(0.1, std=1.0, horizon="bayes"),
    lambda: plan_experiment(0.1, std=1.0, horizon="group-sequential"),
    lambda: plan_experiment(0.1, std=1.0, horizon="group-sequential", inflation=0.9),
    lambda: plan_experiment(0.1, std=1.0, inflation=1.1),
    lambda: plan_experiment(0.1, std=1.0, covariate_correlation=1.0),
    lambda: plan_experiment(0.1, std=1.0, alpha=0.0),
    lambda: plan_experiment(0.1, std=1.0, power=1.0),
    lambda: Traffic(share=1.0),
    lambda: Traffic(requests_per_s=0.0),
    lambda: Traffic(requests_per_unit=0.5),
    lambda: Traffic(correlation=2.0),
    lambda: Traffic(spent=-1),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()


def test_clustered_requests_find_the_effect_as_often_as_planned() -> None:
    traffic = Traffic(requests_per_unit=6, correlation=0.3)
    plan = plan_experiment(0.25, std=1.0, horizon="fixed", traffic=traffic)
    rng, users, found = np.random.default_rng(1), plan.units // 2, 0
    for _ in range(800):
        arms = []
        for shift in (0.0, 0.25):
            habit = shift + math.sqrt(0.3) * rng.normal(size=users)
            arms.append(RatioSummary.of(6 * habit + math.sqrt(0.7 * 6) * rng.normal(size=users), np.full(users, 6.0)))
        found += clustered_mean_test(*arms).p_value < 0.05
    assert 0.75 <= found / 800 <= 0.85


def test_looking_all_the_time_finds_the_effect_as_often_as_planned() -> None:
    plan = plan_experiment(0.3, std=1.0)
    rng, m, runs = np.random.default_rng(2), plan.n // 2, 1000
    differences = rng.normal(0.3, math.sqrt(2), (runs, m)).cumsum(axis=1) / math.sqrt(2 * m)
    bound = mixture_boundary(np.arange(1, m + 1) / m, 0.05, mixture_scale(0.05))
    assert 0.78 <= (np.abs(differences) >= bound).any(axis=1).mean() <= 0.86  # looked at more than 100 times


def test_a_covariate_saves_what_it_says() -> None:
    plan = plan_experiment(0.5, std=2.0, horizon="fixed", covariate_correlation=0.8)
    rng, m = np.random.default_rng(3), plan.n // 2
    residual = 2.0 * math.sqrt(1 - 0.64)  # what is left once the covariate is taken out
    found = sum(
        welch_t_test(MeanSummary.of(rng.normal(0, residual, m)), MeanSummary.of(rng.normal(0.5, residual, m))).p_value
        < 0.05
        for _ in range(1000)
    )
    assert 0.76 <= found / 1000 <= 0.84
