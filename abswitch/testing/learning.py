"""The training loop of the tiny models. Runs in a process of its own (see `trainer`): importing it imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional

_IGNORED = -100
_GRADIENT_NORM = 1.0
_CLOSELY_FROM = 0.25
_ROWS = 128  # measured at once: what fits the processor's caches


class Examples(NamedTuple):
    """Encoded problems: `tokens` is (n, length), padded on the right; `labels` keeps the answers, ignores the rest."""

    tokens: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, prompts: Sequence[list[int]], answers: Sequence[list[int]], padding: int) -> Examples:
        """From prompts and answers as token ids, special tokens included."""
        rows = list(zip(prompts, answers, strict=True))
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        tokens = torch.full((len(rows), length), padding)
        labels = torch.full((len(rows), length), _IGNORED)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            tokens[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        return cls(tokens, labels)

    def batches(self, size: int, seed: int) -> Iterator[Examples]:
        """Random batches, drawn with replacement, without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(len(self.tokens), (size,), generator=generator)
            yield Examples(self.tokens[rows], self.labels[rows])


def accuracy(model: Any, examples: Examples) -> float:
    """The fraction of problems that greedy decoding answers exactly, end-of-sequence included.

    One forward pass tells: greedy decoding gives the right answer if and only if, after every right prefix, the
    likeliest token is the right one.
    """
    right = 0
    with torch.inference_mode():
        for start in range(0, len(examples.tokens), _ROWS):
            rows = slice(start, start + _ROWS)
            guesses = model(input_ids=examples.tokens[rows], use_cache=False).logits[:, :-1].argmax(-1)
            wanted = examples.labels[rows, 1:]
            right += int(((guesses == wanted) | (wanted == _IGNORED)).all(dim=1).sum())
    return right / len(examples.tokens)


class _Average:
    """A running average of a model's trainable parameters."""

    def __init__(self, model: Any, weight: float) -> None:
        self._weight = weight
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._averages = [p.detach().clone() for p in self._parameters]

    def update(self) -> None:
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter.detach(), self._weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model holds the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self._parameters):
            parameter.data, self._averages[i] = self._averages[i], parameter.data


class Fit(NamedTuple):
    """How to fit: as in `Recipe`."""

    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    averaging: float
    evaluate_every: int
    closely_every: int
    max_steps: int
    seed: int


def fit(model: Any, train: Examples, validation: Examples, how: Fit) -> Iterator[tuple[int, float]]:
    """Train, yielding (steps so far, accuracy of the running average) at every measurement.

    While the caller holds a yielded value the model *is* the running average: save it then, or stop there for good.
    """
    average = _Average(model, how.averaging)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=how.learning_rate, weight_decay=how.weight_decay, betas=(0.9, 0.98))
    batches = train.batches(how.batch_size, how.seed)
    measure_at = how.evaluate_every
    for step in range(1, how.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate * min(1.0, step / how.warmup_steps)
        _learn(model, next(batches), optimizer, trainable)
        average.update()
        if step == measure_at:
            with average.applied():
                right = accuracy(model, validation)
                yield step, right
            measure_at += how.evaluate_every if right < _CLOSELY_FROM else how.closely_every


def _learn(model: Any, batch: Examples, optimizer: torch.optim.Optimizer, trainable: list[torch.Tensor]) -> None:
    logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1]
    wanted = batch.labels[:, 1:]
    answer = wanted != _IGNORED
    loss = functional.cross_entropy(logits[answer], wanted[answer])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    torch.nn.utils.clip_grad_norm_(trainable, _GRADIENT_NORM)
    optimizer.step()
