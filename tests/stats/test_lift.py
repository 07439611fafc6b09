"""Relative lift on both scales, against simulation and its own symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import MeanSummary, RateSummary, RatioSummary, Summary, relative_lift
from abswitch.stats.lift import geometric_lift


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_spread_is_that_of_repeated_experiments(scale: str) -> None:
    rng = np.random.default_rng(1)
    lifts = []
    for _ in range(400):
        found = relative_lift(MeanSummary.of(rng.gamma(4, 5, 200)), MeanSummary.of(rng.gamma(4, 6, 150)), scale=scale)
        lifts.append(found)
    covered = sum(found.low <= 0.2 <= found.high for found in lifts) / 400
    assert 0.92 <= covered <= 0.98
    assert math.isclose(float(np.mean([found.estimate for found in lifts])), 0.2, abs_tol=0.01)


def test_logarithms_swap_and_scale() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.gamma(4, 5, 60), rng.gamma(4, 6, 50)
    there = relative_lift(MeanSummary.of(a), MeanSummary.of(b), scale="log")
    back = relative_lift(MeanSummary.of(1000 * b), MeanSummary.of(1000 * a), scale="log")
    assert math.isclose(1 + there.estimate, 1 / (1 + back.estimate), rel_tol=1e-9)
    assert math.isclose(1 + there.low, 1 / (1 + back.high), rel_tol=1e-9)
    assert math.isclose(there.p_value, back.p_value, rel_tol=1e-9)


def test_rates_and_ratios_have_one_too() -> None:
    rate = relative_lift(RateSummary(400, 200), RateSummary(400, 220))
    assert math.isclose(rate.estimate, 0.1) and rate.low < 0.1 < rate.high
    p, q, n = 0.5, 0.55, 400
    error = math.sqrt(q * (1 - q) / (n - 1) / p**2 + q**2 * p * (1 - p) / (n - 1) / p**4)
    assert rate.df is not None and math.isclose((rate.high - rate.low) / 2 / error, 1.963, rel_tol=1e-3)
    y = np.linspace(1, 2, 50)
    ratio = relative_lift(RatioSummary.of(10 * y + np.sin(y * 9), y), RatioSummary.of(12 * y + np.cos(y * 9), y))
    assert ratio.attainable and 0.1 < ratio.estimate < 0.3


def test_a_fall_from_a_negative_baseline_is_a_fall() -> None:
    found = relative_lift(MeanSummary.of([-10.0, -11.0, -9.0]), MeanSummary.of([-12.0, -13.0, -11.0]))
    assert math.isclose(found.estimate, -0.2) and found.low < -0.2 < found.high


@pytest.mark.parametrize(
    ("a", "b", "scale", "why"),
    [
        (MeanSummary.of([-1.0, 1.2, 0.1]), MeanSummary.of([1.0, 2.0]), "linear", "told from 0"),
        (RateSummary(100, 0), RateSummary(100, 5), "linear", "told from 0"),
        (MeanSummary.of([5.0, 6.0, 5.5]), MeanSummary.of([-1.0, -2.0]), "log", "above 0"),
        (MeanSummary.of([]), MeanSummary.of([1.0, 2.0]), "linear", "0 observation"),
        (RateSummary(1, 1), RateSummary(9, 5), "linear", "1 observation"),
        (MeanSummary.of([2.0, 2.0]), MeanSummary.of([3.0, 3.0]), "log", "neither arm varies"),
    ],
)
def test_where_there_is_none_it_says_why(a: Summary, b: Summary, scale: str, why: str) -> None:
    found = relative_lift(a, b, scale=scale)
    assert not found.attainable and why in str(found.why_not)
    assert found.to_dict()["estimate"] is None


def test_bad_input_is_refused() -> None:
    a = MeanSummary.of([1.0, 2.0])
    with pytest.raises(InvalidInput, match="scale"):
        relative_lift(a, a, scale="cubic")
    with pytest.raises(InvalidInput, match="alpha"):
        relative_lift(a, a, alpha=0.0)


def test_an_end_too_large_for_a_number_is_infinite() -> None:
    found = relative_lift(MeanSummary.of([1.0, 1.1]), MeanSummary.of([1e-9, 3.0]), scale="log", alpha=1e-6)
    assert not found.attainable  # at this alpha the baseline cannot be told from 0 either
    found = relative_lift(MeanSummary.of([1.0] * 9 + [1.01]), MeanSummary.of([1e-9, 3.0]), scale="log", alpha=1e-4)
    assert found.attainable and found.high == math.inf and found.low == -1.0 and found.to_dict()["high"] is None


def test_the_ratio_of_geometric_means_is_welch_on_logarithms() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.lognormal(0.0, 1.0, 80), rng.lognormal(0.3, 1.2, 60)
    found = geometric_lift(MeanSummary.of(np.log(a)), MeanSummary.of(np.log(b)))
    want = stats.ttest_ind(np.log(b), np.log(a), equal_var=False)
    low, high = want.confidence_interval(0.95)
    assert math.isclose(1 + found.estimate, stats.gmean(b) / stats.gmean(a), rel_tol=1e-9)
    assert math.isclose(found.low, math.expm1(low), rel_tol=1e-9)
    assert math.isclose(found.high, math.expm1(high), rel_tol=1e-9)
    assert math.isclose(found.p_value, float(want.pvalue), rel_tol=1e-9)
    milliseconds = geometric_lift(MeanSummary.of(np.log(1000 * a)), MeanSummary.of(np.log(1000 * b)))
    assert math.isclose(found.high, milliseconds.high, rel_tol=1e-9)


def test_without_variation_or_number_there_is_no_geometric_lift() -> None:
    flat = MeanSummary.of([1.0, 1.0])
    assert "neither arm varies" in str(geometric_lift(flat, flat).why_not)
    wild = geometric_lift(MeanSummary.of([-400.0, -401.0]), MeanSummary.of([400.0, 401.0]))
    assert "too large" in str(wild.why_not) and math.isnan(wild.estimate)
