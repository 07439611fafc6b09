"""Replays over logs whose truth is known: what the judge is given, what an effect does, how often policies err."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.rollout.judging import Guardrail, Judge, Judgement, Ruling, StepEvidence, ThresholdJudge
from abswitch.rollout.replay import NOTHING, RequestLog, WhatIf, replay_switch
from abswitch.rollout.replay_plan import _looks, replay_plan
from abswitch.rollout.sequential_judge import SequentialJudge
from abswitch.rollout.strategies import ABTestStrategy, CanaryStrategy, GradualStrategy, ImmediateStrategy
from abswitch.stats import AnalysisPlan, Mean, Quantile, Rate

CANARY = CanaryStrategy(
    initial_percentage=10, step_percentage=40, evaluation_period_minutes=20, max_error_rate_threshold=0.03
)
RAILS = (Guardrail("latency_p95_s", max_ratio=1.3),)
JUDGE: Judge = SequentialJudge(max_error_rate=0.03, min_requests=50, guardrails=RAILS, stages=len(CANARY.stages))


def a_log(seed: int = 1, k: int = 12_000, units: int = 3_000, errors: float = 0.01) -> RequestLog:
    """Three hours or so at one request a second."""
    rng = np.random.default_rng(seed)
    failed = rng.random(k) < errors
    codes = np.unique(rng.integers(units, size=k), return_inverse=True)[1].astype(np.int64)
    latency = np.where(failed, np.nan, 0.5 * np.exp(0.4 * rng.normal(size=k)))
    skill = rng.beta(3, 1, size=units)[codes]
    return RequestLog(
        at_s=np.sort(rng.uniform(0, k, k)) + 1e9,
        units=codes,
        failed=failed,
        counted=np.ones(k, dtype=np.bool_),
        columns={
            "error": failed.astype(float),
            "latency_s": latency,
            "exact": np.where(failed, np.nan, (rng.random(k) < skill).astype(float)),
            "judge": np.where(failed, np.nan, rng.beta(4, 2, size=k)),
            "points": np.where(failed, np.nan, rng.normal(50, 10, size=k)),
        },
        scorers=("exact", "judge", "points"),
    )


LOG = a_log()


def played(what_if: WhatIf, n: int, judge: Judge = JUDGE, log: RequestLog = LOG, seed: int = 3) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [replay_switch(CANARY, judge, log, what_if, rng) for _ in range(n)]


# --- what a judge is given -------------------------------------------------------------------------------------------


def test_a_judge_is_given_what_its_units_did() -> None:
    seen: list[StepEvidence] = []

    def judge(evidence: StepEvidence) -> Judgement:
        seen.append(evidence)
        return Judgement(ruling=Ruling.ADVANCE if evidence.evaluation == 2 else Ruling.HOLD, reason="-")

    rng = np.random.default_rng(9)
    found = replay_switch(CANARY, judge, LOG, NOTHING, rng)
    assert found.ending == "promoted" and len(seen) == 2 * len(CANARY.stages)
    where = np.random.default_rng(9).random(LOG.n_units)[LOG.units]  # the first that is drawn
    at_s = LOG.at_s - LOG.at_s[0]
    for evidence in seen:
        began = 2400.0 * evidence.stage
        window = (at_s >= began) & (at_s < began + 1200.0 * evidence.evaluation)
        for arm, mask in ((evidence.candidates[0], where < evidence.share), (evidence.stable, where >= evidence.share)):
            rows = window & mask
            assert (arm.requests, arm.errors) == (rows.sum(), LOG.failed[rows].sum())
            latencies = np.sort(LOG.columns["latency_s"][rows & ~LOG.failed])
            assert np.array_equal(arm.samples["latency_p95_s"][1], latencies)
            assert math.isclose(arm.values["latency_p95_s"], float(np.quantile(latencies, 0.95)))
            scores = LOG.columns["judge"][rows & ~LOG.failed]
            assert arm.counts["judge"] == scores.size and math.isclose(arm.values["judge"], scores.mean())
            assert math.isclose(arm.variances["judge"], scores.var(ddof=1)) and arm.is_fraction["judge"]
            assert not arm.is_fraction["points"]
    # Errors that were the first of their unit, over all stages and both arms: each unit once.
    last_of_stage = [one for one in seen if one.evaluation == 2]
    total = sum(arm.first_errors for one in last_of_stage for arm in (one.stable, *one.candidates))
    erred = set(LOG.units[LOG.failed & (at_s < 2400.0 * len(CANARY.stages))].tolist())
    assert total == len(erred) < LOG.failed.sum()
    assert found.exposed == sum(one.candidates[0].requests for one in last_of_stage)


# --- what an effect does ---------------------------------------------------------------------------------------------


def test_effects_are_as_large_as_told() -> None:
    rng = np.random.default_rng(4)
    what_if = WhatIf(errors=2.0, latency=1.2, scores={"exact": -0.05, "judge": -0.05, "points": 3.0})
    found = what_if.applied(LOG, rng)
    assert math.isclose(found.error_rate, 2 * LOG.error_rate, rel_tol=0.25)
    both = ~found.failed
    for name, change in (("judge", -0.05), ("points", 3.0)):
        difference = found.columns[name][both] - LOG.columns[name][both]
        assert math.isclose(difference.mean(), change, rel_tol=0.05)
    assert np.allclose(found.columns["latency_s"][both], 1.2 * LOG.columns["latency_s"][both])
    exact = found.columns["exact"][both]
    assert set(exact) == {0.0, 1.0} and math.isclose(
        exact.mean(), LOG.columns["exact"][both].mean() - 0.05, abs_tol=0.01
    )
    assert np.isnan(found.columns["exact"][found.failed]).all() and (found.columns["error"] == found.failed).all()
    assert (LOG.failed <= found.failed).all(), "what failed once fails still"


def test_fewer_errors_and_errors_where_there_were_none() -> None:
    rng = np.random.default_rng(5)
    assert math.isclose(WhatIf(errors=0.5).applied(LOG, rng).failed.sum() / LOG.failed.sum(), 0.5, abs_tol=0.15)
    assert not WhatIf(errors=0.0).applied(LOG, rng).columns["error"].any()
    sound = a_log(errors=0.0)
    found = WhatIf(added_errors=0.02).applied(sound, rng)
    assert math.isclose(found.error_rate, 0.02, rel_tol=0.2)
    assert NOTHING.applied(LOG, rng) is LOG and NOTHING.is_nothing and "A/A" in NOTHING.in_words()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(-1, 1))
@example([1e-62], -1e-244)  # so little that one minus it is one
@settings(max_examples=60, deadline=None)
def test_scores_within_bounds_stay_there(scores: list[float], change: float) -> None:
    k = len(scores)
    log = RequestLog(
        at_s=np.arange(k, dtype=float), units=np.arange(k), failed=np.zeros(k, dtype=np.bool_),
        counted=np.ones(k, dtype=np.bool_), columns={"s": np.array(scores)}, scorers=("s",),
    )  # fmt: skip
    what_if = WhatIf(scores={"s": change})
    if not 0 <= np.mean(scores) + change <= 1:
        with pytest.raises(InvalidInput, match="within 0 to 1"):
            what_if.check(log)
        return
    what_if.check(log)
    found = what_if.applied(log, np.random.default_rng(1)).columns["s"]
    assert ((found >= -1e-12) & (found <= 1 + 1e-12)).all()
    if not set(scores) <= {0.0, 1.0}:
        assert math.isclose(found.mean(), np.mean(scores) + change, abs_tol=1e-9)


# --- how policies end ------------------------------------------------------------------------------------------------


def test_two_copies_are_rarely_told_apart_and_harm_is_seen_soon() -> None:
    equal = Counter(run.ending for run in played(NOTHING, 40))
    assert equal["rolled back"] <= 4 and equal["promoted"] >= 25, equal
    for harm in (WhatIf(errors=8.0), WhatIf(latency=2.0)):
        worse = played(harm, 15)
        assert {run.ending for run in worse} == {"rolled back"}
        assert max(run.simulated.hours for run in worse) < 2.0
    slow, fast = (np.median([run.simulated.hours for run in played(WhatIf(errors=x), 15)]) for x in (5.0, 20.0))
    assert fast <= slow


def test_bare_thresholds_send_equals_back() -> None:
    """The very thing that a replay is for: a limit that noise breaks."""
    bare = ThresholdJudge(
        max_error_rate=0.03, min_requests=50, guardrails=(Guardrail("latency_p95_s", max_ratio=1.05),)
    )
    assert sum(run.ending == "rolled back" for run in played(NOTHING, 40, bare)) >= 12


def test_a_log_that_ends_first_decides_nothing() -> None:
    short = a_log(k=1000)
    assert {run.ending for run in played(NOTHING, 3, log=short)} == {"undecided"}
    long = short.repeated(12)
    assert long.n_units == 12 * short.n_units and math.isclose(long.span_s, 12 * short.span_s, rel_tol=0.01)
    assert (np.diff(long.at_s) >= 0).all() and math.isclose(long.error_rate, short.error_rate)
    assert {run.ending for run in played(NOTHING, 3, log=long)} <= {"promoted", "rolled back"}
    waiting = replace(CANARY, max_duration_hours=2.0, min_requests=50_000)
    strict: Judge = SequentialJudge(max_error_rate=0.03, min_requests=50_000, stages=3)
    run = replay_switch(waiting, strict, LOG, NOTHING, np.random.default_rng(1))
    assert (run.ending, run.simulated.hours) == ("timed out", 2.0)


def test_a_test_by_hand_made_judge() -> None:
    def judge(evidence: StepEvidence) -> Judgement:
        worse = evidence.candidates[0].error_rate > 2 * evidence.stable.error_rate
        return Judgement(ruling=Ruling.ROLL_BACK if worse else Ruling.HOLD, reason="-")

    strategy = ABTestStrategy(evaluation_period_minutes=60, test_duration_hours=3)
    rng = np.random.default_rng(1)
    assert replay_switch(strategy, judge, LOG, WhatIf(errors=6.0), rng).ending == "rolled back"
    assert replay_switch(strategy, judge, LOG, NOTHING, rng).ending == "timed out"


# --- plans -----------------------------------------------------------------------------------------------------------

PLAN = AnalysisPlan(
    baseline="v1",
    candidate="v2",
    metrics=(
        Rate("exact"),
        Rate("error", role="guardrail", margin=0.02),
        Quantile("latency_s", 0.95, role="secondary"),
    ),
    expected_share=0.5,
    planned_n=2000,
)


def test_a_plan_errs_as_often_as_it_says_and_finds_what_is_there() -> None:
    rng = np.random.default_rng(6)
    equal = [replay_plan(PLAN, LOG, NOTHING, rng) for _ in range(200)]
    told_apart = sum(one.ending in ("ship", "keep") for one in equal)
    assert told_apart <= 20, Counter(one.ending for one in equal)  # 10 expected
    assert all(one.units == 2000 and one.verdict is not None for one in equal)
    assert all(900 < one.verdict.comparisons["error"].candidate.n < one.exposed + 1 for one in equal if one.verdict)
    worse = [replay_plan(PLAN, LOG, WhatIf(scores={"exact": -0.15}), rng).ending for _ in range(20)]
    assert worse.count("keep") >= 19
    better = [replay_plan(PLAN, LOG, WhatIf(scores={"exact": 0.15}), rng).ending for _ in range(20)]
    assert better.count("ship") >= 18
    broken = [replay_plan(PLAN, LOG, WhatIf(added_errors=0.1), rng).verdict for _ in range(5)]
    assert {one.rule for one in broken if one} == {"guardrail-harmed"}


@pytest.mark.parametrize("evaluation", ["sequential", "group_sequential"])
def test_a_plan_of_several_looks_stops_when_it_knows(evaluation: str) -> None:
    every = 400 if evaluation == "sequential" else None
    plan = replace(PLAN, evaluation=evaluation, look_every=every, planned_n=2500)
    rng = np.random.default_rng(8)
    equal = [replay_plan(plan, LOG, NOTHING, rng) for _ in range(15)]
    assert sum(one.ending in ("ship", "keep") for one in equal) <= 4  # 1 expected at most
    worse = [replay_plan(plan, LOG, WhatIf(scores={"exact": -0.2}), rng) for _ in range(5)]
    assert {one.ending for one in worse} == {"keep"}
    assert all(one.verdict is not None and one.verdict.is_final for one in worse)
    stopped = [one.units for one in worse]
    assert max(stopped) <= 2500 and np.mean(stopped) < 0.7 * 2500, stopped
    assert np.mean([one.hours for one in worse]) < np.mean([one.hours for one in equal])
    # A log that ends before the planned units is no reason not to stop at an earlier look.
    long = replace(plan, planned_n=12_000)
    assert replay_plan(long, LOG, WhatIf(scores={"exact": -0.4}), rng).ending == "keep"
    assert replay_plan(long, LOG, NOTHING, rng).ending == "undecided"


def test_looks_fall_where_the_plan_says() -> None:
    with_looks = replace(PLAN, evaluation="group_sequential", look_count=4)
    found = list(_looks(with_looks, 1001))
    assert [rows for _, rows in found] == [251, 501, 751, 1001]
    assert [look.last for look, _ in found] == [False, False, False, True]
    assert found[-1][0].fractions == (251 / 1001, 501 / 1001, 751 / 1001, 1.0)
    any_time = list(_looks(replace(PLAN, evaluation="sequential", look_every=400), 1001))
    assert [(look.number, rows, look.last) for look, rows in any_time] == [
        (1, 400, False), (2, 800, False), (3, 1001, True),
    ]  # fmt: skip
    assert [(look.number, rows, look.last) for look, rows in _looks(PLAN, 1001)] == [(1, 1001, True)]


def test_a_plan_larger_than_the_log_is_undecided() -> None:
    found = replay_plan(replace(PLAN, planned_n=10**6), LOG, NOTHING, np.random.default_rng(1))
    assert (found.ending, found.verdict, found.units) == ("undecided", None, LOG.n_units)


BAD: dict[str, Any] = {
    "what_if.errors": lambda: WhatIf(errors=-1.0),
    "what_if.errors ": lambda: WhatIf(errors=2.0).check(a_log(errors=0.0)),
    "what_if.errors  ": lambda: WhatIf(errors=200.0).check(LOG),
    "what_if.added_errors": lambda: WhatIf(added_errors=1.1),
    "what_if.latency": lambda: WhatIf(latency=0.0),
    "what_if.latency ": lambda: WhatIf(latency=math.nan),
    "what_if.scores": lambda: WhatIf(scores=0.1),  # type: ignore[arg-type]  # what is tested
    "what_if.scores.exact": lambda: WhatIf(scores={"exact": math.inf}),
    "what_if.scores.exact ": lambda: WhatIf(scores={"exact": -0.9}).check(LOG),
    "what_if.scores ": lambda: WhatIf(scores={"exakt": -0.1}).check(LOG),
    "policy": lambda: replay_switch(GradualStrategy(), JUDGE, LOG, NOTHING, np.random.default_rng(1)),
    "policy ": lambda: replay_switch(ImmediateStrategy(), JUDGE, LOG, NOTHING, np.random.default_rng(1)),
    "policy  ": lambda: replay_switch(ABTestStrategy(), JUDGE, LOG, NOTHING, np.random.default_rng(1)),
    "policy.arms": lambda: replay_switch(
        ABTestStrategy(arms=(("v2", 20), ("v3", 20)), evaluation_period_minutes=5),
        JUDGE, LOG, NOTHING, np.random.default_rng(1),
    ),
    "policy.design": lambda: replay_plan(replace(PLAN, design="paired"), LOG, NOTHING, np.random.default_rng(1)),
    "metric.column": lambda: replay_plan(
        replace(PLAN, metrics=(Mean("speed"),)), LOG, NOTHING, np.random.default_rng(1)
    ),
    "log": lambda: replace(LOG, at_s=np.empty(0)),
    "log.at_s": lambda: replace(LOG, at_s=LOG.at_s[::-1]),
}  # fmt: skip


@pytest.mark.parametrize("field", BAD)
def test_what_cannot_be_replayed_is_named(field: str) -> None:
    with pytest.raises(InvalidInput) as told:
        BAD[field]()
    assert told.value.field == field.strip()
