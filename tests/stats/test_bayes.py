"""Posteriors against closed forms, published figures and sampling; and that they do not survive peeking."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from abswitch.errors import InvalidInput
from abswitch.stats.bayes import UNCONTROLLED, beta_binomial, chances_best, normal_posterior
from abswitch.stats.summaries import MeanSummary, RateSummary

counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


def exact_chance(a: tuple[int, int], b: tuple[int, int]) -> float:
    """P(B > A) for whole numbers of beta parameters: E. Miller, "Formulas for Bayesian A/B Testing" (2015), eq. 6."""
    i = np.arange(b[0])
    logarithms = (
        special.betaln(a[0] + i, b[1] + a[1])
        - np.log(b[1] + i)
        - special.betaln(1 + i, b[1])
        - special.betaln(a[0], a[1])
    )
    return float(np.exp(logarithms).sum())


@given(counts, counts)
@settings(deadline=None, max_examples=40)
def test_the_chance_to_win_is_millers_closed_form(one: tuple[int, int], two: tuple[int, int]) -> None:
    if not one[0] and not two[0]:
        return
    found = beta_binomial(RateSummary(*one), RateSummary(*two))
    want = exact_chance((1 + one[1], 1 + one[0] - one[1]), (1 + two[1], 1 + two[0] - two[1]))
    assert math.isclose(found.chance_to_win, want, rel_tol=1e-8, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("one", "two"),
    [((10**6, 20_000), (12, 1)), ((10**6, 500_000), (10**6, 501_000)), ((5, 0), (10**5, 3)), ((40, 40), (40, 0))],
)
def test_it_holds_for_narrow_beside_wide_posteriors(one: tuple[int, int], two: tuple[int, int]) -> None:
    a, b = ((1 + k, 1 + n - k) for n, k in (one, two))
    found = beta_binomial(RateSummary(*one), RateSummary(*two))
    few = a if sum(a) < 1000 else b  # the closed form sums over the successes of one arm
    want = exact_chance(a, b) if few is b or b[0] < 1000 else 1 - exact_chance(b, a)
    assert math.isclose(found.chance_to_win, want, rel_tol=1e-6, abs_tol=1e-9)


def test_the_expected_loss_is_its_closed_form() -> None:
    # Stucchio (2015): E[(A − B)+] = mean(A) P(A' > B) − mean(B) P(A > B'), with one more success in A' and B'.
    a, b = (11, 91), (17, 85)
    found = beta_binomial(RateSummary(100, 10), RateSummary(100, 16))
    want = 11 / 102 * (1 - exact_chance((12, 91), b)) - 17 / 102 * (1 - exact_chance(a, (18, 85)))
    assert math.isclose(found.loss_if_candidate, want, rel_tol=1e-8)
    assert math.isclose(found.loss_if_baseline - found.loss_if_candidate, found.estimate, rel_tol=1e-9)


def test_the_interval_is_that_of_draws() -> None:
    rng = np.random.default_rng(1)
    draws = rng.beta(17, 85, 400_000) - rng.beta(11, 91, 400_000)
    found = beta_binomial(RateSummary(100, 10), RateSummary(100, 16))
    assert np.allclose(np.quantile(draws, [0.025, 0.975]), [found.low, found.high], atol=5e-4)
    assert math.isclose(found.estimate, 6 / 102)


def test_the_prior_is_what_was_given() -> None:
    found = beta_binomial(RateSummary(0, 0), RateSummary(4, 4), prior_successes=2, prior_failures=6)
    assert math.isclose(found.estimate, 6 / 12 - 2 / 8)
    assert math.isclose(found.chance_to_win, exact_chance((2, 6), (6, 6)), rel_tol=1e-9)


@given(counts, counts)
@settings(deadline=None, max_examples=25)
def test_swapping_arms_or_directions_turns_it_round(one: tuple[int, int], two: tuple[int, int]) -> None:
    a, b = RateSummary(*one), RateSummary(*two)
    there, back, down = beta_binomial(a, b), beta_binomial(b, a), beta_binomial(a, b, direction="decrease")
    if not there.attainable:
        return
    assert math.isclose(there.chance_to_win, 1 - back.chance_to_win, abs_tol=1e-9)
    assert math.isclose(there.low, -back.high, abs_tol=1e-9)
    assert math.isclose(there.loss_if_candidate, back.loss_if_baseline, rel_tol=1e-9, abs_tol=1e-15)
    assert math.isclose(down.chance_to_win, 1 - there.chance_to_win) and down.estimate == there.estimate
    assert down.loss_if_candidate == there.loss_if_baseline


def test_the_normal_posterior_is_its_formula() -> None:
    a, b = MeanSummary(40, 10.0, 39.0 * 4), MeanSummary(60, 11.0, 59.0 * 9)
    error = math.sqrt(4 / 40 + 9 / 60)
    found = normal_posterior(a, b)
    assert math.isclose(found.chance_to_win, float(stats.norm.cdf(1 / error)))
    assert np.allclose([found.low, found.high], stats.norm.interval(0.95, 1.0, error))
    loss = float(stats.norm.expect(lambda x: max(0.0, -x), loc=1.0, scale=error, lb=-8, ub=0))
    assert math.isclose(found.loss_if_candidate, loss, rel_tol=1e-6)
    assert math.isclose(found.loss_if_baseline - found.loss_if_candidate, 1.0)


def test_a_prior_shrinks_towards_what_is_usual() -> None:
    a, b = MeanSummary(40, 10.0, 39.0 * 4), MeanSummary(40, 11.0, 39.0 * 4)
    found = normal_posterior(a, b, prior_std=math.sqrt(0.2))  # as uncertain as the data
    assert math.isclose(found.estimate, 0.5) and math.isclose(found.high - 0.5, 1.959964 * math.sqrt(0.1), rel_tol=1e-6)
    assert math.isclose(normal_posterior(a, b, prior_std=1e9).chance_to_win, normal_posterior(a, b).chance_to_win)


@given(st.floats(-10, 10), st.sampled_from([1e-6, 2.0, 1e9]))
def test_another_unit_scales_the_loss(difference: float, scale: float) -> None:
    a, b = MeanSummary(30, 0.0, 29.0), MeanSummary(30, difference, 29.0)
    moved_a, moved_b = MeanSummary(30, 0.0, 29.0 * scale**2), MeanSummary(30, difference * scale, 29.0 * scale**2)
    plain, moved = normal_posterior(a, b), normal_posterior(moved_a, moved_b)
    assert math.isclose(plain.loss_if_candidate * scale, moved.loss_if_candidate, rel_tol=1e-6, abs_tol=1e-15)
    assert math.isclose(plain.chance_to_win, moved.chance_to_win, rel_tol=1e-9)


def test_every_result_says_that_peeking_is_not_allowed_for() -> None:
    for found in (
        beta_binomial(RateSummary(5, 1), RateSummary(5, 2)),
        normal_posterior(MeanSummary(5, 1.0, 1.0), MeanSummary(5, 1.0, 1.0)),
        normal_posterior(MeanSummary.of([]), MeanSummary.of([])),
    ):
        assert found.label == found.to_dict()["label"] == UNCONTROLLED


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (beta_binomial(RateSummary(0, 0), RateSummary(0, 0)), "neither arm has a trial"),
        (normal_posterior(MeanSummary.of([1.0]), MeanSummary.of([1.0, 2.0])), "the baseline has 1"),
        (normal_posterior(MeanSummary.of([1.0] * 3), MeanSummary.of([2.0] * 3)), "neither arm varies"),
    ],
)
def test_where_there_is_no_answer_it_says_why(found: Any, why: str) -> None:
    assert not found.attainable and why in found.why_not
    assert math.isnan(found.chance_to_win) and found.to_dict()["chance_to_win"] is None


A, B = RateSummary(10, 2), RateSummary(10, 3)
M = MeanSummary(10, 1.0, 3.0)
BAD: list[Any] = [
    lambda: beta_binomial(A, B, alpha=0.0),
    lambda: beta_binomial(A, B, prior_successes=0.0),
    lambda: beta_binomial(A, B, prior_failures=math.nan),
    lambda: beta_binomial(A, B, direction="up"),
    lambda: normal_posterior(M, M, prior_std=0.0),
    lambda: normal_posterior(M, M, prior_mean=math.inf),
    lambda: chances_best([]),
    lambda: chances_best([(1.0, 0.0)]),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()


def test_the_best_of_three_is_that_of_draws() -> None:
    posteriors = [(3.0, 9.0), (30.0, 70.0), (8.0, 12.0)]
    draws = np.stack([np.random.default_rng(k).beta(*pair, 300_000) for k, pair in enumerate(posteriors)])
    want = np.bincount(draws.argmax(axis=0), minlength=3) / 300_000
    assert np.allclose(chances_best(posteriors), want, atol=0.004)
    assert chances_best([(2.0, 5.0)]).tolist() == [1.0]


def test_a_chance_to_win_looked_at_fifty_times_fools_more_often_than_not() -> None:
    rng, runs, step = np.random.default_rng(2), 400, 200
    arms = rng.binomial(step, 0.3, (2, runs, 50)).cumsum(axis=2)
    n = step * np.arange(1, 51)
    a, b = (1 + arms, 1 + n - arms)
    spread = a * b / (a + b) ** 2 / (a + b + 1)
    z = np.abs(a[1] / (n + 2) - a[0] / (n + 2)) / np.sqrt(spread.sum(axis=0))
    assert (z > 1.645).any(axis=1).mean() > 0.5  # the same as a chance to win above 95 % or below 5 %
    found = beta_binomial(RateSummary(int(n[9]), int(arms[0, 0, 9])), RateSummary(int(n[9]), int(arms[1, 0, 9])))
    assert math.isclose(max(found.chance_to_win, 1 - found.chance_to_win), float(special.ndtr(z[0, 9])), abs_tol=0.005)


def test_more_data_makes_surer() -> None:
    wins = [beta_binomial(RateSummary(n, n // 10), RateSummary(n, n // 5)).chance_to_win for n in (10, 40, 160, 640)]
    assert all(one < two for one, two in pairwise(wins)) and wins[-1] > 0.999
