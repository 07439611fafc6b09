"""Specs as files: YAML, overrides from a command line, and the runs that a matrix makes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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


class _Loader(yaml.SafeLoader):
    """YAML without surprises: no key twice, and `1e-3` is a number as in JSON."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(?:\.[\d_]*)?[eE][-+]?\d+\Z"), list("-+0123456789")
)


def read_plain(path: Path | str) -> Plain:
    """The plain values of a YAML file; a key that is there twice is refused.

    Raises:
        InvalidInput: it is not YAML, or no mapping; names the line.
    """
    try:
        plain = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(str(path), "what is no YAML", f"YAML in UTF-8 ({' '.join(str(error).split())})") from error
    if not isinstance(plain, dict):
        raise InvalidInput(str(path), plain, "a mapping with the fields of an experiment")
    return plain


def overridden(plain: Mapping[str, Any], overrides: Mapping[str, Any], where: str = "-p") -> Plain:
    """A copy with fields replaced; whether the result is a spec is for `spec_of` to say.

    Raises:
        InvalidInput: a path leads through something that has no fields, or to a version that there is not.
    """
    changed: Plain = _unshared(plain)
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


def override_of(text: str) -> tuple[str, Any]:
    """`key=value` as a dotted field and its value; the value is read as YAML, so `8` is a number and `[1, 2]` a list.

    Raises:
        InvalidInput: there is no `=`, or the value is not YAML.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InvalidInput("-p", text, "key=value, e.g. load.concurrency=8")
    try:
        return key.strip(), yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise InvalidInput(f"-p {key}", value, f"a YAML value ({' '.join(str(error).split())})") from error
