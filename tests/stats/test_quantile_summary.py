"""A summary of a quantile says what all the values say, and merged ones what all the values together say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats import QuantileSummary, clustered_quantile_interval, quantile_interval
from abswitch.stats.quantile_summary import kept_ranks

VALUES = st.lists(st.integers(-50, 50).map(float), max_size=300)


@settings(max_examples=80, deadline=None)
@given(first=VALUES, second=VALUES, q=st.sampled_from([0.05, 0.5, 0.9, 0.95]), alpha=st.sampled_from([0.01, 0.05]))
def test_it_is_what_all_values_say(first: list[float], second: list[float], q: float, alpha: float) -> None:
    a, b = QuantileSummary.of(first, q), QuantileSummary.of(second, q)
    for summary, values in ((a, first), (a + b, first + second), (b + a, first + second)):
        got, want = summary.interval(alpha=alpha), quantile_interval(values, q, alpha=alpha)
        assert got.ranks == want.ranks or got.why_not is not None
        assert got.why_not is not None or (got.value, got.low, got.high) == (want.value, want.low, want.high)


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_millions_of_values_are_some_thousand(q: float) -> None:
    values = np.random.default_rng(3).lognormal(size=1_000_000)
    parts = [QuantileSummary.of(part, q) for part in np.array_split(values, 7)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged + part
    whole = QuantileSummary.of(values, q)
    assert len(whole.values) < 6_100 and whole.below + sum(whole.counts) + whole.above == 1_000_000
    for alpha in (0.05, 1e-3, 1e-6):
        assert merged.interval(alpha=alpha) == whole.interval(alpha=alpha) == quantile_interval(values, q, alpha=alpha)


def test_ties_take_no_room() -> None:
    summary = QuantileSummary.of(np.repeat([1.0, 2.0, 3.0], 100_000), 0.5)
    assert summary.values == (2.0,) and summary.counts == (100_000,) and summary.below == summary.above == 100_000
    assert summary.interval().low == summary.interval().high == 2.0


def test_units_are_minded() -> None:
    rng = np.random.default_rng(5)
    units = np.repeat(np.arange(200), 10)
    values = rng.lognormal(size=2000) * np.exp(rng.normal(size=200))[units]
    summary = QuantileSummary.of(values, 0.5, units=units)
    assert summary.interval() == clustered_quantile_interval(values, units, 0.5)
    plain = quantile_interval(values, 0.5)
    assert summary.interval().high - summary.interval().low > 1.5 * (plain.high - plain.low)
    with pytest.raises(InvalidInput, match="independent values"):
        summary + summary


def test_summaries_that_lie_apart_claim_nothing() -> None:
    a, b = QuantileSummary.of(np.arange(10_000.0), 0.5), QuantileSummary.of(np.arange(10_000.0) + 1e6, 0.5)
    found = (a + b).interval()
    assert (a + b).n == 20_000 and "too few values around p50 were kept" in str(found.why_not)
    assert math.isnan(found.value) and math.isnan(found.low)


def test_an_alpha_beyond_what_was_kept_claims_nothing() -> None:
    found = QuantileSummary.of(np.arange(100_000.0), 0.5).interval(alpha=1e-12)
    assert not found.attainable and "were kept" in str(found.why_not) and math.isnan(found.low)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_too_few_values(n: int) -> None:
    found = QuantileSummary.of(np.arange(float(n)), 0.95).interval()
    assert found.why_not == f"not attainable: p95 needs 110 values, and there are {n}"
    assert math.isnan(found.low) and math.isnan(found.high)


BAD: list[Any] = [
    {"q": 0.0, "n": 0},
    {"q": 1.0, "n": 0},
    {"q": 0.5, "n": -1},
    {"q": 0.5, "n": 1, "below": 2},
    {"q": 0.5, "n": 3, "values": (1.0,), "counts": ()},
    {"q": 0.5, "n": 3, "values": (2.0, 1.0), "counts": (1, 1)},
    {"q": 0.5, "n": 3, "values": (1.0,), "counts": (0,)},
    {"q": 0.5, "n": 3, "values": (math.nan,), "counts": (1,)},
    {"q": 0.5, "n": 1, "values": (1.0, 2.0), "counts": (1, 1)},
]


@pytest.mark.parametrize("bad", BAD)
def test_what_belongs_to_no_data_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        QuantileSummary(**bad)


def test_other_quantiles_and_odd_values_are_refused() -> None:
    odd: list[Any] = [
        lambda: QuantileSummary.of([1.0], 0.5) + QuantileSummary.of([1.0], 0.9),
        lambda: QuantileSummary.of([1.0, math.inf], 0.5),
        lambda: QuantileSummary.of(["1", "2"], 0.5),
        lambda: QuantileSummary.of([1.0, 2.0], 0.5, units=["a"]),
    ]
    for bad in odd:
        with pytest.raises(InvalidInput):
            bad()


def test_kept_ranks_stay_within_the_data() -> None:
    assert kept_ranks(3, 0.99) == (1, 3) and kept_ranks(10**9, 0.5)[1] - kept_ranks(10**9, 0.5)[0] <= 100_001
