"""`SwitchDesk`: switches that are wanted as a whole (to a version, and done), and versions that are to go."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from dataclasses import replace
from uuid import uuid4

from abswitch.errors import AbswitchError, OperationInProgress, SwitchRefused
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import ImmediateStrategy, Strategy
from abswitch.serving.cache import ModelCache
from abswitch.serving.intents import Intent
from abswitch.serving.preflight import Preflight, SwitchPlan
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.router import RequestRouter
from abswitch.serving.status import SwitchValidation, shares_of
from abswitch.serving.switcher import ModelSwitcher

log = logging.getLogger(__name__)


class SwitchDesk:
    """Lives on the engine's loop.

    Args:
        turned_off: where switching was turned off, e.g. "in code"; None when it is on.
    """

    def __init__(
        self,
        registry: DynamicModelRegistry,
        switcher: ModelSwitcher,
        preflight: Preflight,
        cache: ModelCache,
        router: RequestRouter,
        *,
        turned_off: str | None = None,
    ) -> None:
        self._registry = registry
        self._switcher = switcher
        self._preflight = preflight
        self._cache = cache
        self._router = router
        self._turned_off = turned_off

    async def check(self, model_id: str, target: str, strategy: Strategy) -> None:
        """Refuse what cannot begin now.

        Raises:
            InvalidInput, SwitchRefused: with the reason, the numbers and the ways out.
        """
        stable = self._stable(model_id, target, strategy)
        await self._preflight.check(model_id, target, strategy, stable)

    def _stable(self, model_id: str, target: str, strategy: Strategy) -> str | None:
        """The version that such a switch would begin from; refuses what memory has nothing to do with."""
        stable = self._switcher.check(model_id, target, strategy)
        if stable == target:
            return None  # deployed anew after a restart: nothing serves yet
        if self._turned_off is not None and stable is not None:
            raise SwitchRefused(
                f"switching is turned off: the setting enabled was made False {self._turned_off}. Only a first "
                f"deployment may begin, and version {stable!r} is active"
            )
        return stable

    async def way(self, model_id: str, version: str) -> ImmediateStrategy:
        """How to switch to a version at once: see `Preflight.way`."""
        active = self._registry.active_version(model_id)
        return await self._preflight.way(model_id, version, None if active == version else active)

    async def plan(self, model_id: str, target: str, strategy: Strategy) -> SwitchPlan:
        """What the switch would take now; its `refusal` is what `check` would say. Changes nothing.

        Raises:
            UnknownModel, UnknownVersion: there is none of that name.
        """
        try:
            stable = self._stable(model_id, target, strategy)
        except SwitchRefused as refused:
            plan = await self._preflight.plan(model_id, target, strategy, self._registry.active_version(model_id))
            return replace(plan, refusal=str(refused), ways_out=())
        return await self._preflight.plan(model_id, target, strategy, stable)

    async def validate(self, model_id: str, target: str, strategy: Strategy) -> SwitchValidation:
        """Whether `start_switch` would accept this now; changes nothing."""
        try:
            await self.check(model_id, target, strategy)
        except AbswitchError as refused:
            plan = await self._plan(model_id, target, strategy)
            return SwitchValidation(valid=False, reason=str(refused), error=refused, plan=plan)
        return SwitchValidation(valid=True, reason=None, plan=await self._plan(model_id, target, strategy))

    async def _plan(self, model_id: str, target: str, strategy: Strategy) -> SwitchPlan | None:
        try:
            return await self.plan(model_id, target, strategy)
        except AbswitchError:
            return None

    def earlier(self, model_id: str, to: str | None) -> str:
        """The version that a rollback goes to.

        Raises:
            UnknownVersion: there is none of that name.
            OperationInProgress, SwitchRefused: none was active before that is there still and was not rolled back from.
        """
        if to is not None:
            return self._registry.get(model_id, to).version
        earlier, left_out = self._registry.way_back(model_id)
        if earlier is not None:
            return earlier
        if (running := self._switcher.running(model_id)) is not None:  # that one is to be aborted instead
            raise OperationInProgress(model_id, running.operation_id, running.phase)
        passed = f" and was not rolled back from ({', '.join(sorted(left_out))}); name one: to=…" if left_out else ""
        raise SwitchRefused(f"model {model_id!r} has no earlier version to go back to that is still registered{passed}")

    def standing(self, model_id: str, version: str, now_s: float) -> Operation | None:
        """The switch that made the version active, as it ended, where it serves all traffic already; else None."""
        serves_all = shares_of(self._router.current(model_id)) == {version: 1.0}
        if not serves_all or self._registry.active_version(model_id) != version:
            return None
        return Operation(
            operation_id=self._registry.history(model_id)[-1].operation_id or "",
            model_id=model_id,
            stable=version,
            candidate=version,
            strategy=ImmediateStrategy(),
            phase=Phase.SUCCEEDED,
            share=1.0,
            winner=version,
            reason="it serves already",
            created_s=now_s,
            phase_since_s=now_s,
        )

    async def switch(self, model_id: str, version: str, intent: Intent) -> bool:
        """See `DynamicModelRegistry.switch_model`."""
        if self._registry.active_version(model_id) == version and self._router.current(model_id) is not None:
            return True
        operation_id = f"op-{uuid4().hex[:12]}"
        way = await self.way(model_id, version)
        await self.check(model_id, version, way)
        await self._switcher.start(model_id, version, way, operation_id=operation_id, salt=operation_id, intent=intent)
        ended = await self._switcher.wait(operation_id, lambda operation: operation.phase.is_final)
        if not _serves(ended):
            log.error("model %s was not switched to version %s: %s", model_id, version, ended.reason)
        return _serves(ended)

    async def release(self, model_id: str, version: str, intent: Intent) -> bool:
        """See `DynamicModelRegistry.deregister_model`."""
        safe = self._registry.strike(model_id, version, intent)
        await self._cache.discard((model_id, version))
        if safe is not None:
            await asyncio.wrap_future(safe)
        return True

    def retire(self, model_id: str, newest: str) -> dict[str, Future[None] | None]:
        """Take off the list, and begin to unload, what is too many beside the newest version; see `max_versions`."""
        struck = self._registry.strike_surplus(model_id, newest)
        for version in struck:
            self._cache.evict((model_id, version))
        return struck


def _serves(operation: Operation) -> bool:
    return operation.phase is Phase.SUCCEEDED and operation.winner == operation.candidate
