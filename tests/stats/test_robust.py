"""Trimmed means and permutations: against SciPy and published examples, and where they have no answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import Comparison, MeanSummary, welch_t_test
from abswitch.stats.robust import TrimmedSummary, permutation_test, trimmed_count, yuen_t_test

samples = st.lists(st.integers(-1000, 1000).map(float), min_size=5, max_size=30)
few = st.lists(st.integers(-50, 50).map(float), min_size=4, max_size=6)


def yuen(left: list[float], right: list[float], trim: float = 0.2, alpha: float = 0.05) -> Comparison:
    return yuen_t_test(TrimmedSummary.of(left, trim), TrimmedSummary.of(right, trim), alpha=alpha)


def close(got: float, want: float, size: float = 1.0) -> bool:
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9 * size)


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")  # SciPy's, of values that are all but equal
@given(samples, samples, st.sampled_from([0.1, 0.2, 0.25]), st.sampled_from([0.01, 0.05, 0.2]))
def test_yuen_is_that_of_scipy(left: list[float], right: list[float], trim: float, alpha: float) -> None:
    found = yuen(left, right, trim, alpha)
    assume(found.attainable)
    want = stats.ttest_ind(np.array(right), np.array(left), equal_var=False, trim=trim)
    interval = want.confidence_interval(1 - alpha)
    assert close(found.p_value, float(want.pvalue))
    assert close(found.low, float(interval.low), 1000) and close(found.high, float(interval.high), 1000)
    assert found.df is not None and close(found.df, float(want.df))
    assert close(found.candidate.value, float(stats.trim_mean(right, trim)), 1000)


def test_yuen_published_examples() -> None:
    """SAS Global Forum paper 1660-2014 (one value off each tail), and the output of R's PairedData::yuen.t.test."""
    a = [12.0, 14, 18, 25, 32, 44, 12, 14, 18, 25, 32, 44]
    b = [17.0, 22, 14, 12, 30, 29, 19, 17, 22, 14, 12, 30, 29, 19]
    found = yuen(b, a, 0.09)
    assert math.isclose(found.p_value, 0.514522, abs_tol=1e-6)
    assert math.isclose(found.estimate / found.standard_error, 0.669169, abs_tol=1e-6)
    found = yuen([1.1, 2.9, 4.2], [1.0, 2.0, 3.0])
    assert math.isclose(found.p_value, 0.5361949075313, rel_tol=1e-9)
    assert math.isclose(found.low, -3.912777195645217, rel_tol=1e-9)
    assert math.isclose(found.high, 2.446110528978550, rel_tol=1e-9)
    assert found.df is not None and math.isclose(found.df, 3.4104431643464, rel_tol=1e-9)


@given(samples, samples)
def test_without_trimming_it_is_welch(left: list[float], right: list[float]) -> None:
    found, want = yuen(left, right, 0.0), welch_t_test(MeanSummary.of(left), MeanSummary.of(right))
    assert found.attainable == want.attainable
    if want.attainable:
        for name in ("estimate", "low", "high", "p_value"):
            assert close(getattr(found, name), getattr(want, name), 1000)


@given(samples, samples, st.sampled_from([1e-3, 3.0, 1e6]))
def test_yuen_swaps_and_scales(left: list[float], right: list[float], scale: float) -> None:
    plain, back = yuen(left, right), yuen(right, left)
    scaled = yuen([x * scale for x in left], [x * scale for x in right])
    assert plain.attainable == back.attainable == scaled.attainable
    assume(plain.attainable)
    assert close(plain.low, -back.high, 1000) and close(plain.p_value, back.p_value)
    assert close(plain.low * scale, scaled.low, 1000 * scale)


def test_moments_from_a_database_give_the_same() -> None:
    rng = np.random.default_rng(1)
    values = np.sort(rng.lognormal(0.0, 1.0, 53))
    gone = trimmed_count(53, 0.2)
    left = values[gone : 53 - gone]
    clamped = np.clip(values, left[0], left[-1])
    given_moments = TrimmedSummary.from_moments(53, 0.2, float(left.mean()), float(clamped.var(ddof=1)))
    want = TrimmedSummary.of(values, 0.2)
    assert given_moments.left == want.left == 33
    assert close(given_moments.mean, want.mean) and close(given_moments.m2, want.m2)
    assert yuen_t_test(given_moments, want).candidate.n == 53


def test_one_outlier_does_not_move_it() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(10.0, 1.0, 40), rng.normal(11.0, 1.0, 40)
    b[0] = 1e6
    found = yuen(list(a), list(b))
    assert found.excludes_zero() and 0.5 < found.estimate < 1.6
    assert not welch_t_test(MeanSummary.of(a), MeanSummary.of(b)).excludes_zero()


@pytest.mark.parametrize(("n", "trim", "gone"), [(100, 0.29, 29), (10, 0.25, 2), (5, 0.1, 0), (1, 0.4, 0), (0, 0.2, 0)])
def test_what_is_trimmed(n: int, trim: float, gone: int) -> None:
    assert trimmed_count(n, trim) == gone


@pytest.mark.parametrize(
    ("left", "right", "trim", "why"),
    [
        ([], [1.0, 2.0], 0.2, "the baseline has 0"),
        ([1.0, 2.0], [1.0], 0.2, "the candidate has 1"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0], 0.4, "trimming leaves 1 of the baseline's 5"),
        ([1.0, 5.0, 5.0, 5.0, 9.0], [2.0, 7.0, 7.0, 7.0, 8.0], 0.2, "neither arm varies"),
    ],
)
def test_yuen_says_why_there_is_no_answer(left: list[float], right: list[float], trim: float, why: str) -> None:
    found = yuen(left, right, trim)
    assert not found.attainable and why in str(found.why_not) and math.isnan(found.p_value)
    assert found.baseline.n == len(left)


