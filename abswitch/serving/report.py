"""`HealthReport`: what `engine.health()` answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from abswitch.domain import HealthFacts, Residency, VersionKey
from abswitch.errors import UnknownVersion
from abswitch.serving.alerts import Alert
from abswitch.serving.cache import ModelCache
from abswitch.serving.findings import Finding, HealthPolicy, HealthState, findings_of
from abswitch.serving.policy import GIB
from abswitch.serving.tables import figure, paragraph, table
from abswitch.serving.windows import FIRST_TOKEN, LATENCY, Window

_NOTHING = "no version serves"
_HEAD = (
    "version",
    "state",
    "reason",
    "residency",
    "in flight",
    "requests",
    "errors",
    "latency p95",
    "first token p95",
    "tokens/s",
    "memory",
)
_WORST_FIRST = (HealthState.CRITICAL, HealthState.WARNING, HealthState.UNKNOWN, HealthState.HEALTHY)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionHealth:
    """One version over the sliding window. Figures without data are None, never 0.

    Attributes:
        state: the worst of its findings; `critical` when it hangs or was lost; `unknown` while the error rate is.
        reason: the state in words.
        residency: where its weights are; `cold` also while it is being started again.
        in_flight, waiting: requests under way on it; requests of the model that wait for something to serve them.
        silence_s: since any generation, or a probe, gave a token; None when nobody watches it.
        memory_bytes, error: of its processes, as measured last, at the load at first; None where it is not loaded.
        window_s: what the figures below cover.
        requests, errors, lost: that ended; of them failed; of those, because their instance died.
        error_rate: errors / requests, fraction 0–1.
        tokens_per_s: while requests were under way.
        latency_…_ms, first_token_…_ms: of answers, within 1 %.
        findings: each metric that has a limit.
    """

    model_id: str
    version: str
    state: HealthState
    reason: str
    residency: Residency
    in_flight: int
    waiting: int
    silence_s: float | None
    memory_bytes: int | None
    error: str | None
    window_s: float
    requests: int
    errors: int
    lost: int
    error_rate: float | None
    requests_per_s: float | None
    tokens_per_s: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        return f"{self.model_id}:{self.version} {self.state}: {self.reason}"

    def _repr_html_(self) -> str:
        return table(_HEAD, [self.cells()])

    def cells(self) -> tuple[str, ...]:
        """What is shown of it, as texts: one for each column of a report."""
        return (
            f"{self.model_id}:{self.version}",
            self.state.value,
            self.reason,
            self.residency.value,
            f"{self.in_flight:,}",
            f"{self.requests:,}",
            figure(self.error_rate, ".1%"),
            figure(self.latency_p95_ms, ",.0f", " ms"),
            figure(self.first_token_p95_ms, ",.0f", " ms"),
            figure(self.tokens_per_s, ",.0f"),
            figure(None if self.memory_bytes is None else self.memory_bytes / GIB, ".2f", " GiB"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """Every version that serves, or did within the window, and what is wrong.

    Attributes:
        at_s: seconds since the Unix epoch.
        memory_usage: of this host or its container, fraction 0–1; None before it was measured.
        alerts: the active ones, oldest first.
    """

    at_s: float
    versions: tuple[VersionHealth, ...]
    memory_usage: float | None
    alerts: tuple[Alert, ...]

    @property
    def state(self) -> HealthState:
        """The worst of all versions; `unknown` when none serves."""
        states = Counter(version.state for version in self.versions)
        return next((state for state in _WORST_FIRST if states[state]), HealthState.UNKNOWN)

    def version(self, version: str, model_id: str | None = None) -> VersionHealth:
        """One version; `model_id` may be left out where only one model has it.

        Raises:
            UnknownVersion: it neither serves nor did lately, or several models have it; names those that there are.
        """
        found = [one for one in self.versions if one.version == version and model_id in (None, one.model_id)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{one.model_id}:{one.version}" for one in found or self.versions) or _NOTHING
        allowed = f"together with a model_id, as several have it: {known}" if found else f"one that serves: {known}"
        raise UnknownVersion("version", version, allowed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"state": self.state}

    def __str__(self) -> str:
        return "\n".join(map(str, self.versions)) or _NOTHING

    def _repr_html_(self) -> str:
        versions = table(_HEAD, [one.cells() for one in self.versions]) if self.versions else paragraph(_NOTHING)
        return versions + "".join(paragraph(str(alert)) for alert in self.alerts)


def as_held(report: HealthReport, cache: ModelCache) -> HealthReport:
    """The report with each version's residency as the cache has it, and its memory at the load until it is measured.

    Only the versions of a look are measured, every few seconds; one that was loaded since is no less there.
    """
    loaded = cache.loaded

    def held(one: VersionHealth) -> VersionHealth:
        key = (one.model_id, one.version)
        memory_bytes = one.memory_bytes
        if memory_bytes is None and key in loaded:
            memory_bytes = loaded[key].facts.memory_bytes
        return replace(one, residency=cache.tier(key), memory_bytes=memory_bytes)

    return replace(report, versions=tuple(map(held, report.versions)))


def version_health(
    key: VersionKey,
    window: Window,
    policy: HealthPolicy,
    now_s: float,
    *,
    is_watched: bool,
    lost: Alert | None,
    in_flight: int,
    waiting: int,
    silence_s: float | None,
    facts: HealthFacts | None,
) -> VersionHealth:
    """Put together what is known about a version.

    Args:
        is_watched: it gave a token since it is watched.
        lost: the alert that says it hangs or was lost.
        facts: as its instance told last; None when it is not loaded.
    """
    findings = tuple(findings_of(window, policy, now_s))
    totals = window.totals(now_s)
    state, reason = _state(findings, lost, is_watched)

    def ms(quantity: str, q: float) -> float | None:
        value_s = window.quantile_s(quantity, q, now_s)
        return None if value_s is None else 1000.0 * value_s

    return VersionHealth(
        model_id=key[0],
        version=key[1],
        state=state,
        reason=reason,
        residency=Residency.COLD if facts is None else facts.residency,
        in_flight=in_flight,
        waiting=waiting,
        silence_s=silence_s,
        memory_bytes=None if facts is None else facts.memory_bytes,
        error=None if facts is None else facts.error,
        window_s=totals.covered_s,
        requests=totals.requests,
        errors=totals.errors,
        lost=totals.lost,
        error_rate=totals.error_rate,
        requests_per_s=totals.requests_per_s,
        tokens_per_s=totals.tokens_per_s,
        latency_p50_ms=ms(LATENCY, 0.50),
        latency_p95_ms=ms(LATENCY, 0.95),
        latency_p99_ms=ms(LATENCY, 0.99),
        first_token_p50_ms=ms(FIRST_TOKEN, 0.50),
        first_token_p95_ms=ms(FIRST_TOKEN, 0.95),
        findings=findings,
    )


def _state(findings: tuple[Finding, ...], lost: Alert | None, is_watched: bool) -> tuple[HealthState, str]:
    if lost is not None:
        return HealthState.CRITICAL, lost.message
    for state in (HealthState.CRITICAL, HealthState.WARNING):
        broken = [one.message for one in findings if one.state is state]
        if broken:
            return state, "; ".join(broken)
    errors = next(one for one in findings if one.metric == "error_rate")
    if errors.state is HealthState.UNKNOWN:
        return HealthState.UNKNOWN, errors.message + ("; it answers when asked" if is_watched else "")
    return HealthState.HEALTHY, errors.message
