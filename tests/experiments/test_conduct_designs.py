"""A spec of each design, from its file's values to its exit status, on scripted versions; and again after a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from abswitch.errors import InvalidInput
from abswitch.experiments import Experiment, Progress, open_run
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.runs import RunFolder
from abswitch.experiments.spec import spec_of

PROJECT = Path(__file__).parents[2]


def plain(design: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A spec on scripted versions that add right as often as their names say."""
    version = {"backend": "scripted", "model": "script"}
    return {
        "name": "known",
        "model_id": "adder",
        "versions": {"v58": version, "v95": version, "v20": version},
        "baseline": "v58",
        "candidate": "v95",
        "prompts": {"kind": "generator", "function": "tests.experiments.scripted:problems", "arguments": {"n": 320}},
        "design": design,
        "scorers": [{"kind": "exact_match"}],
        "metrics": [{"kind": "rate", "column": "exact_match", "margin": 0.05}],
        "engine": {"backends": {"scripted": {"function": "tests.experiments.scripted:adders"}}},
        "accelerators": [],
        **more,
    }


def run_of(tmp_path: Path, given: dict[str, Any]) -> RunFolder:
    return open_run(spec_of(given), reports=tmp_path / "reports", project=PROJECT)


async def carried_out(run: RunFolder, on_progress: Any = lambda _: None) -> tuple[Experiment, Any, Any]:
    experiment = Experiment(run)
    engine = await experiment.start()
    try:
        result = await experiment.conduct(engine, on_progress)
        await experiment.apply(result)
        page = await experiment.report(engine, result)
        told = await experiment.finish(engine, result, report=page)
        active = engine.registry.active_version("adder")
    finally:
        await experiment.close(engine)
    return experiment, told, active


DESIGNS: list[dict[str, Any]] = [
    {"kind": "randomised"},
    {"kind": "paired"},
    {"kind": "paired", "together": False},
    {"kind": "switchback", "blocks": 8, "warmup_requests": 4},
]


EVALUATIONS: list[dict[str, Any]] = [
    {"kind": "randomised", "evaluation": "group_sequential", "looks": 3, "spending": "pocock"},
    {"kind": "randomised", "evaluation": "fixed"},
    {"kind": "paired", "evaluation": "fixed"},
]


@pytest.mark.parametrize("design", [*DESIGNS, *EVALUATIONS], ids=str)
async def test_a_better_candidate_is_shipped_and_serves(tmp_path: Path, design: dict[str, Any]) -> None:
    run = run_of(tmp_path, plain(design))
    _, told, active = await carried_out(run)
    assert (told.decision, told.exit_status, active) == ("ship", ExitStatus.SUCCESS, "v95")
    assert told.requests["lost"] == 0
    assert (run.path / "index.html").is_file()
    assert (run.path / "summary.json").is_file()
    with duckdb.connect(str(run.path / "evidence.duckdb"), read_only=True) as store:
        kept = store.execute("SELECT name, kind, size_bytes, operation_id FROM artifacts ORDER BY name").fetchall()
    assert ("index.html", "report") in [row[:2] for row in kept]
    assert all((run.path / name).stat().st_size == size for name, _, size, _ in kept)
    assert {row[3] for row in kept} == {run.state.operation_id}
    assert f'href="known/{run.path.name}/index.html"' in (tmp_path / "reports" / "index.html").read_text("utf-8")


@pytest.mark.parametrize("design", DESIGNS[1:], ids=str)
async def test_a_worse_candidate_is_not(tmp_path: Path, design: dict[str, Any]) -> None:
    _, told, active = await carried_out(run_of(tmp_path, plain(design, candidate="v20")))
    assert (told.decision, told.exit_status, active) == ("keep", ExitStatus.KEEP, "v58")


async def test_a_gate_is_content_with_no_difference(tmp_path: Path) -> None:
    metrics = [{"kind": "rate", "column": "truncated", "margin": 0.05}]
    _, told, active = await carried_out(run_of(tmp_path, plain({"kind": "paired"}, metrics=metrics)))
    assert (told.decision, told.exit_status, active) == ("equivalent", ExitStatus.SUCCESS, "v58")


