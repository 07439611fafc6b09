"""A thousand canaries of 24 hours on virtual time: how long they take, and how they end against the known truth.

Each is judged twice, in worlds of the same kind: by the sequential judge that canaries have by default, and by plain
thresholds on 200 requests a step, as most rollout tools do it. Neither promotes what it could not measure; but noise in
the 95th percentile alone sends many good candidates back where bare values are held against a limit.
"""

from __future__ import annotations

import json
import time
from collections import Counter

import numpy as np

from abswitch.rollout.judging import Guardrail, Judge, ThresholdJudge
from abswitch.rollout.operation import Phase
from abswitch.rollout.sequential_judge import SequentialJudge
from abswitch.rollout.simulate import Outage, Truth, World, simulate
from abswitch.rollout.strategies import CanaryStrategy

GOALS = {
    "seconds": 60.0,
    "promoted_without_evidence": 0,
    "promoted_bad": 0.05,
    "good_sent_back": 0.05,
    "promoted_threefold_errors": 0,
}
CANARY = CanaryStrategy(
    initial_percentage=5,
    step_percentage=5,
    evaluation_period_minutes=15,
    max_error_rate_threshold=0.02,
    min_requests=200,
)
RAILS = (Guardrail("latency_p95_s", max_ratio=1.2),)
JUDGES: dict[str, Judge] = {
    "sequential": SequentialJudge(max_error_rate=0.02, min_requests=200, guardrails=RAILS, stages=len(CANARY.stages)),
    "thresholds": ThresholdJudge(max_error_rate=0.02, min_requests=200, guardrails=RAILS),
}
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


def play(name: str, each: int, judge: str, rng: np.random.Generator) -> Counter[Phase]:
    """How canaries of one world end."""
    went = [simulate(CANARY, WORLDS[name], JUDGES[judge], rng) for _ in range(each)]
    ends = Counter(one.operation.phase for one in went)
    looks, hours = sum(one.looks for one in went) / each, sum(one.hours for one in went) / each
    print(f"{name:<26}{judge:<12}{ends[Phase.SUCCEEDED]:>9}{ends[Phase.ROLLED_BACK]:>13}{looks:>8.1f}{hours:>8.1f}",
          flush=True)  # fmt: skip
    return ends


def ramp(runs: int, limit: float, rng: np.random.Generator) -> float:
    """Of canaries from 5 to 95 % whose errors go from 1 to 3 %: the part that is promoted all the same."""
    strategy = CanaryStrategy(initial_percentage=5, step_percentage=22.5, max_error_rate_threshold=limit)
    judge = SequentialJudge(max_error_rate=limit, min_requests=50, stages=len(strategy.stages))
    world = World(requests_per_s=1.0, stable=Truth(error_rate=0.01), candidate=Truth(error_rate=0.03), drift=1.0)
    promoted = sum(simulate(strategy, world, judge, rng).operation.promoted for _ in range(runs))
    print(f"errors from 1 to 3 %, at most {limit:.0%} allowed: {runs - promoted} of {runs} sent back", flush=True)
    return promoted / runs


def main() -> None:
    """Run and print the line of figures."""
    each = -(-1000 // len(WORLDS))
    rng, began_s = np.random.default_rng(2026), time.process_time()
    print(f"{'world':<26}{'judge':<12}{'promoted':>9}{'rolled back':>13}{'looks':>8}{'hours':>8}")
    ends = {name: play(name, each, "sequential", rng) for name in WORLDS}
    seconds = time.process_time() - began_s  # of a core: the machine may be busy with something else
    threefold = {limit: ramp(each, limit, rng) for limit in (0.02, 0.10)}
    plain = {name: play(name, each, "thresholds", rng) for name in WORLDS}

    def promoted(of: dict[str, Counter[Phase]], *names: str) -> float:
        return max(of[name][Phase.SUCCEEDED] for name in names) / each

    blind = [str(outage) for outage in Outage if outage is not Outage.NONE]
    figures = {
        "canaries": each * len(WORLDS),
        "seconds": round(seconds, 2),
        "promoted_good": promoted(ends, "good"),
        "good_sent_back": 1.0 - promoted(ends, "good"),
        "promoted_bad": promoted(ends, "errors", "slow"),
        "promoted_without_evidence": promoted(ends, *blind),
        "promoted_threefold_errors": threefold[0.02],
        "promoted_threefold_errors_within_a_loose_limit": threefold[0.10],
        "thresholds_promoted_good": promoted(plain, "good"),
        "thresholds_promoted_bad": promoted(plain, "errors", "slow"),
        "thresholds_promoted_without_evidence": promoted(plain, *blind),
    }
    met = all(figures[name] <= goal for name, goal in GOALS.items())
    print(json.dumps({"benchmark": "canary_days", "figures": figures, "goals": GOALS, "met": met}))


if __name__ == "__main__":
    main()
