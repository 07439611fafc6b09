"""What a switch is refused, or warned of, before it begins: in the words of what was given."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from abswitch import ExactMatch, SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.rollout.judging import Judgement, Ruling, StepEvidence
from abswitch.serving.scripted import ScriptedBackend

CONFIG = {"model_id": "bot", "model": "script", "backend": "scripted"}


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SwitchingEngine]:
    backends = {"scripted": ScriptedBackend()}
    async with SwitchingEngine(store=":memory:", scorers=[ExactMatch()], backends=backends) as made:
        for version in ("v1", "v2", "v3"):
            made.registry.register_model(CONFIG, version)
        await made.deploy("v1")
        yield made


SLIPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("canary", {"guardrails": [{"metric": "exact_mach", "min": 0.5}]}),
    ("bandit", {"reward": "exact_mach"}),
)
BY_HAND: tuple[tuple[str, dict[str, Any]], ...] = (
    ("canary", {"guardrails": [{"metric": "thumbs_up", "min": 0.5}]}),
    ("bandit", {"reward": "thumbs_up"}),
)


@pytest.mark.parametrize(("strategy", "given"), SLIPS, ids=["canary", "bandit"])
async def test_a_slip_for_a_scorer_is_refused(engine: SwitchingEngine, strategy: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"'exact_mach'; allowed: exact_match, which this engine scores"):
        await engine.start_switch("v2", strategy, given)
    assert not (await engine.validate_switch_request("bot", "v2", strategy, given)).valid
    assert engine.list_active_switches() == ()


@pytest.mark.parametrize(("strategy", "given"), BY_HAND, ids=["canary", "bandit"])
async def test_what_can_only_be_scored_by_hand_is_begun_with_a_warning(
    engine: SwitchingEngine, strategy: str, given: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        handle = await engine.start_switch("v2", strategy, given)
    await handle.abort()
    assert "nothing measures 'thumbs_up'" in caplog.text and "record_score" in caplog.text
    assert "error_rate" in caplog.text and "latency_p95_s" in caplog.text and "exact_match" in caplog.text


async def test_no_warning_of_what_is_measured_or_not_asked_for(
    engine: SwitchingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    measured = {"guardrails": [{"metric": "exact_match", "min": 0.5}, {"metric": "latency_p95_s", "max": 1.0}]}
    judge = lambda _: Judgement(ruling=Ruling.HOLD, reason="it asks for nothing")  # noqa: E731 (short)
    with caplog.at_level(logging.WARNING):
        for given, by in ((measured, None), (BY_HAND[0][1], judge)):
            handle = await engine.start_switch("v2", "canary", given, judge=by)
            await handle.abort()
            await handle.done()
    assert "nothing measures" not in caplog.text


UNASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gradual", {}),
    ("immediate", {}),
    ("shadow", {}),
    ("switchback", {}),
    ("ab_test", {}),
    ("ab_test", {"test_duration_hours": 1.0, "arms": {"v2": 20, "v3": 20}}),
)


@pytest.mark.parametrize(("strategy", "given"), UNASKED)
async def test_a_judge_that_nothing_would_ask_is_refused(
    engine: SwitchingEngine, strategy: str, given: dict[str, Any]
) -> None:
    def judge(evidence: StepEvidence) -> Judgement:
        return Judgement(ruling=Ruling.ROLL_BACK, reason="no")

    with pytest.raises(InvalidInput, match=f"this {strategy} strategy asks it: a canary .* evaluation_period") as told:
        await engine.start_switch("v2", strategy, given, judge=judge)
    assert (told.value.field, told.value.value) == ("judge", judge)
    assert engine.list_active_switches() == ()
    assert {one.candidate for one in engine.switcher.operations.values()} == {"v1"}, "nothing was begun"


@pytest.mark.parametrize(
    ("strategy", "given"), [("canary", {}), ("ab_test", {"evaluation_period_minutes": 1}), ("bandit", {})]
)
async def test_a_judge_that_is_asked_is_not(engine: SwitchingEngine, strategy: str, given: dict[str, Any]) -> None:
    handle = await engine.start_switch(
        "v2", strategy, given, judge=lambda _: Judgement(ruling=Ruling.HOLD, reason="let us see")
    )
    await handle.abort()
    with pytest.raises(InvalidInput, match="a callable that is given a StepEvidence"):
        await engine.start_switch("v2", strategy, given, judge=3)  # type: ignore[arg-type]  # on purpose


async def test_two_names_of_one_version_are_no_two_arms(engine: SwitchingEngine) -> None:
    engine.registry.set_alias("gold", "v2")
    with pytest.raises(InvalidInput) as caught:
        await engine.start_switch("v2", "ab_test", {"arms": {"v2": 20, "gold": 30, "v3": 10}})
    assert caught.value.field == "strategy_config.arms"
    assert caught.value.value == {"v2": 20.0, "gold": 30.0, "v3": 10.0}, "as it was given"
    assert caught.value.allowed == "every version once: v2 and gold are both version 'v2'"
    handle = await engine.start_switch("gold", "ab_test", {"arms": {"gold": 20, "v3": 10}})
    assert dict(handle.status.shares).keys() >= {"v2", "v3"}
    await handle.abort()