def test_yuen_refuses_bad_input() -> None:
    for trim in (0.5, -0.1, math.nan, True):
        with pytest.raises(InvalidInput, match="trim"):
            TrimmedSummary.of([1.0, 2.0], trim)
    with pytest.raises(InvalidInput, match=r"candidate\.trim"):
        yuen_t_test(TrimmedSummary.of([1.0, 2.0], 0.2), TrimmedSummary.of([1.0, 2.0], 0.1))
    with pytest.raises(InvalidInput, match="finite"):
        TrimmedSummary.of([1.0, math.inf])
    with pytest.raises(InvalidInput, match="m2"):
        TrimmedSummary.from_moments(5, 0.2, 1.0, -1.0)


def test_yuen_intervals_cover_heavy_tails() -> None:
    rng = np.random.default_rng(3)
    found = [yuen(list(rng.standard_t(2, 20)), list(3 * rng.standard_t(2, 30))) for _ in range(1000)]
    assert 0.935 <= np.mean([not one.excludes_zero() for one in found]) <= 0.97


class TestPermutation:
    @settings(deadline=None)  # up to 924 splits by hand
    @given(few, few)
    def test_all_splits_by_hand(self, left: list[float], right: list[float]) -> None:
        assume(np.var(left) + np.var(right) > 0)
        found = permutation_test(left, right, alpha=0.2)
        assume(found.attainable)

        def statistic(a: list[float], b: list[float]) -> float:
            distance = abs(float(np.mean(a) - np.mean(b)))
            error = math.sqrt(float(np.var(a, ddof=1)) / len(a) + float(np.var(b, ddof=1)) / len(b))
            return distance / error if error > 1e-12 * distance else (math.inf if distance > 1e-9 else 0.0)

        pooled, n = left + right, len(left)
        splits = itertools.combinations(range(len(pooled)), n)
        all_t = [
            statistic([pooled[i] for i in chosen], [pooled[i] for i in range(len(pooled)) if i not in chosen])
            for chosen in splits
        ]
        observed = statistic(left, right)
        assert math.isclose(found.p_value, np.mean([t >= observed - 1e-9 for t in all_t]), rel_tol=1e-9)
        assert found.excludes_zero() == (found.p_value <= 0.2)

    def test_it_agrees_with_welch_in_large_normal_samples(self) -> None:
        rng = np.random.default_rng(4)
        a, b = rng.normal(0, 1, 300), rng.normal(0.15, 2, 200)
        found, want = permutation_test(a, b), welch_t_test(MeanSummary.of(a), MeanSummary.of(b))
        assert math.isclose(found.p_value, want.p_value, abs_tol=0.02)
        assert math.isclose(found.low, want.low, abs_tol=0.03) and math.isclose(found.high, want.high, abs_tol=0.03)
        assert found.df is None and found.estimate == want.estimate

    def test_one_seed_is_one_result_and_arms_swap(self) -> None:
        rng = np.random.default_rng(5)
        a, b = rng.lognormal(0, 1, 25), rng.lognormal(0.5, 1, 25)
        one, again, other = (permutation_test(a, b, seed=seed) for seed in (1, 1, 2))
        assert one == again and one.p_value != other.p_value
        assert math.isclose(one.p_value, other.p_value, abs_tol=0.01)
        back = permutation_test(b, a, seed=1)
        assert back.estimate == -one.estimate and math.isclose(back.p_value, one.p_value, abs_tol=0.01)
        scaled = permutation_test(1000 * a, 1000 * b, seed=1)
        assert scaled.p_value == one.p_value and math.isclose(scaled.low, 1000 * one.low, rel_tol=1e-9)

    def test_equal_but_skewed_arms_of_different_size_are_rarely_told_apart(self) -> None:
        rng = np.random.default_rng(6)
        runs = 300
        wrong = sum(
            permutation_test(rng.lognormal(0, 1.5, 40), rng.lognormal(0, 1.5, 8), resamples=399).excludes_zero()
            for _ in range(runs)
        )
        assert wrong / runs <= 0.075

    @pytest.mark.parametrize(
        ("left", "right", "why"),
        [
            ([], [1.0, 2.0], "the baseline has 0"),
            ([1.0, 2.0], [3.0], "the candidate has 1"),
            ([2.0] * 5, [3.0] * 5, "neither arm varies"),
            ([1.0, 2.0], [5.0, 6.0], "with 6 splits"),
        ],
    )
    def test_where_there_is_no_answer_it_says_why(self, left: list[float], right: list[float], why: str) -> None:
        found = permutation_test(left, right)
        assert not found.attainable and why in str(found.why_not)
        assert math.isnan(found.estimate) and math.isnan(found.p_value)

    def test_bad_input_is_refused(self) -> None:
        for name, value in (("resamples", 50), ("resamples", 99.5), ("seed", -1), ("alpha", 0.0)):
            with pytest.raises(InvalidInput, match=name):
                permutation_test([1.0, 2.0], [2.0, 4.0], **{name: value})  # type: ignore[arg-type]  # one at a time
        with pytest.raises(InvalidInput, match="numbers"):
            permutation_test(["a", "b"], [1.0, 2.0])
