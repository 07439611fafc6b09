"""`AlertBook`: what is wrong now, what was, and when people are to be told. No loop, no thread, no output of its own.

One alert per metric, model and version, however often its condition is looked at. An alert goes
`firing` → (`acknowledged`) → `resolved`; one that comes back within the cool-down is the same alert again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import uuid4

from abswitch.clock import Clock
from abswitch.errors import InvalidInput


class Severity(StrEnum):
    """`WARNING` tells people; `CRITICAL` may also act, see `AlertThresholds`."""

    WARNING = "warning"
    CRITICAL = "critical"


class AlertState(StrEnum):
    """Where an alert stands."""

    FIRING = "firing"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


AlertKey = tuple[str, str | None, str | None]
"""(metric, model, version); what there is at most one alert of at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert as it stands.

    Attributes:
        metric: a name of `AlertThresholds`, or `hung` or `lost`.
        model_id, version: what it is about; None where it is about the host, or the whole model.
        operation_id: the operation that held the model when it fired.
        value, threshold: in the metric's unit; None where the metric is no number.
        fired: how often its condition came back within the cool-down, the first time included.
        started_at_s, changed_at_s, resolved_at_s: seconds since the Unix epoch.
        reason: why it was resolved.
    """

    alert_id: str
    metric: str
    severity: Severity
    state: AlertState
    message: str
    model_id: str | None = None
    version: str | None = None
    operation_id: str | None = None
    value: float | None = None
    threshold: float | None = None
    fired: int = 1
    started_at_s: float
    changed_at_s: float
    resolved_at_s: float | None = None
    acknowledged_by: str | None = None
    reason: str | None = None

    @property
    def key(self) -> AlertKey:
        """What it is about."""
        return self.metric, self.model_id, self.version

    @property
    def is_active(self) -> bool:
        """Whether its condition still holds, as far as is known."""
        return self.state is not AlertState.RESOLVED

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        about = ":".join(filter(None, (self.model_id, self.version))) or "host"
        return f"[{self.severity}] {self.state} {self.metric} of {about}: {self.message}"


class AlertBook:
    """Alerts by id, oldest first. Written on the engine's loop; may be read and acknowledged from any thread.

    Args:
        tell: given every alert that people are to hear of; must not block.
        cooldown_s: within this time after it was resolved an alert that fires again is the same one, and is told again
            only if it still fires when that time is over. A rise to critical is told at once, unless people heard of
            this alert as critical within this time. Who acknowledged an alert is not told of it again as long as it
            does not rise above the severity that was acknowledged.
        history: how many alerts are kept; active ones are never dropped for resolved ones.
    """

    def __init__(self, clock: Clock, *, tell: Callable[[Alert], None], cooldown_s: float, history: int) -> None:
        self._clock = clock
        self._tell = tell
        self._cooldown_s = cooldown_s
        self._history = history
        self._alerts: dict[str, Alert] = {}
        self._latest: dict[AlertKey, str] = {}
        self._told: dict[str, tuple[AlertState, Severity]] = {}  # what people heard last
        self._heard_s: dict[str, dict[Severity, float]] = {}  # until when they knew that it fires at least so
        self._ended_s: dict[str, float] = {}
        self._lock = threading.RLock()

    def all(self) -> tuple[Alert, ...]:
        """Every alert kept, oldest first."""
        with self._lock:
            return tuple(self._alerts.values())

    def active(self, key: AlertKey) -> Alert | None:
        """The alert about it that is not resolved."""
        with self._lock:
            found = self._alerts.get(self._latest.get(key, ""))
            return found if found is not None and found.is_active else None

    def fire(
        self,
        metric: str,
        severity: Severity,
        message: str,
        *,
        model_id: str | None = None,
        version: str | None = None,
        operation_id: str | None = None,
        value: float | None = None,
        threshold: float | None = None,
    ) -> Alert:
        """Its condition holds now; called as often as one looks."""
        with self._lock:
            now_s = self._clock.wall_s()
            told: dict[str, Any] = {"message": message, "severity": severity, "value": value, "threshold": threshold}
            known = self._alerts.get(self._latest.get((metric, model_id, version), ""))
            if known is None or not (known.is_active or self._is_recent(known)):
                fresh = Alert(
                    alert_id=f"alert-{uuid4().hex[:12]}",
                    metric=metric,
                    state=AlertState.FIRING,
                    model_id=model_id,
                    version=version,
                    operation_id=operation_id,
                    started_at_s=now_s,
                    changed_at_s=now_s,
                    **told,
                )
                return self._keep(fresh, tell=True)
            if known.is_active:
                return self._again(known, told, now_s)
            back = replace(
                known,
                state=AlertState.FIRING,
                fired=known.fired + 1,
                changed_at_s=now_s,
                resolved_at_s=None,
                acknowledged_by=None,
                reason=None,
                **told,
            )
            return self._keep(back, tell=self._is_due(known, back))

    def _again(self, known: Alert, told: dict[str, Any], now_s: float) -> Alert:
        now = replace(known, **told)
        if _is_above(now.severity, known.severity):
            now = replace(now, changed_at_s=now_s)
        # Nothing is told between: while it is acknowledged, what people heard last is what was acknowledged.
        if now.state is AlertState.ACKNOWLEDGED and _is_above(now.severity, self._told[now.alert_id][1]):
            now = replace(now, state=AlertState.FIRING, acknowledged_by=None)
        return self._keep(now, tell=self._is_due(known, now))

    def _is_due(self, before: Alert, now: Alert) -> bool:
        """Whether people are to hear of it: it is more than they know, and they did not just hear of as much."""
        state, severity = self._told[now.alert_id]
        rises = _is_above(now.severity, severity) or _is_above(now.severity, before.severity)
        heard_s = self._heard_s[now.alert_id].get(now.severity, -math.inf)
        is_news = now.state is AlertState.FIRING and (rises or state is AlertState.RESOLVED)
        return is_news and self._clock.monotonic_s() - heard_s >= self._cooldown_s

    def resolve(self, key: AlertKey, reason: str) -> Alert | None:
        """Its condition no longer holds, as was measured; None when there was no alert."""
        with self._lock:
            known = self.active(key)
            if known is None:
                return None
            now_s = self._clock.wall_s()
            over = replace(known, state=AlertState.RESOLVED, changed_at_s=now_s, resolved_at_s=now_s, reason=reason)
            self._ended_s[known.alert_id] = self._clock.monotonic_s()
            # Who was not told that it came back need not hear that it went again.
            return self._keep(over, tell=self._told[known.alert_id][0] is not AlertState.RESOLVED)

    def acknowledge(self, alert_id: str, by: str = "") -> Alert:
        """Somebody has seen it and takes care.

        Raises:
            InvalidInput: there is no active alert of that id.
        """
        with self._lock:
            known = self._alerts.get(alert_id)
            if known is None or not known.is_active:
                active = ", ".join(one.alert_id for one in self._alerts.values() if one.is_active)
                raise InvalidInput("alert_id", alert_id, f"an active alert: {active or 'there is none'}")
            if known.state is AlertState.ACKNOWLEDGED:
                return known
            seen = replace(
                known, state=AlertState.ACKNOWLEDGED, acknowledged_by=by or None, changed_at_s=self._clock.wall_s()
            )
            return self._keep(seen, tell=True)

    def _is_recent(self, known: Alert) -> bool:
        ended_s = self._ended_s.get(known.alert_id)
        return ended_s is not None and self._clock.monotonic_s() - ended_s < self._cooldown_s

    def _keep(self, alert: Alert, *, tell: bool) -> Alert:
        self._alerts[alert.alert_id] = alert
        self._latest[alert.key] = alert.alert_id
        self._forget_old()
        if tell:
            self._told[alert.alert_id] = (alert.state, alert.severity)
            self._hear(alert)
            self._tell(alert)
        return alert

    def _hear(self, alert: Alert) -> None:
        heard_s = self._heard_s.setdefault(alert.alert_id, {})
        levels: Iterable[Severity] = ()
        if alert.state is AlertState.FIRING:
            levels = [one for one in Severity if not _is_above(one, alert.severity)]
        elif alert.state is AlertState.RESOLVED:
            levels = tuple(heard_s)
        heard_s.update(dict.fromkeys(levels, self._clock.monotonic_s()))

    def _forget_old(self) -> None:
        while len(self._alerts) > self._history:
            over = (name for name, alert in self._alerts.items() if not alert.is_active)
            oldest = next(over, None) or next(iter(self._alerts))
            dropped = self._alerts.pop(oldest)
            if self._latest.get(dropped.key) == oldest:
                del self._latest[dropped.key]
            self._told.pop(oldest, None)
            self._heard_s.pop(oldest, None)
            self._ended_s.pop(oldest, None)


def _is_above(one: Severity, other: Severity) -> bool:
    return one is Severity.CRITICAL and other is Severity.WARNING
