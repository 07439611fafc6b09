"""Summaries of the metrics that `abswitch.store.panel` can add up: plain columns of answers, very many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from abswitch.stats.adjustment import CovariateSummary
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metric_parts import Unit
from abswitch.stats.metrics import Mean, Metric, Ratio
from abswitch.stats.summaries import MeanSummary, RatioSummary
from abswitch.store.columns import ANSWER_COLUMNS
from abswitch.store.moments import Pair
from abswitch.store.panel import GROUPS, Panel
from abswitch.store.recorder import Recorder

_GROUPED_FROM = 16 * GROUPS
"""Units from which groups of them say as much of the variance as they do themselves."""


def panel_summaries(
    recorder: Recorder, operation_id: str, metrics: Sequence[Metric], *, by_unit: bool, units: int = 0
) -> dict[str, dict[str, MetricSummary]]:
    """By metric and arm; metrics that it cannot add up are not there.

    Args:
        by_unit: units have several requests; then sums over groups of units stand for sums over units.
        units: in each arm at least; with few the groups would, and nothing is added up here.

    Raises:
        StoreError: the store cannot be read.
    """
    eligible = [metric for metric in metrics if _is_plain(metric) and not (by_unit and metric.covariate)]
    if not eligible or (by_unit and units < _GROUPED_FROM):
        return {}
    panel = Panel.of(recorder, operation_id)
    pairs = [_pair(metric, by_unit=by_unit) for metric in eligible]
    if by_unit:
        grouped = panel.grouped([pair for pair in pairs if pair])
        return {
            metric.name: {arm: RatioSummary.from_moments(*found[pair]) for arm, (found, _) in grouped.items()}
            for metric, pair in zip(eligible, pairs, strict=True)
            if pair
        }
    moments = panel.moments(
        [metric.columns[0] for metric in eligible if not isinstance(metric, Ratio)],
        pairs=[pair for pair in pairs if pair],
    )
    summaries: dict[str, dict[str, MetricSummary]] = {metric.name: {} for metric in eligible}
    for arm, (values, couples) in moments.items():
        for metric, pair in zip(eligible, pairs, strict=True):
            if pair is None:
                n, _, _, mean, variance = values[metric.columns[0]]
                summaries[metric.name][arm] = MeanSummary.from_moments(n, mean, variance)
            elif isinstance(metric, Ratio):
                summaries[metric.name][arm] = RatioSummary.from_moments(*couples[pair])
            else:
                summaries[metric.name][arm] = CovariateSummary.from_moments(*couples[pair])
    return summaries


def _is_plain(metric: Metric) -> TypeGuard[Mean | Ratio]:
    named = (*metric.columns, *([metric.covariate] if metric.covariate else []))
    if not isinstance(metric, Mean | Ratio) or metric.where or metric.unit != Unit.REQUEST:
        return False
    if isinstance(metric, Ratio) and metric.covariate:
        return False
    return all(name in ANSWER_COLUMNS for name in named)


def _pair(metric: Mean | Ratio, *, by_unit: bool) -> Pair | None:
    """The two columns whose joint moments it needs."""
    if isinstance(metric, Ratio):
        return metric.numerator, metric.denominator
    if by_unit:
        return metric.column, "count"
    return (metric.column, metric.covariate) if metric.covariate else None
