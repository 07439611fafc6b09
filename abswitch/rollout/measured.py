"""What is measured of every arm without a scorer, by name; and names that are surely a slip for a known one. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile

from abswitch.errors import InvalidInput

ERROR_RATE = "error_rate"
DURATIONS: Mapping[str, str] = {"latency": "latency_s", "first_token": "first_token_s"}
"""Name of a duration in measured quantities (`latency_p95_s`) → column of evidence."""
QUANTILES: Mapping[str, tuple[str, float]] = {
    f"{duration}_p{percent}_s": (duration, percent / 100) for duration in DURATIONS for percent in (50, 95, 99)
}
"""Measured quantity → the duration it summarises, and the quantile."""
BUILT_IN: Mapping[str, str] = {ERROR_RATE: "a fraction from 0 to 1"} | dict.fromkeys(QUANTILES, "in seconds")
"""Everything measured without a scorer → its unit."""

_UNITS = frozenset({"s", "sec", "secs", "second", "seconds", "ms", "msec", "millis", "millisecond", "milliseconds"})
_LEAST_LETTERS = 4
"""In shorter words one letter may well be all the difference: `top_a`, `top_b`."""


def refuse_near_miss(where: str, metric: str) -> None:
    """Refuse a name that is none of `BUILT_IN`, and is surely meant to be: such as `latency_p95`, or `error-rate`.

    Raises:
        InvalidInput: with the right name and its unit.
    """
    if metric in BUILT_IN:
        return
    meant = [name for name in BUILT_IN if _bare(name) == _bare(metric)]
    meant = meant or [name for name in BUILT_IN if _is_slip(_core(metric), _core(name))]
    if meant:
        raise InvalidInput(where, metric, " or ".join(f"{name} ({BUILT_IN[name]})" for name in meant))


def slip_for(metric: str, known: Iterable[str]) -> str | None:
    """The known name that `metric` surely means: the same letters, or one word of several letters with one slip in it.

    A different digit, a short word, or one word more makes another name: `judge2` is not `judge`.
    """
    return next((name for name in known if name != metric and _is_nearly(_words(metric), _words(name))), None)


def unmeasured(metrics: Iterable[str], scorers: Iterable[str]) -> tuple[str, ...]:
    """Those of the metrics that nothing here measures; values of them can only be recorded by hand."""
    known = {*BUILT_IN, *scorers}
    return tuple(dict.fromkeys(metric for metric in metrics if metric not in known))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _bare(name: str) -> str:
    """Its letters and digits, in whatever order its words come, without a unit."""
    return "".join(sorted(word for word in _words(name) if word not in _UNITS))


def _core(name: str) -> str:
    """The same without a quantile."""
    return re.sub(r"p?\d+", "", _bare(name))


def _is_nearly(given: list[str], known: list[str]) -> bool:
    if "".join(given) == "".join(known):
        return True
    different = [pair for pair in zip(given, known, strict=False) if pair[0] != pair[1]]
    return (
        len(given) == len(known)
        and len(different) == 1
        and all(word.isalpha() and len(word) >= _LEAST_LETTERS for word in different[0])
        and _is_slip(*different[0])
    )


def _is_slip(given: str, known: str) -> bool:
    """Whether at most one letter is wrong, missing or too many, or two neighbours are swapped."""
    start = _in_common(given, known)
    given, known = given[start:], known[start:]
    end = _in_common(given[::-1], known[::-1])
    given, known = given[: len(given) - end], known[: len(known) - end]
    return max(len(given), len(known)) <= 1 or (len(given) == len(known) == 2 and given == known[::-1])


def _in_common(one: str, other: str) -> int:
    """With how many letters both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
