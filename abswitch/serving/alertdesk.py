"""`AlertDesk`: from findings to alerts, and from alerts to everybody who wants to hear of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from abswitch.clock import Clock
from abswitch.domain import VersionKey
from abswitch.rollout.operation import Operation
from abswitch.serving.alerts import Alert, AlertBook, AlertKey, AlertState, Severity
from abswitch.serving.findings import Finding, HealthState
from abswitch.serving.loop import off_loop
from abswitch.serving.sinks import AlertSink, CallbackSink, Outlet

log = logging.getLogger(__name__)
About = tuple[str | None, str | None]
"""(model, version) of an alert; None stands for the host, or the whole model."""


class AlertDesk:
    """The alerts of one engine and its sinks. Sinks may be added from any thread.

    Args:
        record: takes each alert as people are told of it; must not block.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        cooldown_s: float,
        history: int,
        record: Callable[[Alert], None] = lambda _: None,
    ) -> None:
        self._record = record
        self._outlets: list[Outlet] = []
        self.book = AlertBook(clock, tell=self._tell, cooldown_s=cooldown_s, history=history)

    def add_sink(self, sink: AlertSink | Callable[[Alert], object]) -> Callable[[], None]:
        """Let a sink, or a plain function, have every alert from now on; call what is returned to end that."""
        outlet = Outlet(sink if hasattr(sink, "send") else CallbackSink(sink))
        self._outlets = [*self._outlets, outlet]

        def remove() -> None:
            self._outlets = [one for one in self._outlets if one is not outlet]
            outlet.close(0.0)

        return remove

    @property
    def outlets(self) -> tuple[Outlet, ...]:
        """Every sink with its thread and what it could not deliver."""
        return tuple(self._outlets)

    def note(self, finding: Finding, *, key: About, operation: Operation | None) -> None:
        """Fire or resolve as the finding says; what is unknown changes nothing."""
        if finding.state in (HealthState.WARNING, HealthState.CRITICAL):
            self.fire(
                finding.metric,
                finding.state,
                finding.message,
                key=key,
                operation=operation,
                value=finding.value,
                threshold=finding.threshold,
            )
        elif finding.state is HealthState.HEALTHY:
            self.resolve((finding.metric, *key), f"back within its limit: {finding.message}")

    def fire(
        self,
        metric: str,
        state: HealthState,
        message: str,
        *,
        key: About,
        operation: Operation | None,
        value: float | None = None,
        threshold: float | None = None,
    ) -> None:
        """The condition holds now."""
        model_id, version = key
        self.book.fire(
            metric,
            Severity(state.value),
            message,
            model_id=model_id,
            version=version,
            operation_id=None if operation is None else operation.operation_id,
            value=value,
            threshold=threshold,
        )

    def resolve(self, key: AlertKey, reason: str) -> None:
        """The condition no longer holds."""
        self.book.resolve(key, reason)

    def retire(self, key: VersionKey, reason: str) -> None:
        """Resolve whatever there is about a version."""
        for alert in self.active():
            if (alert.model_id, alert.version) == key:
                self.book.resolve(alert.key, reason)

    def active(self) -> tuple[Alert, ...]:
        """What is wrong now, oldest first."""
        return tuple(alert for alert in self.book.all() if alert.state is not AlertState.RESOLVED)

    def about(self, key: VersionKey, metric: str) -> Alert | None:
        """The active alert of a metric about a version."""
        return self.book.active((metric, *key))

    def _tell(self, alert: Alert) -> None:
        self._record(alert)
        for outlet in self._outlets:
            outlet.put(alert)

    async def close(self) -> None:
        """Let waiting alerts go out, for a moment."""
        await asyncio.gather(*(off_loop(outlet.close) for outlet in self._outlets))
