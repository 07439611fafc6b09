"""Checks of what a version is to be loaded from: a model folder, an adapter folder, a hub id.

They read a few small files and the headers of the weights, import nothing heavy, and use no network; a hub id is
checked for its form only and resolved when it is loaded. Everything refused here would otherwise fail, or run foreign
code, minutes later inside an engine.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from abswitch.domain import ModelConfig
from abswitch.errors import BadModelSource

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?\Z")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MAY_NAME_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
CONVERT = (
    "load it once with transformers, where you trust it, and save it again with "
    "model.save_pretrained(folder, safe_serialization=True)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """A LoRA folder that can be served.

    Attributes:
        rank: the largest rank of any of its modules.
        engine_rank: the smallest `max_lora_rank` vLLM can be built with that holds it.
    """

    folder: Path
    rank: int

    @property
    def engine_rank(self) -> int:
        return next(size for size in _ENGINE_RANKS if size >= self.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What a version is loaded from.

    Attributes:
        kind: `folder` on this machine, `hub` id, or `served` by a server elsewhere.
        name: what to hand to the loader: an absolute path, the hub id, or the served name.
        weights_bytes: size of the weight files; 0 where they are not on this machine.
        adapter: the LoRA adapter on top, if any.
    """

    kind: Literal["folder", "hub", "served"]
    name: str
    weights_bytes: int = 0
    adapter: AdapterFacts | None = None


def check_source(config: ModelConfig) -> SourceFacts:
    """What `config` is loaded from, checked as far as this machine can without loading it.

    Raises:
        BadModelSource: names the field (`model_config.model`, `model_config.adapter`), its value and what is allowed.
    """
    if config.backend != "vllm":
        return SourceFacts(kind="served", name=config.model)
    adapter = check_adapter(config.adapter) if config.adapter is not None else None
    if not is_local(config.model):
        return SourceFacts(kind="hub", name=_hub_id(config.model), adapter=adapter)
    folder = _folder("model_config.model", config.model)
    weights_bytes = _check_model_folder(folder, config)
    if adapter is not None:
        _check_adapter_fits(adapter.folder, folder, str(config.adapter))
    return SourceFacts(kind="folder", name=str(folder), weights_bytes=weights_bytes, adapter=adapter)


def is_local(model: str) -> bool:
    """Whether `model` means a folder: it exists, or is written like a path rather than like `org/name`."""
    written_as_path = model.startswith((os.sep, ".", "~")) or model.count("/") > 1 or "\\" in model
    return written_as_path or Path(model).exists()


def check_adapter(adapter: str) -> AdapterFacts:
    """The LoRA folder, checked.

    Raises:
        BadModelSource: not a folder, not a LoRA adapter, or its weights are pickled only.
    """
    field = "model_config.adapter"
    folder = _folder(field, adapter)
    settings = _json(field, adapter, folder / "adapter_config.json", "a LoRA folder with an adapter_config.json")
    if settings.get("peft_type") != "LORA":
        raise BadModelSource(field, adapter, f"a LoRA adapter, not peft_type {settings.get('peft_type')!r}")
    pattern = settings.get("rank_pattern") or {}
    ranks = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    if not all(type(rank) is int and 1 <= rank <= _ENGINE_RANKS[-1] for rank in ranks):
        allowed = f"an adapter_config.json with ranks from 1 to {_ENGINE_RANKS[-1]} (found {ranks})"
        raise BadModelSource(field, adapter, allowed)
    _check_safetensors(field, adapter, folder, "adapter_model.safetensors")
    return AdapterFacts(folder=folder, rank=max(ranks))


def _hub_id(model: str) -> str:
    if not _HUB_ID.match(model) or ".." in model or "--" in model:
        raise BadModelSource("model_config.model", model, "an existing folder, or a hub id such as org/name")
    return model


def _folder(field: str, given: str) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise BadModelSource(field, given, f"a folder that exists ({path} does not)")
    if not path.is_dir():
        raise BadModelSource(field, given, f"a folder ({path} is a file)")
    return path


def _check_model_folder(folder: Path, config: ModelConfig) -> int:
    field, given = "model_config.model", config.model
    _json(field, given, folder / "config.json", "a Hugging Face model folder with a config.json")
    if not config.trust_remote_code:
        for name in _MAY_NAME_CODE:
            _refuse_code(field, given, folder / name)
    if config.engine_args.get("load_format") == "dummy":
        return 0  # random weights, for measurements: none are read
    return _check_safetensors(field, given, folder, "*.safetensors")


