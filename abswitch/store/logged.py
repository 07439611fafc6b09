"""What was logged of a version that served as the stable one: the traffic that a plan or a replay starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.rollout.replay import RequestLog
from abswitch.stats.kinds import MetricSummary, observations
from abswitch.stats.metrics import Metric, Paired, Quantile
from abswitch.stats.quantile_summary import QuantileSummary
from abswitch.store.columns import ValueColumns
from abswitch.store.metric_moments import NOTHING, joint_moments, summary_of
from abswitch.store.order_statistics import SortedValues
from abswitch.store.reading import RowSource

_HOUR_S = 3600.0
_KEYS = ("request_id", "admitted_at_s", "error_type")
_CELL = ("stable", "")
_OF_MODEL = "model_id = $model_id AND arm <> 'pinned' AND admitted_at_s >= $since_s"
_OF_VERSION = f"{_OF_MODEL} AND arm = 'stable' AND assigned_version = $version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """Which logged requests are meant: those of a version while it was the stable one, within a time.

    Attributes:
        since_s: seconds since the epoch; requests admitted before are left out.
        requests: assigned to the version.
        requests_per_s: of the model, all versions together, from the first to the last of them; NaN below two.
        span_s: that time.
    """

    model_id: str
    version: str
    since_s: float
    requests: int
    requests_per_s: float
    span_s: float

    def columns(self, store: RowSource, names: Sequence[str], *, keys: Sequence[str] = (), **more: Any) -> ValueColumns:
        """The values of its requests, one row each; `more` as `ValueColumns` has it."""
        params = {"model_id": self.model_id, "version": self.version, "since_s": self.since_s}
        return ValueColumns(store, None, names, rows=_OF_VERSION, keys=keys, params=params, **more)


def find_logged(
    store: RowSource, *, model_id: str | None = None, version: str | None = None, last_hours: float | None = None
) -> Logged:
    """Whose requests a store holds.

    Args:
        model_id: not needed where the store knows one model.
        version: by default the one that was stable last.
        last_hours: how far back from the last request; None: all there are.

    Raises:
        InvalidInput: no such model or version, several models, or no requests.
        StoreError: the store cannot be read.
    """
    if last_hours is not None:
        checks.number("last_hours", last_hours, low=0.0, above=True)
    model = _model(store, model_id)
    last = store.rows("SELECT max(admitted_at_s) FROM requests WHERE model_id = ? AND arm <> 'pinned'", (model,))[0][0]
    since_s = -math.inf if last_hours is None else float(last) - last_hours * _HOUR_S
    params = {"model_id": model, "since_s": since_s}
    versions = store.rows(
        f"SELECT assigned_version, count(*) FROM requests WHERE {_OF_MODEL} AND arm = 'stable' "
        "GROUP BY assigned_version ORDER BY max(admitted_at_s) DESC",
        params,
    )
    known = {str(name): int(n) for name, n in versions}
    if not known:
        raise InvalidInput("model_id", model, "a model with requests of a stable version")
    if version is not None and version not in known:
        raise InvalidInput("version", version, f"one with requests of its own in this time: {', '.join(known)}")
    n, first, end = store.rows(
        f"SELECT count(*), min(admitted_at_s), max(admitted_at_s) FROM requests WHERE {_OF_MODEL}", params
    )[0]
    span_s, version = float(end - first), version or next(iter(known))
    return Logged(
        model_id=model,
        version=version,
        since_s=since_s,
        requests=known[version],
        requests_per_s=(n - 1) / span_s if span_s > 0 else math.nan,
        span_s=span_s,
    )


def _model(store: RowSource, model_id: str | None) -> str:
    rows = store.rows("SELECT DISTINCT model_id FROM requests WHERE arm <> 'pinned' ORDER BY model_id")
    models = [str(row[0]) for row in rows]
    if not models:
        raise InvalidInput("store", "no requests", "a store with requests that were routed")
    if model_id is None and len(models) > 1:
        raise InvalidInput("model_id", None, f"one of {', '.join(models)}")
    return models[0] if model_id is None else checks.one_of("model_id", model_id, models)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedMetric:
    """One metric of logged requests, in three summaries.

    Attributes:
        counted: requests that have a value of the metric.
        units: with a counted request.
        repeated: whether some have several.
        plain: of requests, as if each were a unit of its own.
        by_unit: of units; the same as `plain` where none has several requests.
        adjusted: as the experiment will see it, the covariate included; `by_unit` where there is none.
        unit_size_cv: standard deviation of units' numbers of counted requests over their mean.
    """

    counted: int
    units: int
    repeated: bool
    plain: MetricSummary
    by_unit: MetricSummary
    adjusted: MetricSummary
    unit_size_cv: float


def measure_logged(store: RowSource, logged: Logged, metric: Metric) -> LoggedMetric:
    """A metric of logged requests.

    Raises:
        InvalidInput: the metric names nothing that was recorded, is `Paired`, or a `Rate` of more than 0 and 1.
        StoreError: the store cannot be read.
    """
    if isinstance(metric, Paired):
        allowed = f"Mean or Rate of {metric.column!r}: logged traffic has no pairs; see required_pairs"
        raise InvalidInput("metric", metric.name, allowed)
    bare = metric if metric.covariate is None else replace(metric, covariate=None)
    names = [*metric.columns, *([metric.covariate] if metric.covariate else [])]
    columns = logged.columns(store, names, where=metric.where)
    whole = " AND ".join(f"{columns.column(name)} IS NOT NULL" for name in names)
    counted, units, mean, std = store.rows(
        f"""{columns.with_clause}, of_units AS (
  SELECT count(*) FILTER ({whole}) AS counted FROM value_rows GROUP BY unit_id
)
SELECT coalesce(sum(counted), 0), count(*) FILTER (counted > 0),
  avg(counted) FILTER (counted > 0), stddev_samp(counted) FILTER (counted > 0) FROM of_units""",
        columns.params,
    )[0]
    repeated = int(counted) > int(units)
    by_unit = _summary(store, columns, bare, by_unit=repeated)
    return LoggedMetric(
        counted=int(counted),
        units=int(units),
        repeated=repeated,
        plain=_summary(store, columns, bare, by_unit=False) if repeated else by_unit,
        by_unit=by_unit,
        adjusted=by_unit if metric.covariate is None else _summary(store, columns, metric, by_unit=repeated),
        unit_size_cv=float(std) / float(mean) if mean and std is not None else 0.0,
    )


def _summary(store: RowSource, columns: ValueColumns, metric: Metric, *, by_unit: bool) -> MetricSummary:
    if isinstance(metric, Quantile):
        found = SortedValues(store, columns, metric, by_unit=by_unit).summaries()
        return found.get(_CELL, QuantileSummary(q=metric.q, n=0))
    assert not isinstance(metric, Paired), "refused before"
    cells = joint_moments(store, columns, [metric], by_unit=by_unit)
    return summary_of(metric, cells[_CELL][0] if _CELL in cells else NOTHING, by_unit=by_unit)


def needs_values(field: str, metric: Metric, found: LoggedMetric) -> None:
    """There is something to go by.

    Raises:
        InvalidInput: no logged request has a value of the metric.
    """
    if not observations(found.adjusted):
        raise InvalidInput(field, metric.name, "a metric of which logged requests have values; none has one")


def read_log(
    store: RowSource,
    logged: Logged,
    columns: Sequence[str] = (),
    *,
    metrics: Sequence[Metric] = (),
    scorers: Sequence[str] | None = (),
) -> RequestLog:
    """Logged requests themselves, in order.

    Args:
        columns: columns of evidence that are wanted beside those of the metrics.
        metrics: their columns, covariates and conditions.
        scorers: scores that are wanted; None: all there are.

    Raises:
        InvalidInput: a column that was not recorded.
        StoreError: the store cannot be read.
    """
    scored = _scorers(store, logged) if scorers is None else scorers
    wanted = [*columns, *scored]
    for metric in metrics:
        wanted += [*metric.columns, *([metric.covariate] if metric.covariate else [])]
    names = tuple(dict.fromkeys(wanted))
    found = logged.columns(store, names, keys=_KEYS)
    rows = store.rows(
        f"""{found.with_clause}
