"""`VllmEnginePool`: the vLLM engines of one `SwitchingEngine`, each started once and shared by those it can serve.

An engine is a process tree with one set of weights. Versions that differ only in adapter, sampling or prompt template
are served by the same one; the last of them to go ends it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import shutil
import signal
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import psutil

from abswitch.domain import ModelVersion
from abswitch.errors import InstanceDied, LoadFailed
from abswitch.serving.cores import CoreGroups, Seat, bind, core_groups
from abswitch.serving.loop import off_loop
from abswitch.serving.policy import Footprint
from abswitch.serving.reaper import ProcessReaper, reap_orphans
from abswitch.serving.vllm_args import EnginePlan, Vllm, load_vllm, may_be_placed, on_cores, plan_of
from abswitch.serving.vllm_log import EngineLog, forget_log, log_argument, why_it_died, why_it_failed
from abswitch.serving.vllm_memory import asleep, estimate
from abswitch.serving.vllm_swap import can_tie

log = logging.getLogger(__name__)

T = TypeVar("T")
_CPU_STARTS = 2
_LIFE_SIGN_S = 0.2


class VllmEngine:
    """One running `AsyncLLM` and what it takes to share it.

    Attributes:
        llm: vLLM's `AsyncLLM`.
        vllm: the library.
        plan: what it was started with.
        expected: the memory it was estimated to take.
        last_token_s: when it last gave a token to any of those that share it, on the monotonic clock.
        is_asleep: whether it sleeps, or is on its way there or back.
    """

    def __init__(
        self,
        llm: Any,
        vllm: Vllm,
        plan: EnginePlan,
        log: EngineLog,
        *,
        expected: Footprint | None = None,
        seat: Seat | None = None,
    ) -> None:
        self.llm = llm
        self.vllm = vllm
        self.plan = plan
        self.log = log
        self.expected = expected or Footprint()
        self.is_asleep = False
        self.max_model_len = int(llm.model_config.max_model_len)
        self._processes = _processes(llm)
        self._seat = seat
        self._killed_for: str | None = None
        self.last_token_s: float | None = None

    @property
    def can_sleep(self) -> bool:
        return self.vllm.can_sleep and bool(self.plan.args.get("enable_sleep_mode"))

    @property
    def is_dead(self) -> bool:
        return bool(self.llm.errored)

    @property
    def was_killed(self) -> bool:
        """Whether `kill` ended it."""
        return self._killed_for is not None

    def kill(self, reason: str) -> None:
        """End its processes now, stopped or stuck as they may be, and tell everybody who waits for its answers.

        Not left to vLLM's own watch over its processes: that takes its time, and what listens for it is about to go.
        """
        if self.was_killed:
            return
        self._killed_for = reason
        processes = self.pids
        for pid in processes:
            with suppress(psutil.Error):
                psutil.Process(pid).kill()
        resources = getattr(self.llm.engine_core, "resources", None)
        if resources is not None:
            resources.engine_dead = True  # nothing more is sent to it
        self.llm.output_processor.propagate_error(self.vllm.dead_error())

    async def told(self, call: Coroutine[Any, Any, T]) -> T:
        """What the engine says to a call that is no request; vLLM leaves who calls one that dies then waiting for ever.

        Raises:
            InstanceDied: it died, or was killed, before it answered.
        """
        answer = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait([answer], timeout=_LIFE_SIGN_S))[0]:
                if self.is_dead:
                    raise InstanceDied(f"the engine died: {self.death()}")
            return answer.result()
        finally:
            answer.cancel()

    def death(self) -> str:
        """Why it died, as far as can be told."""
        if self._killed_for is not None:
            return self._killed_for
        return why_it_died([process.exitcode for process in self._processes], self.log)

    @property
    def pids(self) -> list[int]:
        """The engine's own processes and those they started."""
        found: list[int] = []
        for process in self._processes:
            with suppress(psutil.Error):
                root = psutil.Process(process.pid)
                found += [root.pid, *(child.pid for child in root.children(recursive=True))]
        return found

    def begin_work(self) -> None:
        """A request begins. An engine whose cores are busy with another's moves to cores that are not."""
        group = None if self._seat is None else self._seat.begin()
        if group is not None:
            bind((process.pid for process in self._processes), group.cpus)

    def end_work(self) -> None:
        """A request ended, one way or another."""
        if self._seat is not None:
            self._seat.end()

    def memory_bytes(self) -> int:
        """Memory of the engine's processes, shared pages counted once where the system tells. Blocks for a moment."""
        return sum(_memory_bytes(pid) for pid in self.pids)

    def device_memory_bytes(self) -> int | None:
        """Accelerator memory of the engine's processes; None where NVML does not tell. Blocks for a moment."""
        return None if self.vllm.on_cpu else _nvml_bytes(set(self.pids))

    def footprint(self, *, sleeps: bool = False) -> Footprint:
        """Memory of the engine's processes on device and host. Blocks for a moment.

        Where NVML does not tell (it names processes as the machine does, so that a container finds none of its own) it
        is what was estimated: taken as nothing, an engine would leave the whole device to the next.
        """
        device = self.device_memory_bytes()
        if device is None:
            device = min(self.expected.device_bytes, asleep(self.plan)) if sleeps else self.expected.device_bytes
        return Footprint(device, self.memory_bytes())

    async def reload_weights(self, folder: str | None = None) -> None:
        """Load weights in place; cached prefixes are of the old ones, so they go.

        Args:
            folder: of another checkpoint of the same network; by default the one that was loaded last.
        """
        method = "reload_tied_weights" if can_tie(self.plan) else "reload_weights"
        await self.told(self.llm.collective_rpc(method, kwargs={} if folder is None else {"weights_path": folder}))
        await self.told(self.llm.reset_prefix_cache())

    async def stop_listening(self) -> None:
        """No longer wait for answers: nobody asks any more, and an end on purpose is not to be reported as a death."""
        listener = getattr(self.llm, "output_handler", None)
        if listener is not None and listener.cancel():
            await asyncio.wait([listener])

    def leave_cores(self) -> None:
        """Its processes are gone: its cores are others'."""
        if self._seat is not None:
            self._seat.leave()

    def shut_down(self) -> None:
        """End the engine's processes. Blocks for seconds."""
        self.llm.shutdown()
        multiprocessing.active_children()  # joins those that ended, so that none stays behind as a zombie


