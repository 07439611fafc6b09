"""What every `TrackingSink` has to fulfil; `test_sinks.py` runs it against each of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abswitch.store.recorder import Recorder
from abswitch.store.sinks import OutboxSink
from abswitch.store.tracking import TrackingLinks
from tests.store.tracked import an_experiment, with_lineage

Steps = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class SeenRun:
    """A run as somebody finds it in the sink."""

    run_id: str
    name: str
    metrics: Mapping[str, float]
    curves: Mapping[str, Steps]
    params: Mapping[str, Any]
    words: frozenset[str]
    files: frozenset[str]
    dataset: str | None
    requests: int


@dataclass(frozen=True, slots=True)
class Place:
    """A sink that can be opened, and looked into from outside.

    Attributes:
        open: on a store; the caller closes it.
        look: every run that is there, by operation and arm. Fails where one is there twice.
    """

    open: Callable[[Recorder], OutboxSink]
    look: Callable[[], Mapping[tuple[str, str], SeenRun]]


def check_sink(place: Place, recorder: Recorder, folder: Path) -> None:
    """Publish, publish again, deliver once more, publish changes; every time each run is there once and whole."""
    sink = place.open(recorder)
    try:
        report = folder / "index.html"
        report.write_text("<h1>ship</h1>")
        figure = folder / "forest.png"
        figure.write_bytes(b"\x89PNG")
        experiment = with_lineage(report=report, attachments=(figure,))
        assert sink.links("op-1") is None
        job = sink.publish(experiment)
        assert sink.flush(120.0), sink.status()
        _check_runs(place.look())
        ids = {key: run.run_id for key, run in place.look().items()}
        _check_links(sink.links("op-1"), ids)

        assert sink.publish(replace(experiment, looked_at_s=2e9)) == job, "the same content is the same job"
        sink.deliver(json.loads(json.dumps(experiment.to_dict())))  # as after a crash before it was noted as published
        _check_runs(place.look())
        assert {key: run.run_id for key, run in place.look().items()} == ids

        later = [replace(arm, metrics={**arm.metrics, "exact": 0.25}) for arm in experiment.arms]
        changed: dict[str, Any] = {"arms": tuple(later), "decision": "keep", "report": folder / "gone.html"}
        sink.publish(replace(experiment, **changed, looked_at_s=experiment.looked_at_s + 60))
        sink.publish(an_experiment("op-2", report=None))
        assert sink.flush(120.0), sink.status()
        seen = place.look()
        assert seen.keys() == {(op, arm) for op in ("op-1", "op-2") for arm in ("stable", "candidate")}
        assert seen["op-1", "candidate"].metrics["exact"] == 0.25 and "keep" in seen["op-1", "candidate"].words
        assert seen["op-1", "candidate"].run_id == ids["op-1", "candidate"]
        status = sink.status()
        assert (status.published, status.pending, status.given_up, status.last_error) == (3, 0, 0, None)
        assert recorder.rows("SELECT count(*) FROM outbox WHERE json_exists(body, '$.traces')") == [(0,)], "texts went"
    finally:
        sink.close(30.0)
    sink.close()


def _check_runs(seen: Mapping[tuple[str, str], SeenRun]) -> None:
    assert seen.keys() == {("op-1", "stable"), ("op-1", "candidate")}
    stable, candidate = seen["op-1", "stable"], seen["op-1", "candidate"]
    assert candidate.name == "candidate (v2)" and {"ship", "v2"} <= candidate.words
    assert stable.metrics.keys() == candidate.metrics.keys() >= {"exact", "latency_s/mean", "requests", "cost___"}
    assert stable.metrics["exact"] == 0.58 and candidate.metrics["exact"] == 0.91
    assert math.isnan(stable.metrics["cost___"]) and candidate.metrics["cost___"] == 3.5, "a gap is no zero"
    assert stable.params.keys() == candidate.params.keys()
    assert str(candidate.params["engine.max_model_len"]) == "256"
    assert stable.curves.keys() == candidate.curves.keys()
    window = [(step, round(value, 2)) for step, value in candidate.curves["window/exact"]]
    assert window == [(0, 0.91), (1, 0.92), (2, 0.93), (3, 0.94), (4, 0.95)]
    look = [(step, round(value, 2)) for step, value in candidate.curves["look/exact/difference"]]
    assert look == [(1, 0.3), (2, 0.31), (3, 0.32)]
    assert stable.curves["look/exact/difference"] == [(1, 0.0), (2, 0.0), (3, 0.0)]
    for run in seen.values():
        assert {"index.html", "forest.png"} <= run.files
        assert run.dataset == "sums" and run.requests == 2


def _check_links(links: TrackingLinks | None, ids: Mapping[tuple[str, str], str]) -> None:
    assert links is not None
    assert {("op-1", arm): run_id for arm, run_id in links.runs.items()} == ids
    assert TrackingLinks.of(links.to_dict()) == links
