"""Planning against statsmodels, textbooks and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from statsmodels.stats import power as peer

from abswitch.errors import InvalidInput
from abswitch.stats import (
    RateSummary,
    detectable_effect,
    mde_mean,
    mde_rate,
    required_n_mean,
    required_n_rate,
    two_proportion_z_test,
    units_needed,
)
from abswitch.stats.power import design_effect, power_mean, power_rate, required_pairs


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
@pytest.mark.parametrize(("effect", "alpha", "power"), [(0.5, 0.05, 0.8), (0.1, 0.01, 0.9)])
def test_units_for_means_are_those_of_statsmodels(share: float, effect: float, alpha: float, power: float) -> None:
    ratio = share / (1 - share)
    baseline = peer.NormalIndPower().solve_power(effect, alpha=alpha, power=power, ratio=ratio)
    got = required_n_mean(2 * effect, 2.0, share=share, alpha=alpha, power=power)
    assert math.isclose(got, baseline * (1 + ratio), abs_tol=1.0)


@pytest.mark.parametrize("n", [20, 600, 10_000])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_effects_and_units_of_means_are_inverse(n: int, share: float) -> None:
    assert abs(required_n_mean(mde_mean(n, 3.0, share=share), 3.0, share=share) - n) <= 1


def test_units_for_rates_are_the_published_ones() -> None:
    # By Fleiss, Levin & Paik's eq. 4.14, without continuity correction, an arm:
    assert required_n_rate(0.6, 0.7) == 2 * 356
    assert required_n_rate(0.1, 0.2) == 2 * 199


@pytest.mark.parametrize(("baseline", "candidate", "share"), [(0.6, 0.7, 0.5), (0.05, 0.02, 0.5), (0.5, 0.65, 0.2)])
def test_so_many_units_find_the_difference_four_times_in_five(baseline: float, candidate: float, share: float) -> None:
    n = required_n_rate(baseline, candidate, share=share)
    n_b = round(n * share)
    rng = np.random.default_rng(1)
    draws = zip(rng.binomial(n - n_b, baseline, 1000), rng.binomial(n_b, candidate, 1000), strict=True)
    found = (two_proportion_z_test(RateSummary(n - n_b, int(a)), RateSummary(n_b, int(b))) for a, b in draws)
    assert 0.75 <= sum(one.p_value < 0.05 for one in found) / 1000 <= 0.85


@pytest.mark.parametrize(("n", "baseline"), [(600, 0.58), (200, 0.02), (5000, 0.5)])
def test_effects_and_units_of_rates_are_inverse(n: int, baseline: float) -> None:
    effect = mde_rate(n, baseline)
    assert 0 < effect <= 1 - baseline
    assert abs(required_n_rate(baseline, baseline + effect) - n) <= 1


def test_an_increase_beyond_one_is_not_detectable() -> None:
    assert math.isnan(mde_rate(20, 0.95))
    assert math.isnan(mde_rate(20, 1.0))


def test_units_needed_grow_with_the_square() -> None:
    assert units_needed(600, 0.03, detectable_effect(0.03)) == 600
    assert math.isclose(units_needed(600, 0.03, detectable_effect(0.03) / 2), 2400, abs_tol=1)


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("effect", [0.2, -0.3, 0.0])
def test_power_of_means_is_that_of_statsmodels(share: float, effect: float) -> None:
    n = np.array([[50.0, 200.0], [1000.0, 5000.0]])
    got = power_mean(n, effect * 2.0, 2.0, share=share)
    want = [[peer.NormalIndPower().power(effect, m * (1 - share), 0.05, share / (1 - share)) for m in row] for row in n]
    assert got.shape == (2, 2) and np.allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize(("baseline", "candidate", "share"), [(0.6, 0.7, 0.5), (0.05, 0.02, 0.2), (0.0, 0.01, 0.5)])
def test_power_of_rates_and_units_are_inverse(baseline: float, candidate: float, share: float) -> None:
    n = required_n_rate(baseline, candidate, share=share, power=0.9)
    assert math.isclose(float(power_rate(n, baseline, candidate, share=share)), 0.9, abs_tol=2e-3)


def test_equal_rates_are_found_as_often_as_alpha_and_certain_ones_always() -> None:
    assert np.allclose(power_rate([10, 1000], 0.3, 0.3), 0.05)
    assert power_rate([4, 100], 0.0, 1.0).tolist() == [1.0, 1.0]
    assert power_rate([100], 0.0, 0.0).tolist() == [0.0]


def test_the_design_effect_is_that_of_kish_and_of_eldridge() -> None:
    # 1 + (10 − 1) 0.05; with unequal sizes 1 + ((1 + 0.65²) 10 − 1) 0.05
    assert math.isclose(design_effect(10, 0.05), 1.45)
    assert math.isclose(design_effect(10, 0.05, size_cv=0.65), 1.66125)
    assert design_effect(1, 0.5) == 1.0 and design_effect(20, 1.0) == 20.0


@pytest.mark.parametrize(("effect", "alpha", "power"), [(0.5, 0.05, 0.8), (1.5, 0.05, 0.9), (0.1, 0.01, 0.8)])
def test_pairs_are_those_of_statsmodels(effect: float, alpha: float, power: float) -> None:
    want = peer.TTestPower().solve_power(effect, alpha=alpha, power=power)
    assert required_pairs(2 * effect, 2.0, alpha=alpha, power=power) == math.ceil(want)


def test_clustered_requests_vary_as_the_design_effect_says() -> None:
    rng, size, icc = np.random.default_rng(2), 8, 0.3
    values = math.sqrt(icc) * rng.normal(size=(4000, 50, 1)) + math.sqrt(1 - icc) * rng.normal(size=(4000, 50, size))
    assert math.isclose(values.mean(axis=(1, 2)).var() * 50 * size, design_effect(size, icc), rel_tol=0.06)


BAD: list[Any] = [
    lambda: power_mean([1], 0.1, 1.0),
    lambda: power_mean([math.nan], 0.1, 1.0),
    lambda: power_mean([10], math.inf, 1.0),
    lambda: power_mean([10], 0.1, 0.0),
    lambda: power_mean([10], 0.1, 1.0, alpha=0.0),
    lambda: power_rate([10], 0.1, 1.1),
    lambda: power_rate([10], 0.1, 0.2, share=1.0),
    lambda: required_pairs(0.0, 1.0),
    lambda: required_pairs(1.0, 0.0),
    lambda: design_effect(0.5, 0.1),
    lambda: design_effect(5, 1.1),
    lambda: design_effect(5, 0.1, size_cv=-1.0),
    lambda: detectable_effect(-1.0),
    lambda: detectable_effect(math.nan),
    lambda: detectable_effect(1.0, alpha=0.0),
    lambda: detectable_effect(1.0, power=1.0),
    lambda: detectable_effect(1.0, power=0.2),
    lambda: units_needed(0, 1.0, 1.0),
    lambda: units_needed(10, 1.0, 0.0),
    lambda: units_needed(10, 1.0, 1e-300),
    lambda: required_n_mean(0.0, 1.0),
    lambda: required_n_mean(1.0, 1.0, share=1.0),
    lambda: required_n_mean(1.0, 1.0, share=0.0),
    lambda: required_n_rate(0.5, 0.5),
    lambda: required_n_rate(0.5, 1.5),
    lambda: required_n_rate(0.5, 0.6, share=1.0),
    lambda: mde_mean(1, 1.0),
    lambda: mde_rate(100, -0.1),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()
