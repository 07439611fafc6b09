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
    non_inferiority,
    tost_equivalence,
    welch_t_test,
)

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
