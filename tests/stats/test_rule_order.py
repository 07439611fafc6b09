"""Rules are asked in their documented order: with two faults planted at once, the earlier one is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest

from abswitch.stats import AnalysisPlan, ArmEvidence, Evidence, Mean, MeanSummary, Rate, RateSummary, Summary, decide

PLAN = AnalysisPlan(
    baseline="v1",
    candidate="v2",
    metrics=(Rate("ok", margin=0.05), Rate("error", role="guardrail", margin=0.05), Mean("judge", role="secondary")),
    expected_share=0.5,
    planned_n=600,
)


def sound(version: str, share: float) -> ArmEvidence:
    summaries: dict[str, Summary] = {
        "ok": RateSummary(300, round(300 * share)),
        "error": RateSummary(300, 3),
        "judge": MeanSummary.from_moments(300, 3.0, 1.0),
    }
    return ArmEvidence(version=version, assigned=300, analysed=300, requests=300, summaries=summaries)


SOUND = Evidence(baseline=sound("v1", 0.58), candidate=sound("v2", 0.91), plan_digest=PLAN.digest())


def candidate(evidence: Evidence, **change: object) -> Evidence:
    return replace(evidence, candidate=replace(evidence.candidate, **change))  # type: ignore[arg-type]  # any field


def few(evidence: Evidence) -> Evidence:
    return candidate(evidence, analysed=min(evidence.candidate.analysed, 10))


def early(evidence: Evidence) -> Evidence:
    """Both arms lose as many units: below the planned number, yet a planted split stays off and a sound one even."""
    arms = [
        replace(arm, assigned=arm.assigned - 65, analysed=min(arm.analysed, arm.assigned - 65))
        for _, arm in evidence.arms
    ]
    return replace(evidence, baseline=arms[0], candidate=arms[1])


def without(evidence: Evidence) -> Evidence:
    kept = {name: one for name, one in evidence.candidate.summaries.items() if name != "judge"}
    return candidate(evidence, summaries=kept)


def harmed(evidence: Evidence) -> Evidence:
    return candidate(evidence, summaries={**evidence.candidate.summaries, "error": RateSummary(300, 150)})


FAULTS: list[tuple[str, Callable[[Evidence], Evidence]]] = [
    ("plan-missing", lambda e: replace(e, plan_digest=None)),
    ("rows-dropped", lambda e: replace(e, dropped_rows=1)),
    ("sample-ratio-mismatch", lambda e: candidate(e, assigned=420, analysed=e.candidate.analysed)),
    ("units-crossed", lambda e: replace(e, crossed_units=1)),
    ("scores-missing", lambda e: candidate(e, score_failures={"ok": 30})),
    ("not-yet", early),
    ("too-few-units", few),
    ("metric-missing", without),
    ("guardrail-harmed", harmed),
    ("answers-lost-unevenly", lambda e: candidate(e, analysed=min(e.candidate.analysed, 200))),
]


def test_without_a_fault_it_ships() -> None:
    assert decide(PLAN, SOUND).rule == "primary-better"


@pytest.mark.parametrize(("rule", "fault"), FAULTS, ids=[rule for rule, _ in FAULTS])
def test_each_fault_alone_is_told(rule: str, fault: Callable[[Evidence], Evidence]) -> None:
    assert decide(PLAN, fault(SOUND)).rule == rule


@pytest.mark.parametrize(("first", "second"), list(combinations(range(len(FAULTS)), 2)))
def test_of_two_faults_the_earlier_is_told(first: int, second: int) -> None:
    (rule, fault), (_, other) = FAULTS[first], FAULTS[second]
    assert decide(PLAN, other(fault(SOUND))).rule == rule
