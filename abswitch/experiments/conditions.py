"""The conditions that an experiment ran under: what the health monitor saw of each version, and what it told people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from abswitch.engine import SwitchingEngine
from abswitch.experiments.subject import Subject

MOST_ALERTS = 50
_HEALTH = """
SELECT version, count(*) AS samples, count(*) FILTER (alive) AS alive, max(memory_bytes) AS memory_bytes,
    max(waiting) AS waiting, max(in_flight) AS in_flight, max(latency_p95_s) AS latency_p95_s,
    max(errors / nullif(requests, 0)) AS error_rate, max(requests_per_s) AS requests_per_s,
    max(last_token_age_s) FILTER (in_flight > 0) AS silent_s, arg_max(error, at_s) FILTER (error IS NOT NULL) AS error
FROM health_samples WHERE model_id = $model AND at_s >= $since GROUP BY version
"""
_ALERTS = """
SELECT arg_max(state, at_s) AS state, arg_max(severity, at_s) AS severity, any_value(metric) AS metric,
    any_value(version) AS version, arg_min(value, at_s) AS value, any_value(threshold) AS threshold,
    arg_min(message, at_s) AS message, min(at_s) AS fired_at_s,
    max(at_s) FILTER (state = 'resolved') AS resolved_at_s
FROM alerts WHERE alert_id IN (
    SELECT alert_id FROM alerts
    WHERE model_id IN ($model, '') AND at_s >= $since AND at_s <= $until AND state = 'firing'
) GROUP BY alert_id ORDER BY fired_at_s, message
"""


@dataclass(frozen=True, slots=True)
class VersionHealth:
    """The worst that was seen of one version, and how often it was looked at.

    Attributes:
        samples, alive: looks, and those at which it answered.
        latency_p95_s, error_rate, requests_per_s: the highest of any window; None where no request ended in one.
        silent_s: the longest time without a token while answers were under way.
        error: why it was last not alive.
    """

    version: str
    samples: int
    alive: int
    memory_bytes: int
    waiting: int
    in_flight: int
    latency_p95_s: float | None
    error_rate: float | None
    requests_per_s: float | None
    silent_s: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert, from its firing to how it stands.

    Attributes:
        state: `firing`, `acknowledged` or `resolved`.
        value, threshold: when it fired, in the metric's unit.
        resolved_at_s: None while it is not.
    """

    state: str
    severity: str
    metric: str
    version: str | None
    value: float | None
    threshold: float | None
    message: str
    fired_at_s: float
    resolved_at_s: float | None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the monitor saw during an experiment.

    Attributes:
        alerts: in the order of their firing.
    """

    health: tuple[VersionHealth, ...]
    alerts: tuple[Alert, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; of very many alerts the first."""
        return {
            "health": [asdict(one) for one in self.health],
            "alerts": [asdict(one) for one in self.alerts[:MOST_ALERTS]],
        }


def conditions_of(engine: SwitchingEngine, subject: Subject) -> Conditions:
    """What the store says of an experiment's time; of health, what followed the verdict counts, too."""
    span = {"model": subject.model_id, "since": subject.started_at_s}
    seen = {row[0]: VersionHealth(*row) for row in engine.store.rows(_HEALTH, span)}
    order = dict.fromkeys([*subject.versions, *sorted(seen)])
    alerts = engine.store.rows(_ALERTS, span | {"until": subject.ended_at_s})
    return Conditions(
        health=tuple(seen[version] for version in order if version in seen), alerts=tuple(Alert(*row) for row in alerts)
    )
