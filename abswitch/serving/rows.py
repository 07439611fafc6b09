"""What the store keeps of health and alerts: rows from what the monitor and its alerts say."""

from __future__ import annotations

from abswitch.domain import Residency
from abswitch.records import AlertRecord, HealthSample
from abswitch.serving.alerts import Alert
from abswitch.serving.report import VersionHealth


def health_sample(health: VersionHealth, at_s: float) -> HealthSample:
    """One version as it was measured, at a moment in seconds since the Unix epoch."""

    def seconds(value_ms: float | None) -> float | None:
        return None if value_ms is None else value_ms / 1000.0

    return HealthSample(
        at_s=at_s,
        model_id=health.model_id,
        version=health.version,
        alive=health.error is None and health.residency is not Residency.COLD,
        residency=health.residency.value,
        in_flight=health.in_flight,
        waiting=health.waiting,
        last_token_age_s=health.silence_s,
        memory_bytes=health.memory_bytes or 0,
        window_s=health.window_s,
        requests=health.requests,
        errors=health.errors,
        requests_per_s=health.requests_per_s,
        output_tokens_per_s=health.tokens_per_s,
        latency_p50_s=seconds(health.latency_p50_ms),
        latency_p95_s=seconds(health.latency_p95_ms),
        latency_p99_s=seconds(health.latency_p99_ms),
        first_token_p50_s=seconds(health.first_token_p50_ms),
        first_token_p95_s=seconds(health.first_token_p95_ms),
        error=health.error,
    )


def alert_record(alert: Alert) -> AlertRecord:
    """An alert as it stands; the model of one about the host is an empty text."""
    return AlertRecord(
        alert_id=alert.alert_id,
        state=alert.state.value,
        severity=alert.severity.value,
        metric=alert.metric,
        model_id=alert.model_id or "",
        version=alert.version,
        operation_id=alert.operation_id,
        value=alert.value,
        threshold=alert.threshold,
        message=alert.reason or alert.message,
        at_s=alert.changed_at_s,
    )
