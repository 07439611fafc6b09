"""Which requests a metric is about (`Where`), and by what it is broken out (`Segments`).

Only what is settled before a version answers may choose: a selection by something that the version moves (its latency,
its length, whether it failed) compares survivors, and finds differences between equals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from abswitch import checks
from abswitch.errors import InvalidInput

OUTCOMES = frozenset(
    {"latency_s", "first_token_s", "queue_s", "generation_s", "output_tokens", "truncated", "error", "fallback"}
)
"""Columns of evidence that the version, or the load it causes, moves."""
AT_ADMISSION = ("unit_id", "step", "admitted_at_s")
"""Known of every request; `prompt_tokens` and scorers are known of answers alone."""
BEFORE_ANSWERS = (*AT_ADMISSION, "prompt_tokens")
OTHERS = "(others)"
"""The segment of what is in none of the largest ones."""
NO_SEGMENT = "(none)"
"""The segment of requests that have no value of the column."""

_NUMERIC = ("above", "at_least", "below", "at_most")
_MANY = 200


def known_before(field: str, name: object) -> str:
    """A column that no version moves: one of `BEFORE_ANSWERS`, or a scorer's name.

    Raises:
        InvalidInput: it is an outcome, or no name.
    """
    column = checks.name(field, name)
    if column in OUTCOMES:
        allowed = f"what is known before a version answers ({', '.join(BEFORE_ANSWERS)}, or a scorer of the prompt)"
        raise InvalidInput(field, column, f"{allowed}; the version moves this one")
    return column


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A condition on requests: `Where(column="prompt_tokens", above=10)`; all that are given must hold.

    A request without a value of the column does not fulfil it.

    Args:
        column: `prompt_tokens`, `step` (stage of the operation), `admitted_at_s` (seconds since the epoch), `unit_id`
            (text), or the name of a scorer that rates the prompt and not the answer.
        above, at_least, below, at_most: bounds; of numbers.
        equals, differs: a number; of `unit_id` a text.
        one_of: several such.
        starts_with: of `unit_id`.

    Raises:
        InvalidInput: a column that the version moves, no condition, one that does not suit the column, or bounds
            between which nothing lies.
    """

    column: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    equals: float | str | None = None
    differs: float | str | None = None
    one_of: tuple[float | str, ...] = ()
    starts_with: str | None = None

    def __post_init__(self) -> None:
        known_before("where.column", self.column)
        if not self.conditions:
            raise InvalidInput("where", self.column, "a condition: " + ", ".join(f.name for f in fields(self)[1:]))
        for name in _NUMERIC:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._number(name, getattr(self, name)))
        for name in ("equals", "differs"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._value(name, getattr(self, name)))
        self._check_many()
        if self.starts_with is not None and (not self.is_text or not isinstance(self.starts_with, str)):
            raise InvalidInput("where.starts_with", self.starts_with, "a text, for the column unit_id alone")
        self._check_bounds()

    @property
    def is_text(self) -> bool:
        """Whether the column holds text."""
        return self.column == "unit_id"

    @property
    def conditions(self) -> dict[str, Any]:
        """Those that were given, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)[1:] if getattr(self, f.name) not in (None, ())}

    def holds(self, value: float | str | None) -> bool:
        """Whether a request with this value fulfils it."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return False
        return all(_HOLDS[name](value, bound) for name, bound in self.conditions.items())

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `of` reads them back."""
        plain = {"column": self.column, **self.conditions}
        return plain | ({"one_of": list(self.one_of)} if self.one_of else {})

    @classmethod
    def of(cls, given: object) -> Self:
        """From itself or its dictionary.

        Raises:
            InvalidInput: anything else, or an unknown field.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise InvalidInput("where", given, 'a condition such as {"column": "prompt_tokens", "above": 10}')
        checks.known_fields("where", given, cls.__dataclass_fields__)
        if "column" not in given:
            raise InvalidInput("where.column", None, "a column; it is required")
        return cls(**given)

    def _check_many(self) -> None:
        if isinstance(self.one_of, str) or not isinstance(self.one_of, Sequence) or len(self.one_of) > _MANY:
            raise InvalidInput("where.one_of", self.one_of, f"a list of at most {_MANY} values")
        object.__setattr__(self, "one_of", tuple(self._value("one_of", one) for one in self.one_of))

    def _check_bounds(self) -> None:
        least = max((low for low in (self.above, self.at_least) if low is not None), default=-math.inf)
        most = min((high for high in (self.below, self.at_most) if high is not None), default=math.inf)
        open_end = least in (self.above, None) or most in (self.below, None)
        if least > most or (least == most and open_end):
            raise InvalidInput("where", self.to_dict(), "bounds between which a value can lie")

    def _value(self, name: str, value: object) -> float | str:
        if not self.is_text:
            return self._number(name, value)
        if not isinstance(value, str):
            raise InvalidInput(f"where.{name}", value, "a text, as unit_id is")
        return value

    def _number(self, name: str, value: object) -> float:
        if self.is_text:
            raise InvalidInput(f"where.{name}", value, "equals, differs, one_of or starts_with, as unit_id is text")
        return checks.number(f"where.{name}", value)


