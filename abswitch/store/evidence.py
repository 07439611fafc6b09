"""Evidence of one operation, from rows to the summaries that a decision reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abswitch.errors import InvalidInput
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metrics import Metric, Paired, Rate, Ratio
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary
from abswitch.store.columns import ANSWER_COLUMNS, ASSIGNED_COLUMNS, allowed_columns
from abswitch.store.moments import ArmMoments, Moments, PairMoments, arm_moments, crossed_units
from abswitch.store.recorder import Recorder

_NO_MOMENTS = Moments(0, 0, 0, float("nan"), float("nan"))
_NO_PAIR = PairMoments(0, *(float("nan"),) * 5)


def collect_evidence(recorder: Recorder, operation_id: str, plan: AnalysisPlan) -> Evidence:
    """Everything recorded so far about an operation, as the plan's metrics need it.

    Metrics may name a scorer or one of `latency_s`, `first_token_s`, `queue_s`, `generation_s`, `output_tokens`,
    `prompt_tokens`, `truncated`, `error`, `fallback`. `error` and `fallback` are rates over all assigned requests but
    those whose caller went away count as no error; everything else is computed from requests that the assigned version
    answered. Where a unit has several such requests, means and rates become ratios of per-unit sums and counts.

    Args:
        recorder: read after a flush.
        operation_id: whose requests; those outside the comparison (pinned, or after its end) are left out.

    Raises:
        InvalidInput: a metric names nothing that was recorded, or a `Rate` a column that holds more than 0 and 1.
        StoreError: the store cannot be read.
    """
    names = [name for metric in plan.metrics if not isinstance(metric, Ratio) for name in metric.columns]
    pairs = [(metric.numerator, metric.denominator) for metric in plan.metrics if isinstance(metric, Ratio)]
    arms = arm_moments(recorder, operation_id, names, pairs=pairs)
    repeated = sum(arm.repeated_units for arm in arms.values())
    return Evidence(
        baseline=_arm(plan.baseline, arms.get("stable"), plan, by_unit=repeated > 0),
        candidate=_arm(plan.candidate, arms.get("candidate"), plan, by_unit=repeated > 0),
        plan_digest=_digest(recorder, operation_id),
        dropped_rows=recorder.missing_since(_began_at_s(recorder, operation_id)),
        repeated_units=repeated,
        crossed_units=crossed_units(recorder, operation_id),
    )


def check_columns(plan: AnalysisPlan, scorers: Sequence[str]) -> None:
    """Every column that the plan's metrics name is there, or will be.

    Args:
        scorers: names of the scorers that will score the answers.

    Raises:
        InvalidInput: names the column and what there is.
    """
    for metric in plan.metrics:
        for name in metric.columns:
            if name not in {*ANSWER_COLUMNS, *ASSIGNED_COLUMNS, *scorers}:
                raise InvalidInput("metric.column", name, allowed_columns(name, scorers))


def _arm(version: str, arm: ArmMoments | None, plan: AnalysisPlan, *, by_unit: bool) -> ArmEvidence:
    summaries = {metric.name: _summary(metric, arm, by_unit=by_unit) for metric in plan.metrics}
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


def _summary(metric: Metric, arm: ArmMoments | None, *, by_unit: bool) -> MetricSummary:
    if isinstance(metric, Ratio):
        couples: Mapping[tuple[str, str], PairMoments] = {}
        if arm is not None:
            couples = arm.unit_pairs if by_unit else arm.pairs
        return RatioSummary.from_moments(*couples.get((metric.numerator, metric.denominator), _NO_PAIR))
    if isinstance(metric, Paired):
        raise InvalidInput(
            "metrics", metric.name, "a Paired metric in a paired design; write Mean or Rate for this one"
        )
    moments = _NO_MOMENTS if arm is None else arm.values[metric.column]
    if isinstance(metric, Rate):
        _check_binary(metric, moments)
    if by_unit:
        return RatioSummary.from_moments(*(_NO_PAIR if arm is None else arm.unit_values[metric.column]))
    if isinstance(metric, Rate):
        return RateSummary(moments.n, moments.ones)
    return MeanSummary.from_moments(moments.n, moments.mean, moments.var)


def _check_binary(metric: Rate, moments: Moments) -> None:
    if moments.zeros + moments.ones != moments.n:
        others = moments.n - moments.zeros - moments.ones
        allowed = f"a column of 0 and 1 only ({others} of {moments.n} values are neither); use Mean({metric.column!r})"
        raise InvalidInput("metric.column", metric.column, allowed)


def _digest(recorder: Recorder, operation_id: str) -> str | None:
    rows = recorder.rows("SELECT digest FROM plans WHERE operation_id = ?", (operation_id,))
    return rows[0][0] if rows else None


def _began_at_s(recorder: Recorder, operation_id: str) -> float:
    sql = "SELECT coalesce(min(admitted_at_s), 0) FROM requests WHERE operation_id = ?"
    return float(recorder.rows(sql, (operation_id,))[0][0])
