"""Metrics as users write them: defaults, what is refused, the round trip through JSON, and which test they use."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from abswitch.errors import InvalidInput
from abswitch.stats import (
    CovariateSummary,
    Mean,
    MeanSummary,
    Metric,
    Paired,
    PairedRateSummary,
    PairedSummary,
    Quantile,
    QuantileSummary,
    Rate,
    RateSummary,
    Ratio,
    RatioCovariateSummary,
    RatioSummary,
    Segments,
    Where,
    clustered_mean_test,
    cuped_test,
    quantile_interval,
    quantile_test,
)
from abswitch.stats.metrics import check_design, metric_of, metric_to_dict

METRICS: list[Metric] = [
    Mean("latency_s", role="guardrail", margin=0.5),
    Mean("judge", margin=1),
    Rate("exact_match", name="accuracy"),
    Rate("error", direction="increase", role="secondary"),
    Ratio("output_tokens", "generation_s", role="secondary", name="tokens_per_s"),
    Paired("exact_match", margin=0.02),
    Quantile("latency_s", 0.95, role="guardrail", margin=0.2),
    Mean("judge", covariate="prompt_tokens", name="judge_adjusted", unit="unit"),
    Rate(
        "exact_match",
        name="long_prompts",
        where=[{"column": "prompt_tokens", "above": 10}, Where(column="unit_id", one_of=("a", "b"))],  # type: ignore[arg-type]
        segments={"column": "prompt_tokens", "edges": [32, 128]},  # type: ignore[arg-type]
    ),
    Mean("latency_s", segments="step", name="by_step"),  # type: ignore[arg-type]
    Quantile("first_token_s", 0.5, segments=Segments(column="unit_id", separator="/")),
]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_it_survives_json(metric: Metric) -> None:
    assert metric_of(json.loads(json.dumps(metric_to_dict(metric)))) == metric
    assert metric_of(metric) is metric


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        (Rate("exact_match"), "increase"),
        (Rate("error"), "decrease"),
        (Rate("fallback"), "decrease"),
        (Rate("truncated"), "decrease"),
        (Mean("latency_s"), "decrease"),
        (Mean("first_token_s"), "decrease"),
        (Mean("output_tokens"), "increase"),
        (Ratio("output_tokens", "generation_s"), "increase"),
        (Ratio("latency_s", "output_tokens"), "decrease"),
        (Mean("latency_s", direction="increase"), "increase"),
        (Quantile("latency_s", 0.95), "decrease"),
        (Paired("exact_match"), "increase"),
    ],
)
def test_nobody_wants_more_errors_by_default(metric: Metric, direction: str) -> None:
    assert metric.direction == direction
    assert metric.sign == (1 if direction == "increase" else -1)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (Mean("latency_s"), "latency_s"),
        (Ratio("a", "b"), "a_per_b"),
        (Rate("judge@v2+x"), "judge_v2_x"),
        (Rate("a", name="support/accuracy.v-1"), "support/accuracy.v-1"),
        (Quantile("latency_s", 0.95), "latency_s_p95"),
        (Quantile("latency_s", 0.999), "latency_s_p99.9"),
        (Paired("exact_match"), "exact_match"),
    ],
)
def test_names_are_keys_that_mlflow_takes(metric: Metric, name: str) -> None:
    assert metric.name == name


BAD: list[Any] = [
    lambda: Mean(""),
    lambda: Mean("no such column"),
    lambda: Mean(3),  # type: ignore[arg-type]
    lambda: Ratio("a", ""),
    lambda: Rate("a", direction="up"),
    lambda: Rate("a", direction=None),  # type: ignore[arg-type]
    lambda: Rate("a", role="main"),
    lambda: Rate("a", role="guardrail"),
    lambda: Rate("a", margin=0.0),
    lambda: Rate("a", margin=-0.1),
    lambda: Rate("a", margin=math.nan),
    lambda: Rate("a", margin=math.inf),
    lambda: Rate("a", margin=True),
    lambda: Rate("a", margin="0.1"),  # type: ignore[arg-type]
    lambda: Rate("a", name="100 %"),
    lambda: Rate("a", name="a@b"),
    lambda: Rate("a", name=0),  # type: ignore[arg-type]
    lambda: Quantile("latency_s", 95),
    lambda: Quantile("latency_s", 0.0),
    lambda: Quantile("latency_s", 1.0),
    lambda: Quantile("latency_s", math.nan),
    lambda: Quantile("latency_s", "0.95"),  # type: ignore[arg-type]
    lambda: Quantile("error", 0.5),
    lambda: Quantile("latency_s", 0.5, covariate="prompt_tokens"),
    lambda: Paired("a", covariate="prompt_tokens"),
    lambda: Paired("a", unit="unit"),
    lambda: Ratio("a", "b", unit="unit"),
    lambda: Mean("a", unit="user"),
    lambda: Mean("a", covariate="a"),
    lambda: Mean("a", covariate="latency_s"),
    lambda: Mean("a", covariate="unit_id"),
    lambda: Mean("a", covariate=3),  # type: ignore[arg-type]
    lambda: Rate("error", covariate="prompt_tokens"),
    lambda: Rate("error", where={"column": "prompt_tokens", "above": 3}),  # type: ignore[arg-type]
    lambda: Rate("fallback", segments={"column": "prompt_tokens", "edges": [3]}),  # type: ignore[arg-type]
    lambda: Mean("a", where="prompt_tokens > 3"),  # type: ignore[arg-type]
    lambda: metric_of({"kind": "quantile", "column": "latency_s"}),
    lambda: metric_of({"kind": "paired"}),
    lambda: metric_of("exact_match"),  # type: ignore[arg-type]
    lambda: metric_of({"column": "a"}),
    lambda: metric_of({"kind": "median", "column": "a"}),
    lambda: metric_of({"kind": "rate"}),
    lambda: metric_of({"kind": "ratio", "numerator": "a"}),
    lambda: metric_of({"kind": "rate", "column": "a", "weight": 2}),
]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_allowed_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        bad()
    assert caught.value.field.startswith("metric") and caught.value.allowed


MEANS = (MeanSummary.of([1.0, 2.0, 3.0]), MeanSummary.of([2.0, 3.0, 5.0]))
RATES = (RateSummary(50, 20), RateSummary(50, 30))
RATIOS = (RatioSummary.of([1.0, 2.0, 4.0], [2.0, 3.0, 5.0]), RatioSummary.of([2.0, 3.0, 3.0], [2.0, 3.0, 4.0]))


@pytest.mark.parametrize(
    ("metric", "summaries", "method"),
    [
        (Mean("x"), MEANS, "Welch"),
        (Rate("x"), RATES, "Newcombe"),
        (Ratio("x", "y"), RATIOS, "ratio of sums"),
        (Mean("x"), RATIOS, "clustered by unit"),
        (Rate("x"), RATIOS, "clustered by unit"),
    ],
)
def test_the_kind_chooses_the_test(metric: Metric, summaries: tuple[Any, Any], method: str) -> None:
    found = metric.compare(*summaries, alpha=0.1)
    assert method in found.method and found.alpha == 0.1
    assert math.isclose(found.estimate, summaries[1].mean - summaries[0].mean)


@pytest.mark.parametrize(
    ("metric", "a", "b"),
    [
        (Mean("x"), RATES[0], RATES[1]),
        (Rate("x"), MEANS[0], MEANS[1]),
        (Ratio("x", "y"), MEANS[0], MEANS[1]),
        (Mean("x"), RATIOS[0], MEANS[1]),
        (Rate("x"), RATES[0], RATIOS[1]),
    ],
)
def test_summaries_of_another_kind_are_refused(metric: Metric, a: Any, b: Any) -> None:
    with pytest.raises(InvalidInput, match="summary"):
        metric.compare(a, b, alpha=0.05)


def test_pairs_are_compared_within_prompts() -> None:
    rates = PairedRateSummary(both=40, candidate_only=15, baseline_only=5, neither=20)
    found = Paired("exact_match").compare(rates, rates, alpha=0.1)
    assert "McNemar" in found.method and found.estimate == pytest.approx(10 / 80) and found.alpha == 0.1
    scores = PairedSummary.of([0.2, 0.5, 0.9], [0.3, 0.9, 1.0])
    found = Paired("judge").compare(scores, scores, alpha=0.05)
    assert found.method == "paired t" and found.estimate == pytest.approx(0.2) and found.baseline.n == 3


def test_pairs_of_another_comparison_are_refused() -> None:
    a, b = PairedSummary.of([0.2, 0.5], [0.3, 0.9]), PairedSummary.of([0.2, 0.5], [0.3, 0.8])
    for summaries in ((a, b), RATES, (MEANS[0], MEANS[0])):
        with pytest.raises(InvalidInput):
            Paired("judge").compare(*summaries, alpha=0.05)


def test_what_says_nothing_is_left_out_of_a_dictionary_so_that_plans_keep_their_digests() -> None:
    assert metric_to_dict(Mean("judge")) == {
        "kind": "mean", "direction": "increase", "role": "primary", "margin": None, "name": "judge", "column": "judge",
    }  # fmt: skip


def test_quantiles_are_compared_by_order_statistics() -> None:
    a, b = [float(i) for i in range(500)], [float(i) + 30 for i in range(500)]
    summaries = [QuantileSummary.of(values, 0.95) for values in (a, b)]
    want = quantile_test(*(quantile_interval(values, 0.95, alpha=0.1) for values in (a, b)))
    assert Quantile("latency_s", 0.95).compare(summaries[0], summaries[1], alpha=0.1) == want
    with pytest.raises(InvalidInput, match=r"summary\.q"):
        Quantile("latency_s", 0.5).compare(summaries[0], summaries[1], alpha=0.1)


def covariates(n: int, *, seed: int, shift: float = 0.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    return z + 0.3 * rng.normal(size=n) + shift, z


def test_covariates_narrow_means() -> None:
    (y_a, z_a), (y_b, z_b) = covariates(300, seed=1), covariates(300, seed=2, shift=0.1)
    a, b = CovariateSummary.of(y_a, z_a), CovariateSummary.of(y_b, z_b)
    found = Mean("judge", covariate="difficulty").compare(a, b, alpha=0.05)
    assert (
        found == cuped_test(a, b)
        and found.standard_error
        < 0.5 * Mean("judge").compare(a.without_covariate, b.without_covariate, alpha=0.05).standard_error
    )


def test_covariates_narrow_ratios_and_units_with_several_requests() -> None:
    rng = np.random.default_rng(3)
    arms = []
    for _ in range(2):
        z, counts = rng.normal(size=200), rng.integers(1, 6, size=200).astype(float)
        arms.append(RatioCovariateSummary.of(counts * (5 + z + 0.2 * rng.normal(size=200)), counts, z))
    for metric in (Mean("judge", covariate="difficulty"), Ratio("x", "y", covariate="difficulty")):
        found = metric.compare(arms[0], arms[1], alpha=0.05)
        plain = clustered_mean_test(arms[0].ratio, arms[1].ratio)
        assert found.method.startswith("CUPED") and found.standard_error < 0.6 * plain.standard_error
        assert abs(found.estimate) < 4 * found.standard_error


def test_rates_are_adjusted_where_outcomes_are_not_rare() -> None:
    rng = np.random.default_rng(4)
    arms, rare = [], []
    for _ in range(2):
        z = rng.normal(size=400)
        arms.append(CovariateSummary.of((z + 0.5 * rng.normal(size=400) > 0).astype(float), z))
        rare.append(CovariateSummary.of((np.arange(400) < 3).astype(float), z))
    metric = Rate("exact_match", covariate="difficulty")
    assert "CUPED" in metric.compare(arms[0], arms[1], alpha=0.05).method
    found = metric.compare(rare[0], rare[1], alpha=0.05)
    assert "Newcombe" in found.method and "without the covariate" in found.notes[-1]
    by_unit = [RatioCovariateSummary.of(np.eye(1, 50)[0], np.ones(50), rng.normal(size=50)) for _ in range(2)]
    found = metric.compare(by_unit[0], by_unit[1], alpha=0.05)
    assert "clustered by unit" in found.method and "without the covariate" in found.notes[-1]
    with pytest.raises(InvalidInput):
        metric.compare(by_unit[0], arms[0], alpha=0.05)


def test_units_may_weigh_the_same() -> None:
    means = [RatioSummary.of(values, [1.0] * 4) for values in ([0.1, 0.5, 0.9, 1.0], [0.2, 0.4, 0.9, 1.0])]
    for metric in (Mean("judge", unit="unit"), Rate("exact", unit="unit")):
        found = metric.compare(means[0], means[1], alpha=0.05)
        welch = Mean("judge").compare(
            *(MeanSummary.of(v) for v in ([0.1, 0.5, 0.9, 1.0], [0.2, 0.4, 0.9, 1.0])), alpha=0.05
        )
        assert found.method.startswith("mean over units") and found.p_value == pytest.approx(welch.p_value)
    none = [RatioSummary.of([0.0] * 30, [1.0] * 30)] * 2
    assert Rate("error", unit="unit").compare(none[0], none[1], alpha=0.05).attainable


def test_designs_take_the_metrics_that_they_can_hold() -> None:
    check_design([Mean("a", covariate="b", unit="unit"), Quantile("latency_s", 0.5)], "randomised")
    check_design([Mean("a", where=(Where(column="step", equals=1),)), Paired("b")], "paired")
    with pytest.raises(InvalidInput, match="no prompt meets both"):
        check_design([Paired("a")], "randomised")
    for design in ("paired", "switchback"):
        with pytest.raises(InvalidInput, match="units of a"):
            check_design([Mean("a", unit="unit")], design)
