"""Residency on real vLLM: weights swapped in place, a budget that is too small, times that are remembered."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from abswitch import ModelConfig, ModelSwitchingConfig, Sampling, SwitchingEngine
from abswitch.errors import OutOfBudget, SwitchRefused
from abswitch.testing import TinyModels, check_history

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def random_llama(folder: Path, tiny: Path, *, seed: int, tied: bool) -> Path:
    """A Llama of random weights with the tiny models' tokenizer: unlike two moments of one training run, two of them
    agree in nothing, so that a single stale tensor shows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig.from_pretrained(tiny)
    config.tie_word_embeddings = tied
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in tiny.iterdir():
        if "token" in file.name and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)
    return folder


def register(engine: SwitchingEngine, **folders: Path) -> None:
    for version, folder in folders.items():
        sampling = Sampling(temperature=0.0, max_tokens=8)
        engine.registry.register_model(ModelConfig(model_id="adder", model=str(folder), sampling=sampling), version)


@pytest.mark.parametrize("tied", [False, True], ids=["own output layer", "tied output layer"])
async def test_weights_are_swapped_in_place_under_traffic(tiny: TinyModels, tmp_path: Path, *, tied: bool) -> None:
    prompts = [problem.prompt for problem in tiny.task.problems(100, seed=3)]
    async with SwitchingEngine(store=tmp_path / "swap.duckdb", record_text=True) as engine:
        one = random_llama(tmp_path / "one", tiny.baseline, seed=1, tied=tied)
        two = random_llama(tmp_path / "two", tiny.baseline, seed=2, tied=tied)
        register(engine, v1=one, v2=two, other=random_llama(tmp_path / "other", tiny.baseline, seed=3, tied=not tied))
        await asyncio.gather(engine.deploy("v1"), engine.load("v2"))
        truth = {
            (version, prompt): (await engine.generate(prompt, version=version)).text
            for version in ("v1", "v2")
            for prompt in prompts
        }
        await engine.call(engine._parts.cache.discard(("adder", "v2")))  # the engine that tells what v2 says
        before = (await engine.instance("v1")).async_llm  # type: ignore[attr-defined]  # of the vLLM instance
        answered: dict[str, str] = {}
        stopping = False

        async def client(number: int) -> None:
            turn = 0
            while not stopping:
                name = f"{number}-{turn}"
                answered[name] = (await engine.generate(prompts[turn % len(prompts)], request_id=name)).text
                turn += 1

        assert sum(truth["v1", prompt] == truth["v2", prompt] for prompt in prompts) < 10, "they can be told apart"
        with pytest.raises(SwitchRefused, match="differs in tie_word_embeddings"):
            await engine.start_switch("other", "immediate", {"in_place": True})
        clients = [asyncio.create_task(client(number)) for number in range(8)]
        assert (await engine.plan_switch("v2", "immediate", {"in_place": True})).paths["v2"] == "in-place"
        for version in ("v2", "v1", "v2"):
            handle = await engine.start_switch(version, "immediate", {"in_place": True})
            assert (await handle.done()).phase == "succeeded", handle.status.reason
            await asyncio.sleep(0.05)
        stopping = True
        await asyncio.gather(*clients)
        assert (await engine.instance("v2")).async_llm is before, "the engine is the one it was"  # type: ignore[attr-defined]
        rows = engine.query("SELECT * FROM requests WHERE arm <> 'pinned' ORDER BY admitted_mono_s")
        routes = engine.query("SELECT * FROM routes ORDER BY epoch")
        check_history(rows, routes, sent=list(answered), answered=answered, truth=truth).raise_for_violations()
        assert set(rows.served_version) == {"v1", "v2"} and "in-place" in set(rows.switch_path)
        digests = rows.groupby("served_version").weights_digest.nunique()
        assert set(digests) == {1} and rows.weights_digest.nunique() == 2
        expected = (await engine.plan_switch("v1", "immediate", {"in_place": True})).expected["v1"]
        assert expected.seconds is not None and expected.seconds < 5.0


async def test_a_budget_too_small_is_told_and_not_tried(tiny: TinyModels, tmp_path: Path) -> None:
    config = ModelSwitchingConfig(cache_memory_limit_gb=1.5)
    async with SwitchingEngine(config, store=tmp_path / "small.duckdb") as engine:
        register(engine, v1=tiny.baseline, v2=tiny.better)
        await engine.deploy("v1")
        with pytest.raises(SwitchRefused, match="does not fit beside 'v1'"):
            await engine.start_switch("v2", "canary")
        with pytest.raises(OutOfBudget, match=r"adder:v1 \(in use\)"):
            await engine.load("v2")
        assert (await engine.generate("12+34=")).served_version == "v1"
        handle = await engine.start_switch("v2", "immediate", {"drain_first": True})
        waited = await engine.generate("12+34=")
        assert waited.served_version in ("v1", "v2")
        assert (await handle.done()).phase == "succeeded"