def _processes(llm: Any) -> list[Any]:
    manager = getattr(getattr(llm.engine_core, "resources", None), "engine_manager", None)
    return list(getattr(manager, "processes", ()))


def _memory_bytes(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        with suppress(AttributeError, psutil.AccessDenied):
            return int(process.memory_full_info().pss)
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _nvml_bytes(pids: set[int]) -> int | None:
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        running = [p for device in devices for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)]
    except pynvml.NVMLError:
        return None
    used = [int(p.usedGpuMemory) for p in running if p.pid in pids and p.usedGpuMemory is not None]
    return sum(used) if used else None


class _Slot:
    """An engine that runs or is on its way, and how many versions hold it."""

    def __init__(self, plan: EnginePlan, start: asyncio.Task[VllmEngine]) -> None:
        self.plan = plan
        self.start = start
        self.holders = 0
        self.adapters = 0

    @property
    def is_usable(self) -> bool:
        if not self.start.done():
            return True
        return not self.start.cancelled() and self.start.exception() is None and not self.start.result().is_dead

    def fits(self, plan: EnginePlan) -> bool:
        """Whether a version with that plan could be served here."""
        if self.plan.base != plan.base or not self.is_usable:
            return False
        if (engine := _result(self.start)) is not None and engine.is_asleep:
            return False  # who joined it would be answered by nobody until the one that sleeps is asked for
        if plan.needs is None:
            return True
        room = self.plan.room
        if room is None or room.rank < plan.needs.rank or room.slots < plan.needs.slots:
            return False
        return plan.adapter is None or self.adapters < room.slots


