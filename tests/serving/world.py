"""A world for the stateful test: processes that live and crash one after the other, one journal, clients, faults.

Everything in a life is the real thing but the engines (scripted) and time (virtual). A life that crashes leaves its
journal and its registered versions; nothing else reaches the next one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import selectors
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from abswitch.clock import VirtualClock
from abswitch.domain import GenerationRequest, Prompt, RouteRecord, TokenChunk
from abswitch.errors import InstanceDied, InstanceNotRunning, LoadFailed, RequestFailed, StoreError, StreamBroken
from abswitch.persistence import SwitchLog, open_journal
from abswitch.rollout.machine import TABLE
from abswitch.rollout.operation import Operation, Phase
from abswitch.serving.dispatch import Submission
from abswitch.serving.moves import JournalEntry
from abswitch.serving.router import PINNED
from abswitch.serving.scripted import Gate, ScriptedBackend, ScriptedInstance
from abswitch.testing import Witness
from tests.serving.harness import Shell

MODELS = ("bot", "helper")
VERSIONS = ("v1", "v2", "v3", "v4")
PROMPT = "who are you?"
Key = tuple[str, str]


class Crash(BaseException):
    """The process ends here; nothing catches it."""


class TickingClock(VirtualClock):
    """Every reading is a little later than the one before, so that rows tell which of two things came first."""

    def monotonic_s(self) -> float:
        self._monotonic_s += 1e-4
        return self._monotonic_s

    def now_s(self) -> float:
        """The time, without a tick."""
        return self._monotonic_s

    def forget_timers(self) -> None:
        """They were the dead process's."""
        self._heap.clear()


MOST_TURNS = 200_000
"""Of the event loop until everything waits; the busiest step of a history takes a few thousand."""


class IdleSelector(selectors.DefaultSelector):
    """Tells when the event loop has nothing left to run, and fails when that does not come."""

    def __init__(self) -> None:
        super().__init__()
        self.when_idle: Callable[[], None] = lambda: None
        self.turns = 0

    def select(self, timeout: float | None = None) -> Any:
        self.turns += 1
        assert self.turns < MOST_TURNS, "something goes on and on although no time passes"
        if timeout is None or timeout > 0:
            self.when_idle()
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose own timers (of `asyncio.wait(timeout=…)`) run on the virtual clock, too."""

    def __init__(self, clock: TickingClock) -> None:
        selector = IdleSelector()
        super().__init__(selector)
        selector.when_idle = self.stop
        self._selecting = selector
        self._virtual = clock

    def time(self) -> float:
        return self._virtual.now_s()

    def settle(self) -> None:
        """Run until everything waits."""
        self._selecting.turns = 0
        self.run_forever()


class Life(Shell):
    """One process, from its start to its end or crash."""

    def __init__(self, world: World) -> None:
        self.world = world
        super().__init__(
            clock=world.clock,
            backend=ScriptedBackend(answers=dict(world.answers), configure=world.configure, clock=world.clock),
            last_epochs=world.last_epochs,
            versions=(),
            drain_timeout_s=20.0,
            max_wait_s=30.0,
            max_cached_models=2,
        )
        self.witness = Witness()
        self.log = SwitchLog(open_journal(world.folder / "store.duckdb"), cast(Any, self))
        self.stored: list[Any] = []

    def transition(self, *row: Any) -> None:
        """What the store would take: the journal's copy as evidence."""
        self.stored.append(row)

    def _journal(self, entry: JournalEntry) -> None:
        super()._journal(entry)
        self.world.durable(entry, self.journal)
        self.log.write(entry)
        self.log.copy(entry)
        if self.world.crash_at_write:
            raise Crash

    def _route(self, record: RouteRecord) -> None:
        super()._route(record)
        self.world.routed(record)

    def _moved(self, operation: Operation) -> None:
        super()._moved(operation)
        self.world.moved(operation)

    def take_over(self) -> None:
        """As `abswitch.assembly` does when an engine is opened, and again when the last process crashed."""
        recovery = self.log.recovery(self.clock.monotonic_s())
        for adopted in recovery.operations:
            self.switcher.adopt(adopted.operation, adopted.salt, adopted.sequence)
        for model_id, (version, operation_id) in recovery.active.items():
            self.registry.activate(model_id, version, operation_id)
        if recovery.crashed:
            for model_id in recovery.active:
                self.switcher.bring_up(model_id)


