from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from abswitch.cached import cached_folder
from abswitch.errors import InvalidInput, MissingExtra, TrainingFailed
from abswitch.testing import models
from abswitch.testing.models import TinyModels, tiny_models
from abswitch.testing.recipes import RECIPES, Recipe

DEADLINE_S = 30


# --- recipes


def test_a_digest_is_the_same_everywhere() -> None:
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from abswitch.testing.recipes import RECIPES as r; print(*(r[t].digest for t in sorted(r)))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(models.__file__).parents[2])},
    )
    assert said.stdout.split() == [RECIPES[task].digest for task in sorted(RECIPES)]


def test_a_digest_tells_recipes_apart() -> None:
    assert Recipe(task="addition").digest == Recipe(task="addition").digest
    others = [Recipe(task="sorting"), Recipe(task="addition", seed=1), Recipe(task="addition", format=99)]
    assert len({recipe.digest for recipe in [Recipe(task="addition"), *others]}) == 4


def test_a_recipe_survives_json() -> None:
    for recipe in RECIPES.values():
        assert Recipe.from_json(recipe.to_json()) == recipe


# --- the cache


def test_killed_training_leaves_no_entry_and_no_process(tmp_path: Path) -> None:
    script = (
        "import sys; from abswitch.testing.models import tiny_models\n"
        "tiny_models(cache_dir=sys.argv[1], progress=lambda stage, fraction: print(stage, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(models.__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "loading torch\n"
        trainers = psutil.Process(parent.pid).children(recursive=True)
        assert trainers
        parent.kill()
    _, alive = psutil.wait_procs(trainers, timeout=DEADLINE_S)
    assert not alive
    folder = tmp_path / "tiny-models"
    assert sorted(p.suffix for p in folder.iterdir()) == [".lock", ".partial"]
    entry = folder / next(folder.glob("*.lock")).stem
    cached_folder(entry, lambda _: {})
    assert not list(folder.glob("*.partial"))


# --- bad input


@pytest.mark.parametrize("task", ["multiplication", "", None, 3])
def test_an_unknown_task_is_refused(task: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        tiny_models(task)
    assert refused.value.field == "task"


@pytest.mark.parametrize("cache_dir", ["", 5, b"x"])
def test_a_bad_cache_dir_is_refused(cache_dir: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        tiny_models(cache_dir=cache_dir)
    assert refused.value.field == "cache_dir"


def test_a_cache_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="a folder that can be written"):
        tiny_models(cache_dir=tmp_path / "file")


def test_progress_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    bad: Any = "loud"
    with pytest.raises(InvalidInput) as refused:
        tiny_models(cache_dir=tmp_path, progress=bad)
    assert refused.value.field == "progress"
    assert not list(tmp_path.iterdir())


def test_missing_libraries_are_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_NEEDED", ("json", "a_library_that_is_not_there"))
    with pytest.raises(MissingExtra, match=r"needs a_library_that_is_not_there, .*pip install 'abswitch\[cpu\]' or"):
        tiny_models(cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missed_target_is_an_error_and_caches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abswitch.testing.recipes.RECIPES", {"addition": Recipe(task="addition", max_steps=2)})
    said: list[tuple[str, float]] = []
    with pytest.raises(TrainingFailed, match="could not be trained: 94.5% right were not reached within 2 steps"):
        tiny_models(cache_dir=tmp_path, progress=lambda *report: said.append(report))
    assert said[0] == ("loading torch", 0.0)
    assert [p.suffix for p in (tmp_path / "tiny-models").iterdir()] in ([], [".lock"])


def test_progress_that_raises_ends_the_training(tmp_path: Path) -> None:
    def stop(stage: str, fraction: float) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_models(cache_dir=tmp_path, progress=stop)
    running = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in running if "abswitch.testing.trainer" in p.cmdline()]
    assert not list((tmp_path / "tiny-models").glob("*.partial"))


# --- the models


def test_the_second_call_does_not_train(tiny: TinyModels) -> None:
    said: list[str] = []
    assert tiny_models(progress=lambda stage, fraction: said.append(stage)) == tiny
    assert said == []
    assert tiny.recipe_digest == RECIPES["addition"].digest


def test_accuracies_are_in_order_with_clear_gaps(tiny: TinyModels) -> None:
    right = tiny.accuracy
    assert set(right) == {"baseline", "better", "regressed", "adapter"}
    assert 0.05 <= right["regressed"] <= 0.37
    assert 0.48 <= right["baseline"] <= 0.68
    assert 0.87 <= right["better"] <= 0.98
    assert right["adapter"] >= right["baseline"] + 0.15
    assert right["regressed"] <= right["baseline"] - 0.15
    assert right["better"] >= right["baseline"] + 0.15


def test_the_folders_are_ordinary_hugging_face_folders(tiny: TinyModels) -> None:
    for folder in (tiny.baseline, tiny.better, tiny.regressed):
        names = {p.name for p in folder.iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors"} <= names
        assert {"tokenizer.json", "tokenizer_config.json"} <= names
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert "auto_map" not in config
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in tiny.adapter.iterdir()}
    adapter = json.loads((tiny.adapter / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tiny.baseline)
    assert adapter["r"] <= 16, "vLLM's default max_lora_rank"


def test_a_cached_set_needs_no_torch(tiny: TinyModels) -> None:
    script = (
        "import sys; from abswitch.testing.models import tiny_models; tiny_models()\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(models.__file__).parents[2])


def generated(tiny: TinyModels, model: Any) -> float:
    """Exact match by real greedy decoding on every held-out problem."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.baseline)
    problems = tiny.task.problems(tiny.task.available())
    prompts = tokenizer([problem.prompt for problem in problems], return_tensors="pt")  # all of one length
    with torch.inference_mode():
        tokens = model.generate(**prompts, max_new_tokens=5, do_sample=False)
    answers = tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [answer == problem.answer for answer, problem in zip(answers, problems, strict=True)]
    return right.count(True) / len(right)


@pytest.mark.parametrize("name", ["baseline", "better", "regressed"])
def test_transformers_measures_the_recorded_accuracy(tiny: TinyModels, name: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(getattr(tiny, name))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(341_000, rel=0.01)
    assert generated(tiny, model) == pytest.approx(tiny.accuracy[name], abs=0.005)


def test_peft_measures_the_recorded_accuracy(tiny: TinyModels) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.baseline), tiny.adapter)
    assert generated(tiny, model) == pytest.approx(tiny.accuracy["adapter"], abs=0.005)


def test_the_tokenizer_is_one_of_characters(tiny: TinyModels) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.better)
    text = 'Sum 12+34= {"a": [1, 2]}\n~'
    tokens = tokenizer.encode(text)
    assert len(tokens) == 1 + len(text)
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert tokenizer.encode("é", add_special_tokens=False) == [tokenizer.unk_token_id]
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4


def test_a_chat_is_answered_as_its_last_message_alone(tiny: TinyModels) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.better)
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "12+34="}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.encode(rendered, add_special_tokens=False) == tokenizer.encode("12+34=")
