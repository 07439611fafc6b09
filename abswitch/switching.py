"""`Switching`: the part of the engine's facade about switches as a whole, beside `start_switch`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from abswitch.domain import EMPTY, SwitchingStrategyType
from abswitch.errors import AbswitchError, InvalidInput
from abswitch.machinery import Machinery
from abswitch.rollout.measured import BUILT_IN, slip_for, unmeasured
from abswitch.rollout.strategies import ABTestStrategy, Strategy, strategy_of
from abswitch.serving.intents import USER, Intent
from abswitch.serving.loop import EngineLoop
from abswitch.serving.preflight import SwitchPlan
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.status import OperationStatus, SwitchValidation
from abswitch.serving.switcher import ModelSwitcher
from abswitch.settings import ModelSwitchingConfig

if TYPE_CHECKING:
    from abswitch.serving.handle import SwitchHandle

log = logging.getLogger(__name__)

StrategyConfig = Mapping[str, Any] | Strategy | None
_SHOWN = 5
"""How many operations an error names; an engine may have had thousands."""


class Switching:
    """Switches of a `SwitchingEngine`, which is one of these."""

    config: ModelSwitchingConfig
    registry: DynamicModelRegistry
    switcher: ModelSwitcher
    _parts: Machinery
    _loop: EngineLoop

    def _refuse_closed(self) -> None:
        raise NotImplementedError("the engine says whether it was shut down")

    def operation_status(self, operation_id: str) -> OperationStatus:
        """One switch as it stands."""
        raise NotImplementedError("the engine has the clock")

    async def _begin(self, model_id: str, target: str, strategy: Strategy, intent: Intent) -> SwitchHandle:
        raise NotImplementedError("the engine hands itself over")

    def _handle(self, operation_id: str) -> SwitchHandle:
        raise NotImplementedError("the engine hands itself over")

    def _refuse_unknown(self, operation_id: str) -> None:
        """Refuse an id that no operation has, naming some that have one: first those that have not ended."""
        operations = self.switcher.operations
        if isinstance(operation_id, str) and operation_id in operations:
            return
        newest_first = reversed(list(operations.values()))
        known = [one.operation_id for one in sorted(newest_first, key=lambda one: one.phase.is_final)]
        shown = ", ".join(known[:_SHOWN]) or "none was started yet"
        more = f" and {len(known) - _SHOWN} earlier ones" if len(known) > _SHOWN else ""
        raise InvalidInput("operation_id", operation_id, f"one of {shown}{more}" if known else shown)

    def _wanted(
        self,
        target_version: str,
        strategy_type: SwitchingStrategyType | str | None,
        strategy_config: StrategyConfig,
        model_id: str | None,
    ) -> tuple[str, str, Strategy]:
        """The model, the version and the strategy that a call means; aliases are versions from here on."""
        self._refuse_closed()
        strategy = strategy_of(self._kind(strategy_type, strategy_config), strategy_config)
        target = self.registry.resolve(target_version, model_id)
        if isinstance(strategy, ABTestStrategy) and strategy.arms:
            strategy = replace(strategy, arms=self._resolved(target.model_id, strategy.arms))
        self._refuse_slips(strategy)
        return target.model_id, target.version, strategy

    def _kind(
        self, strategy_type: SwitchingStrategyType | str | None, strategy_config: StrategyConfig
    ) -> SwitchingStrategyType | str:
        """The kind that was named; else that of a typed strategy, which says it itself; else the configured default."""
        if strategy_type is not None:
            return strategy_type
        return strategy_config.type if isinstance(strategy_config, Strategy) else self.config.default_switch_strategy

    def _resolved(self, model_id: str, arms: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
        """The same arms, without aliases."""
        names: dict[str, list[str]] = {}
        for name, _ in arms:
            names.setdefault(self.registry.get(model_id, name).version, []).append(name)
        for version, same in names.items():
            if len(same) > 1:
                allowed = f"every version once: {' and '.join(same)} are both version {version!r}"
                raise InvalidInput("strategy_config.arms", dict(arms), allowed)
        return tuple(zip(names, (share for _, share in arms), strict=True))

    def _refuse_slips(self, strategy: Strategy) -> None:
        scorers = self._parts.grader.names
        for metric in unmeasured(strategy.metrics, scorers):
            if (meant := slip_for(metric, scorers)) is not None:
                allowed = f"{meant}, which this engine scores, or a name less like it for scores recorded by hand"
                raise InvalidInput(f"the metric of a {strategy.type.value} strategy", metric, allowed)

    def _warn_of_unmeasured(self, operation_id: str, strategy: Strategy) -> None:
        """Scores by any name may still be recorded by hand, so that this is no error."""
        scorers = self._parts.grader.names
        for metric in unmeasured(strategy.metrics, scorers):
            log.warning(
                "%s: nothing measures %r, so its %s strategy waits for values of that name from record_score or "
                "feedback; measured are %s",
                operation_id,
                metric,
                strategy.type.value,
                ", ".join((*BUILT_IN, *scorers)),
            )

    async def switch_model(
        self,
        model_id: str,
        target_version: str,
        strategy_type: SwitchingStrategyType | str | None = None,
        strategy_config: StrategyConfig = None,
        metadata: Mapping[str, Any] = EMPTY,
    ) -> SwitchHandle:
        """`start_switch` with the model named first; returns as soon as the switch is accepted.

        Args:
            metadata: kept with the switch in the model's history; JSON values.

        Raises:
            InvalidInput, OperationInProgress, SwitchRefused: as `start_switch`.
        """
        model, target, strategy = self._wanted(target_version, strategy_type, strategy_config, model_id)
        return await self._begin(model, target, strategy, Intent(metadata=metadata))

    async def validate_switch_request(
        self,
        model_id: str,
        target_version: str,
        strategy_type: SwitchingStrategyType | str | None = None,
        strategy_config: StrategyConfig = None,
    ) -> SwitchValidation:
        """Whether such a switch would be accepted now, and if not, why; nothing is raised, nothing changes."""
        self._refuse_closed()
        try:
            model, target, strategy = self._wanted(target_version, strategy_type, strategy_config, model_id)
        except AbswitchError as refused:
            return SwitchValidation(valid=False, reason=str(refused), plan=None, error=refused)
        return await self._loop.call(self._parts.desk.validate(model, target, strategy))

    async def plan_switch(
        self,
        target_version: str,
        strategy_type: SwitchingStrategyType | str | None = None,
        strategy_config: StrategyConfig = None,
        *,
        model_id: str | None = None,
    ) -> SwitchPlan:
        """What a switch would take, without beginning it: memory, tiers, times from measured history, the ways out.

        Arguments as in `start_switch`, which refuses what this says it would refuse.

        Raises:
            InvalidInput: unknown version, strategy or field, or a value outside its range.
        """
        model, target, strategy = self._wanted(target_version, strategy_type, strategy_config, model_id)
        for version, _ in strategy.candidates(target):
            self.registry.get(model, version)
        return await self._loop.call(self._parts.desk.plan(model, target, strategy))

    async def rollback(
        self, model_id: str | None = None, *, to: str | None = None, actor: str = USER, reason: str = ""
    ) -> OperationStatus:
        """Switch back at once to an earlier version, and wait until that ended.

        Where memory holds one of the two, the version that serves finishes what it began and leaves first; requests
        wait meanwhile.

        Args:
            to: a version or alias; by default the one that was active before. Again, it goes further back: never to a
                version that was rolled back from and not promoted since.

        Raises:
            UnknownModel, UnknownVersion: naming what there is.
            SwitchRefused: there is none to go back to, or a switch is under way (abort that one instead).
            SwitchFailed: it did not come to serve; what served before still does.
        """
        self._refuse_closed()
        model = self.registry.resolve_model(model_id)
        target = self._parts.desk.earlier(model, to)
        intent = Intent(actor=actor, reason=reason or "rollback", is_rollback=True)
        way = await self._loop.call(self._parts.desk.way(model, target))
        handle = await self._begin(model, target, way, intent)
        await handle.serving()
        return await handle.done()

    def list_active_switches(self, model_id: str | None = None) -> tuple[OperationStatus, ...]:
        """Every switch that has not ended, oldest first; of one model, or of all.

        Raises:
            UnknownModel: no such model.
        """
        if model_id is not None:
            self.registry.resolve_model(model_id)
        running = (one for one in self.switcher.operations.values() if not one.phase.is_final)
        return tuple(self.operation_status(one.operation_id) for one in running if model_id in (None, one.model_id))

    def get_switch(self, operation_id: str) -> SwitchHandle:
        """A switch by its id, also one of an earlier process: what `start_switch` returned for it.

        After a crash an interrupted switch is paused and its shares are not in force; the handle's `resume`, `promote`,
        `keep` or `abort` says how it goes on. `list_active_switches` has the ids.

        Raises:
            InvalidInput: no such operation; names some that there are.
        """
        self._refuse_closed()
        self._refuse_unknown(operation_id)
        return self._handle(operation_id)

    def get_switch_status(self, operation_id: str) -> OperationStatus:
        """One switch as it stands.

        Raises:
            InvalidInput: no such operation.
        """
        return self.operation_status(operation_id)