def _refuse_code(field: str, given: str, file: Path) -> None:
    if file.exists() and _json(field, given, file, f"a folder whose {file.name} is valid").get("auto_map"):
        raise BadModelSource(
            field,
            given,
            f"a folder without Python code of its own ({file.name} has auto_map), or trust_remote_code=True if you "
            "have read that code",
        )


def _check_safetensors(field: str, given: str, folder: Path, pattern: str) -> int:
    files = sorted(folder.glob(pattern))
    if not files:
        pickled = sorted(file.name for glob in PICKLED for file in folder.glob(glob))
        found = f"found only pickled weights, which can run code when loaded: {', '.join(pickled)}; {CONVERT}"
        raise BadModelSource(
            field, given, f"a folder with {pattern} ({found if pickled else 'there are no weights in it'})"
        )
    _check_shards(field, given, folder)
    return sum(_check_whole(field, given, file) for file in files)


def _check_shards(field: str, given: str, folder: Path) -> None:
    """Every shard the index names is there (an interrupted download lacks some)."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    shards = set(_json(field, given, index, f"a folder whose {index.name} is valid").get("weight_map", {}).values())
    missing = sorted(name for name in shards if not (folder / str(name)).is_file())
    if missing:
        raise BadModelSource(field, given, f"a folder with every shard of {index.name}; missing: {', '.join(missing)}")


def _check_whole(field: str, given: str, file: Path) -> int:
    """Size of a safetensors file whose header agrees with it (a Git LFS pointer or a cut-off download does not)."""
    size_bytes = file.stat().st_size
    try:
        header_bytes, header = _header(file)
        end_bytes = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError):
        raise BadModelSource(
            field, given, f"whole safetensors files ({file.name} is none: a Git LFS pointer, or cut off?)"
        ) from None
    if header_bytes + end_bytes != size_bytes:
        raise BadModelSource(
            field,
            given,
            f"whole safetensors files ({file.name} has {size_bytes} bytes, not {header_bytes + end_bytes})",
        )
    return size_bytes


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Length of a safetensors file's header in bytes, and its tensors' entries by name."""
    with file.open("rb") as stream:
        length_bytes = int.from_bytes(stream.read(8), "little")
        if not 2 <= length_bytes <= file.stat().st_size - 8:
            raise ValueError("no header")
        header = json.loads(stream.read(length_bytes))
    return 8 + length_bytes, {name: entry for name, entry in header.items() if name != "__metadata__"}


def _check_adapter_fits(adapter: Path, model: Path, given: str) -> None:
    """The adapter was made for a model of these shapes; vLLM would load another one, too, and answer nonsense."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for file in model.glob("*.safetensors"):
        for name, entry in _header(file)[1].items():
            shapes.setdefault(_module(name), set()).add(tuple(entry["shape"]))
    found = False
    tensors = {name: tuple(e["shape"]) for name, e in _header(adapter / "adapter_model.safetensors")[1].items()}
    for name, first in tensors.items():
        second = tensors.get(name.replace(".lora_A.", ".lora_B."))
        module = _module(name.partition(".lora_A.")[0] + ".weight")
        if ".lora_A." not in name or second is None or module not in shapes:
            continue
        found = True
        product = (second[0], first[-1])
        if len(first) == 2 and product not in shapes[module]:
            allowed = f"an adapter made for this model ({module} is {sorted(shapes[module])[0]} here, {product} there)"
            raise BadModelSource("model_config.adapter", given, allowed)
    if not found and shapes and any(".lora_A." in name for name in tensors):
        allowed = "an adapter made for this model (which has none of the modules that the adapter changes)"
        raise BadModelSource("model_config.adapter", given, allowed)


def _module(tensor: str) -> str:
    """A tensor's name without what stands before its layer, which differs between a model and its adapters."""
    _, layers, tail = tensor.partition("layers.")
    return layers + tail if layers else tensor.removeprefix("base_model.model.")


def _json(field: str, given: str, file: Path, allowed: str) -> dict[str, Any]:
    if not file.is_file():
        raise BadModelSource(field, given, allowed)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModelSource(field, given, f"{allowed}; {file.name} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadModelSource(field, given, f"{allowed}; {file.name} holds no JSON object")
    return content
