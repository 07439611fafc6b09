"""What a bandit drew and what came of it, from rows to the log that inference afterwards reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from abswitch.stats.bandits import BanditLog
from abswitch.stats.evidence import ArmEvidence
from abswitch.stats.joint import JointSummary
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metrics import Metric
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.summaries import MeanSummary, RateSummary
from abswitch.store.columns import ValueColumns
from abswitch.store.recorder import Recorder

ARMS = ("baseline", "candidate")
_KEYS = ("route_epoch", "admitted_at_s", "propensity")
_CHANCE = "any_value(CASE WHEN arm = 'candidate' THEN propensity ELSE 1 - propensity END)"
"""The candidate's, of a unit in a batch."""


def bandit_log(
    recorder: Recorder, operation_id: str, plan: AnalysisPlan
) -> tuple[tuple[ArmEvidence, ArmEvidence], Mapping[str, JointSummary], float | None]:
    """Both arms, a log for each metric, and the mean chance of the candidate; None without any draw.

    A unit is drawn once in each batch: of several requests in it, the mean is its reward.
    """
    names = [name for metric in plan.metrics for name in metric.columns]
    columns = ValueColumns(recorder, operation_id, names, keys=_KEYS)
    logs = {metric.name: _log(recorder, operation_id, metric) for metric in plan.metrics}
    arms = tuple(
        _arm(recorder, columns, arm, version, {name: _own(logs[name], k) for name in logs})
        for k, (arm, version) in enumerate((("stable", plan.baseline), ("candidate", plan.candidate)))
    )
    drawn = f"""{columns.with_clause}, drawn AS (
        SELECT {_CHANCE} AS chance FROM value_rows WHERE NOT cancelled GROUP BY route_epoch, unit_id
    ) SELECT avg(chance) FROM drawn"""
    share = recorder.rows(drawn, columns.params)[0][0]
    return (arms[0], arms[1]), logs, share


def _log(recorder: Recorder, operation_id: str, metric: Metric) -> BanditLog:
    columns = ValueColumns(recorder, operation_id, metric.columns, keys=_KEYS, where=metric.where)
    value = columns.column(metric.columns[0])
    sql = f"""{columns.with_clause} SELECT arm = 'candidate', avg({value}), {_CHANCE} FROM value_rows
        WHERE {value} IS NOT NULL GROUP BY route_epoch, unit_id, arm
        ORDER BY route_epoch, min(admitted_at_s), unit_id"""
    rows = np.asarray(recorder.rows(sql, columns.params), dtype=np.float64).reshape(-1, 3)
    chances = np.column_stack([1.0 - rows[:, 2], rows[:, 2]])
    return BanditLog(ARMS, rows[:, 0].astype(np.int64), rows[:, 1], chances)


def _own(log: BanditLog, k: int) -> MetricSummary:
    """An arm's plain summary: for people, not for comparing."""
    rewards = log.rewards[log.chosen == k]
    return RateSummary.of(rewards) if np.isin(rewards, (0.0, 1.0)).all() else MeanSummary.of(rewards)


def _arm(
    recorder: Recorder, columns: ValueColumns, arm: str, version: str, summaries: Mapping[str, MetricSummary]
) -> ArmEvidence:
    failures = "".join(f", coalesce(sum({columns.failures(scorer)}), 0)" for scorer in columns.scorers)
    sql = f"""{columns.with_clause} SELECT count(DISTINCT (route_epoch, unit_id)),
        count(DISTINCT (route_epoch, unit_id)) FILTER (answered), count(*), count(*) FILTER (errored),
        count(*) FILTER (fallback){failures} FROM value_rows WHERE NOT cancelled AND arm = '{arm}'"""
    assigned, analysed, requests, failed, fallbacks, *raised = map(int, recorder.rows(sql, columns.params)[0])
    return ArmEvidence(
        version=version,
        assigned=assigned,
        analysed=analysed,
        requests=requests,
        failed=failed,
        fallbacks=fallbacks,
        score_failures={name: n for name, n in zip(columns.scorers, raised, strict=True) if n},
        summaries=summaries,
    )
