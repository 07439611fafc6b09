"""Where alerts go: a protocol of one method, and the thread that keeps a slow place from holding up anybody."""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from abswitch.serving.alerts import Alert, AlertState, Severity

log = logging.getLogger(__name__)
WAITING = 256
_CLOSE_S = 2.0


class AlertSink(Protocol):
    """A place for alerts. Called on a thread of its own, one alert after the other, so it may take its time.

    `send` may be a coroutine; it is awaited on an event loop of that thread, the same one for every alert.
    """

    def send(self, alert: Alert) -> object:
        """Take an alert as it fired, was acknowledged, rose to critical, or was resolved. May raise: it is logged."""


class CallbackSink:
    """Calls a function, plain or async, with each alert."""

    def __init__(self, callback: Callable[[Alert], object]) -> None:
        self._callback = callback

    def send(self, alert: Alert) -> object:
        return self._callback(alert)


class LogSink:
    """Writes each alert to a logger: critical ones as errors, warnings as warnings, the rest as information."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._log = logger or logging.getLogger("abswitch.alerts")

    def send(self, alert: Alert) -> None:
        if alert.state is not AlertState.FIRING:
            level = logging.INFO
        else:
            level = logging.ERROR if alert.severity is Severity.CRITICAL else logging.WARNING
        self._log.log(level, "%s", alert)


class Outlet:
    """One sink with its thread. `put` never blocks; the thread starts with the first alert.

    Attributes:
        dropped: alerts that found the queue full, the oldest of those that waited.
        failed: alerts that the sink raised for.
    """

    def __init__(self, sink: AlertSink) -> None:
        self.sink = sink
        self.dropped = 0
        self.failed = 0
        self._waiting: queue.Queue[Alert | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, alert: Alert) -> None:
        """Hand an alert over."""
        if self._closed:
            return
        if self._thread is None:
            name = f"abswitch-alerts-{type(self.sink).__name__}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        self._push(alert)

    def _push(self, item: Alert | None) -> None:
        while True:
            try:
                self._waiting.put_nowait(item)
                return
            except queue.Full:
                try:
                    self._waiting.get_nowait()
                    self.dropped += 1
                except queue.Empty:  # the thread took it meanwhile
                    continue

    def _run(self) -> None:
        with closing(asyncio.Runner()) as runner:  # not entered: so it makes its loop when the first coroutine comes
            while (alert := self._waiting.get()) is not None:
                self._send(alert, runner)

    def _send(self, alert: Alert, runner: asyncio.Runner) -> None:
        try:
            sending = self.sink.send(alert)
            if inspect.iscoroutine(sending):
                runner.run(sending)
        except Exception as error:
            self.failed += 1
            log.warning("%s did not take %s: %s", type(self.sink).__name__, alert.alert_id, error)

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Let what waits go out, for a moment; a sink that is stuck is left behind. Blocks up to `timeout_s`."""
        self._closed = True
        if self._thread is None:
            return
        self._push(None)
        end = getattr(self.sink, "close", None)
        if end is not None:
            end()  # first: pauses between attempts would use up the time
        self._thread.join(timeout_s)
