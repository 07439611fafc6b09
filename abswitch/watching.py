"""`Watching`: the part of the engine's facade that says how its versions are doing."""

from __future__ import annotations

from collections.abc import Callable

from abswitch.errors import InvalidInput
from abswitch.machinery import Machinery
from abswitch.serving.alerts import Alert
from abswitch.serving.loop import EngineLoop
from abswitch.serving.report import HealthReport, as_held
from abswitch.serving.sinks import AlertSink


class Watching:
    """Health and alerts of a `SwitchingEngine`, which is one of these."""

    _parts: Machinery
    _loop: EngineLoop

    def _refuse_closed(self) -> None:
        raise NotImplementedError("the engine says whether it was shut down")

    def health(self) -> HealthReport:
        """Every version that serves: latency, errors, throughput, memory, silence, each with its limits; see
        docs/health.md.
        """
        self._refuse_closed()
        return self._loop.ask(lambda: as_held(self._parts.health.report(), self._parts.cache))

    def alerts(self, *, active: bool = False) -> tuple[Alert, ...]:
        """Alerts, oldest first; with `active` only those that are not resolved."""
        return self._parts.alerts.active() if active else self._parts.alerts.book.all()

    def acknowledge_alert(self, alert_id: str, by: str = "") -> Alert:
        """Say that somebody takes care of an alert.

        Raises:
            InvalidInput: there is no active alert of that id.
        """
        return self._parts.alerts.book.acknowledge(alert_id, by)

    def add_alert_sink(self, sink: AlertSink | Callable[[Alert], object]) -> Callable[[], None]:
        """Have alerts sent somewhere from now on, besides the log: a function, or anything with `send(alert)`; either
        may be async.

        It is called on a thread of its own, and awaited there where it is async. Call what is returned to end it.

        Raises:
            InvalidInput: it is neither.
        """
        self._refuse_closed()
        if not callable(sink) and not callable(getattr(sink, "send", None)):
            raise InvalidInput("sink", sink, "a function that takes an Alert, or an object with send(alert)")
        return self._parts.alerts.add_sink(sink)
