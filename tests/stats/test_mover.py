"""The interval of a difference from those of its sides."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from abswitch.stats import ArmEstimate
from abswitch.stats.mover import implied_error, recovered_interval, recovered_p

values = st.floats(-1e6, 1e6)
reaches = st.floats(1e-3, 1e5)


def arm(value: float, below: float, above: float) -> ArmEstimate:
    return ArmEstimate(n=9, value=value, low=value - below, high=value + above)


@given(values, reaches, values, reaches)
def test_symmetric_intervals_add_like_standard_errors(a: float, half_a: float, b: float, half_b: float) -> None:
    low, high = recovered_interval(arm(a, half_a, half_a), arm(b, half_b, half_b))
    half = math.hypot(half_a, half_b)
    assert math.isclose(low, b - a - half, rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(high, b - a + half, rel_tol=1e-9, abs_tol=1e-6)


@given(values, reaches, reaches, values, reaches, reaches)
def test_swapping_the_sides_turns_the_interval(
    a: float, below_a: float, above_a: float, b: float, below_b: float, above_b: float
) -> None:
    one, other = arm(a, below_a, above_a), arm(b, below_b, above_b)
    low, high = recovered_interval(one, other)
    assert recovered_interval(other, one) == (-high, -low)


@given(values, reaches, reaches, st.sampled_from([0.01, 0.05, 0.2]), st.sampled_from([None, 3.0, 40.5]))
def test_p_is_below_alpha_exactly_where_0_is_excluded(
    estimate: float, below: float, above: float, alpha: float, df: float | None
) -> None:
    low, high = estimate - below, estimate + above
    p_value = recovered_p(estimate, low, high, alpha, df)
    assert 0.0 <= p_value <= 1.0
    if min(abs(low), abs(high)) > 1e-6:
        assert (p_value < alpha) == (low > 0 or high < 0)


def test_for_a_t_interval_they_are_those_of_t() -> None:
    quantile = stats.t.ppf(0.975, 7)
    assert math.isclose(recovered_p(2.0, 2 - quantile, 2 + quantile, 0.05, 7), 2 * stats.t.sf(2.0, 7))
    assert math.isclose(implied_error(2 - quantile, 2 + quantile, 0.05, 7), 1.0)
    assert math.isclose(recovered_p(-2.0, -2 - 1.959964, -2 + 1.959964, 0.05), 2 * stats.norm.sf(2.0), rel_tol=1e-5)


def test_where_there_is_nothing_to_divide_by() -> None:
    assert recovered_p(0.0, -1.0, 1.0, 0.05) == 1.0
    assert recovered_p(1.0, 1.0, 1.0, 0.05) == 0.0
    assert math.isnan(recovered_p(math.nan, math.nan, math.nan, 0.05))