_HOLDS: Mapping[str, Any] = {
    "above": lambda value, bound: value > bound,
    "at_least": lambda value, bound: value >= bound,
    "below": lambda value, bound: value < bound,
    "at_most": lambda value, bound: value <= bound,
    "equals": lambda value, other: value == other,
    "differs": lambda value, other: value != other,
    "one_of": lambda value, several: value in several,
    "starts_with": lambda value, prefix: value.startswith(prefix),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """By what a metric is broken out: `Segments(column="prompt_tokens", edges=(32, 128))`.

    Args:
        column: as of `Where`.
        edges: rising upper ends, the last segment is what lies above; required for `prompt_tokens` and `admitted_at_s`.
            Without them every value (a `step`, a scorer's label) is a segment.
        separator: for `unit_id`, required: the part before it names the segment, `de` in `de/user-7` with "/".

    Raises:
        InvalidInput: a column that the version moves, or edges or a separator that do not suit it.
    """

    column: str
    edges: tuple[float, ...] = ()
    separator: str = ""

    def __post_init__(self) -> None:
        known_before("segments.column", self.column)
        is_text = self.column == "unit_id"
        if not isinstance(self.separator, str) or bool(self.separator) != is_text:
            wanted = 'a text such as "/", for unit_id: what comes before it names the segment' if is_text else "none"
            raise InvalidInput("segments.separator", self.separator, wanted)
        if isinstance(self.edges, str) or not isinstance(self.edges, Sequence):
            raise InvalidInput("segments.edges", self.edges, "a list of numbers")
        edges = tuple(checks.number("segments.edges", edge) for edge in self.edges)
        if list(edges) != sorted(set(edges)) or len(edges) > _MANY or (edges and is_text):
            raise InvalidInput("segments.edges", list(edges), "none, as it is text" if is_text else "rising numbers")
        if not edges and self.column in ("prompt_tokens", "admitted_at_s"):
            raise InvalidInput("segments.edges", [], f"upper ends such as [32, 128], as {self.column} has many values")
        object.__setattr__(self, "edges", edges)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the segments between the edges, rising; none where every value is one."""
        if not self.edges:
            return ()
        between = (f"{low:g} to {high:g}" for low, high in zip(self.edges, self.edges[1:], strict=False))
        return (f"up to {self.edges[0]:g}", *between, f"above {self.edges[-1]:g}")

    def label(self, value: float | str | None) -> str:
        """The segment of a request with this value."""
        if value is None:
            return NO_SEGMENT
        if isinstance(value, str):
            return value.split(self.separator)[0] if self.separator in value else NO_SEGMENT
        if not self.edges:
            return f"{value:g}"
        return self.labels[sum(value > edge for edge in self.edges)]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `of` reads them back."""
        plain: dict[str, Any] = {name: value for name, value in asdict(self).items() if value not in ("", ())}
        return plain | ({"edges": list(self.edges)} if self.edges else {})

    @classmethod
    def of(cls, given: object) -> Self:
        """From itself, its dictionary, or a column's name.

        Raises:
            InvalidInput: anything else, or an unknown field.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            return cls(column=given)
        if not isinstance(given, Mapping):
            raise InvalidInput("segments", given, 'a column, or {"column": "prompt_tokens", "edges": [32, 128]}')
        checks.known_fields("segments", given, cls.__dataclass_fields__)
        if "column" not in given:
            raise InvalidInput("segments.column", None, "a column; it is required")
        return cls(**given)
