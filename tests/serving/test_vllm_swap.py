"""Which checkpoints may take each other's place: one network, one tokenizer, nothing that a reload corrupts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from abswitch.serving.vllm_args import EnginePlan
from abswitch.serving.vllm_swap import why_not_swappable
from abswitch.serving.vllm_worker import WORKER_EXTENSION, ReloadingWorker

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "tie_word_embeddings": False}


def plan(folder: Path, config: dict[str, object] | None = None, tokenizer: str = "{}", **args: object) -> EnginePlan:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (folder / "tokenizer.json").write_text(tokenizer)
    return EnginePlan(
        args={"model": str(folder), "dtype": "float32", **args}, base=(), room=None, needs=None, adapter=None
    )


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ({"hidden_size": 128}, {}, "hidden_size"),
        ({"architectures": ["Qwen2ForCausalLM"]}, {}, "architectures"),
        ({}, {"tokenizer": "[]"}, "tokenizer.json differs"),
        ({}, {"max_model_len": 8}, "engine_args.max_model_len"),
    ],
)
def test_differences_only_a_new_engine_can_bridge(
    tmp_path: Path, config: dict[str, object], options: dict[str, str], words: str
) -> None:
    reason = why_not_swappable(plan(tmp_path / "a"), plan(tmp_path / "b", config, **options))
    assert reason is not None and words in reason


@pytest.mark.parametrize(
    ("config", "words"), [({"tie_word_embeddings": True}, "tied"), ({"model_type": "mamba"}, "recur")]
)
def test_what_a_reload_corrupts(tmp_path: Path, config: dict[str, object], words: str) -> None:
    reason = why_not_swappable(plan(tmp_path / "a", config), plan(tmp_path / "b", config))
    assert reason is not None and words in reason


def test_tied_embeddings_are_swapped_by_workers_that_tie_them_anew(tmp_path: Path) -> None:
    from importlib import import_module

    tied: dict[str, object] = {"tie_word_embeddings": True}
    a, b = (plan(tmp_path / name, tied, worker_extension_cls=WORKER_EXTENSION) for name in "ab")
    assert why_not_swappable(a, b) is None
    module, name = WORKER_EXTENSION.rsplit(".", 1)
    assert getattr(import_module(module), name) is ReloadingWorker, "vLLM finds it by this name"
    quantised = tied | {"quantization_config": {"quant_method": "awq"}}
    a, b = (plan(tmp_path / name / "awq", quantised, worker_extension_cls=WORKER_EXTENSION) for name in "ab")
    assert "quantised" in str(why_not_swappable(a, b))


def test_checkpoints_of_one_run_and_hub_ids(tmp_path: Path) -> None:
    a, b = plan(tmp_path / "a", {"transformers_version": "4"}), plan(tmp_path / "b", {"transformers_version": "5"})
    assert why_not_swappable(a, b) is None
    hub = replace(b, args={**b.args, "model": "org/name"})
    assert "folders" in str(why_not_swappable(a, hub))
