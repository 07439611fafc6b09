"""Evidence that can carry no result has a named outcome, never a number that looks fine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    CovariateSummary,
    Evidence,
    Mean,
    MeanSummary,
    Metric,
    MetricSummary,
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
    decide,
)

Make = Callable[[Any], MetricSummary]
UNITS = 200
ONCE = "fixed horizon: one look, when the planned number of units is reached"


def alike(values: Any) -> Any:
    return np.linspace(0.0, 1.0, len(values))


KINDS: dict[str, tuple[Metric, Make]] = {
    "mean": (Mean("x"), MeanSummary.of),
    "ratio": (Ratio("x", "y"), lambda v: RatioSummary.of(v, np.ones(len(v)))),
    "mean by unit": (Mean("x"), lambda v: RatioSummary.of(v, np.full(len(v), 2.0))),
    "mean, adjusted": (Mean("x", covariate="z"), lambda v: CovariateSummary.of(v, alike(v))),
    "ratio, adjusted": (
        Ratio("x", "y", covariate="z"),
        lambda v: RatioCovariateSummary.of(v, np.ones(len(v)), alike(v)),
    ),
    "median": (Quantile("x", 0.5), lambda v: QuantileSummary.of(v, 0.5)),
    "median by unit": (Quantile("x", 0.5), lambda v: QuantileSummary.of(v, 0.5, units=list(range(len(v))))),
}
RATES: dict[str, tuple[Metric, Make]] = {
    "rate": (Rate("x"), RateSummary.of),
    "rate by unit": (Rate("x"), lambda v: RatioSummary.of(v, np.ones(len(v)))),
    "rate, adjusted": (Rate("x", covariate="z"), lambda v: CovariateSummary.of(v, alike(v))),
}
GOOD = np.arange(UNITS) % 2


def verdict_of(metric: Metric, baseline: MetricSummary | None, candidate: MetricSummary | None, **changes: Any) -> Any:
    plan = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=(metric,), expected_share=0.5, planned_n=2 * UNITS, looks=ONCE
    )
    arms = [
        ArmEvidence(
            version=version,
            assigned=UNITS,
            analysed=UNITS,
            requests=UNITS,
            summaries={} if summary is None else {metric.name: summary},
        )
        for version, summary in (("v1", baseline), ("v2", candidate))
    ]
    return decide(plan, Evidence(baseline=arms[0], candidate=arms[1], plan_digest=plan.digest(), **changes))


def has_no_numbers(metric: Metric, baseline: MetricSummary, candidate: MetricSummary) -> None:
    found = metric.compare(baseline, candidate, alpha=0.05)
    assert str(found.why_not).startswith("not attainable: ")
    plain = found.to_dict()
    assert [plain[name] for name in ("estimate", "low", "high", "p_value", "standard_error")] == [None] * 5


@pytest.mark.parametrize("kind", [*KINDS, *RATES])
@pytest.mark.parametrize("n", [0, 1])
def test_an_empty_arm_and_a_single_observation(kind: str, n: int) -> None:
    metric, of = (KINDS | RATES)[kind]
    for arms in ((of(GOOD), of(GOOD[:n])), (of(GOOD[:n]), of(GOOD)), (of(GOOD[:n]), of(GOOD[:n]))):
        if kind in KINDS or n == 0:
            has_no_numbers(metric, *arms)
        verdict = verdict_of(metric, *arms)
        assert (verdict.decision, verdict.rule) == ("invalid", "metric-missing" if n == 0 else "too-few-units")


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_metric_says_nothing_about_chance(kind: str) -> None:
    metric, of = KINDS[kind]
    arms = of(np.full(UNITS, 0.1)), of(np.full(UNITS, 0.3))
    has_no_numbers(metric, *arms)
    verdict = verdict_of(metric, *arms)
    assert (verdict.decision, verdict.rule) == ("invalid", "not-attainable")


@pytest.mark.parametrize("kind", RATES)
def test_a_rate_without_a_single_event_still_has_an_interval(kind: str) -> None:
    metric, of = RATES[kind]
    found = metric.compare(of(np.zeros(UNITS)), of(np.zeros(UNITS)), alpha=0.05)
    assert found.attainable and found.estimate == 0.0 and -0.03 < found.low < 0.0 < found.high < 0.03


@pytest.mark.parametrize("kind", [*KINDS, *RATES])
def test_a_metric_missing_in_one_arm(kind: str) -> None:
    metric, of = (KINDS | RATES)[kind]
    for arms in ((of(GOOD), None), (None, of(GOOD))):
        verdict = verdict_of(metric, *arms)
        assert (verdict.decision, verdict.rule) == ("invalid", "metric-missing") and not verdict.comparisons


@pytest.mark.parametrize("kind", [*KINDS, *RATES])
def test_units_in_both_arms(kind: str) -> None:
    metric, of = (KINDS | RATES)[kind]
    verdict = verdict_of(metric, of(GOOD), of(GOOD), crossed_units=1)
    assert verdict.rule == "units-crossed" and verdict.headline.startswith("INVALID: ")


@pytest.mark.parametrize("kind", [*KINDS, *RATES])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "1", None, [1.0]])
def test_values_that_are_no_finite_numbers_are_refused(kind: str, bad: Any) -> None:
    _, of = (KINDS | RATES)[kind]
    with pytest.raises(InvalidInput):
        of([1.0, bad, 0.0])


@pytest.mark.parametrize(("q", "least"), [(0.95, 110), (0.99, 555)])
def test_too_few_values_for_a_quantile(q: float, least: int) -> None:
    metric = Quantile("latency_s", q)
    few, enough = (QuantileSummary.of(np.arange(float(n)), q) for n in (least - 1, least))
    has_no_numbers(metric, enough, few)
    assert f"needs {least} values, and there are {least - 1}" in str(metric.compare(few, few, alpha=0.05).why_not)
    assert metric.compare(enough, enough, alpha=0.05).attainable
    verdict = verdict_of(metric, few, few)
    assert verdict.rule == "not-attainable" and "INVALID" in verdict.headline


def test_too_few_pairs_and_pairs_that_differ_alike() -> None:
    for values in ([], [0.5], [0.1, 0.2, 0.3]):
        pairs = PairedSummary.of(values, [value + 0.5 for value in values])
        has_no_numbers(Paired("judge"), pairs, pairs)
    none = PairedRateSummary.of([], [])
    has_no_numbers(Paired("exact"), none, none)


def test_requests_of_one_unit_are_never_taken_for_independent() -> None:
    for kind in ("mean", "mean, adjusted", "median", "rate"):
        metric, of = (KINDS | RATES)[kind]
        with pytest.raises(InvalidInput, match="as units have several requests each"):
            verdict_of(metric, of(GOOD), of(GOOD), repeated_units=3)
    for kind in ("ratio", "ratio, adjusted", "median by unit", "rate by unit"):
        metric, of = (KINDS | RATES)[kind]
        assert verdict_of(metric, of(GOOD), of(GOOD), repeated_units=3).decision != "ship"


def test_a_spread_below_zero_is_rounding_or_no_data() -> None:
    assert MeanSummary(100, 1e6, -1e-3).variance == 0.0
    assert CovariateSummary(100, 1e6, 1.0, -1e-3, 5.0, 0.0).m2 == 0.0
    proportional = RatioCovariateSummary.of(np.arange(50) * 0.1, np.arange(50.0), np.arange(50) ** 0.5)
    assert proportional.linearised.m2 == 0.0
    has_no_numbers(Ratio("x", "y", covariate="z"), proportional, proportional)
    for bad in (
        lambda: MeanSummary(100, 1.0, -1.0),
        lambda: CovariateSummary(100, 1.0, 1.0, -1.0, 5.0, 0.0),
        lambda: CovariateSummary(100, 1.0, 1.0, 1.0, 1.0, 5.0),
    ):
        with pytest.raises(InvalidInput):
            bad()


def test_denominators_of_zero() -> None:
    nothing = RatioCovariateSummary.of(np.ones(30), np.zeros(30), np.arange(30.0))
    has_no_numbers(Ratio("x", "y", covariate="z"), nothing, nothing)
    has_no_numbers(Ratio("x", "y"), nothing.ratio, nothing.ratio)


def test_a_ratio_beyond_what_a_number_can_hold() -> None:
    tiny = RatioCovariateSummary.of([1.0, 2.0], [1e-313, 1e-313], [0.0, 1.0])
    has_no_numbers(Ratio("x", "y", covariate="z"), tiny, tiny)


NUMBER = st.floats(0, 1e4) | st.integers(0, 3).map(float)


@settings(max_examples=400, deadline=None)
@given(rows=st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=30))
def test_whatever_was_measured_has_a_result_or_a_reason(rows: list[tuple[float, float, float]]) -> None:
    x, y, z = np.array(rows).T
    for metric, summary in (
        (Ratio("x", "y", covariate="z"), RatioCovariateSummary.of(x, y, z)),
        (Ratio("x", "y"), RatioSummary.of(x, y)),
        (Mean("x", covariate="z"), CovariateSummary.of(x, z)),
        (Quantile("x", 0.5), QuantileSummary.of(x, 0.5)),
    ):
        found = metric.compare(summary, summary, alpha=0.05)
        ends = (found.estimate, found.low, found.high, found.p_value)
        assert all(map(math.isfinite, ends)) if found.attainable else all(map(math.isnan, ends)) and found.why_not


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf, "0.1", True, None])
def test_margins_that_are_none(margin: Any) -> None:
    for make in (Mean, Rate, Paired, lambda column, **rest: Quantile(column, 0.95, **rest)):
        with pytest.raises(InvalidInput, match=r"metric\.margin"):
            make("latency", role="guardrail", margin=margin)
