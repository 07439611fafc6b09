"""Rates against the published examples, SciPy and statsmodels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import proportion

from abswitch.errors import InvalidInput
from abswitch.stats import Comparison, RateSummary, two_proportion_z_test, wilson_interval
from abswitch.stats.proportions import (
    boschloo_exact_test,
    farrington_manning_test,
    fisher_exact_test,
    miettinen_nurminen_test,
    newcombe_interval,
    rate_under,
)

rates = st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))).map(lambda r: RateSummary(*r))

# R. G. Newcombe, Statistics in Medicine 17 (1998) 873–890, table II, method 10: (a, m, b, n) and the interval of
# a/m − b/n.
NEWCOMBE = [
    ((56, 70, 48, 80), (0.0524, 0.3339)),
    ((9, 10, 3, 10), (0.1705, 0.8090)),
    ((6, 7, 2, 7), (0.0582, 0.8062)),
    ((5, 56, 0, 29), (-0.0381, 0.1926)),
    ((0, 10, 0, 20), (-0.1611, 0.2775)),
    ((0, 10, 0, 10), (-0.2775, 0.2775)),
    ((10, 10, 0, 20), (0.6791, 1.0000)),
    ((10, 10, 0, 10), (0.6075, 1.0000)),
]

# R. G. Newcombe, Statistics in Medicine 17 (1998) 857–872, table I, score method.
WILSON = [
    ((81, 263), (0.2553, 0.3662)),
    ((15, 148), (0.0624, 0.1605)),
    ((0, 20), (0.0, 0.1611)),
    ((1, 29), (0.0061, 0.1718)),
]

# The same table, methods 5 (Mee: Farrington & Manning's test) and 6 (Miettinen–Nurminen).
MEE = [
    ((56, 70, 48, 80), (0.0533, 0.3377)),
    ((9, 10, 3, 10), (0.1821, 0.8370)),
    ((6, 7, 2, 7), (0.0544, 0.8478)),
    ((5, 56, 0, 29), (-0.0313, 0.1926)),
    ((0, 10, 0, 20), (-0.1611, 0.2775)),
    ((0, 10, 0, 10), (-0.2775, 0.2775)),
    ((10, 10, 0, 20), (0.7225, 1.0000)),
    ((10, 10, 0, 10), (0.6777, 1.0000)),
    # J. J. Gart, J. Nam, Biometrics 46 (1990) 637–643: −0.014 to 0.412
    ((7, 25, 2, 25), (-0.0144, 0.4124)),
]
MIETTINEN_NURMINEN = [
    ((56, 70, 48, 80), (0.0528, 0.3382)),
    ((9, 10, 3, 10), (0.1700, 0.8406)),
    ((6, 7, 2, 7), (0.0342, 0.8534)),
    ((5, 56, 0, 29), (-0.0326, 0.1933)),
    ((0, 10, 0, 20), (-0.1658, 0.2844)),
    ((0, 10, 0, 10), (-0.2879, 0.2879)),
    ((10, 10, 0, 20), (0.7156, 1.0000)),
    ((10, 10, 0, 10), (0.6636, 1.0000)),
]

Test = Callable[..., Comparison]
SCORES: list[Test] = [miettinen_nurminen_test, farrington_manning_test]
ALL: list[Test] = [two_proportion_z_test, *SCORES, fisher_exact_test, boschloo_exact_test]


@pytest.mark.parametrize(("table", "interval"), NEWCOMBE)
def test_newcombe_published_examples(table: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    a, m, b, n = table
    found = two_proportion_z_test(RateSummary(n, b), RateSummary(m, a))
    assert (round(found.low, 4), round(found.high, 4)) == interval
    assert newcombe_interval(RateSummary(n, b), RateSummary(m, a)) == (found.low, found.high)
    assert math.isclose(found.estimate, a / m - b / n)


@pytest.mark.parametrize(
    ("test", "table", "interval"),
    [(farrington_manning_test, *row) for row in MEE] + [(miettinen_nurminen_test, *row) for row in MIETTINEN_NURMINEN],
)
def test_score_published_examples(test: Test, table: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    a, m, b, n = table
    found = test(RateSummary(n, b), RateSummary(m, a))
    assert (round(found.low, 4), round(found.high, 4)) == interval


@pytest.mark.parametrize(("table", "interval"), WILSON)
def test_wilson_published_examples(table: tuple[int, int], interval: tuple[float, float]) -> None:
    successes, n = table
    assert tuple(round(x, 4) for x in wilson_interval(n, successes)) == interval


@given(rates, rates, st.sampled_from([0.01, 0.05, 0.2]))
def test_the_same_as_statsmodels(a: RateSummary, b: RateSummary, alpha: float) -> None:
    found = two_proportion_z_test(a, b, alpha=alpha)
    low, high = proportion.confint_proportions_2indep(
        b.successes, b.n, a.successes, a.n, method="newcomb", compare="diff", alpha=alpha
    )
    assert math.isclose(found.low, low, abs_tol=1e-9) and math.isclose(found.high, high, abs_tol=1e-9)
    for arm, summary in ((found.baseline, a), (found.candidate, b)):
        want = proportion.proportion_confint(summary.successes, summary.n, alpha=alpha, method="wilson")
        assert math.isclose(arm.low, want[0], abs_tol=1e-9) and math.isclose(arm.high, want[1], abs_tol=1e-9)
    if 0 < a.successes + b.successes < a.n + b.n:
        _, p_value = proportion.proportions_ztest([b.successes, a.successes], [b.n, a.n])
        assert math.isclose(found.p_value, float(p_value), rel_tol=1e-9, abs_tol=1e-15)
    else:
        assert found.p_value == 1.0 and found.notes == ("all trials of both arms agree",)


@given(rates, rates)
def test_it_stays_within_its_bounds_and_swaps(a: RateSummary, b: RateSummary) -> None:
    there, back = two_proportion_z_test(a, b), two_proportion_z_test(b, a)
    assert -1.0 - 1e-12 <= there.low <= there.estimate <= there.high <= 1.0 + 1e-12
    assert there.standard_error > 0
    assert (there.estimate, there.p_value) == (-back.estimate, back.p_value)
    assert math.isclose(there.low, -back.high, abs_tol=1e-12)


def test_no_errors_anywhere_still_excludes_large_differences() -> None:
    found = two_proportion_z_test(RateSummary(300, 0), RateSummary(300, 0))
    assert found.attainable and found.within(0.02) and not found.excludes_zero()


@pytest.mark.filterwarnings("ignore::RuntimeWarning:statsmodels")  # it divides by a rate of 0 beside the way
@given(rates, rates, st.sampled_from([0.01, 0.05, 0.2]))
def test_without_a_difference_the_score_is_that_of_statsmodels(a: RateSummary, b: RateSummary, alpha: float) -> None:
    if not 0 < a.successes + b.successes < a.n + b.n:
        return
    for test, correction in ((miettinen_nurminen_test, True), (farrington_manning_test, False)):
        want = proportion.test_proportions_2indep(
            b.successes, b.n, a.successes, a.n, method="score", compare="diff", correction=correction
        )
        assert math.isclose(test(a, b, alpha=alpha).p_value, float(want.pvalue), rel_tol=1e-9, abs_tol=1e-15)
    pooled = two_proportion_z_test(a, b).p_value
    assert math.isclose(farrington_manning_test(a, b).p_value, pooled, rel_tol=1e-9, abs_tol=1e-15)


@given(rates, rates, st.floats(-0.99, 0.99))
def test_the_rate_under_a_difference_is_the_most_likely_one(a: RateSummary, b: RateSummary, difference: float) -> None:
    """Against bisection of the slope of the likelihood, written out by itself."""
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)

    def part(count: int, rate: float) -> float:
        return 0.0 if count == 0 else count / rate if rate > 0 else math.inf

    for _ in range(100):
        middle = (low + high) / 2
        up = part(a.successes, middle) + part(b.successes, middle + difference)
        down = part(a.n - a.successes, 1 - middle) + part(b.n - b.successes, 1 - middle - difference)
        low, high = (middle, high) if up > down else (low, middle)
    assert math.isclose(rate_under(a, b, difference), low, rel_tol=1e-9, abs_tol=1e-11)


@given(rates, rates, st.floats(-0.9, 0.9), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_interval_is_all_that_the_test_does_not_reject(
    a: RateSummary, b: RateSummary, difference: float, alpha: float
) -> None:
    for test in SCORES:
        found = test(a, b, difference=difference, alpha=alpha)
        if min(abs(difference - found.low), abs(difference - found.high)) > 1e-9:
            assert (found.low < difference < found.high) == (found.p_value > alpha)


@given(rates, rates, st.floats(-0.9, 0.9))
def test_scores_swap_and_their_one_sided_tests_add_up(a: RateSummary, b: RateSummary, difference: float) -> None:
    for test in SCORES:
        there, back = test(a, b, difference=difference), test(b, a, difference=-difference)
        assert math.isclose(there.low, -back.high, abs_tol=1e-9)
        assert math.isclose(there.p_value, back.p_value, rel_tol=1e-6, abs_tol=1e-12)
        assert -1 <= there.low <= there.estimate <= there.high <= 1 and there.standard_error > 0
        above, below = (test(a, b, difference=difference, alternative=side).p_value for side in ("greater", "less"))
        assert math.isclose(above + below, 1.0, rel_tol=1e-9)
        assert math.isclose(there.p_value, min(1.0, 2 * min(above, below)), rel_tol=1e-9, abs_tol=1e-15)


@pytest.mark.parametrize("difference", [-0.1, 0.05])
def test_score_intervals_cover_by_enumeration(difference: float) -> None:
    """Every outcome of two arms of 40, weighed by its chance: no simulation."""
    n = 40
    for rate in (0.15, 0.5, 0.8):
        marginals = (stats.binom.pmf(np.arange(n + 1), n, p) for p in (rate, rate + difference))
        chances = np.multiply.outer(*marginals)
        covered = 0.0
        for x, y in np.argwhere(chances > 1e-5):
            found = miettinen_nurminen_test(RateSummary(n, int(x)), RateSummary(n, int(y)), difference=difference)
            covered += float(chances[x, y]) * (found.p_value > 0.05)
        assert 0.94 <= covered <= 0.97


def test_large_arms_and_rare_events_keep_their_digits() -> None:
    found = miettinen_nurminen_test(RateSummary(10_000_000, 40), RateSummary(10_000_000, 60))
    wald = math.sqrt(100) / 1e7 * 1.959964
    assert math.isclose(found.low, 2e-6 - wald, rel_tol=0.2) and math.isclose(found.high, 2e-6 + wald, rel_tol=0.05)
    assert math.isclose(found.p_value, 2 * stats.norm.sf(20 / math.sqrt(100)), rel_tol=1e-4)


def test_a_p_value_of_another_hypothesis_says_so() -> None:
    arms = RateSummary(100, 90), RateSummary(100, 88)
    assert farrington_manning_test(*arms).notes == ()
    shown = farrington_manning_test(*arms, difference=-0.1, alternative="greater")
    assert shown.notes == ("the p-value is for a difference above -0.1",)


# Fisher's tea: 3 of 4 (The Design of Experiments, 1935). Mehta & Senchaudhuri, Conditional versus Unconditional Exact
# Tests for Comparing Two Binomials (2003): vaccine 7 of 15, placebo 12 of 15: Fisher 0.1281.
@pytest.mark.parametrize(
    ("a", "b", "p_value"), [((4, 1), (4, 3), 0.4857), ((15, 7), (15, 12), 0.1281), ((15, 5), (15, 12), 0.0253)]
)
def test_fisher_published_examples(a: tuple[int, int], b: tuple[int, int], p_value: float) -> None:
    assert round(fisher_exact_test(RateSummary(*a), RateSummary(*b)).p_value, 4) == p_value


@given(rates, rates)
def test_exact_tests_are_those_of_scipy(a: RateSummary, b: RateSummary) -> None:
    found = fisher_exact_test(a, b)
    table = np.array([[b.successes, b.n - b.successes], [a.successes, a.n - a.successes]])
    assert math.isclose(found.p_value, float(stats.fisher_exact(table).pvalue), rel_tol=1e-9)
    assert (found.low, found.high) == newcombe_interval(a, b)


def test_boschloo_is_at_least_as_powerful_as_fisher() -> None:
    for x, y in ((7, 2), (11, 4), (12, 3), (9, 9)):
        a, b = RateSummary(15, x), RateSummary(14, y)
        found = boschloo_exact_test(a, b)
        columns = np.array([[y, x], [14 - y, 15 - x]])
        assert math.isclose(found.p_value, float(stats.boschloo_exact(columns).pvalue), rel_tol=1e-9)
        less = stats.fisher_exact(columns, alternative="less").pvalue
        greater = stats.fisher_exact(columns, alternative="greater").pvalue
        assert found.p_value <= 2 * min(less, greater) + 1e-9
        assert math.isclose(found.p_value, boschloo_exact_test(b, a).p_value, rel_tol=1e-3)


def test_arms_too_large_for_boschloo_have_no_result() -> None:
    found = boschloo_exact_test(RateSummary(1000, 7), RateSummary(1000, 9))
    assert not found.attainable and "too many trials" in str(found.why_not) and math.isnan(found.p_value)


@pytest.mark.parametrize("test", ALL)
def test_where_all_trials_agree_p_is_1_and_the_interval_tells(test: Test) -> None:
    for successes in (0, 50):
        found = test(RateSummary(50, successes), RateSummary(50, successes))
        assert found.p_value == 1.0 and found.notes == ("all trials of both arms agree",)
        assert found.low < 0 < found.high and found.standard_error > 0
    opposite = test(RateSummary(50, 0), RateSummary(50, 50))
    assert opposite.excludes_zero() and opposite.high == 1.0 and opposite.p_value < 1e-9


@pytest.mark.parametrize("test", ALL)
@pytest.mark.parametrize(("a", "b", "why"), [((0, 0), (5, 1), "baseline"), ((5, 1), (0, 0), "candidate")])
def test_an_empty_arm_has_no_result(test: Test, a: tuple[int, int], b: tuple[int, int], why: str) -> None:
    found = test(RateSummary(*a), RateSummary(*b))
    assert not found.attainable and why in str(found.why_not)
    assert math.isnan(found.low) and found.to_dict()["low"] is None


def test_bad_input_is_refused() -> None:
    for bad in (0.0, 0.7, math.nan, True):
        for test in ALL:
            with pytest.raises(InvalidInput, match="alpha"):
                test(RateSummary(5, 1), RateSummary(5, 1), alpha=bad)
        with pytest.raises(InvalidInput):
            wilson_interval(5, 1, alpha=bad)
    with pytest.raises(InvalidInput):
        wilson_interval(0, 0)
    with pytest.raises(InvalidInput):
        wilson_interval(5, 6)
    with pytest.raises(InvalidInput, match=r"candidate\.n"):
        newcombe_interval(RateSummary(5, 1), RateSummary(0, 0))
    for score in SCORES:
        for bad in (1.5, -2.0, math.nan, True):
            with pytest.raises(InvalidInput, match="difference"):
                score(RateSummary(5, 1), RateSummary(5, 1), difference=bad)
        with pytest.raises(InvalidInput, match="alternative"):
            score(RateSummary(5, 1), RateSummary(5, 1), alternative="larger")
