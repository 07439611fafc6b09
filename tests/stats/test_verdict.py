"""Every rule of a verdict, that nothing ships by accident, and what a verdict says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    Decision,
    Evidence,
    Mean,
    MeanSummary,
    Metric,
    Rate,
    RateSummary,
    RatioSummary,
    Summary,
    Verdict,
    decide,
)

ERRORS = Rate("error", role="guardrail", margin=0.05)
LATENCY = Mean("latency_s", role="guardrail", margin=0.1)
PLAN = AnalysisPlan(
    baseline="v1",
    candidate="v2",
    metrics=(Rate("exact_match", margin=0.05),),
    expected_share=0.5,
    planned_n=600,
)


def rate(n: int, share: float) -> RateSummary:
    return RateSummary(n, round(n * share))


def arm(version: str, n: int = 300, *, analysed: int | None = None, **summaries: Summary) -> ArmEvidence:
    return ArmEvidence(
        version=version, assigned=n, analysed=n if analysed is None else analysed, requests=n, summaries=summaries
    )


def evidence_of(plan: AnalysisPlan, baseline: ArmEvidence, candidate: ArmEvidence, **facts: Any) -> Evidence:
    given: dict[str, Any] = {"baseline": baseline, "candidate": candidate, "plan_digest": plan.digest()}
    return Evidence(**given | facts)


def scored(baseline: float, candidate: float, plan: AnalysisPlan = PLAN, n: int = 300, **facts: Any) -> Verdict:
    arms = (arm("v1", n, exact_match=rate(n, baseline)), arm("v2", n, exact_match=rate(n, candidate)))
    return decide(plan, evidence_of(plan, *arms, **facts))


def told(verdict: Verdict) -> tuple[str, str]:
    return verdict.decision.value, verdict.rule


# --- the primary metric alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "candidate", "decision", "rule"),
    [
        (0.58, 0.91, "ship", "primary-better"),
        (0.91, 0.58, "keep", "primary-worse"),
        (0.91, 0.05, "keep", "primary-worse"),
        (0.91, 0.0, "keep", "primary-worse"),
        (0.70, 0.70, "inconclusive", "interval-includes-zero"),
        (0.70, 0.73, "inconclusive", "interval-includes-zero"),
        (0.99, 0.99, "equivalent", "within-margin"),
        (1.0, 1.0, "equivalent", "within-margin"),
        (0.0, 0.0, "equivalent", "within-margin"),
    ],
)
def test_the_primary_decides(baseline: float, candidate: float, decision: str, rule: str) -> None:
    assert told(scored(baseline, candidate)) == (decision, rule)


@pytest.mark.parametrize("better", ["increase", "decrease"])
def test_the_direction_turns_the_decision(better: str) -> None:
    plan = replace(PLAN, metrics=(Rate("exact_match", direction=better),))
    up, down = scored(0.58, 0.91, plan), scored(0.91, 0.58, plan)
    ship, keep = ("ship", "primary-better"), ("keep", "primary-worse")
    assert (told(up), told(down)) == ((ship, keep) if better == "increase" else (keep, ship))


@pytest.mark.parametrize(("baseline", "candidate"), [(0.5, 0.52), (0.52, 0.5)])
def test_different_but_negligible_is_equivalent_and_says_so(baseline: float, candidate: float) -> None:
    plan = replace(PLAN, planned_n=100_000)
    verdict = scored(baseline, candidate, plan, n=50_000)
    assert told(verdict) == ("equivalent", "within-margin")
    assert "Different but negligible" in verdict.reasons[0]


def test_without_a_margin_nothing_is_equivalent() -> None:
    plan = replace(PLAN, metrics=(Rate("exact_match"),))
    assert told(scored(0.99, 0.99, plan)) == ("inconclusive", "interval-includes-zero")


def test_inconclusive_says_what_could_have_been_seen_and_what_it_takes() -> None:
    verdict = scored(0.70, 0.70)
    assert "would have been found four times in five" in verdict.reasons[0]
    assert "units in all (600 were analysed)" in verdict.reasons[0]
    assert math.isclose(verdict.detectable, 2.8016 * verdict.comparisons["exact_match"].standard_error, rel_tol=1e-4)
    assert 0.09 < verdict.detectable < 0.12


def test_equal_arms_without_a_margin_name_no_absurd_number() -> None:
    plan = replace(PLAN, metrics=(Rate("exact_match"),))
    assert "To find" not in scored(0.7, 0.7, plan).reasons[0]


# --- guardrails -------------------------------------------------------------------------------------------------------


def guarded(
    primary: tuple[float, float], errors: tuple[float, float], latency: tuple[float, float] = (0.2, 0.2), n: int = 300
) -> Verdict:
    plan = replace(PLAN, metrics=(*PLAN.metrics, ERRORS, LATENCY), planned_n=2 * n)
    arms = [
        arm(
            version,
            n,
            exact_match=rate(n, primary[i]),
            error=rate(n, errors[i]),
            latency_s=MeanSummary.from_moments(n, latency[i], 0.1**2),
        )
        for i, version in enumerate(("v1", "v2"))
    ]
    return decide(plan, evidence_of(plan, *arms))


BETTER, WORSE, SAME = (0.58, 0.91), (0.91, 0.58), (0.7, 0.7)


@pytest.mark.parametrize(
    ("primary", "errors", "latency", "decision", "rule"),
    [
        (BETTER, (0.01, 0.01), (0.2, 0.2), "ship", "primary-better"),
        (BETTER, (0.05, 0.0), (0.3, 0.1), "ship", "primary-better"),
        (BETTER, (0.0, 0.0), (0.2, 0.2), "ship", "primary-better"),
        (BETTER, (0.01, 0.04), (0.2, 0.2), "inconclusive", "guardrail-unsure"),
        (BETTER, (0.01, 0.01), (0.2, 0.29), "inconclusive", "guardrail-unsure"),
        (BETTER, (0.01, 0.30), (0.2, 0.2), "keep", "guardrail-harmed"),
        (BETTER, (0.01, 0.01), (0.2, 0.9), "keep", "guardrail-harmed"),
        (WORSE, (0.01, 0.01), (0.2, 0.2), "keep", "primary-worse"),
        (WORSE, (0.01, 0.30), (0.2, 0.2), "keep", "guardrail-harmed"),
        (SAME, (0.01, 0.30), (0.2, 0.2), "keep", "guardrail-harmed"),
        (SAME, (0.01, 0.01), (0.2, 0.2), "inconclusive", "interval-includes-zero"),
    ],
)
def test_a_winner_has_every_guardrail_non_inferior(
    primary: tuple[float, float], errors: tuple[float, float], latency: tuple[float, float], decision: str, rule: str
) -> None:
    assert told(guarded(primary, errors, latency)) == (decision, rule)


def test_an_unsure_guardrail_is_named_with_its_numbers() -> None:
    verdict = guarded(BETTER, (0.01, 0.04))
    assert (
        "guardrail not shown to hold: error 0.01 → 0.04" in verdict.reasons[0] and "margin 0.05" in verdict.reasons[0]
    )
    assert "better than v1, but" in verdict.headline


# --- validity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "rule", "word"),
    [
        ({"plan_digest": None}, "plan-missing", "no plan"),
        ({"plan_digest": "0" * 64}, "plan-changed", "changed"),
        ({"dropped_rows": 1}, "rows-dropped", "1 row"),
        ({"crossed_units": 2}, "units-crossed", "both arms"),
    ],
)
def test_what_voids_a_test_never_ships(facts: dict[str, Any], rule: str, word: str) -> None:
    verdict = scored(0.58, 0.91, **facts)
    assert told(verdict) == ("invalid", rule)
    assert verdict.reasons[0].startswith("INVALID: ") and word in verdict.reasons[0]


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 0.2},
        {"metrics": (Rate("exact_match", margin=0.5),)},
        {"planned_n": 500},
        {"metrics": (Rate("exact_match", margin=0.05), Rate("error", role="secondary"))},
    ],
)
def test_a_plan_changed_after_the_first_exposure_is_caught(change: dict[str, Any]) -> None:
    assert told(scored(0.58, 0.91, replace(PLAN, **change), plan_digest=PLAN.digest())) == ("invalid", "plan-changed")


def test_a_split_that_was_not_as_planned_is_caught() -> None:
    arms = (arm("v1", 400, exact_match=rate(400, 0.5)), arm("v2", 250, exact_match=rate(250, 0.9)))
    verdict = decide(PLAN, evidence_of(PLAN, *arms))
    assert told(verdict) == ("invalid", "sample-ratio-mismatch") and verdict.sample_ratio.mismatch
    assert "250 of 650" in verdict.reasons[0] and "38.5% instead of 50.0%" in verdict.reasons[0]
    as_planned = replace(PLAN, expected_share=0.385)
    assert decide(as_planned, evidence_of(as_planned, *arms)).decision is Decision.SHIP


def test_an_early_look_decides_nothing_and_says_what_is_missing() -> None:
    verdict = scored(0.58, 0.91, n=200)
    assert told(verdict) == ("inconclusive", "not-yet")
    assert "400 of the 600" in verdict.reasons[0] and "200 more" in verdict.reasons[0]
    assert told(scored(0.58, 0.91, n=3)) == ("inconclusive", "not-yet")
    assert told(scored(0.58, 0.91, n=299)) == ("inconclusive", "not-yet")


@pytest.mark.parametrize(("failures", "rule"), [(3, "primary-better"), (4, "scores-missing"), (300, "scores-missing")])
def test_more_than_one_failed_score_in_a_hundred_voids(failures: int, rule: str) -> None:
    arms = [arm(version, exact_match=rate(300, share)) for version, share in (("v1", 0.58), ("v2", 0.91))]
    arms[1] = replace(arms[1], score_failures={"exact_match": failures})
    assert decide(PLAN, evidence_of(PLAN, *arms)).rule == rule


def test_failed_scores_count_against_answers_not_requests() -> None:
    broken = ArmEvidence(
        version="v2", assigned=300, analysed=50, requests=300, failed=250, score_failures={"exact_match": 2},
        summaries={"exact_match": rate(48, 0.9)},
    )  # fmt: skip
    assert decide(PLAN, evidence_of(PLAN, arm("v1", exact_match=rate(300, 0.5)), broken)).rule == "scores-missing"


def test_too_few_units_decide_nothing() -> None:
    plan = replace(PLAN, planned_n=30)
    assert told(scored(0.0, 1.0, plan, n=15)) == ("invalid", "too-few-units")
    assert told(scored(0.0, 1.0, replace(plan, min_units=15), n=15)) == ("ship", "primary-better")


def test_a_primary_scored_on_a_handful_decides_nothing() -> None:
    arms = (arm("v1", exact_match=RateSummary(300, 100)), arm("v2", exact_match=RateSummary(8, 8)))
    verdict = decide(PLAN, evidence_of(PLAN, *arms))
    assert told(verdict) == ("invalid", "too-few-units") and "8 value(s)" in verdict.reasons[0]


EMPTY: list[Summary | None] = [None, RateSummary(0, 0), RatioSummary.of([], [])]


@pytest.mark.parametrize("gone", EMPTY, ids=repr)
@pytest.mark.parametrize("side", [0, 1])
def test_a_metric_without_values_in_an_arm_voids(gone: Summary | None, side: int) -> None:
    by_unit = RatioSummary.of([1.0, 2.0] * 150, [1.0, 3.0] * 150)
    full: Summary = by_unit if isinstance(gone, RatioSummary) else rate(300, 0.9)
    summaries: list[dict[str, Any]] = [{"exact_match": full}, {"exact_match": full}]
    summaries[side] = {} if gone is None else {"exact_match": gone}
    verdict = decide(PLAN, evidence_of(PLAN, arm("v1", **summaries[0]), arm("v2", **summaries[1])))
    assert told(verdict) == ("invalid", "metric-missing")
    assert "'exact_match'" in verdict.reasons[0]
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_secondary_metric_without_a_result_does_not_void() -> None:
    plan = replace(PLAN, metrics=(*PLAN.metrics, Mean("judge", role="secondary")))
    arms = [
        arm(version, exact_match=rate(300, share), judge=MeanSummary.of([3.0] * 300))
        for version, share in (("v1", 0.58), ("v2", 0.91))
    ]
    verdict = decide(plan, evidence_of(plan, *arms))
    assert verdict.decision is Decision.SHIP
    assert any("judge: not attainable" in reason for reason in verdict.reasons)


# --- nothing ships by accident ----------------------------------------------------------------------------------------


def test_an_empty_candidate_never_ships() -> None:
    for plan in (PLAN, replace(PLAN, planned_n=1)):
        empty = arm("v2", 0, exact_match=RateSummary(0, 0))
        for n in (1, 20, 600):
            verdict = decide(plan, evidence_of(plan, arm("v1", n, exact_match=rate(n, 0.5)), empty))
            assert verdict.decision in {Decision.INVALID, Decision.INCONCLUSIVE}


def test_a_candidate_that_only_fails_never_ships() -> None:
    plan = replace(PLAN, metrics=(*PLAN.metrics, ERRORS))
    sound = arm("v1", exact_match=rate(300, 0.58), error=RateSummary(300, 0))
    dead = ArmEvidence(
        version="v2", assigned=300, analysed=0, requests=300, failed=300,
        summaries={"exact_match": RateSummary(0, 0), "error": RateSummary(300, 300)},
    )  # fmt: skip
    verdict = decide(plan, evidence_of(plan, sound, dead))
    assert told(verdict) == ("invalid", "too-few-units")
    assert any("300 failed request(s)" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(("primary", "metrics"), [(BETTER, ()), ((1.0, 1.0), ()), (BETTER, (ERRORS,))])
def test_survivors_do_not_decide(primary: tuple[float, float], metrics: tuple[Metric, ...]) -> None:
    """A third of the candidate's requests fail; what is left looks splendid."""
    plan = replace(PLAN, metrics=(*PLAN.metrics, *metrics))
    sound = arm("v1", exact_match=rate(300, primary[0]), error=RateSummary(300, 0))
    failing = arm("v2", analysed=200, exact_match=rate(200, primary[1]), error=RateSummary(300, 100))
    verdict = decide(plan, evidence_of(plan, sound, failing))
    assert told(verdict) == (("keep", "guardrail-harmed") if metrics else ("invalid", "answers-lost-unevenly"))


