"""On real vLLM, between models whose quality is known: the verdict says what is true."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from abswitch import ExactMatch, ModelConfig, ModelSwitchingConfig, Sampling, SwitchingEngine
from abswitch.experiments import ABTestResult, run_ab_test
from abswitch.stats import Mean, Rate
from abswitch.testing import TinyModels

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

GREEDY = Sampling(temperature=0.0, max_tokens=8)
METRICS = (Rate("exact_match", margin=0.05), Mean("latency_s", direction="decrease", role="guardrail", margin=0.5))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SwitchingEngine]:
    folders = {
        "baseline": (tiny.baseline, None),
        "better": (tiny.better, None),
        "regressed": (tiny.regressed, None),
        "copy": (tiny.baseline, None),
        "adapted": (tiny.baseline, tiny.adapter),
    }
    async with SwitchingEngine(
        ModelSwitchingConfig(max_cached_models=2),
        store=tmp_path_factory.mktemp("verdicts") / "evidence.duckdb",
        scorers=[ExactMatch()],
    ) as made:
        for version, (folder, adapter) in folders.items():
            config = ModelConfig(
                model_id="adder",
                model=str(folder),
                adapter=None if adapter is None else str(adapter),
                # So that the adapter can join the baseline's engine instead of starting another one.
                engine_args={"enable_lora": True} if folder == tiny.baseline else {},
                sampling=GREEDY,
            )
            made.registry.register_model(config, version)
        await made.deploy("baseline")
        yield made


async def compare(engine: SwitchingEngine, tiny: TinyModels, candidate: str, alpha: float = 0.05) -> ABTestResult:
    problems = tiny.task.problems(600, seed=1)
    result = await run_ab_test(
        engine, candidate, problems, metrics=METRICS, alpha=alpha, experiment=f"known-{candidate}"
    )
    await result.keep()
    assert (result.requests.sent, result.requests.answered, result.requests.lost) == (600, 600, 0)
    return result


async def test_a_better_checkpoint_is_shipped(engine: SwitchingEngine, tiny: TinyModels) -> None:
    result = await compare(engine, tiny, "better")
    assert (result.verdict.decision, result.verdict.rule) == ("ship", "primary-better")
    found = result.verdict.comparisons["exact_match"]
    truth = tiny.accuracy["better"] - tiny.accuracy["baseline"]
    assert found.low - 0.05 < truth < found.high + 0.05, "the estimate is about the truth"


async def test_a_regressed_checkpoint_is_not(engine: SwitchingEngine, tiny: TinyModels) -> None:
    result = await compare(engine, tiny, "regressed")
    assert (result.verdict.decision, result.verdict.rule) == ("keep", "primary-worse")


async def test_two_copies_of_one_checkpoint_are_not_told_apart(engine: SwitchingEngine, tiny: TinyModels) -> None:
    result = await compare(engine, tiny, "copy", alpha=0.01)
    assert result.verdict.decision in {"inconclusive", "equivalent"}


async def test_an_adapter_shares_the_engine_of_its_base_and_is_better(
    engine: SwitchingEngine, tiny: TinyModels, tmp_path: Path
) -> None:
    before = (await (await engine.instance("baseline")).health()).memory_bytes
    result = await compare(engine, tiny, "adapted")
    assert result.verdict.decision == "ship"
    facts = await engine.load("adapted")
    assert facts.shared_engine
    assert facts.memory_bytes < 1.5 * before, "no second engine"
