"""The process that trains the tiny models: `python -m abswitch.testing.trainer RECIPE FOLDER SERVED_FROM`.

It is a process of its own so that whoever asks for models keeps its random state, its thread count, its event loop and,
on a machine with a GPU, its freedom from CUDA. It reports on stdout, one JSON object a line (`stage`, `fraction`), and
ends when its stdin closes: a killed parent leaves no trainer behind.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from abswitch.testing.recipes import Recipe
from abswitch.testing.tasks import Problem, Task, task_named

if TYPE_CHECKING:
    from abswitch.testing.learning import Examples, Fit

# A second thread nearly halves a step on an idle machine (batches of 128: 34 against 62 ms), but where other work wants
# the cores, threads that spin for each other made it 600 to 1,500 ms; one thread took 62 to 109 ms all along.
_THREADS = 1
_VALIDATION = 500
_ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LEAST_GAP = 0.15

Report = Callable[[str, float], None]


class TargetMissed(Exception):
    """Training did not come to the quality the recipe promises."""


class Data(NamedTuple):
    """A task's problems as this recipe's models see them."""

    train: Examples
    easy: Examples
    validation: Examples
    test: Examples


class Workshop:
    """Makes one set of models in `folder`; `served_from` is where they will finally lie."""

    def __init__(self, recipe: Recipe, folder: Path, served_from: Path, report: Report) -> None:
        from abswitch.testing.tokens import character_tokenizer

        self._recipe = recipe
        self._folder = folder
        self._served_from = served_from
        self._report = report
        self._tokenizer = character_tokenizer(recipe.context_tokens)
        self._data = self._encoded(task_named(recipe.task))
        self._accuracy: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Train and save everything; returns the exact match of each model on all held-out problems.

        Raises:
            TargetMissed: a model is not as good, or as bad, as it should be.
        """
        model = self._new_model()
        baseline = self._baseline_and_better(model)
        self._regressed(model)
        model.load_state_dict(baseline)
        self._adapter(model)
        self._check_gaps()
        return self._accuracy

    def _encoded(self, task: Task) -> Data:
        from abswitch.testing.learning import Examples

        def split(name: str, limit: int | None = None) -> list[Problem]:
            return task.problems(min(task.available(name), limit or sys.maxsize), 0, name)

        train = split("train")
        parts = (train, [p for p in train if task.easy(p)], split("validation", _VALIDATION), split("test"))
        padding: int = self._tokenizer.pad_token_id
        return Data(*(Examples.of(*self._token_ids(part), padding) for part in parts))

    def _token_ids(self, problems: list[Problem]) -> tuple[list[list[int]], list[list[int]]]:
        tokenizer = self._tokenizer
        prompts: list[list[int]] = tokenizer([problem.prompt for problem in problems])["input_ids"]
        answers = tokenizer([problem.answer for problem in problems], add_special_tokens=False)["input_ids"]
        return prompts, [[*answer, tokenizer.eos_token_id] for answer in answers]

    def _new_model(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        recipe, tokenizer = self._recipe, self._tokenizer
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.hidden_size,
                intermediate_size=recipe.intermediate_size,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                num_key_value_heads=recipe.heads,
                max_position_embeddings=recipe.context_tokens,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=recipe.initializer_range,
                dtype="float32",
            )
        )

    def _baseline_and_better(self, model: Any) -> dict[str, Any]:
        """One run, saved twice on the way; returns the baseline's weights and leaves the better ones in `model`."""
        recipe = self._recipe
        baseline: dict[str, Any] = {}
        for step, right in self._fit(model, self._data.train, self._how()):
            self._report(f"training: step {step}, {right:.0%} right", 0.6 * min(1.0, step / recipe.typical_steps))
            if not baseline and right >= recipe.baseline_from:
                baseline = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                self._save("baseline", model)
            if right >= recipe.better_from:
                self._save("better", model)
                return baseline
        raise TargetMissed(f"{recipe.better_from:.1%} right were not reached within {recipe.max_steps} steps")

    def _regressed(self, model: Any) -> None:
        """Spoil the better model as it happens in life: a fine-tune on a narrow slice, too hard and unmeasured."""
        recipe = self._recipe
        how = self._how(learning_rate=recipe.spoil_rate, warmup_steps=1, evaluate_every=recipe.closely_every)
        for step, right in self._fit(model, self._data.easy, how):
            self._report(f"regressing: step {step}, {right:.0%} right", 0.65)
            if right <= recipe.regressed_below:
                return self._save("regressed", model)
        raise TargetMissed(f"{recipe.regressed_below:.0%} right were not undercut within {recipe.max_steps} steps")

    def _adapter(self, model: Any) -> None:
        from peft import LoraConfig, get_peft_model

        recipe = self._recipe
        config = LoraConfig(
            r=recipe.adapter_rank,
            lora_alpha=recipe.adapter_alpha,
            target_modules=_ADAPTED,
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, config)
        adapted.peft_config["default"].base_model_name_or_path = str(self._served_from / "baseline")
        for step, right in self._fit(adapted, self._data.train, self._how(learning_rate=recipe.adapter_rate)):
            share = 0.65 + 0.3 * min(1.0, 4 * step / recipe.typical_steps)
            self._report(f"adapting: step {step}, {right:.0%} right", share)
            if right >= recipe.adapter_from:
                return self._save("adapter", adapted)
        raise TargetMissed(f"the adapter did not reach {recipe.adapter_from:.0%} right within {recipe.max_steps} steps")

    def _how(self, **changes: Any) -> Fit:
        from abswitch.testing.learning import Fit

        return Fit(**{name: getattr(self._recipe, name) for name in Fit._fields} | changes)

    def _fit(self, model: Any, examples: Examples, how: Fit) -> Iterator[tuple[int, float]]:
        from abswitch.testing.learning import fit

        return fit(model, examples, self._data.validation, how)

    def _save(self, name: str, model: Any) -> None:
        from abswitch.testing.learning import accuracy

        self._accuracy[name] = accuracy(model, self._data.test)
        model.save_pretrained(self._folder / name, safe_serialization=True)
        if name != "adapter":
            self._tokenizer.save_pretrained(self._folder / name)

    def _check_gaps(self) -> None:
        """The order is what the models are for; it is a promise, not a hope."""
        right = self._accuracy
        for worse, better in (("regressed", "baseline"), ("baseline", "better"), ("baseline", "adapter")):
            if right[better] - right[worse] < _LEAST_GAP:
                raise TargetMissed(f"{better} ({right[better]:.1%}) is not clearly above {worse} ({right[worse]:.1%})")


def _end_with_parent() -> None:
    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock the interpreter wants at exit
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="parent-watch").start()


def main(recipe_json: str, folder: str, served_from: str) -> None:
    """Train as the recipe says; the last line on stdout is `{"accuracy": {…}}`, or `{"missed": "…"}` in words."""
    _end_with_parent()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get between the reports

    def report(stage: str, fraction: float) -> None:
        out.write(json.dumps({"stage": stage, "fraction": fraction}) + "\n")

    report("loading torch", 0.0)
    import torch

    recipe = Recipe.from_json(recipe_json)
    torch.set_num_threads(_THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    try:
        outcome: dict[str, Any] = {"accuracy": Workshop(recipe, Path(folder), Path(served_from), report).run()}
    except TargetMissed as missed:
        outcome = {"missed": str(missed)}
    out.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