def test_a_few_lost_answers_in_both_arms_are_no_matter() -> None:
    arms = (arm("v1", analysed=296, exact_match=rate(296, 0.58)), arm("v2", analysed=291, exact_match=rate(291, 0.91)))
    assert decide(PLAN, evidence_of(PLAN, *arms)).decision is Decision.SHIP


@pytest.mark.parametrize(
    "summaries",
    [
        (MeanSummary(300, -1.7e308, 1e300), MeanSummary(300, 1.7e308, 1e300)),
        (MeanSummary.of([0.1] * 300), MeanSummary.of([0.9] * 300)),
    ],
)
def test_what_is_not_a_number_never_ships(summaries: tuple[MeanSummary, MeanSummary]) -> None:
    plan = replace(PLAN, metrics=(Mean("score"),))
    verdict = decide(plan, evidence_of(plan, arm("v1", score=summaries[0]), arm("v2", score=summaries[1])))
    assert told(verdict) == ("invalid", "not-attainable")
    json.dumps(verdict.to_dict(), allow_nan=False)


counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


@given(counts, counts, st.integers(0, 3), st.booleans())
def test_shipping_needs_everything(
    a: tuple[int, int, int], b: tuple[int, int, int], dropped: int, tampered: bool
) -> None:
    plan = replace(PLAN, metrics=(*PLAN.metrics, ERRORS), planned_n=400)
    arms = [
        arm(version, n, exact_match=RateSummary(n, good), error=RateSummary(n, bad))
        for version, (n, good, bad) in (("v1", a), ("v2", b))
    ]
    facts: dict[str, Any] = {"dropped_rows": dropped, "plan_digest": "other" if tampered else plan.digest()}
    verdict = decide(plan, evidence_of(plan, *arms, **facts))
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert verdict.reasons and verdict.in_words()
    if verdict.decision is Decision.SHIP:
        assert not dropped and not tampered and a[0] + b[0] >= 400 and min(a[0], b[0]) >= 20
        assert verdict.comparisons["exact_match"].low > 0
        assert verdict.comparisons["error"].high < 0.05


