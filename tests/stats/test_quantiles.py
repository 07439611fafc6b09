"""Quantiles: ranks by the binomial distribution, published examples, coverage, clusters, and ranks looked up in SQL."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import MeanSummary, RatioSummary, welch_t_test
from abswitch.stats.quantiles import (
    QuantileInterval,
    clustered_quantile_interval,
    clustered_quantile_ranks,
    least_n_for_quantile,
    quantile_interval,
    quantile_ranks,
    quantile_test,
)
from abswitch.stats.ratios import design_effect

quantiles = st.sampled_from([0.05, 0.25, 0.5, 0.9, 0.95, 0.99])
samples = st.lists(st.integers(-1000, 1000).map(float), min_size=9, max_size=200)


@given(st.integers(1, 5000), quantiles, st.sampled_from([0.01, 0.05, 0.2]))
def test_ranks_are_the_closest_that_the_binomial_allows(n: int, q: float, alpha: float) -> None:
    ranks = quantile_ranks(n, q, alpha=alpha)
    assert ranks.point == math.ceil(round(n * q, 6))
    if ranks.why_not is not None:
        assert n < least_n_for_quantile(q, alpha=alpha) and ranks.needed == (ranks.point,)
        return
    below = stats.binom(n, q)  # how many values are at most the quantile
    low, point, high = ranks.needed
    assert 2 <= low <= point <= high <= n - 1
    assert below.cdf(low - 1) <= alpha / 2 + 1e-12 and below.cdf(low) > alpha / 2 - 1e-12
    assert below.sf(high - 1) <= alpha / 2 + 1e-12 and below.sf(high - 2) > alpha / 2 - 1e-12


@pytest.mark.parametrize(("n", "low", "high"), [(10, 2, 9), (20, 6, 15), (50, 18, 33), (100, 40, 61)])
def test_published_ranks_of_the_median(n: int, low: int, high: int) -> None:
    """M. J. Campbell, M. J. Gardner, BMJ 296 (1988) 1454–1456, the ranks for a median at 95 %."""
    ranks = quantile_ranks(n, 0.5)
    assert (ranks.low, ranks.high) == (low, high)


@pytest.mark.parametrize(("q", "least"), [(0.5, 9), (0.95, 110), (0.05, 110), (0.99, 555), (0.999, 5570)])
def test_how_many_values_it_takes(q: float, least: int) -> None:
    assert least_n_for_quantile(q) == least
    assert quantile_ranks(least, q).why_not is None
    short = quantile_ranks(least - 1, q)
    assert short.why_not == f"not attainable: p{100 * q:g} needs {least} values, and there are {least - 1}"
    assert short.low is None and short.high is None


@given(samples, quantiles)
def test_the_interval_is_made_of_order_statistics(values: list[float], q: float) -> None:
    found, ordered = quantile_interval(values, q), sorted(values)
    assert found.value == float(np.quantile(values, q, method="inverted_cdf"))
    if found.attainable:
        low, _, high = found.ranks.needed
        assert (found.low, found.high) == (ordered[low - 1], ordered[high - 1])
    else:
        assert math.isnan(found.low) and math.isnan(found.high) and "needs" in str(found.why_not)


def test_one_monstrous_value_does_not_move_any_end() -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(1.0, 110)
    spoilt = np.where(values == values.max(), 1e9, values)
    assert quantile_interval(values, 0.95) == quantile_interval(spoilt, 0.95)
    assert not quantile_interval(values[:109], 0.95).attainable


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_intervals_cover(q: float) -> None:
    rng = np.random.default_rng(2)
    truth = stats.lognorm(1.5).ppf(q)
    rows = rng.lognormal(0.0, 1.5, (2000, 1000))
    found = [quantile_interval(row, q) for row in rows]
    assert 0.94 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.985
    pairs = zip(found[:1000], found[1000:], strict=True)
    covered = np.mean([not quantile_test(a, b).excludes_zero() for a, b in pairs])
    assert 0.94 <= covered <= (0.995 if q == 0.99 else 0.985)


class TestDifference:
    def test_it_finds_a_slower_tail_that_the_mean_hides(self) -> None:
        rng = np.random.default_rng(3)
        a = rng.gamma(4.0, 0.25, 3000)
        b = np.where(rng.random(3000) < 0.9, rng.gamma(4.0, 0.23, 3000), rng.gamma(4.0, 0.45, 3000))
        found = quantile_test(quantile_interval(a, 0.95), quantile_interval(b, 0.95))
        assert found.excludes_zero() and found.estimate > 0 and found.p_value < 0.05
        assert "p95" in found.method and found.baseline.n == 3000
        assert not welch_t_test(MeanSummary.of(a), MeanSummary.of(b)).excludes_zero()

    @given(samples, samples, st.sampled_from([0.25, 0.5]))
    def test_swapping_turns_the_sign(self, left: list[float], right: list[float], q: float) -> None:
        a, b = quantile_interval(left, q), quantile_interval(right, q)
        there, back = quantile_test(a, b), quantile_test(b, a)
        assert there.attainable == back.attainable
        assume(there.attainable)
        assert (there.estimate, there.low, there.high) == (-back.estimate, -back.high, -back.low)
        assert there.p_value == back.p_value and (there.p_value < 0.05) == there.excludes_zero()

    @given(samples, samples, st.sampled_from([0.001, 4.0, 1e6]))
    def test_scaling_and_shifting(self, left: list[float], right: list[float], scale: float) -> None:
        def median_test(a: list[float], b: list[float]) -> tuple[float, float, float]:
            found = quantile_test(quantile_interval(a, 0.5), quantile_interval(b, 0.5))
            return found.estimate, found.low, found.p_value

        plain = median_test(left, right)
        assume(not math.isnan(plain[0]))
        scaled = median_test([x * scale for x in left], [x * scale for x in right])
        shifted = median_test([x + 500 for x in left], [x + 500 for x in right])
        assert np.allclose(scaled, (plain[0] * scale, plain[1] * scale, plain[2]), rtol=1e-9, atol=1e-9 * scale)
        assert np.allclose(shifted, plain, rtol=1e-9, atol=1e-9)

    def test_where_there_is_no_answer_it_says_why(self) -> None:
        enough, short = quantile_interval(range(200), 0.95), quantile_interval(range(50), 0.95)
        found = quantile_test(enough, short)
        assert found.why_not == "not attainable: p95 needs 110 values, and there are 50 (the candidate)"
        assert math.isnan(found.estimate) and found.candidate.value == 47.0 and math.isnan(found.candidate.high)
        empty = quantile_test(quantile_interval([], 0.5), quantile_interval([1.0], 0.5))
        assert "there are 0 (the baseline)" in str(empty.why_not) and math.isnan(empty.baseline.value)
        flat = quantile_test(quantile_interval([3.0] * 50, 0.5), quantile_interval([4.0] * 50, 0.5))
        assert "neither arm varies" in str(flat.why_not)

    def test_one_constant_arm_is_compared(self) -> None:
        found = quantile_test(quantile_interval([3.0] * 50, 0.5), quantile_interval(range(50), 0.5))
        assert found.attainable and found.baseline.low == found.baseline.high == 3.0 and found.excludes_zero()

    def test_different_quantiles_are_refused(self) -> None:
        a = quantile_interval(range(50), 0.5)
        with pytest.raises(InvalidInput, match=r"candidate\.q"):
            quantile_test(a, quantile_interval(range(50), 0.4))
        with pytest.raises(InvalidInput, match=r"candidate\.alpha"):
            quantile_test(a, quantile_interval(range(50), 0.5, alpha=0.1))


def latencies(
    rng: np.random.Generator, units: int, mean_requests: int, spread: float
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Lognormal, with users whose typical latency differs; standard deviation of a request's logarithm: 1."""
    requests = rng.poisson(mean_requests - 1, units) + 1
    user = np.repeat(np.arange(units), requests)
    return np.exp(np.repeat(rng.normal(0.0, spread, units), requests) + rng.normal(0.0, 1.0, user.size)), user


