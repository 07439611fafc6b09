"""Sequences of bounded scores: against a plain re-computation, by coverage under peeking, and in any portions."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats.bounded import (
    BettingSequence,
    EmpiricalBernsteinSequence,
    betting_difference,
    empirical_bernstein_difference,
)

scores = st.lists(st.floats(0, 1), min_size=1, max_size=60)
KINDS: list[Any] = [BettingSequence, EmpiricalBernsteinSequence]


def capital(values: list[float], mean: float, alpha: float = 0.05) -> float:
    """Hedged capital against one mean, row by row, as Waudby-Smith & Ramdas write it."""
    up = down = 1.0
    total, squares = 0.0, 0.0
    for t, x in enumerate(values, start=1):
        variance = (0.25 + squares) / t
        bet = math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(t + 1)))
        up *= 1 + min(bet, 0.5 / mean if mean else math.inf) * (x - mean)
        down *= 1 - min(bet, 0.5 / (1 - mean) if mean < 1 else math.inf) * (x - mean)
        total += x
        squares += (x - (0.5 + total) / (t + 1)) ** 2
    return (up + down) / 2


@given(scores)
def test_capital_is_that_of_a_gambler_who_plays_row_by_row(values: list[float]) -> None:
    cells = BettingSequence().update(values).cells()
    for cell in (0, 137, 500, 999):
        inside = capital(values, (cell + 0.5) / 1000)
        assert cells[cell] <= math.log(inside) + 1e-9  # never more than any mean in the cell wins
        assert cells[cell] >= math.log(inside) - 0.02 * len(values)


@settings(max_examples=50)
@given(scores, st.integers(0, 60))
def test_portions_do_not_matter(values: list[float], cut: int) -> None:
    for kind in KINDS:
        whole, parts = kind().update(values), kind().update(values[:cut]).update(values[cut:])
        assert parts.interval() == pytest.approx(whole.interval(), abs=1e-9) and parts.n == len(values)


@given(scores)
def test_an_interval_holds_the_mean_of_what_was_seen_or_is_wide(values: list[float]) -> None:
    for kind in KINDS:
        found = kind().update(values)
        low, high = found.interval()
        assert 0.0 <= low < high <= 1.0
        assert found.mean == pytest.approx(sum(values) / len(values))


@settings(max_examples=50)
@given(scores, st.floats(-50, 50), st.floats(0.1, 100))
def test_bounds_scale(values: list[float], least: float, width: float) -> None:
    for kind in KINDS:
        plain = kind().update(values).interval()
        moved = kind(least=least, most=least + width)
        there = moved.update(np.clip(least + width * np.array(values), least, least + width)).interval()
        tolerance = 0.0021 * width  # a score that rounds may move an end by a cell
        assert there == pytest.approx([least + width * end for end in plain], abs=tolerance)


def draw(rng: np.random.Generator, shape: str, n: int) -> tuple[float, Any]:
    if shape == "rare":
        return 0.02, (rng.random(n) < 0.02).astype(float)
    if shape == "steady":
        return 0.7, rng.beta(70, 30, n)
    return 0.5, rng.beta(0.3, 0.3, n)


@pytest.mark.parametrize("shape", ["rare", "steady", "extreme"])
@pytest.mark.parametrize("kind", KINDS)
def test_looks_after_every_score_miss_as_seldom_as_alpha_says(kind: Any, shape: str) -> None:
    rng, missed = np.random.default_rng(1), 0
    for _ in range(60):
        state, ever = kind(alpha=0.1), False
        truth, values = draw(rng, shape, 150)
        for value in values:
            state = state.update([value])
            low, high = state.interval()
            ever |= not low <= truth <= high
        missed += ever
    assert missed / 60 <= 0.1 + 0.06


def test_betting_is_narrower_where_scores_vary_little() -> None:
    values = np.random.default_rng(2).beta(80, 20, 500)
    widths = [np.diff(kind().update(values).interval())[0] for kind in KINDS]
    hoeffding = 2 * math.sqrt(math.log(2 / 0.05) / 2 / 500)
    assert widths[0] < widths[1] < hoeffding


DIFFERENCES: list[Any] = [
    (BettingSequence, betting_difference),
    (EmpiricalBernsteinSequence, empirical_bernstein_difference),
]


class TestDifference:
    @pytest.mark.parametrize(("kind", "compare"), DIFFERENCES)
    def test_two_copies_of_one_version_in_uneven_arms(self, kind: Any, compare: Any) -> None:
        rng, wrong = np.random.default_rng(3), 0
        for _ in range(60):
            a, b, ever = kind(), kind(), False
            for _look in range(10):
                mine = rng.random(100) < 0.05
                values = (rng.random(100) < 0.1).astype(float)
                a, b = a.update(values[~mine]), b.update(values[mine])
                found = compare(a, b)
                ever |= found.attainable and found.excludes_zero()
            wrong += ever
        assert wrong <= 4

    @pytest.mark.parametrize(("kind", "compare"), DIFFERENCES)
    def test_a_difference_is_found_and_covered(self, kind: Any, compare: Any) -> None:
        rng, found, covered = np.random.default_rng(4), 0, 0
        for _ in range(40):
            one = compare(kind().update(rng.beta(6, 4, 800)), kind().update(rng.beta(8, 2, 800)))
            found += one.excludes_zero()
            covered += one.low <= 0.2 <= one.high
            assert one.excludes_zero() == (one.p_value < 0.05)
        assert found >= 38 and covered >= 38

    @pytest.mark.parametrize(("kind", "compare"), DIFFERENCES)
    def test_swapped_arms_flip_the_sign(self, kind: Any, compare: Any) -> None:
        rng = np.random.default_rng(5)
        a, b = kind().update(rng.beta(3, 4, 200)), kind().update(rng.beta(5, 3, 300))
        one, other = compare(a, b), compare(b, a)
        assert one.low == pytest.approx(-other.high) and one.high == pytest.approx(-other.low)
        assert one.p_value == pytest.approx(other.p_value) and one.estimate == pytest.approx(-other.estimate)

    def test_the_two_arms_together_are_sharper_than_apart(self) -> None:
        rng = np.random.default_rng(6)
        a, b = (BettingSequence().update(rng.beta(7, 3, 500)) for _ in range(2))
        halves = [BettingSequence(alpha=0.025).update(rng.beta(7, 3, 500)).interval() for _ in range(2)]
        apart = sum(high - low for low, high in halves)
        found = betting_difference(a, b)
        assert found.high - found.low < 0.85 * apart

    @pytest.mark.parametrize(("kind", "compare"), DIFFERENCES)
    def test_an_empty_arm_is_no_result(self, kind: Any, compare: Any) -> None:
        found = compare(kind(), kind().update([0.5]))
        assert found.why_not == "not attainable: the baseline has no scores" and math.isnan(found.estimate)
        json.dumps(found.to_dict(), allow_nan=False)

    @pytest.mark.parametrize(("kind", "compare"), DIFFERENCES)
    def test_arms_of_other_bounds_or_alpha_are_refused(self, kind: Any, compare: Any) -> None:
        for other in (kind(alpha=0.1), kind(most=2.0), kind(least=-1.0)):
            with pytest.raises(InvalidInput):
                compare(kind().update([0.5]), other.update([0.5]))


def test_constant_scores_are_no_certainty() -> None:
    for kind in KINDS:
        low, high = kind().update([1.0] * 50).interval()
        assert low < 0.97 and high == 1.0
    found = betting_difference(BettingSequence().update([1.0] * 50), BettingSequence().update([1.0] * 50))
    assert found.low < 0 < found.high and found.standard_error > 0


def test_no_scores_leave_the_whole_range() -> None:
    for kind in KINDS:
        empty = kind(least=-1.0, most=3.0)
        assert empty.interval() == (-1.0, 3.0) and math.isnan(empty.mean) and empty.update([]) is empty


def test_scores_that_contradict_every_mean() -> None:
    # Half a thousand zeros, then as many ones: no mean stays open, and none is claimed.
    low, high = BettingSequence().update([0.0] * 3000 + [1.0] * 3000).interval()
    assert (math.isnan(low) and math.isnan(high)) or low < high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [[1.1], [-0.1], [math.nan], ["a"], [[0.1]]])
def test_bad_scores_are_refused(kind: Any, bad: Any) -> None:
    with pytest.raises(InvalidInput):
        kind().update(bad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"least": 1.0}, {"most": math.inf}, {"least": 2.0, "most": 1.0}])
def test_bad_settings_are_refused(kind: Any, bad: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        kind(**bad)
