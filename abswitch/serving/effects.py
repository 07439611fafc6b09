"""`Effects`: carries out what the state machine asks for. Work that takes time runs as tasks and answers with an event.

Every answer carries the epoch of the operation that asked, so that one that comes after the operation moved on is
dropped by the machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from abswitch.clock import Clock, Timer
from abswitch.domain import RouteRecord, VersionKey
from abswitch.errors import InstanceError, LoadFailed, OutOfBudget
from abswitch.rollout import operation as ops
from abswitch.rollout.judging import Judgement, Ruling
from abswitch.rollout.operation import Effect, Event, Operation, Phase
from abswitch.rollout.strategies import ShadowStrategy
from abswitch.serving.cache import CachedVersion, ModelCache
from abswitch.serving.preflight import DRAIN
from abswitch.serving.readiness import Readiness
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.revival import Reviver, arm_of
from abswitch.serving.router import SHADOW, STABLE, Mirror, RequestRouter, RouteSnapshot, candidate_name
from abswitch.serving.timelimit import time_limit
from abswitch.serving.transition import TransitionManager

log = logging.getLogger(__name__)

AskJudge = Callable[[Operation], Awaitable[Judgement]]


class Effects:
    """Lives on the engine's loop.

    Args:
        answer: takes an event for an operation's inbox.
        current: an operation as it stands now, by id.
        ask_judge: the judgement on an operation's stage; whatever it raises means hold.
        record_route: takes the rows of a snapshot as it comes into force.
        drain_timeout_s: how long a drain waits before the operation goes on with requests still finishing.
        load_timeout_s: how long candidates may take to load and to generate.
    """

    def __init__(
        self,
        registry: DynamicModelRegistry,
        cache: ModelCache,
        readiness: Readiness,
        router: RequestRouter,
        transitions: TransitionManager,
        reviver: Reviver,
        clock: Clock,
        *,
        answer: Callable[[str, Event], None],
        current: Callable[[str], Operation],
        salt: Callable[[str], str],
        ask_judge: AskJudge,
        record_route: Callable[[RouteRecord], None],
        drain_timeout_s: float,
        load_timeout_s: float,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._readiness = readiness
        self._router = router
        self._transitions = transitions
        self._reviver = reviver
        self._clock = clock
        self._answer_to = answer
        self._current = current
        self._salt = salt
        self._ask_judge = ask_judge
        self._record_route = record_route
        self._drain_timeout_s = drain_timeout_s
        self._load_timeout_s = load_timeout_s
        self._timers: dict[str, Timer] = {}
        self._deadlines: dict[str, Timer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def carry_out(self, operation: Operation, effect: Effect) -> None:
        """Do, or begin, one effect."""
        match effect:
            case ops.Load(versions, instead_of):
                self._run(self._load(operation, versions, instead_of))
            case ops.Warm(versions):
                self._run(self._warm(operation, versions))
            case ops.Drain(versions):
                self._run(self._drain(operation, versions))
            case ops.Route():
                self._route(operation, effect)
            case ops.Withdraw():
                self._withdraw(operation)
            case ops.SetTimer(delay_s):
                elapsed = ops.StageElapsed(epoch=operation.epoch)
                self._timers[operation.operation_id] = self._after(delay_s, operation, elapsed)
            case ops.SetDeadline(delay_s):
                self._deadlines[operation.operation_id] = self._after(delay_s, operation, ops.DeadlineElapsed())
            case ops.AskJudge():
                self._run(self._judge(operation))
            case ops.Unpin(versions):
                self._unpin(operation, versions)

    def moved(self, operation: Operation) -> None:
        """The operation took an event: its stage's timer no longer counts, and at its end neither does its deadline."""
        self._registry.moved(operation)
        stale = [self._timers.pop(operation.operation_id, None)]
        if operation.phase.is_final:
            stale.append(self._deadlines.pop(operation.operation_id, None))
            self._reviver.settled(operation.model_id)
        for timer in stale:
            if timer is not None:
                timer.cancel()

    async def close(self) -> None:
        """Drop the timers and end the tasks."""
        for timer in (*self._timers.values(), *self._deadlines.values()):
            timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _after(self, delay_s: float, operation: Operation, event: Event) -> Timer:
        return self._clock.call_later(delay_s, lambda: self._answer_to(operation.operation_id, event))

    def _goes_on(self, operation: Operation) -> bool:
        """Whether the operation is still where it was when it asked for this."""
        return self._current(operation.operation_id).epoch == operation.epoch

    def _answer(self, operation: Operation, event: Event) -> None:
        self._answer_to(operation.operation_id, replace(event, epoch=operation.epoch))

    # --- loading and warming ----------------------------------------------------------------------------------------

    async def _load(self, operation: Operation, versions: tuple[str, ...], instead_of: str | None) -> None:
        try:
            if instead_of is not None:
                await self._make_room(operation, instead_of)
                await self._take_the_place(operation, versions[0], instead_of)
            for version in (*versions, *_beside(operation)):
                if not self._goes_on(operation):
                    return
                await self._in_time(operation, version, self._cache.ensure)
        except LoadFailed as failure:
            self._answer(operation, ops.LoadFailed(reason=str(failure)))
        except Exception as error:
            self._answer(operation, ops.LoadFailed(reason=f"{type(error).__name__}: {error}"))
        else:
            self._answer(operation, ops.Loaded())

    async def _make_room(self, operation: Operation, version: str) -> None:
        """Let a version finish what it began, and unload it; requests wait from now on."""
        model_id = operation.model_id
        self._reviver.expect(model_id, f"operation {operation.operation_id} replaces version {version!r}")
        self._reviver.let_go(model_id, version)
        self._router.withdraw(model_id)
        await self._settled((model_id, version))
        left = await self._transitions.drain((model_id, version), self._drain_timeout_s)
        if left:
            raise LoadFailed(
                f"version {version!r} still answers {left} request(s) after {self._drain_timeout_s:g} s "
                f"(max_transition_time_seconds); nothing in use is unloaded"
            )

    async def _take_the_place(self, operation: Operation, version: str, old: str) -> None:
        """Of a version that is drained: swap the weights where that is wanted and possible, unload it else.

        Not of one that serves again, as the operation was aborted while it drained.
        """
        key = (operation.model_id, old)
        if self._goes_on(operation) and operation.strategy.swaps and key in self._cache.loaded:
            try:
                await self._in_time(operation, version, lambda new: self._cache.swap(key, new))
            except InstanceError as refused:
                log.warning("%s: no swap in place, loading instead: %s", operation.operation_id, refused)
                if self._goes_on(operation):  # it took time: a request that names the version may be on it now
                    await self._make_room(operation, old)
        if self._goes_on(operation):
            await self._cache.discard(key)

    async def _warm(self, operation: Operation, versions: tuple[str, ...]) -> None:
        try:
            for version in versions:
                if not self._goes_on(operation):
                    return
                await self._readiness.prove_in_time(self._registry.get(operation.model_id, version))
        except Exception as error:
            self._answer(operation, ops.WarmFailed(reason=str(error) or type(error).__name__))
        else:
            self._answer(operation, ops.Warmed())

    async def _in_time(
        self, operation: Operation, version: str, bring: Callable[..., Coroutine[Any, Any, CachedVersion]]
    ) -> None:
        registered = self._registry.get(operation.model_id, version)

        def late() -> Exception:
            return LoadFailed(f"{registered} was not ready within {self._load_timeout_s:g} s (switch_timeout_seconds)")

        async with time_limit(self._load_timeout_s, self._clock, late):
            await bring(registered)

    # --- routing and draining ---------------------------------------------------------------------------------------

    def _route(self, operation: Operation, route: ops.Route) -> None:
        wanted = _wanted(route)
        if all(self._readiness.ready((operation.model_id, version)) for version in wanted):
            self._commit(operation, route)  # at once: a pointer flip between two ready versions waits for nothing
        else:
            self._run(self._prove_and_commit(operation, route, wanted))

    async def _prove_and_commit(self, operation: Operation, route: ops.Route, wanted: tuple[str, ...]) -> None:
        model_id = operation.model_id
        if self._router.current(model_id) is None:
            self._reviver.expect(model_id, f"operation {operation.operation_id} brings up {', '.join(wanted)}")
        try:
            try:
                await self._prove_all(operation, wanted)
            except OutOfBudget:
                if not (operation.phase is Phase.ROLLING_BACK and operation.strategy.drains_first):
                    raise
                await self._make_way(operation)
                await self._prove_all(operation, wanted)
        except Exception as error:
            self._answer(operation, ops.RouteFailed(reason=str(error), serving=self._promoted(operation)))
            return
        if self._goes_on(operation):
            self._commit(operation, route)

    async def _prove_all(self, operation: Operation, wanted: tuple[str, ...]) -> None:
        while not all(self._readiness.ready((operation.model_id, version)) for version in wanted):
            for version in wanted:
                if not self._goes_on(operation):
                    return  # aborted, say: nothing keeps its versions loaded any more, and they push out each other
                await self._readiness.prove_in_time(self._registry.get(operation.model_id, version))

    async def _make_way(self, operation: Operation) -> None:
        """Unload the candidates, for which the stable version had left: one place is all there is.

        Not one that answers: it had been promoted, and stays where there is no way back from it.
        """
        for version in operation.candidates:
            key = (operation.model_id, version)
            await self._settled(key)
            needed = self._router.is_routed(*key) or self._transitions.holders(key)
            if self._goes_on(operation) and not needed:
                await self._cache.discard(key)

    async def _settled(self, key: VersionKey) -> None:
        """Of a version that is to leave: one that is being loaded cannot be unloaded before it is there."""

        def late() -> Exception:
            return LoadFailed(f"version {key[1]!r} is being loaded still after {self._load_timeout_s:g} s")

        async with time_limit(self._load_timeout_s, self._clock, late):
            await self._cache.settled(key)

    def _commit(self, operation: Operation, route: ops.Route) -> None:
        snapshot = None
        if route.active is None:
            self._router.withdraw(operation.model_id)
        else:
            snapshot = self._committed(operation, route, route.active)
        # A turn of the loop later: requests that are there already meet the new route before the registry and the store
        # hear of it.
        asyncio.get_running_loop().call_soon(self._tell_of, operation, route.active, snapshot)

    def _tell_of(self, operation: Operation, active: str | None, snapshot: RouteSnapshot | None) -> None:
        try:
            for row in () if snapshot is None else snapshot.records():
                self._record_route(row)
            self._registry.activate(operation.model_id, active, operation.operation_id, reason=operation.reason)
        except Exception as error:
            log.exception("%s: the route cannot stay", operation.operation_id)
            self._answer(operation, ops.RouteFailed(reason=f"{type(error).__name__}: {error}"))
        else:
            self._answer(operation, ops.Routed())

    def _promoted(self, operation: Operation) -> str | None:
        """The candidate that had been promoted and answers still."""
        route = self._router.current(operation.model_id)
        if route is None or route.stable.version not in operation.candidates:
            return None
        cached = self._cache.loaded.get((operation.model_id, route.stable.version))
        return route.stable.version if cached is not None and cached.instance is route.stable.instance else None

    def _withdraw(self, operation: Operation) -> None:
        """There is no way back, and no candidate that could stay: the stable version has everything, once it comes."""
        model_id = operation.model_id
        for row in self._router.stable_alone(model_id, operation.operation_id):
            self._record_route(row)
        route = self._router.current(model_id)
        if route is not None and route.stable.version in operation.candidates:
            self._registry.activate(model_id, operation.stable, operation.operation_id, reason=operation.reason)
            self._reviver.failed(model_id, operation.reason)

    def _committed(self, operation: Operation, route: ops.Route, active: str) -> RouteSnapshot:
        model_id = operation.model_id

        def cached(version: str) -> CachedVersion:
            return self._cache.loaded[model_id, version]

        arms = enumerate(route.arms)
        compared = operation.phase is Phase.SHIFTING  # also a switchback's block of the stable version alone
        salt = self._salt(operation.operation_id)
        if operation.strategy.redraws and operation.evaluation:
            salt = f"{salt}\0{operation.evaluation}"
        return self._router.commit(
            model_id,
            stable=arm_of(STABLE, active, cached(active)),
            candidates=tuple(
                arm_of(candidate_name(i), version, cached(version), share) for i, (version, share) in arms
            ),
            mirror=self._mirror(operation, route, cached),
            operation_id=operation.operation_id if compared else None,
            step=operation.stage,
            salt=salt,
        )

    def _mirror(self, operation: Operation, route: ops.Route, cached: Callable[[str], CachedVersion]) -> Mirror | None:
        strategy = operation.strategy
        if route.shadow is None or not isinstance(strategy, ShadowStrategy):
            return None
        return Mirror(
            arm=arm_of(SHADOW, route.shadow, cached(route.shadow), route.mirror),
            keep_outputs=strategy.keep_outputs,
            max_in_flight=strategy.max_in_flight,
        )

    async def _drain(self, operation: Operation, versions: tuple[str, ...]) -> None:
        keys: list[VersionKey] = [(operation.model_id, version) for version in versions]
        began_s = self._clock.monotonic_s()
        left = await asyncio.gather(*(self._transitions.drain(key, self._drain_timeout_s) for key in keys))
        for model_id, version in keys:
            self._cache.timings.took(model_id, version, DRAIN, self._clock.monotonic_s() - began_s)
        self._answer(operation, ops.Drained(left=sum(left)))

    def _unpin(self, operation: Operation, versions: tuple[str, ...]) -> None:
        for version in versions:
            self._cache.unpin((operation.model_id, version))
        self._run(self._cache.trim())

    # --- judging ----------------------------------------------------------------------------------------------------

    async def _judge(self, operation: Operation) -> None:
        try:
            judgement = await self._ask_judge(operation)
        except Exception as error:
            log.warning("%s: the judge failed, the step holds: %s", operation.operation_id, error)
            reason = f"the judge failed: {type(error).__name__}: {error}"
            judgement = Judgement(ruling=Ruling.HOLD, reason=reason)
        self._answer(operation, ops.Judged(judgement=judgement))


def _beside(operation: Operation) -> tuple[str, ...]:
    """The version that must serve beside the candidates."""
    return (operation.stable,) if operation.stable is not None and operation.strategy.needs_stable else ()


def _wanted(route: ops.Route) -> tuple[str, ...]:
    named = (route.active, *(version for version, _ in route.arms), route.shadow)
    return tuple(version for version in named if version is not None)
