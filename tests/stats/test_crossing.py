"""The power of looking at any time, against simulated paths and what the design asks for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from abswitch.errors import InvalidInput
from abswitch.stats.crossing import (
    LOOKS,
    anytime_expected_share,
    anytime_noncentrality,
    anytime_power,
    mixture_boundary,
    mixture_scale,
)
from abswitch.stats.power import two_sided_power

FIXED = 2.8015852  # the noncentrality that one look finds four times in five


@pytest.mark.parametrize(("drift", "tuned_at", "alpha"), [(0.0, 1.0, 0.2), (2.8, 1.0, 0.05), (3.8, 0.3, 0.01)])
def test_it_is_what_simulated_paths_do(drift: float, tuned_at: float, alpha: float) -> None:
    runs = 20_000
    steps = np.random.default_rng(1).normal(drift / LOOKS, LOOKS**-0.5, (runs, LOOKS))
    bound = mixture_boundary(np.arange(1, LOOKS + 1) / LOOKS, alpha, mixture_scale(alpha, tuned_at))
    crossed = np.abs(steps.cumsum(axis=1)) >= bound
    power, share = crossed.any(axis=1).mean(), np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, LOOKS).mean()
    assert math.isclose(float(anytime_power([drift], alpha=alpha, tuned_at=tuned_at)[0]), power, abs_tol=0.012)
    expected = anytime_expected_share(drift, alpha=alpha, tuned_at=tuned_at)
    assert math.isclose(expected, share / LOOKS, abs_tol=0.012)


def test_it_finds_half_at_the_number_of_one_look_and_most_at_twice_that() -> None:
    once, twice = anytime_power([FIXED, FIXED * math.sqrt(2)])
    assert once >= 0.5 and twice >= 0.85


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("tuned_at", [0.1, 1.0, 5.0])
def test_equals_are_told_apart_less_often_than_alpha(alpha: float, tuned_at: float) -> None:
    assert 0 <= float(anytime_power([0.0], alpha=alpha, tuned_at=tuned_at)[0]) < alpha


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=5))
def test_both_directions_are_alike_and_more_is_found_more(drifts: list[float]) -> None:
    found, turned = anytime_power(drifts), anytime_power([-x for x in drifts])
    assert np.allclose(found, turned, atol=1e-9) and ((found >= 0) & (found <= 1)).all()
    assert (found <= two_sided_power(drifts) + 1e-6).all()
    assert (anytime_power([abs(x) + 0.5 for x in drifts]) >= found - 1e-9).all()


@pytest.mark.parametrize("power", [0.5, 0.8, 0.99])
def test_noncentrality_and_power_are_inverse(power: float) -> None:
    assert math.isclose(float(anytime_power([anytime_noncentrality(power)])[0]), power, abs_tol=1e-7)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_scale_makes_the_boundary_lowest_where_it_was_tuned(alpha: float) -> None:
    want = optimize.minimize_scalar(
        lambda rho: float(mixture_boundary(np.array([3.0]), alpha, rho)[0]), bounds=(1e-3, 5), method="bounded"
    )
    assert math.isclose(mixture_scale(alpha, 3.0), float(want.x), rel_tol=1e-3)


BAD: list[Any] = [
    lambda: anytime_power([math.nan]),
    lambda: anytime_power([1.0], alpha=0.0),
    lambda: anytime_power([1.0], tuned_at=0.0),
    lambda: anytime_noncentrality(0.2),
    lambda: anytime_expected_share(math.inf),
    lambda: mixture_scale(0.05, -1.0),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()
