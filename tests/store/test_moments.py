"""Sufficient statistics by SQL against the same computed from arrays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abswitch.domain import RequestRecord, ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.stats import (
    CovariateSummary,
    Mean,
    MeanSummary,
    Metric,
    MetricSummary,
    Quantile,
    QuantileSummary,
    Rate,
    RateSummary,
    Ratio,
    RatioCovariateSummary,
    RatioSummary,
    Where,
)
from abswitch.store.columns import ValueColumns
from abswitch.store.measured import measure
from abswitch.store.moments import arm_counts, crossed_units
from abswitch.store.recorder import Recorder
from tests.store.rows import a_request, routes_of

LARGEST = 1e4
FINITE = st.floats(min_value=1e-6, max_value=LARGEST, allow_nan=False)
ROW = st.fixed_dictionaries(
    {
        "arm": st.sampled_from(["stable", "candidate", "pinned"]),
        "unit_id": st.sampled_from(["a", "b", "c"]),
        "fallback": st.booleans(),
        "error_type": st.sampled_from([None, None, None, "InstanceDied", "Cancelled"]),
        "first_token_s": st.none() | FINITE,
        "total_s": FINITE,
        "output_tokens": st.integers(0, 4096),
        "prompt_tokens": st.none() | st.integers(1, 4096),
        "finish_reason": st.sampled_from(["stop", "length"]),
        "score": st.none() | st.just(math.nan) | st.floats(-LARGEST, LARGEST),
    }
)


def selector_of(row: dict[str, Any], name: str) -> float | str | None:
    """What a condition reads."""
    return str(row["unit_id"]) if name == "unit_id" else values_of(row, name)


def values_of(row: dict[str, Any], name: str) -> float | None:
    """One request's value, by the words of the documentation rather than the SQL."""
    failed = row["error_type"] not in (None, "Cancelled")
    whole: dict[str, Callable[[], float | None]] = {
        "error": lambda: float(failed),
        "fallback": lambda: float(row["fallback"]),
    }
    if name in whole:
        return whole[name]()
    if row["error_type"] is not None or row["fallback"]:
        return None
    if name == "quality":
        return row["score"] if row["score"] is not None and math.isfinite(row["score"]) else None
    if name == "truncated":
        return float(row["finish_reason"] == "length")
    if name == "generation_s":
        return None if row["first_token_s"] is None else row["total_s"] - row["first_token_s"]
    value = row[{"latency_s": "total_s"}.get(name, name)]
    return None if value is None else float(value)


def route(recorder: Recorder, operation_id: str) -> None:
    for arm in routes_of(operation_id):
        recorder.route(arm)


def record(recorder: Recorder, rows: list[dict[str, Any]], operation_id: str) -> None:
    route(recorder, operation_id)
    for i, row in enumerate(rows):
        name = f"{operation_id}-{i}"
        known = {key: value for key, value in row.items() if key in RequestRecord._fields}
        recorder.request(a_request(name, operation_id=operation_id, **known))
        if row["error_type"] is None and not row["fallback"]:
            recorder.score(ScoreRecord(name, "quality", row["score"], None, 1.0))


def close(left: float, right: float, scale: float = 1.0) -> bool:
    both_nan = math.isnan(left) and math.isnan(right)
    return both_nan or math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9 * max(1.0, scale))


NAMES = [
    "latency_s",
    "first_token_s",
    "generation_s",
    "output_tokens",
    "prompt_tokens",
    "truncated",
    "error",
    "fallback",
]


@pytest.fixture(scope="module")
def recorder() -> Any:
    with Recorder(":memory:") as made:
        yield made


METRICS: tuple[Metric, ...] = (
    *(Mean(name) for name in NAMES if name not in ("truncated", "error", "fallback")),
    *(Rate(name) for name in ("truncated", "error", "fallback")),
    Mean("quality"),
    Mean("quality", covariate="prompt_tokens", name="adjusted"),
    Ratio("output_tokens", "latency_s"),
    Ratio("quality", "output_tokens", covariate="prompt_tokens"),
    Rate("truncated", covariate="prompt_tokens", name="truncated_adjusted"),
    Mean("quality", unit="unit", name="by_unit"),
    Mean("latency_s", where=(Where(column="prompt_tokens", above=1000, at_most=3000),), name="long"),
    Rate("error", where=(Where(column="unit_id", one_of=("a", "b")),), name="errors_of_two"),
    Mean("latency_s", where=(Where(column="quality", below=0.0),), name="bad"),
    Quantile("latency_s", 0.9),
    Quantile("latency_s", 0.5, unit="unit", name="typical"),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=40))
