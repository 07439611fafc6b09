"""Where values come from: environment variables and a file, each value with the place it was read at."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.rollout.limits import LEVELS, METRICS, checked_level, levels_of
from abswitch.settings.fields import PREFIX, Setting, is_none

THRESHOLDS = "alert_thresholds"
FILE_VARIABLE = PREFIX + "CONFIG"
_SHORT = {"LATENCY": "latency_p95", "MEMORY": "memory_usage", "FIRST_TOKEN": "first_token_p95"}
_SUFFIXES = (".toml", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Found:
    """A value that was checked, and where it came from."""

    value: Any
    where: str


Key = str | tuple[str, str]
"""A setting's name, or (metric, level) of a threshold."""
Findings = dict[Key, Found]


def variables_of(name: str, described: Setting) -> tuple[str, ...]:
    """Environment variables of a setting, the one to use first."""
    return tuple(PREFIX + one for one in (*described.variables, *described.scaled, name.upper()))


def threshold_variables(metric: str, level: str) -> tuple[str, ...]:
    """Environment variables of one level of a metric, the one to use first."""
    short = [one for one, meant in _SHORT.items() if meant == metric]
    return tuple(f"{PREFIX}{one}_{level.upper()}" for one in (*short, metric.upper()))


# --- environment ------------------------------------------------------------------------------------------------------


def from_environment(environ: Mapping[str, str], settings: Mapping[str, Setting]) -> Findings:
    """What the environment says.

    Raises:
        InvalidInput: a variable that does not exist, cannot be read, or says again what another one says.
    """
    _refuse_unknown(environ, settings)
    found: Findings = {}
    for key, names in _all_variables(settings):
        given = [name for name in names if name in environ]
        if len(given) > 1:
            raise InvalidInput(given[1], environ[given[1]], f"only one of {' and '.join(given)}, which mean the same")
        for name in given:
            found[key] = Found(_read(name, environ[name], key, settings), name)
    return found


def _all_variables(settings: Mapping[str, Setting]) -> Iterator[tuple[Key, tuple[str, ...]]]:
    for name, described in settings.items():
        if name != THRESHOLDS:
            yield name, variables_of(name, described)
    for metric in METRICS:
        for level in LEVELS:
            yield (metric, level), threshold_variables(metric, level)


def _refuse_unknown(environ: Mapping[str, str], settings: Mapping[str, Setting]) -> None:
    known = {FILE_VARIABLE, *(one for _, names in _all_variables(settings) for one in names)}
    for name in environ:
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
            hint = f"did you mean {' or '.join(close)}?" if close else "docs/settings.md lists them"
            # Its value is not repeated: it may be a secret under a misspelt name.
            raise InvalidInput(name, "(hidden)", f"only variables that exist ({hint})")


def _read(name: str, text: str, key: Key, settings: Mapping[str, Setting]) -> Any:
    if isinstance(key, tuple):
        return checked_level(name, key[0], _number(name, text, key[0]))
    described = settings[key]
    shown = "(hidden)" if described.secret else described.kind.shown(text)
    try:
        value = described.kind.parse(text.strip())
        scale = described.scaled.get(name.removeprefix(PREFIX))
        return described.kind.check(name, value if scale is None or value is None else value * scale)
    except InvalidInput as refused:
        # As it was written, not as it was converted.
        raise InvalidInput(name, shown, refused.allowed) from None
    except ValueError:
        raise InvalidInput(name, shown, described.kind.words) from None


def _number(name: str, text: str, metric: str) -> float | None:
    if is_none(text):
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(name, text, f"a number ({METRICS[metric].unit}), or none") from None


# --- file -------------------------------------------------------------------------------------------------------------


def from_file(given: Path | str, settings: Mapping[str, Setting], *, named_by: str = "path") -> Findings:
    """What a TOML or YAML file says.

    Args:
        named_by: what gave the path, for the error.

    Raises:
        InvalidInput: it is not there, cannot be read, or has a key that does not exist or a value outside its range.
    """
    path = _path(given, named_by)
    entries = _entries(path, named_by)
    checks.known_fields(path.name, entries, settings)
    found: Findings = {}
    for name, value in entries.items():
        where = f"{path.name}: {name}"
        if name == THRESHOLDS:
            for metric, levels in levels_of(where, _with_nones(value)).items():
                found |= {(metric, level): Found(at, f"{where}.{metric}") for level, at in levels.items()}
        else:
            kind = settings[name].kind
            found[name] = Found(kind.check(where, None if kind.is_optional and is_none(value) else value), where)
    return found


def _with_nones(thresholds: object) -> object:
    """With None wherever a limit or one of its levels is the word `none`: TOML has no null."""
    if isinstance(thresholds, Mapping):
        return {name: None if is_none(one) else _with_nones(one) for name, one in thresholds.items()}
    if isinstance(thresholds, list):
        return [None if is_none(one) else one for one in thresholds]
    return thresholds


def _path(given: object, named_by: str) -> Path:
    """As it was given in what is refused: an empty text is no path, and `Path` would make the folder here of it."""
    is_text = isinstance(given, Path | str)
    if not isinstance(given, Path | str) or Path(given).suffix.lower() not in _SUFFIXES:
        shown = str(given) if is_text else given
        raise InvalidInput(named_by, shown, f"a file that ends in {', '.join(_SUFFIXES)}")
    return Path(given)


def _entries(path: Path, named_by: str) -> Mapping[str, Any]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # not UTF-8, or a path that no file can have
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(named_by, str(path), f"a file that can be read ({reason})") from error
    entries = _toml(path, content) if path.suffix.lower() == ".toml" else _yaml(path, content)
    if not isinstance(entries, Mapping):
        raise InvalidInput(path.name, entries, "settings by name")
    return entries


def _toml(path: Path, content: str) -> Any:
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(str(path), str(error), "valid TOML") from error


def _yaml(path: Path, content: str) -> Any:
    import yaml

    from abswitch import plainyaml

    try:
        entries = plainyaml.load(content)
    except yaml.YAMLError as error:
        raise InvalidInput(str(path), plainyaml.mistake(error), "valid YAML") from None  # its text shows the line
    return {} if entries is None else entries
