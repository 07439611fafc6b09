"""Plans from logged traffic: what is read is what is there, and bad sources are named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abswitch.domain import ScoreRecord
from abswitch.errors import InvalidInput, StoreError
from abswitch.experiments import plan, power_chart
from abswitch.stats import Mean, Paired, Quantile, Rate, Ratio, Traffic, plan_experiment
from abswitch.store.recorder import Recorder
from tests.store.rows import a_request

REQUESTS, USERS, RATE_PER_S = 3000, 500, 4.0
RNG = np.random.default_rng(7)
USER = RNG.integers(USERS, size=REQUESTS)
PROMPT = RNG.integers(10, 100, size=REQUESTS)
LATENCY_S = 0.2 + 0.004 * PROMPT + RNG.gamma(2.0, 0.1, REQUESTS)
TOKENS = RNG.integers(5, 60, size=REQUESTS)
EXACT = (RNG.random(REQUESTS) < 1 / (1 + np.exp(-(0.4 + 1.5 * RNG.normal(size=USERS))[USER]))).astype(float)


def fill(recorder: Recorder) -> Recorder:
    for i in range(REQUESTS):
        at_s = 1.7e9 + i / RATE_PER_S
        recorder.request(
            a_request(
                f"r{i}", operation_id=None, unit_id=f"user-{USER[i]}", admitted_at_s=at_s, total_s=float(LATENCY_S[i]),
                first_token_s=0.1, prompt_tokens=int(PROMPT[i]), output_tokens=int(TOKENS[i]),
            )
        )  # fmt: skip
        recorder.score(ScoreRecord(f"r{i}", "exact", float(EXACT[i]), None, at_s))
    # What must not count: requests that named their version, and another version's.
    recorder.request(a_request("p", operation_id=None, arm="pinned", total_s=1e3, admitted_at_s=1.8e9))
    recorder.request(a_request("o", operation_id=None, assigned_version="v0", total_s=1e3, admitted_at_s=1.7e9))
    return recorder


@pytest.fixture(scope="module")
def store() -> Iterator[Recorder]:
    with Recorder(":memory:") as made:
        yield fill(made)


def clustered_variance(x: Any, y: Any) -> float:
    """Of Σx/Σy over users, by the delta method, written out."""
    sums = np.array([np.bincount(USER, v, USERS) for v in (x, y)])[:, np.bincount(USER, minlength=USERS) > 0]
    ratio = sums[0].sum() / sums[1].sum()
    return float(np.var(sums[0] - ratio * sums[1], ddof=1) / sums.shape[1] / sums[1].mean() ** 2)


def test_it_reads_what_is_there(store: Recorder) -> None:
    found = plan(store, Mean("latency_s"), effect=0.05)
    seen = found.observed
    assert (seen.model_id, seen.version, seen.requests) == ("bot", "v1", REQUESTS)
    assert seen.units == len(set(USER)) and math.isclose(seen.requests_per_unit, REQUESTS / seen.units)
    assert math.isclose(seen.value, LATENCY_S.mean()) and math.isclose(seen.std, LATENCY_S.std(ddof=1))
    assert math.isclose(seen.requests_per_s, RATE_PER_S * REQUESTS / (REQUESTS - 1), rel_tol=2e-3)
    effect = clustered_variance(LATENCY_S, np.ones(REQUESTS)) / (LATENCY_S.var(ddof=1) / REQUESTS)
    assert math.isclose(seen.design_effect, max(1.0, effect), rel_tol=1e-6)
    again = plan_experiment(
        0.05, std=seen.std,
        traffic=Traffic(requests_per_s=seen.requests_per_s, measured_design_effect=seen.design_effect),
    )  # fmt: skip
    assert (found.plan.n, found.plan.duration_s) == (again.n, again.n / seen.requests_per_s)
    assert math.isclose(found.plan.units, found.plan.n / seen.requests_per_unit, abs_tol=1)


def test_users_who_resemble_themselves_cost_what_the_clustered_variance_says(store: Recorder) -> None:
    found = plan(store, Rate("exact", margin=0.04), horizon="fixed")
    effect = clustered_variance(EXACT, np.ones(REQUESTS)) / (EXACT.mean() * (1 - EXACT.mean()) / REQUESTS)
    assert effect > 1.5 and math.isclose(found.observed.design_effect, effect, rel_tol=0.02)
    alone = plan_experiment(0.04, baseline_rate=float(EXACT.mean()), horizon="fixed")
    assert math.isclose(found.plan.n, alone.n * found.observed.design_effect, rel_tol=1e-3)
    assert found.plan.effect == 0.04


def test_a_covariate_leaves_one_minus_its_squared_correlation(store: Recorder) -> None:
    plain = plan(store, Mean("latency_s"), effect=0.05)
    found = plan(store, Mean("latency_s", covariate="prompt_tokens"), effect=0.05)
    counts = np.bincount(USER, minlength=USERS)
    there = counts > 0  # by user, as the experiment does it: sums against the mean prompt
    sums, prompts = (np.bincount(USER, v, USERS)[there] for v in (LATENCY_S - LATENCY_S.mean(), PROMPT))
    left = 1 - np.corrcoef(sums, prompts / counts[there])[0, 1] ** 2
    assert math.isclose(found.observed.variance_left, left, rel_tol=0.01) and left < 0.8
    assert math.isclose(found.plan.n / plain.plan.n, left, rel_tol=1e-2)
    assert "prompt_tokens takes out" in found.in_words()


def test_ratios_and_quantiles_have_a_spread_too(store: Recorder) -> None:
    ratio = plan(store, Ratio("output_tokens", "generation_s"), effect=5.0).observed
    seconds = LATENCY_S - 0.1
    value = TOKENS.sum() / seconds.sum()
    spread = np.std(TOKENS - value * seconds, ddof=1) / seconds.mean()
    assert math.isclose(ratio.value, value, rel_tol=1e-9) and math.isclose(ratio.std, spread, rel_tol=1e-3)
    quantile = plan(store, Quantile("latency_s", 0.5), effect=0.05).observed
    # The median of so many draws varies as much as that of samples drawn anew (a bootstrap).
    rng = np.random.default_rng(1)
    medians = np.median(rng.choice(LATENCY_S, (400, REQUESTS)), axis=1)
    assert math.isclose(quantile.std, medians.std() * math.sqrt(REQUESTS), rel_tol=0.2)


def test_the_rate_counts_all_versions_and_the_metric_its_own_requests(store: Recorder) -> None:
    long = plan(store, Mean("latency_s", where={"column": "prompt_tokens", "at_least": 55}), effect=0.05).observed  # type: ignore[arg-type]  # a dictionary is taken too
    assert long.requests == int((PROMPT >= 55).sum())
    assert math.isclose(long.requests_per_s, RATE_PER_S * long.requests / REQUESTS, rel_tol=2e-3)
    lately = plan(store, Mean("latency_s"), effect=0.05, last_hours=0.1).observed
    assert math.isclose(lately.requests, 360 * RATE_PER_S, abs_tol=2)
    assert math.isclose(lately.span_s, 360, rel_tol=1e-2)


def test_a_rate_near_its_end_plans_for_the_side_that_is_left(store: Recorder) -> None:
    found = plan(store, Rate("error", direction="increase", margin=0.02))
    assert found.observed.value == 0.0 and found.plan.effect == 0.02
    assert found.observed.design_effect == 1.0 and "not known" in found.in_words()
    assert plan(store, Rate("error", margin=0.02)).plan.effect == 0.02  # less than none is not possible


def test_a_file_is_read_beside_its_engine(store: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "logged.duckdb"
    with Recorder(path) as made:
        fill(made)
    here, there = plan(store, Mean("latency_s"), effect=0.05), plan(path, Mean("latency_s"), effect=0.05)
    assert here.in_words() == there.in_words() and here.plan.n == there.plan.n
    assert here.observed.std == pytest.approx(there.observed.std, rel=1e-9)  # sums may be taken in another order


@pytest.mark.parametrize(("horizon", "most"), [("fixed", 1.0), ("group-sequential", 1.03), ("anytime", 1.7)])
def test_words_and_figure(store: Recorder, horizon: str, most: float) -> None:
    found = plan(store, Rate("exact", margin=0.04), horizon=horizon)
    once = plan(store, Rate("exact", margin=0.04), horizon="fixed").plan.n
    assert once <= found.plan.n <= most * once + 1
    assert f"{found.plan.n:,} requests in both arms" in found.in_words() and "+4.0 points" in found.in_words()
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["observed"]["requests"] == REQUESTS and plain["metric"]["column"] == "exact"
    for width_in in (7.5, 4.0):
        chart = found.chart(width_in=width_in)
        assert chart.finding.startswith(f"{found.plan.n:,} requests find +4.0 points")
        assert chart.png()[:4] == b"\x89PNG" and "requests in both arms" in chart.axes[0].get_xlabel()
        (dot,) = [line for line in chart.axes[0].lines if len(line.get_xdata()) == 1]  # type: ignore[arg-type]  # arrays
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (found.plan.n, found.plan.power)  # type: ignore[index]


def test_a_plan_without_a_rate_has_a_figure_without_time() -> None:
    chart = power_chart(plan_experiment(0.1, std=1.0))
    assert len(chart.axes) == 2 and chart.png()


BAD: dict[str, Callable[[Recorder], Any]] = {
    "effect": lambda s: plan(s, Mean("latency_s")),
    "effect ": lambda s: plan(s, Mean("latency_s"), effect=0.0),
    "effect  ": lambda s: plan(s, Mean("latency_s"), effect=math.nan),
    "metric": lambda s: plan(s, Paired("exact", margin=0.1)),
    "metric ": lambda s: plan(s, Mean("exakt"), effect=0.1),
    "metric  ": lambda s: plan(s, Mean("first_token_s"), effect=0.1),  # it is 0.1 in every request
    "metric   ": lambda s: plan(s, Quantile("latency_s", 0.9999), effect=0.1),
    "metric.column": lambda s: plan(s, Rate("output_tokens"), effect=0.1),
    "version": lambda s: plan(s, Mean("latency_s"), effect=0.1, version="v9"),
    "model_id": lambda s: plan(s, Mean("latency_s"), effect=0.1, model_id="bott"),
    "last_hours": lambda s: plan(s, Mean("latency_s"), effect=0.1, last_hours=0.0),
    "share": lambda s: plan(s, Mean("latency_s"), effect=0.1, share=1.0),
    "horizon": lambda s: plan(s, Mean("latency_s"), effect=0.1, horizon="someday"),
    "looks": lambda s: plan(s, Mean("latency_s"), effect=0.1, horizon="group-sequential", looks=1),
    "source": lambda _: plan(object(), Mean("latency_s"), effect=0.1),  # type: ignore[arg-type]  # what is tested
}


@pytest.mark.parametrize("field", BAD)
def test_what_cannot_be_planned_is_named(store: Recorder, field: str) -> None:
    with pytest.raises(InvalidInput) as told:
        BAD[field](store)
    assert told.value.field == field.strip()


def test_stores_without_requests(tmp_path: Path) -> None:
    with Recorder(":memory:") as empty, pytest.raises(InvalidInput, match="a store with requests"):
        plan(empty, Mean("latency_s"), effect=0.1)
    with pytest.raises(StoreError, match="there is no store"):
        plan(tmp_path / "none.duckdb", Mean("latency_s"), effect=0.1)
    with Recorder(":memory:") as two:
        two.request(a_request("a", operation_id=None))
        two.request(a_request("b", operation_id=None, model_id="other", error_type="InstanceDied"))
        with pytest.raises(InvalidInput, match="one of bot, other"):
            plan(two, Mean("latency_s"), effect=0.1)
        with pytest.raises(InvalidInput, match="none has one"):
            plan(two, Mean("latency_s"), effect=0.1, model_id="other")
