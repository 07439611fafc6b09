"""What is wrong with a spec, in our words: of pydantic's findings one, as `InvalidInput`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput

Finding = Mapping[str, Any]
Schema = Mapping[str, Any]

_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "letters, digits, '.', '_' and '-', up to 64, a letter or digit first",
    r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$": "a function, as package.module:function",
    r"^[A-Z_][A-Z0-9_]*$": "the name of an environment variable, in capitals",
}
_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "a value; it is required",
    "string_type": lambda _: "text",
    "string_too_short": lambda _: "text that is not empty",
    "string_pattern_mismatch": lambda given: _PATTERNS.get(given["pattern"], f"text like {given['pattern']}"),
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "bool_type": lambda _: "true or false",
    "tuple_type": lambda _: "a list",
    "dict_type": lambda _: "a mapping",
    "model_type": lambda _: "a mapping",
    "too_short": lambda given: f"at least {given['min_length']} of them",
    "greater_than": lambda given: f"above {given['gt']:g}",
    "greater_than_equal": lambda given: f"at least {given['ge']:g}",
    "less_than": lambda given: f"below {given['lt']:g}",
    "less_than_equal": lambda given: f"at most {given['le']:g}",
    "multiple_of": lambda given: f"a multiple of {given['multiple_of']:g}",
    "literal_error": lambda given: f"one of {_listed(given['expected'])}",
    "union_tag_not_found": lambda _: "a value; it is required",
    "union_tag_invalid": lambda given: f"one of {_listed(given['expected_tags'])}",
}


def told(where: str, plain: Mapping[str, Any], findings: Sequence[Finding], schema: Schema) -> InvalidInput:
    """One error for the finding that is nearest to the mistake.

    Args:
        where: the file, or what else the spec came from.
        plain: what was validated.
        findings: pydantic's, at least one.
        schema: JSON Schema of the whole, for the fields that there are.
    """
    paths = [_path(plain, finding) for finding in findings]
    # Of the findings about alternatives (text or a function, say) the one that leads furthest into what was written.
    first = max(range(len(findings)), key=lambda i: (len(paths[i]), -i))
    finding, path = findings[first], paths[first]
    cause = finding.get("ctx", {}).get("error")
    if isinstance(cause, InvalidInput):
        field = _beside(path, cause.field)
        return InvalidInput(f"{where}: {field}", cause.value, cause.allowed)
    value = finding["input"]
    if finding["type"] in ("missing", "union_tag_invalid", "union_tag_not_found"):
        value = value.get(path[-1])  # and not the whole mapping that it should be in
    return InvalidInput(f"{where}: {'.'.join(path)}", value, _allowed(finding, path, plain, schema, findings))


def _path(plain: Any, finding: Finding) -> list[str]:
    """Where the finding is in what was written; names of alternatives are no part of it."""
    path, here = [], plain
    for part in _without_alternatives(plain, finding):
        path.append(str(part))
        here = here[part] if _holds(here, part) else None
    if finding["type"].startswith("union_tag"):
        path.append("kind")
    return path


def _without_alternatives(plain: Any, finding: Finding) -> Iterable[Any]:
    here, parts, chosen = plain, finding["loc"], False
    for position, part in enumerate(parts):
        if not chosen and isinstance(here, Mapping) and here.get("kind") == part:
            chosen = True  # the alternative that `kind` chose
        elif _holds(here, part):
            yield part
            here, chosen = here[part], False
        elif finding["type"] == "missing" and position == len(parts) - 1:
            yield part


def _holds(here: Any, part: Any) -> bool:
    if isinstance(here, Mapping):
        return part in here
    return isinstance(here, list) and isinstance(part, int) and part < len(here)


def _beside(path: Sequence[str], field: str) -> str:
    """The field that a part's own check names, after where that part is: `metrics.0` and `metric.margin`."""
    known = ".".join(path)
    if not known or field == known or field.startswith(f"{known}."):
        return field
    inner = field.partition(".")[2] if path[-1].isdigit() or field.split(".", maxsplit=1)[0] == path[-1] else field
    return f"{known}.{inner}" if inner else known


def _allowed(finding: Finding, path: Sequence[str], plain: Any, schema: Schema, findings: Sequence[Finding]) -> str:
    kind = finding["type"]
    if kind == "extra_forbidden":
        return checks.fields_in_words(path[-1], _fields_at(path[:-1], plain, schema))
    if kind == "value_error":
        return str(finding["ctx"]["error"])
    if kind == "missing":
        return _WORDS[kind]({}) + _meant(path, plain, schema)
    said = _WORDS[kind](finding.get("ctx", {})) if kind in _WORDS else str(finding["msg"])
    alternatives = [each["type"] for each in findings]
    if kind == "string_type" and "model_type" in alternatives:
        return "text, or a mapping with `function`"
    return said


def _meant(path: Sequence[str], plain: Any, schema: Schema) -> str:
    """A field beside the missing one that there is none of, and that is spelt like it; in words, or nothing."""
    here = plain
    for part in path[:-1]:
        here = here[int(part) if isinstance(here, list) else part]
    strangers = [str(name) for name in here if name not in _fields_at(path[:-1], plain, schema)]
    near = get_close_matches(path[-1], strangers, n=1)
    return f"; is {near[0]!r} meant to be it?" if near else ""


def _listed(quoted: str) -> str:
    """`'a', 'b' or 'c'`, as pydantic lists them, without the quotes."""
    return ", ".join(part.strip(" '") for part in quoted.replace(" or ", ", ").split(","))


# --- the fields that there are --------------------------------------------------------------------------------------


def _fields_at(path: Sequence[str], plain: Any, schema: Schema) -> list[str]:
    """Names of the fields that a mapping of the spec may have."""
    node, here = _chosen(schema, plain, schema), plain
    for part in path:
        key: Any = int(part) if isinstance(here, list) else part
        here = here[key]
        below = node.get("items") if isinstance(key, int) else node.get("properties", {}).get(part)
        named = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        node = _chosen(below or named[0] or {}, here, schema)
    return sorted(node.get("properties", {}))


def _chosen(node: Any, given: Any, schema: Schema) -> Schema:
    """A node of the schema without references, and of its alternatives the one that is meant."""
    if "$ref" in node:
        return _chosen(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], given, schema)
    options = [_chosen(option, given, schema) for option in (*node.get("oneOf", ()), *node.get("anyOf", ()))]
    mappings = [option for option in options if "properties" in option]
    if not mappings:
        return next((option for option in options if "additionalProperties" in option), node)
    kind = given.get("kind") if isinstance(given, Mapping) else None
    return next((option for option in mappings if kind in _kinds(option)), mappings[0])


def _kinds(option: Schema) -> Sequence[Any]:
    kind = option["properties"].get("kind", {})
    return [*kind.get("enum", ()), kind.get("const")]
