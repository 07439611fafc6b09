"""Which engine a version needs, which versions share one, and what is said when one fails; no engine is started."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging.config
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import InvalidInput
from abswitch.serving.cores import CoreGroup
from abswitch.serving.source import check_source
from abswitch.serving.vllm_args import (
    DEVICE_KV_CACHE_BYTES,
    EXECUTOR,
    EnginePlan,
    LoraRoom,
    Vllm,
    check_args,
    declared_names,
    may_be_placed,
    on_cores,
    plan_of,
)
from abswitch.serving.vllm_engine import _Slot
from abswitch.serving.vllm_log import EngineLog, exit_words, why_it_died, why_it_failed
from abswitch.serving.vllm_memory import DEVICE_BYTES, estimate


@dataclass
class EngineArgs:
    """The engine arguments that matter here, as a release might have them."""

    model: str = ""
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "auto"
    max_model_len: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_sleep_mode: bool = False
    tensor_parallel_size: int = 1
    enable_lora: bool = False
    max_lora_rank: int = 16
    max_loras: int = 1


@dataclass
class Platform:
    cpu: bool
    has_allocator: bool = True

    def is_cpu(self) -> bool:
        return self.cpu

    def is_cuda_alike(self) -> bool:
        return not self.cpu

    def is_sleep_mode_available(self) -> bool:
        return not self.cpu

    def is_cumem_allocator_available(self) -> bool:
        return self.has_allocator

    def get_device_total_memory(self) -> int:
        return 10 << 30


def library(*, cpu: bool = True) -> Vllm:
    return Vllm(
        async_llm=None,
        engine_args=EngineArgs,
        sampling_params=None,
        delta=None,
        lora_request=None,
        tokens_input=lambda token_ids, _: token_ids,
        dead_error=RuntimeError,
        platform=Platform(cpu),
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 24}))
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def plan(folder: Path | str, *, cpu: bool = True, adapter: Path | None = None, **engine_args: Any) -> EnginePlan:
    config = ModelConfig(
        model_id="m", model=str(folder), adapter=str(adapter) if adapter else None, engine_args=engine_args
    )
    return plan_of(ModelVersion(version="v", config=config), library(cpu=cpu))


def test_defaults_leave_room_for_another_version(model: Path) -> None:
    on_cpu, on_gpu = plan(model).args, plan(model, cpu=False).args
    assert on_cpu["dtype"] == "float32" and on_cpu["max_model_len"] == -1
    assert "enable_sleep_mode" not in on_cpu and on_gpu["enable_sleep_mode"]
    assert "dtype" not in on_gpu and on_gpu["gpu_memory_utilization"] < 0.1
    assert "block_size" not in on_cpu, "what a release does not know is not passed to it"


def test_sleep_mode_is_left_off_where_its_allocator_was_not_built(model: Path) -> None:
    version = ModelVersion(version="v", config=ModelConfig(model_id="m", model=str(model)))
    without = replace(library(cpu=False), platform=Platform(cpu=False, has_allocator=False))
    assert not without.can_sleep and "enable_sleep_mode" not in plan_of(version, without).args


def test_an_estimate_counts_every_device_and_a_cache_of_its_size_or_by_share(model: Path) -> None:
    version = ModelVersion(version="v", config=ModelConfig(model_id="m", model=str(model)))

    def device_bytes(**engine_args: Any) -> int:
        args = plan(model, cpu=False, **engine_args)
        return estimate(args, version, library(cpu=False), joins=False).device_bytes

    weights = check_source(version.config).weights_bytes
    assert device_bytes() == DEVICE_BYTES + weights + DEVICE_KV_CACHE_BYTES
    assert device_bytes(kv_cache_memory_bytes=5) == DEVICE_BYTES + weights + 5
    assert device_bytes(kv_cache_memory_bytes=5, tensor_parallel_size=2) == 2 * (DEVICE_BYTES + 5) + weights
    assert device_bytes(gpu_memory_utilization=0.5) == 5 << 30
    assert device_bytes(gpu_memory_utilization=0.01) == DEVICE_BYTES + weights, "at least what it cannot do without"


def test_engine_arguments_override_defaults(model: Path) -> None:
    args = plan(model, dtype="float16", kv_cache_memory_bytes=1, max_model_len=8).args
    assert (args["dtype"], args["kv_cache_memory_bytes"], args["max_model_len"]) == ("float16", 1, 8)
    assert "kv_cache_memory_bytes" not in plan(model, cpu=False, gpu_memory_utilization=0.4).args


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The source of a release of vLLM, which must not be run for its names."""
    source = tmp_path / "there" / "vllm" / "engine" / "arg_utils.py"
    source.parent.mkdir(parents=True)
    (source.parents[1] / "__init__.py").write_text("raise AssertionError('imported')")
    source.write_text("class EngineArgs:\n    model: str\n    dtype: str = 'auto'\nclass AsyncEngineArgs:\n    x: int")
    monkeypatch.syspath_prepend(str(source.parents[2]))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    declared_names.cache_clear()
    yield source
    declared_names.cache_clear()