# --- several requests a unit ------------------------------------------------------------------------------------------


def test_units_with_several_requests_and_no_error_are_decided() -> None:
    rng = np.random.default_rng(1)
    plan = replace(PLAN, metrics=(*PLAN.metrics, ERRORS))
    arms = [
        arm(
            version,
            exact_match=RatioSummary.of(rng.binomial(4, share, 300), [4.0] * 300),
            error=RatioSummary.of([0.0] * 300, [4.0] * 300),
        )
        for version, share in (("v1", 0.58), ("v2", 0.91))
    ]
    verdict = decide(plan, evidence_of(plan, *arms, repeated_units=300))
    assert told(verdict) == ("ship", "primary-better")
    assert "clustered by unit" in verdict.comparisons["exact_match"].method


# --- words and JSON ---------------------------------------------------------------------------------------------------


def test_a_verdict_in_words_names_numbers_rule_and_plan() -> None:
    verdict = guarded(BETTER, (0.01, 0.01))
    words = verdict.in_words()
    assert words.startswith("SHIP v2: it is better than v1.\n  - exact_match 0.58 → 0.91, difference +0.33 [")
    parts = ["95% interval", "n = 300 + 300", "margin 0.05", "every guardrail holds", "guardrail: error"]
    parts += ["guardrail: latency_s", "50.0% was planned", PLAN.looks, "alpha 0.05", verdict.plan_digest[:12]]
    for part in parts:
        assert part in words, part