class VllmEnginePool:
    """Starts engines, shares them, ends them. Lives on one event loop; nothing is started before it is asked for.

    Args:
        cpu_groups: on a CPU, into how many groups of cores engines are spread.
    """

    def __init__(self, *, cpu_groups: int = 2) -> None:
        self._cores = CoreGroups(core_groups(cpu_groups))
        self._slots: list[_Slot] = []
        self._reaper = ProcessReaper()
        self._starts: asyncio.Semaphore | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._names = count(1)
        self._adapter_ids = count(1)
        self._folder: Path | None = None

    def next_adapter_id(self) -> int:
        """A number no adapter had before: vLLM would answer a re-used one from the old adapter's cache."""
        return next(self._adapter_ids)

    async def acquire(self, version: ModelVersion) -> tuple[VllmEngine, bool]:
        """An engine that can serve the version, and whether it ran already; to be given back by `release`.

        Raises:
            InvalidInput: the version's engine arguments are wrong; nothing was started.
            LoadFailed: with the reason; nothing is left running.
        """
        vllm = await _library(version)
        plan = await asyncio.to_thread(plan_of, version, vllm)
        slot = self._slot_for(plan)
        joined = slot is not None and slot.start.done()  # who waits for its start waits as long as for a load
        if slot is None:
            slot = _Slot(plan, asyncio.create_task(self._start(version, plan, vllm), name=f"start {version}"))
            self._slots.append(slot)
        slot.holders += 1
        slot.adapters += plan.adapter is not None
        try:
            return await asyncio.shield(slot.start), joined
        except BaseException:
            # Not awaited: whoever was cancelled need not wait for a start that nobody wants any more to end.
            self._let_go(slot, plan.adapter is not None)
            raise

    async def release(self, engine: VllmEngine, version: ModelVersion) -> None:
        """Give an engine back; the last holder ends it, and returns when its processes are gone."""
        slot = next((slot for slot in self._slots if _result(slot.start) is engine), None)
        ending = None if slot is None else self._let_go(slot, version.config.adapter is not None)
        if ending is not None:
            await asyncio.shield(ending)  # an end that is cut short could leave processes behind

    async def running(self, version: ModelVersion) -> VllmEngine | None:
        """The engine that runs already and that `acquire` would give the version; None where one must be started.

        Raises:
            InvalidInput, LoadFailed: as `acquire`.
        """
        plan = await asyncio.to_thread(plan_of, version, await _library(version))
        slot = self._slot_for(plan)
        return None if slot is None else _result(slot.start)

    async def needs(self, version: ModelVersion) -> Footprint:
        """Memory that `acquire` would take beyond what runs: an engine's, or only the adapter's where one is joined.

        Raises:
            InvalidInput, LoadFailed: as `acquire`.
        """
        vllm = await _library(version)
        plan = await asyncio.to_thread(plan_of, version, vllm)
        joins = self._slot_for(plan) is not None
        return await asyncio.to_thread(estimate, plan, version, vllm, joins=joins)

    async def swap(self, engine: VllmEngine, version: ModelVersion) -> None:
        """Load another version's weights into a drained engine; its cached prefixes are of the old ones, so they go."""
        plan = await asyncio.to_thread(plan_of, version, engine.vllm)
        slot = next(slot for slot in self._slots if _result(slot.start) is engine)
        # From here on it is an engine of neither version, and nobody may join it.
        slot.plan = engine.plan = replace(engine.plan, base=("being swapped",))
        await engine.reload_weights(str(plan.args["model"]))
        slot.plan = engine.plan = plan

    def holders(self, engine: VllmEngine) -> int:
        """How many versions an engine serves now."""
        return next((slot.holders for slot in self._slots if _result(slot.start) is engine), 0)

    def _slot_for(self, plan: EnginePlan) -> _Slot | None:
        return next((slot for slot in self._slots if slot.fits(plan)), None)

    def _let_go(self, slot: _Slot, with_adapter: bool) -> asyncio.Task[None] | None:
        slot.holders -= 1
        slot.adapters -= with_adapter
        if slot.holders:
            return None
        self._slots.remove(slot)
        task = asyncio.create_task(self._end(slot), name="end of a vLLM engine")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _start(self, version: ModelVersion, plan: EnginePlan, vllm: Vllm) -> VllmEngine:
        if self._starts is None:
            # Memory profiling reads whole-device figures: two starts at once on one device would mislead each other.
            self._starts = asyncio.Semaphore(_CPU_STARTS if vllm.on_cpu else 1)
        async with self._starts:
            seat = self._cores.seat() if may_be_placed(vllm, plan.args) else None
            try:
                return await asyncio.to_thread(self._build, version, plan, vllm, seat)
            except BaseException:
                if seat is not None:
                    seat.leave()
                raise

    def _build(self, version: ModelVersion, plan: EnginePlan, vllm: Vllm, seat: Seat | None) -> VllmEngine:
        reap_orphans()
        expected = estimate(plan, version, vllm, joins=False)
        engine_log = EngineLog.in_folder(self._log_folder(), f"engine-{next(self._names)}")
        own_log = log_argument(vllm.engine_args, engine_log)
        own_cores = {} if seat is None else on_cores(plan.args, seat.group)
        try:
            with self._reaper.marking(), _without_interrupts():
                llm = vllm.async_llm.from_engine_args(vllm.engine_args(**(own_log | dict(plan.args) | own_cores)))
        except Exception as error:
            multiprocessing.active_children()  # as in `shut_down`
            reason = why_it_failed(error, engine_log)
            where = f" (log: {engine_log.file})" if engine_log.file.exists() else ""
            raise LoadFailed(f"{version} did not load: {reason}{where}") from error
        finally:
            if own_log:
                forget_log()
        log.info("vLLM serves %s, context %d tokens", plan.args["model"], llm.model_config.max_model_len)
        return VllmEngine(llm, vllm, plan, engine_log, expected=expected, seat=seat)

    def _log_folder(self) -> Path:
        if self._folder is None or not self._folder.exists():
            self._folder = Path(tempfile.mkdtemp(prefix="abswitch-vllm-"))
        return self._folder

    async def _end(self, slot: _Slot) -> None:
        with suppress(Exception):  # a start that failed left nothing to end, and told its callers
            engine = await slot.start
            died = engine.is_dead
            await engine.stop_listening()
            await off_loop(engine.shut_down)
            engine.leave_cores()
            if not died:
                engine.log.remove()
        # The last of several that end at once: what the others are still ending is not left over.
        if not self._slots and self._ending <= {asyncio.current_task()}:
            await off_loop(self._clean_up)

    def _clean_up(self) -> None:
        ended = self._reaper.reap()
        if ended:
            log.info("ended engine processes that outlived their shutdown: %s", ended)
        self._reaper.close()
        if self._folder is not None and not any(self._folder.glob("*.log")):
            shutil.rmtree(self._folder, ignore_errors=True)


async def _library(version: ModelVersion) -> Vllm:
    try:
        return await asyncio.to_thread(load_vllm)
    except ImportError as error:
        raise LoadFailed(
            f"{version} did not load: vLLM cannot be imported ({error}); pip install abswitch[cpu]"
        ) from error


def _result(start: asyncio.Task[VllmEngine]) -> VllmEngine | None:
    failed = not start.done() or start.cancelled() or start.exception() is not None
    return None if failed else start.result()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C; interrupting a cell sends it to the kernel's whole process group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
