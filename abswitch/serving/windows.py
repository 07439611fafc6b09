"""What a version did lately: counts and duration sketches over a sliding window, in bounded memory.

The window is a ring of slices. Durations go into DDSketches (Masson et al. 2019): quantiles within 1 % of the value, at
most 2,048 bins each, and mergeable, so that a window's sketch is the sum of its slices'. Whether a limit is broken is
not read from a sketch: how many requests were above each limit is counted exactly.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from abswitch.domain import RequestRecord
from abswitch.rollout.limits import LEVELS, METRICS, AlertThresholds
from abswitch.serving.tally import is_counted, is_failure

SLICES = 12
ACCURACY = 0.01
BINS = 2048
LATENCY, FIRST_TOKEN = "latency", "first_token"
_LOST = frozenset({"InstanceDied", "InstanceNotRunning", "StreamBroken"})

Level = tuple[str, str]
"""(metric, "warning" or "critical")."""


def quantity_of(metric: str) -> str:
    """The duration that a metric is a quantile of."""
    return FIRST_TOKEN if metric.startswith(FIRST_TOKEN) else LATENCY


def _sketch() -> Any:
    from ddsketch.ddsketch import LogCollapsingLowestDenseDDSketch

    return LogCollapsingLowestDenseDDSketch(relative_accuracy=ACCURACY, bin_limit=BINS)


@dataclass(slots=True)
class _Slice:
    number: int
    requests: int = 0
    errors: int = 0
    lost: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    measured: Counter[str] = field(default_factory=Counter)
    above: Counter[Level] = field(default_factory=Counter)
    sketches: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The counts of a window.

    Attributes:
        covered_s: how much of the window has been watched; the whole of it after a while.
        requests: that ended, those cancelled by their callers left out.
        errors: of them, the failed ones, the lost ones included.
        lost: of the failed ones, those whose instance died; the restart has its own limits, so that they take no part
            in what `error_rate` decides.
        output_tokens: of the requests that ended.
        busy_s: time with requests under way.
        measured: quantity → how many durations there are.
        above: (metric, level) → how many of them were above that level.
    """

    covered_s: float
    requests: int
    errors: int
    lost: int
    output_tokens: int
    busy_s: float
    measured: Counter[str]
    above: Counter[Level]

    @property
    def error_rate(self) -> float | None:
        """Failed requests, fraction 0–1; None without any."""
        return self.errors / self.requests if self.requests else None

    @property
    def judged(self) -> int:
        """Requests that say something about the version rather than about its process."""
        return self.requests - self.lost

    @property
    def judged_error_rate(self) -> float | None:
        """Of those, the failed ones, fraction 0–1; None without any."""
        return (self.errors - self.lost) / self.judged if self.judged else None

    @property
    def requests_per_s(self) -> float | None:
        """Requests that ended per second watched; None before there is a second to tell from."""
        return self.requests / self.covered_s if self.covered_s >= 1.0 else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second with requests under way; None when there were none."""
        return self.output_tokens / self.busy_s if self.busy_s > 0.0 else None


class Window:
    """One version's window. Lives on the engine's loop.

    Args:
        window_s: how far it looks back.
        limits: what durations are counted against.
    """

    def __init__(self, window_s: float, limits: AlertThresholds, now_s: float) -> None:
        self._slice_s = window_s / SLICES
        self._began_s = now_s
        self._slices: deque[_Slice] = deque()
        self._levels = _levels(limits)

    def request(self, record: RequestRecord, now_s: float) -> None:
        """A request of this version ended."""
        if not is_counted(record):
            return
        here = self._slice(now_s)
        here.requests += 1
        here.tokens += record.output_tokens
        if is_failure(record):
            here.errors += 1
            here.lost += record.fallback or record.error_type in _LOST
            return
        self._duration(here, LATENCY, record.total_s)
        if record.first_token_s is not None:
            self._duration(here, FIRST_TOKEN, record.first_token_s)

    def busy(self, seconds: float, now_s: float) -> None:
        """Requests were under way for so long."""
        self._slice(now_s).busy_s += seconds

    def _duration(self, here: _Slice, quantity: str, value_s: float) -> None:
        if not math.isfinite(value_s) or value_s < 0.0:
            return  # a clock that failed is no measurement
        here.measured[quantity] += 1
        sketch = here.sketches.get(quantity)
        if sketch is None:
            sketch = here.sketches[quantity] = _sketch()
        sketch.add(value_s)
        for level, limit_s in self._levels[quantity]:
            if value_s > limit_s:
                here.above[level] += 1

    def totals(self, now_s: float) -> Totals:
        """What the window holds now."""
        kept = self._kept(now_s)
        return Totals(
            covered_s=min(now_s - self._began_s, self._slice_s * SLICES),
            requests=_sum(kept, lambda one: one.requests),
            errors=_sum(kept, lambda one: one.errors),
            lost=_sum(kept, lambda one: one.lost),
            output_tokens=_sum(kept, lambda one: one.tokens),
            busy_s=math.fsum(one.busy_s for one in kept),
            measured=sum((one.measured for one in kept), Counter()),
            above=sum((one.above for one in kept), Counter()),
        )

    def quantile_s(self, quantity: str, q: float, now_s: float) -> float | None:
        """A quantile of a duration in seconds, within 1 %; None without any."""
        merged = _sketch()
        for one in self._kept(now_s):
            if quantity in one.sketches:
                merged.merge(one.sketches[quantity])
        value = merged.get_quantile_value(q) if merged.count else None
        return None if value is None else float(value)

    def _slice(self, now_s: float) -> _Slice:
        number = math.floor(now_s / self._slice_s)
        self._kept(now_s)
        if not self._slices or self._slices[-1].number < number:
            self._slices.append(_Slice(number))
        return self._slices[-1]

    def _kept(self, now_s: float) -> deque[_Slice]:
        oldest = math.floor(now_s / self._slice_s) - SLICES + 1
        while self._slices and self._slices[0].number < oldest:
            self._slices.popleft()
        return self._slices


def _sum(slices: deque[_Slice], of: Callable[[_Slice], int]) -> int:
    return sum(map(of, slices))


def _levels(limits: AlertThresholds) -> dict[str, list[tuple[Level, float]]]:
    found: dict[str, list[tuple[Level, float]]] = {LATENCY: [], FIRST_TOKEN: []}
    for name, limit in limits.items():
        if METRICS[name].quantile is None:
            continue
        for level in LEVELS:
            value_ms = getattr(limit, level)
            if value_ms is not None:
                found[quantity_of(name)].append(((name, level), value_ms / 1000.0))
    return found
