from __future__ import annotations

from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.testing.tasks import SPLITS, TASKS, Problem, task_named


def everything(name: str, split: str) -> list[Problem]:
    task = task_named(name)
    return task.problems(task.available(split), 0, split)


def test_answers_are_right() -> None:
    for prompt, answer in everything("addition", "test"):
        a, b = prompt.removesuffix("=").split("+")
        assert int(a) + int(b) == int(answer)
    for prompt, answer in everything("sorting", "validation"):
        assert sorted(prompt.removesuffix(">")) == list(answer)


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_disjoint_and_cover_the_space(name: str) -> None:
    parts = [everything(name, split) for split in SPLITS]
    prompts = [problem.prompt for part in parts for problem in part]
    assert len(prompts) == len(set(prompts)) == sum(1 for _ in TASKS[name].space())


def test_a_sum_and_its_mirror_are_in_one_split() -> None:
    held_out = {problem.prompt for problem in everything("addition", "test")}
    for prompt in held_out:
        a, b = prompt.removesuffix("=").split("+")
        assert f"{b}+{a}=" in held_out


def test_the_splits_do_not_move() -> None:
    assert {split: TASKS["addition"].available(split) for split in SPLITS} == {
        "train": 4137,
        "validation": 782,
        "test": 3181,
    }


@pytest.mark.parametrize("name", TASKS)
def test_problems_are_distinct_and_depend_on_the_seed_alone(name: str) -> None:
    task = TASKS[name]
    drawn = task.problems(500, seed=3)
    assert len(set(drawn)) == 500
    assert drawn == task.problems(500, seed=3)
    assert drawn != task.problems(500, seed=4)
    assert drawn[:100] != task.problems(100, seed=5)


def test_the_example_and_the_easy_slice_belong_to_the_task() -> None:
    for task in TASKS.values():
        space = [candidate.problem for candidate in task.space()]
        assert task.example in space
        assert 100 <= sum(map(task.easy, space)) < len(space) / 4


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("n", {"n": 0}),
        ("n", {"n": -1}),
        ("n", {"n": 3182}),
        ("n", {"n": 1.5}),
        ("n", {"n": True}),
        ("n", {"n": "5"}),
        ("seed", {"n": 5, "seed": -1}),
        ("seed", {"n": 5, "seed": None}),
        ("split", {"n": 5, "split": "holdout"}),
        ("split", {"n": 5, "split": None}),
    ],
)
def test_bad_draws_are_refused(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        TASKS["addition"].problems(**arguments)
    assert refused.value.field == field


def test_too_many_problems_says_how_many_there_are() -> None:
    with pytest.raises(InvalidInput, match="at most 3181, the distinct test problems of task 'addition'"):
        TASKS["addition"].problems(10_000)


def test_an_unknown_task_names_the_known() -> None:
    with pytest.raises(InvalidInput, match="one of addition, sorting"):
        task_named("multiplication")
