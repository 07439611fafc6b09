"""Group sequential boundaries against published tables, against another way to integrate, and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import MeanSummary, welch_t_test
from abswitch.stats.group_sequential import (
    GroupSequentialDesign,
    exit_probabilities,
    group_sequential_test,
    obrien_fleming_spending,
    pocock_spending,
    power_spending,
)

FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]
OBF, POCOCK = GroupSequentialDesign(), GroupSequentialDesign("pocock")


def total(boundaries: Any, fractions: list[float]) -> float:
    return float(np.concatenate(exit_probabilities(boundaries, fractions)).sum())


# Jennison & Turnbull (2000), tables 2.1 and 2.3, alpha = 0.05: constants of the classical tests.
@pytest.mark.parametrize(
    ("looks", "constant"), [(2, 2.178), (3, 2.289), (4, 2.361), (5, 2.413), (10, 2.555), (20, 2.672)]
)
def test_pococks_constants(looks: int, constant: float) -> None:
    fractions = [(k + 1) / looks for k in range(looks)]
    assert abs(total([constant] * looks, fractions) - 0.05) < 1e-4


@pytest.mark.parametrize(("looks", "constant"), [(2, 1.977), (3, 2.004), (4, 2.024), (5, 2.040), (10, 2.087)])
def test_obrien_and_flemings_constants(looks: int, constant: float) -> None:
    fractions = [(k + 1) / looks for k in range(looks)]
    assert abs(total([constant / math.sqrt(t) for t in fractions], fractions) - 0.05) < 1e-4


# Reboussin, DeMets, Kim & Lan (2000), as the program ld98 and the R package ldbounds print them: two-sided 0.05.
@pytest.mark.parametrize(
    ("design", "want"),
    [
        (OBF, [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
        (POCOCK, [2.4380, 2.4268, 2.4101, 2.3966, 2.3859]),
    ],
)
def test_lan_demets_boundaries(design: GroupSequentialDesign, want: list[float]) -> None:
    assert np.abs(design.boundaries(FIVE) - want).max() < 2e-4


def test_the_first_look_of_a_power_family_is_the_normal_quantile() -> None:
    for rho in (1.0, 2.0, 3.0):
        found = GroupSequentialDesign("power", rho=rho).boundaries([0.4])[0]
        assert math.isclose(found, stats.norm.isf(0.025 * 0.4**rho), rel_tol=1e-8)


@pytest.mark.parametrize("design", [OBF, POCOCK, GroupSequentialDesign("power", rho=2.0)])
def test_another_way_to_integrate(design: GroupSequentialDesign) -> None:
    fractions = [0.3, 0.55, 1.0]
    bounds = design.boundaries(fractions)
    covariance = [[math.sqrt(min(a, b) / max(a, b)) for a in fractions] for b in fractions]
    for looks in (2, 3):
        normal = stats.multivariate_normal(np.zeros(looks), np.array(covariance)[:looks, :looks])
        inside = float(np.asarray(normal.cdf(bounds[:looks], lower_limit=-bounds[:looks])))
        assert abs(1 - inside - float(design.spent(fractions[looks - 1]))) < 1e-5


def test_spending_functions() -> None:
    t = np.linspace(0, 1, 11)
    for spent in (obrien_fleming_spending(t), pocock_spending(t), power_spending(t, rho=1.5)):
        assert spent[0] == 0 and math.isclose(spent[-1], 0.05) and (np.diff(spent) > 0).all()
    assert obrien_fleming_spending(0.5) < pocock_spending(0.5)
    assert OBF.spent(1.3) == OBF.spent(1.0)


fractions_of_looks = st.lists(st.floats(0.05, 1.0), min_size=1, max_size=6, unique_by=lambda x: round(x, 2)).map(sorted)


@settings(max_examples=40, deadline=None)
@given(fractions_of_looks, st.sampled_from([0.01, 0.05, 0.2]))
def test_whatever_the_looks_alpha_is_spent_to_the_last(fractions: list[float], alpha: float) -> None:
    for design in (GroupSequentialDesign("obrien-fleming", alpha), GroupSequentialDesign("pocock", alpha)):
        assert math.isclose(total(design.boundaries(fractions, final=True), fractions), alpha, rel_tol=1e-5)
        if fractions[-1] < 1:
            kept = float(design.spent(fractions[-1]))
            assert total(design.boundaries(fractions), fractions) <= kept + 1e-9


def test_looks_before_are_not_changed_by_looks_after() -> None:
    assert np.array_equal(OBF.boundaries([0.3, 0.7]), OBF.boundaries([0.3, 0.7, 1.1])[:2])


def test_more_information_than_planned_still_spends_alpha_once() -> None:
    assert math.isclose(total(POCOCK.boundaries([0.5, 1.4]), [0.5, 1.4]), 0.05, rel_tol=1e-6)


def test_a_look_that_may_spend_nothing_never_stops() -> None:
    bounds = OBF.boundaries([0.01, 0.5, 1.0])
    assert math.isinf(bounds[0]) and math.isclose(total(bounds, [0.01, 0.5, 1.0]), 0.05, rel_tol=1e-6)


def test_power_and_expected_sample_by_simulation() -> None:
    rng, drift = np.random.default_rng(1), 2.8
    paths = np.cumsum(rng.normal(drift / 5, math.sqrt(0.2), size=(200_000, 5)), axis=1)
    stops = np.abs(paths) / np.sqrt(FIVE) >= OBF.boundaries(FIVE)
    first = np.where(stops.any(axis=1), stops.argmax(axis=1), 4)
    assert abs(stops.any(axis=1).mean() - OBF.power(FIVE, drift)) < 0.004
    assert abs(np.array(FIVE)[first].mean() - OBF.expected_fraction(FIVE, drift)) < 0.002
    assert math.isclose(OBF.power(FIVE, drift), OBF.power(FIVE, -drift), rel_tol=1e-9)


def test_five_looks_save_a_sixth_of_the_sample() -> None:
    inflation = OBF.inflation(FIVE)
    drift = 2.8016 * math.sqrt(inflation)
    assert math.isclose(OBF.power(FIVE, drift), 0.8, abs_tol=1e-4)
    assert inflation * OBF.expected_fraction(FIVE, drift) < 0.83
    assert GroupSequentialDesign().inflation([1.0]) == pytest.approx(1.0, abs=1e-5)
    assert POCOCK.inflation(FIVE) == pytest.approx(1.212, abs=1e-3)


def arms(difference: float, n: int = 400) -> tuple[MeanSummary, MeanSummary]:
    return MeanSummary(n, 5.0, 1.0 * n), MeanSummary(n, 5.0 + difference, 1.0 * n)


@pytest.mark.parametrize("difference", [0.0, 0.1, 0.2, 0.205, 0.21, 0.215, 0.22, 0.3, 1.0, -0.3])
def test_interval_and_p_value_agree(difference: float) -> None:
    for design in (OBF, POCOCK):
        found = group_sequential_test(welch_t_test(*arms(difference)), [0.25, 0.5], design=design)
        assert found.excludes_zero() == (found.p_value < 0.05)
        assert found.look == 2 and 0.99e-10 <= found.p_value <= 1.0


def test_at_a_single_final_look_it_is_the_t_test() -> None:
    once = welch_t_test(*arms(0.5, 30))
    found = group_sequential_test(once, [1.0], design=OBF)
    assert math.isclose(found.low, once.low, rel_tol=1e-6) and math.isclose(found.p_value, once.p_value, rel_tol=1e-3)


def test_a_look_too_early_says_so() -> None:
    found = group_sequential_test(welch_t_test(*arms(5.0)), [0.01], design=OBF)
    assert found.why_not is not None and not found.excludes_zero()


def test_no_data_stay_without_a_result() -> None:
    found = group_sequential_test(welch_t_test(MeanSummary.of([]), arms(0.0)[0]), [0.5], design=OBF)
    assert not found.attainable and math.isnan(found.p_value)


BAD: list[Any] = [
    lambda: GroupSequentialDesign("haybittle-peto"),
    lambda: GroupSequentialDesign(alpha=0.0),
    lambda: GroupSequentialDesign(rho=0.0),
    lambda: OBF.boundaries([]),
    lambda: OBF.boundaries([0.5, 0.5]),
    lambda: OBF.boundaries([0.0, 0.5]),
    lambda: OBF.boundaries([math.nan]),
    lambda: obrien_fleming_spending(1.5),
    lambda: exit_probabilities([2.0], [0.5, 1.0]),
    lambda: exit_probabilities([0.0], [1.0]),
    lambda: group_sequential_test(welch_t_test(*arms(0.0), alpha=0.1), [0.5], design=OBF),
]


@pytest.mark.parametrize("call", BAD)
def test_bad_input_is_refused(call: Any) -> None:
    with pytest.raises(InvalidInput):
        call()