SELECT request_id, admitted_at_s, unit_id, fallback OR (error_type IS NOT NULL AND NOT innocent) AS failed,
  fallback OR NOT innocent AS counted{"".join(f", {found.column(name)}" for name in names)}
FROM (SELECT *, coalesce(error_type IN ('Cancelled', 'PromptTooLong'), FALSE) AS innocent FROM value_rows)
ORDER BY admitted_at_s, request_id""",
        found.params,
    )
    ids, at_s, units, failed, counted, *values = zip(*rows, strict=True) if rows else [()] * (5 + len(names))
    return RequestLog(
        at_s=np.array(at_s, dtype=np.float64),
        units=np.unique(np.array(units, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64),
        failed=np.array(failed, dtype=np.bool_),
        counted=np.array(counted, dtype=np.bool_),
        columns={name: np.array(several, dtype=np.float64) for name, several in zip(names, values, strict=True)},
        scorers=tuple(name for name in names if name in found.scorers),
        selected={one.name: _selected(store, logged, one, ids) for one in metrics if one.where},
    )


def _scorers(store: RowSource, logged: Logged) -> list[str]:
    columns = logged.columns(store, ())
    rows = store.rows(
        f"SELECT DISTINCT scorer FROM scores SEMI JOIN (SELECT request_id FROM requests WHERE {_OF_VERSION}) "
        "USING (request_id) ORDER BY scorer",
        columns.params,
    )
    return [str(row[0]) for row in rows]


def _selected(store: RowSource, logged: Logged, metric: Metric, ids: Sequence[str]) -> NDArray[np.bool_]:
    """Which requests fulfil a metric's conditions."""
    columns = logged.columns(store, (), keys=("request_id",), where=metric.where)
    kept = {row[0] for row in store.rows(f"{columns.with_clause} SELECT request_id FROM value_rows", columns.params)}
    return np.array([one in kept for one in ids], dtype=np.bool_)
