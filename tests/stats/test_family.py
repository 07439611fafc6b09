"""Several candidates against one baseline: how they share the error rate, and who wins."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from abswitch.errors import InvalidInput
from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    Decision,
    Evidence,
    FamilyPlan,
    Rate,
    RateSummary,
    decide_family,
    winner_of,
)
from abswitch.stats.family import overall
from abswitch.stats.looks import Look

FIRST = AnalysisPlan(
    baseline="v1", candidate="v2", metrics=(Rate("ok", margin=0.02),), expected_share=0.25, planned_n=1200
)
PLAN = FamilyPlan(FIRST, (("v3", 0.25), ("v4", 0.25)))
SEQUENTIAL = FamilyPlan(replace(FIRST, evaluation="sequential"), PLAN.others)


def evidence(plan: FamilyPlan, rates: Mapping[str, float], n: int = 300, **facts: Any) -> dict[str, Evidence]:
    arms = {
        version: ArmEvidence(
            version=version, assigned=n, analysed=n, requests=n, summaries={"ok": RateSummary(n, round(n * rate))}
        )
        for version, rate in rates.items()
    }
    return {
        version: Evidence(baseline=arms["v1"], candidate=arms[version], plan_digest=plan.digest(), **facts)
        for version, _ in plan.candidates
    }


def test_every_candidate_has_a_verdict_and_the_best_winner_wins() -> None:
    for plan in (PLAN, SEQUENTIAL):
        verdicts = decide_family(plan, evidence(plan, {"v1": 0.5, "v2": 0.3, "v3": 0.75, "v4": 0.85}))
        assert {version: one.rule for version, one in verdicts.items()} == {
            "v2": "primary-worse", "v3": "primary-better", "v4": "primary-better",
        }  # fmt: skip
        assert list(verdicts) == ["v2", "v3", "v4"]
        assert winner_of(plan, verdicts) == "v4" and overall(verdicts) is Decision.SHIP
        assert all(one.plan_digest == plan.digest() for one in verdicts.values())


def test_less_is_better_where_the_metric_says_so() -> None:
    plan = FamilyPlan(replace(FIRST, metrics=(Rate("bad", direction="decrease", name="ok"),)), PLAN.others)
    verdicts = decide_family(plan, evidence(plan, {"v1": 0.5, "v2": 0.3, "v3": 0.75, "v4": 0.2}))
    assert winner_of(plan, verdicts) == "v4"


def test_nobody_wins_what_nobody_is_shown_to() -> None:
    same = decide_family(PLAN, evidence(PLAN, {"v1": 0.5, "v2": 0.5, "v3": 0.51, "v4": 0.49}))
    assert winner_of(PLAN, same) is None and overall(same) is Decision.INCONCLUSIVE
    worse = decide_family(PLAN, evidence(PLAN, {"v1": 0.9, "v2": 0.5, "v3": 0.5, "v4": 0.5}))
    assert winner_of(PLAN, worse) is None and overall(worse) is Decision.KEEP


def test_one_look_steps_down_and_several_share_evenly() -> None:
    """Holm: the clearest needs a third of alpha, the next a half of it, the last all."""
    rates = {"v1": 0.5, "v2": 0.72, "v3": 0.66, "v4": 0.5}
    verdicts = decide_family(PLAN, evidence(PLAN, rates))
    assert [round(verdicts[version].alpha, 4) for version in ("v2", "v3", "v4")] == [0.0167, 0.025, 0.05]
    unclear = decide_family(PLAN, evidence(PLAN, {"v1": 0.5, "v2": 0.52, "v3": 0.5, "v4": 0.49}))
    assert {round(one.alpha, 4) for one in unclear.values()} == {0.0167}
    shared = decide_family(SEQUENTIAL, evidence(SEQUENTIAL, rates), Look(number=4, last=False))
    assert {round(one.alpha, 4) for one in shared.values()} == {0.0167}
    assert {one.look for one in shared.values()} == {4}


def test_the_plan_is_one_with_one_digest() -> None:
    again = FamilyPlan.of(json.loads(json.dumps(PLAN.to_dict())))
    assert again == PLAN and again.digest() == PLAN.digest() == PLAN.committed
    assert PLAN.pair("v3").committed == PLAN.digest() != FIRST.digest()
    assert PLAN.pair("v3").expected_share == pytest.approx(0.5) and PLAN.baseline_share == pytest.approx(0.25)
    assert replace(PLAN, others=(("v3", 0.2), ("v4", 0.25))).digest() != PLAN.digest()
    assert SEQUENTIAL.to_dict()["correction"] == "bonferroni" and PLAN.to_dict()["correction"] == "holm"


def test_a_plan_changed_afterwards_voids_every_verdict() -> None:
    stored = evidence(PLAN, {"v1": 0.5, "v2": 0.9, "v3": 0.9, "v4": 0.9})
    lax = FamilyPlan(replace(FIRST, alpha=0.2), PLAN.others)
    assert {one.rule for one in decide_family(lax, stored).values()} == {"plan-changed"}


def test_one_look_waits_for_the_planned_units_of_all_arms() -> None:
    verdicts = decide_family(PLAN, evidence(PLAN, {"v1": 0.5, "v2": 0.9, "v3": 0.9, "v4": 0.9}, n=200))
    assert {one.rule for one in verdicts.values()} == {"not-yet"}
    assert all("400 more are needed" in one.reasons[0] for one in verdicts.values())


@pytest.mark.parametrize(
    ("others", "field"),
    [
        ((), "plan.others"),
        ((("v2", 0.2),), "plan.others"),
        ((("v1", 0.2),), "plan.others"),
        ((("v3", 0.75),), "plan.others"),
        ((("v3", 0.0),), "plan.others"),
        ((("", 0.2),), "plan.others"),
    ],
)
def test_bad_candidates_are_refused(others: tuple[tuple[str, float], ...], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        FamilyPlan(FIRST, others)
    assert caught.value.field == field


def test_three_copies_of_the_baseline_rarely_look_better_than_it() -> None:
    rng, runs, alpha = np.random.default_rng(8), 60, 0.2
    wrong = {"fixed": 0, "sequential": 0}
    for _ in range(runs):
        for evaluation in wrong:
            plan = FamilyPlan(replace(FIRST, alpha=alpha, evaluation=evaluation, metrics=(Rate("ok"),)), PLAN.others)
            rates = {version: rng.binomial(300, 0.5) / 300 for version in ("v1", "v2", "v3", "v4")}
            verdicts = decide_family(plan, evidence(plan, rates))
            wrong[evaluation] += any(one.rule in ("primary-better", "primary-worse") for one in verdicts.values())
    for errors in wrong.values():
        assert errors <= runs * alpha + 2 * math.sqrt(runs * alpha * (1 - alpha))
