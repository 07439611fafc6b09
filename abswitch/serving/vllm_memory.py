"""What a vLLM engine will take, estimated before it is started; what it takes in the end is measured."""

from __future__ import annotations

from pathlib import Path

from abswitch.domain import ModelVersion
from abswitch.serving.policy import Footprint
from abswitch.serving.source import check_source
from abswitch.serving.vllm_args import EnginePlan

HOST_BYTES = 750 << 20
"""An engine's process without weights: Python, PyTorch and vLLM, as measured on a CPU machine."""
DEVICE_BYTES = 1200 << 20
"""A CUDA context, graphs and activations of a small model; larger ones take more."""
_WIDENED = {"float32": 2.0, "float": 2.0}
"""Checkpoints are mostly of two-byte numbers."""


def estimate(plan: EnginePlan, version: ModelVersion, *, on_cpu: bool, joins: bool) -> Footprint:
    """Memory of the version's engine; with `joins`, only what its adapter adds to one that runs. Reads small files."""
    if joins:
        adapter = _bytes_of(plan.adapter)
        return Footprint(0, adapter) if on_cpu else Footprint(adapter, 0)
    source = check_source(version.config)
    widened = _WIDENED.get(str(plan.args.get("dtype")), 1.0) if _is_narrow(source.name) else 1.0
    model = int(source.weights_bytes * widened) + int(plan.args.get("kv_cache_memory_bytes") or 0)
    return Footprint(0, HOST_BYTES + model) if on_cpu else Footprint(DEVICE_BYTES + model, HOST_BYTES)


def _is_narrow(folder: str) -> bool:
    config = Path(folder) / "config.json"
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    return "bfloat16" in text or '"float16"' in text


def _bytes_of(folder: Path | None) -> int:
    return 0 if folder is None else sum(file.stat().st_size for file in folder.glob("*.safetensors"))
