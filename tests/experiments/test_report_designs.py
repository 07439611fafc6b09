"""The report of every design: a sound page, a summary that its schema allows, and nothing that is passed over."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from abswitch import ModelSwitchingConfig
from abswitch.experiments import Poisson, RequestBudget, run_ab_test, run_bandit, run_canary, run_paired, run_switchback
from abswitch.experiments.report import write_report
from abswitch.experiments.stages import steps_of
from abswitch.records import AlertRecord, HealthSample
from abswitch.rollout.judging import Guardrail
from abswitch.rollout.strategies import BanditStrategy, CanaryStrategy
from abswitch.stats import Mean, Rate
from tests.experiments.pages import Page
from tests.experiments.scripted import METRICS, engine_for, problems
from tests.experiments.test_report import read

ACCURACIES = {"v1": 0.58, "v2": 0.95, "v3": 0.2, "v4": 0.6}
SECTIONS = ("findings", "looks", "traffic", "latency", "trust", "health", "examples", "settings", "check")
RAILS = (Guardrail("exact_match", min_ratio=0.85),)
Made = tuple[Page, dict[str, Any], str, Any]


def strategy(**more: Any) -> CanaryStrategy:
    return CanaryStrategy(
        initial_percentage=30.0,
        step_percentage=70.0,
        evaluation_period_minutes=0.003,
        min_requests=40,
        guardrails=RAILS,
        **more,
    )


async def made(folder: Path, run: Callable[..., Awaitable[Any]], **config: Any) -> Made:
    """A report of a run on a fresh engine: the page, the summary, the Markdown, and the result."""
    async with engine_for(ACCURACIES, config=ModelSwitchingConfig(**config)) as engine:
        await engine.deploy("v1")
        result = await run(engine)
        write_report(engine, result, folder)
        assert [page.get("id") for page in Page((folder / "index.html").read_text("utf-8")).all("section")] == [
            *SECTIONS
        ]
        return *read(folder), (folder / "pull_request.md").read_text("utf-8"), result


async def test_several_candidates(tmp_path: Path) -> None:
    async def run(engine: Any) -> Any:
        return await run_ab_test(engine, ["v4", "v2", "v3"], problems(500), metrics=METRICS, experiment="sums")

    page, summary, markdown, result = await made(tmp_path, run)
    assert summary["winner"] == result.winner == "v2"
    assert [*summary["versions"]] == [*summary["arms"]] == ["baseline", "candidate", "candidate-2", "candidate-3"]
    assert "SHIP v2" in page.text.split("Why", maxsplit=1)[0]
    assert [heading.text for heading in page.all("h3")][:3] == [v.headline for v in result.verdicts.values()]
    assert "KEEP v1: v3 is worse." in page.section("findings")
    assert markdown.startswith("### SHIP v2")
    assert markdown.count("| exact_match, primary |") == 3
    for version in ACCURACIES:
        assert f"{version}" in page.section("examples")


async def test_nobody_wins_among_several(tmp_path: Path) -> None:
    async def run(engine: Any) -> Any:
        return await run_ab_test(engine, ["v3", "v4"], problems(200), metrics=METRICS, experiment="sums")

    page, summary, markdown, _ = await made(tmp_path, run)
    assert summary["winner"] is None
    assert page.all("h1")[0].text == "NO WINNER among 2 candidates (v3: keep, v4: inconclusive)."
    assert "NO WINNER" in markdown


async def test_pairs_are_shown_side_by_side(tmp_path: Path) -> None:
    async def run(engine: Any) -> Any:
        return await run_paired(engine, "v3", problems(120), metrics=METRICS[:2], experiment="sums")

    page, summary, _, _ = await made(tmp_path, run)
    assert summary["design"] == "paired"
    assert "Every prompt went to both versions" in page.section("traffic")
    pairs = [one for one in page.all("article") if one.get("class") == "same"]
    assert len(pairs) == 5
    for pair in pairs:
        notes = re.findall(r"exact_match ([01])", "".join(pair.itertext()))
        assert notes == ["1", "0"], "where the candidate lost most against the baseline"
    assert not (tmp_path / "shares.png").exists()


async def test_blocks(tmp_path: Path) -> None:
    async def run(engine: Any) -> Any:
        return await run_switchback(engine, "v2", problems(320), metrics=METRICS, experiment="known")

    page, summary, _, _ = await made(tmp_path, run, max_cached_models=1)
    assert summary["n"] == {"baseline": 4, "candidate": 4}
    assert summary["strategy"] is None, "each block is a switch of its own"
    alt = next(image.get("alt") or "" for image in page.all("img") if "of the traffic" in (image.get("alt") or ""))
    assert alt.count("→") >= 6
    assert "one look at the data" in page.section("looks")


async def test_a_bandit(tmp_path: Path) -> None:
    bandit = BanditStrategy(reward="exact_match", batch_minutes=0.004, floor_percentage=10.0)
    metrics = (Rate("exact_match", margin=0.05), Mean("latency_s", role="secondary"))

    async def run(engine: Any) -> Any:
        arrivals = Poisson(rate_per_s=400.0)
        return await run_bandit(engine, "v2", problems(500), metrics=metrics, strategy=bandit, arrivals=arrivals)

    page, summary, _, _ = await made(tmp_path, run)
    assert summary["strategy"]["type"] == "bandit"
    assert "as planned" in page.section("trust")


@pytest.mark.parametrize(("candidate", "decision"), [("v2", "promote"), ("v3", "roll back")])
async def test_a_canary(tmp_path: Path, candidate: str, decision: str) -> None:
    async def run(engine: Any) -> Any:
        budget = RequestBudget(requests=4000, time_s=30.0)
        arrivals = Poisson(rate_per_s=500.0)
        return await run_canary(
            engine, candidate, problems(300), strategy=strategy(), budget=budget, arrivals=arrivals, experiment="c"
        )

    page, summary, markdown, result = await made(tmp_path, run)
    assert (summary["design"], summary["verdict"]["decision"]) == ("canary", decision)
    assert page.all("h1")[0].text == result.headline
    assert "exact_match" in page.section("findings")
    assert "as the steps planned" in page.section("trust")
    assert "guardrail: exact_match" in page.section("settings")
    steps = summary["steps"]
    assert steps[0]["share"] == pytest.approx(0.3)
    assert steps[-1]["outcome"] == {"promote": "promoted", "roll back": "sent back"}[decision]
    assert sum(step[side]["requests"] for step in steps for side in ("baseline", "candidate")) > 80
    assert steps[0]["candidate"]["scores"]["exact_match"] == pytest.approx(ACCURACIES[candidate], abs=0.2)
    assert f"| {len(steps)} |" in markdown
    worst = page.section("examples")
    assert "exact_match 0," in worst
    assert summary["winner"] == (candidate if decision == "promote" else None)


async def test_of_several_scores_of_one_answer_the_latest_counts_in_a_canarys_steps() -> None:
    async with engine_for(ACCURACIES) as engine:
        await engine.deploy("v1")
        rails = (Guardrail("rating", min=0.5),)
        config = CanaryStrategy(initial_percentage=50.0, evaluation_period_minutes=60.0, guardrails=rails)
        budget = RequestBudget(requests=30)
        result = await run_canary(engine, "v2", problems(30), strategy=config, budget=budget, experiment="c")
        sql = "SELECT request_id FROM requests WHERE operation_id = ? AND arm = 'candidate' LIMIT 2"
        (one,), (other,) = engine.store.rows(sql, (result.operation_id,))
        for value in (*[1.0] * 50, 0.0):
            engine.record_score(one, "rating", value)
        engine.record_score(other, "rating", 1.0)
        engine.store.flush()
        (step,) = steps_of(engine, result)
        assert step.candidate.scores["rating"] == 0.5


async def test_a_canary_that_ran_out_of_budget(tmp_path: Path) -> None:
    async def run(engine: Any) -> Any:
        return await run_canary(engine, "v2", problems(30), strategy=strategy(), budget=RequestBudget(requests=20))

    page, summary, _, result = await made(tmp_path, run)
    assert summary["verdict"]["decision"] == "hold"
    assert summary["steps"][-1]["outcome"] == "under way"
    assert f"step 1 of {result.handle.status.stages}" in page.text


async def test_health_and_alerts_are_told(tmp_path: Path) -> None:
    async with engine_for(ACCURACIES, config=ModelSwitchingConfig(enable_health_checks=False)) as engine:
        await engine.deploy("v1")
        began_s = time.time()
        for alive, p95, error in ((True, 0.02, None), (False, None, "no <answer>"), (True, 0.35, None)):
            engine.store.health_sample(
                HealthSample(
                    time.time(), "adder", "v2", alive, "resident", 3, 7, 1.5, 512_000_000, 30.0, 100, 25, 3.3, 20.0,
                    0.01, p95, 0.4, 0.01, 0.02, error,
                )
            )  # fmt: skip
        result = await run_ab_test(engine, "v2", problems(60), metrics=METRICS, experiment="sums")
        for state, at_s, message in (
            ("firing", began_s + 0.1, "25 % of <requests> fail"),
            ("resolved", began_s + 9, ""),
        ):
            engine.store.alert(
                AlertRecord(
                    "a1", state, "critical", "error_rate", "adder", "v2", result.operation_id, 0.25, 0.1, message, at_s
                )
            )
        early = AlertRecord("a0", "firing", "warning", "hung", "adder", "v1", None, None, None, "before", began_s - 60)
        engine.store.alert(early)
        object.__setattr__(result, "started_at_s", began_s)
        write_report(engine, result, tmp_path)
    page, summary = read(tmp_path)
    (health,) = summary["health"]
    assert (health["samples"], health["alive"], health["error"]) == (3, 2, "no <answer>")
    assert (health["latency_p95_s"], health["error_rate"], health["waiting"]) == (0.35, 0.25, 7)
    (alert,) = summary["alerts"]
    assert (alert["state"], alert["message"]) == ("resolved", "25 % of <requests> fail")
    assert alert["resolved_at_s"] == pytest.approx(began_s + 9)
    told = page.section("health")
    for words in (
        "2 of 3",
        "no <answer>",
        "350 ms",
        "25.0%",
        "512 MB",
        "25 % of <requests> fail",
        "resolved after 8.9 s",
    ):
        assert words in told
    assert "before" not in told
