"""The judge that canaries have by default: shown harm goes back, shown safety is promoted, everything else holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from abswitch.errors import InvalidInput
from abswitch.rollout.judging import ArmMeasures, Guardrail, Judgement, Ruling, StepEvidence
from abswitch.rollout.sequential_judge import SequentialJudge

RAILS = (Guardrail("latency_p95_s", max_ratio=1.2), Guardrail("exact_match", min_ratio=0.9))


def judge(*rails: Guardrail, stages: int = 2, **more: Any) -> SequentialJudge:
    return SequentialJudge(max_error_rate=0.05, min_requests=50, stages=stages, guardrails=rails, **more)


def arm(
    version: str = "v2",
    n: int = 1000,
    errors: int = 10,
    *,
    slow: float = 1.0,
    right: float = 0.9,
    seed: int = 1,
    **more: Any,
) -> ArmMeasures:
    """An arm with lognormal latencies and a score of 0 or 1."""
    latencies = np.sort(slow * np.random.default_rng(seed).lognormal(-0.7, 0.5, n))
    given: dict[str, Any] = {
        "version": version,
        "requests": n,
        "errors": errors,
        "values": {"latency_p95_s": float(np.quantile(latencies, 0.95)) if n else math.nan, "exact_match": right},
        "counts": {"latency_p95_s": n, "exact_match": n},
        "variances": {"exact_match": right * (1 - right)},
        "is_fraction": {"exact_match": True},
        "samples": {"latency_p95_s": (0.95, latencies)},
    }
    return ArmMeasures(**given | more)


def evidence(candidate: ArmMeasures, stable: ArmMeasures | None = None, **more: Any) -> StepEvidence:
    given: dict[str, Any] = {
        "operation_id": "op",
        "stage": 1,
        "share": 0.5,
        "evaluation": 1,
        "elapsed_s": 60.0,
        "stable": stable or arm("v1", seed=2),
        "candidates": (candidate,),
    }
    return StepEvidence(**given | more)


def ruling(found: Judgement) -> Ruling:
    return found.ruling


def test_an_equal_candidate_is_promoted_once_every_guardrail_is_shown_to_hold() -> None:
    found = judge(*RAILS)(evidence(arm(n=4000, errors=40), arm("v1", 4000, 40, seed=2)))
    assert found.ruling is Ruling.ADVANCE
    assert "latency_p95_s of v2" in found.reason and "exact_match of v2" in found.reason


def test_steps_before_the_last_are_left_on_enough_evidence_without_harm() -> None:
    few = evidence(arm(n=60, errors=0), arm("v1", 60, 0, seed=2), stage=0)
    assert judge(*RAILS)(few).ruling is Ruling.ADVANCE
    assert judge(*RAILS)(evidence(few.candidates[0], few.stable, stage=1)).ruling is Ruling.HOLD, "the last asks more"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (arm(errors=200), "error_rate of v2"),
        (arm(n=4000, errors=40, slow=1.6), "latency_p95_s of v2"),
        (arm(right=0.5), "exact_match of v2"),
    ],
)
@pytest.mark.parametrize("stage", [0, 1])
def test_shown_harm_goes_back_at_any_step(bad: ArmMeasures, words: str, stage: int) -> None:
    stable = arm("v1", bad.requests, bad.requests // 100, seed=2)
    found = judge(*RAILS)(evidence(bad, stable, stage=stage))
    assert found.ruling is Ruling.ROLL_BACK and words in found.reason


def test_more_errors_than_stable_go_back_although_the_limit_is_kept() -> None:
    found = judge()(evidence(arm(n=5000, errors=150), arm("v1", 5000, 50, seed=2)))
    assert found.ruling is Ruling.ROLL_BACK and "errors against stable" in found.reason


def test_errors_of_one_user_count_once() -> None:
    one_user = arm(n=5000, errors=150, errors_of_new_units=1)
    assert judge()(evidence(one_user, arm("v1", 5000, 50, seed=2))).ruling is not Ruling.ROLL_BACK


def test_errors_of_all_steps_count_each_with_its_share() -> None:
    step = (0.1, arm("v1", 900, 9, seed=2), (arm(n=100, errors=4),))
    alone = evidence(arm(n=100, errors=4), arm("v1", 900, 9, seed=2), share=0.1, stage=0)
    assert judge(stages=9)(alone).ruling is not Ruling.ROLL_BACK
    together = evidence(arm(n=100, errors=4), arm("v1", 900, 9, seed=2), share=0.1, stage=7, earlier=(step,) * 7)
    assert judge(stages=9)(together).ruling is Ruling.ROLL_BACK


def test_slow_answers_of_all_steps_add_up_whatever_the_load_was() -> None:
    def step(load: float) -> tuple[float, ArmMeasures, tuple[ArmMeasures, ...]]:
        stable, slow = arm("v1", 2000, 0, slow=load, seed=3), arm(n=100, errors=0, slow=1.7 * load, seed=4)
        return 0.05, stable, (slow,)

    rail = Guardrail("latency_p95_s", max_ratio=1.2)
    share, stable, (slow,) = step(1.0)
    assert judge(rail, stages=9)(evidence(slow, stable, share=share, stage=0)).ruling is not Ruling.ROLL_BACK
    earlier = tuple(step(load) for load in (1.0, 3.0, 0.5, 2.0, 1.0, 4.0, 1.0, 2.0))
    found = judge(rail, stages=9)(evidence(slow, stable, share=share, stage=8, earlier=earlier))
    assert found.ruling is Ruling.ROLL_BACK


def test_load_that_both_arms_feel_is_no_harm() -> None:
    def step(load: float) -> tuple[float, ArmMeasures, tuple[ArmMeasures, ...]]:
        return 0.5, arm("v1", 1000, 0, slow=load, seed=3), (arm(n=1000, errors=0, slow=load, seed=4),)

    earlier = tuple(step(load) for load in (1.0, 3.0, 0.5, 5.0))
    found = judge(*RAILS, stages=9)(evidence(arm(slow=5.0), arm("v1", slow=5.0, seed=2), stage=4, earlier=earlier))
    assert found.ruling is Ruling.ADVANCE


def test_an_absolute_limit_of_a_quantile() -> None:
    kept, broken = Guardrail("latency_p95_s", max=5.0), Guardrail("latency_p95_s", max=0.6)
    assert judge(kept)(evidence(arm(n=4000, errors=0), arm("v1", 4000, 0))).ruling is Ruling.ADVANCE
    assert judge(broken)(evidence(arm(n=4000, errors=0), arm("v1", 4000, 0))).ruling is Ruling.ROLL_BACK


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_scores_that_never_vary_are_judged_where_they_are_zeros_and_ones(right: float) -> None:
    rail = Guardrail("exact_match", min=0.5)
    found = judge(rail)(evidence(arm(n=500, errors=0, right=right), arm("v1", 500, 0)))
    assert found.ruling is (Ruling.ADVANCE if right else Ruling.ROLL_BACK)


def test_scores_from_0_to_1_need_not_vary_either() -> None:
    half = arm(n=500, errors=0, right=0.5, variances={"exact_match": 0.0})
    assert judge(Guardrail("exact_match", min=0.8))(evidence(half, half)).ruling is Ruling.ROLL_BACK
    assert judge(Guardrail("exact_match", min=0.3))(evidence(half, half)).ruling is Ruling.ADVANCE


def test_scores_of_any_scale() -> None:
    def graded(mean: float) -> ArmMeasures:
        more: dict[str, Any] = {
            "values": {"grade": mean},
            "counts": {"grade": 400},
            "variances": {"grade": 4.0},
            "is_fraction": {},
        }
        return arm(n=400, errors=0, **more)

    rail = Guardrail("grade", min=6.0)
    rulings = [judge(rail)(evidence(graded(mean), graded(8.0))).ruling for mean in (8.0, 6.1, 4.0)]
    assert rulings == [Ruling.ADVANCE, Ruling.HOLD, Ruling.ROLL_BACK]
    constant = replace(graded(9.0), variances={"grade": 0.0})
    assert judge(rail)(evidence(constant, constant)).ruling is Ruling.HOLD, "of its spread nothing is known"


@pytest.mark.parametrize(
    "nothing",
    [
        ArmMeasures(version="v2"),
        arm(n=1, errors=0),
        arm(values={"latency_p95_s": math.nan, "exact_match": math.nan}, samples={}),
        arm(values={}, counts={}, samples={}),
    ],
    ids=["no data", "a single sample", "NaN", "no metric"],
)
@pytest.mark.parametrize("stage", [0, 1])
def test_no_evidence_holds(nothing: ArmMeasures, stage: int) -> None:
    assert judge(*RAILS)(evidence(nothing, stage=stage)).ruling is Ruling.HOLD


def test_a_stable_version_that_was_not_measured_gives_nothing_to_compare_with() -> None:
    found = judge(*RAILS)(evidence(arm(n=4000, errors=0), ArmMeasures(version="v1")))
    assert found.ruling is Ruling.HOLD


def test_hopeless_before_the_least_number_of_requests() -> None:
    found = judge()(evidence(arm(n=30, errors=30), arm("v1", 30, 0, seed=2), stage=0))
    assert found.ruling is Ruling.ROLL_BACK


def test_it_judges_one_candidate() -> None:
    two = evidence(arm())
    with pytest.raises(InvalidInput, match="candidates"):
        judge()(StepEvidence(**{name: getattr(two, name) for name in ("operation_id", "stage", "share", "evaluation",
                "elapsed_s", "stable")}, candidates=(arm(), arm("v3"))))  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.0), ("alpha", 0.6), ("stages", 0)])
def test_bad_arguments(name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=name):
        SequentialJudge(**{"max_error_rate": 0.05, "min_requests": 50, "stages": 2} | {name: value})  # type: ignore[arg-type]


def test_equal_candidates_go_back_at_most_as_often_as_agreed() -> None:
    """400 canaries of 12 looks, errors of 2 %: at alpha 0.2, so that too many would show."""
    rng = np.random.default_rng(7)
    sent_back = 0
    for _ in range(400):
        errors, n = [0, 0], [0, 0]
        for look in range(12):
            for side in (0, 1):
                errors[side] += int(rng.binomial(200, 0.02))
                n[side] += 200
            arms = [ArmMeasures(version=f"v{i + 1}", requests=n[i], errors=errors[i]) for i in (0, 1)]
            if judge(stages=3, alpha=0.2)(evidence(arms[1], arms[0], stage=0, evaluation=look + 1)).ruling is (
                Ruling.ROLL_BACK
            ):
                sent_back += 1
                break
    assert sent_back <= 0.2 * 400 + 2 * math.sqrt(400 * 0.2 * 0.8)
    assert sent_back > 0, "a test that never fires has no power either"
