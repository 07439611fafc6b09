"""Pairs at any time: the exact method against its definition, which method a look takes, and how often verdicts err."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from abswitch.errors import InvalidInput
from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    Evidence,
    JointSummary,
    Mean,
    PairedRateSummary,
    PairedRatioSummary,
    PairedSummary,
    Rate,
    Ratio,
    Verdict,
    decide,
    mixed_bets_difference,
    mixed_bets_log_e,
)
from abswitch.stats.looks import Look

PLAN = AnalysisPlan(
    baseline="v1", candidate="v2", metrics=(Rate("ok", margin=0.05),), expected_share=0.5, planned_n=800,
    design="paired", evaluation="sequential",
)  # fmt: skip


def pairs(up: int, down: int, n: int) -> PairedRateSummary:
    both = (n - up - down) // 2
    return PairedRateSummary(both=both, candidate_only=up, baseline_only=down, neither=n - up - down - both)


@pytest.mark.parametrize(("up", "down", "n"), [(7, 0, 50), (3, 4, 200), (0, 12, 12), (11, 2, 4000)])
def test_against_no_difference_it_is_the_beta_binomial_test_of_fair_coins(up: int, down: int, n: int) -> None:
    coins = stats.betabinom(up + down, 0.5, 0.5).pmf(up) / stats.binom(up + down, 0.5).pmf(up)
    assert math.exp(mixed_bets_log_e(up, down, n)) == pytest.approx(coins, rel=1e-9)


def test_against_another_difference_it_is_the_mean_of_all_bets() -> None:
    up, down, n, difference = 6, 3, 40, 0.2
    level = (1 + difference) / 2

    def grown(share: float) -> float:
        more, less = share / level, (1 - share) / (1 - level)
        return float(more**up * less**down * ((more + less) / 2) ** (n - up - down))

    whole, _ = integrate.quad(lambda angle: grown(math.sin(angle) ** 2) * 2 / math.pi, 0, math.pi / 2, epsabs=1e-12)
    assert math.exp(mixed_bets_log_e(up, down, n, difference)) == pytest.approx(whole, rel=1e-8)


@pytest.mark.parametrize(("up", "down", "n"), [(0, 0, 1), (0, 0, 300), (5, 0, 5), (3, 1, 30), (9, 9, 500), (0, 19, 90)])
def test_the_interval_is_all_that_the_bets_leave_open(up: int, down: int, n: int) -> None:
    found = mixed_bets_difference(pairs(up, down, n))
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    grid = np.linspace(-0.999, 0.999, 1500)
    opened = np.array([mixed_bets_log_e(up, down, n, one) < math.log(20) for one in grid])
    inside = (grid > found.low + 1e-6) & (grid < found.high - 1e-6)
    assert (opened[inside]).all() and not opened[(grid < found.low - 1e-6) | (grid > found.high + 1e-6)].any()
    assert found.excludes_zero() == (found.e_value >= 20)
    turned = mixed_bets_difference(pairs(down, up, n))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-7)


def test_answers_in_between_are_taken_for_less_than_they_say() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, (2, 60)).astype(float)
    whole, rates = PairedSummary.of(a, b), PairedRateSummary.of(a, b)
    assert mixed_bets_difference(whole).high == pytest.approx(mixed_bets_difference(rates).high)
    halves = np.clip((b - a) / 2, -1, 1)
    true = sum(math.log1p(0.4 * d) for d in halves)
    up, down = halves[halves > 0].sum(), -halves[halves < 0].sum()
    assert up * math.log(1.4) + down * math.log(0.6) <= true


def test_what_it_cannot_bet_on_is_refused() -> None:
    assert mixed_bets_difference(pairs(0, 0, 0)).why_not == "not attainable: there are no pairs"
    with pytest.raises(InvalidInput, match="pairs.distance"):
        mixed_bets_difference(PairedSummary.of([0.0, 0.0], [3.0, 4.0]))
    with pytest.raises(InvalidInput, match="pairs.distance"):
        mixed_bets_difference(replace(PairedSummary.of([0.0], [1.0]), distance=None))
    with pytest.raises(InvalidInput, match="alpha"):
        mixed_bets_difference(pairs(1, 1, 10), alpha=0.0)


def test_unit_means_of_rates_keep_their_distance() -> None:
    a, b = PairedSummary.of([0.5, 1.0], [1.0, 0.5]), PairedSummary.of([0.0], [1.0])
    assert (a.distance, (a + b).distance, (a + replace(b, distance=None)).distance) == (1.0, 2.0, None)


# --- looks ------------------------------------------------------------------------------------------------------------


def looked(joint: dict[str, JointSummary], look: Look, plan: AnalysisPlan = PLAN, n: int = 100) -> Verdict:
    arms = [ArmEvidence(version=one, assigned=n, analysed=n, requests=n) for one in ("v1", "v2")]
    evidence = Evidence(baseline=arms[0], candidate=arms[1], plan_digest=plan.digest(), joint=joint)
    return decide(plan, evidence, look)


SECOND = Look(number=2, last=False)
ONES, TWOS = np.random.default_rng(2).gamma(4.0, size=(2, 100))
KINDS: list[tuple[Any, JointSummary, str]] = [
    (Rate("ok"), pairs(10, 9, 100), "mixed bets on the pairs that differ"),
    (Rate("ok"), pairs(11, 9, 100), "McNemar (asymptotic), Tango interval; mixture SPRT"),
    (Rate("ok"), PairedSummary.of(ONES / 99, TWOS / 99), "mixed bets on the pairs that differ"),
    (Rate("ok"), PairedSummary.of(ONES / 20, TWOS / 20 + 0.2), "paired t; mixture SPRT"),
    (Mean("ok"), PairedSummary.of(ONES / 99, TWOS / 99), "paired t; mixture SPRT"),
    (Ratio("ok", "n", name="ok"), PairedRatioSummary.of(ONES, TWOS, TWOS, ONES), "paired delta method; mixture SPRT"),
]


@pytest.mark.parametrize(("metric", "joint", "method"), KINDS, ids=[f"{m.kind}-{w[:12]}" for m, _, w in KINDS])
def test_a_look_takes_the_method_that_its_pairs_allow(metric: Any, joint: JointSummary, method: str) -> None:
    plan = replace(PLAN, metrics=(metric,))
    found = looked({"ok": joint}, SECOND, plan).comparisons["ok"]
    assert found.method.startswith(method)
    assert (found.look, found.alpha) == (2, 0.05)
    once = looked({"ok": joint}, Look(), replace(plan, evaluation="fixed", look_every=None)).comparisons["ok"]
    assert found.high - found.low > once.high - once.low, "the price of looking again"
    assert found.excludes_zero() == (found.p_value <= 0.05)
    planned = replace(plan, evaluation="group_sequential", look_every=None)
    some = looked({"ok": joint}, Look(number=2, last=False, fractions=(0.2, 0.4)), planned).comparisons["ok"]
    assert some.look == 2 and some.high - some.low > once.high - once.low
    assert ("group sequential" in some.method) == (not method.startswith("mixed"))


def test_few_pairs_decide_nothing_about_means() -> None:
    plan = replace(PLAN, metrics=(Mean("ok"),))
    found = looked({"ok": PairedSummary.of([1.0, 2, 3, 4], [2.0, 3, 4.5, 6])}, SECOND, plan).comparisons["ok"]
    assert found.why_not == "not attainable: 4 pairs, and 5 are the least at a look"


def test_a_look_so_early_that_nothing_is_normal_is_exact() -> None:
    plan = replace(PLAN, planned_n=100_000, look_every=None)
    assert looked({"ok": pairs(30, 2, 60)}, SECOND, plan).comparisons["ok"].method.startswith("mixed bets")


def test_the_end_says_what_it_could_have_found_and_how_many_pairs_it_takes() -> None:
    verdict = looked({"ok": pairs(12, 14, 100)}, Look(number=4, last=True))
    assert verdict.rule == "interval-includes-zero"
    assert "would have been found" in verdict.reasons[0] and "pairs in all (100 were analysed)" in verdict.reasons[0]


def test_only_pairs_and_splits_are_looked_at_often_and_old_plans_keep_their_digest() -> None:
    blocks = ("baseline", "candidate") * 2
    with pytest.raises(InvalidInput, match="fixed, as the design is switchback"):
        replace(PLAN, design="switchback", blocks=blocks)
    assert PLAN.looks.startswith("sequential: a look at most every 20 pairs") and PLAN.look_every == 20
    assert replace(PLAN, planned_n=4000, look_every=None).look_every == 40, "a fiftieth of 2000 pairs"
    fixed = replace(PLAN, evaluation="fixed", look_every=None)
    assert not {"evaluation", "look_every"} & fixed.to_dict().keys()
    assert fixed.digest() != PLAN.digest()


# --- peeking ----------------------------------------------------------------------------------------------------------


def ended(rng: np.random.Generator, plan: AnalysisPlan, apart: float, difference: float, every: int) -> tuple[str, int]:
    """The rule by which one comparison ended, and after how many pairs."""
    n = plan.planned_n // 2
    drawn = rng.random(n)
    d = np.where(drawn < (apart + difference) / 2, 1, np.where(drawn < apart, -1, 0))
    slow = rng.lognormal(0.0, 1.0, (2, n))
    for number, size in enumerate(range(every, n + 1, every), 1):
        up, down = int((d[:size] > 0).sum()), int((d[:size] < 0).sum())
        joint: dict[str, JointSummary] = {"ok": pairs(up, down, size)}
        joint["latency_s"] = PairedSummary.of(*slow[:, :size])
        verdict = looked(joint, Look(number=number, last=size == n), plan, size)
        if verdict.is_final:
            break
    return verdict.rule, size


@pytest.mark.parametrize("apart", [0.3, 0.06], ids=["many differ", "few differ"])
def test_two_copies_are_rarely_told_apart_however_often_looked_at(apart: float) -> None:
    metrics = (Rate("ok"), Mean("latency_s", role="guardrail", margin=0.001))
    plan = replace(PLAN, metrics=metrics, planned_n=400, alpha=0.2, look_every=None)
    rng, streams = np.random.default_rng(5), 60
    wrong = sum(ended(rng, plan, apart, 0.0, 20)[0] != "interval-includes-zero" for _ in range(streams))
    assert wrong <= 2 * streams * 0.2 / 2 + 2 * math.sqrt(streams * 0.2 * 0.8), "at alpha .2, so that it would show"


def test_a_difference_is_found_long_before_the_budget_ends() -> None:
    rng = np.random.default_rng(6)
    plan = replace(PLAN, metrics=(Rate("ok"), Mean("latency_s", role="secondary")), planned_n=1000, look_every=None)
    ends = [ended(rng, plan, 0.4, 0.25, 20) for _ in range(12)]
    assert {rule for rule, _ in ends} == {"primary-better"}
    assert np.mean([n for _, n in ends]) < 200
