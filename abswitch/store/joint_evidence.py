"""Evidence of designs that bind the arms together: pairs of answers, and blocks of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.joint import BlockSummary, JointSummary, PairedRatioSummary
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metrics import Mean, Metric, Paired, Rate, Ratio
from abswitch.stats.paired import PairedRateSummary, PairedSummary
from abswitch.stats.plan import BANDIT, PAIRED, SWITCHBACK, AnalysisPlan
from abswitch.stats.selection import Where
from abswitch.stats.strata import StratifiedSummary
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary, Summary
from abswitch.store.bandit_log import bandit_log
from abswitch.store.columns import ValueColumns
from abswitch.store.recorder import Recorder

Floats = NDArray[np.float64]
PAIRED_ROWS = "arm IN ('stable', 'candidate', 'shadow')"
"""SQL condition of the requests that may be one side of a pair."""
_PAIRS = """
, sides AS (
  SELECT *, coalesce(pair_id, request_id) AS pair, arm = 'stable' AS is_baseline FROM value_rows WHERE NOT cancelled
), pairs AS (
  SELECT a.unit_id, {columns} FROM sides a JOIN sides b USING (pair) WHERE a.is_baseline AND NOT b.is_baseline
)
"""
_BLOCK_BEGAN = """(
    SELECT min(committed_at_s) FROM routes r WHERE r.operation_id = requests.operation_id AND r.step = requests.step
  )"""
_BLOCKS = """
, block_rows AS (
  SELECT * FROM value_rows WHERE NOT cancelled
  QUALIFY coalesce(pair_id, '') = max(coalesce(pair_id, '')) OVER (PARTITION BY step)
)
"""


def collect_joint_evidence(
    recorder: Recorder, operation_id: str, plan: AnalysisPlan, *, warmup_s: float = 0.0
) -> Evidence:
    """Everything recorded so far about an experiment whose design is `paired`, `switchback` or `bandit`.

    Metrics name what they name in `collect_evidence`. A pair is a prompt that both versions were asked; where a unit
    has several, its answers are averaged on each side first, and rates become means of such averages. Of a block that
    was begun again after a crash, the last attempt counts. Of a bandit, a unit is drawn once a batch.

    Args:
        warmup_s: of a switchback of live traffic: the start of each block, left out.

    Raises:
        InvalidInput: another design, a metric names nothing that was recorded, or a `Rate` a column that holds more
            than 0 and 1.
        StoreError: the store cannot be read.
    """
    checks.one_of("plan.design", plan.design, (PAIRED, SWITCHBACK, BANDIT))
    check_metrics(plan)
    share: float | None = None
    if plan.design == PAIRED:
        arms, joint = _paired(recorder, operation_id, plan)
    elif plan.design == SWITCHBACK:
        arms, joint = _blocks(recorder, operation_id, plan, warmup_s)
    else:
        arms, joint, share = bandit_log(recorder, operation_id, plan)
    digests = recorder.rows("SELECT digest FROM plans WHERE operation_id = ?", (operation_id,))
    began = "SELECT coalesce(min(admitted_at_s), 0) FROM requests WHERE operation_id = ?"
    return Evidence(
        baseline=arms[0],
        candidate=arms[1],
        plan_digest=digests[0][0] if digests else None,
        dropped_rows=recorder.missing_since(float(recorder.rows(began, (operation_id,))[0][0])),
        expected_share=share,
        joint=joint,
    )


_KINDS: Mapping[str, tuple[type[Metric], ...]] = {
    PAIRED: (Mean, Rate, Ratio, Paired),
    SWITCHBACK: (Mean, Rate, Ratio),
    BANDIT: (Mean, Rate),
}


def check_metrics(plan: AnalysisPlan) -> None:
    """The design can compare what the plan names.

    Raises:
        InvalidInput: names the metric that it cannot.
    """
    kinds = _KINDS[plan.design]
    for metric in plan.metrics:
        if not isinstance(metric, kinds):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise InvalidInput("metrics", metric.name, f"{names} in a {plan.design} design")
        if metric.covariate is not None:
            allowed = f"none in a {plan.design} design: what prompts, or hours, bring along is taken out by the pairs"
            raise InvalidInput("metric.covariate", metric.covariate, allowed)
        if metric.segments is not None:
            raise InvalidInput("metric.segments", metric.name, f"none in a {plan.design} design")


_Found = tuple[tuple[ArmEvidence, ArmEvidence], Mapping[str, JointSummary]]


# --- pairs ------------------------------------------------------------------------------------------------------------


def _paired(recorder: Recorder, operation_id: str, plan: AnalysisPlan) -> _Found:
    names = [name for metric in plan.metrics for name in metric.columns]
    table, columns = _pairs_of(recorder, operation_id, names)
    arms = [_pair_arm(recorder, table, columns, side) for side in "ab"]
    values = {metric.name: _unit_values(recorder, operation_id, metric) for metric in plan.metrics}
    return pairs_found(plan, arms, values)


def pairs_found(
    plan: AnalysisPlan, arms: Sequence[ArmEvidence], values: Mapping[str, tuple[list[Floats], bool]]
) -> _Found:
    """Both arms with their summaries, and the joint ones.

    Args:
        arms: baseline and candidate, as counted.
        values: by metric, of each unit the mean of every column, the baseline's before the candidate's; and whether a
            unit has several pairs.
    """
    joint: dict[str, JointSummary] = {}
    summaries: tuple[dict[str, MetricSummary], dict[str, MetricSummary]] = ({}, {})
    for metric in plan.metrics:
        found, repeated = values[metric.name]
        joint[metric.name] = _joint(metric, found, repeated=repeated)
        for own, summary in zip(summaries, _own(joint[metric.name], found), strict=True):
            own[metric.name] = summary
    named = zip(arms, (plan.baseline, plan.candidate), summaries, strict=True)
    a, b = (replace(arm, version=version, summaries=own) for arm, version, own in named)
    return (a, b), joint


def _pairs_of(
    recorder: Recorder, operation_id: str, names: Sequence[str], where: Sequence[Where] = ()
) -> tuple[str, ValueColumns]:
    """`WITH …`, whose last table is `pairs`, the baseline's columns as `a_…`, the other side's as `b_…`."""
    columns = ValueColumns(
        recorder,
        operation_id,
        names,
        rows=PAIRED_ROWS,
        keys=("request_id", "pair_id"),
        where=where,
    )
    wanted = ["answered", "errored", "fallback", *map(columns.column, columns.names)]
    wanted += map(columns.failures, columns.scorers)
    both = ", ".join(f"{side}.{name} AS {side}_{name}" for side in "ab" for name in wanted)
    return f"{columns.with_clause}{_PAIRS.format(columns=both)}", columns


def _pair_arm(recorder: Recorder, table: str, columns: ValueColumns, side: str) -> ArmEvidence:
    failures = [f"coalesce(sum({side}_{columns.failures(scorer)}), 0)" for scorer in columns.scorers]
    counts = [
        f"count(DISTINCT unit_id) FILTER ({side}_answered)",
        "count(DISTINCT unit_id)",
        "count(*)",
        f"count(*) FILTER ({side}_errored)",
        f"count(*) FILTER ({side}_fallback)",
        *failures,
    ]
    row = recorder.rows(f"{table} SELECT {', '.join(counts)} FROM pairs", columns.params)[0]
    answered, units, requests, failed, fallbacks, *raised = (int(n) for n in row)
    return ArmEvidence(
        version="",
        assigned=units,
        analysed=answered,
        requests=requests,
        failed=failed,
        fallbacks=fallbacks,
        score_failures={name: n for name, n in zip(columns.scorers, raised, strict=True) if n},
    )


def _unit_values(recorder: Recorder, operation_id: str, metric: Metric) -> tuple[list[Floats], bool]:
    """Of each unit, the mean of every column on every side, over the pairs that have them all: a's, then b's.

    And whether a unit has several pairs.
    """
    table, columns = _pairs_of(recorder, operation_id, metric.columns, metric.where)
    cells = [f"{side}_{columns.column(name)}" for side in "ab" for name in metric.columns]
    whole = " AND ".join(f"{cell} IS NOT NULL" for cell in cells)
    means = ", ".join(f"avg({cell})" for cell in cells)
    sql = f"{table} SELECT {means}, count(*) FROM pairs WHERE {whole} GROUP BY unit_id ORDER BY unit_id"
    rows = np.asarray(recorder.rows(sql, columns.params), dtype=np.float64).reshape(-1, len(cells) + 1)
    return [rows[:, index] for index in range(len(cells))], bool((rows[:, -1] > 1).any())


def _joint(metric: Metric, values: Sequence[Floats], *, repeated: bool) -> JointSummary:
    if isinstance(metric, Ratio):
        return PairedRatioSummary.of(*values)
    others = int((~np.isin(np.concatenate(values), (0.0, 1.0))).sum())
    if isinstance(metric, Rate):
        outside = sum(int(((one < 0.0) | (one > 1.0)).sum()) for one in values)
        _check_binary(metric, outside if repeated else others)
    if isinstance(metric, Rate | Paired) and not repeated and not others:
        return PairedRateSummary.of(*values)
    return PairedSummary.of(*values)


def _own(joint: JointSummary, values: Sequence[Floats]) -> tuple[MetricSummary, MetricSummary]:
    """Each arm's own summary."""
    match joint:
        case PairedRatioSummary():
            return RatioSummary.of(*values[:2]), RatioSummary.of(*values[2:])
        case PairedRateSummary() | PairedSummary():
            return joint.baseline, joint.candidate
        case _:
            raise AssertionError("pairs make no blocks")


