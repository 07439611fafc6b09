"""What a vLLM engine is started with: environment, defaults for this platform, and which versions may share one.

`import vllm` takes seconds and reads environment variables once, so `load_vllm` sets those that matter first. They are
set only where the user did not:

| variable | value | why |
|---|---|---|
| `VLLM_LOGGING_LEVEL` | `ERROR` | a start warns some twenty times; warnings go to the engine's log file instead |
| `VLLM_NO_USAGE_STATS` | `1` | nothing is sent anywhere without being asked |
| `VLLM_WORKER_MULTIPROC_METHOD` | `spawn` | set always: a forked kernel is not safe to run an engine in |
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from abswitch import checks
from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import InvalidInput
from abswitch.serving.cores import CoreGroup
from abswitch.serving.source import SourceFacts, check_source
from abswitch.serving.vllm_worker import WORKER_EXTENSION

log = logging.getLogger(__name__)

CPU_KV_CACHE_BYTES = 256 << 20
DEVICE_KV_CACHE_BYTES = 4 << 30
LORA_SLOTS = 4
_LORA_RANK = 16
EXECUTOR = "abswitch.serving.vllm_executor.PlacedExecutor"
_WORKERS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_OWNED = ("model", "revision", "trust_remote_code")
_LORA_FIELDS = ("enable_lora", "max_lora_rank", "max_loras")
_DECLARING = frozenset({"EngineArgs", "AsyncEngineArgs"})
_IMPORT = threading.Lock()


@dataclass(frozen=True, slots=True)
class Vllm:
    """The parts of the library that are used; its modules carry no types."""

    async_llm: Any
    engine_args: Any
    sampling_params: Any
    delta: Any
    lora_request: Any
    tokens_input: Callable[[list[int], str], Any]
    dead_error: type[Exception]
    platform: Any

    @property
    def on_cpu(self) -> bool:
        return bool(self.platform.is_cpu())

    @property
    def can_sleep(self) -> bool:
        """Whether vLLM takes `enable_sleep_mode`; on CUDA and ROCm it refuses it where its allocator was not built."""
        if not self.platform.is_sleep_mode_available():
            return False
        has_allocator = getattr(self.platform, "is_cumem_allocator_available", None)
        return has_allocator is None or not self.platform.is_cuda_alike() or bool(has_allocator())

    def device_total_bytes(self) -> int:
        """Memory of one whole device; 0 where that is not told."""
        with suppress(Exception):  # as many kinds as there are drivers
            return int(self.platform.get_device_total_memory())
        return 0


def load_vllm() -> Vllm:
    """Import vLLM with the environment it should see. Takes seconds the first time; call it off the loop.

    Raises:
        ImportError: vLLM is not installed.
    """
    with _IMPORT:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        # Says at every import on a CPU that there is no GPU, before vLLM's own logging is set up.
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError

        return Vllm(
            async_llm=AsyncLLM,
            engine_args=AsyncEngineArgs,
            sampling_params=SamplingParams,
            delta=RequestOutputKind.DELTA,
            lora_request=LoRARequest,
            tokens_input=_tokens_input(),
            dead_error=EngineDeadError,
            platform=current_platform,
        )


def _tokens_input() -> Callable[[list[int], str], Any]:
    """How tokens are handed over, with the salt of their cached prefixes: newer releases take them as they are, older
    ones look through a prompt first."""
    try:
        from vllm.inputs import tokens_input
    except ImportError:
        return lambda token_ids, salt: {"prompt_token_ids": token_ids, "cache_salt": salt}
    made: Any = tokens_input
    return lambda token_ids, salt: made(token_ids, cache_salt=salt)


@dataclass(frozen=True, slots=True)
class LoraRoom:
    """Space for adapters in an engine: of which rank at most, and how many."""

    rank: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """The engine that a version needs.

    Attributes:
        args: for `AsyncEngineArgs`, complete.
        base: equal for versions whose engines would be the same but for the space for adapters; includes the weight
            files' sizes and times, so that a retrained folder of the same name is another base.
        room: space for adapters the engine has, None without.
        needs: space for adapters the version cannot do without.
        adapter: folder of the version's own adapter.
    """

    args: Mapping[str, Any] = field(hash=False)
    base: tuple[object, ...]
    room: LoraRoom | None
    needs: LoraRoom | None
    adapter: Path | None

    @property
    def workers(self) -> int:
        """How many there are, each on a device of its own."""
        return math.prod(int(self.args.get(name) or 1) for name in _WORKERS)


def plan_of(version: ModelVersion, vllm: Vllm) -> EnginePlan:
    """What to start for a version, or what to look for among the engines that run.

    Raises:
        InvalidInput: an engine argument does not exist, belongs elsewhere, or contradicts the adapter.
        BadModelSource: the folders are not there any more, or changed into something that cannot be served.
    """
    config = version.pinned
    given = dict(config.engine_args)
    _check_names(given, frozenset(f.name for f in fields(vllm.engine_args)))
    source = check_source(config)
    needs = _needs(given, source)
    room = None if needs is None else LoraRoom(needs.rank, int(given.get("max_loras", LORA_SLOTS)))
    plain = {name: value for name, value in given.items() if name not in _LORA_FIELDS}
    args = (
        defaults(vllm, given)
        | plain
        | {"model": source.name, "revision": config.revision, "trust_remote_code": config.trust_remote_code}
        | ({} if room is None else {"enable_lora": True, "max_lora_rank": room.rank, "max_loras": room.slots})
    )
    return EnginePlan(
        args=args,
        base=(source.name, config.revision, config.trust_remote_code, _frozen(plain), _stamp(source)),
        room=room,
        needs=needs,
        adapter=source.adapter.folder if source.adapter else None,
    )


def check_args(config: ModelConfig, source: SourceFacts) -> None:
    """Refuse engine arguments that no engine takes, as far as that is known without importing vLLM: their names, and
    what has to do with an adapter. Their values are vLLM's own business, and are checked when an engine is started.

    Raises:
        InvalidInput: an engine argument does not exist, belongs elsewhere, or contradicts the adapter.
    """
    _check_names(config.engine_args, declared_names())
    _needs(config.engine_args, source)


@cache
def declared_names() -> frozenset[str]:
    """The engine arguments of the vLLM that is installed, read from its source; none where they are not found there.

    An import takes seconds, and a registration must not.
    """
    try:
        spec = importlib.util.find_spec("vllm")
        folder = next(iter((spec and spec.submodule_search_locations) or ()), None)
        tree = ast.parse((Path(folder or os.devnull) / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # not installed, or of a release that is made up otherwise
        return frozenset()
    bodies = {one.name: one.body for one in tree.body if isinstance(one, ast.ClassDef)}
    if not set(bodies) >= _DECLARING:
        return frozenset()
    lines = [line for name in _DECLARING for line in bodies[name]]
    declared = [line.target for line in lines if isinstance(line, ast.AnnAssign)]
    return frozenset(target.id for target in declared if isinstance(target, ast.Name))


def _check_names(given: Mapping[str, Any], names: frozenset[str]) -> None:
    """Without names only that none is a field of `ModelConfig`."""
    for name in _OWNED:
        if name in given:
            raise InvalidInput(f"model_config.engine_args.{name}", given[name], f"set it as model_config.{name}")
    if names:
        checks.known_fields("model_config.engine_args", given, names - set(_OWNED))


def _needs(given: Mapping[str, Any], source: SourceFacts) -> LoraRoom | None:
    where = "model_config.engine_args"
    wanted = checks.flag(f"{where}.enable_lora", given.get("enable_lora", source.adapter is not None))
    if not wanted:
        if source.adapter is not None:
            raise InvalidInput(f"{where}.enable_lora", False, "True, as the version has an adapter")
        return None
    least = source.adapter.engine_rank if source.adapter else 1
    rank = given.get("max_lora_rank", max(least, _LORA_RANK))
    checks.integer(f"{where}.max_lora_rank", rank, low=least)
    return LoraRoom(rank, checks.integer(f"{where}.max_loras", given.get("max_loras", 1), low=1))


def defaults(vllm: Vllm, given: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments that differ from vLLM's own defaults; any may be overridden by `engine_args`.

    vLLM reserves most of a device for one engine, which leaves no room for the version to switch to. Here the KV cache
    has a fixed size, and the context length is as much of the model's own as fits in it.
    """
    chosen: dict[str, Any] = {"disable_log_stats": True, "max_model_len": -1, "use_tqdm_on_load": False}
    chosen["worker_extension_cls"] = WORKER_EXTENSION
    if vllm.on_cpu:
        # bfloat16 uses an AMX path that ends in SIGILL on some machines; compilation costs minutes on a CPU.
        cpu = {"dtype": "float32", "enforce_eager": True, "block_size": 32}
        chosen |= cpu | {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
    elif "gpu_memory_utilization" not in given:
        # Unused with a KV cache of fixed size, but vLLM refuses to start where that share of the device is not free.
        chosen |= {"kv_cache_memory_bytes": DEVICE_KV_CACHE_BYTES, "gpu_memory_utilization": 0.05}
    if vllm.can_sleep:
        chosen["enable_sleep_mode"] = True
    known = {f.name for f in fields(vllm.engine_args)}
    return {name: value for name, value in chosen.items() if name in known}


def may_be_placed(vllm: Vllm, args: Mapping[str, Any]) -> bool:
    """Whether an engine computes on cores of our choice: not on an accelerator, nor where the user said otherwise, by
    an executor, several workers, or `VLLM_CPU_OMP_THREADS_BIND`."""
    bound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto"
    several = any((args.get(name) or 1) != 1 for name in _WORKERS)
    return vllm.on_cpu and not (bound or several or args.get("distributed_executor_backend"))


def on_cores(args: Mapping[str, Any], group: CoreGroup) -> dict[str, Any]:
    """Engine arguments, in place of those given, that have an engine compute on the cores of a group."""
    cores = {"abswitch_cores": {"cpus": list(group.cpus), "threads": group.threads}}
    return {
        "distributed_executor_backend": EXECUTOR,
        "additional_config": {**(args.get("additional_config") or {}), **cores},
    }


def _frozen(args: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in args.items()))


def _stamp(source: SourceFacts) -> tuple[tuple[str, int, int], ...]:
    if source.kind != "folder":
        return ()
    found = sorted(file for glob in ("*.safetensors", "*.json") for file in Path(source.name).glob(glob))
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found)
