"""Experiments to publish."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from abswitch.domain import ModelConfig, ModelVersion
from abswitch.store.tracking import ArmRun, TrackedDataset, TrackedExperiment, TrackedTrace, version_params


def an_experiment(operation_id: str = "op-1", **changes: Any) -> TrackedExperiment:
    arms = []
    for arm, version, exact in (("stable", "v1", 0.58), ("candidate", "v2", 0.91)):
        config = ModelConfig(
            model_id="bot",
            model=f"/models/{version}",
            engine_args={"max_model_len": 256},
            prompt_template=f"{version}: {{prompt}}",
        )
        only_here = {"cost(%)": 3.5} if arm == "candidate" else {}
        arms.append(
            ArmRun(
                arm=arm,
                version=version,
                params=version_params(ModelVersion(version=version, config=config)),
                metrics={"exact": exact, "latency_s/mean": 0.05, "requests": 200} | only_here,
                windows=tuple({"exact": exact + i / 100, "requests": 20.0} for i in range(5)),
            )
        )
    made = TrackedExperiment(
        name="abswitch/bot",
        operation_id=operation_id,
        arms=tuple(arms),
        started_at_s=1_700_000_000.0,
        ended_at_s=1_700_000_300.0,
        looked_at_s=1_700_000_300.0,
        window_s=60.0,
        decision="ship",
        rule="sequence",
        reason="exact is better by 0.33",
        plan_digest="abc123",
        note="**ship** v2",
        first_metrics=("exact", "latency_s/mean"),
    )
    return replace(made, **changes)


def with_lineage(**changes: Any) -> TrackedExperiment:
    """Looks, a data set, and two requests of each arm, one of which failed."""
    plain = an_experiment(**changes)
    curve = tuple({"exact/difference": 0.3 + i / 100, "exact/low": 0.1, "exact/high": None} for i in range(3))
    arms = tuple(
        replace(arm, looks=curve if arm.arm == "candidate" else tuple(dict.fromkeys(look, 0.0) for look in curve))
        for arm in plain.arms
    )
    traces = tuple(
        TrackedTrace(
            request_id=f"{arm.arm}-{failed}",
            arm=arm.arm,
            version=arm.version,
            at_s=1_700_000_000.5,
            queue_s=0.25,
            took_s=1.5,
            first_token_s=0.5,
            output_tokens=3,
            prompt="1+2=",
            output=None if failed else "3",
            error="StreamBroken" if failed else None,
            scores={} if failed else {"exact": 1.0},
        )
        for arm in arms
        for failed in (False, True)
    )
    dataset = TrackedDataset(name="sums", source={"kind": "jsonl", "path": "sums.jsonl"}, digest="d" * 64, rows=400)
    return replace(plain, arms=arms, traces=traces, dataset=dataset)