# --- blocks -----------------------------------------------------------------------------------------------------------


class _BlockCounts(NamedTuple):
    """Of one block, in the order of the SQL."""

    step: int
    requests: int
    answered: int
    errored: int
    fallbacks: int


def _blocks(recorder: Recorder, operation_id: str, plan: AnalysisPlan, warmup_s: float) -> _Found:
    names = [name for metric in plan.metrics for name in metric.columns]
    table, columns = _block_rows(recorder, operation_id, names, warmup_s)
    of_arm = [[i for i, arm in enumerate(plan.blocks) if arm == name] for name in ("baseline", "candidate")]
    joint: dict[str, JointSummary] = {}
    summaries: list[dict[str, MetricSummary]] = [{}, {}]
    for metric in plan.metrics:
        found = _strata(recorder, operation_id, metric, warmup_s)
        a, b = ({str(step // 2): found[step] for step in steps if step in found} for steps in of_arm)
        joint[metric.name] = BlockSummary(baseline=StratifiedSummary(a), candidate=StratifiedSummary(b))
        for own, parts in zip(summaries, (a, b), strict=True):
            if parts:
                own[metric.name] = _whole(list(parts.values()))
    counts = list(_block_counts(recorder, table, columns))
    arms = [
        _block_arm(version, [one for one in counts if one[0].step in steps], columns, own)
        for version, steps, own in zip((plan.baseline, plan.candidate), of_arm, summaries, strict=True)
    ]
    return (arms[0], arms[1]), joint


def _block_rows(
    recorder: Recorder, operation_id: str, names: Sequence[str], warmup_s: float, where: Sequence[Where] = ()
) -> tuple[str, ValueColumns]:
    """`WITH …`, whose last table is `block_rows`: what counts of each block, its number being `step`."""
    rows, keys = "arm IN ('stable', 'candidate')", ("step", "pair_id")
    if warmup_s:
        rows += f" AND admitted_at_s >= {checks.number('warmup_s', warmup_s, low=0.0)} + {_BLOCK_BEGAN}"
    columns = ValueColumns(recorder, operation_id, names, rows=rows, keys=keys, where=where)
    return f"{columns.with_clause}{_BLOCKS}", columns


def _block_counts(
    recorder: Recorder, table: str, columns: ValueColumns
) -> Iterator[tuple[_BlockCounts, tuple[int, ...]]]:
    failures = "".join(f", coalesce(sum({columns.failures(scorer)}), 0)" for scorer in columns.scorers)
    sql = f"""{table} SELECT step, count(*), count(*) FILTER (answered), count(*) FILTER (errored),
      count(*) FILTER (fallback){failures} FROM block_rows GROUP BY step ORDER BY step"""
    for row in recorder.rows(sql, columns.params):
        step, requests, answered, errored, fallbacks, *raised = (int(n) for n in row)
        yield _BlockCounts(step, requests, answered, errored, fallbacks), tuple(raised)


def _block_arm(
    version: str,
    found: Sequence[tuple[_BlockCounts, tuple[int, ...]]],
    columns: ValueColumns,
    summaries: Mapping[str, MetricSummary],
) -> ArmEvidence:
    """Its units are blocks."""
    counts = [one for one, _ in found]
    raised = {name: sum(many[i] for _, many in found) for i, name in enumerate(columns.scorers)}
    return ArmEvidence(
        version=version,
        assigned=len(counts),
        analysed=sum(one.answered > 0 for one in counts),
        requests=sum(one.requests for one in counts),
        failed=sum(one.errored for one in counts),
        fallbacks=sum(one.fallbacks for one in counts),
        score_failures={name: n for name, n in raised.items() if n},
        summaries=summaries,
    )


def _strata(recorder: Recorder, operation_id: str, metric: Metric, warmup_s: float) -> dict[int, Summary]:
    """A summary of each block that has a value."""
    table, columns = _block_rows(recorder, operation_id, metric.columns, warmup_s, metric.where)
    x = columns.column(metric.columns[0])
    y = columns.column(metric.columns[-1])
    whole = f"{x} IS NOT NULL AND {y} IS NOT NULL"
    sql = f"""{table} SELECT step, count(*), count(*) FILTER ({x} = 1), count(*) FILTER ({x} NOT IN (0, 1)),
      favg({x}), favg({y}), var_samp({x}), var_samp({y}), covar_samp({x}, {y})
      FROM block_rows WHERE {whole} GROUP BY step ORDER BY step"""
    strata: dict[int, Summary] = {}
    for step, n, ones, others, mean_x, mean_y, var_x, var_y, cov in recorder.rows(sql, columns.params):
        if isinstance(metric, Ratio):
            strata[step] = RatioSummary.from_moments(n, mean_x, mean_y, var_x, var_y, cov)
        elif isinstance(metric, Rate):
            _check_binary(metric, others)
            strata[step] = RateSummary(n, ones)
        else:
            strata[step] = MeanSummary.from_moments(n, mean_x, var_x)
    return strata


def _whole(parts: Sequence[Summary]) -> Summary:
    total = parts[0]
    for part in parts[1:]:
        total = total + part  # type: ignore[operator]  # of one kind, as they are of one metric
    return total


def _check_binary(metric: Rate, others: int) -> None:
    if others:
        allowed = f"a column of 0 and 1 only ({others} value(s) are neither); use Mean({metric.column!r})"
        raise InvalidInput("metric.column", metric.column, allowed)
