"""Names of versions and aliases: which are allowed, and what a reference such as `bot@champion` means."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping

from abswitch import checks
from abswitch.domain import ModelVersion
from abswitch.errors import DuplicateVersion, InvalidInput, UnknownModel, UnknownVersion
from abswitch.serving.lineage import CHALLENGER, CHAMPION, Lineage

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")
_SEPARATORS = ("@", ":")


def known(names: Iterable[str], given: str | None = None) -> str:
    """What would have been accepted, in words, with the closest match."""
    options = list(names)
    if not options:
        return "none is registered yet; use registry.register_model(...)"
    close = difflib.get_close_matches(given or "", options, n=1)
    return f"one of {', '.join(options)}" + (f" (did you mean {close[0]!r}?)" if close else "")


def removable(lineage: Lineage, alias: str, model_id: str) -> str:
    """Which aliases may be removed by hand, in words."""
    if lineage.pointers:
        return known(lineage.pointers, alias)
    moving = f"; {', '.join(lineage.aliases)} moves by itself" if lineage.aliases else ""
    return f"an alias that was set by hand, and model {model_id!r} has none{moving}"


def split(reference: str, models: Iterable[str]) -> tuple[str | None, str]:
    """The model that a reference names itself (`bot@champion`, `bot:v2`), if any, and the rest."""
    for model_id in sorted(models, key=len, reverse=True):
        for separator in _SEPARATORS:
            if reference.startswith(model_id + separator):
                return model_id, reference.removeprefix(model_id + separator)
    return None, reference


def find(lineage: Lineage, model_id: str, reference: object) -> ModelVersion | None:
    """The version meant, by its name, an alias, or either after the model's own name; a version's name comes first."""
    if not isinstance(reference, str):
        return None
    for name in (reference, split(reference, [model_id])[1]):
        if name in lineage.versions:
            return lineage.versions[name]
        target = lineage.aliases.get(name)
        if target in lineage.versions:
            return lineage.versions[target]
    return None


def unknown(lineage: Lineage, reference: object, model_id: str) -> UnknownVersion:
    """The error that says what there is."""
    name = split(reference, [model_id])[1] if isinstance(reference, str) else str(reference)
    aliases = ", ".join(f"{alias} → {target}" for alias, target in lineage.aliases.items())
    allowed = known(lineage.versions, name) + (f"; aliases: {aliases}" if aliases else "")
    if name in (CHAMPION, CHALLENGER):
        told = "no version is active" if name == CHAMPION else "no switch is under way and none was set by hand"
        allowed += f"; there is no {name} of model {model_id!r}: {told}"
    return UnknownVersion("version", reference, allowed)


def model_among(models: Mapping[str, Lineage], model_id: str | None) -> str:
    """The model meant: the one named, or the only one there is.

    Raises:
        UnknownModel: it is not registered, or none was named and there is not exactly one.
    """
    names = [name for name, lineage in models.items() if lineage.versions]
    if model_id is None:
        if len(names) == 1:
            return names[0]
        raise UnknownModel("model_id", None, f"a name, as there is not exactly one model; {known(names)}")
    if model_id not in names:
        raise UnknownModel("model_id", model_id, known(names, str(model_id)))
    return model_id


def check_version_name(lineage: Lineage | None, version: object) -> str:
    """A name for a new version: well-formed, and no alias's.

    Raises:
        InvalidInput: it is not.
    """
    name = checks.name("version", version)
    if name in (CHAMPION, CHALLENGER) or (lineage is not None and name in lineage.pointers):
        raise InvalidInput("version", name, "a name that is no alias")
    return name


def check_alias(lineage: Lineage, alias: object) -> str:
    """An alias that may be set or removed by hand.

    Raises:
        InvalidInput: it is malformed, a version's name, or follows the switches.
    """
    if not isinstance(alias, str) or not _ALIAS.match(alias):
        raise InvalidInput("alias", alias, "1 to 128 letters, digits, _ or -, beginning with a letter or digit")
    if alias == CHAMPION:
        raise InvalidInput("alias", alias, "any other name: champion is the active version and moves with promotions")
    if alias == CHALLENGER and lineage.candidacy is not None:
        raise InvalidInput("alias", alias, f"another name while operation {lineage.candidacy.operation_id} runs")
    if alias in lineage.versions or alias in lineage.gone:
        raise InvalidInput("alias", alias, "a name that no version has")
    return alias


def refuse_other(was: ModelVersion, candidate: ModelVersion, taken: Iterable[str]) -> None:
    """The candidate is what is registered under its name.

    Raises:
        DuplicateVersion: it is not.
    """
    changed = _changes(was.config.to_dict() | {"metadata": was.metadata}, candidate, metadata=candidate.metadata)
    if changed:
        allowed = f"a name not yet taken (taken: {', '.join(taken)}), or this version as it is: {_differ(changed)}"
        raise DuplicateVersion("version", candidate.version, allowed)


def refuse_gone(was: ModelVersion, candidate: ModelVersion, why_kept: Callable[[], str | None]) -> None:
    """A name stays with its configuration also when its version is gone, where something is known under it.

    Args:
        why_kept: what that is; None where there is nothing.

    Raises:
        DuplicateVersion: it had another one.
    """
    changed = _changes(was.config.to_dict(), candidate)
    if changed and (reason := why_kept()) is not None:
        allowed = f"a name not yet taken, or the configuration it had before it was deregistered: {_differ(changed)}"
        raise DuplicateVersion("version", candidate.version, f"{allowed}; it stays taken, as {reason}")


def _changes(was: Mapping[str, object], candidate: ModelVersion, **besides: object) -> list[str]:
    """Fields that differ; what the store gave back is compared as it was written, e.g. tuples as lists."""
    wanted = candidate.config.to_dict() | besides
    return [name for name in wanted if _written(wanted[name]) != _written(was.get(name))]


def _written(value: object) -> str:
    try:
        return json.dumps(
            value, sort_keys=True, default=lambda one: dict(one) if isinstance(one, Mapping) else str(one)
        )
    except (TypeError, ValueError):  # not of the kind that can be registered
        return repr(value)


def _differ(changed: list[str]) -> str:
    return f"{', '.join(changed)} {'differs' if len(changed) == 1 else 'differ'}"
