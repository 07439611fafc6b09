"""The default judge: no evidence never advances, a broken limit rolls back, and everything else holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.rollout.judging import ArmMeasures, Guardrail, Judgement, Ruling, StepEvidence, ThresholdJudge

JUDGE = ThresholdJudge(max_error_rate=0.05, min_requests=100)


def evidence(candidate: ArmMeasures, stable: ArmMeasures | None = None) -> StepEvidence:
    return StepEvidence(
        operation_id="op",
        stage=0,
        share=0.05,
        evaluation=1,
        elapsed_s=900.0,
        stable=stable or ArmMeasures(version="v1", requests=1000, errors=10),
        candidates=(candidate,),
    )


def arm(requests: int = 0, errors: int = 0, **values: float) -> ArmMeasures:
    return ArmMeasures(
        version="v2", requests=requests, errors=errors, values=values, counts=dict.fromkeys(values, requests)
    )


@pytest.mark.parametrize(
    ("requests", "errors", "ruling"),
    [
        (0, 0, Ruling.HOLD),
        (1, 0, Ruling.HOLD),
        (1, 1, Ruling.HOLD),
        (2, 2, Ruling.HOLD),
        (3, 3, Ruling.ROLL_BACK),  # three of three at 5 % allowed: 1 in 8,000
        (99, 0, Ruling.HOLD),
        (99, 99, Ruling.ROLL_BACK),
        (100, 0, Ruling.ADVANCE),
        (100, 5, Ruling.ADVANCE),
        (100, 6, Ruling.ROLL_BACK),
    ],
)
def test_error_rate_with_minimum_evidence(requests: int, errors: int, ruling: Ruling) -> None:
    assert JUDGE(evidence(arm(requests, errors))).ruling is ruling


def guarded(**limits: Any) -> ThresholdJudge:
    return ThresholdJudge(
        max_error_rate=0.05, min_requests=100, guardrails=(Guardrail(metric="latency_p95_s", **limits),)
    )


@pytest.mark.parametrize(
    ("value", "limits", "ruling"),
    [
        (1.0, {"max": 1.0}, Ruling.ADVANCE),
        (1.1, {"max": 1.0}, Ruling.ROLL_BACK),
        (0.9, {"min": 1.0}, Ruling.ROLL_BACK),
        (1.2, {"max_ratio": 1.5}, Ruling.ADVANCE),
        (1.6, {"max_ratio": 1.5}, Ruling.ROLL_BACK),
        (0.4, {"min_ratio": 0.5}, Ruling.ROLL_BACK),
        (math.nan, {"max": 1.0}, Ruling.HOLD),
        (math.inf, {"max": 1.0}, Ruling.HOLD),
    ],
)
def test_guardrails(value: float, limits: dict[str, float], ruling: Ruling) -> None:
    stable = ArmMeasures(version="v1", requests=1000, values={"latency_p95_s": 1.0}, counts={"latency_p95_s": 1000})
    judged = guarded(**limits)(evidence(arm(100, latency_p95_s=value), stable))
    assert judged.ruling is ruling
    assert "latency_p95_s of v2" in judged.reason


def test_a_guardrail_that_was_not_measured_holds() -> None:
    judged = guarded(max=1.0)(evidence(arm(100)))
    assert judged.ruling is Ruling.HOLD and "0 of 100 needed" in judged.reason


def test_a_limit_relative_to_a_stable_version_without_data_holds() -> None:
    nothing = ArmMeasures(version="v1")
    assert guarded(max_ratio=1.1)(evidence(arm(100, latency_p95_s=1.0), nothing)).ruling is Ruling.HOLD


def test_every_candidate_must_pass() -> None:
    two = StepEvidence(
        operation_id="op",
        stage=0,
        share=0.5,
        evaluation=1,
        elapsed_s=1.0,
        stable=ArmMeasures(version="v1", requests=500),
        candidates=(arm(100), ArmMeasures(version="v3", requests=100, errors=50)),
    )
    judged = JUDGE(two)
    assert judged.ruling is Ruling.ROLL_BACK and "v3" in judged.reason


@given(
    requests=st.integers(0, 10_000),
    share=st.floats(0, 1),
    value=st.one_of(st.floats(), st.none()),
    count=st.integers(0, 10_000),
)
def test_no_evidence_ever_advances(requests: int, share: float, value: float | None, count: int) -> None:
    """Whatever the numbers: an advance means enough requests, few enough errors, a finite value within its limit."""
    errors = int(requests * share)
    values = {} if value is None else {"latency_p95_s": value}
    measured = ArmMeasures(
        version="v2", requests=requests, errors=errors, values=values, counts={"latency_p95_s": count}
    )
    if guarded(max=1.0)(evidence(measured)).ruling is Ruling.ADVANCE:
        assert requests >= 100 and errors / requests <= 0.05
        assert value is not None and math.isfinite(value) and value <= 1.0 and count >= 100


def test_a_guardrail_names_its_metric_first() -> None:
    assert Guardrail("exact_match", min_ratio=0.9) == Guardrail(metric="exact_match", min_ratio=0.9)


def test_an_arm_without_requests_has_no_error_rate() -> None:
    assert math.isnan(ArmMeasures(version="v2").error_rate)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"reason": ValueError("worse")}, "reason"),
        ({"reason": None}, "reason"),
        ({"ruling": "promote"}, "judgement.ruling"),
        ({"ruling": None}, "judgement.ruling"),
        ({"version": ["v2"]}, "judgement.version"),
        ({"share": math.nan}, "judgement.share"),
        ({"share": 1.1}, "judgement.share"),
    ],
)
def test_a_judgement_that_makes_no_sense_is_refused_when_it_is_made(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Judgement(**{"ruling": Ruling.ADVANCE, "reason": "x", **given})
    assert caught.value.field == field


@pytest.mark.parametrize("ruling", list(Ruling))
def test_a_ruling_in_words_is_that_ruling(ruling: Ruling) -> None:
    in_words: Any = ruling.value
    assert Judgement(ruling=in_words, reason="x").ruling is ruling, "or `roll back` would be taken for `advance`"


def test_a_reason_that_no_file_can_hold_is_told_by_its_escape() -> None:
    assert Judgement(ruling=Ruling.HOLD, reason="was \udfff").reason == "was \\udfff"