class World:
    """All lives of one example, with the checks that need to be made the moment something happens."""

    def __init__(self) -> None:
        logging.disable(logging.CRITICAL)  # thousands of planned failures would be logged
        self.clock = TickingClock()
        self.loop = VirtualLoop(self.clock)
        self.folder = Path(tempfile.mkdtemp(prefix="world-", dir=_fast_folder()))
        self.broken: list[str] = []
        self.bad: set[str] = set()
        self.unloadable: set[str] = set()
        self.load_gate = Gate(is_open=True)
        self.gates: dict[Key, Gate] = defaultdict(lambda: Gate(is_open=True))
        self.lost: set[int] = set()
        self.faults = 0
        self.unwritten = False
        self.crash_at_write = False
        self.attempts: dict[str, list[str]] = defaultdict(list)
        self.aborted: set[str] = set()
        self.arms: dict[tuple[str, str], tuple[int, str]] = {}
        self.clients: dict[str, asyncio.Task[str | None]] = {}
        self.numbers = 0
        self.last_epochs: dict[str, int] = {}
        self.answers = {v: self._answer(v) for v in VERSIONS}
        self.life = self.run(self._born())

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, work: Any) -> Any:
        """Run to the end, or as far as it comes before everything waits; a crash on the way begins a new life."""
        task = self.loop.create_task(work)
        self.settle()
        if not task.done():
            return None
        return None if task.cancelled() else task.result()

    def call(self, act: Callable[..., object], *arguments: object) -> None:
        """Call something on the loop, and let everything happen that follows."""

        async def calling() -> None:
            act(*arguments)

        self.run(calling())

    def settle(self) -> None:
        """Let everything happen that can."""
        self.loop.settle()
        if self.crash_at_write and any(isinstance(e, Crash) for e in self._controller_ends()):
            self.crash()

    def _controller_ends(self) -> list[BaseException | None]:
        controller = self.life.switcher._controller
        return [controller.exception()] if controller is not None and controller.done() else []

    def tick(self, seconds: float) -> None:
        """Let time pass, with everything that falls due on the way."""
        until_s = self.clock.now_s() + seconds
        while (due_s := self.clock.next_timer_s()) is not None and due_s < until_s:
            self._advance(due_s)
        self._advance(until_s)

    def _advance(self, to_s: float) -> None:
        try:
            self.clock.advance(max(0.0, to_s - self.clock.now_s()))
        except Crash:  # a timer's own write, of what the journal is owed
            self.crash()
        self.settle()

    # --- lives ------------------------------------------------------------------------------------------------------

    async def _born(self, before: Life | None = None) -> Life:
        life = Life(self)
        if before is not None:  # the store keeps registered versions
            models = before.registry.list_models()
            life.registry.restore(v for model in models for v in before.registry.get_model_versions(model))
        life.take_over()
        return life

    def crash(self) -> None:
        """The process ends between two instructions; what it had written down is all that is left of it."""
        self.faults += 1
        self.crash_at_write = False
        dead = self.life
        self._check_history(dead, open_too=True)
        dead.log._journal._release()  # as the kernel does: the files are closed, and nothing is noted in them
        for row in dead.routes:
            self.last_epochs[row.model_id] = max(row.epoch, self.last_epochs.get(row.model_id, 0))
        self._bury()
        self.loop = VirtualLoop(self.clock)
        self.clock.forget_timers()
        self.lost.clear()
        self.clients.clear()
        self.attempts.clear()
        self.life = self.run(self._born(dead))

    def _bury(self) -> None:
        self.muted = True
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.settle()
        self.loop.close()
        self.muted = False

    muted = False

    # --- engines ----------------------------------------------------------------------------------------------------

    def _answer(self, version: str) -> Callable[[Prompt], tuple[str, ...]]:
        def answer(prompt: Prompt) -> tuple[str, ...]:
            if version in self.bad and prompt == PROMPT:
                raise ValueError(f"{version} answers nonsense")
            return ("I ", "am ", version)

        return answer

    def configure(self, instance: ScriptedInstance) -> None:
        """Prepare a new engine: its gates and faults, and a look at what is done to it."""
        version = instance.version
        instance.load_gate = self.load_gate
        instance.token_gate = self.gates[version.key]
        if version.version in self.unloadable:
            instance.load_error = "no such tensor"
        generate, stop = instance.generate, instance.stop

        def asked(request: GenerationRequest) -> Any:
            self.attempts[request.request_id].append(version.version)
            return generate(request)

        async def stopped() -> None:
            held = [r for r in self.life.transitions.in_flight() if r.key == version.key]
            mine = instance.in_flight and held and id(instance) not in self.lost and instance._death is None
            if mine and not self.muted:
                self.broken.append(f"{version} was unloaded with {instance.in_flight} requests in flight")
            await stop()

        instance.generate = asked  # type: ignore[method-assign]  # the scripted engine, watched
        instance.stop = stopped  # type: ignore[method-assign]

    # --- clients ----------------------------------------------------------------------------------------------------

    def ask(self, model_id: str, unit: str, *, version: str | None = None, leave_after: int | None = None) -> None:
        """Send one request; its client reads in the background."""
        self.numbers += 1
        submission = Submission(
            request_id=f"r{self.numbers}",
            model_id=model_id,
            prompt=PROMPT,
            unit_id=unit,
            overrides={},
            submitted_mono_s=self.clock.monotonic_s(),
            version=version,
        )
        stream: Any = self.life.dispatcher.stream(submission)
        reading = self.life.witness.read(submission.request_id, stream, leave_after=leave_after)
        self.clients[submission.request_id] = self.loop.create_task(reading)

    def waiting(self) -> list[asyncio.Task[str | None]]:
        """Clients that read and do not know yet how it ends."""
        return [task for task in self.clients.values() if not task.done()]

    # --- checks made at once ----------------------------------------------------------------------------------------

    def routed(self, record: RouteRecord) -> None:
        """A snapshot came into force: everything in it has shown a token, and nobody aborted it before."""
        snapshot = self.life.router.current(record.model_id)
        if snapshot is None or snapshot.epoch != record.epoch:
            assert snapshot is None or snapshot.epoch > record.epoch
            return  # another one came into force before this one was told of
        mirror = () if snapshot.mirror is None else (snapshot.mirror.arm,)
        for arm in (*snapshot.arms, *mirror):
            instance = cast(ScriptedInstance, arm.instance)
            if arm.share > 0.0 and not instance._tokens:
                self.broken.append(f"epoch {record.epoch}: {arm.version} is routed and never generated a token")
        before = {r.arm for r in self.life.routes if r.model_id == record.model_id and r.epoch == record.epoch - 1}
        if record.operation_id in self.aborted and record.arm not in before:
            self.broken.append(f"epoch {record.epoch}: {record.operation_id} was aborted, and is routed again")

    def durable(self, entry: JournalEntry, journal: list[Any]) -> None:
        """A move is written down: it is one of the table, and follows the one before."""
        move = entry.transition
        events = {event.__name__: to for event, to in TABLE[Phase(move.phase_from)].items()}
        if Phase(move.phase_to) not in events.get(move.event, frozenset()):
            self.broken.append(f"{move.operation_id}: {move.phase_from} --{move.event}--> {move.phase_to} is no move")
        before = [one for one in journal[:-1] if one.operation_id == move.operation_id]
        if before and move.phase_from != before[-1].phase_to and not self.unwritten:
            self.broken.append(f"{move.operation_id}: a move from {move.phase_from} after {before[-1].phase_to}")

    def moved(self, operation: Operation) -> None:
        """An operation that ended has drained what left, unless it says that requests still finish there, or had no way
        back: then there is nothing to wait for, and what runs finishes all the same."""
        if not operation.phase.is_final or "finish on the version" in operation.reason:
            return
        if operation.phase is Phase.FAILED and operation.reason.startswith("no way back"):
            return
        leases = self.life.transitions.in_flight(operation.model_id)
        held = {one.key[1] for one in leases if one.arm != PINNED and id(one) not in self.lost}
        if operation.exposed and held & set(operation.leaving):
            self.broken.append(f"{operation.operation_id} ended while requests hold {held & set(operation.leaving)}")

    # --- checks made between steps ----------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold whenever everything waits."""
        assert not self.broken, "\n".join(self.broken)
        for model_id in self.life.registry.list_models():
            self._check_model(model_id)

    def _check_model(self, model_id: str) -> None:
        life = self.life
        running = [o for o in life.switcher.operations.values() if o.model_id == model_id and not o.phase.is_final]
        assert len(running) <= 1, f"{model_id}: {running}"
        assert life.switcher.running(model_id) == (running[0] if running else None)
        snapshot = life.router.current(model_id)
        if snapshot is None:
            return
        assert math.isclose(sum(arm.share for arm in snapshot.arms), 1.0), snapshot.arms
        assert all(0.0 < arm.share <= 1.0 for arm in snapshot.arms)
        assert snapshot.stable.version == life.registry.active_version(model_id)
        for arm in snapshot.arms:
            assert arm.instance.version.key == (model_id, arm.version), "an arm serves what it is named after"
        compared = bool(snapshot.candidates) or snapshot.mirror is not None
        operation = running[0] if running else None
        if operation is None or operation.detached or operation.phase in (Phase.PENDING, Phase.LOADING, Phase.WARMING):
            assert not compared, f"{operation}: {snapshot}"
        elif operation.phase in (Phase.EVALUATING, Phase.PAUSED):
            assert snapshot.operation_id == operation.operation_id
            shares = {arm.version: arm.share for arm in snapshot.candidates}
            wanted = {version: part * operation.share for version, part in operation.arms if operation.share}
            assert shares.keys() == wanted.keys() and all(math.isclose(shares[v], wanted[v]) for v in wanted)
            assert (snapshot.mirror.arm.share if snapshot.mirror else 0.0) == operation.mirror
        for one in life.switcher.operations.values():
            if one.operation_id in self.aborted and one.phase.is_final:
                assert one.phase in (Phase.ABORTED, Phase.FAILED), f"aborted, and ended as {one.phase}: {one.reason}"

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Heal everything, end every operation, and hold the whole history against what clients saw."""
        self.heal()
        for operation in list(self.life.switcher.operations.values()):
            if not operation.phase.is_final:
                self.run(self.life.switcher.abort(operation.operation_id))
        for _ in range(30):
            self.tick(60.0)
        self.check()
        life = self.life
        late = [o for o in life.switcher.operations.values() if not o.phase.is_final]
        assert not late, f"never ended: {late}"
        waiting = [name for name, task in self.clients.items() if not task.done()]
        assert not waiting, f"never told how it ended: {waiting}"
        assert not life.transitions.in_flight(), life.transitions.in_flight()
        assert not life.queue.waiting()
        assert not +life.cache._pins, f"still pinned: {life.cache._pins}"
        if not self.faults:
            assert not life.witness.failed, life.witness.failed
        self._check_history(life)
        self.run(self._closed(life))
        left = [str(i.version) for i in life.backend.made if i.counts.loads and not i.counts.stops]
        assert not left, f"engines left running: {left}"

    async def _closed(self, life: Life) -> None:
        await life.close()
        life.log.close()

    def heal(self) -> None:
        """No fault from now on."""
        self.life.journal_error = None
        self.crash_at_write = False
        self.bad.clear()
        self.unloadable.clear()
        self.load_gate.open()
        for gate in self.gates.values():
            gate.open()
        self.settle()

    def close(self) -> None:
        """Leave nothing behind."""
        logging.disable(logging.NOTSET)
        if not self.loop.is_closed():
            self._bury()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_history(self, life: Life, *, open_too: bool = False) -> None:
        witness = life.witness
        running = {name for name, task in self.clients.items() if not task.done()} if open_too else set()
        seen = witness.seen()
        recorded = {row.request_id for row in life.requests}
        rows = [row for row in life.requests if row.pair_id not in running]
        pending: dict[str, list[TokenChunk]] = {n: c for n, c in witness.streams.items() if n not in running}
        seen |= {"sent": seen["sent"] - running, "streams": pending}
        report = witness.check(
            [row for row in rows if row.request_id not in running],
            life.routes,
            **seen,
            transitions=life.journal,
            attempts=self.attempts,
            truth={(version, PROMPT): f"I am {version}" for version in VERSIONS},
        )
        assert not running & recorded, "a row is written when a request ends"
        report.raise_for_violations()
        self._check_failures(life)
        self._check_sticky(life)

    def _check_failures(self, life: Life) -> None:
        """A request that had no token fails only when nothing came to serve it in time, or it met death after death."""
        for name, error in life.witness.failed.items():
            if isinstance(error, InstanceDied | InstanceNotRunning):
                nothing = isinstance(error.__cause__, RequestFailed | LoadFailed)
                assert nothing or len(self.attempts[name]) >= 4, f"{name}: {error!r} with {self.attempts[name]}"
            else:
                assert isinstance(error, StreamBroken | ValueError), f"{name}: {error!r}"

    def _check_sticky(self, life: Life) -> None:
        """Within an operation a unit that met a candidate meets no other version any more, restarts included."""
        for row in sorted(life.requests, key=lambda row: row.admitted_mono_s):
            if row.operation_id is None or row.arm in (PINNED, "shadow"):
                continue
            key = (row.operation_id, row.unit_id)
            step, version = self.arms.get(key, (-1, ""))
            if row.arm == "stable":
                assert not version or row.step < step, f"{key}: {version} at step {step}, then stable at {row.step}"
                continue
            assert version in ("", row.assigned_version), f"{key}: {version}, then {row.assigned_version}"
            self.arms[key] = (max(step, row.step), row.assigned_version)


def locked() -> StoreError:
    """What the journal says while another process holds it, or the disk is full."""
    return StoreError("no space left on device")


def _fast_folder() -> str | None:
    """Memory where there is some: the journal is synced at every move."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
