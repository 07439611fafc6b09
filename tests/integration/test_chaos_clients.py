"""A checkpoint that cannot be loaded, and callers that all go away at once, on real vLLM under traffic."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from abswitch import ModelConfig, Sampling, SwitchingEngine
from abswitch.errors import BadModelSource
from abswitch.testing import TinyModels, check_history

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

CALLERS = 300


def register(engine: SwitchingEngine, version: str, folder: Path, *, max_tokens: int = 8) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    engine.registry.register_model(ModelConfig(model_id="adder", model=str(folder), sampling=sampling), version)


def damage(folder: Path) -> None:
    """Leave the weights as a disk that filled up in the middle of a copy leaves them."""
    for weights in folder.glob("*.safetensors"):
        content = weights.read_bytes()
        weights.write_bytes(content[: len(content) // 2])


async def test_clients_that_vanish_and_a_broken_checkpoint_cost_nobody_else(tiny: TinyModels, tmp_path: Path) -> None:
    async with SwitchingEngine(store=tmp_path / "chaos.duckdb") as engine:
        register(engine, "v1", tiny.baseline, max_tokens=64)
        folder = Path(shutil.copytree(tiny.better, tmp_path / "broken"))
        register(engine, "broken", folder)
        damage(folder)  # afterwards: registration itself refuses a damaged checkpoint
        await engine.deploy("v1")
        prompts = [problem.prompt for problem in tiny.task.problems(50, seed=2)]
        answered: dict[str, str] = {}

        async def loyal(caller: int) -> None:
            turn = 0
            while not done.is_set():
                name = f"loyal-{caller}-{turn}"
                found = await engine.generate(prompts[turn % len(prompts)], request_id=name)
                answered[name] = found.text
                turn += 1

        done = asyncio.Event()
        loyals = [asyncio.create_task(loyal(caller)) for caller in range(4)]
        with pytest.raises(BadModelSource, match="whole safetensors files"):  # seen before anything was moved
            await engine.start_switch("broken", "canary", {"initial_percentage": 50})
        assert not engine.list_active_switches()
        with pytest.raises(BadModelSource, match="whole safetensors files"):
            await engine.load("broken")
        assert engine.registry.active_version("adder") == "v1"

        await storm(engine, prompts)
        async with asyncio.timeout(60):
            while len(answered) < 40:
                await asyncio.sleep(0.01)
        done.set()
        await asyncio.wait_for(asyncio.gather(*loyals), 60)
        full = (await engine.generate(prompts[0], request_id="full")).output_tokens
        async with asyncio.timeout(10):
            while engine.in_flight():
                await asyncio.sleep(0.01)
        rows = engine.query("SELECT * FROM requests ORDER BY admitted_mono_s")
        vanished = rows[rows.request_id.str.startswith("storm")]
        assert len(rows) == len(vanished) + len(answered) + 1 and rows.request_id.is_unique
        admitted = {f"storm-{number}" for number in range(CALLERS) if number % 3}  # the others may have left before
        assert admitted <= set(vanished.request_id)
        assert vanished.error_type.notna().all(), "every caller left before its end"
        assert (vanished.output_tokens < full).all(), "a generation goes on although its caller is gone"
        loyal_rows = rows[rows.request_id.str.startswith("loyal")]
        routes = engine.query("SELECT * FROM routes ORDER BY epoch")
        check_history(loyal_rows, routes, sent=list(answered), answered=answered).raise_for_violations()


async def storm(engine: SwitchingEngine, prompts: list[str]) -> None:
    """Callers come together and leave together: before, at, or some tokens after their first one."""

    async def caller(number: int) -> None:
        name, patience = f"storm-{number}", number % 3
        with suppress(asyncio.CancelledError):
            async with aclosing(engine.stream(prompts[number % len(prompts)], request_id=name)) as stream:
                async for _ in stream:
                    patience -= 1
                    if patience <= 0:
                        return

    tasks = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
    async with asyncio.timeout(60):
        while len(engine.in_flight()) < CALLERS // 4:
            await asyncio.sleep(0.001)
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
