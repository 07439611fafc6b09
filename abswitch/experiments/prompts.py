"""What is asked in an experiment: prompts with the right answer where there is one, and the unit they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from abswitch import checks
from abswitch.domain import Prompt, prompt_of
from abswitch.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of an experiment.

    Attributes:
        reference: the right answer, for scorers that need one.
        unit_id: what is randomised; None makes the question a unit of its own.
    """

    prompt: Prompt
    reference: str | None = None
    unit_id: str | None = None


def questions_of(prompts: Iterable[Any]) -> tuple[Question, ...]:
    """Accept prompts as strings, (prompt, reference) pairs, dictionaries, `Question`s, or anything with `.prompt` and
    `.answer`.

    Raises:
        InvalidInput: there is none, or one is malformed; names its position.
    """
    if isinstance(prompts, str | Mapping):
        raise InvalidInput("prompts", prompts, "a list of prompts")
    questions = tuple(_question(f"prompts[{i}]", value) for i, value in enumerate(prompts))
    if not questions:
        raise InvalidInput("prompts", [], "at least one prompt")
    return questions


def _question(where: str, value: Any) -> Question:
    if isinstance(value, Question):
        parts: tuple[Any, Any, Any] = (value.prompt, value.reference, value.unit_id)
    elif isinstance(value, Mapping):
        checks.known_fields(where, value, ("prompt", "reference", "unit_id"))
        parts = (value.get("prompt"), value.get("reference"), value.get("unit_id"))
    elif hasattr(value, "prompt") and hasattr(value, "answer"):
        parts = (value.prompt, value.answer, None)
    elif isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
        parts = (*value, None)
    else:
        parts = (value, None, None)
    prompt, reference, unit_id = parts
    for name, text in (("reference", reference), ("unit_id", unit_id)):
        if text is not None and not isinstance(text, str):
            raise InvalidInput(f"{where}.{name}", text, "a string, or None")
    return Question(prompt_of(prompt, where=where), reference, unit_id)
