"""The content of `summary.json`: one experiment as plain values. docs/summary.md documents every key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files as package_files
from typing import Any

from abswitch.engine import SwitchingEngine
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.canary import CanaryResult
from abswitch.experiments.conditions import conditions_of
from abswitch.experiments.environment import environment
from abswitch.experiments.looks import curves_of
from abswitch.experiments.stages import arms_of_canary, split_of, steps_of
from abswitch.experiments.subject import Result, Subject, subject_of
from abswitch.experiments.timing import SwitchTiming
from abswitch.serving.router import candidate_name
from abswitch.stats.comparison import finite
from abswitch.stats.metrics import metric_to_dict

SCHEMA_VERSION = 2
SCHEMA = "summary.schema.json"


def summary_of(
    engine: SwitchingEngine,
    result: Result,
    *,
    switch: SwitchTiming | None,
    extra: Mapping[str, Any],
    created_at_s: float,
    files: Sequence[str] = (),
) -> dict[str, Any]:
    """One experiment as JSON values; the same keys for every design.

    Args:
        switch: timing of the promotion that followed; None when there was none.
        extra: whatever else is to be kept; must be JSON values, floats that are not finite become None.
        created_at_s: seconds since the epoch.
        files: names of what lies beside it.
    """
    subject = subject_of(result)
    operation, path = result.handle.status, engine.store.path
    found = _of_canary(engine, subject, result) if isinstance(result, CanaryResult) else _of_comparison(result)
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "design": subject.design,
        "experiment": subject.experiment,
        "operation_id": subject.operation_id,
        "model_id": subject.model_id,
        "created_at": _iso(created_at_s),
        "started_at": _iso(subject.started_at_s),
        "elapsed_s": result.elapsed_s,
        "versions": {arm.role: _version(engine, subject.model_id, arm.version) for arm in subject.arms},
        **found,
        "strategy": _strategy(engine, subject.operation_id),
        "looks": [curve.to_dict() for curve in curves_of(engine, subject.operation_id)],
        **conditions_of(engine, subject).to_dict(),
        "requests": asdict(result.requests) | {"lost": result.requests.lost},
        "switch": None if switch is None else asdict(switch),
        "operation": {"phase": operation.phase, "promoted": operation.promoted, "reason": operation.reason},
        "store": None if path is None else str(path),
        "tracking": _tracking(engine, subject.operation_id),
        "environment": environment(),
        "files": list(files),
        "extra": dict(extra),
    }
    plain: dict[str, Any] = finite(summary)
    return plain


def schema() -> dict[str, Any]:
    """The JSON Schema of `summary.json`, as shipped beside this module."""
    text = package_files("abswitch.experiments").joinpath(SCHEMA).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _of_comparison(result: ABTestResult) -> dict[str, Any]:
    verdict, plan = result.verdict, result.plan
    others = (found for version, found in result.all_evidence.items() if version != plan.candidate)
    arms = dict(result.evidence.arms) | {candidate_name(i): one.candidate for i, one in enumerate(others, start=1)}
    return {
        "n": {role: arm.analysed for role, arm in arms.items()},
        "arms": {role: arm.to_dict() for role, arm in arms.items()},
        "verdict": verdict.to_dict(),
        "verdicts": {version: one.to_dict() for version, one in result.verdicts.items()},
        "winner": result.winner,
        "plan": plan.to_dict(),
        "plan_digest": verdict.plan_digest,
        "estimates": [
            metric_to_dict(metric) | {"comparison": verdict.comparisons[metric.name].to_dict()}
            for metric in plan.metrics
            if metric.name in verdict.comparisons
        ],
        "steps": [],
        "moves": [],
    }


def _of_canary(engine: SwitchingEngine, subject: Subject, result: CanaryResult) -> dict[str, Any]:
    arms, steps = arms_of_canary(engine, subject), steps_of(engine, result)
    ratio = split_of(engine, subject)
    said = {key: value for key, value in result.to_dict().items() if key != "moves"}
    return {
        "n": {role: arm["analysed"] for role, arm in arms.items()},
        "arms": arms,
        "verdicts": {},
        "winner": result.candidate if result.decision == "promote" else None,
        "verdict": said | {"sample_ratio": None if ratio is None else ratio.to_dict()},
        "plan": None,
        "plan_digest": None,
        "estimates": [],
        "steps": [step.to_dict() for step in steps],
        "moves": [asdict(move) for move in result.moves],
    }


def _strategy(engine: SwitchingEngine, operation_id: str) -> dict[str, Any] | None:
    """How the switch moved traffic; None for a trial, which moves none."""
    rows = engine.store.rows("SELECT strategy, strategy_config FROM operations WHERE operation_id = ?", (operation_id,))
    return {"type": rows[0][0], **json.loads(rows[0][1])} if rows else None


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def _tracking(engine: SwitchingEngine, operation_id: str) -> dict[str, Any] | None:
    links = None if engine.tracking is None else engine.tracking.links(operation_id)
    return None if links is None else links.to_dict()


def _version(engine: SwitchingEngine, model_id: str, version: str) -> dict[str, Any]:
    registered = engine.registry.get(model_id, version)
    metadata = json.loads(json.dumps(dict(registered.metadata), default=str))
    return {"version": version, "metadata": metadata, **registered.config.to_dict()}
