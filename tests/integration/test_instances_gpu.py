"""What only a GPU can show: an engine that gives its memory back while it sleeps, and wakes up the same."""

from __future__ import annotations

import shutil

import pytest

from abswitch.domain import ModelConfig, ModelVersion, Residency
from abswitch.serving.vllm import VllmEnginePool, VllmInstance
from abswitch.testing import TinyModels, check_instance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU: nvidia-smi is not here"),
]


async def test_a_sleeping_instance_fulfils_the_contract_and_frees_device_memory(tiny: TinyModels) -> None:
    config = ModelConfig(model_id="adder", model=str(tiny.baseline), engine_args={"enable_sleep_mode": True})
    version = ModelVersion(version="v1", config=config)
    pool = VllmEnginePool()
    await check_instance(lambda: VllmInstance(version, pool), prompt="12+34=")
    instance = VllmInstance(version, pool)
    awake = await instance.start()
    assert instance.can_sleep
    assert awake.device_memory_bytes is None or awake.device_memory_bytes > 0
    try:
        await instance.sleep(1)
        assert (await instance.health()).residency is Residency.SLEEPING
        await instance.wake()
        assert (await instance.health()).residency is Residency.RESIDENT
    finally:
        await instance.stop()
