"""`DynamicModelRegistry`: which versions exist, which one is active, and what was active before."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from abswitch import checks
from abswitch.clock import Clock
from abswitch.domain import EMPTY, ModelConfig, ModelVersion, VersionKey
from abswitch.errors import DuplicateVersion, InvalidInput, SwitchRefused, UnknownModel, UnknownVersion
from abswitch.serving.hub import pinned
from abswitch.serving.lineage import Book, HistoryEntry, What, checked_alias


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """This version became the active one."""

    version: str | None
    at_s: float
    operation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryStats:
    """Counts over all models."""

    models: int
    versions: int
    aliases: int
    deregistered: int
    entries: int


@dataclass(slots=True)
class _Model:
    versions: dict[str, ModelVersion] = field(default_factory=dict)
    book: Book = field(default_factory=Book)


class DynamicModelRegistry:
    """Versions by model, in order of registration. Safe to call from any thread.

    Args:
        clock: for the time of registration.
        check: called with a version before it is admitted; raises to refuse it.
        keep: writes a version down; raises to refuse it.
        note: takes every entry of the history, after it happened; must not block for long.
        in_use: why a version cannot be deregistered now; None when it can.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        check: Callable[[ModelVersion], None] = lambda _: None,
        keep: Callable[[ModelVersion], object] = lambda _: None,
        note: Callable[[HistoryEntry], object] = lambda _: None,
        in_use: Callable[[VersionKey], str | None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._check = check
        self._keep = keep
        self._note = note
        self._in_use = in_use
        self._switch: Callable[[str, str], bool] | None = None
        self._models: dict[str, _Model] = {}
        self._restored: set[VersionKey] = set()
        self._lock = threading.Lock()

    def restore(self, versions: Iterable[ModelVersion], history: Iterable[HistoryEntry] = ()) -> None:
        """Take over what an earlier process knew, as it was; nothing is checked or loaded.

        Args:
            history: entries of all models, oldest first.
        """
        with self._lock:
            for version in versions:
                self._models.setdefault(version.model_id, _Model()).versions[version.version] = version
                self._restored.add(version.key)
            for entry in history:
                self._models.setdefault(entry.model_id, _Model()).book.add(entry)
            for model in self._models.values():
                for gone in model.book.gone & model.versions.keys():
                    del model.versions[gone]

    def register_model(
        self,
        model_config: ModelConfig | Mapping[str, Any],
        version: str,
        *,
        metadata: Mapping[str, Any] = EMPTY,
        pin_revision: bool = False,
    ) -> str:
        """Register a version; nothing is loaded yet.

        Args:
            model_config: what to serve and how, or a dictionary of `ModelConfig`'s fields.
            version: its name, unique within the model.
            metadata: anything worth keeping beside it; JSON values.
            pin_revision: of a hub id, ask now which commit its revision means, and serve that one from then on. Blocks.

        Returns:
            The model's id. A version of an earlier process may be registered again as it was: it is the same one.

        Raises:
            DuplicateVersion: the model already has that version, or had another one of that name in an earlier process.
            BadModelSource: the folder is missing, has no config, only pickled weights, or wants to run its own code.
            InvalidInput: any other malformed value.
        """
        config = ModelConfig.of(model_config)
        if checks.flag("pin_revision", pin_revision):
            config = pinned(config)
        checks.name("version", version)
        if not isinstance(metadata, Mapping):
            raise InvalidInput("metadata", metadata, "a dictionary")
        candidate = ModelVersion(
            version=version,
            config=config,
            metadata=MappingProxyType(dict(metadata)),
            registered_at_s=self._clock.wall_s(),
        )
        if self._is_restored(candidate):
            return config.model_id
        self._refuse_duplicate(candidate)
        self._check(candidate)
        with self._lock:
            self._refuse_duplicate(candidate)  # again: another thread may have been quicker
            self._keep(candidate)
            self._models.setdefault(config.model_id, _Model()).versions[version] = candidate
        self._write(config.model_id, version, What.REGISTERED)
        return config.model_id

    def _is_restored(self, candidate: ModelVersion) -> bool:
        if candidate.key not in self._restored or candidate.version not in self._models[candidate.model_id].versions:
            return False
        was = self._models[candidate.model_id].versions[candidate.version].config.to_dict()
        now = candidate.config.to_dict()
        changed = [name for name in now if now[name] != was.get(name)]
        if changed:
            raise DuplicateVersion(
                "version",
                candidate.version,
                f"a name not yet taken: an earlier process registered this one with another {', '.join(changed)}, and "
                f"what was recorded under it would be mixed up",
            )
        return True

    def _refuse_duplicate(self, candidate: ModelVersion) -> None:
        model = self._models.get(candidate.model_id)
        if model is not None and candidate.version in model.versions:
            taken = ", ".join(model.versions)
            raise DuplicateVersion("version", candidate.version, f"a name not yet taken (taken: {taken})")

    def resolve_model(self, model_id: str | None = None) -> str:
        """The model meant: the one named, or the only one there is.

        Raises:
            UnknownModel: it is not registered, or none was named and there is not exactly one.
        """
        if model_id is None:
            if len(self._models) == 1:
                return next(iter(self._models))
            raise UnknownModel("model_id", None, f"a name, as there is not exactly one model; {_known(self._models)}")
        if model_id not in self._models:
            raise UnknownModel("model_id", model_id, _known(self._models, model_id))
        return model_id

    def get(self, model_id: str, version: str) -> ModelVersion:
        """One version, by its name or by an alias (`champion`, `challenger`, or one of your own).

        Raises:
            UnknownModel, UnknownVersion: naming what there is.
        """
        model = self._models[self.resolve_model(model_id)]
        name = version if version in model.versions else model.book.all_aliases.get(version, version)
        if name not in model.versions:
            raise UnknownVersion("version", version, _known([*model.versions, *model.book.all_aliases], version))
        return model.versions[name]

    def list_models(self) -> tuple[str, ...]:
        """Ids of all models."""
        return tuple(self._models)

    def get_model_versions(self, model_id: str | None = None) -> tuple[ModelVersion, ...]:
        """All versions of a model, oldest first."""
        return tuple(self._models[self.resolve_model(model_id)].versions.values())

    def get_registry_stats(self) -> RegistryStats:
        """Counts over all models."""
        models = self._models.values()
        return RegistryStats(
            models=len(self._models),
            versions=sum(len(model.versions) for model in models),
            aliases=sum(len(model.book.all_aliases) for model in models),
            deregistered=sum(len(model.book.gone) for model in models),
            entries=sum(len(model.book.entries) for model in models),
        )

    # --- aliases, tags, history -------------------------------------------------------------------------------------

    def aliases(self, model_id: str | None = None) -> dict[str, str]:
        """Alias → version; `champion` is the active version, `challenger` the target of the operation under way."""
        return self._book(model_id).all_aliases

    def set_alias(self, alias: str, version: str, *, model_id: str | None = None) -> None:
        """Point an alias at a version; wherever a version is asked for, the alias will do.

        Raises:
            InvalidInput: the alias is a version's name, or follows the switches by itself.
        """
        model = self.resolve_model(model_id)
        name = checked_alias(alias)
        if name in self._models[model].versions:
            raise InvalidInput("alias", name, "a name that no version has")
        self._write(model, self.get(model, version).version, What.ALIASED, {"alias": name})

    def delete_alias(self, alias: str, *, model_id: str | None = None) -> None:
        """Remove an alias.

        Raises:
            InvalidInput: there is no such alias.
        """
        model = self.resolve_model(model_id)
        name = checked_alias(alias)
        if name not in self._book(model).aliases:
            raise InvalidInput("alias", name, _known(self._book(model).aliases, name))
        self._write(model, None, What.ALIASED, {"alias": name})

    def tags(self, version: str, *, model_id: str | None = None) -> dict[str, str]:
        """The tags of a version."""
        model = self.resolve_model(model_id)
        return dict(self._book(model).tags.get(self.get(model, version).version, {}))

    def set_tag(self, version: str, key: str, value: str | None, *, model_id: str | None = None) -> None:
        """Set a tag of a version; None removes it. Unlike metadata, which belong to the version, tags change."""
        model = self.resolve_model(model_id)
        if value is not None and not isinstance(value, str):
            raise InvalidInput("value", value, "a text, or None to remove the tag")
        detail = {"key": checks.name("key", key), "value": value}
        self._write(model, self.get(model, version).version, What.TAGGED, detail)

    def active_version(self, model_id: str | None = None) -> str | None:
        """The version that serves the model, or None before its first deployment."""
        return self._book(model_id).active

    def history(self, model_id: str | None = None) -> tuple[Activation, ...]:
        """Every change of the active version, oldest first; `full_history` has everything else, too."""
        entries = (entry for entry in self._book(model_id).entries if entry.what is What.ACTIVATED)
        return tuple(Activation(version=e.version, at_s=e.at_s, operation_id=e.operation_id or "") for e in entries)

    def full_history(self, model_id: str | None = None) -> tuple[HistoryEntry, ...]:
        """Everything that happened to a model: registrations, activations, aliases, tags, requests; oldest first."""
        return tuple(self._book(model_id).entries)

    def previous_version(self, model_id: str | None = None) -> str | None:
        """The version that was active before the present one and is still registered; what a rollback goes back to."""
        book = self._book(model_id)
        return book.served_before(book.active)

    def deregister_model(self, model_id: str, version: str) -> None:
        """Take a version out of the registry; its rows and its history stay, and its name may be used again.

        Raises:
            SwitchRefused: it is active, takes part in an operation, or requests are on it.
        """
        registered = self.get(model_id, version)
        if registered.version == self.active_version(model_id):
            raise SwitchRefused(f"{registered} is the active version; switch to another one first")
        reason = self._in_use(registered.key)
        if reason is not None:
            raise SwitchRefused(f"{registered} cannot be deregistered: {reason}")
        with self._lock:
            self._models[model_id].versions.pop(registered.version, None)
            self._restored.discard(registered.key)
        self._write(model_id, registered.version, What.DEREGISTERED)

    # --- switching --------------------------------------------------------------------------------------------------

    def switch_model(self, model_id: str, version: str) -> bool:
        """Switch a model to a version at once, and wait until it serves; False when it did not come to. Blocks.

        Raises:
            UnknownModel, UnknownVersion, SwitchRefused: as `engine.start_switch`.
        """
        if self._switch is None:
            raise SwitchRefused("this registry belongs to no engine")
        return self._switch(self.resolve_model(model_id), self.get(model_id, version).version)

    def bind(self, switch: Callable[[str, str], bool]) -> None:
        """Tell how a switch is made; the engine alone calls this."""
        self._switch = switch

    def activate(self, model_id: str, version: str | None, operation_id: str) -> None:
        """Record that a version became the active one; the switcher alone calls this."""
        if version is not None:
            self.get(model_id, version)
        if self.active_version(model_id) != version:
            self._write(model_id, version, What.ACTIVATED, operation_id=operation_id)

    def challenge(self, model_id: str, version: str | None, operation_id: str) -> None:
        """Record which version is the target of the operation under way; the switcher alone calls this."""
        if self._book(model_id).challenger != version:
            self._write(model_id, version, What.CHALLENGED, operation_id=operation_id)

    def link(self, model_id: str, name: str) -> None:
        """Record the registered model of MLflow whose aliases follow this model's."""
        if self._book(model_id).linked != name:
            self._write(model_id, None, What.LINKED, {"name": name})

    def linked(self, model_id: str) -> str | None:
        """The registered model of MLflow whose aliases follow this model's."""
        return self._book(model_id).linked

    def requested(self, model_id: str, version: str, operation_id: str, metadata: Mapping[str, Any]) -> None:
        """Record what a caller had to say about a switch."""
        self._write(model_id, version, What.REQUESTED, metadata, operation_id)

    def _book(self, model_id: str | None) -> Book:
        return self._models[self.resolve_model(model_id)].book

    def _write(
        self,
        model_id: str,
        version: str | None,
        what: What,
        detail: Mapping[str, Any] = EMPTY,
        operation_id: str | None = None,
    ) -> None:
        entry = HistoryEntry(
            model_id=model_id,
            version=version,
            what=what,
            detail=MappingProxyType(dict(detail)),
            operation_id=operation_id,
            at_s=self._clock.wall_s(),
        )
        with self._lock:
            self._models[model_id].book.add(entry)
        self._note(entry)


def _known(names: Iterable[str], given: str | None = None) -> str:
    options = list(names)
    if not options:
        return "none is registered yet; use registry.register_model(...)"
    close = difflib.get_close_matches(given or "", options, n=1)
    return f"one of {', '.join(options)}" + (f" (did you mean {close[0]!r}?)" if close else "")