def checked(folder: Path, adapter: Path | None = None, **engine_args: Any) -> str | None:
    """The argument that is refused at registration."""
    config = ModelConfig(
        model_id="m", model=str(folder), adapter=str(adapter) if adapter else None, engine_args=engine_args
    )
    try:
        check_args(config, check_source(config))
    except InvalidInput as refused:
        return refused.field.removeprefix("model_config.engine_args.")
    return None


def test_names_of_arguments_are_checked_at_registration_without_importing_vllm(
    model: Path, adapter: Path, installed: Path
) -> None:
    assert declared_names() == {"model", "dtype", "x"}
    assert checked(model, dtype="float32", x=1) is None and checked(model, dtyp="float32") == "dtyp"
    assert checked(model, model="other") == "model"
    installed.write_text("class EngineArgs(Elsewhere): ...")
    declared_names.cache_clear()
    assert checked(model, dtyp="float32") is None, "such a release says nothing before it is imported"
    assert checked(model, model="other") == "model"
    assert checked(model, adapter, enable_lora=False) == "enable_lora"
    assert checked(model, adapter, max_lora_rank=8) == "max_lora_rank"


def test_without_vllm_nothing_is_said_of_its_arguments(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared_names.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert checked(model, dtyp="float32") is None
    declared_names.cache_clear()


@pytest.mark.parametrize("name", ["model", "revision", "trust_remote_code", "nonsense"])
def test_unknown_and_misplaced_arguments(model: Path, name: str) -> None:
    wrong: dict[str, Any] = {name: 1}
    with pytest.raises(InvalidInput) as caught:
        plan(model, **wrong)
    assert caught.value.field == f"model_config.engine_args.{name}"


@pytest.mark.parametrize(
    ("args", "placed"),
    [
        ({}, True),
        ({"tensor_parallel_size": 1, "additional_config": None}, True),
        ({"tensor_parallel_size": 2}, False),
        ({"data_parallel_size": 2}, False),
        ({"distributed_executor_backend": "mp"}, False),
    ],
)
def test_cores_are_chosen_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, args: dict[str, Any], placed: bool
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    assert may_be_placed(library(), args) is placed
    assert not may_be_placed(library(cpu=False), args)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    assert not may_be_placed(library(), args)


def test_the_cores_are_told_beside_what_the_user_told() -> None:
    group = CoreGroup((2, 3), 2)
    cores = {"abswitch_cores": {"cpus": [2, 3], "threads": 2}}
    assert on_cores({"additional_config": None}, group)["additional_config"] == cores
    mine = on_cores({"additional_config": {"mine": 1}}, group)
    assert mine == {"distributed_executor_backend": EXECUTOR, "additional_config": {"mine": 1} | cores}


def test_an_adapter_brings_its_room(model: Path, adapter: Path) -> None:
    made = plan(model, adapter=adapter)
    assert made.room == LoraRoom(rank=32, slots=4) and made.needs == LoraRoom(rank=32, slots=1)
    assert made.args["enable_lora"] and made.args["max_lora_rank"] == 32
    wrongs: list[dict[str, Any]] = [{"max_lora_rank": 16}, {"enable_lora": False}, {"max_loras": 0}]
    for wrong in wrongs:
        with pytest.raises(InvalidInput):
            plan(model, adapter=adapter, **wrong)


async def shares(running: EnginePlan, wanted: EnginePlan, adapters: int = 0) -> bool:
    never: asyncio.Task[Any] = asyncio.create_task(asyncio.Event().wait())
    slot = _Slot(running, never)
    slot.adapters = adapters
    never.cancel()
    return slot.fits(wanted)


async def test_who_shares_an_engine(model: Path, adapter: Path) -> None:
    plain, roomy, adapted = plan(model), plan(model, enable_lora=True, max_lora_rank=32), plan(model, adapter=adapter)
    assert await shares(plain, plain)
    assert await shares(roomy, plain), "a plain version is served by an engine with room for adapters"
    assert await shares(roomy, adapted)
    assert not await shares(plain, adapted), "no room for adapters"
    assert not await shares(plan(model, enable_lora=True), adapted), "too small a rank"
    assert not await shares(roomy, adapted, adapters=4), "every slot is taken"
    assert not await shares(plain, plan(model, dtype="float16"))
    assert not await shares(plain, plan("org/name"))


async def test_a_folder_that_changed_is_another_base(model: Path) -> None:
    before = plan(model)
    weights = model / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert not await shares(before, plan(model)), "the engine that runs serves the weights of before"


LOGGED = """2026-01-01 ERROR Worker 7 WorkerProc hit an exception.
Traceback (most recent call last):
  File "loader.py", line 5, in load
ValueError: Following weights were not initialized: {'a', 'b'}
2026-01-01 ERROR EngineCore 6 EngineCore failed to start.
Traceback (most recent call last):
Exception: WorkerProc initialization failed. See stack trace for root cause.
"""


def test_the_reason_is_the_last_error_that_says_something(tmp_path: Path) -> None:
    log = EngineLog.in_folder(tmp_path, "engine-1")
    assert log.reason() is None
    log.file.write_text(LOGGED)
    assert log.reason() == "ValueError: Following weights were not initialized: {'a', 'b'}"
    hidden = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'E': 1}")
    assert why_it_failed(hidden, log) == log.reason()
    assert why_it_failed(ValueError("bad dtype"), log) == "ValueError: bad dtype"
    assert why_it_died([None, -9], log) == log.reason()
    log.remove()
    assert not list(tmp_path.iterdir())


def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import multiprocessing\nmultiprocessing.get_context('spawn').Process().start()\n")
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False).stderr
    text = said[said.index("RuntimeError: ") + len("RuntimeError: ") :]
    assert why_it_failed(RuntimeError(text), None).startswith("a script must start engines under `if __name__")


def test_without_a_log_the_exit_code_speaks() -> None:
    hidden = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'E': -4}")
    assert why_it_failed(hidden, None) == "its process was killed by SIGILL"
    assert why_it_died([None, -9], None) == "its process was killed by SIGKILL (out of memory?)"
    assert why_it_died([None], None) == "its process went away"
    assert exit_words(3) == "its process ended with exit code 3"
    assert exit_words(-200) == "its process was killed by signal 200"


@pytest.mark.parametrize(("level", "kept"), [(None, "WARNING"), ("debug", "DEBUG"), ("CRITICAL", "WARNING")])
def test_the_logging_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str | None, kept: str
) -> None:
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", level)
    settings = json.loads(EngineLog.in_folder(tmp_path, "engine-1").settings.read_text())
    assert settings["loggers"]["vllm"]["level"] == kept
    assert settings["handlers"]["stream"]["level"] == (level or "ERROR").upper()
    logging.config.DictConfigurator(settings)
