"""`ModelSwitcher`: the controller. One inbox, one loop; it feeds the pure machine and has its effects carried out.

Order of every move: event → `step` → journal (durable) → effects. One exception, on purpose: a move back to the stable
version is made even when the journal cannot be written, because the stable version is what a restart would find too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from uuid import uuid4

from abswitch.clock import Clock, Timer
from abswitch.domain import RouteRecord
from abswitch.errors import (
    AbswitchError,
    InvalidInput,
    OperationFinished,
    OperationInProgress,
    StoreError,
    SwitchRefused,
)
from abswitch.rollout import operation as ops
from abswitch.rollout.judging import Judge, Judgement
from abswitch.rollout.machine import step
from abswitch.rollout.operation import Event, Operation, Phase
from abswitch.rollout.strategies import ImmediateStrategy, Strategy
from abswitch.serving.backoff import RestartPolicy
from abswitch.serving.cache import ModelCache
from abswitch.serving.effects import Effects
from abswitch.serving.instance import ModelInstance
from abswitch.serving.intents import SWITCHER, Intent
from abswitch.serving.moves import RETRY_S, JournalEntry, MoveLog
from abswitch.serving.readiness import Readiness
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.revival import Reviver
from abswitch.serving.router import RequestRouter
from abswitch.serving.transition import TransitionManager

log = logging.getLogger(__name__)
_ROUTES_SOON = frozenset({Phase.PENDING, Phase.LOADING, Phase.WARMING, Phase.PROMOTING, Phase.ROLLING_BACK})


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


async def _beside(_model_id: str, _version: str, _stable: str | None) -> ImmediateStrategy:
    return ImmediateStrategy()


class ModelSwitcher:
    """Owner of operations. Lives on the engine's loop; `operations` may be read from any thread.

    Args:
        journal: makes a move durable, at once; raises when it cannot.
        evidence: takes a durable move once its effects are under way; must not block.
        judge: the judgement on an operation's stage, given the judge it was started with.
        record_route: takes the rows of a snapshot as it comes into force.
        on_move: told of every operation as it moves; must not block.
        drain_timeout_s: how long a drain waits before the operation ends with requests still finishing.
        load_timeout_s: how long candidates may take to load and to generate.
        max_running: operations of different models under way at most.
        restarts: limits of restarting what died.
        fall_back: whether an active version that is broken gives way to the last good one by itself.
        way_back: the immediate switch for that, of (model_id, version, the version that serves).
    """

    def __init__(
        self,
        registry: DynamicModelRegistry,
        cache: ModelCache,
        readiness: Readiness,
        router: RequestRouter,
        transitions: TransitionManager,
        clock: Clock,
        *,
        journal: Callable[[JournalEntry], None],
        evidence: Callable[[JournalEntry], object] = lambda _: None,
        judge: Callable[[Operation, Judge | None], Awaitable[Judgement]],
        record_route: Callable[[RouteRecord], None],
        on_move: Callable[[Operation], None] = lambda _: None,
        drain_timeout_s: float,
        load_timeout_s: float = 300.0,
        max_running: int = 3,
        restarts: RestartPolicy | None = None,
        fall_back: bool = True,
        way_back: Callable[[str, str, str | None], Awaitable[ImmediateStrategy]] = _beside,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._router = router
        self._clock = clock
        self._moves = MoveLog(clock, journal=journal, evidence=evidence)
        self._judge = judge
        self._on_move = on_move
        self._max_running = max_running
        self._fall_back, self._way_back = fall_back, way_back
        self._operations: dict[str, Operation] = {}
        self._salts: dict[str, str] = {}
        self._judges: dict[str, Judge] = {}
        self._running: dict[str, str] = {}
        self._fallen: dict[str, set[str]] = {}
        self._retreating: dict[str, str] = {}  # by model, the way back that is being planned, in words
        self._ways_back: set[str] = set()  # operations that nobody asked for
        self._changed = asyncio.Condition()
        self._inbox: asyncio.Queue[tuple[str, Event, asyncio.Future[Operation] | None]] = asyncio.Queue()
        self._controller: asyncio.Task[None] | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._unwritten: dict[tuple[str, type[Event]], Timer] = {}
        self._last_duration_s: float | None = None
        self._reviver = Reviver(
            registry,
            readiness,
            router,
            clock,
            policy=restarts or RestartPolicy(),
            record_route=record_route,
            is_switching=lambda model_id: model_id in self._running,
            give_up=self._broken,
        )
        self._effects = Effects(
            registry,
            cache,
            readiness,
            router,
            transitions,
            self._reviver,
            clock,
            answer=self._put,
            current=lambda operation_id: self._operations[operation_id],
            salt=lambda operation_id: self._salts[operation_id],
            ask_judge=lambda operation: self._judge(operation, self._judges.get(operation.operation_id)),
            record_route=record_route,
            drain_timeout_s=drain_timeout_s,
            load_timeout_s=load_timeout_s,
        )

    # --- what callers ask -------------------------------------------------------------------------------------------

    async def start(
        self,
        model_id: str,
        target_version: str,
        strategy: Strategy,
        *,
        operation_id: str,
        salt: str,
        judge: Judge | None = None,
        intent: Intent | None = None,
    ) -> Operation:
        """Accept a switch and begin it.

        Args:
            operation_id: a fresh, unique name.
            salt: what the assignment of units depends on; the same salt gives the same split.
            judge: decides the steps that want a judgement.
            intent: who wants it and why, for the registry's history.

        Raises:
            UnknownModel, UnknownVersion, InvalidInput: the request makes no sense.
            OperationInProgress: another operation holds the model.
            SwitchRefused: the strategy compares with an active version and there is none, the target is active, or too
                many operations are under way.
        """
        now_s = self._clock.monotonic_s()
        operation = Operation(
            operation_id=operation_id,
            model_id=model_id,
            stable=self.check(model_id, target_version, strategy),
            candidate=target_version,
            strategy=strategy,
            created_s=now_s,
            phase_since_s=now_s,
        )
        self._hold(operation, salt)
        self._registry.intend(operation_id, intent)
        if judge is not None:
            self._judges[operation_id] = judge
        try:
            return await self.tell(operation_id, ops.Start())
        except BaseException:
            self._forget(operation)  # it never began: nothing was journalled, nothing is loaded
            raise

    def check(self, model_id: str, target_version: str, strategy: Strategy) -> str | None:
        """Refuse what `start` would refuse; returns the stable version."""
        self._registry.get(model_id, target_version)
        for version, _ in strategy.candidates(target_version):
            self._registry.get(model_id, version)
        holder = self._running.get(model_id)
        if holder is not None:
            raise OperationInProgress(model_id, holder, self._operations[holder].phase)
        if len(self._running) >= self._max_running:
            raise SwitchRefused(
                f"{len(self._running)} operations are under way ({', '.join(self._running.values())}), and "
                f"max_concurrent_switches is {self._max_running}"
            )
        stable = self._registry.active_version(model_id)
        if stable == target_version and not strategy.needs_stable and self._router.current(model_id) is None:
            return stable  # it was active in an earlier process and serves nothing yet; if it fails, it is active still
        _refuse_senseless(model_id, stable, target_version, strategy)
        return stable

    def _hold(self, operation: Operation, salt: str) -> None:
        self._operations[operation.operation_id] = operation
        self._salts[operation.operation_id] = salt
        self._running[operation.model_id] = operation.operation_id
        for version in operation.versions:
            self._cache.pin((operation.model_id, version))

    def _forget(self, operation: Operation) -> None:
        if self._operations[operation.operation_id].phase is not Phase.PENDING:
            return
        del self._operations[operation.operation_id], self._running[operation.model_id]
        del self._salts[operation.operation_id]
        self._judges.pop(operation.operation_id, None)
        self._registry.intend(operation.operation_id, None)
        for version in operation.versions:
            self._cache.unpin((operation.model_id, version))

    def adopt(self, operation: Operation, salt: str, sequence: int) -> None:
        """Take over an operation of an earlier process, as `rollout.recovery` left it."""
        self._moves.go_on(operation.operation_id, sequence)
        if not operation.phase.is_final and operation.model_id in self._running:
            raise OperationInProgress(operation.model_id, self._running[operation.model_id], operation.phase)
        if operation.phase.is_final:
            self._operations[operation.operation_id] = operation
            self._salts[operation.operation_id] = salt
        else:
            self._hold(operation, salt)

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

    def running(self, model_id: str) -> Operation | None:
        """The operation that holds the model. From any thread."""
        operation_id = self._running.get(model_id)
        return None if operation_id is None else self._operations.get(operation_id)

    def get_switcher_stats(self) -> SwitcherStats:
        """Counts of operations by how they ended."""
        phases = Counter(operation.phase for operation in self._operations.values())
        return SwitcherStats(
            started=len(self._operations),
            running=len(self._running),
            succeeded=phases[Phase.SUCCEEDED],
            rolled_back=phases[Phase.ROLLED_BACK],
            aborted=phases[Phase.ABORTED],
            failed=phases[Phase.FAILED],
            last_duration_s=self._last_duration_s,
        )

    # --- what the machine room reports ------------------------------------------------------------------------------

    def expected(self, model_id: str) -> str | None:
        """Why requests for a model that nothing serves may wait; begins to load its active version where that is all.

        None when there is nothing to wait for.
        """
        told = self.awaited(model_id)
        if told is not None:
            return told
        active = self._registry.active_version(model_id)
        if active is None or self._router.current(model_id) is not None or self.failure(model_id) is not None:
            return None
        self._reviver.bring_up(model_id, active)
        return self._reviver.expected(model_id)

    def awaited(self, model_id: str) -> str | None:
        """What requests for a model that nothing serves wait for now; begins nothing. From any thread."""
        told = self._reviver.expected(model_id)
        if told is not None:
            return told
        operation = self.running(model_id)
        if operation is not None and operation.phase in _ROUTES_SOON:
            return f"operation {operation.operation_id} is {operation.phase}"
        return self._retreating.get(model_id)

    def bring_up(self, model_id: str) -> None:
        """Have the model's active version serve, if it does not; in the background."""
        self.expected(model_id)

    def failure(self, model_id: str) -> str | None:
        """Why nothing serves the model although it has an active version; None when nothing failed lately."""
        return self._reviver.failure(model_id)

    def instance_lost(self, model_id: str, instance: ModelInstance, reason: str) -> None:
        """An instance died or hangs: forget it, tell the operation whose candidate it was, restart a stable one."""
        version = instance.version.version
        cached = self._cache.loaded.get((model_id, version))
        if cached is not None and cached.instance is instance:
            log.warning("version %s of model %s was lost: %s", version, model_id, reason)
            self._cache.evict((model_id, version), killed_for=reason)
        elif cached is not None or not self._router.leads_to(model_id, instance):
            return  # every request on it reports the same death; the first one was enough
        operation = self.running(model_id)
        if operation is not None and version in operation.candidates:
            route = self._router.current(model_id)
            if route is not None and route.stable.version == version:
                # It had been promoted: requests without a token wait for the way back.
                self._reviver.expect(model_id, f"operation {operation.operation_id} goes back, as {version!r} was lost")
            lost = ops.CandidateLost(reason=f"version {version!r} was lost: {reason}", version=version)
            self._put(operation.operation_id, lost)
        elif self._router.is_routed(model_id, version):
            self._reviver.restart(model_id, version, reason)

    def breached(self, model_id: str, version: str, reason: str) -> bool:
        """A version broke a critical limit: roll its operation back, or give way; False when neither is possible."""
        operation = self.running(model_id)
        if operation is not None and version in operation.candidates:
            self._put(operation.operation_id, ops.Breached(reason=reason, version=version))
            return True
        if operation is None and self._registry.active_version(model_id) == version:
            return self._retreat(model_id, version, reason)
        return False

    def _broken(self, model_id: str, version: str, reason: str) -> None:
        if not self._retreat(model_id, version, reason):
            log.error("model %s: nothing serves it any more: version %s: %s", model_id, version, reason)
            self._reviver.failed(model_id, reason)

    def _retreat(self, model_id: str, version: str, reason: str) -> bool:
        """Go back to the last version that was good; False when there is none, or that is not wanted."""
        if model_id in self._retreating:
            return True
        fallen = self._fallen.setdefault(model_id, set())
        fallen.add(version)
        good = self._registry.last_active(model_id, besides=fallen)
        if good is None or not self._fall_back:
            return False
        operation_id = f"op-{uuid4().hex[:12]}"
        self._retreating[model_id] = f"operation {operation_id} goes back to version {good!r}"
        self._reviver.expect(model_id, self._retreating[model_id])
        log.error("model %s: back from version %s to %s: %s", model_id, version, good, reason)
        task = asyncio.get_running_loop().create_task(self._start_retreat(model_id, good, operation_id, reason))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return True

    async def _start_retreat(self, model_id: str, good: str, operation_id: str, reason: str) -> None:
        intent = Intent(actor=SWITCHER, reason=reason, is_rollback=True)
        broken = self._registry.active_version(model_id)
        try:
            way = await self._way_to(model_id, good, broken)
            if (active := self._registry.active_version(model_id)) != broken:
                raise SwitchRefused(f"version {active!r} became active meanwhile")
            self._ways_back.add(operation_id)
            await self.start(model_id, good, way, operation_id=operation_id, salt=operation_id, intent=intent)
        except AbswitchError as refused:
            self._ways_back.discard(operation_id)
            self._reviver.settled(model_id)
            log.error("model %s: the way back to version %s was refused: %s", model_id, good, refused)
        finally:
            del self._retreating[model_id]

    async def _way_to(self, model_id: str, good: str, broken: str | None) -> ImmediateStrategy:
        """What cannot be planned is tried: the files of a version that is broken may be what is missing."""
        try:
            return await self._way_back(model_id, good, broken)
        except Exception as error:
            log.warning("model %s: the memory for a way back to version %s is not known: %s", model_id, good, error)
            return ImmediateStrategy()

    async def close(self) -> None:
        """Stop the controller; operations stay where they are."""
        self._moves.close()
        for timer in self._unwritten.values():
            timer.cancel()
        tasks = list(self._starting)
        if self._controller is not None:
            tasks.append(self._controller)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._effects.close()
        await self._reviver.close()

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
                    log.warning("operation %s: %s: %s", operation_id, type(event).__name__, error)
                    if isinstance(error, StoreError):
                        self._later(operation_id, event)
                else:
                    taken.set_exception(error)
                continue
            if taken is not None and not taken.done():
                taken.set_result(after)

    def _later(self, operation_id: str, event: Event) -> None:
        """What happened stays true although it could not be written down: it is tried again, or the move never ends.

        Should the operation have moved on by then, the event's epoch is an older one, and it is dropped.
        """
        again = self._clock.call_later(RETRY_S, lambda: self._put(operation_id, event))
        self._unwritten[operation_id, type(event)] = again

    async def _take(self, before: Operation, event: Event) -> Operation:
        if before.phase.is_final:
            if isinstance(event, _COMMANDS):
                raise OperationFinished(before.operation_id, before.phase)
            return before  # late news of something that is over
        after, effects = step(before, event, self._clock.monotonic_s())
        if after is before:
            return before
        written = self._moves.write(before, event, after, salt=self._salts[after.operation_id])
        self._operations[after.operation_id] = after
        if effects and isinstance(effects[0], ops.Route):  # users wait for it, and for nothing that follows
            self._effects.carry_out(after, effects[0])
            effects = effects[1:]
        self._effects.moved(after)
        self._on_move(after)
        if after.phase.is_final:
            self._end(after)
        log.info("%s: %s → %s (%s)", after.operation_id, before.phase, after.phase, after.reason)
        for effect in effects:
            self._effects.carry_out(after, effect)
        try:
            await asyncio.sleep(0)  # who waits to be admitted meets the new route before anything else is done
        finally:
            if written is not None:
                self._moves.tell(written)
        async with self._changed:
            self._changed.notify_all()
        return after

    def _end(self, operation: Operation) -> None:
        self._running.pop(operation.model_id, None)
        self._judges.pop(operation.operation_id, None)
        self._last_duration_s = self._clock.monotonic_s() - operation.created_s
        if operation.operation_id in self._ways_back:
            self._ways_back.discard(operation.operation_id)
            if operation.phase is Phase.FAILED and operation.strategy.drains_first:
                # What serves, broken as it is, had left for it. Tried again at every breach, it would leave each time.
                self._fallen.setdefault(operation.model_id, set()).add(operation.candidate)
        if operation.stays is not None:
            self._cache.unpin((operation.model_id, operation.stays))
            if operation.promoted:  # somebody wants it again
                self._fallen.get(operation.model_id, set()).discard(operation.stays)


_COMMANDS = (ops.Start, ops.Conclude, ops.Pause, ops.Resume, ops.Abort)


def _refuse_senseless(model_id: str, stable: str | None, target: str, strategy: Strategy) -> None:
    if stable is None and strategy.needs_stable:
        raise SwitchRefused(
            f"{strategy.type} compares with the active version, and model {model_id!r} has none; "
            f"deploy one first with strategy_type=SwitchingStrategyType.IMMEDIATE"
        )
    for version in dict(strategy.candidates(target)):
        if stable == version:
            raise SwitchRefused(f"version {version!r} is already the active version of model {model_id!r}")
