"""Instances on real processes: engines of this machine, and a real `vllm serve`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from abswitch.domain import (
    ChatMessage,
    FinishReason,
    GenerationRequest,
    ModelConfig,
    ModelVersion,
    Residency,
    Sampling,
)
from abswitch.errors import InstanceDied, InvalidInput, LoadFailed, PromptTooLong
from abswitch.serving.cores import bind
from abswitch.serving.vllm import VllmEnginePool, VllmInstance, vllm_backend
from abswitch.testing import TinyModels
from abswitch.testing.contract import check_instance

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="session")]

PROMPT = "12+34="
PATIENCE_S = 10.0


def version_of(folder: Path, name: str = "v1", **config: Any) -> ModelVersion:
    return ModelVersion(version=name, config=ModelConfig(model_id="adder", model=str(folder), **config))


def request(prompt: Any = PROMPT, **sampling: Any) -> GenerationRequest:
    fields = {"temperature": 0.0, "max_tokens": 8} | sampling
    return GenerationRequest(request_id="r", prompt=prompt, sampling=Sampling().merged(fields))


async def answer(instance: VllmInstance, prompt: Any = PROMPT, **sampling: Any) -> str:
    return "".join([chunk.text async for chunk in instance.generate(request(prompt, **sampling))])


def cores_of(pid: int) -> set[int]:
    """On which cores an engine computes: its main thread does, with helpers that inherit its cores."""
    return os.sched_getaffinity(pid)


def engine_processes() -> set[int]:
    """Engine processes of this one, by their titles."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith("VLLM::"):
                found.add(child.pid)
        except psutil.Error:
            continue
    return found


async def until(condition: Any, what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {PATIENCE_S} s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def watched_loop() -> AsyncIterator[list[float]]:
    """The times in seconds between two turns of the loop; compared with durations of the same, maybe busy, machine."""
    gaps_s = [0.0]

    async def watch() -> None:
        last_s = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now_s = time.perf_counter()
            gaps_s.append(now_s - last_s)
            last_s = now_s

    watcher = asyncio.create_task(watch())
    try:
        yield gaps_s
    finally:
        watcher.cancel()


@pytest.fixture(scope="session")
def pool() -> VllmEnginePool:
    return VllmEnginePool()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def base(tiny: TinyModels, pool: VllmEnginePool) -> AsyncIterator[VllmInstance]:
    """An instance that most tests share: its engine has room for adapters."""
    instance = VllmInstance(version_of(tiny.baseline, engine_args={"enable_lora": True}), pool)
    await instance.start()
    yield instance
    await instance.stop()
    assert not engine_processes()


async def test_the_contract_holds_on_an_engine_of_its_own(tiny: TinyModels, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny.baseline, broken)
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 7}))
    before = engine_processes()
    pool = VllmEnginePool()

    async def make() -> VllmInstance:
        return VllmInstance(version_of(tiny.baseline), pool)

    await check_instance(make, make_failing=lambda: VllmInstance(version_of(broken, "broken"), pool))
    assert engine_processes() == before, "an engine that was stopped, or failed to start, leaves no process"


async def test_load_facts(base: VllmInstance) -> None:
    facts = await base.start()
    assert facts.load_s > 0 and not facts.shared_engine
    assert 100 << 20 < facts.memory_bytes < 8 << 30
    health = await base.health()
    assert health.alive and health.residency is Residency.RESIDENT
    assert health.memory_bytes > 100 << 20


async def test_closing_streams_aborts_their_requests_in_the_engine(base: VllmInstance) -> None:
    llm = base.async_llm
    long = {"max_tokens": 200, "ignore_eos": True}
    began_s = time.monotonic()
    await asyncio.gather(*(answer(base, **long) for _ in range(16)))
    whole_s = time.monotonic() - began_s

    async def begin_and_close() -> None:
        async with aclosing(base.generate(request(**long))) as stream:
            await anext(stream)

    began_s = time.monotonic()
    await asyncio.gather(*(begin_and_close() for _ in range(16)))
    assert llm.get_num_unfinished_requests() == 0
    while not await llm.reset_prefix_cache():  # only a cache that no request holds blocks of can be emptied
        await asyncio.sleep(0.001)
    assert time.monotonic() - began_s < whole_s / 2, "the engine went on with requests that nobody reads"


async def test_chat_and_completion_are_tokenised_as_the_model_wants_it(base: VllmInstance) -> None:
    chunks = [chunk async for chunk in base.generate(request((ChatMessage("user", PROMPT),)))]
    assert chunks[-1].prompt_tokens == len(PROMPT) + 1, "the chat template adds the beginning of the text, once"
    assert "".join(chunk.text for chunk in chunks) == await answer(base)


async def test_sampling_reaches_the_engine(base: VllmInstance) -> None:
    hot = {"temperature": 2.0, "max_tokens": 24, "ignore_eos": True}
    first, again, other = [await answer(base, seed=seed, **hot) for seed in (1, 1, 2)]
    assert first == again != other
    chunks = [chunk async for chunk in base.generate(request(max_tokens=40, ignore_eos=True))]
    assert chunks[-1].output_tokens == 40 and chunks[-1].finish_reason is FinishReason.LENGTH


async def test_the_longest_prompt_fits_and_one_more_does_not(base: VllmInstance) -> None:
    room = base.max_model_len - 2  # the beginning of the text, and one token of the answer
    chunks = [chunk async for chunk in base.generate(request("1" * room, ignore_eos=True))]
    assert chunks[-1].output_tokens == 1 and chunks[-1].finish_reason is FinishReason.LENGTH
    for length in (room + 1, room + 500, 1_000_000):
        with pytest.raises(PromptTooLong, match=f"at most {base.max_model_len - 1}"):
            await answer(base, "1" * length)
    assert (await base.health()).in_flight == 0


