"""What a version may do before somebody is told, and before it is taken out of service. Pure.

A limit has two levels: `warning` tells people, `critical` also acts. Of a limit given by one number the other level
follows in the proportion that the defaults have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput

SURE = 0.001
"""A critical limit counts as broken where chance explains what was seen this rarely (one-sided, exact binomial)."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Two levels of one metric; a level that is None is never reached."""

    warning: float | None = None
    critical: float | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """What a limit is set on.

    Attributes:
        unit: of its levels.
        warning, critical: the default levels.
        ratio: of critical to warning, where only one of them is given.
        most: the largest level that makes sense.
        falls: the metric is bad when it is small.
        acts: whether a critical level rolls back, or (outside an operation) returns to the last good version.
        quantile: of a duration's distribution, the one meant.
    """

    doc: str
    unit: str
    warning: float | None = None
    critical: float | None = None
    ratio: float = 2.0
    most: float = float("inf")
    falls: bool = False
    acts: bool = False
    quantile: float | None = None


METRICS: Mapping[str, Metric] = {
    "error_rate": Metric("requests that failed", "fraction 0–1", 0.05, 0.10, most=1.0, acts=True),
    "latency_p50": Metric("median time of a whole answer", "ms", acts=True, quantile=0.50),
    "latency_p95": Metric(
        "time of a whole answer that 95 % keep within", "ms", 5000.0, 10_000.0, acts=True, quantile=0.95
    ),
    "latency_p99": Metric("time of a whole answer that 99 % keep within", "ms", acts=True, quantile=0.99),
    "first_token_p95": Metric("time to the first token that 95 % keep within", "ms", acts=True, quantile=0.95),
    "memory_usage": Metric("memory in use on this host, or of its container", "fraction 0–1", 0.80, 0.95, 1.1875, 1.0),
    "queue_depth": Metric("requests of the model that wait because nothing can serve them", "requests"),
    "throughput": Metric("tokens generated while requests are under way", "tokens/s", ratio=0.5, falls=True),
}
"""Every metric that takes a limit, by the name it has in `alert_thresholds`."""

LEVELS = ("warning", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertThresholds:
    """Limits by metric; see `METRICS` for units and defaults.

    Raises:
        InvalidInput: a level is outside its range, or critical is milder than warning.
    """

    error_rate: Limit = Limit(0.05, 0.10)
    latency_p50: Limit = Limit()
    latency_p95: Limit = Limit(5000.0, 10_000.0)
    latency_p99: Limit = Limit()
    first_token_p95: Limit = Limit()
    memory_usage: Limit = Limit(0.80, 0.95)
    queue_depth: Limit = Limit()
    throughput: Limit = Limit()

    def __post_init__(self) -> None:
        for name, limit in self.items():
            for level in LEVELS:
                checked_level(f"alert_thresholds.{name}.{level}", name, getattr(limit, level))
            if not _in_order(METRICS[name], limit):
                raise InvalidInput(f"alert_thresholds.{name}.critical", limit.critical, milder_than(name, limit))

    @classmethod
    def of(cls, given: AlertThresholds | Mapping[str, Any]) -> AlertThresholds:
        """From itself, or a dictionary: metric → a number, `(warning, critical)`, a dictionary of both, or None."""
        if isinstance(given, AlertThresholds):
            return given
        return cls(**{name: completed(name, levels) for name, levels in levels_of("alert_thresholds", given).items()})

    def items(self) -> Iterator[tuple[str, Limit]]:
        """Every metric's name with its limit."""
        for one in fields(self):
            yield one.name, getattr(self, one.name)


def levels_of(where: str, given: object) -> dict[str, dict[str, float | None]]:
    """Metric → the levels that were given for it; nothing is filled in.

    Raises:
        InvalidInput: an unknown metric, or a level outside its range.
    """
    if not isinstance(given, Mapping):
        raise InvalidInput(where, given, "metrics with their limits, e.g. {'error_rate': 0.05, 'latency_p95': 5000.0}")
    checks.known_fields(where, given, METRICS)
    return {name: _levels(f"{where}.{name}", name, limit) for name, limit in given.items()}


def _levels(where: str, name: str, given: object) -> dict[str, float | None]:
    if given is None:
        return dict.fromkeys(LEVELS)
    if isinstance(given, Limit):
        given = {"warning": given.warning, "critical": given.critical}
    if isinstance(given, Mapping):
        checks.known_fields(where, given, LEVELS)
        return {level: checked_level(f"{where}.{level}", name, value) for level, value in given.items()}
    if isinstance(given, tuple | list):
        if len(given) != len(LEVELS):
            raise InvalidInput(where, given, "(warning, critical)")
        return {
            level: checked_level(f"{where}.{level}", name, value) for level, value in zip(LEVELS, given, strict=True)
        }
    return {"warning": checked_level(where, name, given)}


def checked_level(where: str, name: str, value: object) -> float | None:
    """One level of a metric; None is never reached.

    Raises:
        InvalidInput: outside the metric's range.
    """
    if value is None:
        return None
    try:
        return checks.number(where, value, low=0.0, high=METRICS[name].most, above=True)
    except InvalidInput as refused:
        raise InvalidInput(where, refused.value, f"{refused.allowed}; none: it is never reached") from None


def completed(name: str, levels: Mapping[str, float | None]) -> Limit:
    """A metric's limit from the levels that were given: a missing one follows in the defaults' proportion."""
    metric = METRICS[name]
    if not levels:
        return Limit(metric.warning, metric.critical)
    warning, critical = levels.get("warning"), levels.get("critical")
    if "critical" not in levels:
        critical = metric.critical if warning is None else min(metric.most, warning * metric.ratio)
    if "warning" not in levels:
        warning = metric.warning if critical is None else critical / metric.ratio
    return Limit(warning, critical)


def milder_than(name: str, limit: Limit) -> str:
    """What a critical level must be, in words."""
    return f"at {'most' if METRICS[name].falls else 'least'} the warning level, {limit.warning:g}"


def _in_order(metric: Metric, limit: Limit) -> bool:
    if limit.warning is None or limit.critical is None:
        return True
    return limit.critical <= limit.warning if metric.falls else limit.critical >= limit.warning


def is_surely_above(count: int, total: int, tolerated: float) -> bool:
    """Whether `count` of `total` rules out, beyond chance, that at most the fraction `tolerated` is like that.

    The exact binomial tail at the tolerated fraction, below `SURE`. So one bad request of two never convicts.
    """
    if not count or count <= tolerated * total:
        return False
    from scipy.special import bdtrc

    return bool(float(bdtrc(count - 1, total, tolerated)) < SURE)