@pytest.mark.parametrize("design", DESIGNS[1:], ids=str)
async def test_the_same_command_goes_on_after_a_crash(tmp_path: Path, design: dict[str, Any]) -> None:
    given = plain(design)

    def stop(progress: Progress) -> None:
        if progress.phase == "asking" and progress.done == 150:
            raise RuntimeError("the power went")

    with pytest.raises(ExceptionGroup):
        await carried_out(run_of(tmp_path, given), stop)
    run = run_of(tmp_path, given)
    assert run.state.attempts == 1, "the same run"
    experiment, told, active = await carried_out(run)
    assert (told.decision, active) == ("ship", "v95")
    assert experiment.run.state.attempts == 2
    if design == {"kind": "paired"}:
        assert 150 <= told.requests["answered"] <= 640, "a look may end it"
    elif design["kind"] == "paired":
        assert told.requests["answered"] == 640
    else:
        assert 0 <= told.requests["answered"] - (320 - 8 * 4) < 40, "at most the interrupted block is asked again"
    assert told.requests["lost"] == 0


@pytest.mark.parametrize(
    ("design", "answered"),
    [({"kind": "randomised", "look_every": 40}, 320), ({"kind": "paired", "look_every": 40}, 640)],
    ids=["randomised", "paired"],
)
async def test_it_goes_on_after_a_crash_with_its_plan_and_its_looks(
    tmp_path: Path, design: dict[str, Any], answered: int
) -> None:
    """Nothing is ever truncated, so that no look decides before the end."""
    metrics = [{"kind": "rate", "column": "truncated"}]
    given = plain(design, metrics=metrics, load={"kind": "closed_loop", "concurrency": 1})

    def stop(progress: Progress) -> None:
        if progress.phase == "asking" and progress.verdicts:
            raise RuntimeError("the power went")

    with pytest.raises((RuntimeError, ExceptionGroup)):
        await carried_out(run_of(tmp_path, given), stop)
    run = run_of(tmp_path, given)
    _, told, active = await carried_out(run)
    assert (told.decision, active, told.requests["answered"], told.requests["lost"]) == (
        "inconclusive",
        "v58",
        answered,
        0,
    )
    summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    assert summary["plan"]["evaluation"] == "sequential" and summary["plan"]["look_every"] == 40
    points = next(curve for curve in summary["looks"] if curve["role"] == "primary")["points"]
    looks = [point["look"] for point in points]
    assert looks == sorted(looks) and len(set(looks)) >= 2, "those of the first attempt are still there"
    assert summary["verdict"]["look"] == looks[-1]


@pytest.mark.parametrize(
    ("design", "field"),
    [
        ({"kind": "randomised", "evaluation": "often"}, "design.evaluation"),
        ({"kind": "randomised", "looks": 5}, "design"),
        ({"kind": "randomised", "evaluation": "group_sequential", "looks": 1}, "design.looks"),
        ({"kind": "randomised", "evaluation": "group_sequential", "spending": "all"}, "design.spending"),
        ({"kind": "switchback", "blocks": 7}, "design.blocks"),
        ({"kind": "switchback", "blocks": 2}, "design.blocks"),
        ({"kind": "switchback", "windows": 8}, "design.windows"),
        ({"kind": "paired", "together": "maybe"}, "design.together"),
        ({"kind": "paired", "together": False, "evaluation": "sequential"}, "design"),
        ({"kind": "paired", "together": False, "look_every": 20}, "design"),
        ({"kind": "paired", "looks": 4}, "design"),
        ({"kind": "paired", "evaluation": "often"}, "design.evaluation"),
    ],
)
def test_a_design_that_makes_no_sense_is_named(design: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        spec_of(plain(design))


CANARY = {
    "kind": "canary",
    "initial_percentage": 50.0,
    "step_percentage": 50.0,
    "evaluation_period_minutes": 0.003,
    "min_requests": 40,
    "guardrails": [{"metric": "exact_match", "min_ratio": 0.85}],
}


@pytest.mark.parametrize(
    ("candidate", "decision", "status", "active"),
    [("v95", "promote", ExitStatus.SUCCESS, "v95"), ("v20", "roll back", ExitStatus.KEEP, "v58")],
)
async def test_a_canary_has_a_report_like_any_other(
    tmp_path: Path, candidate: str, decision: str, status: ExitStatus, active: str
) -> None:
    load, budget = {"kind": "poisson", "rate_per_s": 500.0}, {"requests": 5000, "time_s": 60.0}
    run = run_of(tmp_path, plain(CANARY, candidate=candidate, load=load, budget=budget))
    _, told, serving = await carried_out(run)
    assert (told.decision, told.exit_status, serving) == (decision, status, active)
    assert told.report == str(run.path / "index.html")
    assert told.headline in (run.path / "index.html").read_text("utf-8")
    assert decision in (tmp_path / "reports" / "index.html").read_text("utf-8")
