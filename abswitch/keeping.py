"""`Keeping`: the part of the engine's facade about versions in memory and in registries."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from abswitch.domain import EMPTY, LoadFacts
from abswitch.errors import StoreError
from abswitch.machinery import Machinery
from abswitch.serving.cache import CachedVersion
from abswitch.serving.intents import USER, Intent
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
        return (await self._loop.call(self._proven(version, model_id))).facts

    async def _proven(self, version: str, model_id: str | None) -> CachedVersion:
        """On the loop, where versions are deregistered: what is looked up there is not gone before it is held."""
        return await self._parts.readiness.prove(self.registry.resolve(version, model_id))

    async def prefetch(self, version: str, *, model_id: str | None = None) -> None:
        """Begin to load a version that will be needed soon, and return at once; `load` waits for it.

        What goes wrong is logged, and told to whoever needs the version.
        """
        self._refuse_closed()
        self.registry.resolve(version, model_id)
        await self._loop.call(self._parts.begin(self._proven(version, model_id)))

    async def pin(self, version: str, *, model_id: str | None = None) -> None:
        """Keep a version in memory once it is loaded, whatever else needs room; `unpin` undoes one `pin`."""
        pin, resolve = self._parts.cache.pin, self.registry.resolve
        await self._loop.call(self._parts.on_loop(lambda: pin(resolve(version, model_id).key)))

    async def unpin(self, version: str, *, model_id: str | None = None) -> None:
        """Undo one `pin`."""
        key = self.registry.resolve(version, model_id).key
        await self._loop.call(self._parts.on_loop(lambda: self._parts.cache.unpin(key)))

    async def deregister_model(self, model_id: str, version: str, *, actor: str = USER, reason: str = "") -> bool:
        """Take a version out of the registry and out of memory; its evidence and its history stay.

        Returns:
            True.

        Raises:
            UnknownModel, UnknownVersion: there is no such version.
            SwitchRefused: it is active, a switch's candidate, pinned, being loaded, or answers requests; says which.
        """
        self._refuse_closed()
        name = self.registry.get(model_id, version).version
        return await self._loop.call(self._parts.desk.release(model_id, name, Intent(actor=actor, reason=reason)))

    async def export_to_mlflow(
        self, *, model_id: str | None = None, name: str | None = None, tracking_uri: str | None = None
    ) -> dict[str, str]:
        """Register a model's versions in MLflow's model registry, which follows this one from now on.

        `registry.export_to_mlflow` is the same, blocks, and tells more; arguments as there.

        Returns:
            version → its number in MLflow.

        Raises:
            InvalidInput: no address is known, or a name that MLflow does not take.
            StoreError: MLflow cannot be reached, or refused it. In the first case it is told as soon as it can be, but
                for an export to another place than before: then that one stays in step, and the error says so.
        """
        self._refuse_closed()
        exported = await asyncio.to_thread(
            self.registry.export_to_mlflow, model_id, name=name, tracking_uri=tracking_uri
        )
        if not exported:
            raise StoreError(f"MLflow at {exported.tracking_uri} has not got it: {exported.error}")
        return dict(exported.versions)

    async def import_from_mlflow(
        self,
        name: str,
        *,
        model_id: str | None = None,
        tracking_uri: str | None = None,
        config: Mapping[str, Any] = EMPTY,
    ) -> tuple[str, ...]:
        """Register the versions of a registered model of MLflow; returns those that are new here.

        `registry.import_from_mlflow` is the same, blocks, and tells more; arguments as there.

        Raises:
            InvalidInput: MLflow has no model of that name, or no address is known.
            BadModelSource, DuplicateVersion: of a version.
            StoreError: MLflow cannot be reached.
        """
        self._refuse_closed()
        fetch = partial(self.registry.import_from_mlflow, name, model_id=model_id, tracking_uri=tracking_uri)
        return (await asyncio.to_thread(fetch, config=config)).registered
