"""A metric that is named nearly right is refused with its right name; any other name may be somebody's scorer."""

from __future__ import annotations

from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.rollout.judging import Guardrail
from abswitch.rollout.measured import BUILT_IN, slip_for, unmeasured
from abswitch.rollout.strategies import strategy_of


@pytest.mark.parametrize(
    ("metric", "meant"),
    [
        ("latency_p95", ["latency_p95_s (in seconds)"]),
        ("latency_p95_ms", ["latency_p95_s (in seconds)"]),
        ("p95_latency", ["latency_p95_s (in seconds)"]),
        ("Latency-P99", ["latency_p99_s (in seconds)"]),
        ("first_token_p95", ["first_token_p95_s (in seconds)"]),
        ("latency_s", ["latency_p50_s", "latency_p95_s", "latency_p99_s"]),
        ("latency_p90_s", ["latency_p50_s", "latency_p95_s", "latency_p99_s"]),
        ("latncy_p95_s", ["latency_p50_s", "latency_p95_s", "latency_p99_s"]),
        ("errorrate", ["error_rate (a fraction from 0 to 1)"]),
        ("error_rates", ["error_rate (a fraction from 0 to 1)"]),
        ("erorr_rate", ["error_rate (a fraction from 0 to 1)"]),
    ],
)
def test_a_near_miss_is_refused_with_the_right_name(metric: str, meant: list[str]) -> None:
    for field, strategy, given in (
        ("guardrail.metric", "canary", {"guardrails": [{"metric": metric, "max": 5000}]}),
        ("strategy_config.reward", "bandit", {"reward": metric}),
    ):
        with pytest.raises(InvalidInput) as caught:
            strategy_of(strategy, given)
        assert (caught.value.field, caught.value.value) == (field, metric)
        assert all(name in caught.value.allowed for name in meant)


@pytest.mark.parametrize("metric", [*BUILT_IN, "exact_match", "judge", "thumbs_up", "mirror_rate", "rate", "p95", "s"])
def test_what_is_measured_or_another_name_is_taken(metric: str) -> None:
    assert Guardrail(metric, max=1).metric == metric


def test_a_duration_is_no_reward() -> None:
    with pytest.raises(InvalidInput, match="a scorer of 0 and 1, or error_rate"):
        strategy_of("bandit", {"reward": "latency_p95_s"})


@pytest.mark.parametrize("given", ["exact_mach", "exact_mtach", "exact_matchh", "exactmatch", "Exact-Match"])
def test_a_slip_for_a_scorer(given: str) -> None:
    assert slip_for(given, ("judge", "exact_match")) == "exact_match"


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("exact_match", "exact_match"),
        ("judge2", "judge"),
        ("top_a", "top_b"),
        ("match", "exact_match"),
        ("good", "judge"),
    ],
)
def test_another_name_is_no_slip(given: str, known: str) -> None:
    assert slip_for(given, (known,)) is None


@pytest.mark.parametrize(
    ("strategy", "given", "asked", "unknown"),
    [
        ("canary", {"guardrails": [{"metric": "thumbs", "min": 0.5}, {"metric": "exact", "min": 0.5}]}, 2, ("thumbs",)),
        ("bandit", {"reward": "thumbs"}, 1, ("thumbs",)),
        ("bandit", {}, 1, ()),
        ("gradual", {}, 0, ()),
    ],
)
def test_what_nothing_measures(strategy: str, given: dict[str, Any], asked: int, unknown: tuple[str, ...]) -> None:
    metrics = strategy_of(strategy, given).metrics
    assert (len(metrics), unmeasured(metrics, ("exact",))) == (asked, unknown)
