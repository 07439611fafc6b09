"""A version gives its engine back however its start or its end goes wrong, and joins only one that runs; the engine is
a stand-in.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import InstanceDied, InstanceNotRunning
from abswitch.serving import vllm_engine
from abswitch.serving.policy import Footprint
from abswitch.serving.vllm import VllmEngine, VllmEnginePool, VllmInstance
from abswitch.serving.vllm_args import EnginePlan
from abswitch.serving.vllm_memory import DEVICE_BYTES
from tests.patience import PATIENCE_S


class StandIn:
    """An engine, its `llm`, its library and its pool in one, with as much of each as a start and an end ask for."""

    is_dead = was_killed = is_asleep = False
    can_sleep = True

    def __init__(self) -> None:
        self.holding = 1  # another version
        self.adapters: set[int] = set()
        self.lost: Exception | None = None  # what it raises when it is told something
        self.unseen: Exception | None = None  # what it raises when its memory is read

    @property
    def llm(self) -> StandIn:
        return self

    vllm = llm

    async def acquire(self, _: ModelVersion) -> tuple[VllmEngine, bool]:
        self.holding += 1
        return cast(VllmEngine, self), True

    async def release(self, *_: object) -> None:
        self.holding -= 1

    def holders(self, _: object) -> int:
        return self.holding

    def next_adapter_id(self) -> int:
        return 7

    def lora_request(self, _name: str, number: int, _folder: str) -> StandIn:
        self.lora_int_id = number
        return self

    async def add_lora(self, lora: StandIn) -> bool:
        self.adapters.add(lora.lora_int_id)
        return True

    async def remove_lora(self, number: int) -> None:
        self.adapters.remove(number)

    async def told(self, call: Any) -> Any:
        return await call

    async def abort(self, _: list[str]) -> None:
        if self.lost is not None:
            raise self.lost

    def memory_bytes(self) -> int:
        if self.unseen is not None:
            raise self.unseen
        return 5

    def device_memory_bytes(self) -> int | None:
        return None


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "base_model_name_or_path": "base"}')
    (tmp_path / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return tmp_path


def instance_on(engine: StandIn, adapter: Path) -> VllmInstance:
    config = ModelConfig(model_id="m", model="base", adapter=str(adapter))
    return VllmInstance(ModelVersion(version="v1", config=config), cast(VllmEnginePool, cast(Any, engine)))


async def test_a_start_that_cannot_measure_its_engine_gives_it_back(adapter: Path) -> None:
    engine = StandIn()
    instance = instance_on(engine, adapter)
    engine.unseen = OSError("no such process")
    with pytest.raises(OSError, match="no such process"):
        await instance.start()
    assert (engine.holding, engine.adapters) == (1, set())
    with pytest.raises(InstanceNotRunning):
        _ = instance.async_llm
    engine.unseen = None
    assert (await instance.start()).memory_bytes == 5 and (engine.holding, engine.adapters) == (2, {7})
    await instance.stop()
    assert (engine.holding, engine.adapters) == (1, set())


async def test_who_waits_for_an_engine_that_dies_is_told() -> None:
    parts: Any = SimpleNamespace(
        errored=False,
        model_config=SimpleNamespace(max_model_len=8),
        engine_core=SimpleNamespace(),
        reason=lambda: "boom",
    )
    engine = VllmEngine(parts, parts, parts, parts)
    assert await engine.told(asyncio.sleep(0, "awake")) == "awake"
    ended = asyncio.Event()

    async def unanswered() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(engine.told(unanswered()))
    await asyncio.sleep(0)
    parts.errored = True
    with pytest.raises(InstanceDied, match="the engine died: boom"):
        await asyncio.wait_for(waiting, PATIENCE_S)
    await asyncio.wait_for(ended.wait(), PATIENCE_S)


@pytest.mark.parametrize(("told", "awake", "asleep"), [(7, 7, 7), (None, 9 << 30, DEVICE_BYTES)])
def test_where_the_device_does_not_tell_an_engine_counts_as_what_was_estimated(
    monkeypatch: pytest.MonkeyPatch, told: int | None, awake: int, asleep: int
) -> None:
    parts: Any = SimpleNamespace(
        on_cpu=False, workers=1, model_config=SimpleNamespace(max_model_len=8), engine_core=SimpleNamespace()
    )
    engine = VllmEngine(parts, parts, parts, parts, expected=Footprint(9 << 30))
    monkeypatch.setattr("abswitch.serving.vllm_engine._nvml_bytes", lambda _: told)
    assert engine.device_memory_bytes() == told
    assert engine.footprint().device_bytes == awake
    assert engine.footprint(sleeps=True).device_bytes == asleep


async def test_an_end_that_the_engine_does_not_hear_of_gives_it_back(adapter: Path) -> None:
    engine = StandIn()
    instance = instance_on(engine, adapter)
    await instance.start()
    engine.lost = OSError("the pipe is broken")
    with pytest.raises(OSError, match="the pipe is broken"):
        await instance.stop()
    assert engine.holding == 1
    await instance.stop()
    assert engine.holding == 1, "once"


async def test_an_engine_that_is_still_being_started_is_shared_and_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for its start waits as long as for a load."""
    gate, engine = asyncio.Event(), cast(VllmEngine, StandIn())

    async def start(*_: object) -> VllmEngine:
        await gate.wait()
        return engine

    async def library(_: ModelVersion) -> None:
        return None

    plan = EnginePlan(args={}, base=("base",), room=None, needs=None, adapter=None)
    monkeypatch.setattr(vllm_engine, "_library", library)
    monkeypatch.setattr(vllm_engine, "plan_of", lambda *_: plan)
    monkeypatch.setattr(VllmEnginePool, "_start", start)
    pool = VllmEnginePool()
    versions = [
        ModelVersion(version=name, config=ModelConfig(model_id="m", model="base")) for name in ("v1", "v2", "v3")
    ]
    assert await pool.running(versions[0]) is None
    acquiring = [asyncio.create_task(pool.acquire(version)) for version in versions[:2]]
    while not pool._slots or pool._slots[0].holders < 2:
        await asyncio.sleep(0.001)
    assert await pool.running(versions[2]) is None
    gate.set()
    assert await asyncio.gather(*acquiring) == [(engine, False)] * 2
    assert await pool.running(versions[2]) is engine
    assert await pool.acquire(versions[2]) == (engine, True)
    assert len(pool._slots) == 1
    engine.is_asleep = True
    assert await pool.running(versions[2]) is None, "who joins one that sleeps is answered by nobody"


async def test_an_engine_sleeps_until_it_is_awake_again(adapter: Path) -> None:
    engine = StandIn()
    engine.holding = 0
    instance = instance_on(engine, adapter)
    await instance.start()
    seen = []

    async def change(**_: object) -> None:
        seen.append(engine.is_asleep)

    engine.sleep = engine.wake_up = change  # type: ignore[attr-defined]
    await instance.sleep()
    assert engine.is_asleep
    await instance.wake()
    assert seen == [True, True] and not engine.is_asleep
