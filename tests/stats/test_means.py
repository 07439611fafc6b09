"""Welch's t against SciPy, its invariances, and where it has no answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import Comparison, MeanSummary, welch_t_test

samples = st.lists(st.integers(-1000, 1000).map(float), min_size=2, max_size=25)


def compare(left: list[float], right: list[float], alpha: float = 0.05) -> Comparison:
    return welch_t_test(MeanSummary.of(left), MeanSummary.of(right), alpha=alpha)


def close(got: float, want: float, size: float = 1.0) -> bool:
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9 * max(1.0, size))


@given(samples, samples, st.sampled_from([0.001, 0.05, 0.2]))
def test_welch_is_that_of_scipy(left: list[float], right: list[float], alpha: float) -> None:
    assume(np.var(left) + np.var(right) > 0)
    found = compare(left, right, alpha)
    want = stats.ttest_ind(right, left, equal_var=False)
    interval = want.confidence_interval(1 - alpha)
    assert close(found.p_value, float(want.pvalue))
    assert found.df is not None and close(found.df, float(want.df))
    assert close(found.low, float(interval.low), 1000) and close(found.high, float(interval.high), 1000)
    assert close(found.estimate, float(np.mean(right) - np.mean(left)), 1000)


def test_from_summaries_alone_it_is_that_of_scipy() -> None:
    a, b = MeanSummary.from_moments(40, 10.0, 4.0), MeanSummary.from_moments(25, 11.0, 9.0)
    want = stats.ttest_ind_from_stats(11.0, 3.0, 25, 10.0, 2.0, 40, equal_var=False)
    assert close(welch_t_test(a, b).p_value, float(want.pvalue))


def test_each_arm_has_its_own_t_interval() -> None:
    data = [3.0, 5.0, 9.0, 4.0]
    found = compare(data, data[::-1])
    low, high = stats.t.interval(0.95, 3, np.mean(data), stats.sem(data))
    for arm in (found.baseline, found.candidate):
        assert arm.n == 4 and close(arm.low, float(low)) and close(arm.high, float(high))


@given(samples, samples)
def test_swapping_the_arms_turns_the_sign(left: list[float], right: list[float]) -> None:
    there, back = compare(left, right), compare(right, left)
    assume(there.attainable)
    assert close(there.estimate, -back.estimate, 1000) and close(there.p_value, back.p_value)
    assert close(there.low, -back.high, 1000) and close(there.high, -back.low, 1000)


@given(samples, samples, st.integers(-10_000, 10_000))
def test_an_offset_in_both_arms_changes_nothing(left: list[float], right: list[float], offset: int) -> None:
    plain = compare(left, right)
    moved = compare([x + offset for x in left], [x + offset for x in right])
    assert plain.attainable == moved.attainable
    if plain.attainable:
        assert close(plain.low, moved.low, 1e4) and close(plain.high, moved.high, 1e4)
        assert math.isclose(plain.p_value, moved.p_value, rel_tol=1e-6, abs_tol=1e-9)


@given(samples, samples, st.sampled_from([1e-150, 0.001, 2.0, 1e6, 1e100]))
def test_another_unit_scales_the_estimate_and_leaves_p(left: list[float], right: list[float], scale: float) -> None:
    plain, scaled = compare(left, right), compare([x * scale for x in left], [x * scale for x in right])
    assert plain.attainable == scaled.attainable
    if plain.attainable:
        assert math.isclose(plain.p_value, scaled.p_value, rel_tol=1e-6, abs_tol=1e-9)
        assert math.isclose(plain.low * scale, scaled.low, rel_tol=1e-6, abs_tol=1e-6 * scale)
        assert math.isclose(plain.standard_error * scale, scaled.standard_error, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        ([], [1.0, 2.0], "the baseline has 0"),
        ([1.0, 2.0], [], "the candidate has 0"),
        ([1.0], [1.0, 2.0], "the baseline has 1"),
        ([0.1] * 5, [0.2] * 9, "neither arm varies"),
        ([-1.7e308] * 2, [1.7e308] * 2, "too large"),
    ],
)
def test_where_there_is_no_answer_it_says_why(left: list[float], right: list[float], why: str) -> None:
    found = compare(left, right)
    assert not found.attainable and found.why_not is not None and why in found.why_not
    assert math.isnan(found.estimate) and math.isnan(found.p_value)
    assert not found.excludes_zero() and not found.within(1e9)
    assert found.to_dict()["estimate"] is None and found.to_dict()["attainable"] is False


def test_huge_numbers_are_told_apart_from_no_answer() -> None:
    huge = welch_t_test(MeanSummary(20, -1.7e308, 1e300), MeanSummary(20, 1.7e308, 1e300))
    assert not huge.attainable


def test_one_constant_arm_is_compared_and_noted() -> None:
    found = compare([5.0] * 10, [4.0, 6.0, 8.0])
    want = stats.ttest_ind([4.0, 6.0, 8.0], [5.0] * 10, equal_var=False)
    assert close(found.p_value, float(want.pvalue))
    assert found.notes == ("no variation in the baseline",)
    assert math.isnan(found.baseline.low)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 0.6, math.nan, True, "0.05"])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(InvalidInput, match="alpha"):
        compare([1.0, 2.0], [2.0, 3.0], alpha)


def test_the_relative_difference_needs_a_baseline() -> None:
    assert math.isclose(compare([9.0, 11.0], [10.0, 12.0]).relative, 0.1)
    assert math.isclose(compare([-9.0, -11.0], [-10.0, -12.0]).relative, -0.1)
    assert math.isnan(compare([-1.0, 1.0], [0.0, 2.0]).relative)
