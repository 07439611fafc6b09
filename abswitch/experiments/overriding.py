"""Fields of plain values replaced by dotted paths, and the combinations that several values of several fields make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from abswitch.errors import InvalidInput

Cell = dict[str, Any]
"""One combination: dotted field → value."""


def cells_of(values: Mapping[str, Sequence[Any]], where: str) -> list[Cell]:
    """Every combination, in order, the last field changing fastest.

    Raises:
        InvalidInput: a field has no values.
    """
    cells = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    if not cells:
        raise InvalidInput(
            where, {name: list(given) for name, given in values.items()}, "a value or more for each field"
        )
    return cells


def words_of(cell: Mapping[str, Any]) -> str:
    """A matrix's combination in one line."""
    return ", ".join(f"{name}={value}" for name, value in cell.items())


def overridden(plain: Mapping[str, Any], overrides: Mapping[str, Any], where: str = "-p") -> dict[str, Any]:
    """A copy with fields replaced; whether the result is a spec is for `spec_of` to say.

    Raises:
        InvalidInput: a path leads through something that has no fields, or to a version that there is not.
    """
    changed: dict[str, Any] = _unshared(plain)
    for path, value in overrides.items():
        _set(changed, path.split("."), value, f"{where} {path}")
    if "versions" not in overrides:
        _refuse_new_versions(plain.get("versions"), changed.get("versions"), where)
    return changed


def _unshared(plain: Any) -> Any:
    """A copy in which nothing is there twice: what YAML's `*alias` repeats would otherwise change in both places."""
    if isinstance(plain, Mapping):
        return {key: _unshared(value) for key, value in plain.items()}
    return [_unshared(value) for value in plain] if isinstance(plain, list | tuple) else plain


def _set(inside: Any, path: Sequence[str], value: Any, where: str) -> None:
    if isinstance(inside, list):
        if not (path[0].isascii() and path[0].isdigit() and int(path[0]) < len(inside)):
            raise InvalidInput(where, path[0], f"a number below {len(inside)}")
        key: Any = int(path[0])
        rest = path[1:]
    elif isinstance(inside, dict):
        key = _key(inside, path)
        rest = path[1 + key.count(".") :]
        if rest and inside.get(key) is None:
            inside[key] = {}
    else:
        raise InvalidInput(where, value, f"a field that exists; what stands before {path[0]!r} is {inside!r}")
    if rest:
        _set(inside[key], rest, value, where)
    else:
        inside[key] = _unshared(value)


def _key(inside: Mapping[str, Any], path: Sequence[str]) -> str:
    """The next key on a path: names of versions may have dots in them."""
    joined = (".".join(path[:length]) for length in range(len(path), 0, -1))
    return next((key for key in joined if key in inside), path[0])


def _refuse_new_versions(before: Any, after: Any, where: str) -> None:
    """A misspelt version would otherwise be a new one that nobody uses."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in after:
            if name not in before:
                raise InvalidInput(f"{where} versions.{name}", name, "one of the versions: " + ", ".join(before))
