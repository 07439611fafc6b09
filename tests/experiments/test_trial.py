"""A trial as its caller holds it, before and after traffic moved; designs that use trials have their own tests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from abswitch import SwitchingEngine
from abswitch.errors import IllegalTransition, InvalidInput, OperationFinished, SwitchRefused
from abswitch.experiments.trial import Trial, TrialHandle, baseline_of, begin, left_behind
from abswitch.rollout.operation import Phase
from abswitch.stats import AnalysisPlan, Rate
from tests.experiments.scripted import engine_for

PLAN = AnalysisPlan(
    baseline="v1", candidate="v2", metrics=(Rate("error"),), expected_share=0.5, planned_n=10, design="paired"
)


@pytest.fixture
async def engine() -> AsyncIterator[SwitchingEngine]:
    async with engine_for({"v1": 0.5, "v2": 0.9}) as engine:
        await engine.deploy("v1")
        yield engine


async def test_a_trial_is_under_way_until_it_is_concluded_and_then_traffic_moves(engine: SwitchingEngine) -> None:
    handle = TrialHandle(await begin(engine, "adder", PLAN, None))
    status = handle.status
    assert (status.finished, status.promoted, status.shares) == (False, False, (("v1", 1.0), ("v2", 0.0)))
    assert (status.strategy, status.stable, status.candidate) == ("paired", "v1", "v2")
    status = await handle.promote("it is better")
    assert (status.finished, status.promoted, status.winner) == (True, True, "v2")
    assert (status.shares, status.reason) == ((("v1", 0.0), ("v2", 1.0)), "it is better")
    assert engine.registry.active_version("adder") == "v2"
    assert handle.moved_by is not None
    with pytest.raises(OperationFinished):
        await handle.keep("no, it is not")


async def test_kept_traffic_does_not_move(engine: SwitchingEngine) -> None:
    handle = TrialHandle(await begin(engine, "adder", PLAN, None))
    status = await handle.keep("it is not")
    assert (status.finished, status.promoted, handle.moved_by) == (True, False, None)
    assert engine.registry.active_version("adder") == "v1"


async def test_aborting_goes_back_once(engine: SwitchingEngine) -> None:
    trial = await begin(engine, "adder", PLAN, None)
    assert await trial.abort_switch(trial.trial_id)
    assert trial.phase is Phase.ABORTED
    assert not await trial.abort_switch(trial.trial_id)


async def test_what_a_trial_does_not_know_is_refused(engine: SwitchingEngine) -> None:
    trial = await begin(engine, "adder", PLAN, None)
    with pytest.raises(InvalidInput, match="operation_id"):
        trial.operation_status("another")
    with pytest.raises(InvalidInput, match="this trial's candidate: v2"):
        await trial.conclude_switch(trial.trial_id, promote=True, reason="", version="v3")
    with pytest.raises(IllegalTransition):
        await TrialHandle(trial).pause()


async def test_the_plan_is_stored_first_and_another_is_refused_afterwards(engine: SwitchingEngine) -> None:
    assert left_behind(engine, "paired", "adder", "v2") is None
    trial = await begin(engine, "adder", PLAN, None)
    left = left_behind(engine, "paired", "adder", "v2")
    assert left is not None
    assert (left.trial_id, left.plan) == (trial.trial_id, PLAN)
    assert (await begin(engine, "adder", PLAN, left)).trial_id == trial.trial_id
    other = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=(Rate("fallback"),), expected_share=0.5, planned_n=10, design="paired"
    )
    with pytest.raises(InvalidInput, match="the plan it began with"):
        await begin(engine, "adder", other, left)


async def test_what_the_candidate_is_compared_with(engine: SwitchingEngine) -> None:
    assert baseline_of(engine, "adder", "v2", None) == "v1"
    with pytest.raises(SwitchRefused, match="already the active version"):
        baseline_of(engine, "adder", "v1", None)
    trial = Trial(engine, "t", "adder", PLAN, time.monotonic())
    assert trial.versions == ("v1", "v2")


async def test_without_an_active_version_there_is_nothing_to_compare_with() -> None:
    async with engine_for({"v1": 0.5}) as engine:
        with pytest.raises(SwitchRefused, match="no active version"):
            baseline_of(engine, "adder", "v1", None)
