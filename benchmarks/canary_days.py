"""A thousand canaries of 24 hours on virtual time: how long they take, and how they end against the known truth.

The judge holds plain thresholds against 200 requests a step. It never promotes what it could not measure, but noise in
the 95th percentile alone sends many good candidates back: `promoted_good` is the figure a sequential judge has to beat.
"""

from __future__ import annotations

import json
import time
from collections import Counter

import numpy as np

from abswitch.rollout.judging import Guardrail, ThresholdJudge
from abswitch.rollout.operation import Phase
from abswitch.rollout.simulate import Outage, Truth, World, simulate
from abswitch.rollout.strategies import CanaryStrategy

GOALS = {"seconds": 60.0, "promoted_without_evidence": 0, "promoted_bad": 0.05}
CANARY = CanaryStrategy(
    initial_percentage=5,
    step_percentage=5,
    evaluation_period_minutes=15,
    max_error_rate_threshold=0.02,
    min_requests=200,
)
JUDGE = ThresholdJudge(max_error_rate=0.02, min_requests=200, guardrails=(Guardrail("latency_p95_s", max_ratio=1.2),))
GOOD = Truth(error_rate=0.005)
WORLDS = {
    "good": World(requests_per_s=1.0, stable=GOOD, candidate=GOOD, drift=1.0),
    "errors": World(requests_per_s=1.0, stable=GOOD, candidate=Truth(error_rate=0.05), drift=1.0),
    "slow": World(requests_per_s=1.0, stable=GOOD, candidate=Truth(error_rate=0.005, latency_s=0.8), drift=1.0),
    **{
        str(outage): World(requests_per_s=1.0, stable=GOOD, candidate=GOOD, outage=outage)
        for outage in Outage
        if outage is not Outage.NONE
    },
}


def main() -> None:
    """Run and print the line of figures."""
    each = -(-1000 // len(WORLDS))
    rng, began_s = np.random.default_rng(2026), time.perf_counter()
    promoted: dict[str, float] = {}
    print(f"{'world':<26}{'promoted':>10}{'rolled back':>13}{'looks':>9}")
    for name, world in WORLDS.items():
        went = [simulate(CANARY, world, JUDGE, rng) for _ in range(each)]
        ends = Counter(one.operation.phase for one in went)
        promoted[name] = ends[Phase.SUCCEEDED] / each
        looks = sum(one.looks for one in went) / each
        print(f"{name:<26}{ends[Phase.SUCCEEDED]:>10}{ends[Phase.ROLLED_BACK]:>13}{looks:>9.1f}", flush=True)
    blind = sum(promoted[str(outage)] for outage in Outage if outage is not Outage.NONE)
    figures = {
        "canaries": each * len(WORLDS),
        "seconds": round(time.perf_counter() - began_s, 2),
        "promoted_good": promoted["good"],
        "promoted_bad": max(promoted["errors"], promoted["slow"]),
        "promoted_without_evidence": blind,
    }
    met = all(figures[name] <= goal for name, goal in GOALS.items())
    print(json.dumps({"benchmark": "canary_days", "figures": figures, "goals": GOALS, "met": met}))


if __name__ == "__main__":
    main()
