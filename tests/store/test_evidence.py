"""From recorded rows to the evidence that a decision reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from abswitch.domain import RouteRecord, ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.stats import AnalysisPlan, Mean, MeanSummary, Rate, RateSummary, Ratio, RatioSummary, Summary, decide
from abswitch.store.evidence import collect_evidence
from abswitch.store.recorder import PlanRecord, Recorder
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
    recorder.plan(PlanRecord("op", PLAN.digest(), PLAN.to_dict(), 1.0)).result(5)
    for i in range(400):
        arm = "candidate" if i % 2 else "stable"
        a_hit(recorder, f"r{i}", arm, exact=float(i % 10 < (9 if i % 2 else 5)))
    evidence = collect_evidence(recorder, "op", PLAN)
    assert evidence.plan_digest == PLAN.digest()
    verdict = decide(PLAN, evidence)
    assert verdict.decision == "ship", verdict.in_words()
