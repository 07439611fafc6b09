"""`HealthMonitor`: states facts about versions and raises alerts. It decides nothing: what a breach or a loss leads to
is the switcher's business, which it is told.

Nothing is healthy by default. A metric without enough evidence is `unknown`: it neither breaks a limit nor resolves an
alert.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from abswitch.clock import Clock
from abswitch.domain import HealthFacts, RequestRecord, VersionKey
from abswitch.rollout.limits import METRICS
from abswitch.rollout.operation import Operation, Phase
from abswitch.serving.alertdesk import AlertDesk
from abswitch.serving.cache import ModelCache
from abswitch.serving.findings import Finding, HealthPolicy, HealthState, above, findings_of
from abswitch.serving.hostmemory import used_fraction
from abswitch.serving.instance import ModelInstance
from abswitch.serving.report import HealthReport, VersionHealth, version_health
from abswitch.serving.router import RequestRouter
from abswitch.serving.transition import TransitionManager
from abswitch.serving.watchdog import Watchdog
from abswitch.serving.windows import Window

log = logging.getLogger(__name__)
MEMORY_EVERY_S = 10.0
"""Reading what a process tree occupies takes milliseconds per process."""
_LATE = 2.0  # intervals: a look that comes later than this means that the process itself stood still
_TRAFFIC_BEGINS = frozenset({Phase.SHIFTING, Phase.PROMOTING})
HUNG, LOST = "hung", "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Whom the monitor asks, and whom it tells.

    Attributes:
        waiting: how many requests of a model wait for something to serve them.
        queues: models whose requests wait, or have waited, whether or not anything serves them.
        operation: the operation that holds a model.
        lost: told of an instance that is gone, or hangs and has to go: (model, instance, reason).
        breached: told of (model, version, reason); whether anything came of it.
        may_probe_idle: see `Watchdog`.
        sampled: given what was measured of a version, every `MEMORY_EVERY_S`.
    """

    waiting: Callable[[str], int]
    operation: Callable[[str], Operation | None]
    lost: Callable[[str, ModelInstance, str], None]
    breached: Callable[[str, str, str], bool]
    queues: Callable[[], Iterable[str]] = tuple
    may_probe_idle: Callable[[ModelInstance], bool] = lambda _: True
    sampled: Callable[[VersionHealth], None] = lambda _: None


