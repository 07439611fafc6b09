"""Checks of what a caller gave: each returns the value, or raises `InvalidInput` naming field and what is allowed."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from abswitch.errors import InvalidInput

_READABLE = 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\Z")


def name(field: str, value: object) -> str:
    """A name that is safe in file names, SQL and MLflow keys."""
    if is_name(value):
        return value
    raise InvalidInput(field, value, "1 to 128 letters, digits or . _ : / @ + -, beginning with a letter or digit")


def is_name(value: object) -> TypeGuard[str]:
    """Whether `name` takes it."""
    return isinstance(value, str) and _NAME.match(value) is not None


def identifier(field: str, value: object) -> str:
    """A non-empty string that can be hashed and stored: one that UTF-8 can write, not half a surrogate pair."""
    allowed = "a non-empty string that UTF-8 can write"
    if not isinstance(value, str) or not value:
        raise InvalidInput(field, value, allowed)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(field, value, allowed) from error
    return value


def number(
    field: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
) -> float:
    """A finite real number in [low, high], or in (low, high] with `above`. Booleans and strings are refused."""
    allowed = _interval(low, high, above)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(field, value, allowed)
    if not _is_finite(value) or value < low or value > high or (above and value <= low):
        raise InvalidInput(field, value, allowed)
    return float(value)


def integer(field: str, value: object, *, low: int, high: int | None = None) -> int:
    """A whole number of at least `low`. Booleans, floats and strings are refused."""
    allowed = f"a whole number of at least {low}" + ("" if high is None else f" and at most {high}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(field, value, allowed)
    if value < low or (high is not None and value > high):
        raise InvalidInput(field, value, allowed)
    return value


def share(field: str, value: object) -> float:
    """A traffic share as a fraction 0–1."""
    return number(field, value, low=0.0, high=1.0)


def percentage(field: str, value: object) -> float:
    """A percentage 0–100, as given (not divided)."""
    return number(field, value, low=0.0, high=100.0)


def flag(field: str, value: object) -> bool:
    """A real boolean."""
    if not isinstance(value, bool):
        raise InvalidInput(field, value, "True or False")
    return value


def one_of(field: str, value: object, allowed: Iterable[str]) -> str:
    """One of a closed set of strings."""
    options = tuple(allowed)
    if not isinstance(value, str) or value not in options:
        raise InvalidInput(field, value, "one of " + ", ".join(options))
    return value


def text(field: str, value: object) -> str:
    """Any text, also an empty one, as something that every file can hold: half a surrogate pair becomes its escape."""
    if not isinstance(value, str):
        raise InvalidInput(field, value, "a text")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="backslashreplace").decode()
    return value


def known_fields(where: str, given: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """No key of `given` is outside `allowed`; names the closest match, and all fields where that is a readable list."""
    options = sorted(allowed)
    for key in given:
        if not isinstance(key, str):
            raise InvalidInput(f"{where} (a field)", key, fields_in_words("", options))
        if key not in options:
            raise InvalidInput(f"{where}.{key}", given[key], fields_in_words(key, options))


def fields_in_words(key: str, options: list[str]) -> str:
    """What is allowed instead of a field that does not exist: the closest matches, and all fields if they are few."""
    if not options:
        return "no fields"
    close = difflib.get_close_matches(key, options, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
    if len(options) > _READABLE:
        return f"one of its {len(options)} fields" + (f" ({hint})" if hint else "")
    return "only the fields " + ", ".join(options) + (f" ({hint})" if hint else "")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _interval(low: float, high: float, above: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "a finite number"
    if high == math.inf:
        return f"a finite number {'above' if above else 'of at least'} {low:.10g}"
    return f"a number {'above' if above else 'from'} {low:.10g} {'and at most' if above else 'to'} {high:.10g}"
