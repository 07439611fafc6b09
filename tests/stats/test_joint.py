"""Evidence that holds both arms together, and the verdict on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    BlockSummary,
    Evidence,
    JointSummary,
    PairedRateSummary,
    PairedRatioSummary,
    PairedSummary,
    Rate,
    StratifiedSummary,
    decide,
    joint_test,
    mcnemar_test,
    paired_t_test,
    switchback_test,
)

DRAWN = np.random.default_rng(4)
A, B = DRAWN.normal(size=80), DRAWN.normal(0.3, size=80)
PLAN = AnalysisPlan(
    baseline="v1", candidate="v2", metrics=(Rate("ok", margin=0.1),), expected_share=0.5, planned_n=200, design="paired"
)


def test_each_kind_of_evidence_has_its_test() -> None:
    means, rates = PairedSummary.of(A, B), PairedRateSummary.of(A > 0, B > 0)
    assert joint_test(means, alpha=0.1) == paired_t_test(means, alpha=0.1)
    assert joint_test(rates, alpha=0.1) == mcnemar_test(rates, alpha=0.1)
    a, b = (StratifiedSummary.of_means(values, np.repeat(["0", "1", "2", "3"], 20)) for values in (A, B))
    assert joint_test(BlockSummary(baseline=a, candidate=b)) == switchback_test(a, b)


def test_a_paired_ratio_is_the_difference_of_the_ratios() -> None:
    xa, ya, xb, yb = DRAWN.gamma(5.0, size=(4, 300))
    found = joint_test(PairedRatioSummary.of(xa, ya, xb, yb))
    assert found.method == "paired delta method"
    assert found.baseline.value == pytest.approx(xa.sum() / ya.sum())
    assert found.candidate.value == pytest.approx(xb.sum() / yb.sum())
    assert found.estimate == pytest.approx(xb.sum() / yb.sum() - xa.sum() / ya.sum())


def test_a_paired_ratio_errs_as_often_as_it_says() -> None:
    rejected = 0
    for _ in range(1000):
        prompt = DRAWN.gamma(4.0, size=120)  # long prompts are long for both
        ya, yb = prompt * DRAWN.gamma(20.0, 0.05, size=(2, 120))
        xa, xb = 3.0 * np.array([ya, yb]) * DRAWN.gamma(20.0, 0.05, size=(2, 120))
        rejected += joint_test(PairedRatioSummary.of(xa, ya, xb, yb)).excludes_zero()
    assert stats.binomtest(rejected, 1000, 0.05).pvalue > 0.001


def test_denominators_that_are_all_zero_are_refused() -> None:
    with pytest.raises(InvalidInput, match="denominators"):
        PairedRatioSummary.of([1.0], [0.0], [1.0], [1.0])
    with pytest.raises(InvalidInput, match="denominators"):
        PairedRatioSummary.of([1.0], [1.0], [1.0], [1.0, 2.0])


def evidence(joint: JointSummary, n: int) -> Evidence:
    a, b = (ArmEvidence(version=version, assigned=n, analysed=n, requests=n) for version in ("v1", "v2"))
    return Evidence(baseline=a, candidate=b, plan_digest=PLAN.digest(), joint={"ok": joint})


@pytest.mark.parametrize(
    ("both", "candidate_only", "baseline_only", "decision"),
    [(50, 25, 5, "ship"), (50, 5, 25, "keep"), (60, 0, 0, "equivalent"), (50, 12, 8, "inconclusive")],
)
def test_a_paired_verdict(both: int, candidate_only: int, baseline_only: int, decision: str) -> None:
    pairs = PairedRateSummary(
        both=both,
        candidate_only=candidate_only,
        baseline_only=baseline_only,
        neither=100 - both - candidate_only - baseline_only,
    )
    verdict = decide(PLAN, evidence(pairs, 100))
    assert verdict.decision == decision, verdict.in_words()
    assert not verdict.sample_ratio.mismatch


def test_a_pair_that_was_not_asked_yet_is_waited_for() -> None:
    pairs = PairedRateSummary(both=30, candidate_only=30, baseline_only=0, neither=30)
    assert decide(PLAN, evidence(pairs, 90)).rule == "not-yet"


def test_a_metric_without_pairs_is_missing() -> None:
    assert decide(PLAN, evidence(PairedSummary.of([], []), 100)).rule == "metric-missing"
    nothing = replace(evidence(PairedSummary.of([], []), 100), joint={})
    assert decide(PLAN, nothing).rule == "metric-missing"


def test_a_switchback_loses_requests_not_blocks() -> None:
    plan = replace(PLAN, design="switchback", blocks=("baseline", "candidate") * 4, planned_n=8, min_units=2)
    labels = np.repeat(["0", "1", "2", "3"], 25)
    a, b = (StratifiedSummary.of_rates(DRAWN.random(100) < p, labels) for p in (0.3, 0.9))
    blocks = BlockSummary(baseline=a, candidate=b)
    arms = {
        arm: ArmEvidence(version=arm, assigned=4, analysed=4, requests=100, failed=failed)
        for arm, failed in (("v1", 0), ("v2", 30))
    }
    found = Evidence(baseline=arms["v1"], candidate=arms["v2"], plan_digest=plan.digest(), joint={"ok": blocks})
    assert decide(plan, found).rule == "answers-lost-unevenly"
    whole = replace(found, candidate=replace(arms["v2"], failed=0))
    assert decide(plan, whole).decision == "ship"