def test_the_primary_is_told_whatever_decided() -> None:
    for verdict in (guarded(BETTER, (0.01, 0.3)), scored(0.58, 0.91, n=200), scored(0.5, 0.6, dropped_rows=1)):
        assert "primary: exact_match" in verdict.in_words()


def test_json_has_documented_keys_and_no_nan() -> None:
    plain = json.loads(json.dumps(scored(0.58, 0.91, plan_digest=None).to_dict(), allow_nan=False))
    assert set(plain) == {
        "decision", "rule", "headline", "reasons", "baseline", "candidate", "alpha", "detectable", "comparisons",
        "sample_ratio", "plan_digest", "evaluation", "look", "alpha_spent", "primary", "bayes",
    }  # fmt: skip
    assert set(plain["comparisons"]["exact_match"]) == {
        "method", "alpha", "baseline", "candidate", "estimate", "low", "high", "p_value", "df", "standard_error",
        "why_not", "notes", "attainable", "relative", "look", "e_value",
    }  # fmt: skip
    assert set(plain["comparisons"]["exact_match"]["baseline"]) == {"n", "value", "low", "high"}


def test_evidence_that_cannot_be_is_refused() -> None:
    for change in ({"assigned": -1}, {"analysed": 301}, {"analysed": -1}, {"failed": 1.5}, {"requests": True}):
        with pytest.raises(InvalidInput, match="evidence"):
            replace(arm("v1"), **change)
    with pytest.raises(InvalidInput, match="dropped_rows"):
        evidence_of(PLAN, arm("v1"), arm("v2"), dropped_rows=-1)


def test_requests_of_one_unit_are_not_taken_for_independent() -> None:
    baseline = ArmEvidence(version="v1", assigned=30, analysed=30, requests=60, summaries={"m": RateSummary(60, 30)})
    with pytest.raises(InvalidInput, match=r"evidence\.baseline\.summaries\.m.*RatioSummary by unit"):
        Evidence(baseline=baseline, candidate=baseline, plan_digest=None, repeated_units=30)
