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
from abswitch.errors import DuplicateVersion, InvalidInput, UnknownModel, UnknownVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """One entry of a model's history: this version became the active one."""

    version: str | None
    at_s: float
    operation_id: str


@dataclass(slots=True)
class _Model:
    versions: dict[str, ModelVersion] = field(default_factory=dict)
    history: list[Activation] = field(default_factory=list)


class DynamicModelRegistry:
    """Versions by model, in order of registration. Safe to call from any thread.

    Args:
        clock: for the time of registration.
        check: called with a version before it is admitted; raises to refuse it.
        keep: writes a version down; raises to refuse it.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        check: Callable[[ModelVersion], None] = lambda _: None,
        keep: Callable[[ModelVersion], object] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._check = check
        self._keep = keep
        self._models: dict[str, _Model] = {}
        self._restored: set[VersionKey] = set()
        self._lock = threading.Lock()

    def restore(self, versions: Iterable[ModelVersion], activations: Iterable[tuple[str, Activation]] = ()) -> None:
        """Take over what an earlier process knew, as it was; nothing is checked or loaded.

        Args:
            activations: (model, entry of its history), oldest first.
        """
        with self._lock:
            for version in versions:
                self._models.setdefault(version.model_id, _Model()).versions[version.version] = version
                self._restored.add(version.key)
            for model_id, entry in activations:
                if model_id in self._models:
                    self._models[model_id].history.append(entry)

    def register_model(
        self,
        model_config: ModelConfig | Mapping[str, Any],
        version: str,
        *,
        metadata: Mapping[str, Any] = EMPTY,
    ) -> str:
        """Register a version; nothing is loaded yet.

        Args:
            model_config: what to serve and how, or a dictionary of `ModelConfig`'s fields.
            version: its name, unique within the model.
            metadata: anything worth keeping beside it; JSON values.

        Returns:
            The model's id. A version of an earlier process may be registered again as it was: it is the same one.

        Raises:
            DuplicateVersion: the model already has that version, or had another one of that name in an earlier process.
            BadModelSource: the folder is missing, has no config, only pickled weights, or wants to run its own code.
            InvalidInput: any other malformed value.
        """
        config = ModelConfig.of(model_config)
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
        return config.model_id

    def _is_restored(self, candidate: ModelVersion) -> bool:
        if candidate.key not in self._restored:
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
        """One version.

        Raises:
            UnknownModel, UnknownVersion: naming what there is.
        """
        versions = self._models[self.resolve_model(model_id)].versions
        if version not in versions:
            raise UnknownVersion("version", version, _known(versions, version))
        return versions[version]

    def list_models(self) -> tuple[str, ...]:
        """Ids of all models."""
        return tuple(self._models)

    def get_model_versions(self, model_id: str | None = None) -> tuple[ModelVersion, ...]:
        """All versions of a model, oldest first."""
        return tuple(self._models[self.resolve_model(model_id)].versions.values())

    def active_version(self, model_id: str | None = None) -> str | None:
        """The version that serves the model, or None before its first deployment."""
        history = self._models[self.resolve_model(model_id)].history
        return history[-1].version if history else None

    def history(self, model_id: str | None = None) -> tuple[Activation, ...]:
        """Every change of the active version, oldest first."""
        return tuple(self._models[self.resolve_model(model_id)].history)

    def activate(self, model_id: str, version: str | None, operation_id: str) -> None:
        """Record that a version became the active one; the switcher alone calls this."""
        if version is not None:
            self.get(model_id, version)
        if self.active_version(model_id) != version:
            entry = Activation(version=version, at_s=self._clock.wall_s(), operation_id=operation_id)
            self._models[model_id].history.append(entry)


def _known(names: Iterable[str], given: str | None = None) -> str:
    options = list(names)
    if not options:
        return "none is registered yet; use registry.register_model(...)"
    close = difflib.get_close_matches(given or "", options, n=1)
    return f"one of {', '.join(options)}" + (f" (did you mean {close[0]!r}?)" if close else "")
