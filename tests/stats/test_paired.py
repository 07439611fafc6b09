"""Pairs: the t-test, and rates by McNemar and Tango."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import contingency_tables

from abswitch.errors import InvalidInput
from abswitch.stats import Comparison, MarginOutcome, MeanSummary, non_inferiority
from abswitch.stats.paired import (
    PairedRateSummary,
    PairedSummary,
    mcnemar_test,
    paired_t_test,
    tango_score_test,
)

# Cushny & Peebles' sleep data, as in "Student", Biometrika 6 (1908) 1–25: extra hours with two drugs.
FIRST_H = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND_H = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

pairs = st.lists(st.tuples(st.integers(-500, 500), st.integers(-500, 500)), min_size=2, max_size=30)
counts = st.tuples(*(st.integers(0, 60),) * 4).filter(lambda four: sum(four) > 0)


def compare(both: list[tuple[int, int]], scale: float = 1.0) -> Comparison:
    a, b = ([scale * one for one in side] for side in zip(*both, strict=True))
    return paired_t_test(PairedSummary.of(a, b))


def table(both: int, candidate_only: int, baseline_only: int, neither: int) -> PairedRateSummary:
    return PairedRateSummary(both=both, candidate_only=candidate_only, baseline_only=baseline_only, neither=neither)


def close(got: float, want: float, size: float = 1.0) -> bool:
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9 * size)


class TestPairedT:
    def test_published_example(self) -> None:
        found = paired_t_test(PairedSummary.of(FIRST_H, SECOND_H))
        assert round(found.estimate, 2) == 1.58 and found.df == 9
        assert round(found.estimate / found.standard_error, 4) == 4.0621
        assert round(found.p_value, 6) == 0.002833
        assert (round(found.low, 4), round(found.high, 4)) == (0.7001, 2.4599)

    @given(pairs)
    def test_it_is_that_of_scipy(self, both: list[tuple[int, int]]) -> None:
        found = compare(both)
        a, b = (np.array(side, dtype=float) for side in zip(*both, strict=True))
        assume(found.attainable)
        want = stats.ttest_rel(b, a)
        interval = want.confidence_interval(0.95)
        assert close(found.p_value, float(want.pvalue))
        assert close(found.low, float(interval.low), 1000) and close(found.high, float(interval.high), 1000)

    @given(pairs, st.sampled_from([1e-3, 7.0, 1e6]))
    def test_swapping_and_scaling(self, both: list[tuple[int, int]], scale: float) -> None:
        plain, back, scaled = compare(both), compare([(b, a) for a, b in both]), compare(both, scale)
        assert plain.attainable == back.attainable == scaled.attainable
        assume(plain.attainable)
        assert close(plain.estimate, -back.estimate, 1000) and close(plain.low, -back.high, 1000)
        assert close(plain.low * scale, scaled.low, 1000 * scale)
        assert math.isclose(plain.p_value, scaled.p_value, rel_tol=1e-6, abs_tol=1e-12)

    @given(pairs, st.integers(0, 30))
    def test_merged_summaries_are_the_summary_of_all(self, both: list[tuple[int, int]], cut: int) -> None:
        a, b = ([float(one) for one in side] for side in zip(*both, strict=True))
        merged = PairedSummary.of(a[:cut], b[:cut]) + PairedSummary.of(a[cut:], b[cut:])
        whole = PairedSummary.of(a, b)
        assert merged.n == whole.n and close(merged.difference.mean, whole.difference.mean, 1000)
        assert math.isclose(merged.difference.m2, whole.difference.m2, rel_tol=1e-9, abs_tol=1e-6)

    def test_pairing_removes_what_prompts_have_in_common(self) -> None:
        rng = np.random.default_rng(1)
        prompt = rng.normal(0.0, 10.0, 60)
        found = paired_t_test(PairedSummary.of(prompt + rng.normal(0, 1, 60), prompt + 1.0 + rng.normal(0, 1, 60)))
        assert found.excludes_zero() and found.standard_error < 0.3
        assert found.baseline.high - found.baseline.low > 4

    @pytest.mark.parametrize(
        ("a", "b", "why"),
        [
            ([], [], "0 pair"),
            ([1.0], [2.0], "1 pair"),
            ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "one and the same amount"),
            ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], "one and the same amount"),
        ],
    )
    def test_where_there_is_no_answer_it_says_why(self, a: list[float], b: list[float], why: str) -> None:
        found = paired_t_test(PairedSummary.of(a, b))
        assert not found.attainable and why in str(found.why_not) and math.isnan(found.estimate)
        assert found.to_dict()["p_value"] is None

    def test_bad_input_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="as many values as the baseline"):
            PairedSummary.of([1.0], [1.0, 2.0])
        with pytest.raises(InvalidInput, match="finite"):
            PairedSummary.of([1.0, math.nan], [1.0, 2.0])
        with pytest.raises(InvalidInput, match="difference from the baseline"):
            PairedSummary.of([-1.7e308], [1.7e308])
        with pytest.raises(InvalidInput, match="numbers"):
            PairedSummary.of(["a"], [1.0])
        with pytest.raises(InvalidInput, match="alpha"):
            paired_t_test(PairedSummary.of([1.0, 2.0], [2.0, 5.0]), alpha=0.0)

    def test_moments_of_different_pairs_are_refused(self) -> None:
        a, b = MeanSummary.of([1.0, 2.0]), MeanSummary.of([3.0, 5.0])
        with pytest.raises(InvalidInput, match=r"difference\.n"):
            PairedSummary(baseline=a, candidate=b, difference=MeanSummary.of([2.0]))
        with pytest.raises(InvalidInput, match=r"difference\.mean"):
            PairedSummary(baseline=a, candidate=b, difference=MeanSummary.of([-2.0, -3.0]))


# 95 %: T. Tango, Statistics in Medicine 17 (1998) 891–908; A. Agresti, Y. Min, Statistics in Medicine 24 (2005)
# 729–740; M. W. Fagerland, S. Lydersen, P. Laake, Statistics in Medicine 33 (2014) 2850–2875; M.-L. Tang et al. (2010).
TANGO = [
    ((4, 9, 3, 16), (-0.027, 0.390)),
    ((53, 16, 8, 9), (-0.020, 0.207)),
    ((1, 1, 7, 12), (-0.517, -0.026)),
    ((8, 3, 1, 2), (-0.167, 0.433)),
]


class TestRates:
    @pytest.mark.parametrize(("four", "interval"), TANGO)
    def test_tango_published_examples(self, four: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
        for found in (tango_score_test(table(*four)), mcnemar_test(table(*four))):
            assert (round(found.low, 3), round(found.high, 3)) == interval

    def test_tango_published_example_at_90_percent(self) -> None:
        found = tango_score_test(table(43, 0, 1, 0), alpha=0.1)
        assert (round(found.low, 3), round(found.high, 3)) == (-0.096, 0.037)

    @pytest.mark.parametrize(("kind", "p_value"), [("asymptotic", 0.0339), ("mid-p", 0.0391), ("exact", 0.0703)])
    def test_mcnemar_published_example(self, kind: str, p_value: float) -> None:
        """Fagerland, Lydersen & Laake (2013), table 1: airway hyper-responsiveness before and after."""
        assert round(mcnemar_test(table(1, 1, 7, 12), kind=kind).p_value, 4) == p_value

    @given(counts)
    def test_mcnemar_is_that_of_statsmodels(self, four: tuple[int, int, int, int]) -> None:
        summary = table(*four)
        assume(summary.discordant > 0)
        square = [[summary.both, summary.baseline_only], [summary.candidate_only, summary.neither]]
        for kind, exact in (("exact", True), ("asymptotic", False)):
            want = contingency_tables.mcnemar(square, exact=exact, correction=False)
            assert close(mcnemar_test(summary, kind=kind).p_value, float(want.pvalue))
        exact_p, mid_p = (mcnemar_test(summary, kind=kind).p_value for kind in ("exact", "mid-p"))
        assert mid_p <= exact_p <= 1.0

    @given(counts, st.floats(-0.9, 0.9), st.sampled_from([0.01, 0.05, 0.2]))
    def test_the_interval_is_all_that_the_test_does_not_reject(
        self, four: tuple[int, int, int, int], difference: float, alpha: float
    ) -> None:
        found = tango_score_test(table(*four), difference=difference, alpha=alpha)
        if min(abs(difference - found.low), abs(difference - found.high)) > 1e-9:
            assert (found.low < difference < found.high) == (found.p_value > alpha)

    @given(counts)
    def test_swapping_the_sides(self, four: tuple[int, int, int, int]) -> None:
        both, candidate_only, baseline_only, neither = four
        for test in (mcnemar_test, tango_score_test):
            there, back = test(table(*four)), test(table(both, baseline_only, candidate_only, neither))
            assert there.estimate == -back.estimate and math.isclose(there.low, -back.high, abs_tol=1e-9)
            assert math.isclose(there.p_value, back.p_value, rel_tol=1e-9)
            assert -1 <= there.low <= there.estimate <= there.high <= 1
            assert (there.baseline.value, there.candidate.value) == (back.candidate.value, back.baseline.value)

    @given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30), st.integers(0, 30))
    def test_counts_are_those_of_the_arrays_and_merge(self, both: list[tuple[bool, bool]], cut: int) -> None:
        a, b = [one for one, _ in both], [one for _, one in both]
        whole = PairedRateSummary.of(a, b)
        assert whole.candidate_only == sum(two and not one for one, two in both)
        assert whole.n == len(both) and whole.baseline.successes == sum(a) and whole.candidate.successes == sum(b)
        assert PairedRateSummary.of(a[:cut], b[:cut]) + PairedRateSummary.of(a[cut:], b[cut:]) == whole

    def test_where_no_pair_differs_the_interval_tells_how_equal_they_are(self) -> None:
        """What two copies of one version give at temperature 0."""
        found = mcnemar_test(table(400, 0, 0, 100))
        assert found.attainable and found.p_value == 1.0 and found.notes == ("no pair differs",)
        z2 = stats.norm.ppf(0.975) ** 2
        assert close(found.high, z2 / (500 + z2)) and close(found.low, -found.high)
        assert found.within(0.01) and found.estimate == 0.0
        for kind in ("mid-p", "exact"):
            assert mcnemar_test(table(400, 0, 0, 100), kind=kind).p_value == 1.0

    def test_all_pairs_differ_one_way(self) -> None:
        found = mcnemar_test(table(0, 30, 0, 0), kind="exact")
        assert found.estimate == found.high == 1.0 and 0.75 < found.low < 1.0 and found.p_value < 1e-8
        assert tango_score_test(table(0, 30, 0, 0), difference=1.0).p_value == 1.0

    def test_non_inferiority_is_tangos_test_at_the_margin(self) -> None:
        rng = np.random.default_rng(2)
        for _ in range(40):
            summary = table(*(int(x) for x in rng.multinomial(120, [0.6, 0.08, 0.12, 0.2])))
            claim = non_inferiority(mcnemar_test(summary), margin=0.1, direction="increase")
            at_margin = tango_score_test(summary, difference=-0.1, alternative="greater")
            assert (claim.outcome is MarginOutcome.SHOWN) == (at_margin.p_value < 0.025)
            assert at_margin.notes == ("the p-value is for a difference above -0.1",)

    @pytest.mark.parametrize("rates", [(0.6, 0.1, 0.1, 0.2), (0.9, 0.03, 0.01, 0.06), (0.2, 0.35, 0.05, 0.4)])
    def test_tango_intervals_cover(self, rates: tuple[float, ...]) -> None:
        rng = np.random.default_rng(3)
        drawn = rng.multinomial(80, rates, 1500)
        truth = rates[1] - rates[2]
        p_values = [tango_score_test(table(*map(int, four)), difference=truth).p_value for four in drawn]
        assert 0.935 <= np.mean(np.array(p_values) > 0.05) <= 0.985

    @pytest.mark.parametrize("test", [mcnemar_test, tango_score_test])
    def test_without_pairs_there_is_no_result(self, test: Callable[..., Comparison]) -> None:
        found = test(PairedRateSummary.of([], []))
        assert not found.attainable and "no pairs" in str(found.why_not) and math.isnan(found.p_value)

    def test_bad_input_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="0 and 1"):
            PairedRateSummary.of([0.0, 0.5], [1.0, 1.0])
        with pytest.raises(InvalidInput, match="as many"):
            PairedRateSummary.of([True], [True, False])
        with pytest.raises(InvalidInput, match="neither"):
            table(1, 1, 1, -1)
        with pytest.raises(InvalidInput, match="kind"):
            mcnemar_test(table(1, 2, 3, 4), kind="chi2")
        with pytest.raises(InvalidInput, match="alpha"):
            mcnemar_test(table(1, 2, 3, 4), alpha=0.7)
        with pytest.raises(InvalidInput, match="difference"):
            tango_score_test(table(1, 2, 3, 4), difference=-1.5)
