"""Non-inferiority and equivalence: both are read off the interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats import weightstats

from abswitch.errors import InvalidInput
from abswitch.stats import (
    ArmEstimate,
    Comparison,
    MarginOutcome,
    MeanSummary,
    RateSummary,
    non_inferiority,
    tost_equivalence,
    welch_t_test,
)
from abswitch.stats.margins import harm_test
from abswitch.stats.proportions import miettinen_nurminen_test

ARM = ArmEstimate(n=10, value=0.0, low=-1.0, high=1.0)


def interval(low: float, high: float, why_not: str | None = None) -> Comparison:
    middle = (low + high) / 2
    return Comparison(
        method="m", alpha=0.05, baseline=ARM, candidate=ARM, estimate=middle, low=low, high=high, why_not=why_not
    )


@pytest.mark.parametrize(
    ("low", "high", "up", "down"),
    [
        (-0.5, 3.0, "shown", "open"),
        (-0.9, 0.9, "shown", "shown"),
        (-3.0, 0.5, "open", "shown"),
        (-3.0, 3.0, "open", "open"),
        (-3.0, -1.5, "refuted", "shown"),
        (1.5, 3.0, "shown", "refuted"),
        (-1.0, 1.0, "open", "open"),  # touching the margin shows nothing
        (math.nan, math.nan, "open", "open"),
        (-math.inf, math.inf, "open", "open"),
    ],
)
def test_non_inferiority(low: float, high: float, up: str, down: str) -> None:
    found = interval(low, high)
    assert non_inferiority(found, margin=1.0, direction="increase").outcome == up
    assert non_inferiority(found, margin=1.0, direction="decrease").outcome == down


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.9, 0.9, "shown"),
        (0.1, 0.9, "shown"),
        (-0.9, 1.0, "open"),
        (0.5, 1.5, "open"),
        (1.5, 2.0, "refuted"),
        (-2.0, -1.5, "refuted"),
        (math.nan, math.nan, "open"),
    ],
)
def test_equivalence(low: float, high: float, outcome: str) -> None:
    assert tost_equivalence(interval(low, high), margin=1.0).outcome == outcome


def test_what_is_not_attainable_stays_open() -> None:
    void = interval(-0.1, 0.1, why_not="no")
    assert tost_equivalence(void, margin=1.0).outcome is MarginOutcome.OPEN
    assert non_inferiority(void, margin=1.0, direction="increase").outcome is MarginOutcome.OPEN
    none = welch_t_test(MeanSummary.of([]), MeanSummary.of([1.0, 2.0]))
    assert tost_equivalence(none, margin=1.0).outcome is MarginOutcome.OPEN
    found = non_inferiority(none, margin=1.0, direction="increase")
    assert found.outcome is MarginOutcome.OPEN and found.to_dict()["low"] is None


def test_equivalence_is_two_one_sided_tests() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = rng.normal(0.0, 1.0, 60), rng.normal(0.2, 1.5, 50)
        p_value, _, _ = weightstats.ttost_ind(b, a, -0.9, 0.9, usevar="unequal")
        found = tost_equivalence(welch_t_test(MeanSummary.of(a), MeanSummary.of(b)), margin=0.9)
        assert (found.outcome is MarginOutcome.SHOWN) == (p_value < found.alpha)
        assert found.alpha == 0.025


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf, True, "1"])
def test_a_margin_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(InvalidInput, match="margin"):
        tost_equivalence(interval(-0.1, 0.1), margin=margin)
    with pytest.raises(InvalidInput, match="margin"):
        non_inferiority(interval(-0.1, 0.1), margin=margin, direction="increase")


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(InvalidInput, match="direction"):
        non_inferiority(interval(-0.1, 0.1), margin=1.0, direction="up")


@pytest.mark.parametrize(
    ("low", "high", "margin", "up", "down"),
    [
        (-3.0, -1.5, 1.0, "shown", "refuted"),
        (-3.0, -0.5, 0.0, "shown", "refuted"),
        (-3.0, -0.5, 1.0, "open", "refuted"),
        (-0.5, 0.5, 0.0, "open", "open"),
        (-0.5, 0.5, 1.0, "refuted", "refuted"),
        (1.5, 3.0, 1.0, "refuted", "shown"),
        (-1.0, 0.0, 0.0, "open", "open"),  # touching shows nothing
        (math.nan, math.nan, 0.0, "open", "open"),
    ],
)
def test_harm(low: float, high: float, margin: float, up: str, down: str) -> None:
    found = interval(low, high)
    assert harm_test(found, margin=margin, direction="increase").outcome == up
    assert harm_test(found, margin=margin, direction="decrease").outcome == down


def test_harm_is_the_opposite_of_non_inferiority() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        found = welch_t_test(MeanSummary.of(rng.normal(0, 1, 9)), MeanSummary.of(rng.normal(rng.normal(), 1, 9)))
        harm = harm_test(found, margin=0.3, direction="decrease")
        kept = non_inferiority(found, margin=0.3, direction="decrease")
        assert (harm.outcome == "shown") == (kept.outcome == "refuted")
        assert math.isclose(harm.p_value, 1 - kept.p_value, abs_tol=1e-9)


def test_p_values_are_those_of_one_sided_t_tests() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        a, b = rng.normal(0.0, 1.0, 30), rng.normal(-0.2, 1.5, 25)
        found = welch_t_test(MeanSummary.of(a), MeanSummary.of(b))
        want, _, _ = weightstats.ttost_ind(b, a, -0.9, 0.9, usevar="unequal")
        assert math.isclose(tost_equivalence(found, margin=0.9).p_value, want, rel_tol=1e-9)
        _, one_sided, _ = weightstats.ttest_ind(b, a, alternative="larger", usevar="unequal", value=-0.5)
        claim = non_inferiority(found, margin=0.5, direction="increase")
        assert math.isclose(claim.p_value, one_sided, rel_tol=1e-9)
        assert (claim.p_value < claim.alpha) == (claim.outcome is MarginOutcome.SHOWN)


def test_non_inferiority_of_rates_is_the_score_test_at_the_margin() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        arms = [RateSummary(n, int(rng.binomial(n, 0.8))) for n in (150, 120)]
        claim = non_inferiority(miettinen_nurminen_test(*arms), margin=0.1, direction="increase")
        at_margin = miettinen_nurminen_test(*arms, difference=-0.1, alternative="greater")
        assert (claim.outcome is MarginOutcome.SHOWN) == (at_margin.p_value < 0.025)
        assert (claim.p_value < 0.025) == (at_margin.p_value < 0.025)


def test_an_end_at_the_estimate_is_no_division_by_zero() -> None:
    point = Comparison(method="m", alpha=0.05, baseline=ARM, candidate=ARM, estimate=0.2, low=0.2, high=0.2)
    assert non_inferiority(point, margin=1.0, direction="increase").p_value == 0.0
    assert harm_test(point, margin=1.0, direction="increase").p_value == 1.0
    void = interval(-0.1, 0.1, why_not="no")
    assert math.isnan(tost_equivalence(void, margin=1.0).p_value)


@pytest.mark.parametrize("margin", [-1.0, math.nan, math.inf, True, "1"])
def test_a_harm_margin_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(InvalidInput, match="margin"):
        harm_test(interval(-0.1, 0.1), margin=margin, direction="increase")
