"""Summaries of metrics by one SQL statement: over requests, or over units where these have several.

A metric is up to three numbers of a request: x (its value, or a ratio's numerator), y (1, or the denominator) and z
(its covariate). Requests that lack one that it needs have no part in it. Over units, x and y are summed, z averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from abswitch.errors import InvalidInput
from abswitch.stats.adjustment import CovariateSummary, RatioCovariateSummary
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metric_parts import Unit
from abswitch.stats.metrics import Mean, Rate, Ratio
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary
from abswitch.store.columns import ValueColumns
from abswitch.store.reading import RowSource

Cell = tuple[str, str]
"""An arm and a segment."""
Additive = Mean | Rate | Ratio
"""Metrics whose summaries are moments."""


class Joint(NamedTuple):
    """Moments of x, y and z over what is observed, (co)variances with n − 1; NaN where there are none."""

    n: int
    x: float
    y: float = math.nan
    z: float = math.nan
    xx: float = math.nan
    yy: float = math.nan
    zz: float = math.nan
    xy: float = math.nan
    xz: float = math.nan
    yz: float = math.nan
    ones: int = 0
    """Of a rate over requests: how many are 1."""
    others: int = 0
    """Of a rate: how many requests' values are neither 0 nor 1."""


NOTHING = Joint(0, math.nan)


@dataclass(frozen=True, slots=True)
class _Part:
    """One metric in SQL: `x3`, `y3`, `z3` of the table that moments are taken over."""

    metric: Additive
    index: int
    by_unit: bool

    @property
    def has_y(self) -> bool:
        return self.by_unit or isinstance(self.metric, Ratio)

    @property
    def has_z(self) -> bool:
        return self.metric.covariate is not None

    def observed(self, columns: ValueColumns) -> list[str]:
        """Its columns over requests, or per unit with a GROUP BY."""
        i, unit = self.index, self.metric.unit == Unit.UNIT
        x = columns.column(self.metric.columns[0])
        y = columns.column(self.metric.columns[-1]) if isinstance(self.metric, Ratio) else "1.0::DOUBLE"
        z = columns.column(self.metric.covariate) if self.metric.covariate else None
        whole = " AND ".join(f"{one} IS NOT NULL" for one in dict.fromkeys((x, y, z or x)))
        other = f"{x} NOT IN (0, 1) AND {whole}"
        if not self.by_unit:
            found = [(f"x{i}", x), (f"y{i}", y), *([(f"z{i}", z)] if z else [])]
            plain = [f"CASE WHEN {whole} THEN {sql} END AS {name}" for name, sql in found]
            return [*plain, f"CASE WHEN {other} THEN 1 END AS other{i}"]
        kept = f"FILTER ({whole})"
        total_y = f"CASE WHEN count(*) {kept} > 0 THEN 1.0::DOUBLE END" if unit else f"sum({y}) {kept}"
        return [
            f"{'favg' if unit else 'sum'}({x}) {kept} AS x{i}",
            f"{total_y} AS y{i}",
            *([f"favg({z}) {kept} AS z{i}"] if z else []),
            f"count(*) FILTER ({other}) AS other{i}",
        ]

    def moments(self) -> dict[str, str]:
        """Aggregates by the names of `Joint`. favg: compensated summation."""
        x, y, z = (f"{letter}{self.index}" for letter in "xyz")
        asked = {"n": f"count({x})", "x": f"favg({x})", "xx": f"var_samp({x})"}
        if self.has_y:
            asked |= {"y": f"favg({y})", "yy": f"var_samp({y})", "xy": f"covar_samp({x}, {y})"}
        if self.has_z:
            asked |= {"z": f"favg({z})", "zz": f"var_samp({z})", "xz": f"covar_samp({x}, {z})"}
        if self.has_y and self.has_z:
            asked["yz"] = f"covar_samp({y}, {z})"
        if isinstance(self.metric, Rate):
            asked["others"] = f"coalesce(sum(other{self.index}), 0)::BIGINT"
            asked["ones"] = f"count(*) FILTER ({x} = 1)"
        return asked

    def joint(self, cells: Mapping[str, Any]) -> Joint:
        """From a row, whose columns are `moments` with the metric's index."""
        found = {name: cells[f"{name}_{self.index}"] for name in self.moments()}
        return NOTHING._replace(**{name: value for name, value in found.items() if value is not None})


def request_values(columns: ValueColumns, metrics: Sequence[Additive]) -> list[str]:
    """The SQL of each request's x, y, z and whether it is neither 0 nor 1, four columns for each metric, in order."""
    parts = [_Part(metric, index, False) for index, metric in enumerate(metrics)]
    found = []
    for part in parts:
        named = {name: sql for sql, name in (one.rsplit(" AS ", 1) for one in part.observed(columns))}
        found += [named.get(f"{letter}{part.index}", "NULL") for letter in ("x", "y", "z", "other")]
    return found


def joint_moments(
    recorder: RowSource, columns: ValueColumns, metrics: Sequence[Additive], *, by_unit: bool
) -> dict[Cell, list[Joint]]:
    """Moments of each metric, in their order, by arm and segment.

    Raises:
        StoreError: the store cannot be read.
    """
    parts = [_Part(metric, index, by_unit) for index, metric in enumerate(metrics)]
    if not parts:
        return {}
    observed = ", ".join(sql for part in parts for sql in part.observed(columns))
    grouped = "GROUP BY arm, segment, unit_id" if by_unit else ""
    asked = {f"{name}_{part.index}": sql for part in parts for name, sql in part.moments().items()}
    aggregates = ",\n  ".join(f"{sql} AS {name}" for name, sql in asked.items())
    rows = recorder.rows(
        f"""{columns.with_clause}, observed AS (
  SELECT arm, segment, {observed} FROM value_rows {grouped}
)
SELECT arm, segment, {aggregates} FROM observed GROUP BY arm, segment ORDER BY arm, segment""",
        columns.params,
    )
    return {
        (str(arm), str(segment)): [part.joint(dict(zip(asked, cells, strict=True))) for part in parts]
        for arm, segment, *cells in rows
    }


def summary_of(metric: Additive, found: Joint, *, by_unit: bool) -> MetricSummary:
    """The summary that the metric compares.

    Raises:
        InvalidInput: a rate of something that is more than 0 and 1.
    """
    if isinstance(metric, Rate) and found.others:
        allowed = f"a column of 0 and 1 only ({found.others} values are neither); use Mean({metric.column!r})"
        raise InvalidInput("metric.column", metric.column, allowed)
    if by_unit or isinstance(metric, Ratio):
        return _of_ratio(found, adjusted=metric.covariate is not None)
    if metric.covariate is not None:
        return CovariateSummary.from_moments(found.n, found.x, found.z, found.xx, found.zz, found.xz)
    if isinstance(metric, Rate):
        return RateSummary(found.n, found.ones)
    return MeanSummary.from_moments(found.n, found.x, found.xx)


def _of_ratio(found: Joint, *, adjusted: bool) -> RatioSummary | RatioCovariateSummary:
    ratio = RatioSummary.from_moments(found.n, found.x, found.y, found.xx, found.yy, found.xy)
    if not adjusted:
        return ratio
    if found.n < 2:
        nothing = 0.0 if found.n else math.nan
        return RatioCovariateSummary(ratio, found.z, nothing, nothing, nothing)
    spreads = (one * (found.n - 1) for one in (found.zz, found.xz, found.yz))
    return RatioCovariateSummary(ratio, found.z, *spreads)
