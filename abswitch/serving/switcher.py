"""`ModelSwitcher`: the controller. One inbox, one loop; it feeds the pure machine and carries out what it asks for.

Order of every move: event → `step` → journal (durable) → effects. Effects that take time run as tasks and answer with
an event that carries the operation's epoch; answers that come after the operation moved on are dropped by the machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from abswitch.clock import Clock, Timer
from abswitch.domain import GenerationRequest, RouteRecord, TransitionRecord
from abswitch.errors import (
    InvalidInput,
    LoadFailed,
    OperationFinished,
    OperationInProgress,
    SwitchRefused,
)
from abswitch.rollout import operation as ops
from abswitch.rollout.machine import step
from abswitch.rollout.operation import Effect, Event, Operation
from abswitch.rollout.strategies import Strategy
from abswitch.serving.cache import ModelCache
from abswitch.serving.instance import ModelInstance
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.router import RequestRouter
from abswitch.serving.transition import TransitionManager

log = logging.getLogger(__name__)
WARM_PROMPT = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitcherStats:
    """What the switcher did so far; durations in seconds, from acceptance to the end."""

    started: int
    running: int
    succeeded: int
    rolled_back: int
    aborted: int
    failed: int
    last_duration_s: float | None


class ModelSwitcher:
    """Owner of operations. Lives on the engine's loop; `operations` may be read from any thread.

    Args:
        journal: makes a transition durable; awaited before its effects are carried out.
        record_route: takes the rows of a snapshot as it comes into force.
        drain_timeout_s: how long a drain waits before the operation ends with requests still finishing.
    """

    def __init__(
        self,
        registry: DynamicModelRegistry,
        cache: ModelCache,
        router: RequestRouter,
        transitions: TransitionManager,
        clock: Clock,
        *,
        journal: Callable[[Operation, TransitionRecord], Awaitable[None]],
        record_route: Callable[[RouteRecord], None],
        drain_timeout_s: float,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._router = router
        self._transitions = transitions
        self._clock = clock
        self._journal = journal
        self._record_route = record_route
        self._drain_timeout_s = drain_timeout_s
        self._operations: dict[str, Operation] = {}
        self._salts: dict[str, str] = {}
        self._sequence: Counter[str] = Counter()
        self._running: dict[str, str] = {}
        self._timers: dict[str, Timer] = {}
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}
        self._changed = asyncio.Condition()
        self._inbox: asyncio.Queue[tuple[str, Event, asyncio.Future[Operation] | None]] = asyncio.Queue()
        self._controller: asyncio.Task[None] | None = None
        self._last_duration_s: float | None = None

    # --- what callers ask -------------------------------------------------------------------------------------------

    async def start(
        self, model_id: str, target_version: str, strategy: Strategy, *, operation_id: str, salt: str
    ) -> Operation:
        """Accept a switch and begin it.

        Args:
            operation_id: a fresh, unique name.
            salt: what the assignment of units depends on; the same salt gives the same split.

        Raises:
            UnknownModel, UnknownVersion, InvalidInput: the request makes no sense.
            OperationInProgress: another operation holds the model.
            SwitchRefused: the strategy compares with an active version and there is none, or the target is active.
        """
        self._registry.get(model_id, target_version)
        self._refuse_second(model_id)
        stable = self._registry.active_version(model_id)
        _refuse_senseless(model_id, stable, target_version, strategy)
        now_s = self._clock.monotonic_s()
        operation = Operation(
            operation_id=operation_id,
            model_id=model_id,
            stable=stable,
            candidate=target_version,
            strategy=strategy,
            created_s=now_s,
            phase_since_s=now_s,
        )
        self._hold(operation, salt)
        try:
            return await self.tell(operation_id, ops.Start())
        except BaseException:
            self._forget(operation)  # it never began: nothing was journalled, nothing is loaded
            raise

    def _hold(self, operation: Operation, salt: str) -> None:
        self._operations[operation.operation_id] = operation
        self._salts[operation.operation_id] = salt
        self._running[operation.model_id] = operation.operation_id
        for version in filter(None, (operation.stable, operation.candidate)):
            self._cache.pin((operation.model_id, version))

    def _forget(self, operation: Operation) -> None:
        if self._operations[operation.operation_id].phase is not ops.Phase.PENDING:
            return
        del self._operations[operation.operation_id], self._running[operation.model_id]
        for version in filter(None, (operation.stable, operation.candidate)):
            self._cache.unpin((operation.model_id, version))

    def _refuse_second(self, model_id: str) -> None:
        holder = self._running.get(model_id)
        if holder is not None:
            raise OperationInProgress(model_id, holder, self._operations[holder].phase)

    async def tell(self, operation_id: str, event: Event) -> Operation:
        """Put an event into the inbox and wait until the controller took it; returns the operation after it.

        Raises:
            InvalidInput: no such operation.
            OperationFinished: it already ended.
            IllegalTransition: its phase does not take the event; nothing changed.
        """
        operation = self.operation(operation_id)
        if operation.phase.is_final:
            raise OperationFinished(operation_id, operation.phase)
        taken: asyncio.Future[Operation] = asyncio.get_running_loop().create_future()
        self._put(operation_id, event, taken)
        return await taken

    async def abort(self, operation_id: str, reason: str = "aborted by hand") -> bool:
        """Abort; returns False (and says so in the log) when the operation had already ended."""
        try:
            await self.tell(operation_id, ops.Abort(reason=reason))
        except OperationFinished as finished:
            log.info("abort: %s", finished)
            return False
        return True

    async def wait(self, operation_id: str, until: Callable[[Operation], bool]) -> Operation:
        """Wait until the operation satisfies a condition or ended."""
        self.operation(operation_id)
        async with self._changed:
            await self._changed.wait_for(
                lambda: until(self._operations[operation_id]) or self._operations[operation_id].phase.is_final
            )
        return self._operations[operation_id]

    def operation(self, operation_id: str) -> Operation:
        """One operation as it stands.

        Raises:
            InvalidInput: no such operation.
        """
        if operation_id not in self._operations:
            known = ", ".join(self._operations) or "none was started yet"
            raise InvalidInput("operation_id", operation_id, f"one of {known}")
        return self._operations[operation_id]

    @property
    def operations(self) -> Mapping[str, Operation]:
        """Every operation of this engine, oldest first."""
        return dict(self._operations)

    def get_switcher_stats(self) -> SwitcherStats:
        """Counts of operations by how they ended."""
        phases = Counter(operation.phase for operation in self.operations.values())
        return SwitcherStats(
            started=len(self._operations),
            running=len(self._running),
            succeeded=phases[ops.Phase.SUCCEEDED],
            rolled_back=phases[ops.Phase.ROLLED_BACK],
            aborted=phases[ops.Phase.ABORTED],
            failed=phases[ops.Phase.FAILED],
            last_duration_s=self._last_duration_s,
        )

    def instance_lost(self, model_id: str, instance: ModelInstance, reason: str) -> None:
        """An instance died: forget it, tell the operation whose candidate it was, and bring the stable one back."""
        version = instance.version.version
        cached = self._cache.loaded.get((model_id, version))
        if cached is None or cached.instance is not instance:
            return  # every request on it reports the same death; the first one was enough
        log.warning("version %s of model %s was lost: %s", version, model_id, reason)
        operation_id = self._running.get(model_id, "")
        is_candidate = bool(operation_id) and self._operations[operation_id].candidate == version
        self._cache.evict((model_id, version))
        if is_candidate:
            self._put(operation_id, ops.CandidateLost(reason=f"version {version!r} was lost: {reason}"))
        elif self._router.is_routed(model_id, version):
            self._keep(operation_id, asyncio.get_running_loop().create_task(self._revive(model_id, version)))

    async def _revive(self, model_id: str, version: str) -> None:
        cached = await self._cache.ensure(self._registry.get(model_id, version))
        snapshot = self._router.replace_instance(model_id, version, cached.instance)
        for row in snapshot.records() if snapshot else ():
            self._record_route(row)

    async def close(self) -> None:
        """Stop the controller; operations stay where they are."""
        for timer in self._timers.values():
            timer.cancel()
        tasks = [task for of_one in self._tasks.values() for task in of_one]
        if self._controller is not None:
            tasks.append(self._controller)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the controller ---------------------------------------------------------------------------------------------

    def _put(self, operation_id: str, event: Event, taken: asyncio.Future[Operation] | None = None) -> None:
        self._inbox.put_nowait((operation_id, event, taken))
        if self._controller is None:
            self._controller = asyncio.get_running_loop().create_task(self._control(), name="switcher")

    async def _control(self) -> None:
        while True:
            operation_id, event, taken = await self._inbox.get()
            try:
                after = await self._take(self._operations[operation_id], event)
            except Exception as error:
                if taken is None or taken.done():
                    log.warning("operation %s: %s", operation_id, error)
                else:
                    taken.set_exception(error)
                continue
            if taken is not None and not taken.done():
                taken.set_result(after)

    async def _take(self, before: Operation, event: Event) -> Operation:
        if before.phase.is_final:
            if event.epoch is None:
                raise OperationFinished(before.operation_id, before.phase)
            return before
        after, effects = step(before, event, self._clock.monotonic_s())
        if after is before:
            return before
        await self._journal(after, self._transition(before, event, after))
        self._operations[after.operation_id] = after
        self._drop_timer(after)
        if after.phase.is_final:
            self._end(after)
        log.info("%s: %s → %s (%s)", after.operation_id, before.phase, after.phase, after.reason)
        for effect in effects:
            self._carry_out(after, effect)
        async with self._changed:
            self._changed.notify_all()
        return after

    def _transition(self, before: Operation, event: Event, after: Operation) -> TransitionRecord:
        self._sequence[after.operation_id] += 1
        return TransitionRecord(
            operation_id=after.operation_id,
            sequence=self._sequence[after.operation_id],
            model_id=after.model_id,
            event=type(event).__name__,
            phase_from=before.phase.value,
            phase_to=after.phase.value,
            step=after.stage,
            share=after.share,
            reason=after.reason,
            at_s=self._clock.wall_s(),
        )

    def _end(self, operation: Operation) -> None:
        self._running.pop(operation.model_id, None)
        self._last_duration_s = self._clock.monotonic_s() - operation.created_s
        stays = operation.candidate if operation.promoted else operation.stable
        if stays is not None:
            self._cache.unpin((operation.model_id, stays))

    def _drop_timer(self, operation: Operation) -> None:
        timer = self._timers.pop(operation.operation_id, None)
        if timer is not None:
            timer.cancel()

    # --- effects ----------------------------------------------------------------------------------------------------

    def _carry_out(self, operation: Operation, effect: Effect) -> None:
        match effect:
            case ops.Load(version):
                self._run(operation, self._load(operation, version))
            case ops.Warm(version):
                self._run(operation, self._warm(operation, version))
            case ops.Drain(version):
                self._run(operation, self._drain(operation, version))
            case ops.Route():
                self._route(operation, effect)
            case ops.SetTimer(delay_s):
                self._timers[operation.operation_id] = self._clock.call_later(
                    delay_s, lambda: self._put(operation.operation_id, ops.StageElapsed(epoch=operation.epoch))
                )
            case ops.Unpin(version):
                self._cache.unpin((operation.model_id, version))
                self._run(operation, self._cache.trim())

    def _run(self, operation: Operation, work: Coroutine[Any, Any, None]) -> None:
        self._keep(operation.operation_id, asyncio.get_running_loop().create_task(work))

    def _keep(self, owner: str, task: asyncio.Task[None]) -> None:
        of_one = self._tasks.setdefault(owner, set())
        of_one.add(task)
        task.add_done_callback(of_one.discard)

    def _answer(self, operation: Operation, event: Event) -> None:
        self._put(operation.operation_id, replace(event, epoch=operation.epoch))

    async def _load(self, operation: Operation, version: str) -> None:
        try:
            await self._cache.ensure(self._registry.get(operation.model_id, version))
            if operation.stable is not None:
                await self._cache.ensure(self._registry.get(operation.model_id, operation.stable))
        except LoadFailed as failure:
            self._answer(operation, ops.LoadFailed(reason=str(failure)))
        except Exception as error:
            self._answer(operation, ops.LoadFailed(reason=f"{type(error).__name__}: {error}"))
        else:
            self._answer(operation, ops.Loaded())

    async def _warm(self, operation: Operation, version: str) -> None:
        try:
            tokens = await self._first_token(operation, version)
        except Exception as error:
            self._answer(operation, ops.WarmFailed(reason=f"no first token: {type(error).__name__}: {error}"))
            return
        if tokens:
            self._answer(operation, ops.Warmed())
        else:
            self._answer(operation, ops.WarmFailed(reason="the candidate loaded but generated no token"))

    async def _first_token(self, operation: Operation, version: str) -> int:
        registered = self._registry.get(operation.model_id, version)
        cached = await self._cache.ensure(registered)
        request = GenerationRequest(
            request_id=f"{operation.operation_id}-warm-{operation.epoch}",
            prompt=WARM_PROMPT,
            sampling=registered.config.sampling.merged({"max_tokens": 1, "ignore_eos": True, "stop": ()}),
        )
        tokens = 0
        async with aclosing(cached.instance.generate(request)) as chunks:
            async for chunk in chunks:
                tokens = chunk.output_tokens
        return tokens

    async def _drain(self, operation: Operation, version: str | None) -> None:
        left = 0
        if version is not None:
            left = await self._transitions.drain((operation.model_id, version), self._drain_timeout_s)
        self._answer(operation, ops.Drained(left=left))

    def _route(self, operation: Operation, route: ops.Route) -> None:
        wanted = [v for v in (route.active, route.candidate) if v is not None]
        if all((operation.model_id, version) in self._cache.loaded for version in wanted):
            self._commit(operation, route)  # at once: a pointer flip between two loaded versions waits for nothing
        else:
            self._run(operation, self._reload_and_commit(operation, route, wanted))

    async def _reload_and_commit(self, operation: Operation, route: ops.Route, wanted: list[str]) -> None:
        try:
            for version in wanted:
                await self._cache.ensure(self._registry.get(operation.model_id, version))
        except Exception as error:
            self._answer(operation, ops.RouteFailed(reason=str(error)))
            return
        if self._operations[operation.operation_id].epoch == operation.epoch:  # not aborted meanwhile
            self._commit(operation, route)

    def _commit(self, operation: Operation, route: ops.Route) -> None:
        model_id = operation.model_id
        if route.active is None:
            self._router.withdraw(model_id)
        else:
            loaded = self._cache.loaded
            candidate = None
            if route.candidate is not None:
                candidate = (route.candidate, loaded[model_id, route.candidate].instance, route.share)
            snapshot = self._router.commit(
                model_id,
                stable=(route.active, loaded[model_id, route.active].instance),
                candidate=candidate,
                operation_id=operation.operation_id if candidate else None,
                step=operation.stage,
                salt=self._salts[operation.operation_id],
            )
            for row in snapshot.records():
                self._record_route(row)
        self._registry.activate(model_id, route.active, operation.operation_id)
        self._answer(operation, ops.Routed())


def _refuse_senseless(model_id: str, stable: str | None, target: str, strategy: Strategy) -> None:
    if stable is None and strategy.needs_stable:
        raise SwitchRefused(
            f"{strategy.type} compares with the active version, and model {model_id!r} has none; "
            f"deploy one first with strategy_type=SwitchingStrategyType.IMMEDIATE"
        )
    if stable == target:
        raise SwitchRefused(f"version {target!r} is already the active version of model {model_id!r}")
