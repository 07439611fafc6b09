"""`DynamicModelRegistry`: which versions exist, which one is active, and everything that happened to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from abswitch import checks
from abswitch.clock import Clock
from abswitch.domain import EMPTY, ModelConfig, ModelVersion, VersionKey
from abswitch.errors import AbswitchError, InvalidInput, SwitchRefused
from abswitch.records import Action, HistoryEntry
from abswitch.registries import ExportStatus, ImportedModel
from abswitch.rollout.operation import Operation
from abswitch.serving import references
from abswitch.serving.book import Book, Keep, Note, Told
from abswitch.serving.intents import RECOVERY, REGISTRY, SWITCHER, USER, Intent, Surroundings
from abswitch.serving.lineage import CHALLENGER, CHAMPION, Lineage

log = logging.getLogger(__name__)


class DynamicModelRegistry(Book):
    """Versions by model, in order of registration. Safe to call from any thread.

    Wherever a version is accepted, so are an alias and `model@alias`; a version's name comes first.

    Args:
        check: called with a version before it is admitted; raises to refuse it.
        resolve: the commit behind a hub id; raises to refuse the version.
        keep: writes an entry down, with the version that it registers, and returns once that is safe; raises to refuse.
        note: has an entry written down soon; must neither wait nor raise.
        in_use: why a version cannot go now, or None.
        recorded: whether requests to a version, or answers of it, are recorded.
        max_versions: registered versions of one model at most; what was active longest ago goes first, and nothing
            that is active, was active before that, is gone back to next, is a candidate, has an alias or is in use.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        check: Callable[[ModelVersion], None] = lambda _: None,
        resolve: Callable[[ModelConfig], str | None] = lambda _: None,
        keep: Keep = lambda *_: None,
        note: Note = lambda _: None,
        in_use: Callable[[VersionKey], str | None] = lambda _: None,
        recorded: Callable[[VersionKey], bool] = lambda _: False,
        max_versions: int = 50,
    ) -> None:
        super().__init__(clock, keep, note)
        self._check, self._resolve, self._in_use, self._recorded = check, resolve, in_use, recorded
        self._max_versions = checks.integer("max_version_history", max_versions, low=2)
        self._intents: dict[str, Intent] = {}
        self._surroundings: Surroundings | None = None

    def connect(self, surroundings: Surroundings, on_change: Callable[[str], None]) -> None:
        """Make the registry part of an engine; `on_change` hears of every model that changed and must not wait."""
        self._surroundings, self._on_change = surroundings, on_change

    def restore(self, versions: Iterable[ModelVersion], entries: Iterable[HistoryEntry] = ()) -> None:
        """Take over what an earlier process knew, as it was; nothing is checked or loaded."""
        by_key = {version.key: version for version in versions}
        with self._state:
            for entry in entries:
                version = by_key.get((entry.model_id, entry.version or ""))
                self._models.setdefault(entry.model_id, Lineage()).apply(entry, version)
            told = {(model_id, name) for model_id, one in self._models.items() for name in (*one.versions, *one.gone)}
            for key, version in by_key.items():
                if key not in told:
                    self._models.setdefault(version.model_id, Lineage()).versions[version.version] = version

    # --- versions ---------------------------------------------------------------------------------------------------

    def register_model(
        self,
        model_config: ModelConfig | Mapping[str, Any],
        version: str,
        *,
        metadata: Mapping[str, Any] = EMPTY,
        tags: Mapping[str, str] = EMPTY,
        pin_revision: bool = True,
        actor: str = USER,
        reason: str = "",
    ) -> str:
        """Register a version; nothing is loaded yet.

        Args:
            model_config: what to serve and how, or a dictionary of `ModelConfig`'s fields.
            version: its name, unique within the model.
            metadata: anything worth keeping beside it; JSON values. It never changes.
            tags: words that may change later, see `set_tag`.
            pin_revision: of a hub id, ask now which commit its revision means (blocks), and serve that one from then
                on; with False, whatever it means whenever it is loaded.
            actor, reason: who registers it and why, for the history.

        Returns:
            The model's id. A version may be registered again as it is (the same configuration and metadata), e.g. when
            a notebook is run again from the top: it stays as it is, at the commit found at first, and the tags are set.

        Raises:
            DuplicateVersion: the model has another version of that name, or had one that something is recorded of.
            BadModelSource: the folder is missing, has no config, only pickled weights, or wants to run its own code;
                the hub does not know the id or revision; or neither hub nor local cache can be asked.
            InvalidInput: any other malformed value, e.g. an engine argument that the backend does not know. Values of
                vLLM's own arguments are checked when it is loaded.
        """
        config = ModelConfig.of(model_config)
        references.check_version_name(self._models.get(config.model_id), version)
        intent = Intent(actor=actor, reason=reason, metadata=metadata)
        _check_tags(tags)
        checks.flag("pin_revision", pin_revision)
        candidate = ModelVersion(
            version=version,
            config=config,
            metadata=MappingProxyType(dict(metadata)),
            registered_at_s=self._clock.wall_s(),
        )
        if not self._is_known(candidate):
            self._admit(candidate, intent, pin_revision)
        for key, value in tags.items():
            self.set_tag(version, key, value, model_id=config.model_id, actor=actor)
        return config.model_id

    def _admit(self, candidate: ModelVersion, intent: Intent, pin_revision: bool) -> None:
        self._check(candidate)
        if pin_revision:
            candidate = replace(candidate, commit=self._resolve(candidate.config))
        with self._by_hand:
            if self._is_known(candidate):  # another thread was quicker
                return
            self._record(candidate.model_id, Action.REGISTERED, candidate.version, intent, registered=candidate)
        self._retire_surplus(*candidate.key)

    def _is_known(self, candidate: ModelVersion) -> bool:
        """Whether the version is registered just so.

        Raises:
            DuplicateVersion: its name is another version's.
        """
        lineage = self._models.get(candidate.model_id)
        if lineage is None:
            return False
        was, gone = lineage.versions.get(candidate.version), lineage.gone.get(candidate.version)
        if was is not None:
            references.refuse_other(was, candidate, tuple(lineage.versions))
        elif gone is not None:
            references.refuse_gone(gone, candidate, lambda: self._why_kept(lineage, candidate.key))
        return was is not None

    def _why_kept(self, lineage: Lineage, key: VersionKey) -> str | None:
        """What another configuration under the name of a version that is gone would be mixed up with."""
        if lineage.was_switched_to(key[1]):
            return "it was switched to"
        if lineage.link is not None:
            return "MLflow was told of it"
        return "answers are recorded under it" if self._recorded(key) else None

    def _retire_surplus(self, model_id: str, newest: str) -> None:
        """Called without the lock of changes by hand: the engine's loop, which is asked here, may be waiting for it."""
        if len(self._models[model_id].versions) <= self._max_versions:
            return
        retire = self.strike_surplus if self._surroundings is None else self._surroundings.retire
        for name, safe in retire(model_id, newest).items():
            try:
                if safe is not None:
                    safe.result()
            except AbswitchError as error:  # the new version is registered, whatever becomes of this one
                log.error("version %s of model %s comes back with a restart: %s", name, model_id, error)

    def deregister_model(self, model_id: str, version: str, *, actor: str = USER, reason: str = "") -> bool:
        """Forget a version and free its instance; blocks until that is done. Its history and evidence stay.

        A name that was switched to, or that answers are recorded under, stays with its configuration; any other may be
        registered anew, e.g. with an argument corrected.

        Returns:
            True.

        Raises:
            UnknownModel, UnknownVersion: naming what there is.
            SwitchRefused: it is active, a switch's candidate, pinned, being loaded, or answers requests; says which.
        """
        intent, name = Intent(actor=actor, reason=reason), self.get(model_id, version).version
        if self._surroundings is not None:
            return self._surroundings.release(model_id, name, intent)
        self.strike(model_id, name, intent)
        return True

    def strike(self, model_id: str, version: str, intent: Intent) -> Future[None] | None:
        """Take a version off the list, at once; returns what resolves when that is safe. For the engine.

        Raises:
            UnknownVersion: it is off the list already.
            SwitchRefused: it is needed.
        """
        _refuse_gone(self._models[model_id], model_id, version)
        reason = self._needed(model_id, version)
        if reason is not None:
            raise SwitchRefused(f"version {version!r} of model {model_id!r} cannot be deregistered: {reason}")
        return self._tell(model_id, Action.DEREGISTERED, version, intent)

    def strike_surplus(self, model_id: str, newest: str) -> dict[str, Future[None] | None]:
        """Take what is too many off the list, at once; returns what resolves when each is safe. For the engine.

        On its loop, where switches take their versions: none can begin between the look at what is needed and the
        strike.
        """
        lineage = self._models[model_id]
        surplus = max(0, len(lineage.versions) - self._max_versions)
        kept = {newest, lineage.previously_active(), lineage.way_back()[0], *lineage.aliases.values()}
        last_use = {entry.version: number for number, entry in enumerate(lineage.activations)}
        free = [name for name in tuple(lineage.versions) if name not in kept and self._needed(model_id, name) is None]
        leaving = sorted(free, key=lambda one: last_use.get(one, -1))[:surplus]
        intent = Intent(actor=REGISTRY, reason=f"max_version_history is {self._max_versions}")
        return {name: self._tell(model_id, Action.DEREGISTERED, name, intent) for name in leaving}

    def _needed(self, model_id: str, version: str) -> str | None:
        lineage = self._models[model_id]
        if lineage.active == version:
            return "it is the active version; switch to another one first"
        if lineage.candidacy is not None and lineage.candidacy.version == version:
            return f"it is the candidate of operation {lineage.candidacy.operation_id}"
        return self._in_use((model_id, version))

    # --- the active version -----------------------------------------------------------------------------------------

    def activate(self, model_id: str, version: str | None, operation_id: str, *, reason: str = "") -> None:
        """Record that a version became the active one; the switcher alone calls this."""
        self._activate(model_id, version, operation_id, Intent(actor=SWITCHER, reason=reason))

    def catch_up(self, activations: Iterable[HistoryEntry]) -> None:
        """Take over changes of the active version that the journal knows of and the history does not, oldest first.

        The last one of each model says what is active.
        """
        last: dict[str, HistoryEntry] = {}
        for entry in activations:
            if entry.model_id in self._models:
                last[entry.model_id] = entry
                known = self._models[entry.model_id].activations
                if not any((one.operation_id, one.version) == (entry.operation_id, entry.version) for one in known):
                    self._recovered(entry)
        for entry in last.values():
            self._recovered(entry)

    def _recovered(self, entry: HistoryEntry) -> None:
        if entry.version is not None and entry.version not in self._models[entry.model_id].versions:
            return
        intent = Intent(actor=RECOVERY, reason=entry.reason)
        self._activate(entry.model_id, entry.version, entry.operation_id or "", intent, at_s=entry.at_s)

    def _activate(
        self, model_id: str, version: str | None, operation_id: str, intent: Intent, *, at_s: float | None = None
    ) -> None:
        lineage = self._models[model_id]
        if version is not None:
            _refuse_gone(lineage, model_id, version)
        if lineage.active == version:
            return
        candidacy = lineage.candidacy
        ours = candidacy is not None and candidacy.operation_id == operation_id
        back = candidacy is not None and ours and (candidacy.is_rollback or candidacy.version != version)
        action = Action.WITHDRAWN if version is None else Action.ROLLED_BACK if back else Action.PROMOTED
        if candidacy is not None and ours and candidacy.version == version:
            intent = replace(intent, reason="; ".join(filter(None, (candidacy.why, intent.reason))))
        moved = Told(alias=CHAMPION, previous=lineage.active, operation_id=operation_id)
        self._tell(model_id, action, version, intent, moved, at_s=at_s)

    def switch_model(self, model_id: str, version: str, *, actor: str = USER, reason: str = "") -> bool:
        """Switch to a version at once and wait until it serves; blocks. `await engine.switch_model(…)` does not.

        Returns:
            True once it serves; False when it did not come to, and what served before still does (the log and the
            history say why). Nothing is done when it is active already.

        Raises:
            UnknownModel, UnknownVersion: naming what there is.
            SwitchRefused: not now, e.g. another switch holds the model.
        """
        name = self.get(model_id, version).version
        return self._engine("switch_model").switch(model_id, name, Intent(actor=actor, reason=reason))

    # --- what the switcher tells ------------------------------------------------------------------------------------

    def intend(self, operation_id: str, intent: Intent | None) -> None:
        """Say what a switch that is about to begin is for; None takes it back."""
        if intent is None:
            self._intents.pop(operation_id, None)
        else:
            self._intents[operation_id] = intent

    def moved(self, operation: Operation) -> None:
        """A switch moved: its candidate is the challenger from its first move to its last."""
        lineage = self._models[operation.model_id]
        ours = lineage.candidacy is not None and lineage.candidacy.operation_id == operation.operation_id
        told = Told(alias=CHALLENGER, operation_id=operation.operation_id)
        if operation.phase.is_final and ours:
            how = {"phase": operation.phase.value, "winner": operation.winner}
            ended = Intent(actor=SWITCHER, reason=operation.reason, metadata=how)
            self._tell(operation.model_id, Action.ENDED, operation.candidate, ended, told)
        elif not operation.phase.is_final and not ours:
            intent = self._intents.pop(operation.operation_id, Intent(actor=SWITCHER))
            detail: dict[str, Any] = {"strategy": operation.strategy.type.value, "rollback": intent.is_rollback}
            if intent.metadata:
                detail["metadata"] = dict(intent.metadata)
            asked = replace(intent, metadata=detail)
            self._tell(operation.model_id, Action.REQUESTED, operation.candidate, asked, told)

    def settle(self, running: Container[str]) -> None:
        """After a restart: a challenger whose switch is not known any more is none."""
        for model_id, lineage in self._models.items():
            held = lineage.candidacy
            if held is not None and held.operation_id not in running:
                told = Told(alias=CHALLENGER, operation_id=held.operation_id)
                lost = Intent(actor=RECOVERY, reason="the process ended before it began")
                self._tell(model_id, Action.ENDED, held.version, lost, told)

    # --- aliases and tags -------------------------------------------------------------------------------------------

    def set_alias(
        self, alias: str, version: str, *, model_id: str | None = None, actor: str = USER, reason: str = ""
    ) -> None:
        """Point an alias at a version; wherever a version is asked for, the alias will do.

        `challenger` may be set while no switch runs, e.g. for a later `start_switch("challenger")`; it goes when that
        version becomes the champion.

        Raises:
            UnknownModel, UnknownVersion: naming what there is.
            InvalidInput: a malformed alias, a version's name, or one that follows the switches.
        """
        intent = Intent(actor=actor, reason=reason)
        with self._by_hand:
            model, name = self.resolve(version, model_id).key
            lineage = self._models[model]
            references.check_alias(lineage, alias)
            previous = lineage.pointers.get(alias)
            if previous != name:
                self._record(model, Action.ALIAS_SET, name, intent, Told(alias=alias, previous=previous))
            _refuse_gone(lineage, model, name)

    def delete_alias(self, alias: str, *, model_id: str | None = None, actor: str = USER, reason: str = "") -> None:
        """Remove an alias.

        Raises:
            InvalidInput: there is none of that name, or it follows the switches.
        """
        model, intent = self.resolve_model(model_id), Intent(actor=actor, reason=reason)
        with self._by_hand:
            lineage = self._lineage(model)
            references.check_alias(lineage, alias)
            target = lineage.pointers.get(alias)
            if target is None:
                raise InvalidInput("alias", alias, references.removable(lineage, alias, model))
            self._record(model, Action.ALIAS_REMOVED, target, intent, Told(alias=alias, previous=target))

    def set_tag(
        self, version: str, key: str, value: str | None, *, model_id: str | None = None, actor: str = USER
    ) -> None:
        """Set a tag of a version; None removes it. Unlike metadata, which belong to the version, tags change.

        Raises:
            UnknownModel, UnknownVersion, InvalidInput: naming what there is, or what is allowed.
        """
        self.resolve(version, model_id)
        checks.name("key", key)
        if value is not None and not isinstance(value, str):
            raise InvalidInput("value", value, "a text, or None to remove the tag")
        value = None if value is None else checks.text("value", value)
        detail = {"key": key} if value is None else {"key": key, "value": value}
        with self._by_hand:
            model, name = self.resolve(version, model_id).key
            lineage = self._models[model]
            if lineage.tags.get(name, {}).get(key) != value:
                action = Action.UNTAGGED if value is None else Action.TAGGED
                self._record(model, action, name, Intent(actor=actor, metadata=detail))
            _refuse_gone(lineage, model, name)

    # --- other registries -------------------------------------------------------------------------------------------

    def export_to_mlflow(
        self,
        model_id: str | None = None,
        *,
        name: str | None = None,
        tracking_uri: str | None = None,
        timeout_s: float = 30.0,
    ) -> ExportStatus:
        """Export a model to MLflow's model registry, and keep it in step from then on; blocks for `timeout_s` at most.

        Every version becomes a model version there, with its tags and metadata; aliases are set there as they are here,
        and follow every later promotion by themselves. Where MLflow cannot be reached, what is to be told waits in the
        store; a switch never waits for it.

        One registered model is kept in step at a time: the last one that an export reached. An export to another one
        that is not reached in time is taken back, and the one before is kept in step as before.

        Args:
            name: of the registered model; the model's id by default.
            tracking_uri: `sqlite:///…` or a server's address; by default what it was exported to before, or what the
                engine publishes experiments to.

        Raises:
            InvalidInput: no address is known, or a name that MLflow does not take.
        """
        model = self.resolve_model(model_id)
        return self._engine("export_to_mlflow").export_model(model, name, tracking_uri, timeout_s)

    def import_from_mlflow(
        self,
        name: str,
        *,
        model_id: str | None = None,
        tracking_uri: str | None = None,
        config: Mapping[str, Any] = EMPTY,
        actor: str = USER,
    ) -> ImportedModel:
        """Register every version of a model of MLflow's registry; blocks. What is here already is left as it is.

        Tags and aliases come along, but for `champion`: nothing is deployed by importing it. The result names it. Tags
        whose keys are none here are kept as the metadata `mlflow.tags`; aliases whose names are none here are left out,
        and the result names them.

        Args:
            name: of the registered model.
            model_id: its id here; by default the one it was exported under, or its name.
            config: fields of `ModelConfig` that MLflow does not know, e.g. `engine_args`; not for versions that were
                exported from abswitch, which come back as they were.

        Raises:
            InvalidInput: no such model there, or no address is known.
            BadModelSource, DuplicateVersion: of a version, as in `register_model`; earlier ones stay registered.
            StoreError: MLflow cannot be reached.
        """
        intent = Intent(actor=actor, reason=f"imported from MLflow's {name!r}")
        return self._engine("import_from_mlflow").import_model(name, tracking_uri, model_id, config, intent)

    def linked(self, model_id: str, name: str, uri: str) -> None:
        """Remember where the model is exported to."""
        detail = {"name": name, "uri": uri}
        with self._by_hand:
            if self.link(model_id) != detail:
                self._record(model_id, Action.EXPORTED, None, Intent(metadata=detail))

    def _engine(self, method: str) -> Surroundings:
        if self._surroundings is None:
            raise SwitchRefused(f"{method} needs the registry of an engine: SwitchingEngine(…).registry")
        return self._surroundings


def _refuse_gone(lineage: Lineage, model_id: str, version: str) -> None:
    """Also after a wait for the disk, in which a version may have been deregistered."""
    if version not in lineage.versions:
        raise references.unknown(lineage, version, model_id)


def _check_tags(tags: Mapping[str, str]) -> None:
    if not isinstance(tags, Mapping):
        raise InvalidInput("tags", tags, "a dictionary of texts")
    for key, value in tags.items():
        checks.name("tags (a key)", key)
        if not isinstance(value, str):
            raise InvalidInput(f"tags.{key}", value, "a text")
