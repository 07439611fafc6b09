"""Model folders, adapters and hub ids: what is refused, and that the refusal says what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abswitch.domain import ModelConfig
from abswitch.errors import BadModelSource
from abswitch.serving.source import check_source, is_local

Damage = Callable[[Path], object]


def safetensors(**shapes: list[int]) -> bytes:
    """The bytes of a file with zeros of these shapes; `__` in a name stands for a dot."""
    tensors, end_bytes = {}, 0
    for name, shape in (shapes or {"w": [2]}).items():
        begin_bytes, end_bytes = end_bytes, end_bytes + 4 * math.prod(shape)
        tensors[name.replace("__", ".")] = {"dtype": "F32", "shape": shape, "data_offsets": [begin_bytes, end_bytes]}
    header = json.dumps(tensors | {"__metadata__": {"format": "pt"}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(end_bytes)


def write_json(file: Path, **content: Any) -> None:
    file.write_text(json.dumps(content))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", architectures=["LlamaForCausalLM"], auto_map=None)
    write_json(folder / "tokenizer_config.json")
    (folder / "model.safetensors").write_bytes(safetensors(model__layers__0__q_proj__weight=[6, 4]))
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_json(folder / "adapter_config.json", peft_type="LORA", r=12, rank_pattern={"q_proj": 20})
    write_adapter(folder, [20, 4], [6, 20])
    return folder


def write_adapter(folder: Path, first: list[int], second: list[int], module: str = "layers__0__q_proj") -> None:
    prefix = f"base_model__model__model__{module}"
    tensors = {f"{prefix}__lora_A__weight": first, f"{prefix}__lora_B__weight": second}
    (folder / "adapter_model.safetensors").write_bytes(safetensors(**tensors))


def config(model: object, **fields: Any) -> ModelConfig:
    return ModelConfig(model_id="m", model=str(model), **fields)


def refusal(model: object, **fields: Any) -> BadModelSource:
    with pytest.raises(BadModelSource) as caught:
        check_source(config(model, **fields))
    return caught.value


def test_a_good_folder(model: Path) -> None:
    facts = check_source(config(model))
    assert (facts.kind, facts.name, facts.adapter) == ("folder", str(model), None)
    assert facts.weights_bytes == (model / "model.safetensors").stat().st_size


def test_a_folder_is_named_by_its_absolute_path(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("HOME", str(model.parent))
    assert {check_source(config(name)).name for name in ("model", "./model", "~/model", model)} == {str(model)}


@pytest.mark.parametrize("hub_id", ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "org/name_1.0"])
def test_a_hub_id_needs_no_network(hub_id: str) -> None:
    facts = check_source(config(hub_id))
    assert (facts.kind, facts.name) == ("hub", hub_id)


@pytest.mark.parametrize("odd", ["org/na me", "org/", "org/a..b", "a--b", "org/name?x", "https:model"])
def test_neither_folder_nor_hub_id(odd: str) -> None:
    assert "an existing folder, or a hub id" in refusal(odd).allowed


@pytest.mark.parametrize("path", ["/no/where", "./no", "~/no", "a/b/c", "..", ".\\win"])
def test_what_is_written_like_a_path_is_one(path: str) -> None:
    assert is_local(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none")
    assert (error.field, error.value) == ("model_config.model", str(tmp_path / "none"))
    assert "does not" in error.allowed


def pickled_only(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def names_remote_code(model: Path) -> None:
    write_json(model / "config.json", auto_map={"AutoModel": "modeling_x.X"})


def tokenizer_names_remote_code(model: Path) -> None:
    write_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})


def lacks_a_shard(model: Path) -> None:
    write_json(
        model / "model.safetensors.index.json", weight_map={"a": "model.safetensors", "b": "model-00002.safetensors"}
    )


def is_an_lfs_pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def is_cut_off(model: Path) -> None:
    (model / "model.safetensors").write_bytes(safetensors(w=[16])[:-1])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda model: (model / "config.json").unlink(), "with a config.json"),
        (lambda model: (model / "config.json").write_text("{"), "not valid JSON"),
        (lambda model: (model / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda model: (model / "model.safetensors").unlink(), "there are no weights in it"),
        (pickled_only, "pytorch_model.bin; load it once with transformers"),
        (names_remote_code, "config.json has auto_map"),
        (tokenizer_names_remote_code, "tokenizer_config.json has auto_map"),
        (lacks_a_shard, "missing: model-00002.safetensors"),
        (is_an_lfs_pointer, "Git LFS pointer"),
        (is_cut_off, "bytes, not"),
    ],
)
def test_a_bad_folder_is_refused_with_what_is_wrong(model: Path, damage: Damage, says: str) -> None:
    damage(model)
    error = refusal(model)
    assert error.field == "model_config.model" and error.value == str(model)
    assert says in error.allowed


def test_a_file_is_not_a_folder(model: Path) -> None:
    assert "is a file" in refusal(model / "config.json").allowed


def test_remote_code_needs_consent(model: Path) -> None:
    names_remote_code(model)
    assert "trust_remote_code=True" in refusal(model).allowed
    assert check_source(config(model, trust_remote_code=True)).kind == "folder"


def test_pickles_beside_safetensors_do_no_harm(model: Path) -> None:
    (model / "training_args.bin").write_bytes(b"")
    assert check_source(config(model)).kind == "folder"


def test_random_weights_need_no_file(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert check_source(config(model, engine_args={"load_format": "dummy"})).weights_bytes == 0


def test_an_adapter(model: Path, adapter: Path) -> None:
    facts = check_source(config(model, adapter=str(adapter))).adapter
    assert facts is not None
    assert (facts.folder, facts.rank, facts.engine_rank) == (adapter, 20, 32)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda folder: write_json(folder / "adapter_config.json", peft_type="IA3"), "peft_type 'IA3'"),
        (lambda folder: write_json(folder / "adapter_config.json", peft_type="LORA"), "found [None]"),
        (lambda folder: write_json(folder / "adapter_config.json", peft_type="LORA", r=True), "found [True]"),
        (lambda folder: write_json(folder / "adapter_config.json", peft_type="LORA", r=1024), "from 1 to 512"),
        (lambda folder: write_adapter(folder, [20, 5], [6, 20]), "layers.0.q_proj.weight is (6, 4) here, (6, 5) there"),
        (lambda folder: write_adapter(folder, [20, 4], [7, 20]), "(7, 4) there"),
        (lambda folder: write_adapter(folder, [20, 4], [6, 20], "layers__0__w1"), "none of the modules"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "Git LFS pointer"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "only pickled"),
    ],
)
def test_a_bad_adapter_is_refused(model: Path, adapter: Path, damage: Damage, says: str) -> None:
    damage(adapter)
    error = refusal(model, adapter=str(adapter))
    assert error.field == "model_config.adapter" and error.value == str(adapter)
    assert says in error.allowed


def test_an_adapter_of_a_hub_model_is_taken_on_trust(adapter: Path) -> None:
    assert check_source(config("org/name", adapter=str(adapter))).adapter is not None


def test_an_adapter_that_is_not_there(model: Path) -> None:
    assert refusal(model, adapter="org/adapter").field == "model_config.adapter"


def test_other_backends_know_their_own_names() -> None:
    assert check_source(config("any name at all", backend="openai")).kind == "served"
