"""Replays from a store: the log is what was recorded, and a replayed verdict is the one that the store would give."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abswitch.domain import ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.experiments import Replayed, WhatIf, replay
from abswitch.rollout.judging import Guardrail
from abswitch.rollout.replay import NOTHING
from abswitch.rollout.replay_plan import replay_plan
from abswitch.rollout.strategies import ABTestStrategy, CanaryStrategy, GradualStrategy
from abswitch.stats import AnalysisPlan, Mean, Quantile, Rate, Ratio, Where, decide
from abswitch.store.evidence import collect_evidence
from abswitch.store.logged import find_logged, read_log
from abswitch.store.recorder import PlanRecord, Recorder
from tests.store.rows import a_request, routes_of

REQUESTS, USERS, SHARE = 2400, 400, 0.4
RNG = np.random.default_rng(11)
USER = RNG.integers(USERS, size=REQUESTS)
LATENCY_S = 0.3 * np.exp(0.5 * RNG.normal(size=REQUESTS))
FAILED = RNG.random(REQUESTS) < 0.02
PROMPT = RNG.integers(5, 50, size=REQUESTS)
TOKENS = RNG.integers(5, 60, size=REQUESTS)
EXACT = (RNG.random(REQUESTS) < 0.7).astype(float)


def recorded(recorder: Recorder, arms: list[str] | None = None) -> Recorder:
    """The same requests, of one version outside operations, or split between the arms of `op`."""
    for row in routes_of("op") if arms else ():
        recorder.route(row)
    for i in range(REQUESTS):
        arm = arms[i] if arms else "stable"
        version = "v2" if arm == "candidate" else "v1"
        recorder.request(
            a_request(
                f"r{i:05d}", operation_id="op" if arms else None, arm=arm, assigned_version=version,
                served_version=version, unit_id=f"user-{USER[i]}", admitted_at_s=1.7e9 + 2.0 * i,
                total_s=float(LATENCY_S[i]), first_token_s=0.1 * float(LATENCY_S[i]), prompt_tokens=int(PROMPT[i]),
                output_tokens=int(TOKENS[i]), error_type="InstanceDied" if FAILED[i] else None,
            )
        )  # fmt: skip
        if not FAILED[i]:
            recorder.score(ScoreRecord(f"r{i:05d}", "exact", float(EXACT[i]), None, 1.7e9))
    return recorder


@pytest.fixture(scope="module")
def store() -> Iterator[Recorder]:
    with Recorder(":memory:") as made:
        yield recorded(made)


def a_plan(**changes: Any) -> AnalysisPlan:
    metrics = (
        Rate("exact"),
        Rate("error", role="guardrail", margin=0.05),
        Mean("latency_s", role="secondary"),
        Mean("latency_s", role="secondary", name="each_user", unit="unit"),
        Mean("latency_s", role="secondary", name="adjusted", covariate="prompt_tokens"),
        Mean("latency_s", role="secondary", name="long", where=(Where(column="prompt_tokens", above=20),)),
        Ratio("output_tokens", "generation_s", role="secondary", name="speed"),
        Quantile("latency_s", 0.9, role="secondary"),
    )
    units = len(set(USER))
    given: dict[str, Any] = {"metrics": metrics, "expected_share": SHARE, "planned_n": units} | changes
    return AnalysisPlan(baseline="v1", candidate="v2", **given)


def test_a_replayed_verdict_is_that_of_the_store() -> None:
    """The same split, once in memory and once through the store's SQL: the same numbers to nine digits."""
    plan = a_plan()
    with Recorder(":memory:") as logged:
        recorded(logged)
        log = read_log(logged, find_logged(logged), ("error",), metrics=plan.metrics)
    assert log.n_units == plan.planned_n and log.failed.sum() == FAILED.sum() and log.scorers == ("exact",)
    found = replay_plan(plan, log, NOTHING, np.random.default_rng(5)).verdict
    assert found is not None
    names = sorted({f"user-{user}" for user in USER})
    where = dict(zip(names, np.random.default_rng(5).random(len(names)), strict=True))
    last = np.flatnonzero(np.isin(np.arange(REQUESTS), np.unique(USER, return_index=True)[1]))[-1]
    arms = ["candidate" if where[f"user-{user}"] < SHARE else "stable" for user in USER]
    with Recorder(":memory:") as split:
        recorded(split, arms)
        split.plan(PlanRecord("op", plan.digest(), plan.to_dict(), 1.0)).result()
        split.flush()
        split.execute(("DELETE FROM requests WHERE request_id > ?", (f"r{last:05d}",))).result()
        told = decide(plan, collect_evidence(split, "op", plan))
    assert (found.decision, found.rule) == (told.decision, told.rule)
    assert found.sample_ratio == told.sample_ratio
    for name, comparison in told.comparisons.items():
        here, there = found.comparisons[name].to_dict(), comparison.to_dict()
        for key in ("estimate", "low", "high", "p_value", "standard_error"):
            assert here[key] == pytest.approx(there[key], rel=1e-9, abs=1e-12), (name, key)
        assert (here["method"], here["baseline"]["n"]) == (there["method"], there["baseline"]["n"])


