"""Quantile sequences and the two-sample test: against brute force, under peeking, with ties, from a database."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats.crossing import mixture_scale
from abswitch.stats.quantile_sequences import (
    quantile_sequence,
    sequential_quantile_difference,
    sequential_quantile_ranks,
    sequential_quantile_test,
)
from abswitch.stats.quantiles import QuantileRanks, quantile_ranks

quantiles = st.sampled_from([0.1, 0.5, 0.9, 0.95])


def log_e(k: Any, n: int, q: float, planned_n: int, alpha: float = 0.05) -> Any:
    prior = max(1.0, planned_n * mixture_scale(alpha))
    return stats.betabinom.logpmf(k, n, q * prior, (1 - q) * prior) - stats.binom.logpmf(k, n, q)


@given(st.integers(1, 1500), quantiles, st.sampled_from([50, 1000]))
def test_ranks_are_those_of_all_believable_counts(n: int, q: float, planned_n: int) -> None:
    ranks = sequential_quantile_ranks(n, q, planned_n=planned_n)
    believable = np.flatnonzero(log_e(np.arange(n + 1), n, q, planned_n) < math.log(20))
    low, high = int(believable[0]), int(believable[-1]) + 1
    if ranks.low is None:
        assert ranks.why_not is not None and (low < 2 or high > n - 1)
    else:
        assert (ranks.low, ranks.high) == (low, high)
    assert ranks.point == quantile_ranks(n, q).point


def test_a_sequence_is_wider_than_an_interval_for_one_look() -> None:
    one, all_looks = quantile_ranks(2000, 0.95), sequential_quantile_ranks(2000, 0.95, planned_n=2000)
    assert all_looks.low is not None and one.low is not None and all_looks.low < one.low
    assert all_looks.high is not None and one.high is not None and all_looks.high > one.high


def misses(ranks: QuantileRanks, below: Any) -> NDArray[np.bool_]:
    """Whether the true quantile, with so many values below it, lies outside."""
    if ranks.low is None or ranks.high is None:
        return np.zeros(below.shape, dtype=bool)
    return np.asarray((below < ranks.low) | (below >= ranks.high))


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_looks_after_every_value_miss_as_seldom_as_alpha_says(q: float) -> None:
    rng, n = np.random.default_rng(1), 600
    below = np.cumsum(rng.random((1000, n)) < q, axis=1, dtype=np.int64)
    missed, single = np.zeros(1000, dtype=bool), np.zeros(1000, dtype=bool)
    for at in range(n):
        missed |= misses(sequential_quantile_ranks(at + 1, q, planned_n=n), below[:, at])
        single |= misses(quantile_ranks(at + 1, q), below[:, at])
    assert missed.mean() <= 0.05 and single.mean() > 0.2


def test_ties_are_on_the_safe_side() -> None:
    rng, missed = np.random.default_rng(2), 0
    for _ in range(200):
        values = rng.integers(0, 4, 400).astype(float)  # the median is 1: half lie at or below it
        ever = False
        for end in range(20, 401, 20):
            found = quantile_sequence(values[:end], 0.5, planned_n=400)
            ever |= found.attainable and not found.low <= 1.0 <= found.high
        missed += ever
    assert missed / 200 <= 0.05


def test_values_that_stay_in_a_database() -> None:
    values = np.random.default_rng(3).lognormal(0.0, 1.0, 5000)
    ranks = sequential_quantile_ranks(5000, 0.95, planned_n=5000)
    asked = ", ".join(f"quantile_disc(x, {(rank - 0.5) / 5000!r})" for rank in ranks.needed)
    with duckdb.connect() as con:
        con.execute("create table v as select unnest(?) as x", [values.tolist()])
        row = con.execute(f"select {asked} from v").fetchall()[0]
    assert ranks.interval(*row) == quantile_sequence(values, 0.95, planned_n=5000)


def brute_force(a: NDArray[np.float64], b: NDArray[np.float64], q: float, planned_n: int, move: float) -> float:
    """Least product of both arms' evidence over every quantile that both could have, once `b` is moved back."""
    moved, least = b - move, math.inf
    points = np.unique(np.concatenate([a, moved]))
    between = np.concatenate([[points[0] - 1], (points[1:] + points[:-1]) / 2, [points[-1] + 1]])
    for at in np.concatenate([points, between]):
        total = 0.0
        for values in (a, moved):
            counts = np.arange((values < at).sum(), (values <= at).sum() + 1)
            total += float(log_e(counts, values.size, q, planned_n // 2).min())
        least = min(least, total)
    return least


samples = st.lists(st.integers(-20, 20).map(float), min_size=12, max_size=40).map(np.array)


@settings(max_examples=25, deadline=None)
@given(samples, samples, st.sampled_from([0.3, 0.5]))
def test_the_test_is_the_least_product_and_the_interval_its_inversion(a: Any, b: Any, q: float) -> None:
    found = sequential_quantile_test(a, b, q, planned_n=60)
    if not found.attainable:
        return
    assert math.isclose(math.log(found.e_value), brute_force(a, b, q, 60, 0.0), abs_tol=1e-6)
    for difference in (found.low - 0.5, found.high + 0.5):
        assert brute_force(a, b, q, 60, difference) >= math.log(20) - 1e-6
    for difference in (found.low, found.high):  # the ends themselves are open: ties count on the safe side
        assert brute_force(a, b, q, 60, difference) < math.log(20) + 1e-6


def test_swapped_arms_flip_the_sign_and_scaled_units_scale() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.lognormal(0.0, 1.0, 800), rng.lognormal(0.1, 1.0, 700)
    one, other = (
        sequential_quantile_test(a, b, 0.9, planned_n=1600),
        sequential_quantile_test(b, a, 0.9, planned_n=1600),
    )
    assert one.low == pytest.approx(-other.high) and one.e_value == pytest.approx(other.e_value)
    ms = sequential_quantile_test(1e3 * a, 1e3 * b, 0.9, planned_n=1600)
    assert ms.low == pytest.approx(1e3 * one.low) and ms.standard_error == pytest.approx(1e3 * one.standard_error)


def test_two_copies_of_one_version_are_rarely_told_apart_and_a_slower_one_is() -> None:
    rng, wrong, found, covered = np.random.default_rng(5), 0, 0, 0
    shift = math.exp(stats.norm.ppf(0.9)) * (math.exp(0.5) - 1)
    for _ in range(60):
        a, b = rng.lognormal(0.0, 1.0, 2000), rng.lognormal(0.0, 1.0, 2000)
        slower = rng.lognormal(0.5, 1.0, 2000)
        for n in range(200, 2001, 200):
            if sequential_quantile_test(a[:n], b[:n], 0.9, planned_n=4000).excludes_zero():
                wrong += 1
                break
        late = sequential_quantile_test(a, slower, 0.9, planned_n=4000)
        found += late.excludes_zero()
        covered += late.low <= shift <= late.high
    assert wrong <= 3 and found >= 55 and covered >= 57


def test_uneven_arms_are_as_safe() -> None:
    rng, wrong = np.random.default_rng(6), 0
    for _ in range(100):
        a, b, ever = rng.lognormal(0.0, 1.5, 4000), rng.lognormal(0.0, 1.5, 400), False
        for part in np.linspace(0.2, 1, 10):
            arms = a[: int(4000 * part)], b[: int(400 * part)]
            ever |= sequential_quantile_test(*arms, 0.9, planned_n=4400, share=1 / 11).excludes_zero()
        wrong += ever
    assert wrong <= 5


def test_difference_of_two_sequences() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.lognormal(0.0, 1.0, 3000), rng.lognormal(0.6, 1.0, 3000)
    apart = sequential_quantile_difference(
        *(quantile_sequence(values, 0.95, planned_n=3000, alpha=0.025) for values in (a, b))
    )
    together = sequential_quantile_test(a, b, 0.95, planned_n=6000)
    assert apart.alpha == 0.05 and apart.excludes_zero() and math.isnan(apart.p_value)
    assert apart.low < together.low and together.high < apart.high
    assert apart.standard_error > 0


def test_too_few_values_are_not_attainable() -> None:
    few = quantile_sequence([1.0, 2.0, 3.0], 0.95, planned_n=1000, alpha=0.025)
    many = quantile_sequence(range(5000), 0.95, planned_n=1000, alpha=0.025)
    assert few.why_not is not None and "too few for p95" in few.why_not and few.value == 3.0
    found = sequential_quantile_difference(few, many)
    assert found.why_not is not None and found.why_not.endswith("(the baseline)") and math.isnan(found.low)
    assert not sequential_quantile_test([1.0], [2.0, 3.0], 0.5, planned_n=10).attainable
    assert sequential_quantile_test([], [2.0, 3.0], 0.5, planned_n=10).why_not == "not attainable: an arm has no values"
    assert not sequential_quantile_ranks(0, 0.5, planned_n=10).needed


BAD: list[Any] = [
    lambda: sequential_quantile_ranks(-1, 0.5, planned_n=10),
    lambda: sequential_quantile_ranks(10, 1.0, planned_n=10),
    lambda: sequential_quantile_ranks(10, 0.5, planned_n=1),
    lambda: sequential_quantile_ranks(10, 0.5, planned_n=10, alpha=0.0),
    lambda: quantile_sequence([1.0, math.nan], 0.5, planned_n=10),
    lambda: sequential_quantile_test([1.0], [2.0], 0.5, planned_n=10, share=1.0),
    lambda: sequential_quantile_test([1.0], [2.0], 0.5, planned_n=10, share=0.0),
    lambda: sequential_quantile_test([1.0], ["a"], 0.5, planned_n=10),
    lambda: sequential_quantile_difference(
        quantile_sequence(range(500), 0.5, planned_n=10), quantile_sequence(range(500), 0.9, planned_n=10)
    ),
]


@pytest.mark.parametrize("call", BAD)
def test_bad_input_is_refused(call: Any) -> None:
    with pytest.raises(InvalidInput):
        call()
