"""One metric at one look: which method reads it, that arms may be swapped, and what peeking costs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats import (
    AnalysisPlan,
    Comparison,
    CovariateSummary,
    Mean,
    MeanSummary,
    Metric,
    Quantile,
    QuantileSummary,
    Rate,
    RateSummary,
    Ratio,
    RatioCovariateSummary,
    RatioSummary,
)
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.looks import Look, alpha_spent, compare_at, finding_of

RNG = np.random.default_rng(11)


def plan_for(metric: Metric, evaluation: str = "sequential", **changes: Any) -> AnalysisPlan:
    given: dict[str, Any] = {
        "baseline": "v1", "candidate": "v2", "metrics": (replace(metric, role="primary"),), "expected_share": 0.5,
        "planned_n": 800, "evaluation": evaluation,
    }  # fmt: skip
    return AnalysisPlan(**given | changes)


def at(
    metric: Metric, a: MetricSummary, b: MetricSummary, evaluation: str = "sequential", **changes: Any
) -> Comparison:
    look = Look(number=2, last=False, fractions=(0.2, 0.5) if evaluation == "group_sequential" else ())
    return compare_at(plan_for(metric, evaluation, **changes), metric, a, b, look)


def normal(n: int, mean: float, spread: float = 1.0) -> MeanSummary:
    return MeanSummary.from_moments(n, mean, spread**2)


def clustered(n: int, rate: float) -> RatioSummary:
    return RatioSummary.of(RNG.binomial(5, rate, n), np.full(n, 5.0))


ARMS: list[tuple[Metric, MetricSummary, MetricSummary]] = [
    (Mean("judge"), normal(200, 1.0), normal(200, 1.4)),
    (Rate("ok"), RateSummary(200, 120), RateSummary(200, 150)),
    (Rate("error"), RateSummary(200, 2), RateSummary(200, 9)),
    (Rate("ok"), RateSummary(200, 200), RateSummary(200, 200)),
    (Rate("ok"), clustered(200, 0.5), clustered(200, 0.7)),
    (Rate("error"), clustered(200, 0.01), clustered(200, 0.03)),
    (Ratio("output_tokens", "latency_s"), clustered(200, 0.5), clustered(200, 0.6)),
    (
        Mean("judge", covariate="prompt_tokens"),
        CovariateSummary.of(RNG.normal(1, 1, 200), RNG.normal(5, 1, 200)),
        CovariateSummary.of(RNG.normal(2, 1, 200), RNG.normal(5, 1, 200)),
    ),
    (
        Quantile("latency_s", 0.5),
        QuantileSummary.of(RNG.lognormal(0, 1, 200), 0.5),
        QuantileSummary.of(RNG.lognormal(1, 1, 200), 0.5),
    ),
]


@pytest.mark.parametrize("evaluation", ["fixed", "sequential", "group_sequential"])
@pytest.mark.parametrize(("metric", "a", "b"), ARMS, ids=[f"{m.kind} {type(a).__name__}" for m, a, _ in ARMS])
def test_swapping_the_arms_turns_the_difference(
    metric: Metric, a: MetricSummary, b: MetricSummary, evaluation: str
) -> None:
    there, back = at(metric, a, b, evaluation), at(metric, b, a, evaluation)
    assert there.attainable and back.attainable
    for left, right in ((there.low, -back.high), (there.high, -back.low), (there.estimate, -back.estimate)):
        assert math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-9)
    assert there.low <= there.estimate <= there.high
    assert there.alpha == 0.05 and there.look == (None if evaluation == "fixed" else 2)


def test_repeated_looks_cost_width() -> None:
    for metric, a, b in ARMS:
        single = at(metric, a, b, "fixed")
        for evaluation in ("sequential", "group_sequential"):
            found = at(metric, a, b, evaluation)
            assert found.low <= single.low and found.high >= single.high, (metric, evaluation)


METHODS: list[tuple[Metric, MetricSummary, MetricSummary, str]] = [
    (Rate("ok"), RateSummary(200, 120), RateSummary(200, 150), "mixture SPRT"),
    (Rate("ok"), RateSummary(200, 1), RateSummary(200, 5), "beta-binomial"),
    (Rate("ok"), RateSummary(200, 200), RateSummary(200, 195), "beta-binomial"),
    (Rate("error"), RateSummary(200, 60), RateSummary(200, 50), "mixed bets"),
    (Rate("ok"), RateSummary(4, 2), RateSummary(4, 3), "beta-binomial"),
    (Rate("ok"), clustered(200, 0.5), clustered(200, 0.6), "rate, clustered by unit"),
    (Rate("error"), RatioSummary.of([0.0] * 9, [4.0] * 9), RatioSummary.of([0.0] * 8, [4.0] * 8), "beta-binomial"),
    (Mean("judge"), normal(50, 1.0), normal(50, 1.0), "Welch t; mixture SPRT"),
    (Mean("judge"), clustered(50, 0.5), clustered(50, 0.5), "mean, clustered by unit"),
    (Quantile("latency_s", 0.5), *(QuantileSummary.of(RNG.normal(size=99), 0.5),) * 2, "confidence sequences"),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "a", "b", "method"), METHODS, ids=[method for *_, method in METHODS])
def test_the_method_follows_from_metric_and_evidence(
    metric: Metric, a: MetricSummary, b: MetricSummary, method: str
) -> None:
    found = at(metric, a, b)
    assert found.attainable and method in found.method


def test_a_unit_without_any_error_counts_once() -> None:
    arms = (RatioSummary.of([0.0] * 60, [10.0] * 60), RatioSummary.of([0.0] * 50, [10.0] * 50))
    found, cautious = at(Rate("error"), *arms), at(Rate("ok"), RateSummary(60, 0), RateSummary(50, 0))
    assert (found.low, found.high) == (cautious.low, cautious.high)
    assert (found.baseline.n, found.candidate.n) == (60, 50)


def test_heavy_tails_in_a_small_arm_have_no_result_but_by_logarithms() -> None:
    latencies = [RNG.lognormal(0.0, 1.5, n) for n in (760, 40)]
    a, b = (MeanSummary.of(one) for one in latencies)
    raw = at(Mean("latency_s"), a, b, expected_share=0.05)
    a, b = (MeanSummary.of(np.log(one)) for one in latencies)
    logs = at(Mean("log_latency_s"), a, b, expected_share=0.05)
    assert not raw.attainable and "compare logarithms" in str(raw.why_not)
    assert logs.attainable


def test_a_covariate_waits_for_the_least_units() -> None:
    metric, few = Mean("judge", covariate="prompt_tokens"), CovariateSummary.of([1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    found = at(metric, few, few)
    assert not found.attainable and "20 are the least" in str(found.why_not)


def test_an_adjusted_ratio_is_read_at_any_time() -> None:
    x, z = RNG.binomial(5, 0.5, 300), RNG.normal(size=300)
    arms = [
        RatioCovariateSummary(RatioSummary.of(part, [5.0] * 150), 0.0, 149.0, 0.0, 0.0) for part in (x[:150], x[150:])
    ]
    assert z.size == 300 and at(Mean("judge", covariate="prompt_tokens"), arms[0], arms[1]).attainable


def test_quantiles_of_units_use_what_their_values_are_worth() -> None:
    base = RNG.normal(size=(2, 60, 1))
    values = (base + 0.3 * RNG.normal(size=(2, 60, 20))).reshape(2, -1)
    units = np.repeat(np.arange(60), 20)
    alike = [QuantileSummary.of(one, 0.5, units=units) for one in values]
    alone = [QuantileSummary.of(one, 0.5) for one in values]
    metric = Quantile("latency_s", 0.5)
    wide = at(metric, alike[0], alike[1], planned_n=2400)
    narrow = at(metric, alone[0], alone[1], planned_n=2400)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    few = [QuantileSummary.of(one[:200], 0.95, units=units[:200]) for one in values]
    assert not at(Quantile("latency_s", 0.95), few[0], few[1]).attainable


@given(st.floats(0.1, 50), st.integers(5, 300), st.integers(5, 300))
def test_units_of_measurement_scale_the_interval(scale: float, n: int, m: int) -> None:
    metric = Mean("judge")
    plain = at(metric, normal(n, 1.0), normal(m, 1.5))
    moved = at(metric, normal(n, scale, scale), normal(m, 1.5 * scale, scale))
    assert plain.attainable == moved.attainable
    if plain.attainable:
        assert math.isclose(moved.low, scale * plain.low, rel_tol=1e-6, abs_tol=1e-9 * scale)
        assert math.isclose(moved.p_value, plain.p_value, rel_tol=1e-4)


def test_the_wrong_summary_is_refused() -> None:
    cases: list[tuple[Metric, MetricSummary]] = [
        (Quantile("latency_s", 0.9), QuantileSummary(q=0.5, n=0)),
        (Quantile("latency_s", 0.9), RateSummary(3, 1)),
        (Rate("ok"), MeanSummary(3, 0.5, 1.0)),
        (Rate("ok"), RatioSummary.of([9.0, 8.0], [2.0, 2.0])),
        (Mean("judge"), QuantileSummary(q=0.5, n=0)),
    ]
    for metric, summary in cases:
        with pytest.raises(InvalidInput, match="summary"):
            at(metric, summary, summary)


# --- planned looks ----------------------------------------------------------------------------------------------------


def test_the_last_planned_look_may_spend_what_is_left() -> None:
    metric = Rate("ok")
    plan, arms = plan_for(metric, "group_sequential", look_count=4), (RateSummary(400, 200), RateSummary(400, 230))
    looks = [Look(number=k, last=k == 4, fractions=tuple(i / 4 for i in range(1, k + 1))) for k in (1, 2, 3, 4)]
    spent = [alpha_spent(plan, look) for look in looks]
    assert spent == sorted(spent) and spent[-1] == 0.05
    widths = [compare_at(plan, metric, *arms, look) for look in looks]
    assert all(a.high - a.low > b.high - b.low for a, b in itertools.pairwise(widths))
    early = Look(number=1, last=True, fractions=(0.25,))
    found, single = compare_at(plan, metric, *arms, early), metric.compare(*arms, alpha=0.05)
    assert (found.low, found.high) == pytest.approx((single.low, single.high))
    assert found.p_value == pytest.approx(single.p_value, rel=1e-2)


def test_too_early_a_look_excludes_nothing() -> None:
    plan = plan_for(Rate("ok"), "group_sequential")
    found = compare_at(plan, Rate("ok"), *(RateSummary(5, 2),) * 2, Look(number=1, last=False, fractions=(0.01,)))
    assert not found.attainable and "too early" in str(found.why_not)


def test_looks_are_counted_from_one_with_a_fraction_each() -> None:
    cases: list[dict[str, Any]] = [{"number": 0}, {"number": 2, "fractions": (0.5,)}]
    for bad in cases:
        with pytest.raises(InvalidInput, match="look"):
            Look(**bad)
    with pytest.raises(InvalidInput, match="group sequential"):
        compare_at(plan_for(Rate("ok"), "group_sequential"), Rate("ok"), *(RateSummary(9, 3),) * 2, Look())


@pytest.mark.parametrize(
    ("metric", "low", "high", "word"),
    [
        (Rate("ok", margin=0.1), -0.05, 0.05, "equivalent"),
        (Rate("ok", margin=0.1), 0.01, 0.3, "better"),
        (Rate("error"), 0.01, 0.3, "worse"),
        (Rate("ok"), -0.1, 0.3, "undecided"),
        (Rate("error", role="guardrail", margin=0.1), -0.1, 0.05, "non-inferior"),
        (Rate("error", role="guardrail", margin=0.1), 0.2, 0.3, "harmed"),
        (Rate("error", role="guardrail", margin=0.1), -0.1, 0.3, "undecided"),
    ],
)
def test_a_finding_in_a_word(metric: Metric, low: float, high: float, word: str) -> None:
    found = at(Rate("ok"), RateSummary(100, 50), RateSummary(100, 50))
    assert finding_of(metric, replace(found, estimate=(low + high) / 2, low=low, high=high)) == word
    assert finding_of(metric, replace(found, why_not="no data")) == "not attainable"
