"""`Exchange`: between the registry and another one, such as MLflow's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from abswitch import checks
from abswitch.domain import ModelConfig
from abswitch.errors import DuplicateVersion, InvalidInput
from abswitch.registries import ExportStatus, ExternalModel, ExternalRegistry, ExternalVersion, ImportedModel
from abswitch.serving.intents import Intent
from abswitch.serving.lineage import CHAMPION
from abswitch.serving.registry import DynamicModelRegistry

log = logging.getLogger(__name__)


class Exchange:
    """Exports and imports block; `changed` does not."""

    def __init__(self, registry: DynamicModelRegistry, external: ExternalRegistry) -> None:
        self._registry = registry
        self._external = external

    def changed(self, model_id: str) -> None:
        """A model changed: where it was exported, it is told anew, in the background."""
        link = self._registry.link(model_id)
        if link is not None:
            self._external.follow(lambda: self._registry.snapshot(model_id), link["name"], link["uri"])

    def resume(self) -> None:
        """After a restart: tell what may not have been told."""
        for model_id in self._registry.list_models():
            self.changed(model_id)

    def export(self, model_id: str, name: str | None, uri: str | None, timeout_s: float) -> ExportStatus:
        """See `DynamicModelRegistry.export_to_mlflow`."""
        checks.number("timeout_s", timeout_s, low=0.0)
        before = self._registry.link(model_id)
        link = before or {}
        address = self._external.address(uri or link.get("uri"))
        chosen = name or link.get("name") or self._external.name_for(model_id)
        self._external.check_name(chosen)
        moves = before is not None and (before["name"], before["uri"]) != (chosen, address)
        if not moves:
            self._registry.linked(model_id, chosen, address)
        snapshot = self._registry.snapshot(model_id)
        status = self._external.export(snapshot, chosen, address, timeout_s, may_wait=not moves)
        if before is None or not moves:
            return status
        if not status.published:  # a wrong address must not end what is told at the right one
            stays = f"the model is kept in step with {before['name']!r} at {before['uri']}, as before"
            return replace(status, error=f"{status.error}; {stays}")
        self._registry.linked(model_id, chosen, address)
        return status

    def import_(
        self, name: str, uri: str | None, model_id: str | None, config: Mapping[str, Any], intent: Intent
    ) -> ImportedModel:
        """See `DynamicModelRegistry.import_from_mlflow`."""
        if model_id is not None:
            checks.name("model_id", model_id)
        found = self._external.fetch(name, self._external.address(uri))
        model = _id(model_id, found)
        names = [version.version for version in found.versions]
        registered = [one.version for one in found.versions if self._register(model, one, config, intent)]
        aliases, left_out = self._point(model, found, intent)
        return ImportedModel(
            model_id=model,
            registered=tuple(registered),
            known=tuple(name for name in names if name not in registered),
            aliases=aliases,
            champion=found.aliases.get(CHAMPION),
            left_out=left_out,
        )

    def _register(self, model: str, version: ExternalVersion, config: Mapping[str, Any], intent: Intent) -> bool:
        """Whether it is new here."""
        wanted = ModelConfig.of({**_merged(version, config), "model_id": model})
        have = {one.version: one for one in self._registry.get_model_versions(model)} if self._has(model) else {}
        if version.version in have:
            _refuse_other(version.version, have[version.version].pinned, wanted)
            return False
        self._registry.register_model(
            wanted,
            version.version,
            metadata=version.metadata,
            tags=version.tags,
            actor=intent.actor,
            reason=intent.reason,
        )
        return True

    def _has(self, model: str) -> bool:
        return model in self._registry.list_models()

    def _point(self, model: str, found: ExternalModel, intent: Intent) -> tuple[dict[str, str], dict[str, str]]:
        """Set the aliases that may be set by hand; returns them, and why others could not be set."""
        running = self._registry.aliases(model) if self._has(model) else {}
        held = {alias for alias in running if alias not in self._registry.pointers(model)}
        wanted = {alias: one for alias, one in found.aliases.items() if alias not in {CHAMPION, *held}}
        left_out = {}
        for alias, version in wanted.items():
            try:
                self._registry.set_alias(alias, version, model_id=model, actor=intent.actor, reason=intent.reason)
            except InvalidInput as refused:  # the versions are here; set_alias gives this one another name
                left_out[alias] = str(refused)
                log.warning("an alias that points to %s:%s in %s is left out: %s", model, version, found.name, refused)
        return {alias: one for alias, one in wanted.items() if alias not in left_out}, left_out


def _id(given: str | None, found: ExternalModel) -> str:
    model = given or found.model_id or found.name
    if not checks.is_name(model):
        raise InvalidInput(
            "name", model, "a name that a model may have here, or another one for it: import_from_mlflow(…, model_id=…)"
        )
    return model


def _merged(version: ExternalVersion, config: Mapping[str, Any]) -> dict[str, Any]:
    if version.complete:
        return dict(version.config)
    args = {**config.get("engine_args", {}), **version.config.get("engine_args", {})}
    return {**config, **version.config} | ({"engine_args": args} if args else {})


def _refuse_other(name: str, here: ModelConfig, there: ModelConfig) -> None:
    mine, theirs = here.to_dict(), there.to_dict()
    changed = [field for field in mine if mine[field] != theirs[field]]
    if changed:
        allowed = f"a version that is the same here and there; {', '.join(changed)} differ"
        raise DuplicateVersion("version", name, allowed)
