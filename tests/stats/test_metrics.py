"""Metrics as users write them: defaults, what is refused, the round trip through JSON, and which test they use."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.stats import (
    Mean,
    MeanSummary,
    Metric,
    Paired,
    PairedRateSummary,
    PairedSummary,
    Rate,
    RateSummary,
    Ratio,
    RatioSummary,
)
from abswitch.stats.metrics import metric_of, metric_to_dict

METRICS: list[Metric] = [
    Mean("latency_s", role="guardrail", margin=0.5),
    Mean("judge", margin=1),
    Rate("exact_match", name="accuracy"),
    Rate("error", direction="increase", role="secondary"),
    Ratio("output_tokens", "generation_s", role="secondary", name="tokens_per_s"),
    Paired("exact_match", margin=0.02),
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