async def test_an_adapter_joins_the_engine_that_runs(
    tiny: TinyModels, pool: VllmEnginePool, base: VllmInstance
) -> None:
    before = engine_processes()
    adapted = VllmInstance(version_of(tiny.baseline, "lora", adapter=str(tiny.adapter)), pool)
    facts = await adapted.start()
    assert facts.shared_engine and facts.load_s < 5
    assert engine_processes() == before, "no second engine"
    assert adapted.async_llm is base.async_llm
    prompts = [f"{i}+{i + 11}=" for i in range(20, 60)]
    plain = [await answer(base, prompt) for prompt in prompts]
    tuned = [await answer(adapted, prompt) for prompt in prompts]
    assert plain != tuned, "the adapter changes answers"
    assert [await answer(base, prompt) for prompt in prompts] == plain, "and only its own"
    await adapted.stop()
    assert engine_processes() == before
    assert [await answer(base, prompt) for prompt in prompts] == plain
    again = VllmInstance(version_of(tiny.baseline, "lora-2", adapter=str(tiny.adapter)), pool)
    await again.start()
    assert [await answer(again, prompt) for prompt in prompts] == tuned
    await again.stop()


async def test_a_base_joins_the_engine_of_its_adapter(tiny: TinyModels) -> None:
    pool = VllmEnginePool()
    adapted = VllmInstance(version_of(tiny.baseline, "lora", adapter=str(tiny.adapter)), pool)
    plain = VllmInstance(version_of(tiny.baseline), pool)
    assert await plain.engine_to_join() is None
    assert not (await adapted.start()).shared_engine
    assert await plain.engine_to_join() == adapted.engine_key
    facts = await plain.start()
    assert facts.shared_engine and facts.load_s < 5
    await adapted.stop()
    await plain.stop()


async def test_a_bad_adapter_leaves_the_engine_serving(
    tiny: TinyModels, pool: VllmEnginePool, base: VllmInstance, tmp_path: Path
) -> None:
    expected = await answer(base)
    bad = tmp_path / "bad"
    shutil.copytree(tiny.adapter, bad)
    settings = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    instance = VllmInstance(version_of(tiny.baseline, "bad", adapter=str(bad)), pool)
    with pytest.raises(LoadFailed, match=r"its adapter was refused.*DoRA"):
        await instance.start()
    await instance.stop()
    assert (await base.health()).alive
    assert await answer(base) == expected


async def test_engines_at_work_compute_on_different_cores(
    tiny: TinyModels, pool: VllmEnginePool, base: VllmInstance
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    before = engine_processes()
    other = VllmInstance(version_of(tiny.better, "other"), pool)
    await other.start()
    (mine,), (theirs,) = before, engine_processes() - before
    assert cores_of(mine).isdisjoint(cores_of(theirs)), "one process each, on cores of its own"

    seats = [instance._started()._seat for instance in (base, other)]
    assert seats[0] is not None and seats[1] is not None
    seats[1].number = seats[0].number
    bind([theirs], cores_of(mine))
    reading = base.generate(request(max_tokens=200, ignore_eos=True))
    await anext(reading)
    assert await answer(other)
    assert cores_of(mine).isdisjoint(cores_of(theirs)), "it moved when both had work"
    await reading.aclose()
    await other.stop()


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"no_such_argument": 1}, "model_config.engine_args.no_such_argument"),
        ({"model": "x"}, "model_config.engine_args.model"),
        ({"enable_lora": "yes"}, "model_config.engine_args.enable_lora"),
        ({"enable_lora": True, "max_loras": 0}, "model_config.engine_args.max_loras"),
    ],
)
async def test_wrong_engine_arguments_start_nothing(tiny: TinyModels, args: dict[str, Any], field: str) -> None:
    before = engine_processes()
    instance = vllm_backend(VllmEnginePool())(version_of(tiny.better, engine_args=args))
    with pytest.raises(InvalidInput) as caught:
        await instance.start()
    assert caught.value.field == field
    assert engine_processes() == before


async def test_a_killed_engine_ends_every_stream_and_says_so(tiny: TinyModels) -> None:
    pool = VllmEnginePool()
    before = engine_processes()
    instance = VllmInstance(version_of(tiny.baseline), pool)
    async with watched_loop() as gaps_s:
        facts = await instance.start()
    assert max(gaps_s) < facts.load_s / 5, "the loop turns while an engine starts"
    ended: list[float] = []
    begun = asyncio.Event()

    async def read() -> None:
        try:
            while True:
                async for _ in instance.generate(request(max_tokens=200, ignore_eos=True)):
                    begun.set()
        finally:
            ended.append(time.monotonic())

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await begun.wait()
    killed_s = time.monotonic()
    for pid in engine_processes() - before:
        os.kill(pid, signal.SIGKILL)
    results = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), PATIENCE_S)
    assert all(isinstance(result, InstanceDied) for result in results), results
    assert "SIGKILL" in str(results[0])
    assert max(ended) - killed_s < 2.0
    health = await instance.health()
    assert not health.alive and health.residency is Residency.COLD and "SIGKILL" in str(health.error)
    with pytest.raises(InstanceDied):
        await answer(instance)
    await instance.stop()
    replacement = VllmInstance(version_of(tiny.baseline), pool)
    assert not (await replacement.start()).shared_engine, "a dead engine is not joined"
    await replacement.stop()
    assert engine_processes() == before
