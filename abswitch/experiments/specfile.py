"""Specs as files: YAML, overrides from a command line, and the runs that a matrix makes."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abswitch.errors import InvalidInput
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
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ExperimentSpec.model_json_schema(by_alias=True),
    }


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
    cells = [dict(zip(whole.matrix, values, strict=True)) for values in itertools.product(*whole.matrix.values())]
    if not cells:
        raise InvalidInput(f"{path}: matrix", dict(whole.matrix), "at least one value for each field")
    bare = {key: value for key, value in plain.items() if key != "matrix"}
    return tuple(
        PlannedRun(spec=spec_of(overridden(bare, cell, "matrix"), where=f"{path}, {words_of(cell)}"), cell=cell)
        for cell in cells
    )


def words_of(cell: Mapping[str, Any]) -> str:
    """A matrix's combination in one line."""
    return ", ".join(f"{name}={value}" for name, value in cell.items())


def read_plain(path: Path | str) -> Plain:
    """The plain values of a YAML file; a key that is there twice is refused.

    Raises:
        InvalidInput: it is not YAML, or no mapping; names the line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML without surprises: no key twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            for key, value in node.value:
                if keys.count(key.value) > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is there twice", value.start_mark
                    )
            return super().construct_mapping(node, deep)

    text = Path(path).read_text(encoding="utf-8")
    try:
        plain = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise InvalidInput(str(path), "a file that cannot be read", " ".join(str(error).split())) from error
    if not isinstance(plain, dict):
        raise InvalidInput(str(path), plain, "a mapping with the fields of an experiment")
    return plain


def overridden(plain: Mapping[str, Any], overrides: Mapping[str, Any], where: str = "-p") -> Plain:
    """A copy with fields replaced; whether the result is a spec is for `spec_of` to say.

    Raises:
        InvalidInput: a path leads through something that has no fields.
    """
    changed = copy.deepcopy(dict(plain))
    for path, value in overrides.items():
        _set(changed, path.split("."), value, f"{where} {path}")
    return changed


def _set(inside: Any, path: Sequence[str], value: Any, where: str) -> None:
    for position, part in enumerate(path):
        last = position == len(path) - 1
        if isinstance(inside, list):
            if not part.isdigit() or int(part) >= len(inside):
                raise InvalidInput(where, part, f"a number below {len(inside)}")
            key: Any = int(part)
        elif isinstance(inside, dict):
            key = part
            if not last and inside.get(key) is None:
                inside[key] = {}
        else:
            raise InvalidInput(where, value, f"a field that exists: {'.'.join(path[:position])} has no fields")
        if last:
            inside[key] = value
        else:
            inside = inside[key]


def override_of(text: str) -> tuple[str, Any]:
    """`key=value` as a dotted field and its value; the value is read as YAML, so `8` is a number and `[1, 2]` a list.

    Raises:
        InvalidInput: there is no `=`, or the value is not YAML.
    """
    import yaml

    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InvalidInput("-p", text, "key=value, e.g. load.concurrency=8")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InvalidInput(f"-p {key}", value, "a YAML value") from error
