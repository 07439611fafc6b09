"""Thompson sampling is reproducible and keeps its floor; AW-AIPW is right where plain means are not."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from abswitch.errors import InvalidInput
from abswitch.stats.bandits import BanditLog, ThompsonSampling, aw_aipw_test, aw_aipw_value, draw_arm, generator_at
from abswitch.stats.means import welch_t_test
from abswitch.stats.summaries import MeanSummary, RateSummary

Floats = NDArray[np.float64]
counts = st.integers(0, 200).flatmap(lambda n: st.builds(RateSummary, st.just(n), st.integers(0, n)))


@given(st.lists(counts, min_size=2, max_size=4), st.sampled_from([0.01, 0.05, 0.25]))
@settings(deadline=None, max_examples=30)
def test_shares_sum_to_one_and_keep_the_floor(arms: list[RateSummary], floor: float) -> None:
    shares = ThompsonSampling(floor=floor).shares({str(k): arm for k, arm in enumerate(arms)})
    assert math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9)
    assert min(shares.values()) >= floor - 1e-9


def test_shares_are_the_chances_to_be_best() -> None:
    arms = {"v1": RateSummary(10, 4), "v2": RateSummary(20, 11), "v3": RateSummary(5, 1)}
    rng = np.random.default_rng(1)
    draws = np.stack([rng.beta(1 + one.successes, 1 + one.n - one.successes, 300_000) for one in arms.values()])
    best = np.bincount(draws.argmax(axis=0), minlength=3) / 300_000
    shares = ThompsonSampling(floor=0.1).shares(arms)
    assert np.allclose(list(shares.values()), 0.1 + 0.7 * best, atol=0.003)


def test_for_errors_fewer_are_better() -> None:
    arms, turned = ({"v1": RateSummary(30, k), "v2": RateSummary(30, 9)} for k in (3, 27))
    turned["v2"] = RateSummary(30, 21)
    fewer = ThompsonSampling(direction="decrease").shares(arms)
    assert fewer["v1"] > 0.9
    assert math.isclose(fewer["v1"], ThompsonSampling().shares(turned)["v1"], rel_tol=1e-9)


def test_nothing_seen_is_an_even_split() -> None:
    shares = ThompsonSampling().shares({name: RateSummary(0, 0) for name in "abc"})
    assert np.allclose(list(shares.values()), 1 / 3)


def test_the_same_seed_and_counter_draw_the_same_arm() -> None:
    shares = {"v1": 0.3, "v2": 0.7}
    forwards = [draw_arm(shares, generator_at(7, counter)) for counter in range(50)]
    backwards = [draw_arm(shares, generator_at(7, counter)) for counter in reversed(range(50))]
    assert forwards == backwards[::-1] and len(set(forwards)) == 2
    assert forwards != [draw_arm(shares, generator_at(8, counter)) for counter in range(50)]


def test_arms_are_drawn_as_often_as_their_shares_say() -> None:
    drawn = Counter(draw_arm({"a": 0.1, "b": 0.6, "c": 0.3}, generator_at(3, k)) for k in range(4000))
    for name, share in (("a", 0.1), ("b", 0.6), ("c", 0.3)):
        assert abs(drawn[name] - 4000 * share) < 4 * math.sqrt(4000 * share * (1 - share))


def test_an_arm_without_share_is_never_drawn() -> None:
    assert {draw_arm({"a": 0.0, "b": 1.0, "c": 0.0}, generator_at(1, k)) for k in range(100)} == {"b"}


def simple(t: int = 40) -> BanditLog:
    rng = np.random.default_rng(2)
    chosen = rng.integers(0, 2, t)
    return BanditLog(("a", "b"), chosen, rng.normal(chosen, 1.0), np.full((t, 2), 0.5))


def test_the_estimate_is_its_formula_computed_step_by_step() -> None:
    rng = np.random.default_rng(3)
    p = rng.uniform(0.2, 0.8, 25)
    chosen = (rng.random(25) < p).astype(np.int64)
    log = BanditLog(("a", "b"), chosen, rng.normal(size=25), np.column_stack([1 - p, p]))
    scores, weights, seen, everyone = [], [], list[float](), list[float]()
    for t in range(25):
        guess = np.mean(seen) if seen else (np.mean(everyone) if everyone else 0.0)
        scores.append(guess + (chosen[t] == 1) * (log.rewards[t] - guess) / p[t])
        weights.append(math.sqrt(p[t]))
        everyone.append(log.rewards[t])
        if chosen[t]:
            seen.append(log.rewards[t])
    value = np.average(scores, weights=weights)
    error = math.sqrt(np.sum(np.square(np.multiply(weights, scores - value)))) / sum(weights)
    found = aw_aipw_value(log, "b")
    assert math.isclose(found.value, value) and found.n == chosen.sum()
    assert math.isclose(found.high - found.value, 1.959964 * error, rel_tol=1e-6)


def test_with_even_shares_it_is_close_to_the_difference_of_means() -> None:
    log = simple(4000)
    plain = welch_t_test(*(MeanSummary.of(log.rewards[log.chosen == k]) for k in (0, 1)))
    found = aw_aipw_test(log, "a", "b")
    assert math.isclose(found.estimate, plain.estimate, abs_tol=0.01)
    assert math.isclose(found.standard_error, plain.standard_error, rel_tol=0.05)


def test_swapping_the_arms_turns_the_sign_and_units_scale() -> None:
    log = simple()
    there, back = aw_aipw_test(log, "a", "b"), aw_aipw_test(log, "b", "a")
    assert math.isclose(there.low, -back.high) and math.isclose(there.p_value, back.p_value)
    scaled = aw_aipw_test(BanditLog(log.arms, log.chosen, 1e6 * log.rewards, log.propensities), "a", "b")
    assert math.isclose(scaled.estimate, 1e6 * there.estimate) and math.isclose(scaled.p_value, there.p_value)


def test_logs_are_continued() -> None:
    log = simple(30)
    parts = [
        BanditLog(log.arms, log.chosen[at], log.rewards[at], log.propensities[at])
        for at in (slice(0, 11), slice(11, 30))
    ]
    assert aw_aipw_test(parts[0] + parts[1], "a", "b") == aw_aipw_test(log, "a", "b")
    empty = BanditLog(log.arms, np.array([], np.int64), np.array([]), np.empty((0, 2)))
    assert aw_aipw_test(empty + log, "a", "b") == aw_aipw_test(log, "a", "b")


def log_of(chosen: list[int], rewards: list[float]) -> BanditLog:
    return BanditLog(("a", "b"), np.array(chosen, np.int64), np.array(rewards), np.full((len(chosen), 2), 0.5))


@pytest.mark.parametrize(
    ("chosen", "rewards", "why"),
    [
        ([], [], "the baseline has 0"),
        ([0, 0, 1], [1.0, 0.0, 1.0], "the candidate has 1"),
        ([0, 0, 1, 1], [1.0, 1.0, 0.0, 0.0], "neither arm varies"),
    ],
)
def test_where_there_is_no_answer_it_says_why(chosen: Any, rewards: Any, why: str) -> None:
    found = aw_aipw_test(log_of(chosen, rewards), "a", "b")
    assert found.why_not is not None and why in found.why_not and math.isnan(found.estimate)


HALVES = np.full((2, 2), 0.5)
BAD: list[Any] = [
    lambda: ThompsonSampling(floor=0.0),
    lambda: ThompsonSampling(direction="up"),
    lambda: ThompsonSampling(prior_successes=0.0),
    lambda: ThompsonSampling().shares({"a": RateSummary(1, 1)}),
    lambda: ThompsonSampling(floor=0.4).shares({name: RateSummary(1, 1) for name in "abc"}),
    lambda: draw_arm({"a": 0.5, "b": 0.4}, generator_at(1, 1)),
    lambda: draw_arm({"a": 1.5, "b": -0.5}, generator_at(1, 1)),
    lambda: draw_arm({}, generator_at(1, 1)),
    lambda: generator_at(-1, 0),
    lambda: generator_at(0, 2**64),
    lambda: BanditLog(("a", "a"), np.array([0, 1]), np.ones(2), HALVES),
    lambda: BanditLog(("a", "b"), np.array([0, 2]), np.ones(2), HALVES),
    lambda: BanditLog(("a", "b"), np.array([0]), np.ones(2), HALVES),
    lambda: BanditLog(("a", "b"), np.array([0, 1]), np.array([1.0, np.nan]), HALVES),
    lambda: BanditLog(("a", "b"), np.array([0, 1]), np.ones(2), np.full((2, 2), 0.4)),
    lambda: BanditLog(("a", "b"), np.array([0, 1]), np.ones(2), np.full((2, 3), 1 / 3)),
    lambda: BanditLog(("a", "b"), np.array([0, 1]), np.ones(2), np.array([[1.0, 0.0], [1.0, 0.0]])),
    lambda: aw_aipw_test(simple(), "a", "c"),
    lambda: aw_aipw_test(simple(), "a", "b", alpha=0.0),
    lambda: aw_aipw_value(BanditLog(("a", "b"), np.array([0]), np.ones(1), np.array([[1.0, 0.0]])), "b"),
    lambda: simple() + BanditLog(("b", "a"), np.array([0, 1]), np.ones(2), HALVES),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()


def adaptive_logs(rates: tuple[float, float], runs: int, t: int, batch: int) -> list[BanditLog]:
    """Thompson sampling with a floor of 5 %, all runs at once; chances to be best by the normal approximation."""
    rng = np.random.default_rng(4)
    trials, wins = np.ones((runs, 2)) * 2, np.ones((runs, 2))
    chosen, shares = np.empty((runs, t), np.int64), np.empty((runs, t))
    rewards = (rng.random((runs, t, 2)) < rates).astype(float)
    for start in range(0, t, batch):
        mean = wins / trials
        z = (mean[:, 1] - mean[:, 0]) / np.sqrt((mean * (1 - mean) / (trials + 1)).sum(axis=1))
        share = 0.05 + 0.9 * special.ndtr(z)
        now = slice(start, start + batch)
        shares[:, now], chosen[:, now] = share[:, None], rng.random((runs, batch)) < share[:, None]
        for k in (0, 1):
            hit = chosen[:, now] == k
            trials[:, k] += hit.sum(axis=1)
            wins[:, k] += (hit * rewards[:, now, k]).sum(axis=1)
    earned = np.take_along_axis(rewards, chosen[:, :, None], axis=2)[:, :, 0]
    return [
        BanditLog(("a", "b"), chosen[k], earned[k], np.column_stack([1 - shares[k], shares[k]])) for k in range(runs)
    ]


@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.3, 0.4), (0.9, 0.95)])
def test_intervals_cover_though_shares_followed_the_outcomes(rates: tuple[float, float]) -> None:
    logs, effect = adaptive_logs(rates, 1000, 1000, 50), rates[1] - rates[0]
    found = [aw_aipw_test(log, "a", "b") for log in logs]
    assert 0.93 <= sum(one.low <= effect <= one.high for one in found) / 1000 <= 0.97
    assert abs(np.mean([one.estimate for one in found]) - effect) < 0.008


def test_plain_means_are_biased_there_and_their_intervals_too_narrow() -> None:
    logs = adaptive_logs((0.5, 0.5), 1500, 1000, 50)
    plain = float(np.mean([log.rewards[log.chosen == 1].mean() for log in logs])) - 0.5
    steadied = float(np.mean([aw_aipw_value(log, "b").value for log in logs])) - 0.5
    assert plain < -0.006 and abs(steadied) < 0.65 * abs(plain)  # an arm that began unlucky is hardly tried again
    welch = [welch_t_test(*(MeanSummary.of(log.rewards[log.chosen == k]) for k in (0, 1))) for log in logs]
    wrong = sum(one.p_value < 0.05 for one in welch) / 1500
    assert wrong > 0.058 and sum(aw_aipw_test(log, "a", "b").p_value < 0.05 for log in logs) / 1500 < wrong


def test_the_better_arm_gets_most_of_the_traffic() -> None:
    rng, arms = np.random.default_rng(5), {"v1": RateSummary(0, 0), "v2": RateSummary(0, 0)}
    policy, truth, share = ThompsonSampling(), {"v1": 0.5, "v2": 0.65}, 0.5
    for _ in range(20):
        shares = policy.shares(arms)
        share = shares["v2"]
        sizes = {name: round(100 * part) for name, part in shares.items()}
        for name, n in sizes.items():
            arms[name] += RateSummary(n, int(rng.binomial(n, truth[name])))
    assert share > 0.9 and arms["v1"].n >= 20 * 5
