"""Ten thousand requests, thirty-two at a time, twenty switches under way: none lost, none doubled, none misrouted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from abswitch import ExactMatch, ModelConfig, SwitchingEngine
from abswitch.testing import TinyModels, Witness

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

REQUESTS = 10_000
CONCURRENCY = 32
SWITCHES = 20


async def test_ten_thousand_requests_through_twenty_switches(tiny: TinyModels, tmp_path: Path) -> None:
    prompts = [problem.prompt for problem in tiny.task.problems(200, seed=5)]
    async with SwitchingEngine(store=tmp_path / "load.duckdb", scorers=[ExactMatch()], record_text=True) as engine:
        for version, folder in (("v1", tiny.baseline), ("v2", tiny.better)):
            config = ModelConfig(
                model_id="adder",
                model=str(folder),
                sampling={"temperature": 0.0, "max_tokens": 8},  # type: ignore[arg-type]
            )
            engine.registry.register_model(config, version)
        await asyncio.gather(engine.load("v1"), engine.load("v2"))
        truth = {
            (version, prompt): (await engine.generate(prompt, version=version)).text
            for version in ("v1", "v2")
            for prompt in prompts
        }
        await engine.deploy("v1")
        witness = Witness()
        waiting = iter(range(REQUESTS))

        async def client() -> None:
            for index in waiting:
                name = f"load-{index}"
                prompt = prompts[index % len(prompts)]
                await witness.read(name, engine.stream(prompt, request_id=name, unit_id=f"user-{index % 997}"))

        async def switch_back_and_forth() -> None:
            for turn in range(SWITCHES):
                while len(witness.answered) < turn * REQUESTS // SWITCHES:
                    await asyncio.sleep(0.005)
                target = "v2" if turn % 2 == 0 else "v1"
                if turn % 4 < 2:
                    handle = await engine.start_switch(target, "immediate")
                else:
                    handle = await engine.start_switch(target, "ab_test", {"traffic_percentage": 30})
                    await handle.serving()
                    await handle.promote()
                assert (await handle.done()).phase == "succeeded"

        await asyncio.gather(switch_back_and_forth(), *(client() for _ in range(CONCURRENCY)))
        assert len(witness.answered) == REQUESTS and not witness.failed and not witness.refused
        rows = engine.query("SELECT * FROM requests WHERE arm <> 'pinned' ORDER BY admitted_mono_s")
        routes = engine.query("SELECT * FROM routes ORDER BY epoch")
        moves = engine.query("SELECT * FROM transitions ORDER BY operation_id, sequence")
        report = witness.check(rows, routes, transitions=moves, truth=truth)
        report.raise_for_violations()
        assert report.texts_checked == report.streams_checked == REQUESTS and report.operations == SWITCHES + 1
        assert engine.store.stats().dropped == 0
        served = rows.groupby("served_version").size()
        assert served["v1"] > REQUESTS // 10 and served["v2"] > REQUESTS // 10, "both versions took real traffic"
        assert engine.switcher.get_switcher_stats().succeeded == SWITCHES + 1
        assert not engine.in_flight()
