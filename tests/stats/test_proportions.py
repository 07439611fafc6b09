"""Rates against the published examples and statsmodels."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats import proportion

from abswitch.errors import InvalidInput
from abswitch.stats import RateSummary, two_proportion_z_test, wilson_interval

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


@pytest.mark.parametrize(("table", "interval"), NEWCOMBE)
def test_newcombe_published_examples(table: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    a, m, b, n = table
    found = two_proportion_z_test(RateSummary(n, b), RateSummary(m, a))
    assert (round(found.low, 4), round(found.high, 4)) == interval
    assert math.isclose(found.estimate, a / m - b / n)


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


@pytest.mark.parametrize(("a", "b", "why"), [((0, 0), (5, 1), "baseline"), ((5, 1), (0, 0), "candidate")])
def test_an_empty_arm_has_no_result(a: tuple[int, int], b: tuple[int, int], why: str) -> None:
    found = two_proportion_z_test(RateSummary(*a), RateSummary(*b))
    assert not found.attainable and why in str(found.why_not)
    assert math.isnan(found.low) and found.to_dict()["low"] is None


def test_bad_input_is_refused() -> None:
    for bad in (0.0, 0.7, math.nan, True):
        with pytest.raises(InvalidInput):
            two_proportion_z_test(RateSummary(5, 1), RateSummary(5, 1), alpha=bad)
        with pytest.raises(InvalidInput):
            wilson_interval(5, 1, alpha=bad)
    with pytest.raises(InvalidInput):
        wilson_interval(0, 0)
    with pytest.raises(InvalidInput):
        wilson_interval(5, 6)
