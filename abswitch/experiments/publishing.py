"""An experiment as flat sibling runs, one per arm, with identical metric names: what tracking interfaces compare best.

Metric names: the plan's metrics by their own names, every scorer's mean by its name, and `requests`, `error_rate`,
`latency_s_p50`, `latency_s_p95`, `first_token_s_p50`, `output_tokens_per_s`; the same by time window under `window/`;
the difference that each look at the evidence found, with its interval, under `look/` (0 in the run of the baseline: the
line to hold the candidates against).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch import checks
from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.canary import CanaryResult
from abswitch.serving.router import candidate_name
from abswitch.stats import Verdict
from abswitch.store.tracking import ArmRun, TrackedDataset, TrackedExperiment, TrackedTrace, version_params

if TYPE_CHECKING:
    import pandas as pd

WINDOWS = 20
TRACES = 20
"""Requests of each arm that are kept as traces, unless said otherwise."""
_BESIDE = ("summary.json", "*.md", "*.png", "*.svg", "figures/*.png", "figures/*.svg", "*.ipynb")
"""What lies beside a report's page and goes with it."""
_ROLE = "CASE arm WHEN 'stable' THEN 'baseline' WHEN 'shadow' THEN 'candidate' ELSE arm END"
_TOTALS = """
    count(*) AS requests,
    avg((error_type IS NOT NULL)::INT) AS error_rate,
    quantile_cont(total_s, 0.5) AS latency_s_p50,
    quantile_cont(total_s, 0.95) AS latency_s_p95,
    quantile_cont(first_token_s, 0.5) AS first_token_s_p50,
    sum(output_tokens) / nullif(sum(total_s - first_token_s), 0) AS output_tokens_per_s
"""
_COMPARED = "operation_id = $operation AND admitted_at_s <= $end AND arm <> 'pinned'"
"""Requests that the verdict saw; the test's split goes on until somebody concludes it."""
_WINDOW = "greatest(0, least(floor((admitted_at_s - $start) / $width), $last))::INT"
_ARMS = f"SELECT {_ROLE} AS role, any_value(assigned_version) FROM requests WHERE {_COMPARED} GROUP BY ALL"
_LOOKS = f"""
SELECT {_ROLE} AS side, look, metric, estimate, low, high FROM looks
WHERE operation_id = ? AND role <> 'validity' ORDER BY look, metric
"""
_TRACED = ("request_id", "arm", "version", "at_s", "queue_s", "took_s", "first_token_s", "output_tokens", "prompt",
           "output", "error")  # fmt: skip
_SAMPLED = f"""
SELECT request_id, {_ROLE} AS role, coalesce(served_version, assigned_version), admitted_at_s - queue_s, queue_s,
  total_s, first_token_s, output_tokens, prompt, output, error_type,
  (SELECT map_from_entries(list((scorer, value))) FROM (
    SELECT scorer, arg_max(value, scored_at_s) AS value FROM scores s
    WHERE s.request_id = r.request_id AND value IS NOT NULL GROUP BY scorer))
FROM requests r WHERE {_COMPARED}
QUALIFY row_number() OVER (PARTITION BY arm ORDER BY md5(request_id), request_id) <= $most
ORDER BY admitted_at_s, request_id
"""

Numbers = dict[str, float | None]
Curve = tuple[Numbers, ...]


def publish(
    engine: SwitchingEngine,
    result: ABTestResult | CanaryResult,
    *,
    report: Path | str | None = None,
    dataset: TrackedDataset | None = None,
    traces: int = TRACES,
) -> str:
    """Queue an experiment for the engine's tracking sinks; published in the background.

    Args:
        report: a folder, or a page, kept as artifact of every run; with a page go the figures, the summary, the text
            for a pull request and the notebook that lie beside it.
        dataset: the prompts, noted as what the runs were made from.
        traces: how many requests of each arm are kept as traces, the same ones every time; their texts only where the
            engine records text. Default 20.

    Returns:
        The sink's experiment name.

    Raises:
        InvalidInput: the engine was built without `mlflow=…` and without `wandb=…`.
    """
    if engine.tracking is None:
        allowed = "an engine built with SwitchingEngine(mlflow='sqlite:///folder/mlflow.db') or with wandb='folder'"
        raise InvalidInput("mlflow", None, allowed)
    tracked = tracked_experiment(engine, result, report=report, dataset=dataset, traces=traces)
    engine.tracking.publish(tracked)
    return tracked.name


