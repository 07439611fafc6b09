"""Two arms peeked at throughout: from every kind of summary, over ramps, and refused where it would err."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from abswitch.errors import InvalidInput
from abswitch.stats import MeanSummary, RateSummary, RatioSummary, welch_t_test
from abswitch.stats.mixture import TOO_FEW_EVENTS, TOO_SPREAD_OUT, difference_skewness, mixture_sprt
from abswitch.stats.sequential import anytime_valid
from abswitch.stats.strata import StratifiedSummary


def test_it_is_the_single_look_comparison_made_anytime_valid() -> None:
    a, b = MeanSummary(100, 1.0, 99.0), MeanSummary(300, 1.5, 299.0)
    want = anytime_valid(welch_t_test(a, b), fraction=75.0 / 100.0)  # 75 observations' worth of the 100 planned
    found = mixture_sprt(a, b, planned_n=400, share=0.5)
    assert math.isclose(found.low, want.low) and found.method == want.method and found.e_value == want.e_value


@given(st.integers(10, 4000), st.integers(10, 4000), st.floats(0.2, 0.8))
def test_rates_and_means_of_the_same_values_agree(n: int, m: int, rate: float) -> None:
    a, b = RateSummary(n, round(n * rate)), RateSummary(m, round(m * rate))
    means = [MeanSummary.from_sums(x.n, x.successes, x.successes) for x in (a, b)]
    by_rate, by_mean = mixture_sprt(a, b, planned_n=1000), mixture_sprt(*means, planned_n=1000, logarithms=True)
    if by_rate.attainable and by_mean.attainable:
        assert math.isclose(by_rate.low, by_mean.low, abs_tol=1e-9)


class TestGuard:
    def test_rare_errors_in_a_small_arm(self) -> None:
        assert mixture_sprt(RateSummary(19000, 190), RateSummary(1000, 0), planned_n=20000, share=0.05).why_not == (
            TOO_FEW_EVENTS
        )
        enough = mixture_sprt(RateSummary(95000, 950), RateSummary(5000, 50), planned_n=100000, share=0.05)
        assert enough.attainable and not enough.excludes_zero()

    def test_even_arms_need_no_events_to_speak_of(self) -> None:
        assert mixture_sprt(RateSummary(1000, 2), RateSummary(1010, 1), planned_n=2000).attainable

    def test_heavy_latencies_in_a_small_arm_unless_they_are_logarithms(self) -> None:
        rng = np.random.default_rng(1)
        logs = rng.normal(0.0, 1.5, 2000)
        raw = MeanSummary.of(np.exp(logs[:1900])), MeanSummary.of(np.exp(logs[1900:]))
        assert mixture_sprt(*raw, planned_n=2000, share=0.05).why_not == TOO_SPREAD_OUT
        log = MeanSummary.of(logs[:1900]), MeanSummary.of(logs[1900:])
        found = mixture_sprt(*log, planned_n=2000, share=0.05, logarithms=True)
        assert found.attainable and "ratio of geometric means" in found.notes[-1]

    def test_the_same_for_sums_by_user(self) -> None:
        rng = np.random.default_rng(2)
        x = rng.lognormal(0.0, 1.5, 1000)
        arms = RatioSummary.of(x[:950], np.ones(950)), RatioSummary.of(x[950:], np.ones(50))
        assert mixture_sprt(*arms, planned_n=1000, share=0.05).why_not == TOO_SPREAD_OUT

    def test_light_values_in_a_small_arm_are_fine(self) -> None:
        rng = np.random.default_rng(3)
        arms = MeanSummary.of(rng.normal(10, 2, 1900)), MeanSummary.of(rng.normal(10, 2, 100))
        assert mixture_sprt(*arms, planned_n=2000, share=0.05).attainable

    def test_a_handful_of_observations(self) -> None:
        found = mixture_sprt(MeanSummary(100, 1.0, 9.0), MeanSummary(4, 1.0, 1.0), planned_n=2000, share=0.05)
        assert found.why_not == "not attainable: 100 and 4 observations, and 5 are the least at a look"

    def test_a_mean_of_zero_in_even_arms(self) -> None:
        arms = MeanSummary(100, 0.0, 99.0), MeanSummary(110, 0.01, 109.0)
        assert mixture_sprt(*arms, planned_n=200).attainable

    def test_skewness_of_a_difference(self) -> None:
        rng = np.random.default_rng(4)
        draws = rng.exponential(size=(200_000, 12))  # skewness 2
        difference = draws[:, :2].mean(axis=1) - draws[:, 2:].mean(axis=1)
        z = (difference - difference.mean()) / difference.std()
        assert math.isclose(float((z**3).mean()), difference_skewness(2.0, [(10, 2)]), abs_tol=0.03)
        assert difference_skewness(2.0, [(10, 10)]) == 0.0
        assert difference_skewness(2.0, [(90, 10), (10, 90)]) < 1e-12


def ramp(rng: np.random.Generator, slower: float) -> tuple[NDArray[np.str_], NDArray[np.bool_], NDArray[np.float64]]:
    """Three stages of growing share, each with its own load: stage, whether the candidate served, and the value."""
    sizes, shares, loads = (400, 400, 800), (0.05, 0.25, 0.5), (0.0, 1.0, -0.5)
    stage = np.repeat([0, 1, 2], sizes)
    candidate = rng.random(stage.size) < np.array(shares)[stage]
    return stage.astype(str), candidate, rng.normal(np.array(loads)[stage] + slower * candidate, 1.0)


def in_arms(stage: Any, candidate: Any, values: Any) -> tuple[StratifiedSummary, StratifiedSummary]:
    return (
        StratifiedSummary.of_means(values[~candidate], stage[~candidate]),
        StratifiedSummary.of_means(values[candidate], stage[candidate]),
    )


def test_over_a_ramp_arms_are_compared_within_stages() -> None:
    rng, wrong, pooled, found = np.random.default_rng(5), 0, 0, 0
    for _ in range(100):
        for slower in (0.0, 0.4):
            stage, candidate, values = ramp(rng, slower)
            one = mixture_sprt(*in_arms(stage, candidate, values), planned_n=1600, logarithms=True)
            assert one.attainable
            if slower:
                found += one.excludes_zero() and one.estimate > 0
                continue
            wrong += one.excludes_zero()
            together = MeanSummary.of(values[~candidate]), MeanSummary.of(values[candidate])
            pooled += mixture_sprt(*together, planned_n=1600, logarithms=True).excludes_zero()
    assert wrong <= 3 and found >= 95 and pooled >= 90


def test_one_stratum_is_none() -> None:
    a, b = MeanSummary(500, 1.0, 499.0), MeanSummary(480, 1.1, 479.0)
    plain = mixture_sprt(a, b, planned_n=1000)
    strata = mixture_sprt(StratifiedSummary({"all": a}), StratifiedSummary({"all": b}), planned_n=1000)
    assert math.isclose(plain.low, strata.low, rel_tol=1e-9) and math.isclose(
        plain.e_value, strata.e_value, rel_tol=1e-9
    )


def test_strata_of_rates_without_any_event_are_refused() -> None:
    arms = StratifiedSummary({"5 %": RateSummary(950, 0)}), StratifiedSummary({"5 %": RateSummary(50, 0)})
    assert mixture_sprt(*arms, planned_n=1000, share=0.05).why_not == TOO_FEW_EVENTS


def test_users_with_several_requests_count_once() -> None:
    rng, wrong = np.random.default_rng(6), 0
    for _ in range(200):
        arms = []
        for _arm in range(2):
            requests = rng.integers(5, 15, 40)
            arms.append(RatioSummary.of(requests * rng.normal(10, 2, 40), requests))
        wrong += mixture_sprt(*arms, planned_n=80).excludes_zero()
    assert wrong <= 6


@pytest.mark.parametrize("empty", [MeanSummary.of([]), RateSummary(0, 0), RatioSummary.of([], [])])
def test_no_data_is_no_result(empty: Any) -> None:
    found = mixture_sprt(empty, empty, planned_n=10, look=1)
    assert not found.attainable and found.look == 1 and math.isnan(found.estimate)


BAD: list[dict[str, Any]] = [
    {"planned_n": 1},
    {"planned_n": 100.5},
    {"planned_n": 100, "share": 0.0},
    {"planned_n": 100, "share": 1.0},
    {"planned_n": 100, "alpha": 0.6},
    {"planned_n": 100, "look": 0},
    {"planned_n": 100, "candidate": RateSummary(10, 5)},
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: dict[str, Any]) -> None:
    given = {"baseline": MeanSummary(10, 1.0, 9.0), "candidate": MeanSummary(10, 1.0, 9.0)} | bad
    with pytest.raises(InvalidInput):
        mixture_sprt(**given)
