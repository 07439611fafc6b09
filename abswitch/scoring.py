"""Scorers: how good one answer is, as a number. Exact match, a regular expression, any callable, or a judge model.

A scorer is given a `Sample` and returns a finite number (True and False count as 1 and 0).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from abswitch import checks
from abswitch.domain import Prompt
from abswitch.errors import InvalidInput, ScorerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer to be scored.

    Attributes:
        prompt: as the caller gave it, before any template.
        reference: what the caller says is right; None where nothing was said.
    """

    request_id: str
    prompt: Prompt
    output: str
    reference: str | None = None


Score = float | Awaitable[float | None] | None


@runtime_checkable
class Scorer(Protocol):
    """Anything with a name and a `score`.

    Attributes:
        inline: scoring takes microseconds and may run on the engine's loop; otherwise it runs on a thread.
    """

    inline: ClassVar[bool]

    @property
    def name(self) -> str:
        """The metric's name."""

    def score(self, sample: Sample) -> Score:
        """The score; None when the scorer does not apply to this sample."""


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """1 when the output equals the reference, else 0; surrounding white space does not count.

    Samples without a reference are not scored.
    """

    name: str = "exact_match"
    ignore_case: bool = False
    inline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.name("scorer.name", self.name)

    def score(self, sample: Sample) -> float | None:
        if sample.reference is None:
            return None
        return float(self._plain(sample.output) == self._plain(sample.reference))

    def _plain(self, text: str) -> str:
        text = text.strip()
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True, slots=True)
class Matches:
    """1 when a regular expression is found in the output (`full`: matches all of it), else 0."""

    pattern: str
    name: str = "matches"
    full: bool = False
    inline: ClassVar[bool] = False  # a pathological pattern can take seconds

    def __post_init__(self) -> None:
        checks.name("scorer.name", self.name)
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise InvalidInput("scorer.pattern", self.pattern, f"a regular expression ({error})") from error

    def score(self, sample: Sample) -> float:
        find = re.fullmatch if self.full else re.search
        return float(find(self.pattern, sample.output) is not None)


@dataclass(frozen=True, slots=True)
class Function:
    """Any callable `f(sample) -> number`, plain or async."""

    function: Callable[[Sample], Score]
    name: str
    inline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.name("scorer.name", self.name)

    def score(self, sample: Sample) -> Score:
        return self.function(sample)


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that grades: it is shown a filled-in template, and the first number in its reply is the score.

    Args:
        ask: sends a prompt and returns the reply, e.g. `engine.ask(version="judge-v1")`.
        template: may hold `{prompt}`, `{output}` and `{reference}`.
        low, high: the scale; a number outside it is an error, not a score.
    """

    ask: Callable[[str], Awaitable[str]]
    template: str = (
        "Question:\n{prompt}\n\nReference answer:\n{reference}\n\nAnswer to grade:\n{output}\n\n"
        "Grade the answer from 0 (wrong) to 1 (right). Reply with the number alone:\n"
    )
    name: str = "judge"
    low: float = 0.0
    high: float = 1.0
    inline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.name("scorer.name", self.name)
        if "{output}" not in self.template:
            raise InvalidInput("scorer.template", self.template, "text that contains {output}")
        checks.number("scorer.low", self.low)
        checks.number("scorer.high", self.high, low=self.low, above=True)

    async def score(self, sample: Sample) -> float:
        filled = self.template
        for field, value in (("prompt", sample.prompt), ("reference", sample.reference), ("output", sample.output)):
            filled = filled.replace("{" + field + "}", str(value))
        reply = await self.ask(filled)
        found = re.search(r"[-+]?\d+(?:\.\d+)?", reply)
        if found is None or not self.low <= float(found.group()) <= self.high:
            raise ScorerError(f"the judge replied {reply!r}; expected a number from {self.low:g} to {self.high:g}")
        return float(found.group())


def scorer_of(value: Scorer | Callable[[Sample], Score]) -> Scorer:
    """Accept a scorer, or a callable, which takes its own name."""
    if isinstance(value, Scorer):
        return value
    if callable(value):
        return Function(value, name=getattr(value, "__name__", "score").strip("<>"))
    raise InvalidInput("scorers", value, "scorers (ExactMatch, Matches, Judge, …) or callables of one Sample")


def scorers_of(values: Iterable[Scorer | Callable[[Sample], Score]]) -> tuple[Scorer, ...]:
    """Accept several scorers.

    Raises:
        InvalidInput: not several, one is no scorer, or two have the same name.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidInput("scorers", values, "a list of scorers, also where it is only one")
    scorers = tuple(map(scorer_of, values))
    names = [scorer.name for scorer in scorers]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput("scorers", name, "scorers with different names")
    return scorers


def checked(value: object) -> float | None:
    """A score as a finite float.

    Raises:
        ScorerError: it is not a finite number.
    """
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ScorerError(f"returned {value!r}; expected a finite number, True, False or None")
    return float(value)


def is_async(scorer: Scorer) -> bool:
    """Whether the scorer's `score` must be awaited on the loop."""
    function = scorer.function if isinstance(scorer, Function) else scorer.score
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
