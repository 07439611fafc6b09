"""Rank tests and Hodges–Lehmann shifts: published examples, SciPy, brute force, coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import Comparison, ranks
from abswitch.stats.ranks import hodges_lehmann, mann_whitney_test, wilcoxon_signed_rank_test

# M. Hollander, D. A. Wolfe, Nonparametric Statistical Methods (1973): water transfer of the chorioamnion at 12 to 26
# weeks and at term (p. 69), and depression scale factors before and after a tranquilliser (p. 29).
EARLY = [1.15, 0.88, 0.90, 0.74, 1.21]
AT_TERM = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
BEFORE = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
AFTER = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]

integers = st.lists(st.integers(-30, 30).map(float), min_size=1, max_size=25)
distinct = st.lists(st.integers(-100_000, 100_000).map(float), min_size=8, max_size=30, unique=True)
Test = Callable[[ArrayLike, ArrayLike], Comparison]


def close(got: float, want: float, size: float = 1.0) -> bool:
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9 * size)


def brute_force(a: list[float], b: list[float], least: int) -> tuple[float, float, float]:
    every = np.sort(np.subtract.outer(np.array(b), np.array(a)).ravel())
    return float(np.median(every)), float(every[least - 1]), float(every[-least])


class TestMannWhitney:
    def test_published_example(self) -> None:
        found = mann_whitney_test(EARLY, AT_TERM)
        assert round(found.p_value / 2, 4) == 0.1272  # one-sided in the book
        assert round(found.estimate, 3) == 0.305
        assert round(found.low, 2) == -0.15 and round(found.high, 2) == 0.76

    @given(integers, integers)
    def test_it_is_that_of_scipy(self, left: list[float], right: list[float]) -> None:
        found = mann_whitney_test(left, right)
        assume(found.attainable)
        tied = len(set(left + right)) < len(left + right)
        want = stats.mannwhitneyu(right, left, method="asymptotic" if tied else "exact")
        assert close(found.p_value, min(1.0, float(want.pvalue)))
        assert found.estimate == float(np.median(np.subtract.outer(right, left)))
        assert found.estimate == hodges_lehmann(left, right)

    @given(distinct, distinct, st.sampled_from([0.01, 0.05, 0.2]))
    def test_the_interval_excludes_0_where_the_exact_test_rejects(
        self, left: list[float], right: list[float], alpha: float
    ) -> None:
        right = [x + 0.5 for x in right]  # nothing is tied
        found = mann_whitney_test(left, right, alpha=alpha)
        assume(found.attainable)
        assert found.excludes_zero() == (found.p_value <= alpha)

    @pytest.mark.parametrize(("n", "m"), [(1, 6), (3, 5), (7, 7), (10, 2)])
    def test_the_exact_rank_is_that_of_all_arrangements(self, n: int, m: int) -> None:
        places = range(n + m)
        u = np.array([sum(chosen) - n * (n - 1) // 2 for chosen in itertools.combinations(places, n)])
        for alpha in (0.01, 0.05, 0.2, 0.5):
            rank = ranks._rank_sum_rank(n, m, alpha)
            assert rank == 0 or np.mean(u <= rank - 1) <= alpha / 2 + 1e-12
            assert np.mean(u <= rank) > alpha / 2 - 1e-12

    @given(integers, integers, st.sampled_from([0.001, 3.0, 1e6]))
    def test_swapping_scaling_and_shifting(self, left: list[float], right: list[float], scale: float) -> None:
        plain, back = mann_whitney_test(left, right), mann_whitney_test(right, left)
        scaled = mann_whitney_test([x * scale for x in left], [x * scale for x in right])
        moved = mann_whitney_test(left, [x + 7 for x in right])
        assert plain.attainable == back.attainable == scaled.attainable
        assume(plain.attainable and moved.attainable)
        assert (plain.estimate, plain.low, plain.high) == (-back.estimate, -back.high, -back.low)
        assert close(plain.p_value, back.p_value) and close(plain.p_value, scaled.p_value)
        assert close(plain.low * scale, scaled.low, 100 * scale)
        assert moved.estimate == plain.estimate + 7

    @pytest.mark.parametrize("draw", ["normal", "lognormal", "cauchy", "rounded"])
    def test_intervals_cover_a_shift(self, draw: str) -> None:
        rng = np.random.default_rng(1)
        draws: dict[str, Callable[[int], np.ndarray[tuple[int], np.dtype[np.float64]]]] = {
            "normal": lambda n: rng.normal(0, 1, n),
            "lognormal": lambda n: rng.lognormal(0, 1, n),
            "cauchy": rng.standard_cauchy,
            "rounded": lambda n: np.round(rng.normal(0, 3, n)),
        }
        make = draws[draw]
        found = [mann_whitney_test(make(60), make(25) + 2) for _ in range(600)]
        assert 0.93 <= np.mean([one.low <= 2 <= one.high for one in found]) <= (1.0 if draw == "rounded" else 0.985)

    @pytest.mark.parametrize(
        ("left", "right", "why"),
        [
            ([], [1.0], "the baseline has no observation"),
            ([1.0], [], "the candidate has no observation"),
            ([1.0], [2.0], "too few for an interval"),
            ([2.0] * 9, [2.0] * 9, "all values of both arms are one"),
            ([0.0] * 90 + [1.0], [0.0] * 80 + [1.0], "so many values are tied"),
            ([-1.7e308] * 5, [1.7e308] * 5, "too large"),
        ],
    )
    def test_where_there_is_no_answer_it_says_why(self, left: list[float], right: list[float], why: str) -> None:
        found = mann_whitney_test(left, right)
        assert not found.attainable and why in str(found.why_not)
        assert math.isnan(found.estimate) and math.isnan(found.p_value)


class TestSelection:
    """The shift is found among n·m differences without listing them."""

    @settings(deadline=None)  # selects every rank there is
    @given(integers, integers, st.integers(1, 40))
    def test_with_hardly_any_memory_it_finds_the_same(self, left: list[float], right: list[float], kept: int) -> None:
        sums = ranks._Sums.between(np.array(right), -np.array(left))
        every = np.sort(np.subtract.outer(np.array(right), np.array(left)).ravel())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks, "_KEPT_SUMS", kept)
            assert [sums.smallest(k) for k in range(1, every.size + 1)] == every.tolist()

    @settings(deadline=None)  # as above
    @given(integers, st.integers(1, 40))
    def test_means_of_pairs_too(self, values: list[float], kept: int) -> None:
        averages = ranks._Sums.within(np.array(values) / 2)
        every = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks, "_KEPT_SUMS", kept)
            assert [averages.smallest(k) for k in range(1, len(every) + 1)] == every

    def test_in_nine_million_differences(self) -> None:
        rng = np.random.default_rng(2)
        a, b = rng.lognormal(0, 1, 3000), rng.lognormal(0, 1, 3000)
        found = mann_whitney_test(a, b)
        least = math.floor(4.5e6 - stats.norm.ppf(0.975) * math.sqrt(9e6 * 6001 / 12) + 0.5)
        assert (found.estimate, found.low, found.high) == brute_force(list(a), list(b), least)


class TestWilcoxon:
    def test_published_example(self) -> None:
        found = wilcoxon_signed_rank_test(BEFORE, AFTER)
        assert round(found.p_value / 2, 4) == 0.0195  # one-sided in the book
        assert round(found.estimate, 3) == -0.460
        assert (round(found.low, 3), round(found.high, 3)) == (-0.786, -0.010)

    @settings(deadline=None, max_examples=10)  # with ties SciPy tries all signs, which takes a tenth of a second
    @given(st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), min_size=6, max_size=30))
    def test_it_is_that_of_scipy(self, both: list[tuple[int, int]]) -> None:
        a, b = ([float(one) for one in side] for side in zip(*both, strict=True))
        found = wilcoxon_signed_rank_test(a, b)
        assume(found.attainable)
        want = stats.wilcoxon(np.array(b) - np.array(a), zero_method="pratt")
        assert close(found.p_value, min(1.0, float(want.pvalue)))
        differences = [two - one for one, two in zip(a, b, strict=True)]
        walsh = [(one + two) / 2 for one, two in itertools.combinations_with_replacement(differences, 2)]
        assert found.estimate == float(np.median(walsh))
        back = wilcoxon_signed_rank_test(b, a)
        assert (found.low, found.high) == (-back.high, -back.low) and close(found.p_value, back.p_value)

    @given(st.sets(st.integers(1, 10_000), min_size=6, max_size=30), st.data())
    def test_the_interval_excludes_0_where_the_exact_test_rejects(self, sizes: set[int], data: st.DataObject) -> None:
        signs = data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=len(sizes), max_size=len(sizes)))
        differences = [sign * size for sign, size in zip(signs, sizes, strict=True)]
        found = wilcoxon_signed_rank_test([0.0] * len(sizes), differences)
        assert found.attainable and found.excludes_zero() == (found.p_value <= 0.05)

    @pytest.mark.parametrize("n", [1, 4, 9, 12])
    def test_the_exact_rank_is_that_of_all_signs(self, n: int) -> None:
        sums = np.array([sum(chosen) for chosen in itertools.product(*((0, rank) for rank in range(1, n + 1)))])
        for alpha in (0.01, 0.05, 0.2, 0.5):
            rank = ranks._signed_rank_rank(n, alpha)
            assert rank == 0 or np.mean(sums <= rank - 1) <= alpha / 2 + 1e-12
            assert np.mean(sums <= rank) > alpha / 2 - 1e-12

    @pytest.mark.parametrize("pairs", [20, 80])
    def test_intervals_cover(self, pairs: int) -> None:
        rng = np.random.default_rng(3)
        found = [wilcoxon_signed_rank_test(np.zeros(pairs), rng.standard_t(3, pairs) + 1.0) for _ in range(600)]
        assert 0.93 <= np.mean([one.low <= 1 <= one.high for one in found]) <= 0.975

    def test_pairs_that_do_not_differ_count(self) -> None:
        rng = np.random.default_rng(4)
        differences = np.concatenate((np.zeros(20), rng.normal(1.0, 1.0, 60)))
        found = wilcoxon_signed_rank_test(np.zeros(80), differences)
        assert found.notes == ("20 of 80 pairs do not differ",)
        assert found.estimate < wilcoxon_signed_rank_test(np.zeros(60), differences[20:]).estimate

    @pytest.mark.parametrize(
        ("left", "right", "why"),
        [
            ([], [], "there are no pairs"),
            ([1.0, 2.0], [1.0, 2.0], "no pair differs"),
            ([1.0, 2.0, 3.0, 4.0, 5.0], [1.1, 2.2, 3.4, 4.3, 5.5], "5 pair(s) are too few"),
            ([0.0] * 100, [0.0] * 97 + [1.0, 2.0, 3.0], "so many values are tied"),
        ],
    )
    def test_where_there_is_no_answer_it_says_why(self, left: list[float], right: list[float], why: str) -> None:
        found = wilcoxon_signed_rank_test(left, right)
        assert not found.attainable and why in str(found.why_not) and math.isnan(found.p_value)


@pytest.mark.parametrize("test", [mann_whitney_test, wilcoxon_signed_rank_test])
def test_bad_input_is_refused(test: Test) -> None:
    for bad in ([1.0, math.nan], [1.0, math.inf], ["a", "b"], [[1.0], [2.0]], [1.0, None]):
        with pytest.raises(InvalidInput, match="baseline"):
            test(bad, [1.0, 2.0])  # type: ignore[arg-type]  # None among numbers
        with pytest.raises(InvalidInput, match="candidate"):
            test([1.0, 2.0], bad)  # type: ignore[arg-type]  # as above
    with pytest.raises(InvalidInput, match="alpha"):
        test([1.0, 2.0], [2.0, 3.0], alpha=0.9)  # type: ignore[call-arg]  # `Test` names the two arms only


def test_a_shift_needs_two_arms() -> None:
    with pytest.raises(InvalidInput, match="candidate"):
        hodges_lehmann([1.0], [])
    with pytest.raises(InvalidInput, match="as many"):
        wilcoxon_signed_rank_test([1.0], [1.0, 2.0])


def test_arms_show_their_medians() -> None:
    found = mann_whitney_test([1.0, 2.0, 3.0, 10.0], range(1, 41))
    assert found.baseline.value == 2.5 and math.isnan(found.baseline.low)
    assert found.candidate.value == 20.5 and found.candidate.low < 20.5 < found.candidate.high
