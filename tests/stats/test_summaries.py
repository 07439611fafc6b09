"""Summaries: from arrays, sums and moments, merged, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats import MeanSummary, RateSummary, RatioSummary

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
values = st.lists(finite, min_size=0, max_size=30)
pairs = st.lists(st.tuples(finite, finite), min_size=0, max_size=30)


def near(got: float, want: float, scale: float) -> bool:
    if math.isnan(want):
        return math.isnan(got)
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9 * max(1.0, scale))


@given(values)
def test_a_mean_summary_is_that_of_numpy(data: list[float]) -> None:
    summary = MeanSummary.of(data)
    assert summary.n == len(data)
    if not data:
        assert math.isnan(summary.mean) and math.isnan(summary.variance)
    elif len(data) == 1:
        assert summary.mean == data[0] and math.isnan(summary.variance)
    else:
        top = max(map(abs, data))
        assert near(summary.mean, float(np.mean(data)), top)
        assert near(summary.variance, float(np.var(data, ddof=1)), top * top)


@given(values, values)
def test_merged_means_are_those_of_the_merged_data(left: list[float], right: list[float]) -> None:
    merged, whole = MeanSummary.of(left) + MeanSummary.of(right), MeanSummary.of(left + right)
    top = max(map(abs, left + right), default=0.0)
    assert merged.n == whole.n
    assert near(merged.mean, whole.mean, top)
    assert near(merged.variance, whole.variance, top * top)


@given(st.lists(st.booleans(), max_size=30), st.lists(st.booleans(), max_size=30))
def test_merged_rates_are_those_of_the_merged_data(left: list[bool], right: list[bool]) -> None:
    assert RateSummary.of(left) + RateSummary.of(right) == RateSummary.of(left + right)


@given(pairs, pairs)
def test_merged_ratios_are_those_of_the_merged_data(
    left: list[tuple[float, float]], right: list[tuple[float, float]]
) -> None:
    def of(rows: list[tuple[float, float]]) -> RatioSummary:
        return RatioSummary.of([x for x, _ in rows], [y for _, y in rows])

    merged, whole = of(left) + of(right), of(left + right)
    top = max((abs(v) for row in left + right for v in row), default=0.0)
    assert merged.n == whole.n
    for name in ("mean_x", "mean_y"):
        assert near(getattr(merged, name), getattr(whole, name), top)
    for name in ("m2_x", "m2_y", "c_xy"):
        assert near(getattr(merged, name), getattr(whole, name), 30 * top * top)


def test_merging_an_empty_summary_changes_nothing() -> None:
    empty, full = MeanSummary.of([]), MeanSummary.of([1.0, 2.0])
    assert empty + full == full + empty == full
    pair = RatioSummary.of([1.0], [2.0])
    assert RatioSummary.of([], []) + pair == pair + RatioSummary.of([], []) == pair
    assert math.isnan((empty + empty).mean)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_sums_and_moments_give_the_same_summary_as_the_data(data: list[float]) -> None:
    array = np.array(data)
    of = MeanSummary.of(array)
    sums = MeanSummary.from_sums(len(data), float(array.sum()), float((array * array).sum()))
    moments = MeanSummary.from_moments(of.n, of.mean, None if of.n == 1 else of.variance)
    for other in (sums, moments):
        assert other.n == of.n
        assert math.isclose(other.mean, of.mean, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(other.m2, of.m2, rel_tol=1e-9, abs_tol=1e-8)


def test_ratio_sums_and_moments_give_the_same_summary_as_the_data() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.gamma(2.0, 10.0, 200), rng.gamma(3.0, 1.0, 200)
    of = RatioSummary.of(x, y)
    sums = RatioSummary.from_sums(200, *map(float, (x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum())))
    cov = np.cov(x, y)
    moments = RatioSummary.from_moments(200, *map(float, (x.mean(), y.mean(), cov[0, 0], cov[1, 1], cov[0, 1])))
    for other in (sums, moments):
        for name in ("mean_x", "mean_y", "m2_x", "m2_y", "c_xy"):
            assert math.isclose(getattr(other, name), getattr(of, name), rel_tol=1e-9)


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e9 + 0.1, -7e-12])
@pytest.mark.parametrize("n", [2, 10, 23, 1000])
def test_equal_values_have_exactly_no_variance(constant: float, n: int) -> None:
    data = np.full(n, constant)
    assert MeanSummary.of(data).variance == 0.0
    assert MeanSummary.from_sums(n, float(data.sum()), float((data * data).sum())).variance == 0.0
    assert (MeanSummary.of(data[:1]) + MeanSummary.of(data[1:])).variance == 0.0


def test_a_large_offset_keeps_its_variance_from_arrays_and_moments() -> None:
    data = 1e9 + np.arange(10.0)
    assert math.isclose(MeanSummary.of(data).variance, float(np.var(np.arange(10.0), ddof=1)), rel_tol=1e-9)


def test_numerators_in_fixed_proportion_do_not_vary() -> None:
    y = np.random.default_rng(0).random(50)
    assert RatioSummary.of(0.3 * y, y).linearised_variance == 0.0


def test_an_empty_arm_has_no_mean_and_never_zero() -> None:
    for summary in (
        MeanSummary.of([]),
        RateSummary.of([]),
        RatioSummary.of([], []),
        MeanSummary.from_moments(0, None, None),
        MeanSummary.from_sums(0, 0.0, 0.0),
        RatioSummary.from_moments(0, None, None, None, None, None),
        RatioSummary.from_sums(0, 0.0, 0.0, 0.0, 0.0, 0.0),
        MeanSummary(0, 0.0, 0.0),
    ):
        assert summary.n == 0 and math.isnan(summary.mean)


def test_a_ratio_without_denominator_is_not_a_number() -> None:
    none = RatioSummary.of([1.0, 2.0], [0.0, 0.0])
    assert math.isnan(none.mean) and math.isnan(none.linearised_variance)


BAD: list[Any] = [
    [1.0, math.nan],
    [1.0, math.inf],
    [1.0, "2"],
    ["1", "2"],
    [1.0, None],
    [[1.0, 2.0], [3.0, 4.0]],
    [[1.0], [2.0, 3.0]],
    [1j],
    3.0,
    [{}],
    np.array(["2026-01-01"], dtype="datetime64[D]"),
]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_arrays_that_are_not_finite_numbers_are_refused(bad: Any) -> None:
    for of in (MeanSummary.of, RateSummary.of, lambda data: RatioSummary.of(data, data)):
        with pytest.raises(InvalidInput):
            of(bad)


@pytest.mark.parametrize("bad", [[0.5], [2], [-1], [0, 1, 0.999999]])
def test_a_rate_takes_zeros_and_ones_only(bad: list[float]) -> None:
    with pytest.raises(InvalidInput, match="0 and 1 only"):
        RateSummary.of(bad)


def test_arrays_of_different_length_are_refused() -> None:
    with pytest.raises(InvalidInput, match="as many values"):
        RatioSummary.of([1.0, 2.0], [1.0])


def test_impossible_moments_are_refused_and_rounding_is_not() -> None:
    with pytest.raises(InvalidInput, match="no data set"):
        MeanSummary.from_moments(10, 5.0, -0.1)
    with pytest.raises(InvalidInput, match="no data set"):
        MeanSummary.from_sums(10, 50.0, 200.0)
    assert MeanSummary.from_moments(10, 5.0, -1e-12).variance == 0.0
    with pytest.raises(InvalidInput, match="no data set"):  # covariance beyond what both variances allow
        _ = RatioSummary.from_moments(10, 1.0, 1.0, 1.0, 1.0, 2.0).linearised_variance


@pytest.mark.parametrize(
    "make",
    [
        lambda: MeanSummary.from_moments(5, None, 1.0),
        lambda: MeanSummary.from_moments(5, 1.0, None),
        lambda: MeanSummary.from_moments(5, math.nan, 1.0),
        lambda: MeanSummary.from_moments(5, 1.0, math.nan),
        lambda: MeanSummary.from_moments(-1, 1.0, 1.0),
        lambda: RatioSummary.from_moments(5, 1.0, 1.0, 1.0, 1.0, None),
        lambda: RatioSummary.from_moments(5, 1.0, 1.0, 1.0, 1.0, math.nan),
        lambda: RatioSummary.from_moments(5, None, 1.0, 1.0, 1.0, 0.0),
        lambda: RateSummary(5, 6),
        lambda: RateSummary(-1, 0),
        lambda: RateSummary(5, -1),
        lambda: MeanSummary.of([1e200, -1e200]),
    ],
)
def test_moments_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(InvalidInput):
        make()
