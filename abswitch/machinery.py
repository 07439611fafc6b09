"""`Machinery`: the parts of one engine, put together by `assembly`, and how they begin and end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from abswitch.clock import Clock
from abswitch.persistence import Recovery, SwitchLog
from abswitch.serving.alertdesk import AlertDesk
from abswitch.serving.cache import ModelCache
from abswitch.serving.desk import SwitchDesk
from abswitch.serving.dispatch import Dispatcher
from abswitch.serving.exchange import Exchange
from abswitch.serving.grading import Grader
from abswitch.serving.health import HealthMonitor
from abswitch.serving.loop import EngineLoop
from abswitch.serving.preflight import Preflight
from abswitch.serving.queueing import AdmissionQueue
from abswitch.serving.readiness import Readiness
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.router import RequestRouter
from abswitch.serving.switcher import ModelSwitcher
from abswitch.serving.tally import StepTally
from abswitch.serving.transition import TransitionManager
from abswitch.settings import ModelSwitchingConfig
from abswitch.store.mlflow_registry import MlflowRegistry
from abswitch.store.recorder import Recorder
from abswitch.store.tracking import TrackingSink

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machinery:
    """The parts of one engine. Nothing in here refers back to the facade."""

    config: ModelSwitchingConfig
    clock: Clock
    loop: EngineLoop
    store: Recorder
    log: SwitchLog
    tracking: TrackingSink | None
    registry: DynamicModelRegistry
    link: MlflowRegistry
    exchange: Exchange
    cache: ModelCache
    readiness: Readiness
    preflight: Preflight
    router: RequestRouter
    transitions: TransitionManager
    queue: AdmissionQueue
    switcher: ModelSwitcher
    desk: SwitchDesk
    dispatcher: Dispatcher
    grader: Grader
    health: HealthMonitor
    alerts: AlertDesk
    tally: StepTally
    recovery: Recovery
    background: set[asyncio.Task[object]] = field(default_factory=set)

    def let_go(self) -> None:
        """`shut_down`, of an engine that nobody holds any more.

        The garbage collector comes by on any thread, also on one of the engine's own, which would wait for its own end.
        """
        if threading.current_thread().name.startswith("abswitch-"):
            threading.Thread(target=self.shut_down, name="engine-end").start()
        else:
            self.shut_down()

    def shut_down(self) -> None:
        """Stop every instance, write what is left, release the files; each end happens even if one before it failed."""
        with ExitStack() as ends:
            ends.callback(self.store.close)
            ends.callback(self.log.close)
            ends.callback(self.link.close)
            if self.tracking is not None:
                ends.callback(self.tracking.close)
            ends.callback(self.loop.close)
            self.loop.run(self._stop())

    async def _stop(self) -> None:
        await self.health.close()
        for task in tuple(self.background):
            task.cancel()
        await self.dispatcher.close()
        await self.switcher.close()
        await self.grader.close()
        try:
            await self.cache.close()
        finally:  # also when something did not stop: there may be an alert to deliver
            await self.alerts.close()

    async def begin(self, work: Coroutine[Any, Any, object]) -> None:
        """Have something done in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        self.background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s", error)

    async def on_loop(self, call: Callable[[], None]) -> None:
        """Call something that lives on the engine's loop."""
        call()

    def resume(self) -> None:
        """Begin to watch. After a crash: the versions that served come to serve again; requests wait for them."""
        if self.config.enable_health_checks:
            self.loop.post(self.health.start)
        self.exchange.resume()
        if self.recovery.crashed:
            for model_id in self.recovery.active:
                if model_id in self.registry.list_models():
                    self.loop.post(self.switcher.bring_up, model_id)
