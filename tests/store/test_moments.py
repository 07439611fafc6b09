"""Sufficient statistics by SQL against the same computed from arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abswitch.domain import RequestRecord, ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.store.moments import arm_moments, crossed_units
from abswitch.store.recorder import Recorder
from tests.store.rows import a_request, routes_of

FINITE = st.floats(min_value=1e-6, max_value=1e6, allow_nan=False)
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
        "score": st.none() | st.just(math.nan) | st.floats(-1e6, 1e6),
    }
)
PAIRS = [("output_tokens", "latency_s"), ("quality", "output_tokens"), ("error", "fallback")]


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=40), data=st.data())
def test_moments_from_sql_are_those_from_arrays(recorder: Recorder, rows: list[dict[str, Any]], data: Any) -> None:
    operation_id = f"op-{next(COUNTER)}"
    record(recorder, rows, operation_id)
    arms = arm_moments(recorder, operation_id, [*NAMES, "quality"], pairs=PAIRS)
    assert arms.keys() == {row["arm"] for row in rows} - {"pinned"}
    for arm, got in arms.items():
        mine = [row for row in rows if row["arm"] == arm]
        check_counts(got, mine)
        for name in [*NAMES, "quality"]:
            values = np.array([v for row in mine if (v := values_of(row, name)) is not None])
            n, zeros, ones, mean, var = got.values[name]
            assert (zeros, ones) == (sum(values == 0), sum(values == 1))
            scale = float(np.max(np.abs(values), initial=1.0))
            assert n == len(values)
            assert close(mean, float(values.mean()) if n else math.nan, scale)
            assert close(var, float(values.var(ddof=1)) if n > 1 else math.nan, scale**2)
        for x, y in PAIRS:
            both = [(values_of(row, x), values_of(row, y)) for row in mine]
            table = np.array([pair for pair in both if None not in pair], dtype=float).reshape(-1, 2)
            check_pair(got.pairs[(x, y)], table)
            check_pair(
                got.unit_pairs[(x, y)], by_unit(mine, lambda row, x=x, y=y: (values_of(row, x), values_of(row, y)))
            )
        for name in [*NAMES, "quality"]:
            sums = by_unit(mine, lambda row, name=name: (values_of(row, name), 1.0))
            check_pair(got.unit_values[name], sums)
    in_both = {row["unit_id"] for row in rows if row["arm"] == "stable"} & {
        row["unit_id"] for row in rows if row["arm"] == "candidate"
    }
    assert crossed_units(recorder, operation_id) == len(in_both)


def by_unit(mine: list[dict[str, Any]], couple: Callable[..., tuple[float | None, float | None]]) -> Any:
    """Sums of both values per unit, over the rows that have both; units without such a row are left out."""
    sums: dict[str, list[float]] = {}
    for row in mine:
        x, y = couple(row)
        if x is not None and y is not None:
            unit = sums.setdefault(row["unit_id"], [0.0, 0.0])
            unit[0] += x
            unit[1] += y
    return np.array(list(sums.values()), dtype=float).reshape(-1, 2)


def check_counts(got: Any, mine: list[dict[str, Any]]) -> None:
    assert got.requests == len(mine)
    assert got.units == len({row["unit_id"] for row in mine})
    assert got.errored == sum(row["error_type"] == "InstanceDied" for row in mine)
    assert got.cancelled == sum(row["error_type"] == "Cancelled" for row in mine)
    assert got.fallbacks == sum(row["fallback"] for row in mine)
    answered = [row for row in mine if row["error_type"] is None and not row["fallback"]]
    assert got.answered == len(answered)
    per_unit = [sum(row["unit_id"] == unit for row in answered) for unit in "abc"]
    assert (got.answered_units, got.repeated_units) == (sum(n > 0 for n in per_unit), sum(n > 1 for n in per_unit))
    failures = sum(row["score"] is None or not math.isfinite(row["score"]) for row in answered)
    assert got.scorer_failures == {"quality": failures}


def check_pair(got: Any, table: np.ndarray[Any, Any]) -> None:
    n = len(table)
    scale = float(np.max(np.abs(table), initial=1.0))
    assert got.n == n
    if n:
        assert close(got.mean_x, float(table[:, 0].mean()), scale)
        assert close(got.mean_y, float(table[:, 1].mean()), scale)
    if n > 1:
        cov = np.cov(table.T, ddof=1)
        assert close(got.var_x, float(cov[0, 0]), scale**2)
        assert close(got.var_y, float(cov[1, 1]), scale**2)
        assert close(got.cov, float(cov[0, 1]), scale**2)


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
        got = arm_moments(recorder, "op", ["latency_s"])["stable"].values["latency_s"]
    assert math.isclose(got.var, float(np.var(np.array(values) - 1e6, ddof=1)), rel_tol=1e-6)


def test_an_unknown_metric_names_what_there_is(recorder: Recorder) -> None:
    route(recorder, "op-unknown")
    recorder.request(a_request("u1", operation_id="op-unknown"))
    recorder.score(ScoreRecord("u1", "exact_match", 1.0, None, 1.0))
    with pytest.raises(InvalidInput, match=r"exact_match.*did you mean 'exact_match'") as told:
        arm_moments(recorder, "op-unknown", ["exact_mach"])
    assert "latency_s" in str(told.value)
    with pytest.raises(InvalidInput, match="metric"):
        arm_moments(recorder, "op-unknown", ["total_s; DROP TABLE requests"])


def test_a_scorer_that_had_nothing_to_score_is_no_data(recorder: Recorder) -> None:
    route(recorder, "op-none")
    recorder.request(a_request("n1", operation_id="op-none", error_type="InstanceDied", served_version=None))
    arm = arm_moments(recorder, "op-none", ["exact_match", "error"])["stable"]
    assert arm.values["exact_match"].n == 0
    assert math.isnan(arm.values["exact_match"].mean)
    assert (arm.requests, arm.answered, arm.errored) == (1, 0, 1)


def test_the_latest_score_counts_and_other_operations_do_not(recorder: Recorder) -> None:
    route(recorder, "op-latest")
    recorder.request(a_request("l1", operation_id="op-latest"))
    recorder.request(a_request("l2", operation_id="op-other"))
    for request_id, value, at_s in (("l1", 0.0, 1.0), ("l1", 1.0, 3.0), ("l1", None, 2.0), ("l2", 9.0, 1.0)):
        recorder.score(ScoreRecord(request_id, "human", value, None, at_s))
    arm = arm_moments(recorder, "op-latest", ["human"])["stable"]
    assert (arm.values["human"].n, arm.values["human"].mean) == (1, 1.0)
    assert arm_moments(recorder, "op-nothing", ["latency_s"]) == {}


def test_names_with_quotes_travel_as_parameters(recorder: Recorder) -> None:
    route(recorder, "op'; --")
    recorder.request(a_request("q1", operation_id="op'; --"))
    recorder.score(ScoreRecord("q1", 'it\'s "odd"', 0.5, None, 1.0))
    arm = arm_moments(recorder, "op'; --", ['it\'s "odd"'])["stable"]
    assert arm.values['it\'s "odd"'].mean == 0.5
