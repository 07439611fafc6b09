"""Evidence that grows look by look is what one reading of everything finds, and reads each row once."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import astuple, is_dataclass
from typing import Any

import pytest

from abswitch.domain import ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.stats import AnalysisPlan, Evidence, Mean, MeanSummary, Metric, Paired, Quantile, Rate, Ratio, Where
from abswitch.store.evidence import collect_evidence
from abswitch.store.growing import GrowingEvidence
from abswitch.store.recorder import PlanRecord, Recorder
from tests.patience import PATIENCE_S
from tests.store.rows import a_request, routes_of

METRICS: tuple[Metric, ...] = (
    Rate("exact"),
    Rate("error", role="guardrail", margin=0.05),
    Mean("latency_s", role="secondary"),
    Mean("latency_s", role="secondary", unit="unit", name="latency_by_unit"),
    Mean("latency_s", role="secondary", covariate="prompt_tokens", name="latency_adjusted"),
    Rate("exact", role="secondary", where=(Where(column="prompt_tokens", above=5),), name="exact_long"),
    Ratio("output_tokens", "generation_s", role="secondary", name="tokens_per_s"),
    Quantile("latency_s", 0.9, role="secondary"),
)
PLAN = AnalysisPlan(baseline="v1", candidate="v2", metrics=METRICS, expected_share=0.5, planned_n=400)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(":memory:") as made:
        for operation in ("op", "other"):
            for arm in routes_of(operation):
                made.route(arm)
        made.plan(PlanRecord("op", PLAN.digest(), PLAN.to_dict(), 1.0)).result(PATIENCE_S)
        yield made


class Traffic:
    """Requests of every kind: answered, failed, cancelled, answered by another version, not to be scored, pinned."""

    def __init__(self, recorder: Recorder, *, units: int, seed: int = 5) -> None:
        self._recorder, self._units, self._random, self._n = recorder, units, random.Random(seed), 0

    def some(self, n: int) -> None:
        for _ in range(n):
            self._one()

    def _one(self) -> None:
        chance, self._n = self._random, self._n + 1
        name, unit = f"r{self._n}", f"unit-{chance.randrange(self._units) if self._units else self._n}"
        arm = "pinned" if chance.random() < 0.03 else ("stable", "candidate")[hash_of(unit)]
        arm = ("stable", "candidate")[1 - hash_of(unit)] if chance.random() < 0.02 and arm != "pinned" else arm
        version = {"stable": "v1", "candidate": "v2", "pinned": "v1"}[arm]
        first = chance.expovariate(100.0)
        kind = chance.choices(("answered", "failed", "cancelled", "fallback"), (90, 4, 3, 3))[0]
        kinds: dict[str, dict[str, Any]] = {
            "answered": {},
            "failed": {"error_type": "InstanceDied", "served_version": None},
            "cancelled": {"error_type": "Cancelled"},
            "fallback": {"fallback": True, "served_version": "v1"},
        }
        row: dict[str, Any] = {
            "operation_id": "other" if chance.random() < 0.05 else "op",
            "arm": arm, "assigned_version": version, "served_version": version, "unit_id": unit, "first_token_s": first,
            "total_s": first + chance.expovariate(10.0), "prompt_tokens": chance.randrange(1, 12),
            "output_tokens": chance.randrange(1, 50), "admitted_at_s": 1000.0 - chance.random(),
        }  # fmt: skip
        self._recorder.request(a_request(name, **row | kinds[kind]))
        if kind in ("answered", "fallback") and chance.random() < 0.97:
            raised = chance.random() < 0.03
            value, error = (None, "ValueError") if raised else (float(chance.random() < 0.7), None)
            self._recorder.score(ScoreRecord(name, "exact", value, error, 1.0))


def hash_of(unit: str) -> int:
    return random.Random(unit).randrange(2)


def plain(evidence: Evidence) -> Any:
    return astuple(evidence)


def near(left: Any, right: Any) -> bool:
    if is_dataclass(left) or is_dataclass(right):
        return type(left) is type(right) and near(astuple(left), astuple(right))
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(near(left[key], right[key]) for key in left)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(near, left, right))
    return bool(left == right)


def caught_up(growing: GrowingEvidence) -> Evidence:
    growing.advance(growing.mark())
    return growing.evidence(PLAN)


@pytest.mark.parametrize("units", [0, 40], ids=["a unit each", "several requests a unit"])
def test_every_look_finds_what_reading_everything_finds(recorder: Recorder, units: int) -> None:
    growing, traffic = GrowingEvidence(recorder, "op", PLAN), Traffic(recorder, units=units)
    for n in (0, 1, 1, 7, 60, 0, 150, 200):
        traffic.some(n)
        found, whole = caught_up(growing), collect_evidence(recorder, "op", PLAN)
        for (_, got), (_, want) in zip(found.arms, whole.arms, strict=True):
            for name in (metric.name for metric in METRICS):
                assert near(got.summaries[name], want.summaries[name]), name
        assert near(plain(found), plain(whole))
    assert bool(whole.crossed_units) == bool(whole.repeated_units) == bool(units)


def test_a_look_reads_the_new_rows_alone(recorder: Recorder) -> None:
    plan = AnalysisPlan(baseline="v1", candidate="v2", metrics=METRICS[:3], expected_share=0.5, planned_n=400)
    growing, traffic = GrowingEvidence(recorder, "op", plan), Traffic(recorder, units=0)
    exposed = "SELECT count(*) FROM requests WHERE operation_id = 'op' AND arm IN ('stable', 'candidate')"
    for n in (100, 5, 0, 40):
        before, read = recorder.rows(exposed)[0][0], growing.rows_read
        traffic.some(n)
        growing.advance(growing.mark())
        assert growing.rows_read - read == recorder.rows(exposed)[0][0] - before


def test_the_store_skips_what_was_read(recorder: Recorder) -> None:
    """The condition on row numbers is one by which the database leaves whole groups of rows out."""
    Traffic(recorder, units=0).some(50)
    explained = recorder.rows("EXPLAIN SELECT count(*) FROM requests WHERE rowid > 45 AND rowid <= 49")
    assert "rowid" in str(explained) and "FILTER" not in str(explained).replace("Filters", "")


def test_rows_after_a_mark_wait_for_the_next_look(recorder: Recorder) -> None:
    growing, traffic = GrowingEvidence(recorder, "op", PLAN), Traffic(recorder, units=0)
    traffic.some(30)
    mark = growing.mark()
    whole = collect_evidence(recorder, "op", PLAN)
    traffic.some(30)
    growing.advance(mark)
    assert near(plain(growing.evidence(PLAN)), plain(whole))
    assert near(plain(caught_up(growing)), plain(collect_evidence(recorder, "op", PLAN)))


def test_a_score_given_afterwards_counts(recorder: Recorder) -> None:
    growing, traffic = GrowingEvidence(recorder, "op", PLAN), Traffic(recorder, units=0)
    traffic.some(60)
    before = caught_up(growing)
    for (name,) in recorder.rows("SELECT request_id FROM requests WHERE operation_id = 'op' AND arm = 'candidate'"):
        recorder.score(ScoreRecord(name, "exact", 0.0, None, 2.0, "human"))
    traffic.some(5)
    found = caught_up(growing)
    assert found.candidate.summaries["exact"] != before.candidate.summaries["exact"]
    assert near(plain(found), plain(collect_evidence(recorder, "op", PLAN)))


def test_rows_that_were_renumbered_are_read_again(recorder: Recorder) -> None:
    growing, traffic = GrowingEvidence(recorder, "op", PLAN), Traffic(recorder, units=0)
    traffic.some(60)
    caught_up(growing)
    last = growing.mark().requests
    growing._mark = growing._mark._replace(request_id="another row lies here now")
    traffic.some(10)
    assert growing.mark().requests > last
    assert near(plain(caught_up(growing)), plain(collect_evidence(recorder, "op", PLAN)))


def test_logarithms_are_those_of_the_durations(recorder: Recorder) -> None:
    metrics = tuple(
        Mean(f"log_{name}", role="primary" if name == "latency_s" else "secondary")
        for name in ("latency_s", "first_token_s", "generation_s")
    )
    plan = AnalysisPlan(baseline="v1", candidate="v2", metrics=metrics, expected_share=0.5, planned_n=400)
    assert {metric.direction for metric in metrics} == {"decrease"}
    Traffic(recorder, units=0).some(80)
    growing = GrowingEvidence(recorder, "op", plan)
    growing.advance(growing.mark())
    answered = "operation_id = 'op' AND arm = 'stable' AND error_type IS NULL AND NOT fallback"
    rows = recorder.rows(f"SELECT total_s, first_token_s, total_s - first_token_s FROM requests WHERE {answered}")
    for found in (growing.evidence(plan), collect_evidence(recorder, "op", plan)):
        for metric, values in zip(metrics, zip(*rows, strict=True), strict=True):
            summary = found.baseline.summaries[metric.name]
            assert near(summary, MeanSummary.of([math.log(value) for value in values])), metric.name


def test_pairs_have_no_place_in_a_split(recorder: Recorder) -> None:
    plan = AnalysisPlan(baseline="v1", candidate="v2", metrics=(Paired("exact"),), expected_share=0.5, planned_n=4)
    with pytest.raises(InvalidInput, match="no prompt meets both"):
        GrowingEvidence(recorder, "op", plan)
