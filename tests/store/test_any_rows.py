"""Whatever was recorded, a verdict names what it is: no decision rests on a number that is none."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abswitch.domain import RequestRecord, ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.stats import AnalysisPlan, Evidence, Mean, Quantile, Rate, Ratio, Where, decide
from abswitch.stats.looks import Look
from abswitch.store.evidence import collect_evidence
from abswitch.store.recorder import PlanRecord, Recorder
from tests.store.rows import a_request, routes_of

ODD = st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 5e-324])
VALUE = ODD | st.floats(0.0, 10.0) | st.sampled_from([0.0, 1.0])
ROW = st.fixed_dictionaries(
    {
        "arm": st.sampled_from(["stable", "candidate"]),
        "unit_id": st.sampled_from([f"u{i}" for i in range(12)]) | st.uuids().map(str),
        "fallback": st.sampled_from([False] * 6 + [True]),
        "error_type": st.sampled_from([None] * 6 + ["InstanceDied", "Cancelled", "PromptTooLong"]),
        "first_token_s": st.none() | VALUE,
        "total_s": VALUE,
        "output_tokens": st.integers(0, 100),
        "prompt_tokens": st.none() | st.integers(1, 100),
        "score": st.none() | VALUE,
        "exact": st.sampled_from([0.0, 1.0, 1.0, None, math.nan]),
    }
)
METRICS = (
    Mean("score", margin=0.5),
    Rate("exact", role="guardrail", margin=0.5),
    Rate("error", role="guardrail", margin=0.5),
    Mean("latency_s", role="secondary", covariate="prompt_tokens"),
    Ratio("output_tokens", "generation_s", role="secondary"),
    Quantile("latency_s", 0.5, role="secondary", name="median"),
    Mean("score", role="secondary", name="of_users", unit="unit"),
    Mean("score", role="secondary", name="long", where=(Where(column="prompt_tokens", above=50),)),
)
NAMES = itertools.count()
READINGS = (
    ("fixed", Look()),
    ("sequential", Look(number=3, last=False)),
    ("sequential", Look(number=4, last=True)),
    ("group_sequential", Look(number=2, last=False, fractions=(0.3, 0.6))),
    ("group_sequential", Look(number=2, last=True, fractions=(0.5, 1.0))),
)
"""When results are read: at the end, or at looks of which some are not the last."""


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with Recorder(":memory:") as made:
        yield made


def evidence_of(recorder: Recorder, plan: AnalysisPlan, rows: list[dict[str, Any]]) -> Evidence:
    operation = f"op{next(NAMES)}"
    for route in routes_of(operation):
        recorder.route(route)
    for i, row in enumerate(rows):
        version = {"stable": "v1", "candidate": "v2"}[row["arm"]]
        known = {key: value for key, value in row.items() if key in RequestRecord._fields}
        request = f"{operation}-{i}"
        recorder.request(a_request(request, operation_id=operation, assigned_version=version, **known))
        if row["error_type"] is None and not row["fallback"]:
            for scorer in ("score", "exact"):
                recorder.score(ScoreRecord(request, scorer, row[scorer], None, 1.0))
    recorder.plan(PlanRecord(operation, plan.digest(), plan.to_dict(), 1.0)).result()
    return collect_evidence(recorder, operation, plan)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROW, max_size=60), read=st.sampled_from(READINGS))
def test_no_decision_rests_on_a_number_that_is_none(
    recorder: Recorder, rows: list[dict[str, Any]], read: tuple[str, Look]
) -> None:
    evaluation, look = read
    plan = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=METRICS, expected_share=0.5, planned_n=2, min_units=2,
        max_score_failures=1.0, evaluation=evaluation,
    )  # fmt: skip
    try:
        evidence = evidence_of(recorder, plan, rows)
    except InvalidInput as error:  # a scorer that scored nothing at all, where there were answers
        if error.field not in ("metric", "metric.column"):
            raise
        return
    verdict = decide(plan, evidence, look)
    assert verdict.is_final or not look.last
    json.dumps(verdict.to_dict(), allow_nan=False)
    for found in verdict.comparisons.values():
        numbers = (found.estimate, found.low, found.high, found.p_value)
        if found.attainable:
            assert not any(map(math.isnan, numbers)) and math.isfinite(found.estimate)
            assert found.low <= found.high and 0.0 <= found.p_value <= 1.0
        else:
            assert all(map(math.isnan, numbers)) and str(found.why_not).startswith("not attainable: ")
    units = [{row["unit_id"] for row in rows if row["arm"] == arm} for arm in ("stable", "candidate")]
    assert evidence.crossed_units == len(units[0] & units[1])
    if verdict.decision in ("ship", "keep", "equivalent"):
        decisive = verdict.comparisons["score"]
        assert (not evidence.crossed_units and decisive.attainable) or verdict.rule == "guardrail-harmed"
        assert min(decisive.baseline.n, decisive.candidate.n) >= plan.min_units
        assert all(map(math.isfinite, (decisive.estimate, decisive.low, decisive.high)))
    elif verdict.decision == "invalid":
        assert verdict.reasons[0].startswith("INVALID: ")