def tracked_experiment(
    engine: SwitchingEngine,
    result: ABTestResult | CanaryResult,
    *,
    report: Path | str | None = None,
    dataset: TrackedDataset | None = None,
    traces: int = TRACES,
) -> TrackedExperiment:
    """The experiment as a sink takes it."""
    per_arm = checks.integer("traces", traces, low=0)
    told = _canary(result) if isinstance(result, CanaryResult) else _test(result)
    model_id = result.handle.status.model_id
    parameters = _parameters(engine, result)
    span = {name: parameters[name] for name in ("operation", "end")}
    versions = told.versions | dict(engine.store.rows(_ARMS, span))
    totals = _by_window(engine, "0", span)
    windows = _by_window(engine, _WINDOW, parameters)
    looks = _looks(engine, result.operation_id)
    flat: Curve = tuple(dict.fromkeys(look, 0.0) for look in next(iter(looks.values()), ()))
    return TrackedExperiment(
        name=f"abswitch/{model_id}/{result.experiment}",
        operation_id=result.operation_id,
        arms=tuple(
            ArmRun(
                arm=role,
                version=version,
                params=version_params(engine.registry.get(model_id, version)),
                metrics={**totals.get((role, 0), {}), **told.estimates.get(role, {})},
                windows=tuple(windows.get((role, w), {}) for w in range(WINDOWS)),
                looks=flat if role == "baseline" else looks.get(role, ()),
                tags={"abswitch.role": role} | told.of_its_own.get(role, {}),
            )
            for role, version in versions.items()
        ),
        started_at_s=parameters["start"],
        ended_at_s=parameters["end"],
        window_s=parameters["width"],
        decision=told.decision,
        rule=told.rule,
        reason=told.reasons[0],
        plan_digest=told.plan_digest,
        note=f"**{told.headline}**\n\n" + "\n".join(f"- {reason}" for reason in told.reasons),
        first_metrics=(*told.first_metrics, "error_rate", "latency_s_p50", "latency_s_p95"),
        report=report,
        attachments=_beside(report),
        dataset=dataset,
        traces=_traces(engine, span, per_arm),
        tags={"abswitch.model_id": model_id, "abswitch.experiment": result.experiment, "abswitch.design": told.design}
        | ({} if engine.store.path is None else {"abswitch.store": str(engine.store.path)}),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What both kinds of result say."""

    design: str
    versions: dict[str, str]
    decision: str
    rule: str | None
    headline: str
    reasons: tuple[str, ...]
    plan_digest: str | None = None
    first_metrics: tuple[str, ...] = ()
    estimates: Mapping[str, Numbers]
    of_its_own: Mapping[str, dict[str, str]] = field(default_factory=dict)


def _test(result: ABTestResult) -> _Told:
    plan = result.plan
    told = result.verdict if result.winner is None else result.verdicts[result.winner]
    roles = {candidate_name(i): verdict for i, verdict in enumerate(result.verdicts.values())}
    headline, *lines = result.in_words().split("\n")
    estimates: dict[str, Numbers] = {"baseline": {name: one.baseline.value for name, one in told.comparisons.items()}}
    for role, verdict in roles.items():
        estimates[role] = {name: one.candidate.value for name, one in verdict.comparisons.items()}
    return _Told(
        design=plan.design,
        versions={"baseline": plan.baseline} | {role: verdict.candidate for role, verdict in roles.items()},
        decision=told.decision.value,
        rule=told.rule,
        headline=headline,
        reasons=told.reasons if len(roles) == 1 else (told.reasons[0], *(line.strip(" -") for line in lines)),
        plan_digest=told.plan_digest,
        first_metrics=(plan.primary.name, *(metric.name for metric in plan.metrics if metric is not plan.primary)),
        estimates=estimates,
        of_its_own={role: _verdict_tags(verdict) for role, verdict in roles.items()} if len(roles) > 1 else {},
    )


def _verdict_tags(verdict: Verdict) -> dict[str, str]:
    """Of several candidates each has its own verdict."""
    told = {"decision": verdict.decision.value, "rule": verdict.rule, "reason": verdict.reasons[0]}
    return {f"abswitch.{name}": value for name, value in told.items()}


def _canary(result: CanaryResult) -> _Told:
    return _Told(
        design="canary",
        versions={"baseline": result.baseline, "candidate": result.candidate},
        decision=result.decision,
        rule=None,
        headline=result.headline,
        reasons=result.reasons,
        estimates={},
    )


def _beside(report: Path | str | None) -> tuple[Path, ...]:
    page = None if report is None else Path(report)
    if page is None or not page.is_file():
        return ()
    return tuple(sorted({path for pattern in _BESIDE for path in page.parent.glob(pattern)} - {page}))


def _parameters(engine: SwitchingEngine, result: ABTestResult | CanaryResult) -> dict[str, Any]:
    """The stretch of time in which requests were admitted that the verdict saw: neither loading nor deciding is part
    of it."""
    end_s = result.started_at_s + result.elapsed_s
    sql = f"SELECT min(admitted_at_s), max(admitted_at_s) FROM requests WHERE {_COMPARED}"
    first, last = engine.store.rows(sql, {"operation": result.operation_id, "end": end_s})[0]
    start_s = result.started_at_s if first is None else float(first)
    return {
        "operation": result.operation_id,
        "start": start_s,
        "end": end_s,
        "width": max(((end_s if last is None else float(last)) - start_s) / WINDOWS, 1e-3),
        "last": WINDOWS - 1,
    }


def _by_window(
    engine: SwitchingEngine, window: str, parameters: Mapping[str, Any]
) -> Mapping[tuple[str, int], Numbers]:
    """Metrics by role and window: of the requests, and of their scores, for each answer the latest."""
    rows = engine.query(
        f"SELECT {_ROLE} AS role, {window} AS w, {_TOTALS} FROM requests WHERE {_COMPARED} GROUP BY role, w", parameters
    )
    found = {(str(row["role"]), int(row["w"])): _numbers(row) for _, row in rows.iterrows()}
    scores = engine.query(
        f"SELECT role, w, scorer, avg(value) AS value FROM ("
        f"SELECT {_ROLE} AS role, {window} AS w, s.scorer, arg_max(s.value, s.scored_at_s) AS value "
        f"FROM requests r JOIN scores s USING (request_id) WHERE {_COMPARED} AND NOT r.fallback "
        f"GROUP BY request_id, role, w, s.scorer) GROUP BY ALL",
        parameters,
    )
    for role, number, scorer, value in scores.itertuples(index=False):
        found.setdefault((str(role), int(number)), {})[str(scorer)] = float(value)
    return found


def _numbers(row: pd.Series[Any]) -> Numbers:
    return {str(name): float(value) for name, value in row.items() if name not in ("role", "w")}


def _looks(engine: SwitchingEngine, operation_id: str) -> Mapping[str, Curve]:
    """Differences and their intervals, look by look, of each candidate."""
    found: dict[str, dict[int, Numbers]] = {}
    for role, look, metric, estimate, low, high in engine.store.rows(_LOOKS, (operation_id,)):
        here = found.setdefault(role, {}).setdefault(int(look), {})
        here |= {f"{metric}/difference": estimate, f"{metric}/low": low, f"{metric}/high": high}
    return {role: tuple(looks[number] for number in sorted(looks)) for role, looks in found.items()}


def _traces(engine: SwitchingEngine, span: Mapping[str, Any], per_arm: int) -> tuple[TrackedTrace, ...]:
    """Requests drawn by the hash of their ids, so that publishing again draws the same."""
    found = []
    for *first, scores in engine.store.rows(_SAMPLED, {**span, "most": per_arm}):
        fields = dict(zip(_TRACED, first, strict=True))
        found.append(TrackedTrace(**fields, scores=dict(scores or {})))
    return tuple(found)