class HealthMonitor:
    """Lives on the engine's loop."""

    def __init__(
        self,
        cache: ModelCache,
        router: RequestRouter,
        transitions: TransitionManager,
        clock: Clock,
        *,
        policy: HealthPolicy,
        desk: AlertDesk,
        wiring: Wiring,
    ) -> None:
        self._cache = cache
        self._router = router
        self._transitions = transitions
        self._clock = clock
        self._policy = policy
        self._desk = desk
        self._wiring = wiring
        self._windows: dict[VersionKey, Window] = {}
        self._facts: dict[VersionKey, HealthFacts] = {}
        self._acted_s: dict[tuple[str, str, str], float] = {}
        self._host: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._looked_s = self._measured_s = -math.inf
        self._watchdog = Watchdog(
            clock,
            probe_after_s=policy.probe_after_s,
            hang_after_s=policy.hang_after_s,
            may_probe_idle=wiring.may_probe_idle,
            on_hung=lambda key, instance, reason: self._lose(key[0], instance, reason, hung=True),
            on_dead=lambda key, instance, reason: self._lose(key[0], instance, reason, hung=False),
        )

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look, every interval, until `close`."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="health")

    async def close(self) -> None:
        """Stop looking."""
        tasks = [task for task in (self._task, self._measuring) if task is not None]
        for task in tasks:
            task.cancel()
        self._watchdog.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            due = asyncio.Event()
            timer = self._clock.call_later(self._policy.interval_s, due.set)
            try:
                await due.wait()
            finally:
                timer.cancel()
            try:
                self.look()
            except Exception:  # one look that fails must not end all later ones
                log.exception("the health of versions could not be looked at")

    # --- what it is told --------------------------------------------------------------------------------------------

    def request(self, record: RequestRecord) -> None:
        """A request ended."""
        key = (record.model_id, record.assigned_version)
        now_s = self._clock.monotonic_s()
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(self._policy.window_s, self._policy.limits, now_s)
        window.request(record, now_s)

    def moved(self, operation: Operation) -> None:
        """An operation took an event. What a candidate did in an earlier operation is not held against it.

        What was told of a candidate before it had traffic led to nothing, so it is told again once it has.
        """
        for version in operation.candidates:
            if operation.phase is Phase.LOADING:
                self._windows.pop((operation.model_id, version), None)
            elif operation.phase in _TRAFFIC_BEGINS:
                self._acted_s.pop((operation.model_id, operation.operation_id, version), None)

    def instance_lost(self, model_id: str, instance: ModelInstance, reason: str) -> None:
        """A request met an instance that is gone."""
        self._lose(model_id, instance, reason, hung=False)

    def _lose(self, model_id: str, instance: ModelInstance, reason: str, *, hung: bool) -> None:
        key = (model_id, instance.version.version)
        cached = self._cache.loaded.get(key)
        if cached is not None and cached.instance is instance:
            self._watchdog.leave(key)
            operation = self._wiring.operation(model_id)
            self._desk.fire(HUNG if hung else LOST, HealthState.CRITICAL, reason, key=key, operation=operation)
        self._wiring.lost(model_id, instance, reason)

    # --- looking ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """One look at everything that serves."""
        now_s = self._clock.monotonic_s()
        late_s = now_s - self._looked_s - self._policy.interval_s
        if math.isfinite(late_s) and late_s > _LATE * self._policy.interval_s:
            self._watchdog.excuse(late_s)
        passed_s = min(now_s - self._looked_s, self._policy.interval_s)
        self._looked_s = now_s
        for key in self._watched():
            self._look_at(key, passed_s, now_s)
        self._look_at_models()
        self._retire()
        if now_s - self._measured_s >= MEMORY_EVERY_S and self._measuring is None:
            self._measured_s = now_s
            self._measuring = asyncio.get_running_loop().create_task(self._measure(), name="health: memory")
            self._measuring.add_done_callback(self._measured)

    def _watched(self) -> list[VersionKey]:
        return [key for key in self._cache.loaded if self._router.is_routed(*key) or self._transitions.holders(key)]

    def _look_at(self, key: VersionKey, passed_s: float, now_s: float) -> None:
        cached = self._cache.loaded.get(key)
        if cached is None:  # lost with another one whose engine it shared
            return
        in_flight = self._transitions.holders(key)
        if key not in self._windows:
            self._windows[key] = Window(self._policy.window_s, self._policy.limits, now_s)
        if in_flight:
            self._windows[key].busy(passed_s, now_s)
        self._watchdog.look(key, cached.instance, in_flight)
        watch = self._watchdog.watch(key)
        if watch is not None and watch.shown:
            self._desk.resolve((HUNG, *key), "it generates again")
            self._desk.resolve((LOST, *key), "it generates again")
        for finding in self._findings(key, now_s):
            self._note(key, finding)

    def _findings(self, key: VersionKey, now_s: float) -> list[Finding]:
        window = self._windows.get(key)
        return [] if window is None else findings_of(window, self._policy, now_s)

    def _note(self, key: VersionKey, finding: Finding) -> None:
        operation = self._wiring.operation(key[0])
        self._desk.note(finding, key=key, operation=operation)
        if finding.state is not HealthState.CRITICAL or not METRICS[finding.metric].acts or not self._policy.acts:
            return
        # Under an operation once per candidate; outside one, a model goes back at most once per cool-down.
        mark = (key[0], operation.operation_id if operation else "", key[1] if operation else "")
        now_s = self._clock.monotonic_s()
        if now_s - self._acted_s.get(mark, -math.inf) < self._policy.cooldown_s:
            return
        if self._wiring.breached(*key, f"version {key[1]!r} broke a critical limit: {finding.message}"):
            self._acted_s[mark] = now_s

    def _look_at_models(self) -> None:
        limits = self._policy.limits
        models = {model_id for model_id, _ in self._windows} | set(self._router.snapshots) | set(self._wiring.queues())
        for model_id in models:
            waiting = self._wiring.waiting(model_id)
            self._desk.note(
                above("queue_depth", limits.queue_depth, float(waiting)), key=(model_id, None), operation=None
            )
        if self._host is not None:
            self._desk.note(above("memory_usage", limits.memory_usage, self._host), key=(None, None), operation=None)

    def _retire(self) -> None:
        """Forget versions that neither serve nor are loaded, once nothing of them is left in the window."""
        now_s = self._clock.monotonic_s()
        alerted = ((alert.model_id, alert.version) for alert in self._desk.active())
        # An alert may be about a version without a window: a candidate's is forgotten as its next operation loads it.
        about = [(model_id, version) for model_id, version in alerted if model_id and version]
        for key in dict.fromkeys((*self._windows, *about)):
            if self._router.is_routed(*key) or self._transitions.holders(key):
                continue
            self._watchdog.leave(key)
            self._desk.retire(key, "the version no longer serves")
            window = self._windows.get(key)
            if window is None or not window.totals(now_s).requests:
                self._windows.pop(key, None)
                self._facts.pop(key, None)
        self._acted_s = {m: at_s for m, at_s in self._acted_s.items() if now_s - at_s < self._policy.cooldown_s}

    # --- memory -----------------------------------------------------------------------------------------------------

    async def _measure(self) -> None:
        self._host = await asyncio.to_thread(used_fraction)
        for key in self._watched():
            cached = self._cache.loaded.get(key)
            if cached is None:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._policy.hang_after_s):
                    self._facts[key] = await cached.instance.health()
            self._wiring.sampled(self._version(key, self._clock.monotonic_s()))

    def _measured(self, task: asyncio.Task[None]) -> None:
        self._measuring = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("memory could not be measured: %s", error)

    # --- reporting --------------------------------------------------------------------------------------------------

    def report(self) -> HealthReport:
        """How everything stands now."""
        now_s = self._clock.monotonic_s()
        keys = dict.fromkeys((*self._watched(), *self._windows))
        return HealthReport(
            at_s=self._clock.wall_s(),
            versions=tuple(self._version(key, now_s) for key in keys),
            memory_usage=self._host,
            alerts=self._desk.active(),
        )

    def _version(self, key: VersionKey, now_s: float) -> VersionHealth:
        window = self._windows.get(key) or Window(self._policy.window_s, self._policy.limits, now_s)
        watch = self._watchdog.watch(key)
        return version_health(
            key,
            window,
            self._policy,
            now_s,
            is_watched=watch is not None and watch.shown,
            lost=self._desk.about(key, HUNG) or self._desk.about(key, LOST),
            in_flight=self._transitions.holders(key),
            waiting=self._wiring.waiting(key[0]),
            silence_s=self._watchdog.silence_s(key),
            facts=self._facts.get(key) if key in self._cache.loaded else None,
        )
