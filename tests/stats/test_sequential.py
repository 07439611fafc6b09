"""The normal mixture: its formula by integration, both signs alike, and what a comparison becomes under peeking."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from abswitch.errors import InvalidInput
from abswitch.stats import MeanSummary, RatioSummary, clustered_mean_test, welch_t_test
from abswitch.stats.crossing import mixture_scale
from abswitch.stats.sequential import anytime_valid, mixture_log_e, normal_equivalent, z_boundary

fractions = st.floats(0.01, 20.0)
alphas = st.sampled_from([0.001, 0.05, 0.2])


@given(st.floats(-6, 6), fractions, alphas)
def test_the_e_value_is_the_folded_likelihood_ratio_averaged_over_a_normal(z: float, t: float, alpha: float) -> None:
    # With |z| alone to go by, a drift d and −d are one hypothesis: the density of |z| is that of the folded normal.
    spread = t / mixture_scale(alpha)

    # Both factors are normal, so their product is within 12 of ±z wherever it counts.
    drifts = np.linspace(-18.0, 18.0, 40_001)
    folded = (stats.norm.pdf(abs(z) - drifts) + stats.norm.pdf(abs(z) + drifts)) / (2 * stats.norm.pdf(z))
    want = integrate.trapezoid(folded * stats.norm.pdf(drifts, scale=math.sqrt(spread)), drifts)
    assert math.isclose(float(mixture_log_e(z, t, alpha=alpha)), math.log(want), abs_tol=1e-6)


@given(fractions, alphas, st.sampled_from([1.0, -1.0]))
def test_the_boundary_is_where_the_e_value_is_one_over_alpha(t: float, alpha: float, sign: float) -> None:
    log_e = mixture_log_e(sign * z_boundary(t, alpha=alpha), t, alpha=alpha)
    assert math.isclose(float(log_e), -math.log(alpha), rel_tol=1e-9)


def test_a_test_of_the_size_alone_by_a_one_sided_mixture_is_not_two_sided() -> None:
    rng = np.random.default_rng(1)
    steps = np.cumsum(rng.normal(size=(4000, 500)), axis=1)
    t = np.arange(1, 501) / 250
    z = steps / np.sqrt(np.arange(1, 501))
    folded = (np.abs(z) >= z_boundary(t)).any(axis=1).mean()
    spread = t / mixture_scale(0.05)
    drift = np.abs(z) * np.sqrt(spread / (1 + spread))
    one_sided = mixture_log_e(z, t) + math.log(2) + stats.norm.logcdf(drift)  # a half-normal mixture, given |z|
    naive = (one_sided >= math.log(20)).any(axis=1).mean()
    assert folded <= 0.05 < naive


def test_the_interval_is_narrowest_at_the_planned_number() -> None:
    # At one moment, sequences tuned for other moments (all their fractions there differ) are wider.
    fractions_there = np.linspace(0.3, 3.0, 271)
    widths = z_boundary(fractions_there)
    assert abs(float(fractions_there[int(np.argmin(widths))]) - 1.0) < 0.02


@given(st.floats(-30, 30), st.floats(1, 1e6))
def test_a_normal_statistic_with_the_same_tail(t: float, df: float) -> None:
    z = float(normal_equivalent(t, df))
    assert math.copysign(1, z) == math.copysign(1, t) or z == 0
    assert abs(z) <= abs(t) + 1e-6
    if abs(t) < 8:
        assert math.isclose(stats.norm.sf(abs(z)), stats.t.sf(abs(t), df), rel_tol=1e-6)


def test_statistics_beyond_doubles_stay_finite() -> None:
    assert np.isfinite(normal_equivalent([1e3, -1e300], [1e9, 1e9])).all()


def arms(difference: float, n: int = 200, m: int = 300) -> tuple[MeanSummary, MeanSummary]:
    return MeanSummary(n, 5.0, 2.0 * n), MeanSummary(m, 5.0 + difference, 3.0 * m)


@given(st.floats(-1, 1), fractions, alphas)
def test_interval_p_value_and_e_value_agree(difference: float, t: float, alpha: float) -> None:
    found = anytime_valid(welch_t_test(*arms(difference), alpha=alpha), fraction=t)
    if abs(found.e_value * alpha - 1) > 1e-6:
        assert found.excludes_zero() == (found.e_value > 1 / alpha) == (found.p_value < alpha)


@given(st.floats(0.01, 1), fractions)
def test_swapped_arms_flip_the_sign_and_scaled_units_scale(difference: float, t: float) -> None:
    a, b = arms(difference, 200, 200)
    found, swapped = (anytime_valid(welch_t_test(*pair), fraction=t) for pair in ((a, b), (b, a)))
    assert math.isclose(found.low, -swapped.high) and math.isclose(found.e_value, swapped.e_value)
    scaled = anytime_valid(welch_t_test(*(MeanSummary(x.n, 1e3 * x.mean, 1e6 * x.m2) for x in (a, b))), fraction=t)
    assert math.isclose(scaled.high, 1e3 * found.high, rel_tol=1e-9)


def test_arms_are_widened_like_their_difference() -> None:
    once = welch_t_test(*arms(0.1))
    found = anytime_valid(once, fraction=1.0, look=3)
    wider = (found.high - found.low) / (once.high - once.low)
    assert wider > 1.5 and found.look == 3 and found.standard_error == once.standard_error
    for name in ("baseline", "candidate"):
        was, now = getattr(once, name), getattr(found, name)
        assert math.isclose((now.high - now.low) / (was.high - was.low), wider, rel_tol=1e-9)
        assert now.value == was.value and now.n == was.n


def test_few_units_have_wide_sequences() -> None:
    rng = np.random.default_rng(2)
    few, many = (RatioSummary.of(rng.normal(10, 1, n), np.full(n, 2.0)) for n in (6, 600))
    narrow, wide = (anytime_valid(clustered_mean_test(x, x), fraction=1.0) for x in (many, few))
    t_width = (wide.high - wide.low) / wide.standard_error
    assert t_width > 1.3 * (narrow.high - narrow.low) / narrow.standard_error


def test_what_has_no_result_keeps_its_reason() -> None:
    found = anytime_valid(welch_t_test(MeanSummary.of([1.0]), MeanSummary.of([1.0, 2.0])), fraction=0.1, look=1)
    assert found.why_not is not None and "1 observation" in found.why_not and found.look == 1
    assert math.isnan(found.e_value) and math.isnan(found.candidate.low) and found.candidate.value == 1.5
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["e_value"] is None


def test_so_early_that_nothing_is_excluded() -> None:
    found = anytime_valid(welch_t_test(MeanSummary(2, 1.0, 1.0), MeanSummary(2, 2.0, 1.0)), fraction=1e-4)
    assert found.why_not == "not attainable: too early to exclude anything"


@pytest.mark.parametrize(
    "bad", [{"fraction": 0.0}, {"fraction": math.nan}, {"fraction": -1.0}, {"fraction": 0.5, "look": 0}]
)
def test_bad_input_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        anytime_valid(welch_t_test(*arms(0.1)), **bad)


def test_bad_fractions_are_refused() -> None:
    for fraction, alpha in (([0.5, 0.0], 0.05), ([math.nan], 0.05), ([1.0], 0.0)):
        with pytest.raises(InvalidInput):
            z_boundary(fraction, alpha=alpha)
