"""An experiment as flat sibling runs, one per arm, with identical metric names: what tracking interfaces compare best.

Metric names: the plan's metrics by their own names, and `requests`, `error_rate`, `latency_s_p50`, `latency_s_p95`,
`first_token_s_p50`, `output_tokens_per_s`; the same by time window under `window/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments.ab_test import ABTestResult
from abswitch.serving.router import candidate_name
from abswitch.store.tracking import ArmRun, TrackedExperiment, version_params

if TYPE_CHECKING:
    import pandas as pd

WINDOWS = 20
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
_SCORES = f"""
SELECT r.arm, {_WINDOW} AS w, s.scorer, avg(s.value) AS value
FROM requests r JOIN scores s USING (request_id)
WHERE {_COMPARED} AND NOT r.fallback GROUP BY ALL
"""


def publish(engine: SwitchingEngine, result: ABTestResult, *, report: Path | str | None = None) -> str:
    """Queue an experiment for the engine's tracking sink; published in the background.

    Args:
        report: file or folder kept as artifact of every run.

    Returns:
        The sink's experiment name.

    Raises:
        InvalidInput: the engine was built without `mlflow=…`.
    """
    if engine.tracking is None:
        raise InvalidInput("mlflow", None, "an engine built with SwitchingEngine(mlflow='sqlite:///folder/mlflow.db')")
    tracked = tracked_experiment(engine, result, report=report)
    engine.tracking.publish(tracked)
    return tracked.name


def tracked_experiment(
    engine: SwitchingEngine, result: ABTestResult, *, report: Path | str | None = None
) -> TrackedExperiment:
    """The experiment as a sink takes it."""
    verdict, model_id = result.verdict, result.handle.status.model_id
    names = [candidate_name(index) for index in range(len(result.verdicts))]
    arms = (("stable", "baseline", result.plan.baseline), *zip(names, names, result.verdicts, strict=True))
    parameters = _parameters(engine, result)
    totals = _by_arm(engine, "0", {key: parameters[key] for key in ("operation", "end")})
    windows = _windows(engine, parameters)
    return TrackedExperiment(
        name=f"abswitch/{model_id}/{result.experiment}",
        operation_id=result.operation_id,
        arms=tuple(
            ArmRun(
                arm=role,
                version=version,
                params=version_params(engine.registry.get(model_id, version)),
                metrics={**totals.get((arm, 0), {}), **_estimates(result, version)},
                windows=tuple(windows.get((arm, w), {}) for w in range(WINDOWS)),
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
        note="\n\n".join(
            f"**{one.headline}**\n\n" + "\n".join(f"- {reason}" for reason in one.reasons)
            for one in result.verdicts.values()
        ),
        report=report,
    )


def _estimates(result: ABTestResult, version: str) -> dict[str, float | None]:
    """Of the baseline, as it was held against the first candidate."""
    if version == result.plan.baseline:
        return {name: found.baseline.value for name, found in result.verdict.comparisons.items()}
    return {name: found.candidate.value for name, found in result.verdicts[version].comparisons.items()}


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
