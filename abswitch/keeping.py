"""`Keeping`: the part of the engine's facade about versions in memory and in registries."""

from __future__ import annotations

import asyncio

from abswitch.assembly import Machinery
from abswitch.domain import LoadFacts
from abswitch.serving.loop import EngineLoop
from abswitch.serving.registry import DynamicModelRegistry


class Keeping:
    """Loading, pinning, removing and exchanging versions of a `SwitchingEngine`, which is one of these."""

    _parts: Machinery
    _loop: EngineLoop
    registry: DynamicModelRegistry

    def _refuse_closed(self) -> None:
        raise NotImplementedError("the engine says whether it was shut down")

    async def load(self, version: str, *, model_id: str | None = None) -> LoadFacts:
        """Load a version ahead of its use; returns what its load cost, whenever that was.

        Raises:
            LoadFailed: with the reason.
        """
        self._refuse_closed()
        registered = self.registry.get(self.registry.resolve_model(model_id), version)
        return (await self._loop.call(self._parts.readiness.prove(registered))).facts

    async def prefetch(self, version: str, *, model_id: str | None = None) -> None:
        """Begin to load a version that will be needed soon, and return at once; `load` waits for it.

        What goes wrong is logged, and told to whoever needs the version.
        """
        self._refuse_closed()
        registered = self.registry.get(self.registry.resolve_model(model_id), version)
        await self._loop.call(self._parts.begin(self._parts.readiness.prove(registered)))

    async def pin(self, version: str, *, model_id: str | None = None) -> None:
        """Keep a version in memory once it is loaded, whatever else needs room; `unpin` undoes one `pin`."""
        key = self.registry.get(self.registry.resolve_model(model_id), version).key
        await self._loop.call(self._parts.on_loop(lambda: self._parts.cache.pin(key)))

    async def unpin(self, version: str, *, model_id: str | None = None) -> None:
        """Undo one `pin`."""
        key = self.registry.get(self.registry.resolve_model(model_id), version).key
        await self._loop.call(self._parts.on_loop(lambda: self._parts.cache.unpin(key)))

    async def deregister_model(self, model_id: str, version: str) -> None:
        """Take a version out of the registry and out of memory; its evidence and its history stay.

        Raises:
            UnknownModel, UnknownVersion: there is no such version.
            SwitchRefused: it is active, takes part in an operation, or requests are on it.
        """
        self._refuse_closed()
        key = self.registry.get(model_id, version).key
        self.registry.deregister_model(*key)
        await self._loop.call(self._parts.cache.discard(key))

    async def export_to_mlflow(self, *, model_id: str | None = None, name: str | None = None) -> dict[str, str]:
        """Register a model's versions in MLflow's model registry; its aliases follow this engine's from now on.

        Args:
            name: of the registered model; the model's id by default.

        Returns:
            version → its number in MLflow.
        """
        return await asyncio.to_thread(self._parts.link.export, self.registry.resolve_model(model_id), name)

    async def import_from_mlflow(self, name: str, *, model_id: str | None = None) -> tuple[str, ...]:
        """Register the versions of a registered model of MLflow; returns those that are new here.

        Raises:
            InvalidInput: MLflow has no model of that name, or the engine was given no MLflow.
            BadModelSource: a version's files are not on this machine.
        """
        return await asyncio.to_thread(self._parts.link.read, name, model_id)
