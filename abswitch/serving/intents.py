"""Who wants a change of the registry, and what the registry can have done by the engine that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.registries import ExportStatus, ImportedModel

USER, SWITCHER, REGISTRY, RECOVERY = "user", "switcher", "registry", "recovery"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Who wants a switch, and what for."""

    actor: str = USER
    reason: str = ""
    is_rollback: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.name("actor", self.actor)
        object.__setattr__(self, "reason", checks.text("reason", self.reason))
        if not isinstance(self.metadata, Mapping):
            raise InvalidInput("metadata", self.metadata, "a dictionary")
        try:
            json.dumps(dict(self.metadata), allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput("metadata", self.metadata, f"JSON values only ({error})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryStats:
    """What the registry holds.

    Attributes:
        active: model → its active version.
        promotions, rollbacks: over the whole history.
    """

    models: int
    versions: int
    deregistered: int
    aliases: int
    promotions: int
    rollbacks: int
    entries: int
    active: Mapping[str, str | None]


class Surroundings(Protocol):
    """What the registry of an engine can have done; every call blocks until it is."""

    def switch(self, model_id: str, version: str, intent: Intent) -> bool: ...

    def release(self, model_id: str, version: str, intent: Intent) -> bool: ...

    def retire(self, model_id: str, newest: str) -> dict[str, Future[None] | None]: ...

    def export_model(self, model_id: str, name: str | None, uri: str | None, timeout_s: float) -> ExportStatus: ...

    def import_model(
        self, name: str, uri: str | None, model_id: str | None, config: Mapping[str, Any], intent: Intent
    ) -> ImportedModel: ...
