"""Every metric of a plan measured: each arm's summary, and those of its segments.

Metrics about the same requests (one `where`) are read by one statement. From a million requests on, what
`abswitch.store.panel` can add up is added up there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from abswitch.stats.evidence import SegmentEvidence
from abswitch.stats.kinds import MetricSummary, observations
from abswitch.stats.metrics import Metric, Paired, Quantile, check_design
from abswitch.stats.quantile_summary import QuantileSummary
from abswitch.stats.selection import NO_SEGMENT, OTHERS, Segments, Where
from abswitch.store.columns import ARMS, ValueColumns
from abswitch.store.metric_moments import NOTHING, Cell, joint_moments, summary_of
from abswitch.store.order_statistics import SortedValues
from abswitch.store.panel_evidence import panel_summaries
from abswitch.store.recorder import Recorder

FAST_FROM = 1_000_000
"""Requests from which the fast path is worth its looser digits (1e-9 of a value) and its groups of units."""
MOST_SEGMENTS = 50
"""Smaller ones are taken together as `OTHERS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One metric's evidence; `segments` is None where it is not broken out."""

    baseline: MetricSummary
    candidate: MetricSummary
    segments: Mapping[str, SegmentEvidence] | None = None


def measure(
    recorder: Recorder,
    operation_id: str,
    metrics: Sequence[Metric],
    *,
    by_unit: bool,
    requests: int = 0,
    units: int = 0,
    arms: Sequence[str] = ARMS,
) -> dict[str, Measured]:
    """Each metric's evidence, by name.

    Args:
        by_unit: units have several requests; evidence is then by unit.
        requests: how many there are, which decides whether the fast path is taken.
        units: how many each arm has at least, the same.
        arms: whose requests, of several candidates.

    Raises:
        InvalidInput: a metric names nothing that was recorded, or a `Rate` a column that holds more than 0 and 1; or a
            metric is `Paired`.
        StoreError: the store cannot be read.
    """
    check_design(metrics, "randomised")
    if tuple(arms) != ARMS:
        requests = 0  # the fast path knows one candidate
    whole = _whole(recorder, operation_id, metrics, by_unit=by_unit, requests=requests, units=units, arms=arms)
    return {
        metric.name: Measured(
            baseline=whole[metric.name]["stable"],
            candidate=whole[metric.name]["candidate"],
            segments=_segments(recorder, operation_id, metric, by_unit=by_unit, arms=arms),
        )
        for metric in metrics
    }


def _whole(
    recorder: Recorder,
    operation_id: str,
    metrics: Sequence[Metric],
    *,
    by_unit: bool,
    requests: int,
    units: int,
    arms: Sequence[str],
) -> dict[str, dict[str, MetricSummary]]:
    """By metric and arm, over all segments."""
    found = (
        panel_summaries(recorder, operation_id, metrics, by_unit=by_unit, units=units) if requests >= FAST_FROM else {}
    )
    groups: dict[tuple[Where, ...], list[Metric]] = {}
    for metric in metrics:
        if metric.name not in found:
            groups.setdefault(metric.where, []).append(metric)
    for where, several in groups.items():
        columns = ValueColumns(recorder, operation_id, _columns(several), where=where, arms=arms)
        for metric, cells in _cells(recorder, columns, several, by_unit=by_unit):
            found[metric.name] = {arm: cells.get((arm, "")) or _nothing(metric, by_unit=by_unit) for arm in ARMS}
    return found


def _segments(
    recorder: Recorder, operation_id: str, metric: Metric, *, by_unit: bool, arms: Sequence[str]
) -> dict[str, SegmentEvidence] | None:
    if metric.segments is None:
        return None
    largest = _largest(recorder, operation_id, metric, metric.segments, arms)
    columns = ValueColumns(
        recorder,
        operation_id,
        _columns([metric]),
        where=metric.where,
        segments=metric.segments,
        largest=largest,
        arms=arms,
    )
    ((_, cells),) = _cells(recorder, columns, [metric], by_unit=by_unit)
    units = _units(recorder, columns)
    labels = [name for name in metric.segments.labels if any(segment == name for _, segment in units)]
    names = dict.fromkeys((*labels, *sorted(segment for _, segment in units)))
    found = {
        name: SegmentEvidence(
            baseline=cells.get(("stable", name)) or _nothing(metric, by_unit=by_unit),
            candidate=cells.get(("candidate", name)) or _nothing(metric, by_unit=by_unit),
            baseline_units=units.get(("stable", name), 0),
            candidate_units=units.get(("candidate", name), 0),
        )
        for name in names
    }
    unmeasured = NO_SEGMENT in found and not any(map(observations, found[NO_SEGMENT].summaries))
    return {name: one for name, one in found.items() if not (unmeasured and name == NO_SEGMENT)}


def _cells(
    recorder: Recorder, columns: ValueColumns, metrics: Sequence[Metric], *, by_unit: bool
) -> Iterable[tuple[Metric, Mapping[Cell, MetricSummary]]]:
    """Each metric with its summaries by arm and segment."""
    additive = [metric for metric in metrics if not isinstance(metric, Quantile | Paired)]
    moments = joint_moments(recorder, columns, additive, by_unit=by_unit)
    for i, metric in enumerate(additive):
        yield metric, {cell: summary_of(metric, joint[i], by_unit=by_unit) for cell, joint in moments.items()}
    for quantile in metrics:
        if isinstance(quantile, Quantile):
            yield quantile, SortedValues(recorder, columns, quantile, by_unit=by_unit).summaries()


def _nothing(metric: Metric, *, by_unit: bool) -> MetricSummary:
    """The summary of an arm without a single request."""
    if isinstance(metric, Quantile):
        return QuantileSummary(q=metric.q, n=0)
    assert not isinstance(metric, Paired), "refused before"
    return summary_of(metric, NOTHING, by_unit=by_unit)


def _columns(metrics: Iterable[Metric]) -> list[str]:
    return [name for metric in metrics for name in (*metric.columns, *([metric.covariate] if metric.covariate else []))]


def _largest(
    recorder: Recorder, operation_id: str, metric: Metric, segments: Segments, arms: Sequence[str]
) -> list[str]:
    """The segments that keep their names; none where all can."""
    columns = ValueColumns(recorder, operation_id, (), where=metric.where, segments=segments, arms=arms)
    rows = recorder.rows(
        f"{columns.with_clause} SELECT segment FROM value_rows GROUP BY segment ORDER BY count(*) DESC, segment "
        f"LIMIT {MOST_SEGMENTS + 1}",
        columns.params,
    )
    names = [str(row[0]) for row in rows if row[0] != OTHERS]
    return names[: MOST_SEGMENTS - 1] if len(rows) > MOST_SEGMENTS else []


def _units(recorder: Recorder, columns: ValueColumns) -> dict[Cell, int]:
    sql = "SELECT arm, segment, count(DISTINCT unit_id) FROM value_rows GROUP BY arm, segment"
    return {
        (str(arm), str(segment)): int(n)
        for arm, segment, n in recorder.rows(f"{columns.with_clause} {sql}", columns.params)
    }
