"""Live traffic under a bandit and in blocks, with a real store: what was found is told soundly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from abswitch import SwitchingEngine
from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments import Poisson, ab_test_plan, bandit_plan, compare_live, run_bandit, switchback_plan
from abswitch.experiments.report import write_report
from abswitch.rollout.strategies import ABTestStrategy, BanditStrategy, SwitchbackStrategy
from abswitch.stats import Mean, Quantile, Rate
from tests.experiments.scripted import engine_for, problems

ACCURACY = {"v1": 0.5, "better": 0.9, "alike": 0.5}
METRICS = (Rate("exact_match", margin=0.05), Mean("latency_s", role="secondary"))
QUICK = BanditStrategy(reward="exact_match", batch_minutes=0.005, floor_percentage=10.0)  # 0.3 s a batch


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SwitchingEngine]:
    async with engine_for(ACCURACY, store=tmp_path / "s.duckdb") as made:
        await made.deploy("v1")
        yield made


async def run(engine: SwitchingEngine, candidate: str = "better", **options: Any) -> Any:
    given: dict[str, Any] = {"metrics": METRICS, "strategy": QUICK, "arrivals": Poisson(rate_per_s=300.0)}
    return await run_bandit(engine, candidate, problems(900), **given | options)


@pytest.mark.parametrize(("candidate", "ends_with"), [("better", "better"), ("alike", "v1")])
async def test_an_ab_test_with_a_plan_ends_with_its_verdict(
    engine: SwitchingEngine, candidate: str, ends_with: str
) -> None:
    strategy = ABTestStrategy(evaluation_period_minutes=0.002)
    plan = ab_test_plan("v1", candidate, METRICS, strategy, units=300)
    handle = await engine.start_switch(candidate, "ab_test", strategy, plan=plan)
    await handle.serving()
    asked = 0
    async with asyncio.timeout(60):
        while not handle.status.finished:
            prompt, answer = problems(900)[asked % 900]
            await engine.generate(prompt, reference=answer)
            asked += 1
    assert engine.registry.active_version() == ends_with
    assert handle.status.promoted == (ends_with == candidate)
    rules = engine.query("SELECT rule FROM verdicts ORDER BY look")["rule"]
    assert list(rules)[-1] == ("primary-better" if candidate == "better" else "interval-includes-zero")
    result = await compare_live(engine, handle.operation_id)
    assert result.verdict.rule == list(rules)[-1] and result.requests.lost == 0


async def test_a_bandit_finds_the_better_one_and_serves_it_meanwhile(engine: SwitchingEngine, tmp_path: Path) -> None:
    result = await run(engine)
    assert result.verdict.decision == "ship", result.verdict.in_words()
    found = result.verdict.comparisons["exact_match"]
    assert "AW-AIPW" in found.method
    assert found.low < 0.4 < found.high, "the truth"
    rows = engine.query(
        "SELECT * FROM requests WHERE operation_id = ? ORDER BY admitted_at_s", [result.operation_id]
    )  # fmt: skip
    late = rows.tail(300)
    assert (late["arm"] == "candidate").mean() > 0.75, "traffic followed"
    assert late["propensity"].max() == pytest.approx(0.9, abs=0.01), "and kept its floor"
    assert rows["route_epoch"].nunique() > 3
    assert not result.verdict.sample_ratio.mismatch, "against the chances that were drawn with"
    assert result.evidence.expected_share == pytest.approx(result.verdict.sample_ratio.observed_share, abs=0.06)
    page = write_report(engine, result, tmp_path / "report")
    assert "SHIP better" in page.read_text(encoding="utf-8")
    await result.promote()
    assert engine.registry.active_version() == "better"


async def test_a_bandit_between_equals_ships_nothing(engine: SwitchingEngine) -> None:
    result = await run(engine, "alike", alpha=0.01)
    assert result.verdict.decision in {"inconclusive", "equivalent"}
    await result.keep()


async def test_a_bandit_by_hand_is_compared_by_its_plan(engine: SwitchingEngine) -> None:
    plan = bandit_plan("v1", "better", METRICS, QUICK, units=200)
    handle = await engine.start_switch("better", "bandit", QUICK, plan=plan)
    await handle.serving()
    for prompt, answer in problems(300):
        await engine.generate(prompt, reference=answer)
    result = await compare_live(engine, handle.operation_id)
    assert result.plan == plan
    assert result.requests.sent == 300
    assert result.verdict.decision == "ship"
    await result.keep()


async def test_live_blocks_are_compared_by_their_means(engine: SwitchingEngine) -> None:
    strategy = SwitchbackStrategy(block_minutes=0.01, blocks=6, warmup_minutes=0.002, seed=5)
    plan = switchback_plan("v1", "better", METRICS, strategy)
    handle = await engine.start_switch("better", "switchback", strategy, plan=plan)
    asked = 0
    while not handle.status.finished:
        prompt, answer = problems(400)[asked % 400]
        await engine.generate(prompt, reference=answer)
        asked += 1
        await asyncio.sleep(0)
    result = await compare_live(engine, handle.operation_id)
    assert result.plan.blocks == strategy.order
    found = result.verdict.comparisons["exact_match"]
    assert found.baseline.n == 3
    assert found.estimate > 0.2
    counted = result.evidence.baseline.requests + result.evidence.candidate.requests
    assert 0 < counted < result.requests.sent, "the start of each block is left out"


async def test_what_has_no_plan_or_another_strategy_is_not_compared(engine: SwitchingEngine) -> None:
    handle = await engine.start_switch("better", "bandit", QUICK)
    with pytest.raises(InvalidInput, match="with a plan"):
        await compare_live(engine, handle.operation_id)
    await handle.abort()
    with pytest.raises(InvalidInput, match="switchback or bandit"):
        await compare_live(engine, next(iter(engine.switcher.operations)))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metrics": [Quantile("latency_s", 0.95)]}, "metrics"),
        ({"metrics": [Rate("exact_mach")]}, "metric.column"),
        ({"candidate": "nobody"}, "version"),
        ({"temperature": -1}, "sampling.temperature"),
    ],
)
async def test_bad_arguments_start_nothing(engine: SwitchingEngine, change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await run(engine, **change)
    assert caught.value.field == field
    assert len(engine.switcher.operations) == 1


async def test_there_must_be_something_to_compare_with() -> None:
    async with engine_for(ACCURACY) as engine:
        with pytest.raises(SwitchRefused, match="no active version"):
            await run(engine)
