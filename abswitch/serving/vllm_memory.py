"""What a vLLM engine will take, estimated before it is started; what it takes in the end is measured."""

from __future__ import annotations

from pathlib import Path

from abswitch.domain import ModelVersion
from abswitch.serving.hub import snapshot_of, weights_bytes_of
from abswitch.serving.policy import Footprint
from abswitch.serving.source import check_source
from abswitch.serving.vllm_args import EnginePlan, Vllm

HOST_BYTES = 750 << 20
"""An engine's process without weights: Python, PyTorch and vLLM, as measured on a CPU machine."""
DEVICE_BYTES = 1200 << 20
"""A CUDA context, graphs and activations of a small model; larger ones take more."""
_WIDENED = {"float32": 2.0, "float": 2.0}
"""Checkpoints are mostly of two-byte numbers."""


def estimate(plan: EnginePlan, version: ModelVersion, vllm: Vllm, *, joins: bool) -> Footprint:
    """Memory of the version's engine; with `joins`, only what its adapter adds to one that runs.

    Blocks: reads small files, and asks the hub how large a model is that is not in the local cache.
    """
    if joins:
        adapter = _bytes_of(plan.adapter)
        return Footprint(0, adapter) if vllm.on_cpu else Footprint(adapter, 0)
    weights = _weights_bytes(version, str(plan.args.get("dtype"))) * int(plan.args.get("data_parallel_size") or 1)
    cache = int(plan.args.get("kv_cache_memory_bytes") or 0) * plan.workers  # the argument says it of one
    if vllm.on_cpu:
        return Footprint(0, HOST_BYTES + weights + cache)
    device = asleep(plan) + weights + cache
    if not cache:  # then it is as large as a share of each device allows
        share = float(plan.args.get("gpu_memory_utilization") or 0.0)
        device = max(device, int(share * vllm.device_total_bytes()) * plan.workers)
    return Footprint(device, HOST_BYTES)


def asleep(plan: EnginePlan) -> int:
    """What an engine keeps of the devices while it sleeps, in bytes."""
    return DEVICE_BYTES * plan.workers


def _weights_bytes(version: ModelVersion, dtype: str) -> int:
    """In memory, where they may be wider than in their files."""
    source = check_source(version.config)
    folder, files = Path(source.name), source.weights_bytes
    if source.kind == "hub":
        snapshot = snapshot_of(version.pinned)
        folder, files = snapshot or folder, weights_bytes_of(version.pinned, snapshot)
    return int(files * _WIDENED.get(dtype, 1.0)) if _is_narrow(folder) else files


def _is_narrow(folder: Path) -> bool:
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    return "bfloat16" in text or '"float16"' in text


def _bytes_of(folder: Path | None) -> int:
    return 0 if folder is None else sum(file.stat().st_size for file in folder.glob("*.safetensors"))
