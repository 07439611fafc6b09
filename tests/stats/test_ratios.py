"""The delta method against the bootstrap and the textbook formula, and clustered comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from abswitch.stats import (
    MeanSummary,
    RateSummary,
    RatioSummary,
    clustered_mean_test,
    clustered_rate_test,
    ratio_delta_test,
    two_proportion_z_test,
    welch_t_test,
)

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


@pytest.mark.parametrize(
    ("a", "why"),
    [
        (([], []), "0 observation"),
        (([1.0], [2.0]), "1 observation"),
        (([1.0, 2.0], [0.0, 0.0]), "denominator is 0"),
        (([2.0, 4.0], [1.0, 2.0]), "neither arm varies"),
    ],
)
def test_where_there_is_no_answer_it_says_why(a: tuple[list[float], list[float]], why: str) -> None:
    steady = RatioSummary.of([3.0, 6.0, 9.0], [1.0, 2.0, 3.0])
    found = ratio_delta_test(RatioSummary.of(*a), steady)
    assert not found.attainable and why in str(found.why_not)
    assert not clustered_rate_test(RatioSummary.of(*a), steady).attainable
