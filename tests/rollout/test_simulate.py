"""Canaries of a day, in milliseconds: the good are promoted, the bad sent back, and no evidence never promotes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from abswitch.rollout.judging import Guardrail, Judge, ThresholdJudge
from abswitch.rollout.operation import Phase
from abswitch.rollout.sequential_judge import SequentialJudge
from abswitch.rollout.simulate import Outage, Truth, World, simulate
from abswitch.rollout.strategies import CanaryStrategy, GradualStrategy

CANARY = CanaryStrategy(
    initial_percentage=5,
    step_percentage=15,
    evaluation_period_minutes=60,
    max_error_rate_threshold=0.02,
    min_requests=200,
)
RAILS = (Guardrail("latency_p95_s", max_ratio=1.2),)
JUDGE: Judge = SequentialJudge(max_error_rate=0.02, min_requests=200, stages=len(CANARY.stages), guardrails=RAILS)
THRESHOLDS: Judge = ThresholdJudge(max_error_rate=0.02, min_requests=200, guardrails=RAILS)
GOOD, BAD, SLOW = Truth(error_rate=0.005), Truth(error_rate=0.06), Truth(error_rate=0.005, latency_s=0.8)


def endings(world: World, n: int, seed: int = 1, judge: Judge = JUDGE) -> Counter[Phase]:
    rng = np.random.default_rng(seed)
    return Counter(simulate(CANARY, world, judge, rng).operation.phase for _ in range(n))


def test_a_good_candidate_arrives_and_takes_its_time() -> None:
    rng = np.random.default_rng(3)
    went = simulate(CANARY, World(requests_per_s=1.0, stable=GOOD, candidate=GOOD), JUDGE, rng)
    assert went.operation.phase is Phase.SUCCEEDED and went.operation.promoted
    assert went.looks >= len(CANARY.stages) and went.hours >= len(CANARY.stages)
    assert went.largest_share == pytest.approx(CANARY.stages[-1].share)


@pytest.mark.parametrize("drift", [0.0, 3.0])
def test_many_days(drift: float) -> None:
    good = World(requests_per_s=1.0, stable=GOOD, candidate=GOOD, drift=drift)
    assert endings(good, 50)[Phase.SUCCEEDED] >= 48
    for truth in (BAD, SLOW):
        for judge in (JUDGE, THRESHOLDS):
            found = endings(World(requests_per_s=1.0, stable=GOOD, candidate=truth, drift=drift), 50, judge=judge)
            assert found == {Phase.ROLLED_BACK: 50}, found


@pytest.mark.parametrize("outage", [outage for outage in Outage if outage is not Outage.NONE])
@pytest.mark.parametrize("truth", [GOOD, BAD])
@pytest.mark.parametrize("judge", [JUDGE, THRESHOLDS], ids=["sequential", "thresholds"])
def test_without_evidence_nothing_is_promoted(outage: Outage, truth: Truth, judge: Judge) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        went = simulate(CANARY, World(requests_per_s=5.0, stable=GOOD, candidate=truth, outage=outage), judge, rng)
        assert went.operation.phase is Phase.ROLLED_BACK and not went.operation.promoted
        assert went.hours == pytest.approx(24.0) and went.largest_share == pytest.approx(0.05)


def test_too_little_traffic_is_no_evidence() -> None:
    assert endings(World(requests_per_s=0.001, stable=GOOD, candidate=GOOD), 10) == {Phase.ROLLED_BACK: 10}


def test_a_ramp_by_the_clock_asks_nobody() -> None:
    went = simulate(GradualStrategy(), World(requests_per_s=1.0), JUDGE, np.random.default_rng(1))
    assert went.operation.promoted and went.looks == 0 and went.hours == pytest.approx(0.5)
