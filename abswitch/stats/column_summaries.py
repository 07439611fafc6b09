"""`summarise`: a metric's summary from columns of values; what the store computes in SQL, from arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.adjustment import CovariateSummary, RatioCovariateSummary
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metric_parts import Unit
from abswitch.stats.metrics import Metric, Paired, Quantile, Rate, Ratio
from abswitch.stats.quantile_summary import QuantileSummary
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def summarise(
    metric: Metric, columns: Mapping[str, Floats], units: Ints | None = None, *, by_unit: bool = False
) -> MetricSummary:
    """A metric's summary of one arm.

    Args:
        metric: its conditions and segments are not applied: give the requests that are meant.
        columns: by name, shape (k,) each, NaN where a request has no value; such a request has no part in the metric.
        units: whose request each is, whole numbers from 0; needed with `by_unit`.
        by_unit: units have several requests: sums and counts of each are what is summarised.

    Raises:
        InvalidInput: a column is missing, units are, a `Rate` of more than 0 and 1, or the metric is `Paired`.

    >>> from abswitch.stats import Mean
    >>> summarise(Mean("judge"), {"judge": np.array([1.0, np.nan, 3.0])}).n
    2
    """
    if isinstance(metric, Paired):
        raise InvalidInput("metric", metric.name, f"Mean or Rate of {metric.column!r}: one arm has no pairs")
    named = [*metric.columns, *([metric.covariate] if metric.covariate else [])]
    for name in named:
        checks.one_of("metric.column", name, columns)
    whole = ~np.isnan(np.stack([columns[name] for name in named])).any(axis=0)
    x, *rest = (columns[name][whole] for name in named)
    z = rest[-1] if metric.covariate else None
    if isinstance(metric, Rate) and not np.isin(x, (0.0, 1.0)).all():
        raise InvalidInput("metric.column", metric.column, f"a column of 0 and 1 only; use Mean({metric.column!r})")
    if by_unit:
        if units is None:
            raise InvalidInput("units", None, "whose request each is")
        return _by_unit(metric, x, rest[0] if isinstance(metric, Ratio) else np.ones(x.size), z, units[whole])
    if isinstance(metric, Quantile):
        return QuantileSummary.of(x, metric.q)
    if isinstance(metric, Ratio):
        return RatioSummary.of(x, rest[0]) if z is None else RatioCovariateSummary.of(x, rest[0], z)
    if z is not None:
        return CovariateSummary.of(x, z)
    return RateSummary.of(x) if isinstance(metric, Rate) else MeanSummary.of(x)


def _by_unit(metric: Metric, x: Floats, y: Floats, z: Floats | None, units: Ints) -> MetricSummary:
    if isinstance(metric, Quantile) and metric.unit == Unit.REQUEST:
        return QuantileSummary.of(x, metric.q, units=units)
    _, codes = np.unique(units, return_inverse=True)
    counts = np.bincount(codes).astype(np.float64)
    sums = [_sums(codes, values, counts.size) for values in (x, y)]
    if metric.unit == Unit.UNIT:
        sums = [sums[0] / counts, np.ones(counts.size)]
    if isinstance(metric, Quantile):
        return QuantileSummary.of(sums[0], metric.q)
    if z is None:
        return RatioSummary.of(*sums)
    return RatioCovariateSummary.of(sums[0], sums[1], _sums(codes, z, counts.size) / counts)


def _sums(codes: Ints, values: Floats, size: int) -> Floats:
    return np.bincount(codes, values, size).astype(np.float64)
