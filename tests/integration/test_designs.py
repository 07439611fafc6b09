"""On real vLLM, between models whose quality is known: each design's verdict says what is true.

Tests are in the order in which engines are needed, as each takes a quarter of a minute to start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from abswitch import ExactMatch, ModelConfig, ModelSwitchingConfig, Sampling, SwitchingEngine
from abswitch.experiments import (
    ABTestResult,
    RequestBudget,
    run_ab_test,
    run_canary,
    run_paired,
    run_switchback,
)
from abswitch.rollout.judging import Guardrail
from abswitch.rollout.strategies import CanaryStrategy
from abswitch.stats import Mean, Rate
from abswitch.testing import TinyModels

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

GREEDY = Sampling(temperature=0.0, max_tokens=8)
METRICS = (Rate("exact_match", margin=0.05), Mean("latency_s", direction="decrease", role="guardrail", margin=0.5))
RIGHT = {"better": {"ship"}, "copy": {"inconclusive", "equivalent"}, "regressed": {"keep"}}
Run = Callable[..., Awaitable[ABTestResult]]
SIDE_BY_SIDE: dict[str, Run] = {"randomised": run_ab_test, "paired": run_paired}


def engine_with(tiny: TinyModels, folder: Path, slots: int) -> SwitchingEngine:
    """An engine that has every tiny model registered."""
    models = {
        "baseline": (tiny.baseline, None),
        "better": (tiny.better, None),
        "regressed": (tiny.regressed, None),
        "copy": (tiny.baseline, None),
        "adapted": (tiny.baseline, tiny.adapter),
    }
    made = SwitchingEngine(
        ModelSwitchingConfig(max_cached_models=slots), store=folder / "evidence.duckdb", scorers=[ExactMatch()]
    )
    for version, (model, adapter) in models.items():
        config = ModelConfig(
            model_id="adder",
            model=str(model),
            adapter=None if adapter is None else str(adapter),
            # So that the adapter can join the baseline's engine instead of starting another one.
            engine_args={"enable_lora": True} if model == tiny.baseline and slots > 1 else {},
            sampling=GREEDY,
        )
        made.registry.register_model(config, version)
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SwitchingEngine]:
    async with engine_with(tiny, tmp_path_factory.mktemp("designs"), slots=2) as made:
        await made.deploy("baseline")
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_slot(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SwitchingEngine]:
    async with engine_with(tiny, tmp_path_factory.mktemp("one-slot"), slots=1) as made:
        await made.deploy("baseline")
        yield made


async def compare(run: Run, engine: SwitchingEngine, tiny: TinyModels, candidate: str, n: int = 600) -> ABTestResult:
    """A comparison that leaves everything as it was."""
    alpha = 0.01 if candidate == "copy" else 0.05  # so that a sound engine fails one run in a hundred, at most
    problems = tiny.task.problems(n, seed=1)
    result = await run(engine, candidate, problems, metrics=METRICS, alpha=alpha, experiment=f"known-{candidate}")
    await result.keep()
    assert result.requests.lost == result.requests.failed == 0
    assert engine.registry.active_version() == "baseline"
    return result


async def test_an_adapter_shares_the_engine_of_its_base_and_is_better(
    engine: SwitchingEngine, tiny: TinyModels
) -> None:
    before = (await (await engine.instance("baseline")).health()).memory_bytes
    result = await compare(run_ab_test, engine, tiny, "adapted")
    assert result.verdict.decision == "ship"
    facts = await engine.load("adapted")
    assert facts.shared_engine
    assert facts.memory_bytes < 1.5 * before, "no second engine"


@pytest.mark.parametrize("design", SIDE_BY_SIDE)
@pytest.mark.parametrize("candidate", RIGHT)
async def test_two_versions_side_by_side(
    engine: SwitchingEngine, tiny: TinyModels, candidate: str, design: str
) -> None:
    result = await compare(SIDE_BY_SIDE[design], engine, tiny, candidate)
    assert result.verdict.decision in RIGHT[candidate], result.verdict.in_words()
    assert result.plan.design == design
    if design == "randomised":
        assert result.plan.evaluation == "sequential" and result.requests.sent <= 600
        if candidate != "copy":
            assert result.verdict.look >= 1 and "at all looks" in result.verdict.in_words()
    else:
        assert result.plan.evaluation == "sequential" and result.requests.sent <= 1200
    if candidate != "copy":
        found = result.verdict.comparisons["exact_match"]
        truth = tiny.accuracy[candidate] - tiny.accuracy["baseline"]
        assert found.low - 0.05 < truth < found.high + 0.05, "the estimate is about the truth"
    if (candidate, design) == ("copy", "paired"):
        assert result.verdict.decision == "equivalent", "pairs of one model's answers do not differ"


async def test_a_canary_sends_the_regressed_one_back_without_a_person(
    engine: SwitchingEngine, tiny: TinyModels
) -> None:
    careful = CanaryStrategy(
        initial_percentage=25.0,
        step_percentage=25.0,
        evaluation_period_minutes=0.03,
        min_requests=60,
        guardrails=(Guardrail("exact_match", min_ratio=0.85),),
    )
    result = await run_canary(
        engine,
        "regressed",
        tiny.task.problems(400, seed=2),
        strategy=careful,
        budget=RequestBudget(requests=20_000, time_s=120.0),
    )
    assert result.decision == "roll back", result.reasons
    assert "exact_match" in result.reason
    assert result.requests.lost == 0
    assert engine.registry.active_version() == "baseline"


@pytest.mark.parametrize("candidate", RIGHT)
async def test_one_after_the_other_on_one_slot(one_slot: SwitchingEngine, tiny: TinyModels, candidate: str) -> None:
    run = partial(run_switchback, in_place=True, warmup_requests=8)
    result = await compare(run, one_slot, tiny, candidate, n=960)
    assert result.verdict.decision in RIGHT[candidate], result.verdict.in_words()
    assert result.requests.sent == 8 * (120 - 8)
    rows = one_slot.query(
        "SELECT step, arm, count(DISTINCT weights_digest) AS weights, any_value(served_version) AS version "
        "FROM requests WHERE operation_id = ? GROUP BY ALL ORDER BY step",
        [result.operation_id],
    )
    names = {"stable": "baseline", "candidate": "candidate"}
    assert tuple(names[arm] for arm in rows["arm"]) == result.plan.blocks
    assert set(rows["weights"]) <= {0, 1}, "a block has one version's weights"
    assert len(one_slot.get_switching_status()["adder"].loaded) == 1
