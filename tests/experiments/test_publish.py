"""What is handed to tracking sinks of every kind of experiment; the sinks themselves are tested in tests/store."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import abswitch
from abswitch import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments import RequestBudget, run_ab_test, run_canary, run_paired, run_switchback, write_report
from abswitch.experiments.publishing import tracked_experiment
from abswitch.experiments.spec import spec_of
from abswitch.rollout.strategies import CanaryStrategy
from abswitch.store.tracking import TrackedExperiment
from tests.experiments.scripted import METRICS, engine_for, problems
from tests.experiments.test_conduct_designs import carried_out, plain, run_of
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
    for key in ("params", "metrics"):
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


async def test_of_several_scores_of_one_answer_the_latest_is_published(engine: SwitchingEngine) -> None:
    result = await run_ab_test(engine, "v2", problems(100), metrics=METRICS, experiment="sums")
    sql = "SELECT request_id FROM requests WHERE operation_id = ? AND arm = 'candidate' LIMIT 2"
    (one,), (other,) = engine.store.rows(sql, (result.operation_id,))
    for value in (*[1.0] * 50, 0.0):
        engine.record_score(one, "rating", value)
    engine.record_score(other, "rating", 1.0)
    candidate = next(arm for arm in tracked_experiment(engine, result).arms if arm.arm == "candidate")
    assert candidate.metrics["rating"] == 0.5


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


async def test_looks_become_curves_and_further_candidates_arms_of_their_own(engine: SwitchingEngine) -> None:
    result = await run_ab_test(engine, ["v2", "v3"], problems(600), metrics=METRICS, experiment="sums", look_every=60)
    tracked = tracked_experiment(engine, result)
    arms = check_arms(tracked, {"baseline": "v1", "candidate": "v2", "candidate-2": "v3"})
    looks = engine.store.rows(
        # The last one, where nothing new came since the one before, is that one again.
        "SELECT arm, list(estimate ORDER BY look) FROM (SELECT arm, look, arg_max(estimate, at_s) AS estimate "
        "FROM looks WHERE operation_id = ? AND metric = 'exact_match' GROUP BY ALL) GROUP BY arm ORDER BY arm",
        (result.operation_id,),
    )
    curves = {arm: [look["exact_match/difference"] for look in plain["looks"]] for arm, plain in arms.items()}
    assert dict(looks) == {arm: curve for arm, curve in curves.items() if arm != "baseline"}
    assert set(curves["baseline"]) == {0.0} and len(curves["baseline"]) == len(curves["candidate"]) > 1
    assert curves["candidate"][-1] > 0.1 > -0.1 > curves["candidate-2"][-1]
    assert not any(key.startswith("split/") for arm in arms.values() for look in arm["looks"] for key in look)
    own = {arm: plain["tags"].get("abswitch.decision") for arm, plain in arms.items()}
    assert own == {
        "baseline": None,
        "candidate": result.verdicts["v2"].decision.value,
        "candidate-2": result.verdicts["v3"].decision.value,
    }
    for role, version in (("candidate", "v2"), ("candidate-2", "v3")):
        estimate = result.verdicts[version].comparisons["exact_match"].candidate.value
        assert arms[role]["metrics"]["exact_match"] == pytest.approx(estimate)


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
