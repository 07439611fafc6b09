"""Whether a checkpoint can take another's place inside a running engine: the same network, the same tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from abswitch.serving.vllm_args import EnginePlan
from abswitch.serving.vllm_worker import WORKER_EXTENSION

_OF_NO_MATTER = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id", "pad_token_id"}
)
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json")
_RECURRENT = ("mamba", "ssm", "rwkv", "recurrent", "linear_attn", "hybrid")


def why_not_swappable(now: EnginePlan, wanted: EnginePlan) -> str | None:
    """The first difference that only a new engine can bridge; None when there is none. Reads small files."""
    for name in sorted({*now.args, *wanted.args} - {"model", "revision"}):
        if now.args.get(name) != wanted.args.get(name):
            return f"engine_args.{name} differs ({now.args.get(name)!r}, {wanted.args.get(name)!r})"
    folders = Path(now.args["model"]), Path(wanted.args["model"])
    if not all(folder.is_dir() for folder in folders):
        return "both must be folders of this machine"
    return _why_not(*folders, can_tie=can_tie(now))


def can_tie(plan: EnginePlan) -> bool:
    """Whether the engine's workers have `ReloadingWorker`; engine arguments may name another extension instead."""
    return plan.args.get("worker_extension_cls") == WORKER_EXTENSION


def _why_not(now: Path, wanted: Path, *, can_tie: bool) -> str | None:
    configs = _config(now), _config(wanted)
    for name in sorted({*configs[0], *configs[1]} - _OF_NO_MATTER):
        if configs[0].get(name) != configs[1].get(name):
            return f"config.json differs in {name} ({configs[0].get(name)!r}, {configs[1].get(name)!r})"
    if configs[1].get("tie_word_embeddings") and not can_tie:
        return "its input and output embeddings are tied, and vLLM's own reload leaves the output with the old ones"
    if configs[1].get("tie_word_embeddings") and configs[1].get("quantization_config"):
        return "its input and output embeddings are tied, and a quantised output would be quantised once more"
    if any(word in json.dumps(configs[1]).lower() for word in _RECURRENT):
        return "models with recurrent layers have been corrupted by a swap"
    for name in _TOKENIZER:
        if _content(now / name) != _content(wanted / name):
            return f"{name} differs"
    return None


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
