"""Verdicts of plans with several looks: when they end a test, what they say, and how often they err when peeked at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    Decision,
    Evidence,
    Mean,
    MeanSummary,
    Rate,
    RateSummary,
    Verdict,
    decide,
)
from abswitch.stats.looks import Look

METRICS = (Rate("ok", margin=0.05), Rate("error", role="guardrail", margin=0.1))
PLAN = AnalysisPlan(
    baseline="v1", candidate="v2", metrics=METRICS, expected_share=0.5, planned_n=1000, evaluation="sequential"
)
EARLY, LAST = Look(number=3, last=False), Look(number=9, last=True)


def arm(version: str, n: int, ok: int, errors: int = 0, **facts: Any) -> ArmEvidence:
    summaries = {"ok": RateSummary(n, ok), "error": RateSummary(n, errors)}
    given: dict[str, Any] = {"assigned": n, "analysed": n, "requests": n, "summaries": summaries}
    return ArmEvidence(version=version, **given | facts)


def looked(a: ArmEvidence, b: ArmEvidence, look: Look = EARLY, plan: AnalysisPlan = PLAN, **facts: Any) -> Verdict:
    return decide(plan, Evidence(baseline=a, candidate=b, plan_digest=plan.digest(), **facts), look)


CASES = [
    ("a clear winner ends it", arm("v1", 200, 100), arm("v2", 200, 180), "ship", "primary-better"),
    ("a clear loser ends it", arm("v1", 200, 180), arm("v2", 200, 100), "keep", "primary-worse"),
    ("equal within the margin ends it", arm("v1", 900, 890), arm("v2", 900, 891), "equivalent", "within-margin"),
    ("nothing shown goes on", arm("v1", 200, 120), arm("v2", 200, 125), "inconclusive", "continue"),
    ("few units go on", arm("v1", 10, 0), arm("v2", 10, 10), "inconclusive", "continue"),
    ("no units go on", arm("v1", 0, 0), arm("v2", 0, 0), "inconclusive", "continue"),
    ("harm ends it", arm("v1", 200, 120), arm("v2", 200, 120, 90), "keep", "guardrail-harmed"),
    ("better, guardrail unsure, goes on", arm("v1", 60, 10), arm("v2", 60, 55), "inconclusive", "continue"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "decision", "rule"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_look_ends_the_test_or_goes_on(a: ArmEvidence, b: ArmEvidence, decision: str, rule: str) -> None:
    verdict = looked(a, b)
    assert (verdict.decision.value, verdict.rule) == (decision, rule)
    assert verdict.is_final == (rule != "continue") == (verdict.bayes is not None)
    assert verdict.look == 3


@pytest.mark.parametrize(
    ("a", "b", "rule"),
    [
        (arm("v1", 200, 120), arm("v2", 200, 125), "interval-includes-zero"),
        (arm("v1", 10, 0), arm("v2", 10, 10), "too-few-units"),
        (arm("v1", 60, 10), arm("v2", 60, 55), "guardrail-unsure"),
    ],
)
def test_what_goes_on_is_told_at_the_last_look(a: ArmEvidence, b: ArmEvidence, rule: str) -> None:
    verdict = looked(a, b, LAST)
    assert verdict.rule == rule and verdict.is_final and verdict.decision in {Decision.INVALID, Decision.INCONCLUSIVE}


def test_the_end_without_a_decision_says_what_was_detectable_and_is_still_needed() -> None:
    verdict = looked(arm("v1", 500, 300), arm("v2", 500, 305), LAST)
    found = verdict.comparisons["ok"]
    assert "would have been found four times in five" in verdict.reasons[0]
    assert "To find 0.05 takes about" in verdict.reasons[0] and "(1,000 were analysed)" in verdict.reasons[0]
    assert verdict.detectable == pytest.approx((found.high - found.low) / 2 + 0.8416 * found.standard_error, rel=1e-3)


def test_harm_ends_a_test_whose_primary_has_no_values() -> None:
    dead = arm("v2", 200, 0, 200, analysed=0, summaries={"ok": RateSummary(0, 0), "error": RateSummary(200, 200)})
    assert looked(arm("v1", 200, 120), dead).rule == "guardrail-harmed"


@pytest.mark.parametrize(
    ("change", "facts", "rule"),
    [
        ({"assigned": 400}, {}, "sample-ratio-mismatch"),
        ({}, {"crossed_units": 1}, "units-crossed"),
        ({}, {"dropped_rows": 1}, "rows-dropped"),
        ({"score_failures": {"ok": 60}}, {}, "scores-missing"),
        ({"analysed": 150}, {}, "answers-lost-unevenly"),
    ],
)
def test_validity_comes_first_at_every_look(change: dict[str, Any], facts: dict[str, Any], rule: str) -> None:
    verdict = looked(arm("v1", 200, 100), replace(arm("v2", 200, 180), **change), **facts)
    assert (verdict.decision, verdict.rule) == (Decision.INVALID, rule)


def test_a_first_failed_score_voids_nothing_yet() -> None:
    broken = replace(arm("v2", 40, 22), score_failures={"ok": 1})
    assert looked(arm("v1", 40, 20), broken).rule == "continue"
    assert looked(arm("v1", 40, 20), broken, LAST).rule == "scores-missing"


def test_the_split_is_checked_so_that_peeking_is_allowed() -> None:
    """Chi-square would call this off at p < .001; looked at again and again it does so for every sixth sound test."""
    verdict = looked(arm("v1", 560, 300), arm("v2", 430, 240))
    assert "Dirichlet" in verdict.sample_ratio.method and not verdict.sample_ratio.mismatch


def test_words_and_json_name_look_rule_alpha_and_the_label() -> None:
    verdict = looked(arm("v1", 200, 100), arm("v2", 200, 180))
    words = verdict.in_words()
    parts = ["95% interval at all looks, look 3", "n = 200 + 200", "margin 0.05", "mixture SPRT", "number 3"]
    parts += ["error rate not controlled under peeking", "chance to win", "a look at most every 20 requests"]
    for part in parts:
        assert part in words, part
    plain = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert (plain["look"], plain["alpha_spent"], plain["evaluation"]) == (3, 0.05, "sequential")
    assert (
        plain["bayes"]["label"] == "error rate not controlled under peeking" and plain["bayes"]["chance_to_win"] > 0.99
    )
    going_on = looked(arm("v1", 200, 120), arm("v2", 200, 125))
    assert going_on.headline.startswith("INCONCLUSIVE SO FAR") and going_on.to_dict()["bayes"] is None


def test_planned_looks_stop_late_looks_spend_more() -> None:
    plan = replace(PLAN, evaluation="group_sequential", look_every=None)
    arms = (arm("v1", 250, 125), arm("v2", 250, 150))
    first = looked(*arms, Look(number=1, last=False, fractions=(0.2,)), plan)
    third = looked(*arms, Look(number=3, last=False, fractions=(0.2, 0.4, 0.6)), plan)
    last = looked(*arms, Look(number=3, last=True, fractions=(0.2, 0.4, 0.6)), plan)
    assert [one.rule for one in (first, third, last)] == ["continue", "continue", "primary-better"]
    assert first.alpha_spent < third.alpha_spent < last.alpha_spent == 0.05


counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


@settings(max_examples=60)
@given(counts, counts, st.booleans(), st.integers(0, 2), st.sampled_from(["sequential", "group_sequential"]))
def test_shipping_needs_everything(
    a: tuple[int, int, int], b: tuple[int, int, int], last: bool, dropped: int, evaluation: str
) -> None:
    plan = replace(PLAN, evaluation=evaluation, look_every=None)
    look = Look(number=1, last=last, fractions=(0.5,) if evaluation == "group_sequential" else ())
    verdict = looked(arm("v1", *a), arm("v2", *b), look, plan, dropped_rows=dropped)
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert verdict.reasons and verdict.in_words()
    if verdict.decision is Decision.SHIP:
        assert not dropped and min(a[0], b[0]) >= 20
        assert verdict.comparisons["ok"].low > 0 and verdict.comparisons["error"].high < 0.1
    flipped = looked(arm("v1", *b), arm("v2", *a), look, plan, dropped_rows=dropped)
    if verdict.rule == "primary-worse":
        assert flipped.comparisons["ok"].low > 0


# --- peeking ----------------------------------------------------------------------------------------------------------

ALPHA = 0.2
"""So large that an error rate beyond it shows in few streams."""


def looks_at(
    rng: np.random.Generator, rates: tuple[float, float], *, plan: AnalysisPlan, every: int, n: int
) -> Iterator[Verdict]:
    """Verdicts of all looks at one stream."""
    arms = [(rng.random(n) < rate, rng.random(n) < 0.02, rng.lognormal(0.0, 1.0, n)) for rate in rates]
    for number, size in enumerate(range(every, n + 1, every), 1):
        found = [
            replace(
                arm(version, size, int(ok[:size].sum()), int(error[:size].sum())),
                summaries={
                    "ok": RateSummary(size, int(ok[:size].sum())),
                    "error": RateSummary(size, int(error[:size].sum())),
                    "latency_s": MeanSummary.of(latency[:size]),
                },
            )
            for version, (ok, error, latency) in zip(("v1", "v2"), arms, strict=True)
        ]
        fractions = tuple(k * every / n for k in range(1, number + 1)) if plan.evaluation != "sequential" else ()
        yield looked(found[0], found[1], Look(number=number, last=size == n, fractions=fractions), plan)


@pytest.mark.parametrize(("evaluation", "every"), [("sequential", 20), ("group_sequential", 100)])
def test_two_copies_of_one_version_are_rarely_told_apart_however_often_looked_at(evaluation: str, every: int) -> None:
    metrics = (
        Rate("ok"),
        Rate("error", role="guardrail", margin=0.01),
        Mean("latency_s", role="guardrail", margin=0.2),
    )
    plan = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=metrics, expected_share=0.5, planned_n=800, alpha=ALPHA,
        evaluation=evaluation,
    )  # fmt: skip
    rng, streams, wrong, harmed = np.random.default_rng(4), 60, 0, 0
    for _ in range(streams):
        for verdict in looks_at(rng, (0.6, 0.6), plan=plan, every=every, n=400):
            assert verdict.decision is not Decision.INVALID
            found = verdict.comparisons["ok"]
            harmed += verdict.rule == "guardrail-harmed"
            if verdict.is_final or found.excludes_zero():
                wrong += found.excludes_zero()
                break
    assert wrong <= streams * ALPHA + 2 * math.sqrt(streams * ALPHA * (1 - ALPHA))
    assert harmed <= 3


def test_a_large_difference_stops_long_before_the_budget() -> None:
    rng, taken = np.random.default_rng(6), []
    for _ in range(8):
        for verdict in looks_at(rng, (0.58, 0.91), plan=PLAN, every=20, n=600):
            if verdict.is_final:
                assert verdict.rule == "primary-better"
                taken.append(verdict.comparisons["ok"].baseline.n)
                break
    assert len(taken) == 8 and np.mean(taken) < 200
