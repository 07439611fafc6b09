"""Heterogeneity and Mantel–Haenszel: published examples, statsmodels, invariances, error rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import StratifiedTable
from statsmodels.stats.oneway import anova_oneway

from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.components import bare_arm
from abswitch.stats.means import welch_t_test
from abswitch.stats.segments import cochran_mantel_haenszel_test, cochran_q_test
from abswitch.stats.strata import StratifiedSummary
from abswitch.stats.summaries import MeanSummary, RateSummary

# Admissions to Berkeley, 1973, six largest departments (P. J. Bickel et al., Science 187, 1975; R's `UCBAdmissions`):
# men and women, applicants and admitted.
MEN = {"A": (825, 512), "B": (560, 353), "C": (325, 120), "D": (417, 138), "E": (191, 53), "F": (373, 22)}
WOMEN = {"A": (108, 89), "B": (25, 17), "C": (593, 202), "D": (375, 131), "E": (393, 94), "F": (341, 24)}

# BCG vaccine against tuberculosis (G. A. Colditz et al., JAMA 271, 1994): cases and others, vaccinated and not.
BCG = [
    *((4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761)),
    *((180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232)),
    *((17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825)),
]
tables = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=4)


def rates(of: dict[str, tuple[int, int]]) -> StratifiedSummary:
    return StratifiedSummary({name: RateSummary(n, k) for name, (n, k) in of.items()})


def drawn(of: dict[str, tuple[int, int]]) -> StratifiedSummary:
    return StratifiedSummary({name: RateSummary(max(pair), min(pair)) for name, pair in of.items()})


def known(estimate: float, error: float, df: float | None = None) -> Comparison:
    arm = bare_arm(10)
    return Comparison(
        method="given", alpha=0.05, baseline=arm, candidate=arm, estimate=estimate, standard_error=error, df=df
    )


def close(got: float, want: float) -> bool:
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9)


def test_the_heterogeneity_of_the_bcg_trials_is_the_published_one() -> None:
    # metafor (W. Viechtbauer, Journal of Statistical Software 36, 2010), fixed effects of the log relative risk.
    trials = {}
    for k, (a, b, c, d) in enumerate(BCG):
        error = math.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))
        trials[str(k)] = known(math.log(a / (a + b) / (c / (c + d))), error)
    found = cochran_q_test(trials)
    assert round(found.q, 3) == 152.233 and found.df == 12 and round(found.i_squared, 4) == 0.9212
    assert [round(x, 4) for x in (found.pooled, found.low, found.high)] == [-0.4303, -0.5097, -0.3509]
    assert found.p_value < 1e-4 and found.method == "Cochran's Q"


def test_with_degrees_of_freedom_it_is_welchs_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    groups = [rng.normal(k / 4, 1 + k, 6 + k) for k in range(4)]
    segments = {str(k): known(x.mean(), x.std(ddof=1) / math.sqrt(x.size), x.size - 1) for k, x in enumerate(groups)}
    want = anova_oneway(groups, use_var="unequal", welch_correction=True)
    assert close(cochran_q_test(segments).p_value, float(want.pvalue))


def test_segments_of_a_few_units_differ_as_seldom_as_they_should() -> None:
    rng, welch, naive = np.random.default_rng(2), 0, 0
    for _ in range(600):
        compared = {
            str(k): welch_t_test(MeanSummary.of(rng.normal(0, 1, 5)), MeanSummary.of(rng.normal(1, 3, 6)))
            for k in range(6)
        }
        welch += cochran_q_test(compared).p_value < 0.05
        bare = {name: known(one.estimate, one.standard_error) for name, one in compared.items()}
        naive += cochran_q_test(bare).p_value < 0.05
    assert 0.03 <= welch / 600 <= 0.075 and naive / 600 > 0.1


def test_segments_without_a_result_are_left_out_and_named() -> None:
    nothing = welch_t_test(MeanSummary.of([]), MeanSummary.of([]))
    found = cochran_q_test({"de": known(1.0, 0.5), "fr": nothing, "en": known(1.2, 0.4)})
    assert found.segments == ("de", "en") and found.notes == ("left out, without a result: fr",)
    alone = cochran_q_test({"de": known(1.0, 0.5), "fr": nothing})
    assert not alone.attainable and alone.why_not is not None and "1 segment" in alone.why_not
    assert alone.to_dict()["q"] is None and alone.to_dict()["attainable"] is False


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 3)), min_size=2, max_size=6), st.sampled_from([-1.0, 1e6]))
def test_units_and_signs_leave_heterogeneity(pairs: Any, scale: float) -> None:
    plain = cochran_q_test({str(k): known(x, s) for k, (x, s) in enumerate(pairs)})
    moved = cochran_q_test({str(k): known(x * scale, s * abs(scale)) for k, (x, s) in enumerate(pairs)})
    assert math.isclose(plain.q, moved.q, rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(plain.pooled * scale, moved.pooled, rel_tol=1e-6, abs_tol=1e-6)


def test_the_admissions_to_berkeley() -> None:
    # R: mantelhaen.test(UCBAdmissions, correct = FALSE): X-squared = 1.5246, p = 0.2169
    found = cochran_mantel_haenszel_test(rates(MEN), rates(WOMEN))
    assert round(found.p_value, 4) == 0.2169
    assert found.estimate > 0 and not found.excludes_zero()  # pooled over departments, women fare 14 points worse
    assert (found.baseline.n, found.candidate.n) == (2691, 1835)


def test_the_p_value_is_that_of_statsmodels() -> None:
    cells = [
        np.array([[WOMEN[d][1], WOMEN[d][0] - WOMEN[d][1]], [MEN[d][1], MEN[d][0] - MEN[d][1]]], float) for d in MEN
    ]
    want = StratifiedTable(cells).test_null_odds(correction=False)
    assert close(cochran_mantel_haenszel_test(rates(MEN), rates(WOMEN)).p_value, float(want.pvalue))


def test_for_one_large_stratum_the_interval_is_walds() -> None:
    found = cochran_mantel_haenszel_test(rates({"s": (4000, 800)}), rates({"s": (1000, 250)}))
    assert close(found.estimate, 0.05)
    assert math.isclose(found.standard_error, math.sqrt(0.2 * 0.8 / 4000 + 0.25 * 0.75 / 1000), rel_tol=1e-9)


@given(tables, tables)
def test_swapping_the_arms_turns_the_sign(left: Any, right: Any) -> None:
    there = cochran_mantel_haenszel_test(drawn(left), drawn(right))
    back = cochran_mantel_haenszel_test(drawn(right), drawn(left))
    assert there.attainable == back.attainable
    if there.attainable:
        assert close(there.estimate, -back.estimate) and close(there.p_value, back.p_value)
        assert math.isclose(there.low, -back.high, abs_tol=1e-7) and there.low <= there.estimate <= there.high


@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        ({}, {}, "no stratum"),
        ({"a": (5, 2)}, {"b": (5, 2)}, "no stratum"),
        ({"a": (0, 0)}, {"a": (5, 2)}, "no stratum"),
        ({"a": (5, 0), "b": (4, 4)}, {"a": (9, 0), "b": (3, 3)}, "all trials agree"),
    ],
)
def test_where_there_is_no_answer_it_says_why(left: Any, right: Any, why: str) -> None:
    found = cochran_mantel_haenszel_test(rates(left), rates(right))
    assert found.why_not is not None and why in found.why_not and math.isnan(found.estimate)


def test_strata_split_by_arm_still_have_an_interval() -> None:
    found = cochran_mantel_haenszel_test(rates({"a": (10, 0)}), rates({"a": (12, 12)}))
    assert found.estimate == 1.0 and found.low < 1.0 and found.excludes_zero() and len(found.notes) == 1


def test_means_are_refused() -> None:
    means = StratifiedSummary({"a": MeanSummary.of([1.0, 2.0])})
    with pytest.raises(InvalidInput, match=r"strata\.a"):
        cochran_mantel_haenszel_test(means, means)
    with pytest.raises(InvalidInput, match="alpha"):
        cochran_q_test({}, alpha=2.0)


@pytest.mark.parametrize(
    ("sizes", "strata", "effect"), [((9, 3), 60, 0.0), ((9, 3), 60, 0.15), ((950, 50), 3, 0.0), ((950, 50), 3, 0.05)]
)
def test_intervals_cover_with_sparse_and_with_large_strata(sizes: Any, strata: int, effect: float) -> None:
    rng, covered, runs = np.random.default_rng(3), 0, 500
    base = np.linspace(0.1, 0.5, strata)
    x, y = rng.binomial(sizes[0], base, (runs, strata)), rng.binomial(sizes[1], base + effect, (runs, strata))
    for one, two in zip(x.tolist(), y.tolist(), strict=True):
        a = rates({str(k): (sizes[0], value) for k, value in enumerate(one)})
        b = rates({str(k): (sizes[1], value) for k, value in enumerate(two)})
        found = cochran_mantel_haenszel_test(a, b)
        covered += found.low <= effect <= found.high
    assert 0.925 <= covered / runs <= 0.975
