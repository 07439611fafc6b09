"""An experiment as flat sibling runs, one per arm, with identical metric names: what tracking interfaces compare best.

Metric names: the plan's metrics by their own names, and `requests`, `error_rate`, `latency_s_p50`, `latency_s_p95`,
`first_token_s_p50`, `output_tokens_per_s`; the same by time window under `window/`; the difference that each look at
evidence found, with its interval, under `look/` (0 in the run of the baseline: the line to hold the candidate against).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch import checks
from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments.ab_test import ABTestResult
from abswitch.store.tracking import ArmRun, TrackedDataset, TrackedExperiment, TrackedTrace, version_params

if TYPE_CHECKING:
    import pandas as pd

WINDOWS = 20
TRACES = 20
"""Requests of each arm that are kept as traces, unless said otherwise."""
_ROLES = {"stable": "baseline", "candidate": "candidate"}
_TOTALS = """
    count(*) AS requests,
    avg((error_type IS NOT NULL)::INT) AS error_rate,
    quantile_cont(total_s, 0.5) AS latency_s_p50,
    quantile_cont(total_s, 0.95) AS latency_s_p95,
    quantile_cont(first_token_s, 0.5) AS first_token_s_p50,
    sum(output_tokens) / nullif(sum(total_s - first_token_s), 0) AS output_tokens_per_s
"""
_COMPARED = "operation_id = $operation AND admitted_at_s <= $end"
"""Requests that the verdict saw; the test's split goes on until somebody concludes it."""
_WINDOW = "greatest(0, least(floor((admitted_at_s - $start) / $width), $last))::INT"
_LOOKS = """
SELECT look, metric, estimate, low, high FROM looks WHERE operation_id = ? AND role <> 'validity' ORDER BY look, metric
"""
_TRACED = ("request_id", "arm", "version", "at_s", "queue_s", "took_s", "first_token_s", "output_tokens", "prompt",
           "output", "error")  # fmt: skip
_SAMPLED = f"""
SELECT request_id, arm, coalesce(served_version, assigned_version), admitted_at_s - queue_s, queue_s, total_s,
  first_token_s, output_tokens, prompt, output, error_type,
  (SELECT map_from_entries(list((scorer, value))) FROM (
    SELECT scorer, arg_max(value, scored_at_s) AS value FROM scores s
    WHERE s.request_id = r.request_id AND value IS NOT NULL GROUP BY scorer))
FROM requests r WHERE {_COMPARED} AND arm IN ('stable', 'candidate')
QUALIFY row_number() OVER (PARTITION BY arm ORDER BY md5(request_id), request_id) <= $most
ORDER BY admitted_at_s, request_id
"""
_SCORES = f"""
SELECT r.arm, {_WINDOW} AS w, s.scorer, avg(s.value) AS value
FROM requests r JOIN scores s USING (request_id)
WHERE {_COMPARED} AND NOT r.fallback GROUP BY ALL
"""


def publish(
    engine: SwitchingEngine,
    result: ABTestResult,
    *,
    report: Path | str | None = None,
    dataset: TrackedDataset | None = None,
    traces: int = TRACES,
) -> str:
    """Queue an experiment for the engine's tracking sink; published in the background.

    Args:
        report: file or folder kept as artifact of every run.
        dataset: the prompts, noted as what the runs were made from.
        traces: how many requests of each arm are kept as traces, the same ones every time; their texts only where the
            engine records text. Default 20.

    Returns:
        The sink's experiment name.

    Raises:
        InvalidInput: the engine was built without `mlflow=…`.
    """
    if engine.tracking is None:
        raise InvalidInput("mlflow", None, "an engine built with SwitchingEngine(mlflow='sqlite:///folder/mlflow.db')")
    tracked = tracked_experiment(engine, result, report=report, dataset=dataset, traces=traces)
    engine.tracking.publish(tracked)
    return tracked.name


