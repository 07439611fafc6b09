"""Beta-binomial sequences: against their formula, exact means, coverage under peeking, and any edge of 0 and 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from abswitch.errors import InvalidInput
from abswitch.stats import RateSummary
from abswitch.stats.rate_sequences import beta_binomial_difference, beta_binomial_log_e, beta_binomial_sequence

arms = st.integers(1, 300).flatmap(lambda n: st.integers(0, n).map(lambda k: RateSummary(n, k)))


@given(arms, st.floats(0.01, 0.99))
def test_it_is_the_beta_binomial_over_the_binomial(arm: RateSummary, rate: float) -> None:
    want = stats.betabinom.logpmf(arm.successes, arm.n, 0.5, 0.5) - stats.binom.logpmf(arm.successes, arm.n, rate)
    assert math.isclose(beta_binomial_log_e(arm, rate), float(want), rel_tol=1e-6, abs_tol=1e-6)


@given(st.integers(1, 50), st.floats(0.01, 0.99))
def test_its_mean_is_one_at_the_true_rate(n: int, rate: float) -> None:
    e = [math.exp(beta_binomial_log_e(RateSummary(n, k), rate)) for k in range(n + 1)]
    assert math.isclose(float(stats.binom.pmf(range(n + 1), n, rate) @ np.array(e)), 1.0, rel_tol=1e-9)


@given(arms)
def test_the_interval_ends_where_the_e_value_is_one_over_alpha(arm: RateSummary) -> None:
    low, high = beta_binomial_sequence(arm)
    assert 0 <= low <= arm.mean <= high <= 1 and low < high
    for end in (low, high):
        if 0 < end < 1:
            assert math.isclose(beta_binomial_log_e(arm, end), math.log(20), rel_tol=1e-6)
    mirrored = beta_binomial_sequence(RateSummary(arm.n, arm.n - arm.successes))
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(arms, arms)
def test_the_least_product_is_found(a: RateSummary, b: RateSummary) -> None:
    found = beta_binomial_difference(a, b)

    def product(rate: float) -> float:
        return beta_binomial_log_e(a, rate) + beta_binomial_log_e(b, rate)

    want = optimize.minimize_scalar(product, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-12})
    assert math.isclose(math.log(found.e_value), float(want.fun), rel_tol=1e-4, abs_tol=1e-4)
    if abs(math.log(found.e_value) - math.log(20)) > 1e-3:
        assert found.excludes_zero() == (found.p_value < 0.05)
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    swapped = beta_binomial_difference(b, a)
    assert swapped.low == pytest.approx(-found.high, abs=1e-6) and swapped.e_value == pytest.approx(found.e_value)


def test_peeked_at_throughout_with_rare_errors_in_a_small_arm() -> None:
    rng, wrong, missed = np.random.default_rng(1), 0, 0
    for _ in range(100):
        a, b, ever, off = RateSummary(0, 0), RateSummary(0, 0), False, False
        for _look in range(20):
            n, m = 95, 5
            a += RateSummary(n, int(rng.binomial(n, 0.02)))
            b += RateSummary(m, int(rng.binomial(m, 0.02)))
            ever |= beta_binomial_difference(a, b).excludes_zero()
            low, high = beta_binomial_sequence(b)
            off |= not low <= 0.02 <= high
        wrong, missed = wrong + ever, missed + off
    assert wrong <= 5 and missed <= 8


def test_a_difference_is_found() -> None:
    found = beta_binomial_difference(RateSummary(2000, 200), RateSummary(2000, 320))
    assert found.excludes_zero() and found.low < 0.06 < found.high and found.standard_error > 0


@pytest.mark.parametrize(("a", "b"), [((50, 0), (50, 0)), ((50, 50), (50, 50)), ((50, 0), (50, 50)), ((1, 1), (1, 0))])
def test_arms_that_do_not_vary_have_wide_intervals(a: tuple[int, int], b: tuple[int, int]) -> None:
    found = beta_binomial_difference(RateSummary(*a), RateSummary(*b))
    assert found.attainable and found.high - found.low > 0.05 and found.low <= found.estimate <= found.high
    assert math.isfinite(found.standard_error) and found.standard_error > 0


def test_no_trials_are_no_result() -> None:
    assert beta_binomial_sequence(RateSummary(0, 0)) == (0.0, 1.0)
    found = beta_binomial_difference(RateSummary(0, 0), RateSummary(5, 1))
    assert found.why_not == "not attainable: 0 and 5 trials, and each arm needs one"


@pytest.mark.parametrize(
    "call",
    [
        lambda: beta_binomial_sequence(RateSummary(5, 1), alpha=0.0),
        lambda: beta_binomial_difference(RateSummary(5, 1), RateSummary(5, 1), alpha=1.0),
        lambda: beta_binomial_log_e(RateSummary(5, 1), 1.1),
    ],
)
def test_bad_input_is_refused(call: Any) -> None:
    with pytest.raises(InvalidInput):
        call()