def test_summaries_from_sql_are_those_from_arrays(recorder: Recorder, rows: list[dict[str, Any]]) -> None:
    operation_id = f"op-{next(COUNTER)}"
    record(recorder, rows, operation_id)
    counts = arm_counts(recorder, operation_id, ["quality"])
    assert counts.keys() == {row["arm"] for row in rows} - {"pinned"}
    for by_unit in (False, True):
        found = measure(recorder, operation_id, METRICS, by_unit=by_unit)
        for arm in ("stable", "candidate"):
            mine = [row for row in rows if row["arm"] == arm]
            if arm in counts:
                check_counts(counts[arm], mine)
            for metric in METRICS:
                assert_near(
                    getattr(found[metric.name], "baseline" if arm == "stable" else arm), of(metric, mine, by_unit)
                )
    in_both = {row["unit_id"] for row in rows if row["arm"] == "stable"} & {
        row["unit_id"] for row in rows if row["arm"] == "candidate"
    }
    assert crossed_units(recorder, operation_id) == len(in_both)


def of(metric: Metric, mine: list[dict[str, Any]], by_unit: bool) -> MetricSummary:
    """The summary of a metric from its rows, by the words of the documentation rather than the SQL."""
    mine = [row for row in mine if all(one.holds(selector_of(row, one.column)) for one in metric.where)]
    names = [metric.columns[0], metric.columns[-1], metric.covariate or metric.columns[0]]
    kept = [(row["unit_id"], [values_of(row, name) for name in names]) for row in mine]
    kept = [(unit, values) for unit, values in kept if None not in values]
    units = np.array([unit for unit, _ in kept], dtype=str)
    table = np.array([values for _, values in kept], dtype=float).reshape(-1, 3)
    is_ratio, by_means = isinstance(metric, Ratio), metric.unit == "unit"
    x, y, z = table[:, 0], table[:, 1] if is_ratio else np.ones(len(table)), table[:, 2]
    if isinstance(metric, Quantile):
        if not by_unit:
            return QuantileSummary.of(x, metric.q)
        if by_means:
            return QuantileSummary.of([x[units == unit].mean() for unit in np.unique(units)], metric.q)
        return QuantileSummary.of(x, metric.q, units=units) if len(x) else QuantileSummary(q=metric.q, n=0)
    if by_unit:
        parts = [units == unit for unit in np.unique(units)]
        x, z = (
            np.array([x[p].mean() if by_means else x[p].sum() for p in parts]),
            np.array([z[p].mean() for p in parts]),
        )
        y = np.array([1.0 if by_means else y[p].sum() for p in parts])
    if metric.covariate and (by_unit or is_ratio):
        return RatioCovariateSummary.of(x, y, z)
    if metric.covariate:
        return CovariateSummary.of(x, z)
    if by_unit or is_ratio:
        return RatioSummary.of(x, y)
    return RateSummary.of(x) if isinstance(metric, Rate) else MeanSummary.of(x)


def assert_near(got: Any, want: Any) -> None:
    """Equal to 1e-9 of the scale that the values are drawn from."""
    assert type(got) is type(want)
    for name in want.__slots__:
        mine, other = getattr(got, name), getattr(want, name)
        if isinstance(other, tuple) and other and isinstance(other[0], RatioSummary):
            for a, b in zip(mine, other, strict=True):
                assert_near(a, b)
        elif isinstance(other, tuple):
            assert mine == pytest.approx(other, rel=1e-9), name
        elif isinstance(other, RatioSummary):
            assert_near(mine, other)
        elif other is None or isinstance(other, int):
            assert mine == other, name
        else:
            squared = name.startswith(("m2", "c_"))
            assert close(mine, other, LARGEST**2 * 40 if squared else LARGEST * 40), name


