"""Segments: each one's comparison, whether they differ, and whether what makes them depends on the arm."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    Evidence,
    Mean,
    MeanSummary,
    Rate,
    SegmentEvidence,
    cochran_q_test,
    decide,
    holm,
    segment_findings,
)

METRICS = (Mean("judge", segments="step"), Rate("exact", role="secondary"))  # type: ignore[arg-type]
PLAN = AnalysisPlan(baseline="v1", candidate="v2", metrics=METRICS, expected_share=0.5, planned_n=600)


def evidence(effects: dict[str, float], *, split: tuple[int, int] = (100, 100), seed: int = 2) -> Evidence:
    rng = np.random.default_rng(seed)
    segments = {
        name: SegmentEvidence(
            baseline=MeanSummary.of(rng.normal(size=split[0])),
            candidate=MeanSummary.of(rng.normal(size=split[1]) + effect),
            baseline_units=split[0],
            candidate_units=split[1],
        )
        for name, effect in effects.items()
    }
    arm = {"assigned": 300, "analysed": 300}
    return Evidence(
        baseline=ArmEvidence(version="v1", **arm),  # type: ignore[arg-type]
        candidate=ArmEvidence(version="v2", **arm),  # type: ignore[arg-type]
        plan_digest=PLAN.digest(),
        segments={"judge": segments},
    )


def test_segments_that_differ_are_found_and_corrected_for_their_number() -> None:
    found = segment_findings(PLAN, evidence({"0": 0.0, "1": 0.0, "2": 2.0}))
    assert set(found) == {"judge"} and found["judge"].by == "step"
    one = found["judge"]
    assert one.heterogeneity == cochran_q_test(one.comparisons) and one.heterogeneity.p_value < 1e-6
    p_values = [comparison.p_value for comparison in one.comparisons.values()]
    assert list(one.adjusted_p.values()) == pytest.approx(holm(p_values).adjusted.tolist())
    assert not any(split.mismatch for split in one.splits.values())


def test_segments_that_agree() -> None:
    one = segment_findings(PLAN, evidence({"0": 0.5, "1": 0.5, "2": 0.5}))["judge"]
    assert one.heterogeneity.p_value > 0.05 and one.heterogeneity.low < 0.5 < one.heterogeneity.high


def test_a_segment_whose_split_depends_on_the_arm_is_invalid() -> None:
    one = segment_findings(PLAN, evidence({"0": 0.5, "1": 0.5}, split=(300, 150)))["judge"]
    for comparison in one.comparisons.values():
        assert str(comparison.why_not).startswith("INVALID: sample-ratio mismatch; 150 of this segment's 450 units")
    assert one.adjusted_p == {"0": None, "1": None} and not one.heterogeneity.attainable


def test_an_empty_segment_and_a_single_one_have_reasons() -> None:
    one = segment_findings(PLAN, evidence({"0": 0.5, "1": 0.5}, split=(3, 0)))["judge"]
    assert all("not attainable" in str(comparison.why_not) for comparison in one.comparisons.values())
    lonely = segment_findings(PLAN, evidence({"0": 0.5}))["judge"].heterogeneity
    assert "1 segment(s) with a result" in str(lonely.why_not)


def test_they_are_json_and_decide_nothing() -> None:
    with_segments, without = evidence({"0": 0.0, "1": 3.0}), evidence({})
    plain: Any = json.loads(json.dumps(segment_findings(PLAN, with_segments)["judge"].to_dict(), allow_nan=False))
    assert set(plain) == {"metric", "by", "comparisons", "adjusted_p", "splits", "heterogeneity"}
    assert decide(PLAN, with_segments).to_dict() == decide(PLAN, without).to_dict()