CANARY = CanaryStrategy(
    initial_percentage=20, step_percentage=40, evaluation_period_minutes=15, max_error_rate_threshold=0.05,
    guardrails=(Guardrail("exact", min_ratio=0.8), Guardrail("latency_p95_s", max_ratio=1.5)),
)  # fmt: skip


def test_a_canary_over_the_log(store: Recorder) -> None:
    found = replay(store, CANARY, runs=30, repeat=4)
    assert (found.requests, found.model_id, found.version) == (4 * REQUESTS, "bot", "v1")
    assert sum(found.endings.values()) == 30 and found.alpha == CANARY.alpha
    share, low, high = found.false_alarms
    assert share <= 0.1 and low <= share <= high
    assert found.endings.get("promoted", 0) >= 10
    assert f"False alarms: {share:.1%}" in found.in_words() and "no effect (A/A)" in found.in_words()
    assert found == replay(store, CANARY, runs=30, repeat=4), "the same seed gives the same runs"
    assert found.runs != replay(store, CANARY, runs=30, repeat=4, seed=1).runs


@pytest.mark.parametrize(
    "what_if",
    [WhatIf(added_errors=0.3), WhatIf(latency=3.0), WhatIf(scores={"exact": -0.6})],
    ids=lambda w: w.in_words(),
)
def test_harm_put_in_is_sent_back(store: Recorder, what_if: WhatIf) -> None:
    found = replay(store, CANARY, what_if=what_if, runs=10)
    assert found.endings == {"rolled back": 10}
    assert found.hours("rolled back") <= 1.0 and 0 < found.exposed("rolled back") < REQUESTS
    assert math.isnan(found.hours("promoted")) and what_if.in_words() in found.in_words()
    with pytest.raises(InvalidInput, match="A/A"):
        _ = found.false_alarms
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["endings"] == {"rolled back": 10} and len(plain["runs"]) == 10 and plain["runs"][0]["reason"]


def test_a_plan_over_the_log_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "logged.duckdb"
    with Recorder(path) as made:
        recorded(made)
    plan = a_plan(planned_n=300)
    equal = replay(path, plan, runs=60)
    assert equal.false_alarms[0] <= 0.15 and set(equal.endings) <= {"inconclusive", "ship", "keep", "invalid"}
    worse = replay(path, plan, what_if=WhatIf(scores={"exact": -0.2}), runs=10)
    assert worse.endings["keep"] >= 9 and "exact −0.2" in worse.in_words().replace("-", "−")
    assert replay(path, a_plan(planned_n=10_000), runs=2).endings == {"undecided": 2}


BAD: dict[str, Any] = {
    "runs": {"runs": 0},
    "seed": {"seed": -1},
    "repeat": {"repeat": 0},
    "what_if": {"what_if": {"errors": 2}},
    "policy": {"policy": GradualStrategy()},
    "policy ": {"policy": "canary"},
    "judge": {"policy": ABTestStrategy(evaluation_period_minutes=5)},
    "judge ": {"policy": a_plan(), "judge": lambda _: None},
    "policy.guardrails": {"policy": CanaryStrategy(guardrails=(Guardrail("exakt", min=0.5),))},
    "metric": {"policy": a_plan(metrics=(Rate("exakt"),))},
    "what_if.scores": {"what_if": WhatIf(scores={"judge": 0.1})},
    "version": {"version": "v9"},
    "last_hours": {"last_hours": -1.0},
}


@pytest.mark.parametrize("field", BAD)
def test_what_cannot_be_replayed_is_named(store: Recorder, field: str) -> None:
    given: dict[str, Any] = {"policy": CANARY} | BAD[field]
    with pytest.raises(InvalidInput) as told:
        replay(store, **given)
    assert told.value.field == field.strip()


def test_a_result_is_a_value() -> None:
    empty = Replayed(
        policy="canary switch", what_if=NOTHING, model_id="m", version="v1", alpha=math.nan, requests=1, units=1,
        span_s=0.0, runs=(),
    )  # fmt: skip
    assert empty.endings == {} and math.isnan(empty.hours("promoted"))
