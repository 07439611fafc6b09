"""The content of `summary.json`: one experiment as plain values. docs/summary.md documents every key."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abswitch.engine import SwitchingEngine
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.environment import environment
from abswitch.experiments.timing import SwitchTiming
from abswitch.stats.comparison import finite
from abswitch.stats.metrics import metric_to_dict

SCHEMA_VERSION = 1


def summary_of(
    engine: SwitchingEngine,
    result: ABTestResult,
    *,
    switch: SwitchTiming | None,
    extra: Mapping[str, Any],
    created_at_s: float,
) -> dict[str, Any]:
    """One experiment as JSON values.

    Args:
        switch: timing of the promotion that followed; None when there was none.
        extra: whatever else is to be kept; must be JSON values, floats that are not finite become None.
        created_at_s: seconds since the epoch.
    """
    operation, verdict, plan = result.handle.status, result.verdict, result.plan
    path = engine.store.path
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "experiment": result.operation_id,
        "operation_id": result.operation_id,
        "model_id": operation.model_id,
        "created_at": datetime.fromtimestamp(created_at_s, UTC).isoformat(timespec="seconds"),
        "started_at": datetime.fromtimestamp(result.started_at_s, UTC).isoformat(timespec="seconds"),
        "elapsed_s": result.elapsed_s,
        "versions": {
            role: _version(engine, operation.model_id, version)
            for role, version in (("baseline", plan.baseline), ("candidate", plan.candidate))
        },
        "n": {role: arm.analysed for role, arm in result.evidence.arms},
        "arms": {role: arm.to_dict() for role, arm in result.evidence.arms},
        "verdict": verdict.to_dict(),
        "plan": plan.to_dict(),
        "estimates": [
            metric_to_dict(metric) | {"comparison": verdict.comparisons[metric.name].to_dict()}
            for metric in plan.metrics
            if metric.name in verdict.comparisons
        ],
        "winner": result.winner,
        "candidates": {version: one.to_dict() for version, one in result.verdicts.items()},
        "requests": asdict(result.requests) | {"lost": result.requests.lost},
        "switch": None if switch is None else asdict(switch),
        "operation": {"phase": operation.phase, "promoted": operation.promoted, "reason": operation.reason},
        "plan_digest": verdict.plan_digest,
        "store": None if path is None else str(path),
        "tracking": _tracking(engine, result.operation_id),
        "environment": environment(),
        "extra": dict(extra),
    }
    plain: dict[str, Any] = finite(summary)
    return plain


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file at once: a reader sees the old content or the new, also when this process is killed meanwhile."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def to_json(summary: Mapping[str, Any]) -> bytes:
    """Readable JSON, without NaN.

    Raises:
        TypeError, ValueError: something in it is no JSON value.
    """
    return (json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _tracking(engine: SwitchingEngine, operation_id: str) -> dict[str, Any] | None:
    links = None if engine.tracking is None else engine.tracking.links(operation_id)
    return None if links is None else links.to_dict()


def _version(engine: SwitchingEngine, model_id: str, version: str) -> dict[str, Any]:
    registered = engine.registry.get(model_id, version)
    metadata = json.loads(json.dumps(dict(registered.metadata), default=str))
    return {"version": version, "metadata": metadata, **registered.config.to_dict()}
