"""`Book`: what the registry knows, how it is looked up, and how an entry gets into it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from typing import NamedTuple

from abswitch.clock import Clock
from abswitch.domain import ModelVersion
from abswitch.records import Action, HistoryEntry
from abswitch.registries import ModelSnapshot, VersionSnapshot
from abswitch.serving import references
from abswitch.serving.intents import Intent, RegistryStats
from abswitch.serving.lineage import Lineage

Keep = Callable[[HistoryEntry, ModelVersion | None], object]
Note = Callable[[HistoryEntry], Future[None] | None]


class Told(NamedTuple):
    """What only some entries tell; see `HistoryEntry`."""

    alias: str | None = None
    previous: str | None = None
    operation_id: str | None = None


_NOTHING = Told()


class Book:
    """Models by id. Reading is safe from any thread and waits for nothing.

    Args:
        keep: writes an entry down, with the version that it registers, and returns once that is safe; raises to refuse.
        note: has an entry written down soon; must neither wait nor raise.
    """

    def __init__(self, clock: Clock, keep: Keep, note: Note) -> None:
        self._clock = clock
        self._keep, self._note = keep, note
        self._models: dict[str, Lineage] = {}
        self._on_change: Callable[[str], None] = lambda _: None
        # Changes by hand wait for the disk, one after the other; what the switcher tells must never wait for those.
        self._by_hand, self._state = threading.RLock(), threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.in_words()}>"

    def in_words(self) -> str:
        """Its models, each with its active version."""
        lineages = ((model_id, self._models[model_id]) for model_id in self.list_models())
        told = (f"{model_id} ({_count(one)}, {one.active or 'none'} active)" for model_id, one in lineages)
        return ", ".join(told) or "no model is registered"

    def resolve_model(self, model_id: str | None = None) -> str:
        """The model meant: the one named, or the only one there is.

        Raises:
            UnknownModel: it is not registered, or none was named and there is not exactly one.
        """
        return references.model_among(self._models, model_id)

    def resolve(self, reference: str, model_id: str | None = None) -> ModelVersion:
        """The version that a name, an alias, `model@alias` or `model:version` means now.

        Raises:
            UnknownModel, UnknownVersion: naming what there is.
        """
        if model_id is None and isinstance(reference, str):
            named, _ = references.split(reference, self.list_models())
            if named is not None:
                return self.get(named, reference)
        return self.get(self.resolve_model(model_id), reference)

    def get(self, model_id: str, version: str) -> ModelVersion:
        """One version, by name or alias.

        Raises:
            UnknownModel, UnknownVersion: naming what there is.
        """
        lineage = self._lineage(model_id)
        found = references.find(lineage, model_id, version)
        if found is None:
            raise references.unknown(lineage, version, model_id)
        return found

    def list_models(self) -> tuple[str, ...]:
        """Ids of all models."""
        return tuple(model_id for model_id, lineage in tuple(self._models.items()) if lineage.versions)

    def get_model_versions(self, model_id: str | None = None) -> tuple[ModelVersion, ...]:
        """All versions of a model, oldest first."""
        return tuple(self._lineage(model_id).versions.values())

    def _lineage(self, model_id: str | None) -> Lineage:
        return self._models[self.resolve_model(model_id)]

    def active_version(self, model_id: str | None = None) -> str | None:
        """The version that serves the model, or None before its first deployment."""
        return self._lineage(model_id).active

    def previous_version(self, model_id: str | None = None) -> str | None:
        """The version that was active before the one that is now; None when there was none, or it is gone."""
        return self._lineage(model_id).previously_active()

    def way_back(self, model_id: str | None = None) -> tuple[str | None, set[str]]:
        """The version that `rollback` goes to, None without one; and those it passes over, as they were rolled back."""
        return self._lineage(model_id).way_back()

    def last_active(self, model_id: str, *, besides: Container[str] = ()) -> str | None:
        """The registered version that was active last, leaving some out."""
        lineage = self._lineage(model_id)
        found = (entry.version for entry in reversed(lineage.activations))
        return next((one for one in found if one in lineage.versions and one not in besides), None)

    def history(self, model_id: str | None = None) -> tuple[HistoryEntry, ...]:
        """Every change of the active version, oldest first; `entry.version` is None where none served any more."""
        return tuple(self._lineage(model_id).activations)

    def aliases(self, model_id: str | None = None) -> dict[str, str]:
        """Alias → version. `champion` is the active version, `challenger` the candidate of the switch under way."""
        return self._lineage(model_id).aliases

    def pointers(self, model_id: str) -> dict[str, str]:
        """Aliases that were set by hand."""
        return dict(self._lineage(model_id).pointers)

    def tags(self, version: str, *, model_id: str | None = None) -> dict[str, str]:
        """The tags of a version."""
        meant = self.resolve(version, model_id)
        return dict(self._lineage(meant.model_id).tags.get(meant.version, {}))

    # --- looking back -----------------------------------------------------------------------------------------------

    def full_history(self, model_id: str | None = None, *, version: str | None = None) -> tuple[HistoryEntry, ...]:
        """Everything that happened to a model, or to one of its versions (also one that is gone), oldest first."""
        if model_id is None or model_id not in self._models:
            model_id = self.resolve_model(model_id)
        entries = sorted(self._models[model_id].entries, key=lambda entry: entry.sequence)
        return tuple(entry for entry in entries if version is None or version in (entry.version, entry.previous))

    def get_registry_stats(self) -> RegistryStats:
        """Counts over all models."""
        lineages = {model_id: self._models[model_id] for model_id in self.list_models()}
        actions = Counter(entry.action for one in tuple(self._models.values()) for entry in tuple(one.entries))
        return RegistryStats(
            models=len(lineages),
            versions=sum(len(one.versions) for one in lineages.values()),
            deregistered=sum(len(one.gone) for one in self._models.values()),
            aliases=sum(len(one.aliases) for one in lineages.values()),
            promotions=actions[Action.PROMOTED],
            rollbacks=actions[Action.ROLLED_BACK],
            entries=actions.total(),
            active={model_id: one.active for model_id, one in lineages.items()},
        )

    def snapshot(self, model_id: str) -> ModelSnapshot:
        """A model as other registries are told of it."""
        with self._state:
            lineage = self._models[model_id]
            every = [(version, True) for version in lineage.versions.values()]
            every += [(version, False) for version in lineage.gone.values()]
            activated = {entry.version: entry for entry in lineage.activations}
            return ModelSnapshot(
                model_id=model_id,
                revision=len(lineage.entries),
                versions=tuple(
                    VersionSnapshot(
                        version=one,
                        tags=dict(lineage.tags.get(one.version, {})),
                        registered=registered,
                        verdict=activated[one.version].reason if one.version in activated else None,
                        operation_id=activated[one.version].operation_id if one.version in activated else None,
                    )
                    for one, registered in sorted(every, key=lambda pair: pair[0].registered_at_s)
                ),
                aliases=lineage.aliases,
                active=lineage.active,
            )

    def link(self, model_id: str) -> Mapping[str, str] | None:
        """`name` and `uri` of the registered model that this one is kept in step with."""
        return self._models[model_id].link

    # --- writing ----------------------------------------------------------------------------------------------------

    def _record(
        self,
        model_id: str,
        action: Action,
        version: str | None,
        intent: Intent,
        told: Told = _NOTHING,
        *,
        registered: ModelVersion | None = None,
    ) -> None:
        """An entry made by hand: safe before it counts."""
        with self._state:
            lineage = self._models.setdefault(model_id, Lineage())
            entry = self._next(lineage, model_id, action, version, intent, told)
        self._keep(entry, registered)
        with self._state:
            lineage.apply(entry, registered)
        self._on_change(model_id)

    def _tell(
        self,
        model_id: str,
        action: Action,
        version: str | None,
        intent: Intent,
        told: Told = _NOTHING,
        *,
        at_s: float | None = None,
    ) -> Future[None] | None:
        """An entry about what has happened: it counts at once, and nobody waits for it."""
        with self._state:
            lineage = self._models[model_id]
            entry = self._next(lineage, model_id, action, version, intent, told, at_s)
            lineage.apply(entry)
            safe = self._note(entry)
        self._on_change(model_id)
        return safe

    def _next(
        self,
        lineage: Lineage,
        model_id: str,
        action: Action,
        version: str | None,
        intent: Intent,
        told: Told,
        at_s: float | None = None,
    ) -> HistoryEntry:
        lineage.sequence += 1
        return HistoryEntry(
            model_id=model_id,
            sequence=lineage.sequence,
            action=action.value,
            version=version,
            previous=told.previous,
            alias=told.alias,
            actor=intent.actor,
            reason=intent.reason,
            operation_id=told.operation_id,
            detail={} if action is Action.REGISTERED else dict(intent.metadata),
            at_s=self._clock.wall_s() if at_s is None else at_s,
        )


def _count(lineage: Lineage) -> str:
    return f"{len(lineage.versions)} version{'' if len(lineage.versions) == 1 else 's'}"
