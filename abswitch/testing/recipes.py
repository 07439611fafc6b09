"""Recipes of the tiny models: everything that decides what comes out, and nothing else, so that a hash can name it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from abswitch.errors import InvalidInput
from abswitch.testing.tasks import task_named

FORMAT = 1
"""Raised when the meaning of a recipe changes: the problems, the tokenizer, the training loop, the folder's layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one set of tiny models is made. Accuracies are exact-match fractions 0–1 on the validation problems.

    Attributes:
        averaging: weight of the newest parameters in the running average, which is what is saved. Averages grow
            smoothly in quality, so that a target is met closely on any machine.
        initializer_range: standard deviation of the first weights; this one shortens the plateau before carrying is
            learnt.
        evaluate_every: steps between two measurements while few answers are right.
        closely_every: the same once a quarter is right, where quality changes fast.
        typical_steps: how long the training usually takes; only progress is reckoned from it.
        max_steps: give up after so many.
        baseline_from, better_from, adapter_from: the first average that reaches it becomes that checkpoint (held-out
            problems come out a few points lower).
        spoil_rate: learning rate of the careless fine-tune on the task's easy slice.
        regressed_below: that fine-tune stops as soon as it is so bad.
    """

    task: str
    seed: int = 0
    layers: int = 2
    hidden_size: int = 128
    intermediate_size: int = 256
    heads: int = 4
    context_tokens: int = 256
    batch_size: int = 32
    initializer_range: float = 0.05
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    averaging: float = 0.02
    evaluate_every: int = 20
    closely_every: int = 6
    typical_steps: int = 450
    max_steps: int = 2000
    baseline_from: float = 0.61
    better_from: float = 0.945
    spoil_rate: float = 1e-3
    regressed_below: float = 0.32
    adapter_rank: int = 8
    adapter_alpha: int = 16
    adapter_rate: float = 3e-3
    adapter_from: float = 0.80
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the recipe as canonical JSON; the same in every process and on every machine."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields)


RECIPES: Mapping[str, Recipe] = {
    "addition": Recipe(task="addition"),
    # Sorting is learnt within a hundred steps, so it is measured more often.
    "sorting": Recipe(task="sorting", evaluate_every=8, closely_every=3, typical_steps=150),
}
"""The recipe of each task."""


def recipe_for(task: str) -> Recipe:
    """The recipe of a task.

    Raises:
        InvalidInput: no task of that name, or none that models are trained for.
    """
    name = task_named(task).name
    if name not in RECIPES:
        raise InvalidInput("task", task, "one of " + ", ".join(RECIPES))
    return RECIPES[name]
