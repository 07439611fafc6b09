"""Error rates by simulation: intervals cover, and two copies of one version are rarely told apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    Comparison,
    Decision,
    Evidence,
    MeanSummary,
    Rate,
    RateSummary,
    RatioSummary,
    decide,
    ratio_delta_test,
    two_proportion_z_test,
    welch_t_test,
)

RUNS = 2000  # Monte-Carlo error of a 95 % share: 0.005


def draw_rate(rng: np.random.Generator, n: int, rate: float) -> RateSummary:
    return RateSummary(n, int(rng.binomial(n, rate)))


def normal(rng: np.random.Generator) -> Comparison:
    return welch_t_test(MeanSummary.of(rng.normal(0, 1, 15)), MeanSummary.of(rng.normal(0, 4, 40)))


def skewed(rng: np.random.Generator) -> Comparison:
    return welch_t_test(MeanSummary.of(rng.exponential(1, 100)), MeanSummary.of(rng.exponential(1, 100)))


def rare(rng: np.random.Generator) -> Comparison:
    return two_proportion_z_test(draw_rate(rng, 300, 0.02), draw_rate(rng, 300, 0.02))


def even(rng: np.random.Generator) -> Comparison:
    return two_proportion_z_test(draw_rate(rng, 40, 0.5), draw_rate(rng, 60, 0.5))


def throughput(rng: np.random.Generator) -> Comparison:
    arms = []
    for n in (60, 30):
        seconds = rng.gamma(4.0, 0.25, n)
        arms.append(RatioSummary.of(50 * seconds + rng.normal(0, 5, n), seconds))
    return ratio_delta_test(*arms)


def few_users(rng: np.random.Generator) -> Comparison:
    """Eight users an arm, each with a handful of requests: what z gets wrong."""
    arms = []
    for _ in range(2):
        requests = rng.integers(5, 15, 8)
        arms.append(RatioSummary.of(requests * rng.normal(10, 2, 8), requests))
    return ratio_delta_test(*arms)


@pytest.mark.parametrize("draw", [normal, skewed, rare, even, throughput, few_users])
def test_intervals_cover_the_truth(draw: Callable[[np.random.Generator], Comparison]) -> None:
    rng = np.random.default_rng(20)
    covered = sum(not draw(rng).excludes_zero() for _ in range(RUNS)) / RUNS
    assert 0.935 <= covered <= 0.985


def test_two_copies_of_one_version_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(21)
    plan = AnalysisPlan(baseline="v1", candidate="v2", metrics=(Rate("ok"),), expected_share=0.5, planned_n=600)
    digest, decisions = plan.digest(), []
    for _ in range(1000):
        candidate = int(rng.binomial(600, 0.5))
        arms = [
            ArmEvidence(version=version, assigned=n, analysed=n, summaries={"ok": draw_rate(rng, n, 0.91)})
            for version, n in (("v1", 600 - candidate), ("v2", candidate))
        ]
        decisions.append(decide(plan, Evidence(baseline=arms[0], candidate=arms[1], plan_digest=digest)).decision)
    assert decisions.count(Decision.SHIP) <= 40  # 25 expected
    assert decisions.count(Decision.KEEP) <= 40
    assert decisions.count(Decision.INVALID) <= 5  # 1 expected
