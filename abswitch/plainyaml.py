"""YAML without surprises: plain values, no key twice in a mapping, and `1e-3` is a number as in JSON."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> Any:
        """As composed, thus before merge keys (`<<`) bring in those that a mapping's own may replace."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                twice = f"{key.value!r} is there twice, first in line {lines[key.value]}"
                raise yaml.composer.ComposerError(None, None, twice, key.start_mark)
            lines[key.value] = line
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(?:\.[\d_]*)?[eE][-+]?\d+\Z"), list("-+0123456789")
)


def load(text: str) -> Any:
    """The values of one document; None of an empty one.

    Raises:
        yaml.YAMLError: it is no YAML, has a key twice, or wants to make objects; `mistake` says it in words.
    """
    try:
        return yaml.load(text, _Loader)
    except ValueError as error:  # e.g. a date that no calendar has
        raise yaml.YAMLError(str(error)) from error


def mistake(error: yaml.YAMLError) -> str:
    """What is wrong and in which line, without the line itself, as there may be a secret in it."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"{problem} (line {mark.line + 1})"
