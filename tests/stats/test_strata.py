"""Stratified differences: by hand, against regressions, under drift, and where there is no answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats.means import welch_t_test
from abswitch.stats.proportions import two_proportion_z_test
from abswitch.stats.strata import StratifiedSummary, stratified_test
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary

rows = st.lists(st.tuples(st.integers(-50, 50), st.sampled_from("abc")), max_size=25)
RAMP = ((950, 50), (750, 250), (500, 500))
"""Units of both arms in the stages of a ramp to 5, 25 and 50 %."""


def means(pairs: list[tuple[int, str]]) -> StratifiedSummary:
    return StratifiedSummary.of_means([float(x) for x, _ in pairs], [name for _, name in pairs])


def close(got: float, want: float) -> bool:
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9)


def test_population_weights_give_the_hand_computed_difference() -> None:
    a = StratifiedSummary({"one": MeanSummary(4, 10.0, 12.0), "two": MeanSummary(6, 20.0, 30.0)})
    b = StratifiedSummary({"one": MeanSummary(2, 12.0, 2.0), "two": MeanSummary(8, 21.0, 14.0)})
    found = stratified_test(a, b)
    assert close(found.estimate, 0.3 * 2.0 + 0.7 * 1.0)
    assert close(found.standard_error, math.sqrt(0.09 * (4 / 4 + 2 / 2) + 0.49 * (6 / 6 + 2 / 8)))
    assert close(found.baseline.value, 0.3 * 10 + 0.7 * 20) and (found.baseline.n, found.candidate.n) == (10, 10)


def test_precision_weights_estimate_what_a_regression_on_strata_does() -> None:
    rng = np.random.default_rng(1)
    stage = np.repeat([0, 1, 2], [80, 50, 40])
    arm = rng.random(170) < np.array([0.1, 0.3, 0.5])[stage]
    y = 3.0 * stage + 0.5 * arm + rng.normal(0, 1, 170)
    fit = sm.OLS(y, np.column_stack([arm, *(stage == k for k in range(3))]).astype(float)).fit()
    a, b = (StratifiedSummary.of_means(y[at], stage[at]) for at in (~arm, arm))
    found = stratified_test(a, b, weights="precision")
    assert close(found.estimate, float(fit.params[0]))
    assert math.isclose(found.standard_error, float(fit.bse[0]), rel_tol=0.15)  # variances are not pooled here


def test_a_single_stratum_of_means_is_welch() -> None:
    a, b = MeanSummary.of([1.0, 5.0, 9.0]), MeanSummary.of([2.0, 4.0, 4.5, 11.0])
    found, want = stratified_test(StratifiedSummary({"s": a}), StratifiedSummary({"s": b})), welch_t_test(a, b)
    assert close(found.p_value, want.p_value) and close(found.low, want.low)
    assert found.df is not None and want.df is not None and close(found.df, want.df)


def test_a_single_stratum_of_rates_is_newcombe() -> None:
    a, b = RateSummary(80, 48), RateSummary(70, 56)
    found, want = stratified_test(StratifiedSummary({"s": a}), StratifiedSummary({"s": b})), two_proportion_z_test(a, b)
    assert close(found.low, want.low) and close(found.high, want.high) and found.df is None


def test_ratios_are_stratified_too() -> None:
    rng = np.random.default_rng(2)
    a, b = (
        StratifiedSummary({k: RatioSummary.of(rng.normal(50, 5, 30), rng.normal(2, 0.1, 30)) for k in ("one", "two")})
        for _ in range(2)
    )
    found = stratified_test(a, b)
    assert found.attainable and close(found.baseline.value, sum(one.mean for one in a.strata.values()) / 2)


@given(rows, rows)
def test_merging_is_the_summary_of_all(one: Any, two: Any) -> None:
    merged, whole = means(one) + means(two), means(one + two)
    assert merged.strata.keys() == whole.strata.keys() and merged.n == len(one + two)
    for name, summary in merged.strata.items():
        want = whole.strata[name]
        assert isinstance(summary, MeanSummary) and isinstance(want, MeanSummary)
        assert summary.n == want.n and close(summary.mean, want.mean)
        assert math.isclose(summary.m2, want.m2, rel_tol=1e-9, abs_tol=1e-6)


@given(rows, rows, st.sampled_from(["population", "precision"]))
def test_swapping_the_arms_turns_the_sign(left: Any, right: Any, weights: str) -> None:
    there = stratified_test(means(left), means(right), weights=weights)
    back = stratified_test(means(right), means(left), weights=weights)
    assert there.attainable == back.attainable
    if there.attainable:
        assert close(there.estimate, -back.estimate) and close(there.low, -back.high)


@given(rows, rows, st.sampled_from([1e-6, 3.0, 1e9]))
def test_another_unit_scales_the_estimate(left: Any, right: Any, scale: float) -> None:
    def scaled(pairs: Any) -> StratifiedSummary:
        return StratifiedSummary.of_means([x * scale for x, _ in pairs], [name for _, name in pairs])

    plain, moved = stratified_test(means(left), means(right)), stratified_test(scaled(left), scaled(right))
    assert plain.attainable == moved.attainable
    if plain.attainable:
        assert math.isclose(plain.low * scale, moved.low, rel_tol=1e-6, abs_tol=1e-9 * scale)


@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        ([], [], "no stratum"),
        ([(1, "a"), (2, "a")], [(1, "b"), (2, "b")], "no stratum"),
        ([(1, "a"), (2, "a")], [(1, "a")], "no stratum"),
        ([(1, "a")] * 5, [(2, "a")] * 5, "neither arm varies"),
    ],
)
def test_where_there_is_no_answer_it_says_why(left: Any, right: Any, why: str) -> None:
    found = stratified_test(means(left), means(right))
    assert found.why_not is not None and why in found.why_not and math.isnan(found.estimate)


def test_strata_without_both_arms_are_named_and_do_not_count() -> None:
    a = means([(1, "a"), (2, "a"), (3, "b"), (9, "b"), (5, "c"), (6, "c")])
    b = means([(2, "a"), (4, "a"), (7, "c"), (1, "d"), (8, "d")])
    found = stratified_test(a, b)
    assert found.notes == ("left out, with too little in an arm: b, c, d",)
    assert close(found.estimate, 1.5) and found.baseline.n == 2


def test_a_stage_without_errors_is_uncertain_not_exact() -> None:
    a = StratifiedSummary({"5 %": RateSummary(950, 0), "50 %": RateSummary(500, 0)})
    b = StratifiedSummary({"5 %": RateSummary(50, 0), "50 %": RateSummary(500, 0)})
    found = stratified_test(a, b)
    assert found.p_value == 1.0 and found.estimate == 0.0 and found.high > 0.004


def test_summaries_of_different_kinds_are_refused() -> None:
    with pytest.raises(InvalidInput):
        StratifiedSummary({"a": MeanSummary(2, 1.0, 1.0), "b": RateSummary(2, 1)})
    with pytest.raises(InvalidInput):
        stratified_test(StratifiedSummary({"a": MeanSummary(2, 1.0, 1.0)}), StratifiedSummary({"a": RateSummary(2, 1)}))
    with pytest.raises(InvalidInput):
        StratifiedSummary({"a": MeanSummary(2, 1.0, 1.0)}) + StratifiedSummary({"a": RateSummary(2, 1)})


BAD: list[Any] = [
    lambda: StratifiedSummary.of_means([1.0, math.nan], ["a", "a"]),
    lambda: StratifiedSummary.of_means([1.0, 2.0], ["a"]),
    lambda: StratifiedSummary.of_rates([1.0, 0.5], ["a", "a"]),
    lambda: stratified_test(means([]), means([]), weights="best"),
    lambda: stratified_test(means([]), means([]), alpha=0.0),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()


def drifting(rng: np.random.Generator) -> tuple[StratifiedSummary, StratifiedSummary]:
    """Latency rises over the ramp, for both arms alike."""
    arms: list[dict[str, MeanSummary]] = [{}, {}]
    for stage, sizes in enumerate(RAMP):
        for arm, n in zip(arms, sizes, strict=True):
            arm[str(stage)] = MeanSummary.of(1.0 + 0.4 * stage + rng.exponential(1.0, n))
    return StratifiedSummary(arms[0]), StratifiedSummary(arms[1])


@pytest.mark.parametrize("weights", ["population", "precision"])
def test_drift_over_a_ramp_is_no_difference(weights: str) -> None:
    rng, wrong, pooled = np.random.default_rng(3), 0, 0
    for _ in range(1500):
        a, b = drifting(rng)
        wrong += stratified_test(a, b, weights=weights).p_value < 0.05
        merged = [
            sum((one for one in arm.strata.values() if isinstance(one, MeanSummary)), MeanSummary.of([]))
            for arm in (a, b)
        ]
        pooled += welch_t_test(*merged).p_value < 0.05
    assert 0.035 <= wrong / 1500 <= 0.07  # 50 exponential values in the smallest arm
    assert pooled / 1500 > 0.95


def draw_rates(rng: np.random.Generator, rate: float, effect: float) -> tuple[StratifiedSummary, StratifiedSummary]:
    a = {str(k): RateSummary(n, int(rng.binomial(n, rate * (1 + k)))) for k, (n, _) in enumerate(RAMP)}
    b = {str(k): RateSummary(m, int(rng.binomial(m, rate * (1 + k) + effect))) for k, (_, m) in enumerate(RAMP)}
    return StratifiedSummary(a), StratifiedSummary(b)


@pytest.mark.parametrize("weights", ["population", "precision"])
@pytest.mark.parametrize(("rate", "effect"), [(0.01, 0.0), (0.01, 0.02), (0.2, 0.1)])
def test_intervals_of_rates_over_a_ramp_cover(weights: str, rate: float, effect: float) -> None:
    rng, covered = np.random.default_rng(4), 0
    for _ in range(1500):
        found = stratified_test(*draw_rates(rng, rate, effect), weights=weights)
        covered += found.low <= effect <= found.high
    assert 0.93 <= covered / 1500 <= 0.985
