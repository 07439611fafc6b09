"""What every metric has: which way is better, what it decides, which requests it is about, what it is adjusted by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.selection import AT_ADMISSION, Segments, Where, known_before

_DURATIONS = ("latency_s", "first_token_s", "queue_s", "generation_s")
LESS_IS_BETTER = frozenset({"error", "fallback", "truncated", *_DURATIONS, *(f"log_{name}" for name in _DURATIONS)})
"""Quantities of a request of which nobody wants more; their direction is `decrease` unless said otherwise."""
OF_ASSIGNED = frozenset({"error", "fallback"})
"""Quantities of every assigned request; all others are of answers."""

_FORBIDDEN_IN_KEYS = re.compile(r"[^A-Za-z0-9_./:-]")
"""What the MLflow tracking store refuses in a metric's key (and a space)."""


class Direction(StrEnum):
    """Which way is better."""

    INCREASE = "increase"
    DECREASE = "decrease"


class Role(StrEnum):
    """What a metric decides: the winner, a veto, or nothing."""

    PRIMARY = "primary"
    GUARDRAIL = "guardrail"
    SECONDARY = "secondary"


class Unit(StrEnum):
    """What weighs the same in a metric: every request, or every unit. Uncertainty is by unit either way."""

    REQUEST = "request"
    UNIT = "unit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What every metric has.

    Args:
        direction: which way is better. By default `decrease` for `LESS_IS_BETTER` (of a ratio: its numerator), else
            `increase`.
        role: `primary` decides, `guardrail` may veto, `secondary` is only reported.
        margin: in the metric's own unit, above 0. For the primary: differences within ±margin do not matter. For a
            guardrail (required): how much worse is still acceptable.
        name: how the metric is called in results, a legal MLflow key; by default after its column.
        unit: `request` (default): each request weighs the same. `unit`: each unit (user, session) does, by the mean of
            its requests. Either way units are what varies: a unit with a thousand requests is one observation.
        covariate: a column known before a version answers, e.g. `prompt_tokens` or a scorer of the prompt; its share of
            the noise is taken out (CUPED).
        where: conditions (`Where`, or dictionaries) that a request must fulfil.
        segments: by what the metric is broken out, beside the whole (`Segments`, a dictionary, or a column).

    Raises:
        InvalidInput: a field is outside its range, a guardrail has no margin, or requests would be chosen by what the
            version moves.
    """

    direction: str = ""
    role: str = Role.PRIMARY
    margin: float | None = None
    name: str = ""
    unit: str = Unit.REQUEST
    covariate: str | None = None
    where: tuple[Where, ...] = ()
    segments: Segments | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of evidence it measures."""
        raise NotImplementedError

    @property
    def selectors(self) -> tuple[str, ...]:
        """The columns by which it is adjusted, filtered and broken out."""
        named = [self.covariate, *(one.column for one in self.where), self.segments.column if self.segments else None]
        return tuple(dict.fromkeys(one for one in named if one is not None))

    @property
    def sign(self) -> int:
        """+1 when more is better, −1 when less is."""
        return 1 if self.direction == Direction.INCREASE else -1

    def _check(self, default_name: str, column: str) -> None:
        if self.direction == "":
            less = Direction.DECREASE if column in LESS_IS_BETTER else Direction.INCREASE
            object.__setattr__(self, "direction", less.value)
        checks.one_of("metric.direction", self.direction, [d.value for d in Direction])
        checks.one_of("metric.role", self.role, [r.value for r in Role])
        checks.one_of("metric.unit", self.unit, [u.value for u in Unit])
        if self.margin is not None:
            object.__setattr__(self, "margin", checks.number("metric.margin", self.margin, low=0.0, above=True))
        elif self.role == Role.GUARDRAIL:
            raise InvalidInput("metric.margin", None, f"a number above 0; guardrail {default_name!r} needs one")
        if self.name == "":
            object.__setattr__(self, "name", _FORBIDDEN_IN_KEYS.sub("_", default_name))
        if _FORBIDDEN_IN_KEYS.search(checks.name("metric.name", self.name)):
            raise InvalidInput("metric.name", self.name, "letters, digits or . _ : / -, as MLflow takes them")
        self._check_selection()

    def _check_selection(self) -> None:
        object.__setattr__(self, "where", _conditions(self.where))
        if self.segments is not None:
            object.__setattr__(self, "segments", Segments.of(self.segments))
        if self.covariate is not None:
            known_before("metric.covariate", self.covariate)
            if self.covariate == "unit_id" or self.covariate in self.columns:
                raise InvalidInput(
                    "metric.covariate", self.covariate, "a column of numbers other than the metric's own"
                )
        if OF_ASSIGNED.intersection(self.columns):
            self._refuse_columns_of_answers()

    def _refuse_columns_of_answers(self) -> None:
        """Requests that failed have none, so that failures would be filtered out."""
        for column in self.selectors:
            if column not in AT_ADMISSION:
                allowed = f"of {', '.join(self.columns)}: {', '.join(AT_ADMISSION)}; requests that failed lack this one"
                raise InvalidInput("metric.where", column, allowed)


def _conditions(given: object) -> tuple[Where, ...]:
    if isinstance(given, Where | Mapping):
        return (Where.of(given),)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput("metric.where", given, 'conditions such as {"column": "prompt_tokens", "above": 10}')
    return tuple(Where.of(one) for one in given)
