"""What only a GPU can show: engines that give device memory back while they sleep, and wake up the same.

In float32, as rounding flips near-ties of these tiny models in bfloat16, when an answer comes in another batch.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from abswitch.domain import GenerationRequest, ModelConfig, ModelVersion, Residency, Sampling, SwitchPath
from abswitch.serving.cache import ModelCache
from abswitch.serving.instance import ModelInstance
from abswitch.serving.policy import GIB, usage
from abswitch.serving.vllm import VllmEnginePool, VllmInstance, vllm_backend
from abswitch.testing import TinyModels, check_instance
from tests.integration.test_residency import random_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU: nvidia-smi is not here"),
]

PROMPTS = [f"{a}+{b}=" for a in (12, 47, 80) for b in (34, 5, 91)]


def version_of(folder: Path, name: str) -> ModelVersion:
    config = ModelConfig(model_id="adder", model=str(folder), engine_args={"dtype": "float32"})
    return ModelVersion(version=name, config=config)


async def answers(instance: ModelInstance) -> list[str]:
    """One after the other, so that every one comes in a batch of the same size."""
    sampling = Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)
    told = []
    for number, prompt in enumerate(PROMPTS):
        request = GenerationRequest(request_id=f"r{number}", prompt=prompt, sampling=sampling)
        told.append("".join([chunk.text async for chunk in instance.generate(request)]))
    return told


@pytest.fixture
def pool() -> VllmEnginePool:
    return VllmEnginePool()


@pytest.fixture
async def instance(tiny: TinyModels, pool: VllmEnginePool) -> AsyncIterator[VllmInstance]:
    instance = VllmInstance(version_of(tiny.baseline, "v1"), pool)
    await instance.start()
    yield instance
    await instance.stop()


async def test_an_instance_that_can_sleep_fulfils_the_contract(tiny: TinyModels, pool: VllmEnginePool) -> None:
    await check_instance(lambda: VllmInstance(version_of(tiny.baseline, "v1"), pool), prompt="12+34=")


@pytest.mark.parametrize(("level", "tier"), [(1, Residency.SLEEPING), (2, Residency.DISCARDED)])
async def test_asleep_it_frees_the_device_and_awake_it_answers_as_before(
    instance: VllmInstance, level: int, tier: Residency
) -> None:
    assert instance.can_sleep
    before, awake = await answers(instance), await instance.memory()
    for _ in range(2):
        await instance.sleep(level)
        assert (await instance.health()).residency is tier
        assert (await instance.memory()).device_bytes < awake.device_bytes - 3 * GIB, "the KV cache has 4 GiB"
        await instance.wake()
        assert (await instance.health()).residency is Residency.RESIDENT
        assert await answers(instance) == before


@pytest.mark.parametrize("tied", [False, True], ids=["own output layer", "tied output layer"])
async def test_weights_put_in_place_reach_the_graphs_and_are_those_that_come_back(
    tiny: TinyModels, pool: VllmEnginePool, tmp_path: Path, *, tied: bool
) -> None:
    one, two = (random_llama(tmp_path / name, tiny.baseline, seed=n, tied=tied) for n, name in enumerate("ab"))
    instance = VllmInstance(version_of(two, "v2"), pool)
    await instance.start()
    of_two = await answers(instance)
    await instance.stop()
    instance = VllmInstance(version_of(one, "v1"), pool)
    await instance.start()
    assert sum(a == b for a, b in zip(await answers(instance), of_two, strict=True)) < 2, "they can be told apart"
    instance = await instance.become(version_of(two, "v2"))
    assert await answers(instance) == of_two
    await instance.sleep(2)
    await instance.wake()
    assert await answers(instance) == of_two, "the weights that were loaded last are loaded again"
    await instance.stop()


async def test_a_budget_that_only_one_fits_in_has_the_other_sleep(tiny: TinyModels, pool: VllmEnginePool) -> None:
    v1, v2 = version_of(tiny.baseline, "v1"), version_of(tiny.better, "v2")
    cache = ModelCache({"vllm": vllm_backend(pool)}, max_cached_models=4, in_use=lambda _: False)
    try:
        first = await cache.ensure(v1)
        before, taken = await answers(first.instance), usage(cache.held).device_bytes
        assert taken > 4 * GIB, "its KV cache is on the device"
        cache.budget = replace(cache.budget, device_bytes=taken + 3 * GIB)
        second = await cache.ensure(v2)
        assert (cache.tier(v1.key), cache.tier(v2.key)) == (Residency.SLEEPING, Residency.RESIDENT)
        kept = next(one.footprint.device_bytes for one in cache.held if one.key == v1.key)
        assert 0 < kept < taken - 3 * GIB, "a CUDA context stays"
        again = await cache.ensure(v1)
        assert again.path is SwitchPath.WAKE and await answers(again.instance) == before
        assert cache.tier(v2.key) is Residency.SLEEPING
        assert isinstance(second.instance, VllmInstance)
        for pid in second.instance._started().pids:
            os.kill(pid, signal.SIGKILL)
        assert (await cache.ensure(v2)).path is SwitchPath.LOAD, "what died in its sleep is loaded anew"
    finally:
        await cache.close()
