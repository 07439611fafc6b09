"""Specs as files: YAML, overrides from a command line, and the runs that a matrix makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from abswitch import plainyaml
from abswitch.errors import InvalidInput
from abswitch.experiments.overriding import cells_of, overridden, words_of
from abswitch.experiments.spec import ExperimentSpec, spec_of

SCHEMA = Path(__file__).with_name("spec.schema.json")
Plain = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of a spec.

    Attributes:
        cell: what the matrix set for it, by dotted field; empty without one.
    """

    spec: ExperimentSpec
    cell: Mapping[str, Any]


def schema() -> Plain:
    """The JSON Schema of a spec file, as shipped in `spec.schema.json`."""
    made: Plain = _closed(ExperimentSpec.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _closed(node: Any) -> Any:
    """The same, where a mapping whose names follow a pattern has no other names, which pydantic leaves unsaid."""
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    return closed | {"additionalProperties": False} if "patternProperties" in closed else closed


def schema_text() -> str:
    """The content of `spec.schema.json`."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def read_spec(path: Path | str, overrides: Mapping[str, Any] | None = None) -> ExperimentSpec:
    """A spec from its YAML (or JSON) file.

    Args:
        overrides: dotted field → value, e.g. `{"load.concurrency": 8, "metrics.0.margin": 0.1}`.

    Raises:
        InvalidInput: it is no spec; names file, field, value and what is allowed.
        FileNotFoundError: it is not there.
    """
    return spec_of(overridden(read_plain(path), overrides or {}), where=str(path))


def planned_runs(path: Path | str, overrides: Mapping[str, Any] | None = None) -> tuple[PlannedRun, ...]:
    """Every run of a spec file: one, or one for each combination of its matrix, in order.

    Raises:
        InvalidInput, FileNotFoundError: as `read_spec`; every run is checked before any is given.
    """
    plain = overridden(read_plain(path), overrides or {})
    whole = spec_of(plain, where=str(path))
    if not whole.matrix:
        return (PlannedRun(spec=whole, cell={}),)
    cells = cells_of(whole.matrix, f"{path}: matrix")
    bare = {key: value for key, value in plain.items() if key != "matrix"}
    return tuple(
        PlannedRun(spec=spec_of(overridden(bare, cell, "matrix"), where=f"{path}, {words_of(cell)}"), cell=cell)
        for cell in cells
    )


def read_plain(path: Path | str) -> Plain:
    """The plain values of a YAML file; a key that is there twice is refused.

    Raises:
        InvalidInput: it is not YAML, or no mapping; names the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(str(path), f"byte {error.start} that is no UTF-8", "YAML in UTF-8") from error
    try:
        plain = plainyaml.load(text)
    except yaml.YAMLError as error:
        raise _no_yaml(path, text, error) from error
    if not isinstance(plain, dict):
        raise InvalidInput(str(path), plain, "a mapping with the fields of an experiment")
    return plain


def _no_yaml(path: Path | str, text: str, error: yaml.YAMLError) -> InvalidInput:
    """Names the line that cannot be read, and shows it."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return InvalidInput(str(path), text[:40], f"YAML in UTF-8 ({' '.join(str(error).split())})")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    return InvalidInput(
        f"{path}, line {mark.line + 1}", line.strip(), f"YAML in UTF-8 ({getattr(error, 'problem', None) or error})"
    )


def override_of(text: str) -> tuple[str, Any]:
    """`key=value` as a dotted field and its value; the value is read as YAML, so `8` is a number and `[1, 2]` a list.

    Raises:
        InvalidInput: there is no `=`, or the value is not YAML.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InvalidInput("-p", text, "key=value, e.g. load.concurrency=8")
    try:
        return key.strip(), plainyaml.load(value)
    except yaml.YAMLError as error:
        raise InvalidInput(f"-p {key}", value, f"a YAML value ({' '.join(str(error).split())})") from error
