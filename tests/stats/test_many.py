"""Corrections against SciPy, statsmodels and published examples; Dunnett against SciPy and his tables."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from abswitch.errors import InvalidInput
from abswitch.stats.many import (
    Corrected,
    benjamini_hochberg,
    benjamini_yekutieli,
    correct_comparisons,
    dunnett_test,
    e_bh,
    holm,
)
from abswitch.stats.means import welch_t_test
from abswitch.stats.summaries import MeanSummary

p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)
PEERS = [(holm, "holm"), (benjamini_hochberg, "fdr_bh"), (benjamini_yekutieli, "fdr_by")]

# Benjamini & Hochberg (1995), section 4: the ordered p-values of a trial of thrombolysis with 15 end points.
NEUHAUS = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
]


@pytest.mark.parametrize(("method", "peer"), PEERS)
@given(p_values=p_lists)
@settings(max_examples=50, deadline=None)
def test_adjusted_p_values_are_those_of_statsmodels(method: Any, peer: str, p_values: list[float]) -> None:
    found, want = method(p_values), multipletests(p_values, 0.05, peer)
    assert np.allclose(found.adjusted, want[1], rtol=1e-9, atol=1e-12)
    clear = np.abs(want[1] - 0.05) > 1e-12
    assert (found.rejected == want[0])[clear].all()


def test_the_trial_of_benjamini_and_hochberg() -> None:
    assert benjamini_hochberg(NEUHAUS).rejected.sum() == 4  # as they report, against Bonferroni's three
    assert holm(NEUHAUS).rejected.sum() == 3


@given(p_lists, st.randoms())
def test_the_order_does_not_matter(p_values: list[float], random: Any) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)
    for method, _ in PEERS:
        assert np.allclose(method([p_values[k] for k in order]).adjusted, method(p_values).adjusted[order])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_e_bh_is_its_definition(e_values: list[float]) -> None:
    ranked = sorted(e_values, reverse=True)
    count = max((k for k, e in enumerate(ranked, 1) if e * k * 0.05 >= len(ranked) * (1 + 1e-12)), default=0)
    least = max((k for k, e in enumerate(ranked, 1) if e * k * 0.05 >= len(ranked) * (1 - 1e-12)), default=0)
    assert count <= e_bh(e_values).rejected.sum()
    assert e_bh(e_values).rejected.sum() <= sum(e >= ranked[least - 1] for e in ranked) if least else True


def test_e_bh_holds_its_rate_when_e_values_depend() -> None:
    rng, false = np.random.default_rng(1), []
    for _ in range(2000):
        z = 0.7 * rng.normal() + 0.7 * rng.normal(size=10) + np.r_[np.zeros(7), np.full(3, 4.0)]
        rejected = e_bh(np.exp(3.0 * z - 4.5)).rejected
        false.append(rejected[:7].sum() / max(1, rejected.sum()))
    assert np.mean(false) <= 0.05


def test_holm_holds_the_rate_of_the_family() -> None:
    p = np.random.default_rng(2).uniform(size=(2000, 6))
    wrong = sum(bool(holm(row).rejected.any()) for row in p) / 2000
    assert 0.035 <= wrong <= 0.06


def test_nothing_to_correct_is_nothing() -> None:
    for method in (holm, benjamini_hochberg, benjamini_yekutieli, e_bh):
        found: Corrected = method([])
        assert found.adjusted.shape == found.rejected.shape == (0,)


BAD: list[Any] = [
    lambda: holm([0.1, 1.5]),
    lambda: holm([math.nan]),
    lambda: benjamini_hochberg([-0.1]),
    lambda: benjamini_hochberg([0.1], alpha=0.0),
    lambda: e_bh([-1.0]),
    lambda: e_bh([math.inf]),
    lambda: correct_comparisons({}, method="bonferoni"),
    lambda: dunnett_test(MeanSummary.of([1.0, 2.0]), []),
    lambda: dunnett_test(MeanSummary.of([1.0, 2.0]), [MeanSummary.of([1.0])], alpha=1.0),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()


def test_a_comparison_without_result_stays_in_the_family() -> None:
    a, b = MeanSummary.of([1.0, 2.0, 3.0, 2.0]), MeanSummary.of([4.0, 5.0, 4.5, 6.0])
    good = welch_t_test(a, b)
    found = correct_comparisons({"v2": good, "v3": welch_t_test(a, MeanSummary.of([]))})
    assert found.names == ("v2", "v3") and found.rejected.tolist() == [True, False]
    assert math.isclose(found.adjusted[0], 2 * good.p_value) and math.isnan(found.adjusted[1])
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["names"] == ["v2", "v3"] and plain["adjusted"][1] is None and plain["rejected"] == [True, False]


# Dunnett (1955), table of blood counts, as in SciPy's documentation.
CONTROL = [7.40, 8.50, 7.20, 8.24, 9.84, 8.32]
DRUGS = [[9.76, 8.80, 7.68, 9.36], [12.80, 9.68, 12.16, 9.20, 10.55]]


def test_dunnett_is_that_of_scipy() -> None:
    found = dunnett_test(MeanSummary.of(CONTROL), [MeanSummary.of(drug) for drug in DRUGS])
    want = stats.dunnett(*(np.array(drug) for drug in DRUGS), control=np.array(CONTROL), rng=np.random.default_rng(3))
    interval = want.confidence_interval(0.95)
    for k, one in enumerate(found):  # SciPy integrates by chance
        assert math.isclose(one.p_value, want.pvalue[k], abs_tol=5e-4)
        assert math.isclose(one.low, interval.low[k], abs_tol=5e-3)
        assert math.isclose(one.high, interval.high[k], abs_tol=5e-3)
        assert math.isclose(one.estimate / one.standard_error, want.statistic[k], rel_tol=1e-9)
    assert [one.excludes_zero() for one in found] == [False, True]


@pytest.mark.parametrize(
    ("n", "k", "critical"), [(3, 2, 2.86), (3, 5, 2.90), (4, 4, 2.73), (6, 3, 2.54), (11, 2, 2.32)]
)
def test_intervals_use_the_critical_values_of_dunnetts_tables(n: int, k: int, critical: float) -> None:
    # C. W. Dunnett, Biometrics 20 (1964) 482–491, two-sided, 5 %, equal arms, df = (k + 1) (n − 1).
    found = dunnett_test(MeanSummary(n, 0.0, 1.0), [MeanSummary(n, 0.0, 1.0)] * k)[0]
    assert math.isclose((found.high - found.low) / 2 / found.standard_error, critical, abs_tol=0.0051)


def test_one_candidate_is_students_t() -> None:
    found = dunnett_test(MeanSummary.of(CONTROL), [MeanSummary.of(DRUGS[1])])[0]
    want = stats.ttest_ind(DRUGS[1], CONTROL)
    assert math.isclose(found.p_value, float(want.pvalue), rel_tol=1e-9)
    assert math.isclose(found.low, float(want.confidence_interval().low), rel_tol=1e-9)


def test_adjusted_p_values_and_intervals_agree() -> None:
    rng = np.random.default_rng(4)
    for _ in range(30):
        arms = [MeanSummary.of(rng.normal(0, 1, n)) for n in (12, 8, 20, 5)]
        for one in dunnett_test(arms[0], arms[1:]):
            assert (one.p_value < 0.05) == one.excludes_zero()


def test_the_family_of_dunnett_errs_as_often_as_alpha_says() -> None:
    rng, wrong, plain = np.random.default_rng(5), 0, 0
    means, spreads = rng.normal(0, 0.5**0.5 / 2, (600, 4)), rng.chisquare(7, (600, 4))
    for row, spread in zip(means, spreads, strict=True):
        arms = [MeanSummary(8, float(mean), float(m2)) for mean, m2 in zip(row, spread, strict=True)]
        wrong += any(one.p_value < 0.05 for one in dunnett_test(arms[0], arms[1:]))
        plain += any(welch_t_test(arms[0], one).p_value < 0.05 for one in arms[1:])
    assert 0.03 <= wrong / 600 <= 0.07 and plain / 600 > 0.09


@pytest.mark.parametrize(
    ("baseline", "candidates", "why"),
    [
        ([], [[1.0, 2.0]], "the baseline has no observation"),
        ([1.0, 2.0], [[1.0, 2.0], []], "the candidate 1 has no observation"),
        ([1.0], [[2.0], [3.0]], "no more observations than arms"),
        ([1.0] * 3, [[2.0] * 3], "neither arm varies"),
    ],
)
def test_where_dunnett_has_no_answer_it_says_why(baseline: Any, candidates: Any, why: str) -> None:
    found = dunnett_test(MeanSummary.of(baseline), [MeanSummary.of(one) for one in candidates])
    assert len(found) == len(candidates)
    assert all(one.why_not is not None and why in one.why_not and math.isnan(one.p_value) for one in found)
