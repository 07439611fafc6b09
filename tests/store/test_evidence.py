"""From recorded rows to the evidence that a decision reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from abswitch.domain import RouteRecord, ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.stats import (
    AnalysisPlan,
    CovariateSummary,
    Mean,
    MeanSummary,
    Metric,
    Paired,
    Quantile,
    QuantileSummary,
    Rate,
    RateSummary,
    Ratio,
    RatioSummary,
    Segments,
    Summary,
    Where,
    decide,
    segment_findings,
)
from abswitch.stats.selection import NO_SEGMENT, OTHERS
from abswitch.store.evidence import check_columns, collect_evidence
from abswitch.store.measured import MOST_SEGMENTS
from abswitch.store.recorder import PlanRecord, Recorder
from tests.patience import PATIENCE_S
from tests.store.rows import a_request, routes_of

METRICS = (
    Rate("exact"),
    Rate("error", role="guardrail", direction="decrease", margin=0.05),
    Mean("latency_s", role="secondary", direction="decrease"),
    Ratio("output_tokens", "generation_s", role="secondary", name="tokens_per_s"),
)
PLAN = AnalysisPlan(baseline="v1", candidate="v2", metrics=METRICS, expected_share=0.5, planned_n=400)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(":memory:") as made:
        for arm in routes_of("op"):
            made.route(arm)
        yield made


def a_hit(recorder: Recorder, name: str, arm: str, *, exact: float | None = 1.0, **changes: Any) -> None:
    version = {"stable": "v1", "candidate": "v2"}[arm]
    row = {"arm": arm, "assigned_version": version, "served_version": version, "unit_id": f"unit-{name}"} | changes
    recorder.request(a_request(name, **row))
    if not row.get("error_type") and not row.get("fallback"):
        recorder.score(ScoreRecord(name, "exact", exact, None if exact is not None else "ValueError", 1.0))


def test_summaries_are_those_of_the_arrays(recorder: Recorder) -> None:
    rng = np.random.default_rng(7)
    drawn: dict[str, list[tuple[float, float, float, int]]] = {"stable": [], "candidate": []}
    for i in range(400):
        arm = "candidate" if rng.random() < 0.5 else "stable"
        first, total = float(rng.exponential(0.01)), float(rng.exponential(0.1)) + 0.05
        exact, tokens = float(rng.random() < 0.7), int(rng.integers(1, 50))
        drawn[arm].append((exact, total, total - first, tokens))
        a_hit(recorder, f"r{i}", arm, exact=exact, first_token_s=first, total_s=total, output_tokens=tokens)
    evidence = collect_evidence(recorder, "op", PLAN)
    for arm, got in (("stable", evidence.baseline), ("candidate", evidence.candidate)):
        table = np.array(drawn[arm])
        assert got.summaries["exact"] == RateSummary.of(table[:, 0])
        assert got.summaries["error"] == RateSummary(len(table), 0)
        assert near(got.summaries["latency_s"], MeanSummary.of(table[:, 1]))
        assert near(got.summaries["tokens_per_s"], RatioSummary.of(table[:, 3], table[:, 2]))
        assert (got.assigned, got.analysed, got.requests) == (len(table),) * 3
    assert (evidence.repeated_units, evidence.crossed_units, evidence.dropped_rows) == (0, 0, 0)


def near(left: Any, right: Any) -> bool:
    if isinstance(left, QuantileSummary | RateSummary):
        return bool(left == right)
    names = [name for name in left.__slots__ if name != "n"]
    same = all(math.isclose(getattr(left, name), getattr(right, name), rel_tol=1e-9) for name in names)
    return bool(type(left) is type(right) and left.n == right.n and same)


def test_fallbacks_and_errors_are_counted_and_left_out(recorder: Recorder) -> None:
    for i in range(10):
        a_hit(recorder, f"r{i}", "candidate", exact=float(i < 5))
    a_hit(recorder, "f", "candidate", fallback=True, served_version="v1", total_s=99.0)
    a_hit(recorder, "e", "candidate", error_type="InstanceDied", served_version=None, total_s=99.0)
    a_hit(recorder, "c", "candidate", error_type="Cancelled", total_s=99.0)
    a_hit(recorder, "s", "candidate", exact=None)
    candidate = collect_evidence(recorder, "op", PLAN).candidate
    assert (candidate.requests, candidate.assigned, candidate.analysed) == (14, 14, 11)
    assert (candidate.failed, candidate.fallbacks, candidate.score_failures) == (1, 1, {"exact": 1})
    assert candidate.summaries["exact"] == RateSummary(10, 5)
    assert candidate.summaries["error"] == RateSummary(14, 1)  # over all assigned; a caller who left is no error
    latency = candidate.summaries["latency_s"]
    assert isinstance(latency, MeanSummary) and math.isclose(latency.mean, 0.05)


def test_an_arm_without_data_has_no_mean(recorder: Recorder) -> None:
    a_hit(recorder, "r", "stable")
    candidate = collect_evidence(recorder, "op", PLAN).candidate
    assert (candidate.assigned, candidate.version) == (0, "v2")
    for found in candidate.summaries.values():
        assert isinstance(found, Summary) and found.n == 0 and math.isnan(found.mean)


def test_a_retry_after_an_error_is_no_independent_trial(recorder: Recorder) -> None:
    for unit in "abc":
        a_hit(recorder, f"{unit}0", "stable", unit_id=unit, error_type="InstanceDied")
        a_hit(recorder, f"{unit}1", "stable", unit_id=unit)
    evidence = collect_evidence(recorder, "op", PLAN)
    assert evidence.repeated_units == 3
    assert near(evidence.baseline.summaries["error"], RatioSummary.of([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]))


def test_units_with_several_requests_are_summarised_by_unit(recorder: Recorder) -> None:
    exact = {"a": [1.0, 0.0, 1.0], "b": [1.0], "c": [0.0, 0.0]}
    for unit, scores in exact.items():
        for i, score in enumerate(scores):
            a_hit(recorder, f"{unit}{i}", "stable", exact=score, unit_id=unit)
    evidence = collect_evidence(recorder, "op", PLAN)
    assert evidence.repeated_units == 2
    assert (evidence.baseline.assigned, evidence.baseline.requests) == (3, 6)
    assert near(evidence.baseline.summaries["exact"], RatioSummary.of([2.0, 1.0, 0.0], [3.0, 1.0, 2.0]))
    assert isinstance(evidence.candidate.summaries["exact"], RatioSummary)  # both arms alike, so that they compare


def test_requests_after_the_comparison_and_pinned_ones_are_left_out(recorder: Recorder) -> None:
    a_hit(recorder, "during", "stable")
    recorder.route(RouteRecord("bot", 2, "op", 1, "stable", "v2", 1.0, 1.0, 2.0))
    a_hit(recorder, "after", "stable", route_epoch=2, assigned_version="v2", served_version="v2")
    recorder.request(a_request("pinned", arm="pinned"))
    assert collect_evidence(recorder, "op", PLAN).baseline.requests == 1


def test_units_in_both_arms_are_counted(recorder: Recorder) -> None:
    a_hit(recorder, "1", "stable", unit_id="torn")
    a_hit(recorder, "2", "candidate", unit_id="torn")
    a_hit(recorder, "3", "candidate", unit_id="whole")
    assert collect_evidence(recorder, "op", PLAN).crossed_units == 1


def test_a_rate_of_something_that_is_no_rate_is_refused(recorder: Recorder) -> None:
    a_hit(recorder, "1", "stable", exact=0.5)
    with pytest.raises(InvalidInput, match=r"0 and 1 only .*Mean\('exact'\)"):
        collect_evidence(recorder, "op", PLAN)


def test_a_metric_that_nothing_recorded_is_refused_with_what_there_is(recorder: Recorder) -> None:
    a_hit(recorder, "1", "stable")
    plan = AnalysisPlan(baseline="v1", candidate="v2", metrics=(Mean("latency"),), expected_share=0.5, planned_n=2)
    with pytest.raises(InvalidInput, match="did you mean 'latency_s'"):
        collect_evidence(recorder, "op", plan)


def test_rows_dropped_during_the_operation_void_it_and_earlier_ones_do_not() -> None:
    with Recorder(":memory:", capacity=5, flush_interval_s=60.0) as recorder:
        for arm in routes_of("old", epoch=1) + routes_of("new", epoch=2):
            recorder.route(arm)
        for i in range(8):  # the four routes wait in the same queue: one request finds room
            recorder.request(a_request(f"r{i}", operation_id="old", route_epoch=1))
        recorder.request(a_request("later", operation_id="new", route_epoch=2, admitted_at_s=4e9))
        recorder.flush()
        recorder.request(a_request("new", operation_id="new", route_epoch=2, admitted_at_s=4e9))
        assert recorder.stats().dropped > 0
        simple = AnalysisPlan(
            baseline="v1", candidate="v2", metrics=(Mean("latency_s"),), expected_share=0.5, planned_n=2
        )
        assert collect_evidence(recorder, "old", simple).dropped_rows == recorder.stats().dropped
        assert collect_evidence(recorder, "new", simple).dropped_rows == 0


def test_the_verdict_reads_it(recorder: Recorder) -> None:
    recorder.plan(PlanRecord("op", PLAN.digest(), PLAN.to_dict(), 1.0)).result(PATIENCE_S)
    for i in range(400):
        arm = "candidate" if i % 2 else "stable"
        a_hit(recorder, f"r{i}", arm, exact=float(i % 10 < (9 if i % 2 else 5)))
    evidence = collect_evidence(recorder, "op", PLAN)
    assert evidence.plan_digest == PLAN.digest()
    verdict = decide(PLAN, evidence)
    assert verdict.decision == "ship", verdict.in_words()


def plan_of(*metrics: Metric) -> AnalysisPlan:
    return AnalysisPlan(baseline="v1", candidate="v2", metrics=metrics, expected_share=0.5, planned_n=400)


def test_metrics_are_broken_out(recorder: Recorder) -> None:
    for i in range(400):
        arm = "candidate" if i % 2 else "stable"
        country = ("de", "fr", "o'neill")[i % 3]
        a_hit(
            recorder, f"r{i}", arm, exact=float(i % 10 < 5), unit_id=f"{country}/{i}", prompt_tokens=i, total_s=1.0 + i
        )
    by_country, by_length = Segments(column="unit_id", separator="/"), Segments(column="prompt_tokens", edges=(99, 199))
    plan = plan_of(
        Rate("exact", segments=by_country),
        Mean("latency_s", role="secondary", segments=by_length, covariate="prompt_tokens"),
        Quantile("latency_s", 0.5, role="secondary", segments=by_country),
    )
    evidence = collect_evidence(recorder, "op", plan)
    assert list(evidence.segments["exact"]) == ["de", "fr", "o'neill"]
    assert list(evidence.segments["latency_s"]) == ["up to 99", "100 to 199".replace("100", "99"), "above 199"]
    for metric in plan.metrics:
        for name, one in evidence.segments[metric.name].items():
            for arm, got, units in (
                ("stable", one.baseline, one.baseline_units),
                ("candidate", one.candidate, one.candidate_units),
            ):
                odd = arm == "candidate"
                mine = [i for i in range(odd, 400, 2) if label(metric, i) == name]
                assert units == len(mine)
                assert near(got, summary(metric, mine))
    findings = segment_findings(plan, evidence)
    assert set(findings) == {"exact", "latency_s", "latency_s_p50"}
    assert findings["exact"].heterogeneity.attainable and findings["latency_s_p50"].heterogeneity.attainable


def label(metric: Metric, i: int) -> str:
    assert metric.segments is not None
    if metric.segments.column == "unit_id":
        return ("de", "fr", "o'neill")[i % 3]
    return metric.segments.label(float(i))


def summary(metric: Metric, mine: list[int]) -> Any:
    if isinstance(metric, Rate):
        return RateSummary.of([float(i % 10 < 5) for i in mine])
    if isinstance(metric, Quantile):
        return QuantileSummary.of([1.0 + i for i in mine], metric.q)
    return CovariateSummary.of([1.0 + i for i in mine], [float(i) for i in mine])


def test_many_small_segments_are_taken_together(recorder: Recorder) -> None:
    for i in range(200):
        a_hit(recorder, f"r{i}", "candidate" if i % 2 else "stable", unit_id=f"team{i // 4 if i >= 40 else 0}/{i}")
    plan = plan_of(Rate("exact", segments=Segments(column="unit_id", separator="/")))
    segments = collect_evidence(recorder, "op", plan).segments["exact"]
    assert len(segments) <= MOST_SEGMENTS and "team0" in segments
    few = [f"team{i}" for i in range(10, 60)]
    for i, team in enumerate(few):
        a_hit(recorder, f"s{i}", "stable", unit_id=f"{team}/more")
        a_hit(recorder, f"t{i}", "stable", unit_id=f"only-{i}/x")
    segments = collect_evidence(recorder, "op", plan).segments["exact"]
    assert len(segments) == MOST_SEGMENTS and OTHERS in segments
    assert sum(one.baseline_units + one.candidate_units for one in segments.values()) == 300


def test_requests_without_an_answer_make_no_segment_of_their_own(recorder: Recorder) -> None:
    for i in range(40):
        a_hit(
            recorder,
            f"r{i}",
            "candidate" if i % 2 else "stable",
            prompt_tokens=i,
            error_type="InstanceDied" if i < 9 else None,
        )
    by_length = Segments(column="prompt_tokens", edges=(20,))
    segments = collect_evidence(recorder, "op", plan_of(Rate("exact", segments=by_length))).segments["exact"]
    assert list(segments) == ["up to 20", "above 20"]
    a_hit(recorder, "x", "stable", prompt_tokens=None)
    segments = collect_evidence(recorder, "op", plan_of(Rate("exact", segments=by_length))).segments["exact"]
    assert list(segments) == ["up to 20", "above 20", NO_SEGMENT] and segments[NO_SEGMENT].baseline == RateSummary(1, 1)


def test_conditions_leave_requests_out_of_one_metric_only(recorder: Recorder) -> None:
    for i in range(60):
        a_hit(
            recorder,
            f"r{i}",
            "candidate" if i % 2 else "stable",
            prompt_tokens=i,
            unit_id=f"u{i}'",
            exact=float(i % 4 == 0),
        )
    long = (Where(column="prompt_tokens", at_least=30), Where(column="unit_id", differs="u30'"))
    plan = plan_of(Rate("exact"), Rate("exact", role="secondary", name="long", where=long))
    found = collect_evidence(recorder, "op", plan).baseline
    assert found.summaries["exact"] == RateSummary(30, 15) and found.assigned == 30
    assert found.summaries["long"] == RateSummary(14, 7)
    nobody = plan_of(Rate("exact", where=(Where(column="prompt_tokens", above=1000),)))
    verdict = decide(nobody, collect_evidence(recorder, "op", nobody))
    assert verdict.decision == "invalid"


def test_numbers_that_are_none_are_failures_of_their_scorer(recorder: Recorder) -> None:
    recorder.plan(PlanRecord("op", PLAN.digest(), PLAN.to_dict(), 1.0)).result(PATIENCE_S)
    for i in range(400):
        bad = [math.nan, math.inf, -math.inf, 1e200][i % 4] if i < 40 else 1.0
        a_hit(recorder, f"r{i}", "candidate" if i % 2 else "stable", exact=bad)
    evidence = collect_evidence(recorder, "op", PLAN)
    assert evidence.baseline.score_failures == {"exact": 20}
    assert evidence.baseline.summaries["exact"] == RateSummary(180, 180)
    verdict = decide(PLAN, evidence)
    assert (verdict.decision, verdict.rule) == ("invalid", "scores-missing")


def test_pairs_are_not_made_of_a_split(recorder: Recorder) -> None:
    a_hit(recorder, "1", "stable")
    with pytest.raises(InvalidInput, match="no prompt meets both"):
        collect_evidence(recorder, "op", plan_of(Paired("exact")))


def test_columns_are_checked_before_anything_is_asked() -> None:
    check_columns(
        plan_of(Mean("judge", covariate="difficulty", segments=Segments(column="step"))), ["judge", "difficulty"]
    )
    with pytest.raises(InvalidInput, match="no prompt meets both"):
        check_columns(plan_of(Paired("judge")), ["judge"])
    for metric in (
        Mean("judge", covariate="dificulty"),
        Mean("judge", where=(Where(column="length", above=3),)),
        Mean("judge", segments=Segments(column="kind")),
        Mean("jugde"),
    ):
        with pytest.raises(InvalidInput, match="scorer"):
            check_columns(plan_of(metric), ["judge", "difficulty"])


@pytest.mark.parametrize("n", [0, 1, 30])
def test_every_kind_of_metric_has_an_outcome_on_little_evidence(recorder: Recorder, n: int) -> None:
    plan = plan_of(
        Rate("exact", covariate="prompt_tokens"),
        Mean("latency_s", role="secondary", covariate="prompt_tokens"),
        Ratio("output_tokens", "generation_s", role="secondary", covariate="prompt_tokens"),
        Quantile("latency_s", 0.95, role="secondary", segments=Segments(column="step")),
        Mean("queue_s", role="secondary", unit="unit"),
    )
    for i in range(n):
        a_hit(recorder, f"r{i}", "stable")
    verdict = decide(plan, collect_evidence(recorder, "op", plan))
    assert verdict.decision in ("invalid", "inconclusive")
    for found in verdict.comparisons.values():
        assert str(found.why_not).startswith("not attainable") and math.isnan(found.estimate)