def check_counts(got: Any, mine: list[dict[str, Any]]) -> None:
    assert got.requests == len(mine)
    assert got.units == len({row["unit_id"] for row in mine})
    assert got.errored == sum(row["error_type"] == "InstanceDied" for row in mine)
    assert got.cancelled == sum(row["error_type"] == "Cancelled" for row in mine)
    assert got.fallbacks == sum(row["fallback"] for row in mine)
    answered = [row for row in mine if row["error_type"] is None and not row["fallback"]]
    assert got.answered == len(answered)
    assert got.answered_units == len({row["unit_id"] for row in answered})
    assert got.repeated_units == sum(n > 1 for n in Counter(row["unit_id"] for row in mine).values())
    failures = sum(row["score"] is None or not math.isfinite(row["score"]) for row in answered)
    assert got.scorer_failures == {"quality": failures}


def _counter() -> Any:
    n = 0
    while True:
        yield n
        n += 1


COUNTER = _counter()


def test_a_tiny_variance_on_a_large_mean_survives() -> None:
    values = [1e6 + i * 1e-3 for i in range(1000)]
    with Recorder(":memory:") as recorder:
        route(recorder, "op")
        for i, value in enumerate(values):
            recorder.request(a_request(f"r{i}", total_s=value))
        got = measure(recorder, "op", [Mean("latency_s")], by_unit=False)["latency_s"].baseline
    assert isinstance(got, MeanSummary)
    assert math.isclose(got.variance, float(np.var(np.array(values) - 1e6, ddof=1)), rel_tol=1e-6)


def test_an_unknown_metric_names_what_there_is(recorder: Recorder) -> None:
    route(recorder, "op-unknown")
    recorder.request(a_request("u1", operation_id="op-unknown"))
    recorder.score(ScoreRecord("u1", "exact_match", 1.0, None, 1.0))
    with pytest.raises(InvalidInput, match=r"exact_match.*did you mean 'exact_match'") as told:
        measure(recorder, "op-unknown", [Mean("exact_mach")], by_unit=False)
    assert "latency_s" in str(told.value)
    with pytest.raises(InvalidInput, match="metric"):
        arm_counts(recorder, "op-unknown", ["total_s; DROP TABLE requests"])


def test_a_scorer_that_had_nothing_to_score_is_no_data(recorder: Recorder) -> None:
    route(recorder, "op-none")
    recorder.request(a_request("n1", operation_id="op-none", error_type="InstanceDied", served_version=None))
    arm = arm_counts(recorder, "op-none", ["exact_match", "error"])["stable"]
    exact = measure(recorder, "op-none", [Rate("exact_match")], by_unit=False)["exact_match"].baseline
    assert exact == RateSummary(0, 0)
    assert (arm.requests, arm.answered, arm.errored) == (1, 0, 1)


def test_the_latest_score_counts_and_other_operations_do_not(recorder: Recorder) -> None:
    route(recorder, "op-latest")
    recorder.request(a_request("l1", operation_id="op-latest"))
    recorder.request(a_request("l2", operation_id="op-other"))
    for request_id, value, at_s in (("l1", 0.0, 1.0), ("l1", 1.0, 3.0), ("l1", None, 2.0), ("l2", 9.0, 1.0)):
        recorder.score(ScoreRecord(request_id, "human", value, None, at_s))
    human = measure(recorder, "op-latest", [Mean("human")], by_unit=False)["human"].baseline
    assert human == MeanSummary.of([1.0])
    assert arm_counts(recorder, "op-nothing") == {}


def test_names_with_quotes_travel_as_parameters(recorder: Recorder) -> None:
    route(recorder, "op'; --")
    recorder.request(a_request("q1", operation_id="op'; --"))
    recorder.score(ScoreRecord("q1", 'it\'s "odd"', 0.5, None, 1.0))
    columns = ValueColumns(recorder, "op'; --", ['it\'s "odd"'])
    rows = recorder.rows(
        f"{columns.with_clause} SELECT {columns.column(columns.names[0])} FROM value_rows", columns.params
    )
    assert rows == [(0.5,)]
