"""Newey–West against statsmodels, its invariances, and where it holds and where it does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal

from abswitch.errors import InvalidInput
from abswitch.stats.timeseries import default_lags, long_run_variance, newey_west_test

Floats = NDArray[np.float64]
series_lists = st.lists(st.tuples(st.integers(-100, 100), st.booleans()), min_size=3, max_size=40)


def autoregressive(rng: np.random.Generator, memory: float, shape: tuple[int, int]) -> Floats:
    """Stationary AR(1), a series in each row."""
    noise = rng.normal(size=shape)
    noise[:, 0] /= math.sqrt(1 - memory**2)
    return np.asarray(signal.lfilter([1.0], [1.0, -memory], noise, axis=1))


def turns(n: int, length: int) -> NDArray[np.bool_]:
    return (np.arange(n) // length % 2).astype(bool)


@pytest.mark.parametrize("lags", [0, 1, 7])
def test_the_test_is_the_regression_of_statsmodels(lags: int) -> None:
    values = autoregressive(np.random.default_rng(1), 0.6, (1, 80))[0]
    arm = turns(80, 7)
    model = sm.OLS(values, sm.add_constant(arm.astype(float)))
    fit = model.fit(cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": True}, use_t=True)
    found = newey_west_test(values, arm, lags=lags)
    assert math.isclose(found.estimate, fit.params[1], rel_tol=1e-9)
    assert math.isclose(found.standard_error, fit.bse[1], rel_tol=1e-9)
    assert math.isclose(found.p_value, fit.pvalues[1], rel_tol=1e-9)
    assert np.allclose([found.low, found.high], fit.conf_int()[1]) and found.notes == (f"{lags} lags",)


def test_the_long_run_variance_is_that_of_the_model() -> None:
    values = autoregressive(np.random.default_rng(2), 0.5, (1, 200_000))[0]
    assert math.isclose(long_run_variance(values, lags=60), 4.0, rel_tol=0.05)  # 1 / (1 − 0.5)²
    assert math.isclose(long_run_variance(values, lags=0), 4 / 3, rel_tol=0.05)


def test_the_rule_of_thumb() -> None:
    assert [default_lags(n) for n in (0, 25, 100, 500)] == [0, 2, 4, 5]


@given(series_lists, st.sampled_from([-1.0, 1e-6, 1e7]), st.integers(0, 2))
def test_another_unit_scales_and_a_swap_turns(rows: Any, scale: float, lags: int) -> None:
    values, arm = np.array([float(x) for x, _ in rows]), np.array([y for _, y in rows])
    plain = newey_west_test(values, arm, lags=lags)
    moved, swapped = newey_west_test(values * scale, arm, lags=lags), newey_west_test(values, ~arm, lags=lags)
    assert plain.attainable == moved.attainable == swapped.attainable
    if plain.attainable:
        assert math.isclose(plain.estimate * scale, moved.estimate, rel_tol=1e-6, abs_tol=1e-6 * abs(scale))
        assert math.isclose(plain.p_value, moved.p_value, rel_tol=1e-5, abs_tol=1e-9)
        assert math.isclose(plain.low, -swapped.high, rel_tol=1e-6, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("values", "arm", "why"),
    [
        ([], [], "0 and 0 observations"),
        ([1.0, 2.0, 3.0], [True] * 3, "0 and 3 observations"),
        ([1.0, 2.0], [True, False], "1 and 1 observations"),
        ([0.1] * 6, [True, False] * 3, "neither arm varies"),
    ],
)
def test_where_there_is_no_answer_it_says_why(values: Any, arm: Any, why: str) -> None:
    found = newey_west_test(values, arm)
    assert found.why_not is not None and why in found.why_not and math.isnan(found.p_value)


BAD: list[Any] = [
    lambda: newey_west_test([1.0, math.nan, 2.0], [True, False, True]),
    lambda: newey_west_test([1.0, 2.0, 3.0], [True, False]),
    lambda: newey_west_test([1.0, 2.0, 3.0], [0, 1, 2]),
    lambda: newey_west_test([1.0, 2.0, 3.0], [0, 1, 0], lags=3),
    lambda: newey_west_test([1.0, 2.0, 3.0], [0, 1, 0], lags=-1),
    lambda: newey_west_test([1.0, 2.0, 3.0], [0, 1, 0], alpha=0.0),
    lambda: long_run_variance(["a"]),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()


def test_no_values_have_no_variance() -> None:
    assert math.isnan(long_run_variance([])) and long_run_variance([3.0] * 9) == 0.0


def wrong_share(memory: float, lags: int | None) -> float:
    series, arm = autoregressive(np.random.default_rng(3), memory, (1000, 600)), turns(600, 10)
    return sum(newey_west_test(row, arm, lags=lags).p_value < 0.05 for row in series) / 1000


def test_a_short_memory_is_allowed_for() -> None:
    assert 0.035 <= wrong_share(0.5, None) <= 0.075
    assert wrong_share(0.5, 0) > 0.15  # as if independent


def test_a_constant_offset_between_blocks_of_one_arm_needs_switchback() -> None:
    # A memory longer than the lags reach: the docstring sends readers to randomised blocks.
    series, arm = autoregressive(np.random.default_rng(4), 0.99, (500, 600)), turns(600, 100)
    assert sum(newey_west_test(row, arm).p_value < 0.05 for row in series) / 500 > 0.3
