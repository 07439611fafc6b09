"""Parameters of a notebook: checked, as papermill itself only warns about a name that the notebook does not know."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.experiments.project import project_folder, store_uri

__all__ = ["Allowed", "check_parameters", "project_folder", "store_uri"]

_INJECTED = "# Parameters"

Allowed = range | tuple[str, ...] | type
"""What a parameter may be: a whole number within a range, one of some words, or an instance of a type."""


def check_parameters(namespace: Mapping[str, Any], **allowed: Allowed) -> None:
    """Check a notebook's parameters; call it right after the cell tagged `parameters`, with `globals()`.

    Args:
        namespace: where the parameters' values are, and (in IPython) the source of the cells run so far, as `In`.
        **allowed: what each parameter may be.

    Raises:
        InvalidInput: a value is not allowed, or papermill injected a name that is no parameter.
    """
    for name in _injected_names(namespace.get("In", ())):
        if name not in allowed:
            raise InvalidInput(f"parameters.{name}", namespace.get(name), "only " + ", ".join(sorted(allowed)))
    for name, what in allowed.items():
        _check(f"parameters.{name}", namespace.get(name), what)


def _check(field: str, value: object, allowed: Allowed) -> None:
    if isinstance(allowed, range):
        checks.integer(field, value, low=allowed.start, high=allowed.stop - 1)
    elif isinstance(allowed, tuple):
        checks.one_of(field, value, allowed)
    elif not isinstance(value, allowed) or isinstance(value, bool) is not (allowed is bool):
        raise InvalidInput(field, value, f"a value of type {allowed.__name__}")


def _injected_names(cells: Iterable[str]) -> list[str]:
    names = []
    for source in cells:
        if source.startswith(_INJECTED):
            nodes = ast.walk(ast.parse(source))
            names += [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return names
