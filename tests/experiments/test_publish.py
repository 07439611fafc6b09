"""What is handed to tracking sinks of every kind of experiment; the sinks themselves are tested in tests/store."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import abswitch
from abswitch import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments import RequestBudget, run_ab_test, run_canary, run_paired, run_switchback, write_report
from abswitch.experiments.publish import tracked_experiment
from abswitch.experiments.spec import spec_of
from abswitch.records import LookRecord
from abswitch.rollout.strategies import CanaryStrategy
from abswitch.store.tracking import TrackedExperiment
from tests.experiments.scripted import METRICS, engine_for, problems
from tests.experiments.test_conduct_designs import carried_out, plain, run_of
from tests.store.rows import a_request
from tests.store.wandb_files import runs_in


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SwitchingEngine]:
    async with engine_for({"v1": 0.58, "v2": 0.91, "v3": 0.2}, store=tmp_path / "s.duckdb") as made:
        await made.deploy("v1")
        yield made


def check_arms(tracked: TrackedExperiment, versions: dict[str, str]) -> dict[str, Any]:
    """Flat siblings with the same names everywhere; returns the plain form by arm."""
    assert {arm.arm: arm.version for arm in tracked.arms} == versions
    plain = {arm["arm"]: arm for arm in tracked.to_dict()["arms"]}
    for key in ("params", "metrics", "tags"):
        assert len({tuple(arm[key]) for arm in plain.values()}) == 1, key
    assert len({tuple(arm["windows"][0]) for arm in plain.values()}) == 1
    assert all(arm["metrics"]["requests"] > 0 and len(arm["windows"]) == 20 for arm in plain.values())
    assert {trace.arm for trace in tracked.traces} <= versions.keys()
    return plain


async def test_a_test_says_what_is_to_be_looked_at_first(engine: SwitchingEngine) -> None:
    result = await run_ab_test(engine, "v2", problems(200), metrics=METRICS, experiment="sums")
    tracked = tracked_experiment(engine, result, traces=3)
    plain = check_arms(tracked, {"baseline": "v1", "candidate": "v2"})
    assert tracked.first_metrics[:3] == ("exact_match", "latency_s", METRICS[2].name)
    assert set(tracked.first_metrics) <= plain["baseline"]["metrics"].keys()
    assert tracked.tags["abswitch.design"] == "randomised" and tracked.tags["abswitch.store"].endswith("s.duckdb")
    assert len(tracked.traces) == 6 and all(
        trace.prompt and trace.scores.keys() == {"exact_match"} for trace in tracked.traces
    )
    assert tracked_experiment(engine, result, traces=3).traces == tracked.traces, "the same ones every time"
    assert tracked_experiment(engine, result, traces=0).traces == ()
    with pytest.raises(InvalidInput, match="traces"):
        tracked_experiment(engine, result, traces=-1)


@pytest.mark.parametrize("design", [run_paired, run_switchback])
async def test_designs_that_move_no_traffic(engine: SwitchingEngine, design: Any) -> None:
    result = await design(engine, "v2", problems(160), metrics=METRICS, experiment="sums")
    tracked = tracked_experiment(engine, result)
    plain = check_arms(tracked, {"baseline": "v1", "candidate": "v2"})
    assert plain["candidate"]["metrics"]["exact_match"] > plain["baseline"]["metrics"]["exact_match"] + 0.1
    assert tracked.tags["abswitch.design"] == result.plan.design


async def test_a_canary_is_published_with_what_it_decided(engine: SwitchingEngine) -> None:
    strategy = CanaryStrategy(initial_percentage=50, step_percentage=50, evaluation_period_minutes=0.001)
    result = await run_canary(engine, "v2", problems(50), strategy=strategy, budget=RequestBudget(requests=600))
    tracked = tracked_experiment(engine, result)
    check_arms(tracked, {"baseline": "v1", "candidate": "v2"})
    assert (tracked.decision, tracked.rule, tracked.plan_digest) == (result.decision, None, None)
    assert result.headline in str(tracked.note) and tracked.tags["abswitch.design"] == "canary"


async def test_looks_and_further_candidates_become_curves_and_arms_of_their_own(engine: SwitchingEngine) -> None:
    """Rows as a test of two candidates that looks three times writes them."""
    result = await run_ab_test(engine, "v2", problems(200), metrics=METRICS, experiment="sums", evaluation="fixed")
    seen_s = result.started_at_s + result.elapsed_s - 1e-3
    row = {"operation_id": result.operation_id, "model_id": "adder", "arm": "candidate-2", "admitted_at_s": seen_s}
    for number in range(30):
        engine.store.request(a_request(f"more-{number}", **row, assigned_version="v3", served_version="v3"))
    for look in (2, 3, 4):  # the first is its own
        for arm, estimate in (("candidate", 0.3), ("candidate-2", -0.4)):
            engine.store.look(_look(result.operation_id, look, arm, estimate))
        engine.store.look(_look(result.operation_id, look, "candidate", 0.0, metric="split", role="validity"))
    engine.store.flush()
    tracked = tracked_experiment(engine, result)
    arms = check_arms(tracked, {"baseline": "v1", "candidate": "v2", "candidate-2": "v3"})
    curves = {arm: [look["exact_match/difference"] for look in plain["looks"]][-3:] for arm, plain in arms.items()}
    assert curves == {"baseline": [0.0] * 3, "candidate": [0.3] * 3, "candidate-2": [-0.4] * 3}
    assert {key for arm in arms.values() for look in arm["looks"] for key in look} >= {
        f"exact_match/{part}" for part in ("difference", "low", "high")
    }


def _look(operation_id: str, look: int, arm: str, estimate: float, **changes: Any) -> LookRecord:
    row = LookRecord(
        operation_id=operation_id,
        look=look,
        metric="exact_match",
        role="primary",
        method="a sequence",
        arm=arm,
        n_baseline=10 * look,
        n_candidate=10 * look,
        estimate=estimate,
        low=estimate - 1 / look,
        high=estimate + 1 / look,
        p_value=None,
        e_value=None,
        alpha_spent=None,
        decision="undecided",
        at_s=time.time(),
    )
    return row._replace(**changes)


async def test_what_lies_beside_a_page_goes_with_it_and_nothing_else(engine: SwitchingEngine, tmp_path: Path) -> None:
    result = await run_ab_test(engine, "v2", problems(100), metrics=METRICS, experiment="sums")
    folder = tmp_path / "report"
    page = await asyncio.to_thread(write_report, engine, result, folder)
    (folder / "figures").mkdir(exist_ok=True)
    for name in ("figures/forest.png", "run.ipynb", "pull_request.md", "evidence.duckdb", "state.json"):
        (folder / name).write_text("x")
    tracked = tracked_experiment(engine, result, report=page)
    beside = {str(Path(path).relative_to(folder)) for path in tracked.attachments}
    assert beside >= {"figures/forest.png", "run.ipynb", "pull_request.md", "summary.json"}
    assert not beside & {"evidence.duckdb", "state.json", "index.html"}
    assert tracked_experiment(engine, result, report=folder).attachments == ()


@pytest.mark.parametrize("kind", ["paired", "canary"])
async def test_a_spec_publishes_to_both_sinks_and_registers(kind: str, tmp_path: Path, fresh_database: Path) -> None:
    uri = f"sqlite:///{shutil.copy(fresh_database, tmp_path / 'mlflow.db')}"
    design: dict[str, Any] = {"kind": kind}
    if kind == "canary":
        design |= {"initial_percentage": 50, "step_percentage": 50, "evaluation_period_minutes": 0.001}
    given = plain(design, budget={"requests": 640}, **({"metrics": []} if kind == "canary" else {}))
    given["engine"] |= {"mlflow": uri, "wandb": str(tmp_path / "runs"), "register_in_mlflow": True}
    run = run_of(tmp_path, given)
    _, told, active = await carried_out(run)
    from mlflow import MlflowClient

    registered = MlflowClient(tracking_uri=uri, registry_uri=uri)
    champion = registered.get_model_version_by_alias("adder", "champion")
    assert champion.tags["abswitch.version"] == active
    assert champion.tags.get("abswitch.decision", "ship") == "ship"
    with abswitch.read(run.path / "evidence.duckdb") as reader:
        links = reader.rows("SELECT sink, arm, run_id FROM tracking_links ORDER BY ALL")
    assert [row[:2] for row in links] == [(s, arm) for s in ("mlflow", "wandb") for arm in ("baseline", "candidate")]
    there = registered.get_run(next(run_id for sink, arm, run_id in links if (sink, arm) == ("mlflow", "candidate")))
    assert there.data.tags["abswitch.decision"] == told.decision
    (made_from,) = there.inputs.dataset_inputs
    assert made_from.dataset.name == "known prompts"
    offline = {found.run_id: found for found in runs_in(tmp_path / "runs")}
    assert offline.keys() == {run_id for sink, _, run_id in links if sink == "wandb"}
    assert {found.config["abswitch.dataset"]["rows"] for found in offline.values()} == {320}


def test_registering_needs_somewhere_to_register() -> None:
    with pytest.raises(InvalidInput, match="register_in_mlflow"):
        spec_of(plain({"kind": "paired"}, engine={"register_in_mlflow": True}))
