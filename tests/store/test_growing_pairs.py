"""Evidence of pairs that grows look by look is what one reading of everything finds, and reads each row once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from abswitch.domain import ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.stats import AnalysisPlan, Evidence, Mean, Metric, Paired, Quantile, Rate, Ratio, Where
from abswitch.store.growing_pairs import GrowingPairs
from abswitch.store.joint_evidence import collect_joint_evidence
from abswitch.store.recorder import PlanRecord, Recorder
from tests.patience import PATIENCE_S
from tests.store.rows import a_request, routes_of
from tests.store.test_growing import near, plain

METRICS: tuple[Metric, ...] = (
    Rate("exact"),
    Rate("error", role="guardrail", margin=0.05),
    Paired("exact", role="secondary", name="exact_pairs"),
    Mean("latency_s", role="secondary"),
    Rate("exact", role="secondary", where=(Where(column="prompt_tokens", above=5),), name="exact_long"),
    Ratio("output_tokens", "generation_s", role="secondary", name="tokens_per_s"),
)
PLAN = AnalysisPlan(
    baseline="v1", candidate="v2", metrics=METRICS, expected_share=0.5, planned_n=400, design="paired",
    evaluation="sequential",
)  # fmt: skip


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(":memory:") as made:
        for operation in ("op", "other"):
            for arm in routes_of(operation):
                made.route(arm)
        made.plan(PlanRecord("op", PLAN.digest(), PLAN.to_dict(), 1.0)).result(PATIENCE_S)
        yield made


class Pairs:
    """Sides of pairs in any order, some cancelled and asked again, some failed, some not to be scored."""

    def __init__(self, recorder: Recorder, *, units: int) -> None:
        self._recorder, self._units, self._random, self._n = recorder, units, random.Random(3), 0
        self._waiting: list[tuple[int, str]] = []

    def some(self, n: int) -> None:
        """So many requests; a side may come long after its other one."""
        chance = self._random
        for _ in range(n):
            if len(self._waiting) < 12:
                self._n += 1
                self._waiting += [(self._n, "stable"), (self._n, "candidate")]
            pair, arm = self._waiting.pop(chance.randrange(len(self._waiting)))
            if chance.random() < 0.05:
                self._one(pair, arm, "-gone", error_type="Cancelled")
            kind = chance.choices(("answered", "failed", "fallback"), (90, 5, 5))[0]
            kinds: dict[str, dict[str, Any]] = {
                "answered": {},
                "failed": {"error_type": "InstanceDied", "served_version": None},
                "fallback": {"fallback": True},
            }
            self._one(pair, arm, "", **kinds[kind])

    def _one(self, pair: int, arm: str, suffix: str, **facts: Any) -> None:
        chance, name = self._random, f"r{pair}-{arm}{suffix}"
        first, unit = chance.expovariate(100.0), f"unit-{pair % self._units if self._units else pair}"
        version = {"stable": "v1", "candidate": "v2"}[arm]
        row: dict[str, Any] = {
            "operation_id": "other" if pair % 20 == 0 else "op",
            "arm": arm, "pair_id": f"pair-{pair}", "assigned_version": version, "served_version": version,
            "unit_id": unit, "first_token_s": first, "total_s": first + chance.expovariate(10.0),
            "prompt_tokens": pair % 12 + 1, "output_tokens": chance.randrange(1, 50),
            "admitted_at_s": 1000.0 - chance.random(),
        }  # fmt: skip
        self._recorder.request(a_request(name, **row | facts))
        if facts.get("error_type") is None and chance.random() < 0.97:
            raised = chance.random() < 0.03
            value, error = (None, "ValueError") if raised else (float(chance.random() < 0.7), None)
            self._recorder.score(ScoreRecord(name, "exact", value, error, 1.0))


def caught_up(growing: GrowingPairs) -> Evidence:
    growing.advance(growing.mark())
    return growing.evidence(PLAN)


@pytest.mark.parametrize("units", [0, 40], ids=["a unit each", "several prompts a unit"])
def test_every_look_finds_what_reading_everything_finds(recorder: Recorder, units: int) -> None:
    growing, pairs = GrowingPairs(recorder, "op", PLAN), Pairs(recorder, units=units)
    seen = set()
    for n in (60, 0, 1, 1, 7, 150, 200):
        pairs.some(n)
        found, whole = caught_up(growing), collect_joint_evidence(recorder, "op", PLAN)
        for name in (metric.name for metric in METRICS):
            assert near(found.joint[name], whole.joint[name]), name
        assert near(plain(found), plain(whole))
        assert growing.requests() == 2 * found.baseline.requests
        seen.add(found.baseline.requests)
    assert len(seen) >= 4 and found.baseline.failed and found.candidate.fallbacks and found.baseline.score_failures


def test_a_look_reads_the_new_rows_alone_and_keeps_halves(recorder: Recorder) -> None:
    plan = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=METRICS[:4], expected_share=0.5, planned_n=400, design="paired"
    )
    growing, pairs = GrowingPairs(recorder, "op", plan), Pairs(recorder, units=0)
    exposed = "SELECT count(*) FROM requests WHERE operation_id = 'op' AND error_type IS DISTINCT FROM 'Cancelled'"
    for n in (100, 5, 0, 41):
        before, read = recorder.rows(exposed)[0][0], growing.rows_read
        pairs.some(n)
        growing.advance(growing.mark())
        assert growing.rows_read - read == recorder.rows(exposed)[0][0] - before
    assert 0 < growing.requests() < growing.rows_read, "some wait for their other side"


def test_a_score_given_afterwards_counts(recorder: Recorder) -> None:
    growing, pairs = GrowingPairs(recorder, "op", PLAN), Pairs(recorder, units=0)
    pairs.some(80)
    before = caught_up(growing)
    for (name,) in recorder.rows("SELECT request_id FROM requests WHERE operation_id = 'op' AND arm = 'candidate'"):
        recorder.score(ScoreRecord(name, "exact", 0.0, None, 2.0, "human"))
    pairs.some(5)
    found = caught_up(growing)
    assert found.joint["exact"] != before.joint["exact"]
    assert near(plain(found), plain(collect_joint_evidence(recorder, "op", PLAN)))


def test_what_pairs_cannot_hold_is_refused(recorder: Recorder) -> None:
    wrong = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=(Quantile("latency_s", 0.9),), expected_share=0.5, planned_n=4,
        design="paired",
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="in a paired design"):
        GrowingPairs(recorder, "op", wrong)


def test_a_rate_of_units_must_be_one(recorder: Recorder) -> None:
    plan = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=(Rate("output_tokens"),), expected_share=0.5, planned_n=40,
        design="paired",
    )  # fmt: skip
    growing = GrowingPairs(recorder, "op", plan)
    Pairs(recorder, units=5).some(60)
    growing.advance(growing.mark())
    with pytest.raises(InvalidInput, match="0 and 1 only"):
        growing.evidence(plan)
