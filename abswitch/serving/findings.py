"""What a window says about limits: one finding per metric. No loop, no clock: the caller says what time it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from abswitch import checks
from abswitch.rollout.limits import METRICS, AlertThresholds, Limit, is_surely_above
from abswitch.serving.windows import Totals, Window, quantity_of


class HealthState(StrEnum):
    """How a metric, or a version, is doing. `UNKNOWN` is what there is too little evidence about."""

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """How closely versions are watched.

    Args:
        interval_s: between two looks.
        probe_after_s: silence after which an instance is asked for a token.
        hang_after_s: how long it may leave that unanswered.
        window_s: what rates and quantiles look back on.
        min_requests: with fewer of them in the window, a metric is unknown.
        cooldown_s: see `AlertBook`; also between two ways back of one model.
        history: alerts kept.
        limits: warning and critical levels.
        acts: whether a critical breach is told to the switcher.
    """

    interval_s: float = 1.0
    probe_after_s: float = 2.0
    hang_after_s: float = 6.0
    window_s: float = 60.0
    min_requests: int = 20
    cooldown_s: float = 300.0
    history: int = 1000
    limits: AlertThresholds = AlertThresholds()  # noqa: RUF009 (a frozen value)
    acts: bool = True

    def __post_init__(self) -> None:
        for name in ("interval_s", "probe_after_s", "hang_after_s", "window_s"):
            checks.number(name, getattr(self, name), low=0.0, above=True)
        checks.integer("min_requests", self.min_requests, low=1)
        checks.number("cooldown_s", self.cooldown_s, low=0.0)
        checks.integer("history", self.history, low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One metric held against its limit.

    Attributes:
        value: in the metric's unit; None without any data.
        count: observations it rests on.
        threshold: the level that was broken, or the warning level.
        message: in words.
    """

    metric: str
    state: HealthState
    value: float | None
    count: int
    threshold: float | None
    message: str


def findings_of(window: Window, policy: HealthPolicy, now_s: float) -> list[Finding]:
    """Every metric of a version that has a limit."""
    totals = window.totals(now_s)
    found = [_error_rate(totals, policy)]
    for name, limit in policy.limits.items():
        q = METRICS[name].quantile
        if q is not None and limit != Limit():
            found.append(_quantile(name, q, limit, window, totals, policy, now_s))
    if policy.limits.throughput != Limit():
        found.append(_throughput(totals, policy))
    return found


def above(metric: str, limit: Limit, value: float) -> Finding:
    """A figure that is known exactly, held against its limit."""
    if not math.isfinite(value):
        return _finding(metric, HealthState.UNKNOWN, None, 0, limit, "it could not be measured")
    state = HealthState.HEALTHY
    if limit.critical is not None and value >= limit.critical:
        state = HealthState.CRITICAL
    elif limit.warning is not None and value >= limit.warning:
        state = HealthState.WARNING
    return _finding(metric, state, value, 1, limit, f"{metric} is {value:.3g}")


def _error_rate(totals: Totals, policy: HealthPolicy) -> Finding:
    limit, rate = policy.limits.error_rate, totals.error_rate
    failed = totals.errors - totals.lost
    words = f"{totals.errors} of {totals.requests} requests of the last {totals.covered_s:.0f} s failed"
    if totals.lost:
        words += f", {totals.lost} of them with an instance that was lost"
    state = HealthState.HEALTHY
    if limit.critical is not None and is_surely_above(failed, totals.judged, limit.critical):
        state = HealthState.CRITICAL
    elif totals.requests < policy.min_requests:
        state, words = HealthState.UNKNOWN, f"{words}; {policy.min_requests} requests are needed to tell"
    elif limit.warning is not None and rate is not None and rate > limit.warning:
        state = HealthState.WARNING
    return _finding("error_rate", state, rate, totals.requests, limit, words)


def _quantile(
    metric: str, q: float, limit: Limit, window: Window, totals: Totals, policy: HealthPolicy, now_s: float
) -> Finding:
    quantity = quantity_of(metric)
    count, tolerated = totals.measured[quantity], 1.0 - q
    needed = max(policy.min_requests, math.ceil(1.0 / tolerated - 1e-9))
    slow = {level: totals.above[metric, level] for level in ("warning", "critical")}
    state = HealthState.HEALTHY
    if limit.critical is not None and is_surely_above(slow["critical"], count, tolerated):
        state = HealthState.CRITICAL
    elif count < needed:
        words = f"{count} of {needed} answers needed to tell"
        return _finding(metric, HealthState.UNKNOWN, None, count, limit, words)
    elif limit.warning is not None and slow["warning"] > tolerated * count:
        state = HealthState.WARNING
    if state is HealthState.HEALTHY:
        return _finding(metric, state, None, count, limit, f"{count} answers within the limit")
    value_s = window.quantile_s(quantity, q, now_s) or 0.0
    level = state.value
    words = f"{slow[level]} of {count} answers of the last {totals.covered_s:.0f} s took longer"
    return _finding(metric, state, 1000.0 * value_s, count, limit, words)


def _throughput(totals: Totals, policy: HealthPolicy) -> Finding:
    limit, rate = policy.limits.throughput, totals.tokens_per_s
    if rate is None or totals.requests < policy.min_requests:
        words = f"{totals.requests} of {policy.min_requests} requests needed to tell"
        return _finding("throughput", HealthState.UNKNOWN, rate, totals.requests, limit, words)
    state = HealthState.HEALTHY
    if limit.critical is not None and rate < limit.critical:
        state = HealthState.CRITICAL
    elif limit.warning is not None and rate < limit.warning:
        state = HealthState.WARNING
    words = f"{rate:.3g} tokens/s in {totals.busy_s:.0f} s with requests under way"
    return _finding("throughput", state, rate, totals.requests, limit, words)


def _finding(metric: str, state: HealthState, value: float | None, count: int, limit: Limit, words: str) -> Finding:
    threshold = limit.critical if state is HealthState.CRITICAL else limit.warning
    allowed = ""
    if state in (HealthState.WARNING, HealthState.CRITICAL) and threshold is not None:
        allowed = f" ({state} {'below' if METRICS[metric].falls else 'above'} {threshold:g} {METRICS[metric].unit})"
    return Finding(
        metric=metric, state=state, value=value, count=count, threshold=threshold, message=f"{words}{allowed}"
    )
