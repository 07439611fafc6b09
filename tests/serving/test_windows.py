"""Counts are exact, quantiles within their accuracy, memory bounded, old slices gone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from abswitch.domain import RequestRecord
from abswitch.rollout.limits import AlertThresholds, Limit
from abswitch.serving.windows import ACCURACY, BINS, FIRST_TOKEN, LATENCY, SLICES, Window

LIMITS = AlertThresholds(latency_p95=Limit(100.0, 200.0), first_token_p95=Limit(10.0, None))


def record(total_s: float = 0.05, *, error: str | None = None, fallback: bool = False) -> RequestRecord:
    return RequestRecord(
        *("r", "bot", None, 0, 1, "stable", "v1", "v1", "u", fallback, 0.0, 0.0, 0.0),
        *(total_s / 10, total_s, 3, 7, None if error else "stop", error, error, None, None),
    )


def test_quantiles_are_within_their_accuracy() -> None:
    window, rng = Window(60.0, LIMITS, 0.0), np.random.default_rng(5)
    values = rng.lognormal(-2.0, 1.0, 20_000)
    for at, value in enumerate(values):
        window.request(record(float(value)), 60.0 * at / len(values))
    for q in (0.5, 0.95, 0.99):
        exact = float(np.quantile(values, q, method="lower"))
        assert window.quantile_s(LATENCY, q, 59.9) == pytest.approx(exact, rel=2 * ACCURACY)
        assert window.quantile_s(FIRST_TOKEN, q, 59.9) == pytest.approx(exact / 10, rel=2 * ACCURACY)


def test_limits_are_counted_exactly() -> None:
    window = Window(60.0, LIMITS, 0.0)
    for total_s in (0.05, 0.1, 0.1001, 0.15, 0.2001, 5.0):
        window.request(record(total_s), 1.0)
    above = window.totals(1.0).above
    assert (above["latency_p95", "warning"], above["latency_p95", "critical"]) == (4, 2)
    assert above["first_token_p95", "warning"] == 4
    assert ("first_token_p95", "critical") not in above


def test_what_is_older_than_the_window_is_gone() -> None:
    window = Window(60.0, LIMITS, 0.0)
    window.request(record(), 0.0)
    window.request(record(), 30.0)
    assert window.totals(54.9).requests == 2
    assert window.totals(60.0).requests == 1
    assert window.totals(95.0).requests == 0
    assert window.quantile_s(LATENCY, 0.5, 95.0) is None


def test_nothing_is_known_of_an_empty_window() -> None:
    totals = Window(60.0, LIMITS, 0.0).totals(10.0)
    assert (totals.error_rate, totals.judged_error_rate, totals.tokens_per_s) == (None, None, None)
    assert totals.requests_per_s == 0.0
    assert Window(60.0, LIMITS, 0.0).totals(0.1).requests_per_s is None


def test_who_left_does_not_count_and_who_was_lost_is_told_apart() -> None:
    window = Window(60.0, LIMITS, 0.0)
    for error in ("Cancelled", "PromptTooLong", "RequestFailed", "InstanceDied", "StreamBroken", None):
        window.request(record(error=error), 1.0)
    window.request(record(fallback=True), 1.0)
    totals = window.totals(1.0)
    assert (totals.requests, totals.errors, totals.lost, totals.judged) == (5, 4, 3, 2)
    assert totals.error_rate == 0.8
    assert totals.judged_error_rate == 0.5
    assert totals.measured[LATENCY] == 1  # of answers alone: an error may well be quick


def test_a_duration_that_is_none_is_not_measured() -> None:
    window = Window(60.0, LIMITS, 0.0)
    for total_s in (math.nan, math.inf, -1.0):
        window.request(record(total_s), 1.0)
    assert window.totals(1.0).measured[LATENCY] == 0
    assert window.quantile_s(LATENCY, 0.5, 1.0) is None
    window.request(record(0.0), 1.0)
    assert window.quantile_s(LATENCY, 0.5, 1.0) == 0.0


def test_throughput_is_per_second_with_requests_under_way() -> None:
    window = Window(60.0, LIMITS, 0.0)
    for _ in range(10):
        window.request(record(), 1.0)
    window.busy(2.0, 1.0)
    assert window.totals(30.0).tokens_per_s == 35.0


def test_memory_is_bounded_whatever_comes() -> None:
    window, rng = Window(60.0, LIMITS, 0.0), np.random.default_rng(5)
    for at, exponent in enumerate(rng.uniform(-200, 200, 20_000)):
        window.request(record(float(10.0**exponent)), at / 10)
    assert len(window._slices) <= SLICES
    sketches = [sketch for one in window._slices for sketch in one.sketches.values()]
    assert max(len(sketch._store.bins) for sketch in sketches) <= BINS
    assert window.quantile_s(LATENCY, 0.99, 2000.0) == pytest.approx(1e198, rel=1e5)
