"""The delta method against the bootstrap and the textbook formula, and clustered comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import (
    Comparison,
    MeanSummary,
    RateSummary,
    RatioSummary,
    clustered_mean_test,
    clustered_rate_test,
    ratio_delta_test,
    two_proportion_z_test,
    welch_t_test,
)
from abswitch.stats.proportions import wilson_ends

Arm = tuple[NDArray[np.float64], NDArray[np.float64]]


def tokens_and_seconds(rng: np.random.Generator, n: int, rate: float) -> Arm:
    seconds = rng.gamma(4.0, 0.25, n)
    return rate * seconds + rng.normal(0.0, 5.0, n), seconds


def test_the_variance_is_that_of_the_textbook() -> None:
    x, y = tokens_and_seconds(np.random.default_rng(1), 80, 50.0)
    ratio, cov = x.mean() / y.mean(), np.cov(x, y)
    variance = (cov[0, 0] - 2 * ratio * cov[0, 1] + ratio**2 * cov[1, 1]) / y.mean() ** 2
    assert math.isclose(RatioSummary.of(x, y).linearised_variance, variance, rel_tol=1e-9)


def test_the_interval_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(2)
    arms = [tokens_and_seconds(rng, n, rate) for n, rate in ((300, 50.0), (200, 53.0))]

    def resampled(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = rng.integers(0, len(x), (4000, len(x)))
        ratios: NDArray[np.float64] = x[rows].sum(axis=1) / y[rows].sum(axis=1)
        return ratios

    differences = resampled(*arms[1]) - resampled(*arms[0])
    found = ratio_delta_test(RatioSummary.of(*arms[0]), RatioSummary.of(*arms[1]))
    assert math.isclose(found.standard_error, float(differences.std()), rel_tol=0.05)
    low, high = np.quantile(differences, [0.025, 0.975])
    assert math.isclose(found.low, low, abs_tol=0.15 * found.standard_error)
    assert math.isclose(found.high, high, abs_tol=0.15 * found.standard_error)


def test_a_constant_denominator_is_a_mean_by_welch() -> None:
    rng = np.random.default_rng(4)
    x, z = rng.normal(5.0, 1.0, 30), rng.normal(6.0, 2.0, 20)
    found = ratio_delta_test(RatioSummary.of(x, np.full(30, 2.0)), RatioSummary.of(z, np.full(20, 2.0)))
    want = welch_t_test(MeanSummary.of(x / 2), MeanSummary.of(z / 2))
    for name in ("estimate", "low", "high", "p_value", "df"):
        assert math.isclose(getattr(found, name), getattr(want, name), rel_tol=1e-9)


def test_swapping_the_arms_turns_the_sign() -> None:
    rng = np.random.default_rng(5)
    a, b = (RatioSummary.of(*tokens_and_seconds(rng, 40, rate)) for rate in (50.0, 55.0))
    there, back = ratio_delta_test(a, b), ratio_delta_test(b, a)
    assert (there.estimate, there.low, there.high) == (-back.estimate, -back.high, -back.low)
    assert there.p_value == back.p_value


def test_clustered_requests_are_not_taken_for_independent() -> None:
    rng = np.random.default_rng(6)
    wins = naive = 0
    for _ in range(300):  # users differ, versions do not
        arms, pooled = [], []
        for _ in range(2):
            successes = rng.binomial(20, rng.beta(1.0, 1.0, 30))
            arms.append(RatioSummary.of(successes, np.full(30, 20)))
            pooled.append(RateSummary(600, int(successes.sum())))
        wins += clustered_rate_test(*arms).excludes_zero()
        naive += two_proportion_z_test(*pooled).excludes_zero()
    assert wins / 300 <= 0.08
    assert naive / 300 > 0.4


def test_a_clustered_rate_without_any_error_is_judged_by_units() -> None:
    clean = RatioSummary.of([0.0] * 100, [7.0] * 100)
    found = clustered_rate_test(clean, clean)
    want = two_proportion_z_test(RateSummary(100, 0), RateSummary(100, 0))
    assert found.attainable and (found.low, found.high) == (want.low, want.high)
    assert "one trial a unit" in found.method
    assert clustered_rate_test(clean, RatioSummary.of([7.0] * 100, [7.0] * 100)).excludes_zero()
    assert not clustered_mean_test(clean, clean).attainable


@pytest.mark.parametrize("test", [ratio_delta_test, clustered_mean_test, clustered_rate_test])
@pytest.mark.parametrize(
    ("a", "why"),
    [
        (([], []), "0 observation"),
        (([1.0], [2.0]), "1 observation"),
        (([0.0, 0.0], [0.0, 0.0]), "denominator is 0"),
        (([2.0, 4.0], [4.0, 8.0]), "neither arm varies"),
    ],
)
def test_where_there_is_no_answer_it_says_why(
    test: Callable[[RatioSummary, RatioSummary], Comparison], a: tuple[list[float], list[float]], why: str
) -> None:
    steady = RatioSummary.of([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    found = test(RatioSummary.of(*a), steady)
    assert not found.attainable and why in str(found.why_not)
    assert math.isnan(found.estimate) and math.isnan(found.p_value)


def binomial_clusters(rng: np.random.Generator, units: int, a: float, b: float) -> RatioSummary:
    trials = rng.integers(1, 14, units)
    return RatioSummary.of(rng.binomial(trials, rng.beta(a, b, units)), trials)


def test_one_clean_arm_is_told_from_an_arm_with_errors() -> None:
    clean = RatioSummary.of([0.0] * 200, [7.0] * 200)
    found = clustered_rate_test(clean, RatioSummary.of([1.0] * 15 + [0.0] * 185, [7.0] * 200))
    assert found.attainable and found.excludes_zero() and found.p_value < 0.05
    assert found.notes == ("all trials of the baseline agree",)
    low, high = wilson_ends(0.0, 1400, stats.t.ppf(0.975, 199))  # as alike as the candidate's: not at all
    assert found.df is not None and math.isclose(found.df, 199)
    assert math.isclose(found.baseline.high, high, rel_tol=1e-9) and found.baseline.low == low == 0.0
    few = clustered_rate_test(clean, RatioSummary.of([1.0] * 3 + [0.0] * 197, [7.0] * 200))
    assert few.attainable and not few.excludes_zero() and few.p_value > 0.05  # 3 of 200 users against none
    whole = clustered_rate_test(clean, RatioSummary.of([7.0] * 3 + [0.0] * 197, [7.0] * 200))
    assert not whole.excludes_zero() and whole.baseline.high > 5 * few.baseline.high  # 21 errors, of 3 users
    flipped = clustered_rate_test(RatioSummary.of([1.0] * 3 + [0.0] * 197, [7.0] * 200), clean)
    assert math.isclose(flipped.low, -few.high) and math.isclose(flipped.p_value, few.p_value)


def test_a_rate_of_independent_trials_has_newcombes_interval() -> None:
    """One trial a unit, and many units: the effective size is their number, and t is the normal."""
    rng = np.random.default_rng(8)
    a, b = rng.random(3000) < 0.02, rng.random(4000) < 0.03
    found = clustered_rate_test(RatioSummary.of(a, np.ones(3000)), RatioSummary.of(b, np.ones(4000)))
    want = two_proportion_z_test(RateSummary.of(a), RateSummary.of(b))
    assert math.isclose(found.low, want.low, rel_tol=0.01) and math.isclose(found.high, want.high, rel_tol=0.01)
    assert math.isclose(math.log(found.p_value), math.log(want.p_value), rel_tol=0.1)


@pytest.mark.parametrize(
    ("small", "large", "shape", "plain"),
    [
        (30, 300, (0.1, 5.0), 0.15),
        (50, 950, (1.0, 500.0), 0.3),
        (8, 80, (1.0, 10.0), 0.08),
        (100, 1900, (0.02, 2.0), 0.15),  # a user's requests nearly all fail, or none
        (300, 300, (0.02, 2.0), 0.0),
    ],
)
def test_rare_errors_in_a_small_arm_do_not_look_different(
    small: int, large: int, shape: tuple[float, float], plain: float
) -> None:
    rng = np.random.default_rng(9)
    wrong = naive = 0
    for _ in range(600):
        a, b = binomial_clusters(rng, large, *shape), binomial_clusters(rng, small, *shape)
        wrong += clustered_rate_test(a, b).excludes_zero()
        naive += clustered_mean_test(a, b).excludes_zero()
    assert wrong / 600 <= 0.065
    assert naive / 600 >= plain


def test_the_degrees_of_freedom_are_welchs_over_units() -> None:
    rng = np.random.default_rng(10)
    arms = [tokens_and_seconds(rng, n, 50.0) for n in (8, 12)]
    found = clustered_mean_test(*(RatioSummary.of(*arm) for arm in arms))
    parts = []
    for x, y in arms:
        residuals = (x - x.sum() / y.sum() * y) / y.mean()
        parts.append(residuals.var(ddof=1) / len(x))
    df = sum(parts) ** 2 / (parts[0] ** 2 / 7 + parts[1] ** 2 / 11)
    assert found.df is not None and math.isclose(found.df, df, rel_tol=1e-9)
    assert math.isclose((found.high - found.low) / 2, stats.t.ppf(0.975, df) * math.sqrt(sum(parts)), rel_tol=1e-9)


def test_with_few_users_t_holds_what_z_does_not() -> None:
    rng = np.random.default_rng(11)
    t_errs = z_errs = 0
    for _ in range(1500):
        requests = rng.integers(5, 15, (2, 8))
        a, b = (RatioSummary.of(k * rng.normal(10.0, 2.0, 8), k) for k in requests)
        found = clustered_mean_test(a, b)
        t_errs += found.excludes_zero()
        z_errs += abs(found.estimate) > stats.norm.ppf(0.975) * found.standard_error
    assert t_errs / 1500 <= 0.06 and z_errs / 1500 >= 0.07


def test_a_mean_that_is_no_rate_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"baseline\.mean"):
        clustered_rate_test(RatioSummary.of([3.0, 6.5], [1.0, 2.0]), RatioSummary.of([1.0, 0.0], [2.0, 2.0]))
