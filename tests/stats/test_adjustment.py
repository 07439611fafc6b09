"""CUPED and Lin's adjustment against regressions of statsmodels, their invariances, and how often they err."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from abswitch.errors import InvalidInput
from abswitch.stats.adjustment import (
    CovariateSummary,
    RatioCovariateSummary,
    cuped_summaries,
    cuped_test,
    cuped_theta,
    lin_test,
)
from abswitch.stats.comparison import Comparison
from abswitch.stats.means import welch_t_test
from abswitch.stats.summaries import MeanSummary

Floats = NDArray[np.float64]
pairs = st.lists(st.tuples(st.integers(-100, 100), st.integers(-100, 100)), min_size=0, max_size=20)
TESTS = [cuped_test, lin_test]


def summary(rows: list[tuple[int, int]]) -> CovariateSummary:
    return CovariateSummary.of([float(y) for y, _ in rows], [float(x) for _, x in rows])


def draw(rng: np.random.Generator, n: int, effect: float = 0.0, slope: float = 1.0) -> tuple[Floats, Floats]:
    x = rng.normal(3.0, 1.0, n)
    return effect + slope * x + rng.normal(0.0, 0.6, n), x


def close(got: float, want: float) -> bool:
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9)


def test_the_estimate_of_cuped_is_that_of_an_analysis_of_covariance() -> None:
    rng = np.random.default_rng(1)
    (ya, xa), (yb, xb) = draw(rng, 60), draw(rng, 40, 0.3)
    arm = np.r_[np.zeros(60), np.ones(40)]
    fit = sm.OLS(np.r_[ya, yb], sm.add_constant(np.column_stack([arm, np.r_[xa, xb]]))).fit()
    a, b = CovariateSummary.of(ya, xa), CovariateSummary.of(yb, xb)
    found = cuped_test(a, b)
    assert close(found.estimate, float(fit.params[1]))
    assert close(cuped_theta(a, b), float(fit.params[2]))
    assert math.isclose(found.standard_error, float(fit.bse[1]), rel_tol=0.05)  # Welch's, not the pooled one


def test_cuped_is_welch_of_the_adjusted_values() -> None:
    rng = np.random.default_rng(2)
    (ya, xa), (yb, xb) = draw(rng, 30), draw(rng, 50)
    a, b = CovariateSummary.of(ya, xa), CovariateSummary.of(yb, xb)
    theta, centre = cuped_theta(a, b), np.r_[xa, xb].mean()
    plain = welch_t_test(MeanSummary.of(ya - theta * (xa - centre)), MeanSummary.of(yb - theta * (xb - centre)))
    found = cuped_test(a, b)
    assert close(found.estimate, plain.estimate)
    assert close(found.standard_error, plain.standard_error * math.sqrt(78 / 77))
    assert close(found.candidate.value, plain.candidate.value)


def test_lin_is_two_regressions_read_at_the_common_mean() -> None:
    rng = np.random.default_rng(3)
    (ya, xa), (yb, xb) = draw(rng, 50), draw(rng, 20, 0.2, slope=2.0)
    centre = np.r_[xa, xb].mean()
    at = [
        sm.OLS(y, sm.add_constant(x)).fit().get_prediction(np.array([[1.0, centre]])) for y, x in ((ya, xa), (yb, xb))
    ]
    found = lin_test(CovariateSummary.of(ya, xa), CovariateSummary.of(yb, xb))
    a, b = (float(one.predicted_mean[0]) for one in at)
    assert close(found.estimate, b - a) and close(found.baseline.value, a)
    slopes = np.polyfit(xb, yb, 1)[0] - np.polyfit(xa, xa * 0 + ya, 1)[0]
    variance = sum(float(one.se_mean[0]) ** 2 for one in at) + slopes**2 * np.var(np.r_[xa, xb], ddof=1) / 70
    assert close(found.standard_error, math.sqrt(variance))
    low, high = at[1].conf_int(alpha=0.05)[0]
    assert close(found.candidate.low, float(low)) and close(found.candidate.high, float(high))


def test_lin_estimates_the_coefficient_of_the_interacted_regression() -> None:
    rng = np.random.default_rng(4)
    (ya, xa), (yb, xb) = draw(rng, 40), draw(rng, 30, 0.5, slope=0.2)
    arm, x = np.r_[np.zeros(40), np.ones(30)], np.r_[xa, xb]
    centred = x - x.mean()
    fit = sm.OLS(np.r_[ya, yb], sm.add_constant(np.column_stack([arm, centred, arm * centred]))).fit()
    found = lin_test(CovariateSummary.of(ya, xa), CovariateSummary.of(yb, xb))
    assert close(found.estimate, float(fit.params[1]))


def test_a_covariate_that_correlates_leaves_the_rest_of_the_variance() -> None:
    rng = np.random.default_rng(5)
    (ya, xa), (yb, xb) = draw(rng, 4000), draw(rng, 4000)
    found = cuped_test(CovariateSummary.of(ya, xa), CovariateSummary.of(yb, xb))
    left = 1 - np.corrcoef(np.r_[ya, yb], np.r_[xa, xb])[0, 1] ** 2  # 0.36 / 1.36
    plain = welch_t_test(MeanSummary.of(ya), MeanSummary.of(yb))
    assert math.isclose((found.standard_error / plain.standard_error) ** 2, left, rel_tol=0.02)
    assert found.notes == (f"the covariate takes the variance to {left:.0%} of the unadjusted one",)


@given(pairs, pairs, pairs)
def test_merging_is_the_summary_of_all(one: list[tuple[int, int]], two: list[tuple[int, int]], rest: Any) -> None:
    merged, whole = summary(one) + summary(two) + summary(rest), summary(one + two + rest)
    for name in CovariateSummary.__slots__:
        got, want = getattr(merged, name), getattr(whole, name)
        assert (math.isnan(got) and math.isnan(want)) or math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-6)


@given(pairs, pairs, st.sampled_from(TESTS))
def test_swapping_the_arms_turns_the_sign(left: Any, right: Any, test: Any) -> None:
    there, back = test(summary(left), summary(right)), test(summary(right), summary(left))
    assert there.attainable == back.attainable
    if there.attainable:
        assert math.isclose(there.estimate, -back.estimate, abs_tol=1e-9)
        assert math.isclose(there.low, -back.high, rel_tol=1e-6, abs_tol=1e-6)


@given(pairs, pairs, st.sampled_from(TESTS), st.sampled_from([0.01, 3.0, 1e6]), st.sampled_from([-2.0, 0.001, 1e5]))
def test_units_scale_the_estimate_and_those_of_the_covariate_do_not_matter(
    left: Any, right: Any, test: Any, scale: float, other: float
) -> None:
    def scaled(rows: list[tuple[int, int]]) -> CovariateSummary:
        return CovariateSummary.of([y * scale for y, _ in rows], [x * other + 7 * other for _, x in rows])

    plain, moved = test(summary(left), summary(right)), test(scaled(left), scaled(right))
    assert plain.attainable == moved.attainable
    if plain.attainable:
        assert math.isclose(plain.estimate * scale, moved.estimate, rel_tol=1e-6, abs_tol=1e-6 * scale)
        assert math.isclose(plain.standard_error * scale, moved.standard_error, rel_tol=1e-5, abs_tol=1e-6 * scale)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        ([], [(1, 2), (2, 3), (4, 4)], "the baseline has 0"),
        ([(1, 2), (2, 3), (4, 4)], [(1, 1)], "the candidate has 1"),
        ([(1, 2)] * 5, [(1, 3)] * 5, "neither arm varies"),
        ([(x, 2 * x) for x in range(9)], [(x + 1, 2 * x) for x in range(9)], "neither arm varies"),
    ],
)
def test_where_there_is_no_answer_it_says_why(test: Any, left: Any, right: Any, why: str) -> None:
    found = test(summary(left), summary(right))
    assert not found.attainable and why in found.why_not and math.isnan(found.estimate)


def test_two_units_an_arm_are_too_few_for_a_slope() -> None:
    found = cuped_test(summary([(1, 2), (2, 5)]), summary([(1, 2), (4, 1)]))
    assert found.why_not is not None and "5 units" in found.why_not


@pytest.mark.parametrize("test", TESTS)
def test_a_constant_covariate_changes_nothing(test: Any) -> None:
    a, b = CovariateSummary.of([1.0, 2.0, 4.0], [3.0] * 3), CovariateSummary.of([2.0, 5.0, 9.0], [3.0] * 3)
    found, plain = test(a, b), welch_t_test(a.without_covariate, b.without_covariate)
    assert close(found.p_value, plain.p_value) and found.notes == ("the covariate does not vary: no adjustment",)


def test_a_covariate_constant_in_one_arm_is_used_in_the_other() -> None:
    a, b = summary([(1, 3), (2, 3), (4, 3)]), summary([(1, 1), (2, 4), (3, 5), (9, 7)])
    assert cuped_test(a, b).attainable and lin_test(a, b).attainable


@pytest.mark.parametrize("bad", [math.nan, math.inf, "x", None])
def test_bad_values_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        CovariateSummary.of([1.0, bad], [1.0, 2.0])
    with pytest.raises(InvalidInput):
        CovariateSummary.of([1.0, 2.0], [bad, 2.0])


def test_arrays_of_different_lengths_and_impossible_moments_are_refused() -> None:
    with pytest.raises(InvalidInput):
        CovariateSummary.of([1.0], [1.0, 2.0])
    with pytest.raises(InvalidInput, match="c_xy"):
        CovariateSummary.from_moments(10, 0.0, 0.0, 1.0, 1.0, 1.5)
    with pytest.raises(InvalidInput, match="alpha"):
        cuped_test(summary([]), summary([]), alpha=0.9)


def test_from_moments_of_sql_is_from_arrays() -> None:
    y, x = draw(np.random.default_rng(6), 50)
    covariance = np.cov(y, x)
    got = CovariateSummary.from_moments(50, y.mean(), x.mean(), covariance[0, 0], covariance[1, 1], covariance[0, 1])
    want = CovariateSummary.of(y, x)
    assert all(close(getattr(got, name), getattr(want, name)) for name in CovariateSummary.__slots__)
    assert CovariateSummary.from_moments(0, None, None, None, None, None).n == 0


def test_an_empty_arm_stays_empty() -> None:
    assert math.isnan(cuped_summaries(summary([]), summary([(1, 2), (3, 4)]))[0].mean)


def simulated(test: Any, n: int, runs: int, effect: float = 0.0) -> list[Comparison]:
    rng = np.random.default_rng(7)
    arms = ((CovariateSummary.of(*draw(rng, n)), CovariateSummary.of(*draw(rng, 2 * n, effect))) for _ in range(runs))
    return [test(*both) for both in arms]


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("n", [10, 100])
def test_equal_arms_are_told_apart_as_often_as_alpha_says(test: Any, n: int) -> None:
    wrong = sum(found.p_value < 0.05 for found in simulated(test, n, 2000)) / 2000
    assert 0.035 <= wrong <= 0.065


@pytest.mark.parametrize("test", TESTS)
def test_a_small_effect_is_found_that_the_plain_test_misses(test: Any) -> None:
    found = simulated(test, 30, 500, effect=0.45)
    assert sum(one.p_value < 0.05 for one in found) / 500 > 0.8


def users(rng: np.random.Generator, n: int) -> tuple[Floats, Floats, Floats]:
    """Sum and count of each user's requests, and the user's mean before the test."""
    habit, requests = rng.normal(10.0, 2.0, n), rng.integers(2, 12, n).astype(float)
    return requests * habit + rng.normal(0.0, 1.0, n) * np.sqrt(requests), requests, habit + rng.normal(0.0, 0.5, n)


def test_a_ratio_of_one_request_a_unit_is_its_mean() -> None:
    y, x = draw(np.random.default_rng(8), 30)
    got, want = RatioCovariateSummary.of(y, np.ones(30), x).linearised, CovariateSummary.of(y, x)
    assert all(close(getattr(got, name), getattr(want, name)) for name in CovariateSummary.__slots__)


def test_the_linearised_ratio_is_that_of_linearised_values() -> None:
    x, y, z = users(np.random.default_rng(9), 40)
    ratio = x.sum() / y.sum()
    got, want = RatioCovariateSummary.of(x, y, z).linearised, CovariateSummary.of((x - ratio * y) / y.mean(), z)
    assert close(got.mean, ratio) and close(got.m2, want.m2) and close(got.c_xy, want.c_xy)


def test_ratios_with_covariates_merge() -> None:
    rng = np.random.default_rng(10)
    one, two = users(rng, 7), users(rng, 12)
    merged = RatioCovariateSummary.of(*one) + RatioCovariateSummary.of(*two)
    whole = RatioCovariateSummary.of(*(np.r_[a, b] for a, b in zip(one, two, strict=True)))
    for name in ("mean_z", "m2_z", "c_xz", "c_yz"):
        assert close(getattr(merged, name), getattr(whole, name))
    assert close(merged.ratio.c_xy, whole.ratio.c_xy)
    empty = RatioCovariateSummary.of([], [], [])
    assert empty + merged == merged and empty.linearised.n == 0


def test_a_ratio_without_denominator_is_refused() -> None:
    with pytest.raises(InvalidInput, match="mean_y"):
        _ = RatioCovariateSummary.of([1.0, 2.0], [0.0, 0.0], [1.0, 3.0]).linearised


def test_few_users_with_many_requests_err_as_alpha_says_and_gain() -> None:
    rng, found = np.random.default_rng(11), []
    for _ in range(1500):
        a, b = (RatioCovariateSummary.of(*users(rng, 12)).linearised for _ in range(2))
        found.append((cuped_test(a, b), welch_t_test(a.without_covariate, b.without_covariate)))
    assert 0.03 <= sum(one.p_value < 0.05 for one, _ in found) / 1500 <= 0.065
    assert sum(one.standard_error < 0.6 * plain.standard_error for one, plain in found) / 1500 > 0.9
