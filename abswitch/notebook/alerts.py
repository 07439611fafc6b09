"""`AlertsView`: alerts below the cell that made it, one line each, as they stand now."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import TextIO

from abswitch import checks
from abswitch.experiments.palette import FAILED
from abswitch.notebook.output import LiveOutput, in_notebook
from abswitch.serving.alerts import Alert, AlertState, Severity

_FONT = "font:13px/1.6 system-ui,sans-serif;font-variant-numeric:tabular-nums"
_WARNING, _QUIET = "#9a6700", "#6b7280"


@dataclass(frozen=True, slots=True)
class AlertLines:
    """Some alerts, newest first."""

    alerts: tuple[Alert, ...]

    def to_text(self) -> str:
        return "\n".join(f"{_time(alert)} {alert}" for alert in self.alerts) or "no alerts"

    def to_html(self) -> str:
        rows = "".join(_row(alert) for alert in self.alerts) or "<div>no alerts</div>"
        return f'<div style="max-width:900px;{_FONT}" role="log">{rows}</div>'


class AlertsView:
    """A sink for `engine.add_alert_sink`: shows the latest alerts in place, or as lines outside of a notebook.

    Args:
        limit: how many to show, newest first.
        stream: where lines go outside of a notebook; standard error by default.
    """

    def __init__(self, *, limit: int = 20, stream: TextIO | None = None) -> None:
        self._limit = checks.integer("limit", limit, low=1)
        self._stream = stream
        self._alerts: dict[str, Alert] = {}
        self._output = LiveOutput() if in_notebook() and stream is None else None
        if self._output is not None:
            # Now, on the thread of the cell: what a thread of alerts shows later replaces this output.
            self._output.show(AlertLines(()))

    def send(self, alert: Alert) -> None:
        """Show it."""
        self._alerts.pop(alert.alert_id, None)
        self._alerts[alert.alert_id] = alert
        while len(self._alerts) > self._limit:
            del self._alerts[next(iter(self._alerts))]
        if self._output is not None:
            self._output.show(AlertLines(tuple(reversed(self._alerts.values()))))
        else:
            print(f"{_time(alert)} {alert}", file=self._stream or sys.stderr, flush=True)


def _row(alert: Alert) -> str:
    color = (
        _QUIET if alert.state is AlertState.RESOLVED else FAILED if alert.severity is Severity.CRITICAL else _WARNING
    )
    about = ":".join(filter(None, (alert.model_id, alert.version))) or "host"
    return (
        f'<div><span style="color:{_QUIET}">{_time(alert)}</span> '
        f'<strong style="color:{color}">{alert.severity} · {alert.state}</strong> '
        f"{escape(alert.metric)} of {escape(about)}: {escape(alert.message)}</div>"
    )


def _time(alert: Alert) -> str:
    return datetime.fromtimestamp(alert.changed_at_s).astimezone().strftime("%H:%M:%S")