def tracked_experiment(
    engine: SwitchingEngine,
    result: ABTestResult,
    *,
    report: Path | str | None = None,
    dataset: TrackedDataset | None = None,
    traces: int = TRACES,
) -> TrackedExperiment:
    """The experiment as a sink takes it."""
    verdict, model_id = result.verdict, result.handle.status.model_id
    arms = (("stable", "baseline", result.plan.baseline), ("candidate", "candidate", result.plan.candidate))
    parameters = _parameters(engine, result)
    totals = _by_arm(engine, "0", {key: parameters[key] for key in ("operation", "end")})
    windows = _windows(engine, parameters)
    looks = _looks(engine, result)
    return TrackedExperiment(
        name=f"abswitch/{model_id}/{result.experiment}",
        operation_id=result.operation_id,
        arms=tuple(
            ArmRun(
                arm=role,
                version=version,
                params=version_params(engine.registry.get(model_id, version)),
                metrics={**totals.get((arm, 0), {}), **_estimates(result, role)},
                windows=tuple(windows.get((arm, w), {}) for w in range(WINDOWS)),
                looks=looks if role == "candidate" else tuple(dict.fromkeys(look, 0.0) for look in looks),
                tags={"abswitch.role": role},
            )
            for arm, role, version in arms
        ),
        started_at_s=parameters["start"],
        ended_at_s=parameters["end"],
        window_s=parameters["width"],
        decision=verdict.decision.value,
        rule=verdict.rule,
        reason=verdict.reasons[0],
        plan_digest=verdict.plan_digest,
        note=f"**{verdict.headline}**\n\n" + "\n".join(f"- {reason}" for reason in verdict.reasons),
        report=report,
        dataset=dataset,
        traces=_traces(engine, parameters, traces) if checks.integer("traces", traces, low=0) else (),
    )


def _estimates(result: ABTestResult, role: str) -> dict[str, float | None]:
    return {name: getattr(found, role).value for name, found in result.verdict.comparisons.items()}


def _parameters(engine: SwitchingEngine, result: ABTestResult) -> dict[str, Any]:
    """The stretch of time the verdict saw, from the first admission: loading the candidate is no part of it."""
    end_s = result.started_at_s + result.elapsed_s
    first = engine.query(
        f"SELECT min(admitted_at_s) AS at_s FROM requests WHERE {_COMPARED}",
        {"operation": result.operation_id, "end": end_s},
    )["at_s"][0]
    start_s = result.started_at_s if isnan(first) else float(first)
    return {
        "operation": result.operation_id,
        "start": start_s,
        "end": end_s,
        "width": max((end_s - start_s) / WINDOWS, 1e-3),
        "last": WINDOWS - 1,
    }


def _windows(
    engine: SwitchingEngine, parameters: Mapping[str, Any]
) -> Mapping[tuple[str, int], dict[str, float | None]]:
    found = _by_arm(engine, _WINDOW, parameters)
    for arm, window, scorer, value in engine.query(_SCORES, parameters).itertuples(index=False):
        found.setdefault((arm, int(window)), {})[scorer] = float(value)
    return found


def _by_arm(
    engine: SwitchingEngine, window: str, parameters: Mapping[str, Any]
) -> dict[tuple[str, int], dict[str, float | None]]:
    rows = engine.query(
        f"SELECT arm, {window} AS w, {_TOTALS} FROM requests WHERE {_COMPARED} GROUP BY arm, w", parameters
    )
    return {(row["arm"], int(row["w"])): _numbers(row) for _, row in rows.iterrows()}


def _numbers(row: pd.Series[Any]) -> dict[str, float | None]:
    return {str(name): float(value) for name, value in row.items() if name not in ("arm", "w")}


def _looks(engine: SwitchingEngine, result: ABTestResult) -> tuple[dict[str, float | None], ...]:
    """Differences and their intervals, look by look."""
    rows = engine.store.rows(_LOOKS, (result.operation_id,))
    found: dict[int, dict[str, float | None]] = {}
    for look, metric, estimate, low, high in rows:
        here = found.setdefault(int(look), {})
        here |= {f"{metric}/difference": estimate, f"{metric}/low": low, f"{metric}/high": high}
    return tuple(found[look] for look in sorted(found))


def _traces(engine: SwitchingEngine, parameters: Mapping[str, Any], per_arm: int) -> tuple[TrackedTrace, ...]:
    """Requests drawn by the hash of their ids, so that publishing again draws the same."""
    given = {name: parameters[name] for name in ("operation", "end")} | {"most": per_arm}
    found = []
    for *first, scores in engine.store.rows(_SAMPLED, given):
        fields = dict(zip(_TRACED, first, strict=True))
        found.append(TrackedTrace(**fields | {"arm": _ROLES[fields["arm"]]}, scores=dict(scores or {})))
    return tuple(found)
