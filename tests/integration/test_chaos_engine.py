"""Real vLLM engines that are killed or stopped under load: who waited is answered, who was being answered is told."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from abswitch import ModelConfig, ModelSwitchingConfig, SwitchingEngine
from abswitch.errors import StreamBroken
from abswitch.serving.alerts import Alert
from abswitch.testing import TinyModels, Witness, check_history
from tests.integration.test_instances_vllm import until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

FOUND_S = 10.0
TOLD_S = 2.0
BACK_S = 150.0  # an engine starts in 15 s; beside other work on two cores it has taken over a minute
PAUSE_S = 4.0  # before the second restart
READERS, CALLERS = 6, 8
LONG: dict[str, Any] = {"max_tokens": 240, "ignore_eos": True, "temperature": 0.0}
SHORT: dict[str, Any] = {"max_tokens": 4, "ignore_eos": True, "temperature": 0.0}


@dataclass
class Load:
    """What callers met. Times are of the monotonic clock."""

    witness: Witness = field(default_factory=Witness)
    answered: list[float] = field(default_factory=list)
    broken_s: list[float] = field(default_factory=list)
    wrong: list[BaseException] = field(default_factory=list)

    async def ask(self, engine: SwitchingEngine, caller: str, prompt: str, sampling: dict[str, Any]) -> None:
        """Streams, one after the other."""
        for turn in itertools.count():
            name = f"{caller}-{turn}"
            if await self.witness.read(name, engine.stream(prompt, request_id=name, **sampling)) is not None:
                self.answered.append(time.monotonic())
            else:
                self.failed(name)

    def failed(self, name: str) -> None:
        error = self.witness.failed.get(name) or self.witness.refused[name]
        if isinstance(error, StreamBroken) and error.text and self.witness.streams[name]:
            self.broken_s.append(time.monotonic())
        else:  # it should have been tried again
            self.wrong.append(error)

    def answered_since(self, moment_s: float) -> int:
        return sum(at_s > moment_s for at_s in self.answered)


@asynccontextmanager
async def under_load(engine: SwitchingEngine) -> AsyncIterator[Load]:
    load = Load()
    tasks = [asyncio.create_task(load.ask(engine, f"reader-{n}", "12+34=", LONG)) for n in range(READERS)]
    tasks += [asyncio.create_task(load.ask(engine, f"caller-{n}", "1+2=", SHORT)) for n in range(CALLERS)]
    try:
        await wait_for(lambda: len(load.answered) > 50, 30.0, "a load that is answered")
        yield load
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [one for one in ended if not isinstance(one, asyncio.CancelledError)] == []


async def wait_for(condition: object, seconds: float, what: str) -> float:
    assert callable(condition)
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic()


async def processes(engine: SwitchingEngine, version: str) -> list[int]:
    instance = await engine.instance(version)
    return list(instance._engine.pids)  # type: ignore[attr-defined]  # which processes to attack is nobody else's business


def register(engine: SwitchingEngine, models: dict[str, Path]) -> None:
    for version, folder in models.items():
        engine.registry.register_model(ModelConfig(model_id="adder", model=str(folder)), version)


async def test_an_engine_killed_and_then_one_that_hangs(tiny: TinyModels, tmp_path: Path) -> None:
    config = ModelSwitchingConfig(restart_initial_seconds=PAUSE_S, max_queue_wait_seconds=BACK_S)
    told: list[tuple[float, Alert]] = []
    async with SwitchingEngine(config, store=tmp_path / "chaos.duckdb") as engine:
        engine.add_alert_sink(lambda alert: told.append((time.monotonic(), alert)))
        register(engine, {"v1": tiny.baseline})
        await engine.deploy("v1")
        async with under_load(engine) as load:
            # kill -9
            first = await processes(engine, "v1")
            for pid in first:
                os.kill(pid, signal.SIGKILL)
            await wait_for(lambda: told, 2.0, "the loss to be noticed")
            lost_s = told[0][0]
            assert told[0][1].metric == "lost"
            await wait_for(lambda: len(load.broken_s) >= READERS, TOLD_S, "an error for every stream that had begun")
            assert max(load.broken_s) - lost_s <= TOLD_S
            born_s = await new_process(first)
            assert born_s - lost_s < PAUSE_S, "the first restart comes at once"
            await wait_for(lambda: load.answered_since(lost_s) > 50, BACK_S, "the engine to be back")
            assert load.wrong == []

            # SIGSTOP: its processes live, and answer nothing
            second = await processes(engine, "v1")
            assert not set(first) & set(second)
            broken, told[:] = len(load.broken_s), []
            for pid in second:
                os.kill(pid, signal.SIGSTOP)
            late = [asyncio.create_task(engine.generate("3+4=", **SHORT)) for _ in range(5)]
            seen_s = await wait_for(lambda: any(a.metric == "hung" for _, a in told), FOUND_S, "the hang to be found")
            hung = next(alert for _, alert in told if alert.metric == "hung")
            # By the alert's own clock: on a machine that is busy it is told, and seen here, a moment later.
            found_s = hung.started_at_s + time.monotonic() - time.time()
            await wait_for(lambda: len(load.broken_s) >= broken + READERS, TOLD_S, "an error for every stream")
            assert max(load.broken_s) - seen_s <= TOLD_S
            await wait_for(lambda: not any(map(psutil.pid_exists, second)), 15.0, "the hung processes to be gone")
            born_s = await new_process(second)
            assert born_s - found_s >= PAUSE_S, "the second restart waits"
            done = await asyncio.wait_for(asyncio.gather(*late), BACK_S)
            assert {one.output_tokens for one in done} == {4}
            await wait_for(lambda: load.answered_since(found_s) > 50, BACK_S, "the engine to be back")
            assert load.wrong == []
        rows = engine.query("SELECT * FROM requests ORDER BY admitted_mono_s")
        routes = engine.query("SELECT * FROM routes ORDER BY epoch")
        under_way = rows[rows.request_id.isin(load.witness.sent)]
        assert len(under_way) + len(late) == len(rows)
        load.witness.check(under_way, routes).raise_for_violations()
        assert set(rows.error_type.dropna()) <= {"StreamBroken", "Cancelled"}
        assert (rows.output_tokens[rows.error_type == "StreamBroken"] > 0).all()
        assert rows.fallback.sum() >= len(late)
        assert "restart" in set(rows.switch_path)
        assert {alert.metric for alert in engine.alerts()} >= {"lost", "hung"}
        await until(
            lambda: not {alert.metric for alert in engine.alerts(active=True)} & {"lost", "hung"},
            "what came back to be resolved",
        )
        # A new engine's memory is read by the next health check that can spare a thread for it.
        await until(lambda: bool(engine.health().version("v1").memory_bytes), "the new engine's memory to be known")


async def new_process(than: list[int]) -> float:
    """When the next engine process appeared, on the monotonic clock."""

    def fresh() -> bool:
        children = psutil.Process().children()
        return any(child.pid not in than and child.pid not in before for child in children)

    before = {child.pid for child in psutil.Process().children()}
    return await wait_for(fresh, 60.0, "a new engine process")


async def test_a_candidate_that_hangs_is_rolled_back_and_nobody_who_waited_notices(
    tiny: TinyModels, tmp_path: Path
) -> None:
    async with SwitchingEngine(store=tmp_path / "chaos.duckdb") as engine:
        register(engine, {"v1": tiny.baseline, "v2": tiny.better})
        await asyncio.gather(engine.load("v1"), engine.load("v2"))
        await engine.deploy("v1")
        handle = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 50})
        await handle.serving()
        for pid in await processes(engine, "v2"):
            os.kill(pid, signal.SIGSTOP)
        began_s = time.monotonic()
        answers = await asyncio.gather(
            *(engine.generate("1+2=", unit_id=f"user-{n}", request_id=f"waiting-{n}", **SHORT) for n in range(40))
        )
        ended = await asyncio.wait_for(handle.done(), FOUND_S)
        assert time.monotonic() - began_s < FOUND_S + TOLD_S
        assert ended.phase == "rolled back"
        assert "it hangs" in ended.reason
        moved = [one for one in answers if one.assigned_version == "v2"]
        assert moved, "some units were on the candidate"
        assert {one.served_version for one in answers} == {"v1"}
        assert engine.registry.active_version("adder") == "v1"
        rows = engine.query("SELECT * FROM requests ORDER BY admitted_mono_s")
        routes = engine.query("SELECT * FROM routes ORDER BY epoch")
        told = {one.request_id: one.text for one in answers}
        check_history(rows, routes, sent=list(told), answered=told, failed=()).raise_for_violations()
