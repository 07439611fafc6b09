"""Tasks with known answers, small enough for a tiny model to learn in seconds.

Every task has a finite space of problems. A hash of each problem puts it into one of three splits, so that the splits
are disjoint, the same on every machine, and never depend on a seed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from abswitch import checks
from abswitch.errors import InvalidInput

SPLITS: Mapping[str, range] = {"train": range(50), "validation": range(50, 60), "test": range(60, 100)}
"""The splits by hash bucket, in percent: what is trained on, what picks checkpoints, and what nothing has seen."""


class Problem(NamedTuple):
    """A prompt and the one right answer."""

    prompt: str
    answer: str


class Candidate(NamedTuple):
    """A problem as a space lists it; problems with equal `key` (34+12 and 12+34) fall into the same split."""

    key: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of problem.

    Attributes:
        name: as `tiny_models` takes it.
        description: one line for people.
        example: one problem.
        space: lists every problem once, in a fixed order.
        easy: marks a narrow slice on which a careless fine-tune forgets the rest.
    """

    name: str
    description: str
    example: Problem
    space: Callable[[], Iterator[Candidate]] = field(repr=False)
    easy: Callable[[Problem], bool] = field(repr=False)

    def problems(self, n: int, seed: int = 0, split: str = "test") -> list[Problem]:
        """Draw `n` distinct problems, in an order that depends on `seed` alone.

        Args:
            n: how many; 1 to `available(split)`.
            seed: zero or more.
            split: `test` (held out: no model has seen them), `validation` (picked the checkpoints) or `train`.

        Raises:
            InvalidInput: any of these is outside what is allowed.
        """
        available = self.available(split)
        if checks.integer("n", n, low=1) > available:
            raise InvalidInput("n", n, f"at most {available}, the distinct {split} problems of task {self.name!r}")
        checks.integer("seed", seed, low=0)
        return random.Random(seed).sample(_by_split(self)[split], n)

    def available(self, split: str = "test") -> int:
        """How many distinct problems a split has."""
        return len(_by_split(self)[checks.one_of("split", split, SPLITS)])


@lru_cache(maxsize=8)
def _by_split(task: Task) -> Mapping[str, tuple[Problem, ...]]:
    split_of = {bucket: split for split, buckets in SPLITS.items() for bucket in buckets}
    found: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    for key, problem in task.space():
        found[split_of[_bucket(key)]].append(problem)
    return {split: tuple(problems) for split, problems in found.items()}


def _bucket(key: str) -> int:
    """A number 0–99 from the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100


def _sums() -> Iterator[Candidate]:
    for a, b in itertools.product(range(10, 100), repeat=2):
        yield Candidate(f"{min(a, b)}+{max(a, b)}", Problem(f"{a}+{b}=", str(a + b)))


def _small_without_carry(problem: Problem) -> bool:
    a, b = problem.prompt.rstrip("=").split("+")
    return int(a[1]) + int(b[1]) < 10 and int(a) + int(b) < 60


def _words() -> Iterator[Candidate]:
    for letters in itertools.product("abcdefg", repeat=5):
        word = "".join(letters)
        yield Candidate(word, Problem(f"{word}>", "".join(sorted(word))))


def _already_sorted(problem: Problem) -> bool:
    return problem.prompt.rstrip(">") == problem.answer


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("addition", "the sum of two 2-digit numbers", Problem("12+34=", "46"), _sums, _small_without_carry),
        Task("sorting", "five letters in alphabetical order", Problem("gdafb>", "abdfg"), _words, _already_sorted),
    )
}
"""Every task by name."""


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        InvalidInput: there is none.
    """
    return TASKS[checks.one_of("task", name, TASKS)]
