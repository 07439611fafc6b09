"""`RegistryLink`: this engine's registry and MLflow's, kept in step from the first export or import on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from abswitch.errors import InvalidInput
from abswitch.serving.lineage import CHALLENGER, CHAMPION, HistoryEntry, What
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.store.mlflow_registry import MlflowRegistry
from abswitch.store.recorder import Recorder

log = logging.getLogger(__name__)


class RegistryLink:
    """Exports and imports versions, and has MLflow's aliases follow this registry's.

    Args:
        uri: MLflow's tracking address; None refuses every call.
        reason: why an operation ended as it did, in words, by its id; goes with a promotion as the verdict.
    """

    def __init__(self, uri: str | None, recorder: Recorder, reason: Callable[[str], str | None]) -> None:
        self._registry: DynamicModelRegistry | None = None
        self._mlflow = None if uri is None else MlflowRegistry(uri, recorder=recorder)
        self._reason = reason
        self._moves = ThreadPoolExecutor(1, "abswitch-registry")  # a durable write must not hold up the engine's loop

    def attach(self, registry: DynamicModelRegistry) -> None:
        """Tell which registry is meant."""
        self._registry = registry

    def export(self, model_id: str, name: str | None = None) -> dict[str, str]:
        """Register every version of a model in MLflow, with its aliases, and keep those in step from now on. Blocks.

        Returns:
            version → its number in MLflow.

        Raises:
            InvalidInput: the engine was given no MLflow.
        """
        registry, mlflow = self._both()
        target = name or model_id
        numbers = mlflow.export(registry.get_model_versions(model_id), registry.aliases(model_id), name=target)
        registry.link(model_id, target)
        return numbers

    def read(self, name: str, model_id: str | None = None) -> tuple[str, ...]:
        """Register here what MLflow has under a name, with its aliases, and keep those in step from now on. Blocks.

        Returns:
            The versions that are new here, oldest first; those already here stay as they are.

        Raises:
            InvalidInput: the engine was given no MLflow, or it has no model of that name.
            BadModelSource: a version's files are not on this machine.
        """
        registry, mlflow = self._both()
        model, found = model_id or name, mlflow.read(name, model_id=model_id or name)
        known = (
            {one.version for one in registry.get_model_versions(model)} if model in registry.list_models() else set()
        )
        new = [one for one in found if one.version not in known]
        for one in new:
            metadata = {**one.metadata, "mlflow": f"{name}/{one.mlflow_version}"}
            registry.register_model(one.config, one.version, metadata=metadata)
        for one in found:
            for alias in one.aliases:
                if alias not in (CHAMPION, CHALLENGER):
                    registry.set_alias(alias, one.version, model_id=model)
        if found:
            registry.link(model, name)
        return tuple(one.version for one in new)

    def noted(self, entry: HistoryEntry) -> None:
        """Pass an alias move on; never waits, and never fails what it follows."""
        name = None if self._registry is None else self._registry.linked(entry.model_id)
        alias = _alias_of(entry)
        if self._mlflow is not None and name is not None and alias is not None:
            self._moves.submit(self._follow, name, alias, entry).add_done_callback(_told)

    def _follow(self, name: str, alias: str, entry: HistoryEntry) -> None:
        registry, mlflow = self._both()
        version = None if entry.version is None else registry.get(entry.model_id, entry.version)
        verdict = self._reason(entry.operation_id) if entry.operation_id and entry.what is What.ACTIVATED else None
        mlflow.follow(name, alias, version, verdict)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until MLflow has every move; False when that takes longer."""
        self._moves.submit(lambda: None).result(timeout_s)
        return self._mlflow is None or self._mlflow.flush(timeout_s)

    def close(self) -> None:
        """Queue what is left durably; what MLflow does not take now, the next process brings it."""
        self._moves.shutdown()
        if self._mlflow is not None:
            self._mlflow.close()

    def _both(self) -> tuple[DynamicModelRegistry, MlflowRegistry]:
        if self._mlflow is None or self._registry is None:
            raise InvalidInput("mlflow", None, "an engine that was given SwitchingEngine(mlflow=…)")
        return self._registry, self._mlflow


def _alias_of(entry: HistoryEntry) -> str | None:
    followed = {What.ACTIVATED: CHAMPION, What.CHALLENGED: CHALLENGER}.get(entry.what)
    return str(entry.detail["alias"]) if entry.what is What.ALIASED else followed


def _told(done: Future[None]) -> None:
    if (error := done.exception()) is not None:
        log.warning("an alias move was not passed on to MLflow: %s", error)
