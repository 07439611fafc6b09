"""Switchback: the schedule is fair and fixed by its salt; block means stay right under load with a long memory."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal, stats

from abswitch.errors import InvalidInput
from abswitch.stats.means import welch_t_test
from abswitch.stats.strata import StratifiedSummary
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary
from abswitch.stats.switchback import SwitchbackSchedule, switchback_test

Floats = NDArray[np.float64]
blocks = st.lists(st.tuples(st.integers(-100, 100), st.integers(-100, 100)), min_size=2, max_size=20)


def arms(pairs: list[tuple[float, float]]) -> tuple[StratifiedSummary, StratifiedSummary]:
    names = [str(k) for k in range(len(pairs))]
    a, b = ([float(pair[k]) for pair in pairs] for k in (0, 1))
    return StratifiedSummary.of_means(a, names), StratifiedSummary.of_means(b, names)


def test_each_pair_has_both_arms_and_both_orders_are_as_frequent() -> None:
    schedule = SwitchbackSchedule("exp-1", 60.0)
    orders = Counter(schedule.order(pair) for pair in range(4000))
    assert len(orders) == 2 and all(set(order) == {"baseline", "candidate"} for order in orders)
    assert abs(orders["baseline", "candidate"] - 2000) < 130  # 4 standard deviations


def test_orders_of_neighbouring_pairs_and_of_similar_salts_are_unrelated() -> None:
    one, two = ([SwitchbackSchedule(salt, 1.0).order(k)[0] for k in range(2000)] for salt in ("exp-1", "exp-2"))
    assert abs(sum(a == b for a, b in zip(one, two, strict=True)) - 1000) < 90
    assert abs(sum(a == b for a, b in pairwise(one)) - 1000) < 90


def test_the_same_salt_is_the_same_schedule() -> None:
    # A test that was planned must read the same after an upgrade: these orders are fixed.
    schedule = SwitchbackSchedule("exp-1", 60.0)
    assert "".join(schedule.order(pair)[0][0] for pair in range(16)) == "ccbbbccccbbcbbbb"


@given(st.floats(0.001, 1e5), st.integers(0, 1000), st.floats(0, 0.99))
def test_blocks_follow_each_other_without_gap(block_s: float, index: int, washout: float) -> None:
    schedule = SwitchbackSchedule("s", block_s, washout * block_s)
    one, two = schedule.block(index), schedule.block(index + 1)
    assert one.end_s == two.start_s and one.start_s <= one.counted_from_s < one.end_s
    assert schedule.block_at(one.start_s) == one
    assert schedule.block_at((one.start_s + one.end_s) / 2) == one
    assert one.pair == index // 2 and (one.pair == two.pair) <= (one.arm != two.arm)


def test_all_blocks_of_some_pairs() -> None:
    found = SwitchbackSchedule("s", 10.0).blocks(3)
    assert [block.index for block in found] == list(range(6)) and found[-1].end_s == 60.0
    assert Counter(block.arm for block in found) == {"baseline": 3, "candidate": 3}


BAD: list[Any] = [
    lambda: SwitchbackSchedule("", 1.0),
    lambda: SwitchbackSchedule("s", 0.0),
    lambda: SwitchbackSchedule("s", math.inf),
    lambda: SwitchbackSchedule("s", 10.0, 10.0),
    lambda: SwitchbackSchedule("s", 10.0).block_at(-1.0),
    lambda: SwitchbackSchedule("s", 10.0).block(-1),
    lambda: SwitchbackSchedule("s", 10.0).blocks(-1),
    lambda: switchback_test(*arms([(1.0, 2.0), (2.0, 2.0)]), alpha=0.0),
    lambda: switchback_test(arms([(1.0, 2.0)])[0], StratifiedSummary({"0": RateSummary(3, 1)})),
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        bad()


def test_it_is_the_paired_t_of_student() -> None:
    # Student (1908), Cushny and Peebles' hours of sleep gained with two drugs: t = 4.0621, p = 0.00283.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = switchback_test(*arms(list(zip(first, second, strict=True))))
    assert round(found.estimate / found.standard_error, 4) == 4.0621 and round(found.p_value, 5) == 0.00283
    interval = stats.ttest_rel(second, first).confidence_interval()
    assert math.isclose(found.low, interval.low) and math.isclose(found.high, interval.high)
    assert found.df == 9 and found.baseline.n == 10 and math.isnan(found.baseline.low)


@given(blocks, st.sampled_from([-1.0, 1e-6, 1e7]))
def test_swapping_turns_the_sign_and_units_scale(pairs: Any, scale: float) -> None:
    a, b = arms(pairs)
    there, back = switchback_test(a, b), switchback_test(b, a)
    moved = switchback_test(*arms([(x * scale, y * scale) for x, y in pairs]))
    assert there.attainable == back.attainable
    if there.attainable and moved.attainable:
        assert math.isclose(there.low, -back.high, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(there.estimate * scale, moved.estimate, rel_tol=1e-9, abs_tol=1e-9 * abs(scale))


def test_load_shared_by_a_pair_does_not_matter() -> None:
    pairs = [(1.0, 2.0), (3.0, 3.5), (2.0, 4.0), (5.0, 5.5)]
    loaded = [(a + 100 * k, b + 100 * k) for k, (a, b) in enumerate(pairs)]
    plain, moved = switchback_test(*arms(pairs)), switchback_test(*arms(loaded))
    assert math.isclose(plain.p_value, moved.p_value, rel_tol=1e-9)


def test_merging_the_halves_of_a_block_is_the_block() -> None:
    rng = np.random.default_rng(1)
    names = rng.integers(0, 5, 80)
    a, b = rng.normal(size=(2, 80))
    whole = switchback_test(StratifiedSummary.of_means(a, names), StratifiedSummary.of_means(b, names))
    first, second = (
        StratifiedSummary.of_means(x[:30], names[:30]) + StratifiedSummary.of_means(x[30:], names[30:]) for x in (a, b)
    )
    assert math.isclose(whole.p_value, switchback_test(first, second).p_value, rel_tol=1e-9)


def test_rates_and_ratios_of_blocks_are_compared_too() -> None:
    a = StratifiedSummary({str(k): RateSummary(10 + k, k) for k in range(5)})
    b = StratifiedSummary({str(k): RateSummary(12, k + k % 2) for k in range(5)})
    assert switchback_test(a, b).attainable
    tokens = [
        StratifiedSummary({str(k): RatioSummary.of([90.0 + k, 80.0 - k * arm], [2.0, 2.0]) for k in range(5)})
        for arm in (0, 1)
    ]
    assert math.isclose(switchback_test(*tokens).estimate, -0.5)


def test_pairs_with_an_empty_block_are_left_out_and_named() -> None:
    a, b = arms([(1.0, 2.0), (2.0, 2.5), (3.0, 9.0)])
    holed = StratifiedSummary({"0": b.strata["0"], "1": b.strata["1"], "2": MeanSummary.of([])})
    found = switchback_test(a, holed)
    assert found.notes == ("left out, without both blocks: pair 2",) and found.baseline.n == 2


@pytest.mark.parametrize(
    ("pairs", "why"), [([], "0 whole pair"), ([(1.0, 2.0)], "1 whole pair"), ([(1.0, 2.0)] * 4, "differ by the same")]
)
def test_where_there_is_no_answer_it_says_why(pairs: Any, why: str) -> None:
    found = switchback_test(*arms(pairs))
    assert found.why_not is not None and why in found.why_not and math.isnan(found.p_value)


def loads(rng: np.random.Generator, runs: int, pairs: int, steps: int) -> Floats:
    """AR(.99) load over all blocks; shape (runs, pairs, 2, steps)."""
    noise = rng.normal(size=(runs, pairs * 2 * steps))
    noise[:, 0] /= math.sqrt(1 - 0.99**2)
    series: Floats = np.asarray(signal.lfilter([1.0], [1.0, -0.99], noise, axis=1))
    return series.reshape(runs, pairs, 2, steps)


def in_arms(means: Floats, salt: str) -> tuple[StratifiedSummary, StratifiedSummary]:
    schedule = SwitchbackSchedule(salt, 60.0)
    return arms([tuple(row) if schedule.order(k)[0] == "baseline" else (row[1], row[0]) for k, row in enumerate(means)])


@pytest.mark.parametrize(("pairs", "steps"), [(12, 60), (24, 100)])
def test_load_with_a_long_memory_errs_as_seldom_as_alpha_says(pairs: int, steps: int) -> None:
    series = loads(np.random.default_rng(2), 2000, pairs, steps)
    means = series.mean(axis=3)
    wrong = sum(switchback_test(*in_arms(row, f"run-{k}")).p_value < 0.05 for k, row in enumerate(means)) / 2000
    assert 0.035 <= wrong <= 0.065


def test_the_same_load_fools_a_test_of_requests() -> None:
    series, wrong = loads(np.random.default_rng(3), 200, 12, 60), 0
    for k, row in enumerate(series):
        flip = np.array([SwitchbackSchedule(f"run-{k}", 60.0).order(pair)[0] == "candidate" for pair in range(12)])
        turned = np.where(flip[:, None, None], row[:, ::-1], row)
        wrong += welch_t_test(MeanSummary.of(turned[:, 0].ravel()), MeanSummary.of(turned[:, 1].ravel())).p_value < 0.05
    assert wrong / 200 > 0.5


def test_an_effect_as_large_as_the_drift_is_found() -> None:
    means = loads(np.random.default_rng(4), 300, 24, 60).mean(axis=3)
    found = 0
    for k, row in enumerate(means):
        a, b = in_arms(row, f"run-{k}")
        shifted = StratifiedSummary({name: MeanSummary(1, one.mean + 4.0, 0.0) for name, one in b.strata.items()})
        found += switchback_test(a, shifted).p_value < 0.05
    assert found / 300 > 0.8