class TestClusters:
    @pytest.mark.parametrize(
        ("units", "requests", "spread", "q"),
        [(40, 30, 0.5, 0.5), (40, 30, 0.5, 0.95), (100, 20, 0.5, 0.99), (200, 10, 1.0, 0.95), (300, 5, 2.0, 0.95)],
    )
    def test_intervals_cover(self, units: int, requests: int, spread: float, q: float) -> None:
        rng = np.random.default_rng(5)
        truth = math.exp(float(stats.norm.ppf(q)) * math.hypot(spread, 1.0))
        found, naive = [], []
        for _ in range(400):
            values, users = latencies(rng, units, requests, spread)
            found.append(clustered_quantile_interval(values, users, q))
            naive.append(quantile_interval(values, q))
        assert np.mean([one.attainable for one in found]) > 0.95
        assert np.mean([one.low <= truth <= one.high for one in found if one.attainable]) >= 0.94
        assert np.mean([one.low <= truth <= one.high for one in naive]) < (0.9 if q == 0.99 else 0.8)

    def test_two_copies_of_one_version_are_rarely_told_apart(self) -> None:
        rng = np.random.default_rng(6)
        wrong = naive = 0
        for _ in range(300):
            arms = [latencies(rng, 60, 20, 1.0) for _ in range(2)]
            wrong += quantile_test(*(clustered_quantile_interval(*arm, 0.9) for arm in arms)).excludes_zero()
            naive += quantile_test(*(quantile_interval(values, 0.9) for values, _ in arms)).excludes_zero()
        assert wrong / 300 <= 0.06 and naive / 300 >= 0.25

    def test_a_far_slower_version_is_found(self) -> None:
        rng = np.random.default_rng(7)
        (a, users), (b, others) = latencies(rng, 200, 20, 0.3), latencies(rng, 200, 20, 0.3)
        found = quantile_test(
            clustered_quantile_interval(a, users, 0.95), clustered_quantile_interval(2 * b, others, 0.95)
        )
        assert found.excludes_zero() and "clustered" in found.method

    def test_independent_values_lose_little(self) -> None:
        rng = np.random.default_rng(8)
        values, users = rng.lognormal(0.0, 1.0, 4000), np.arange(4000) % 1000
        wide, narrow = clustered_quantile_interval(values, users, 0.95), quantile_interval(values, 0.95)
        assert wide.low <= narrow.low and wide.high >= narrow.high
        assert (wide.high - wide.low) / (narrow.high - narrow.low) < 1.2
        assert 1.0 <= wide.ranks.design_effect < 1.3

    def test_names_are_as_good_as_numbers(self) -> None:
        values, users = latencies(np.random.default_rng(9), 50, 20, 0.5)
        names = [f"user-{user}" for user in users]
        want = clustered_quantile_interval(values, users, 0.9)
        for units in (names, np.array(names, dtype=object)):
            found = clustered_quantile_interval(values, units, 0.9)
            assert (found.low, found.value, found.high) == (want.low, want.value, want.high)

    def test_the_design_effect_is_that_of_the_sum_over_units(self) -> None:
        whole = RatioSummary.of([4, 0, 4, 0, 4, 0, 4, 0], [4] * 8)  # four values of a unit are as one
        assert math.isclose(design_effect(whole), 4 * 8 / 7)
        assert design_effect(RatioSummary.of([2] * 8, [4] * 8)) == 1.0  # less than independent: not believed
        assert design_effect(RatioSummary.of([4] * 8, [4] * 8)) == 4.0  # nothing to see: one value a unit

    @pytest.mark.parametrize(
        ("units", "requests", "q", "why"),
        [
            (10, 300, 0.95, "p95 needs 20 units, and there are 10"),
            (60, 50, 0.99, "p99 needs 100 units, and there are 60"),
            (1, 300, 0.5, "p50 needs 2 units, and there are 1"),
            (30, 4, 0.95, "too few for p95"),
        ],
    )
    def test_too_few_units_have_no_interval(self, units: int, requests: int, q: float, why: str) -> None:
        values, users = latencies(np.random.default_rng(10), units, requests, 0.7)
        found = clustered_quantile_interval(values, users, q)
        assert why in str(found.why_not) and not math.isnan(found.value) and math.isnan(found.high)

    def test_without_values_there_is_nothing(self) -> None:
        found = clustered_quantile_interval([], [], 0.5)
        assert not found.attainable and math.isnan(found.value) and found.ranks.n == 0

    def test_bad_input_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="as many as values"):
            clustered_quantile_interval([1.0, 2.0], [1], 0.5)
        mixed: list[Any] = [[1.5, 2.5], ["a", 1.0, None], [["a", "b"]], np.array(["a", 1], dtype=object)]
        for units in mixed:
            with pytest.raises(InvalidInput, match="units"):
                clustered_quantile_interval([1.0] * len(units), units, 0.5)
        counts = RatioSummary.of([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
        with pytest.raises(InvalidInput, match=r"below\.mean"):
            clustered_quantile_ranks(RatioSummary.of([3.0, 5.0], [1.0, 2.0]), counts, 0.5)
        with pytest.raises(InvalidInput, match="below_median"):
            clustered_quantile_ranks(counts, RatioSummary.of([1.0, 2.0], [2.0, 4.0]), 0.5)


class TestFromSql:
    """What stays in the database: ranks first, then the values at these ranks."""

    @staticmethod
    def values_at(connection: duckdb.DuckDBPyConnection, n: int, ranks: tuple[int, ...]) -> list[float]:
        shares = ", ".join(str((rank - 0.5) / n) for rank in ranks)
        row = connection.execute(f"SELECT quantile_disc(x, [{shares}]) FROM latency").fetchone()
        assert row is not None
        found: list[float] = row[0]
        return found

    @pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
    @pytest.mark.parametrize("n", [30, 997, 2500])
    def test_independent_values(self, n: int, q: float) -> None:
        values = np.random.default_rng(n).lognormal(0.0, 1.0, n)
        with duckdb.connect() as connection:
            connection.execute("CREATE TABLE latency AS SELECT unnest(?) AS x", [values.tolist()])
            ranks = quantile_ranks(n, q)
            assert ranks.interval(*self.values_at(connection, n, ranks.needed)) == quantile_interval(values, q)

    def test_clustered_values(self) -> None:
        values, users = latencies(np.random.default_rng(11), 120, 15, 0.6)
        with duckdb.connect() as connection:
            connection.execute(
                "CREATE TABLE latency AS SELECT unnest(?) AS x, unnest(?) AS unit", [values.tolist(), users.tolist()]
            )
            n, q = values.size, 0.95
            at_quantile, at_median = (quantile_ranks(n, share).point for share in (q, 0.5))
            assert at_quantile is not None and at_median is not None
            cuts = self.values_at(connection, n, (at_quantile, at_median))
            below, below_median = (
                RatioSummary.from_moments(
                    *connection.execute(
                        "SELECT count(*), avg(b), avg(k), var_samp(b), var_samp(k), covar_samp(b, k) FROM "
                        "(SELECT count(*) FILTER (x <= ?) AS b, count(*) AS k FROM latency GROUP BY unit)",
                        [cut],
                    ).fetchall()[0]
                )
                for cut in cuts
            )
            ranks = clustered_quantile_ranks(below, below_median, q)
            found = ranks.interval(*self.values_at(connection, n, ranks.needed))
        want = clustered_quantile_interval(values, users, q)
        assert (found.value, found.low, found.high) == (want.value, want.low, want.high)
        assert math.isclose(found.ranks.design_effect, want.ranks.design_effect, rel_tol=1e-9)

    def test_values_that_do_not_belong_to_the_ranks_are_refused(self) -> None:
        ranks = quantile_ranks(100, 0.5)
        for values in ((1.0, 2.0), (2.0, 1.0, 3.0), (1.0, math.nan, 3.0), (1.0, "2", 3.0)):
            with pytest.raises(InvalidInput, match="values"):
                ranks.interval(*values)


def test_bad_input_is_refused() -> None:
    for q in (0.0, 1.0, -0.5, math.nan, True, "0.5"):
        with pytest.raises(InvalidInput, match="q"):
            quantile_interval([1.0, 2.0], q)  # type: ignore[arg-type]  # one of them is no number
    for alpha in (0.0, 0.6, math.inf):
        with pytest.raises(InvalidInput, match="alpha"):
            quantile_ranks(10, 0.5, alpha=alpha)
    with pytest.raises(InvalidInput, match="finite"):
        quantile_interval([1.0, math.nan], 0.5)
    with pytest.raises(InvalidInput, match="n"):
        quantile_ranks(-1, 0.5)


def test_an_interval_says_what_it_is() -> None:
    found = quantile_interval(np.arange(1.0, 21.0), 0.5)
    assert isinstance(found, QuantileInterval) and found.attainable and found.why_not is None
    assert (found.low, found.value, found.high) == (6.0, 10.0, 15.0)
