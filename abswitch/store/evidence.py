"""Evidence of one operation, from rows to the summaries that a decision reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abswitch.errors import InvalidInput
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metrics import check_design
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.selection import BEFORE_ANSWERS
from abswitch.store.columns import ANSWER_COLUMNS, ASSIGNED_COLUMNS, allowed_columns
from abswitch.store.measured import measure
from abswitch.store.moments import ArmCounts, arm_counts, crossed_units
from abswitch.store.recorder import Recorder


def collect_evidence(
    recorder: Recorder, operation_id: str, plan: AnalysisPlan, *, candidate_arm: str = "candidate"
) -> Evidence:
    """Everything recorded so far about an operation, as the plan's metrics need it.

    Metrics may name a scorer or one of `latency_s`, `first_token_s`, `queue_s`, `generation_s`, `output_tokens`,
    `prompt_tokens`, `truncated`, `error`, `fallback`. `error` and `fallback` are rates over all assigned requests but
    those whose caller went away count as no error; everything else is computed from requests that the assigned version
    answered. Where a unit has several requests, means and rates become ratios of per-unit sums and counts, and
    quantiles know how alike the requests of a unit are.

    Args:
        recorder: read after a flush.
        operation_id: whose requests; those outside the comparison (pinned, or after its end) are left out.
        candidate_arm: of several candidates, the arm that is compared with the stable one.

    Raises:
        InvalidInput: a metric names nothing that was recorded, a `Rate` a column that holds more than 0 and 1, or a
            metric is `Paired`.
        StoreError: the store cannot be read.
    """
    arms = ("stable", candidate_arm)
    counts = arm_counts(recorder, operation_id, [name for metric in plan.metrics for name in metric.columns], arms=arms)
    repeated = sum(arm.repeated_units for arm in counts.values())
    requests = sum(arm.requests for arm in counts.values())
    units = min((arm.units for arm in counts.values()), default=0)
    found = measure(
        recorder, operation_id, plan.metrics, by_unit=repeated > 0, requests=requests, units=units, arms=arms
    )
    return Evidence(
        baseline=_arm(plan.baseline, counts.get("stable"), {name: one.baseline for name, one in found.items()}),
        candidate=_arm(plan.candidate, counts.get("candidate"), {name: one.candidate for name, one in found.items()}),
        plan_digest=stored_digest(recorder, operation_id),
        dropped_rows=recorder.missing_since(_began_at_s(recorder, operation_id)),
        repeated_units=repeated,
        crossed_units=crossed_units(recorder, operation_id, arms=arms),
        segments={name: one.segments for name, one in found.items() if one.segments is not None},
    )


def check_columns(plan: AnalysisPlan, scorers: Sequence[str]) -> None:
    """The plan's design can hold its metrics, and every column that they name is there, or will be.

    Args:
        scorers: names of the scorers that will score the answers.

    Raises:
        InvalidInput: names the column and what there is.
    """
    check_design(plan.metrics, plan.design)
    for metric in plan.metrics:
        for name in metric.columns:
            if name not in {*ANSWER_COLUMNS, *ASSIGNED_COLUMNS, *scorers}:
                raise InvalidInput("metric.column", name, allowed_columns(name, scorers))
        for name in metric.selectors:
            if name not in {*BEFORE_ANSWERS, *scorers}:
                raise InvalidInput(f"metrics.{metric.name}", name, f"{', '.join(BEFORE_ANSWERS)} or a scorer")


def _arm(version: str, arm: ArmCounts | None, summaries: Mapping[str, MetricSummary]) -> ArmEvidence:
    if arm is None:
        return ArmEvidence(version=version, assigned=0, analysed=0, summaries=summaries)
    return ArmEvidence(
        version=version,
        assigned=arm.units,
        analysed=arm.answered_units,
        requests=arm.requests,
        failed=arm.errored,
        fallbacks=arm.fallbacks,
        score_failures={scorer: n for scorer, n in arm.scorer_failures.items() if n},
        summaries=summaries,
    )


def stored_digest(recorder: Recorder, operation_id: str) -> str | None:
    """Of the plan that was stored before the first exposure; None without one."""
    rows = recorder.rows("SELECT digest FROM plans WHERE operation_id = ?", (operation_id,))
    return rows[0][0] if rows else None


def _began_at_s(recorder: Recorder, operation_id: str) -> float:
    sql = "SELECT coalesce(min(admitted_at_s), 0) FROM requests WHERE operation_id = ?"
    return float(recorder.rows(sql, (operation_id,))[0][0])
