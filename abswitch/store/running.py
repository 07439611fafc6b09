"""Moments that grow by single observations, and from which one can be taken back: a unit whose sums change is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from abswitch.stats.metric_parts import Unit
from abswitch.stats.metrics import Quantile, Ratio
from abswitch.stats.quantile_summary import QuantileSummary, kept_ranks
from abswitch.store.metric_moments import Additive, Joint

Triple = tuple[float, float, float]


@dataclass(slots=True)
class _Sums:
    """Of x, y and z about the first observation, so that squares do not cancel."""

    n: int = 0
    at: Triple = (0.0, 0.0, 0.0)
    first: list[float] = field(default_factory=lambda: [0.0] * 3)
    second: list[float] = field(default_factory=lambda: [0.0] * 6)

    def put(self, xyz: Triple, sign: int) -> None:
        if not self.n:
            self.at, self.first, self.second = xyz, [0.0] * 3, [0.0] * 6
        self.n += sign
        x, y, z = (value - anchor for value, anchor in zip(xyz, self.at, strict=True))
        one, two = self.first, self.second
        one[0] += sign * x
        one[1] += sign * y
        one[2] += sign * z
        for k, product in enumerate((x * x, y * y, z * z, x * y, x * z, y * z)):
            two[k] += sign * product

    def joint(self) -> Joint:
        if not self.n:
            return Joint(0, math.nan)
        n, (x, y, z) = self.n, self.first
        mean_x, mean_y, mean_z = (anchor + total / n for anchor, total in zip(self.at, self.first, strict=True))
        if n == 1:
            return Joint(n, mean_x, mean_y, mean_z)
        pairs = (x * x, y * y, z * z, x * y, x * z, y * z)
        found = [(second - pair / n) / (n - 1) for second, pair in zip(self.second, pairs, strict=True)]
        xx, yy, zz = (max(0.0, one) for one in found[:3])
        xy, xz, yz = found[3:]
        return Joint(n, mean_x, mean_y, mean_z, xx, yy, zz, xy, xz, yz)


class RunningMoments:
    """One additive metric in one arm: over requests, and over units with what each has brought so far."""

    def __init__(self, metric: Additive) -> None:
        self._by_mean, self._is_ratio = metric.unit == Unit.UNIT, isinstance(metric, Ratio)
        self._requests, self._per_unit = _Sums(), _Sums()
        self._units: dict[str, list[float]] = {}
        self._ones = self._others = 0

    def add(self, unit_id: str, x: float | None, y: float | None, z: float | None, other: int | None) -> None:
        """One request; without x it has no part in the metric."""
        if x is None:
            return
        y, z = 1.0 if y is None else y, 0.0 if z is None else z
        self._ones += x == 1.0
        self._others += other is not None
        self._requests.put((x, y, z), 1)
        sums = self._units.setdefault(unit_id, [0.0, 0.0, 0.0, 0.0])
        if sums[0]:
            self._per_unit.put(self._of_unit(sums), -1)
        for k, value in enumerate((1.0, x, y, z)):
            sums[k] += value
        self._per_unit.put(self._of_unit(sums), 1)

    def joint(self, *, by_unit: bool) -> Joint:
        """As `joint_moments` has it."""
        moments = (self._per_unit if by_unit else self._requests).joint()
        return moments._replace(ones=self._ones, others=self._others)

    def _of_unit(self, sums: list[float]) -> Triple:
        n, x, y, z = sums
        return (x / n, 1.0, z / n) if self._by_mean else (x, y, z / n)


class RunningOrder:
    """One quantile's values in one arm, in order. A look inserts the new ones; none is read again."""

    def __init__(self, metric: Quantile) -> None:
        self._metric = metric
        self._sorted: NDArray[np.float64] = np.empty(0)
        self._new: list[float] = []
        self._values: list[float] = []
        self._units: list[str] = []

    def add(self, unit_id: str, x: float | None) -> None:
        """One request's value, if it has one."""
        if x is not None:
            self._new.append(x)
            self._values.append(x)
            self._units.append(unit_id)

    def summary(self, *, by_unit: bool) -> QuantileSummary:
        """As `SortedValues` has it; where units have several values all are gone through, in memory."""
        q = self._metric.q
        if by_unit:
            return self._by_unit(q)
        new = np.sort(np.array(self._new))
        self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, new), new)
        self._new = []
        n = self._sorted.size
        if not n:
            return QuantileSummary(q=q, n=0)
        low, high = (self._sorted[rank - 1] for rank in kept_ranks(n, q))
        first, end = np.searchsorted(self._sorted, low), np.searchsorted(self._sorted, high, side="right")
        values, counts = np.unique(self._sorted[first:end], return_counts=True)
        return QuantileSummary(q=q, n=n, below=int(first), values=tuple(values.tolist()), counts=tuple(counts.tolist()))

    def _by_unit(self, q: float) -> QuantileSummary:
        values, units = np.array(self._values), np.array(self._units)
        if not values.size:
            return QuantileSummary(q=q, n=0)
        if self._metric.unit == Unit.REQUEST:
            return QuantileSummary.of(values, q, units=units)
        _, at = np.unique(units, return_inverse=True)
        return QuantileSummary.of(np.bincount(at, weights=values) / np.bincount(at), q)
