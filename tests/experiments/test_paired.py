"""Paired comparisons on scripted instances whose quality is known by construction, with a real store."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from abswitch import ModelSwitchingConfig, SwitchingEngine
from abswitch.domain import Placement
from abswitch.errors import InvalidInput, OperationFinished, SwitchRefused
from abswitch.experiments import Poisson, RequestBudget, paired_from_shadow, paired_plan, run_paired
from abswitch.experiments.report import write_report
from abswitch.experiments.timing import switch_timing
from abswitch.serving.scripted import ScriptedBackend
from abswitch.stats import Mean, Metric, Paired, Quantile, Rate, Ratio
from abswitch.stats.selection import Segments, Where
from tests.experiments.scripted import engine_for, problems

ACCURACY = {"v1": 0.58, "better": 0.91, "regressed": 0.3}
METRICS: tuple[Metric, ...] = (
    Rate("exact_match", margin=0.05),
    Mean("latency_s", role="guardrail", margin=1.0),
    Ratio("output_tokens", "latency_s", role="secondary"),
)
ROWS = "SELECT * FROM requests WHERE operation_id = ? ORDER BY admitted_mono_s"


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SwitchingEngine]:
    async with engine_for(ACCURACY, store=tmp_path / "s.duckdb") as made:
        await made.deploy("v1")
        yield made


@pytest.mark.parametrize(
    ("candidate", "decision", "rule"),
    [("better", "ship", "primary-better"), ("regressed", "keep", "primary-worse")],
)
async def test_the_verdict_is_right(engine: SwitchingEngine, candidate: str, decision: str, rule: str) -> None:
    result = await run_paired(engine, candidate, problems(200), metrics=METRICS, evaluation="fixed")
    assert (result.verdict.decision, result.verdict.rule) == (decision, rule)
    assert (result.requests.sent, result.requests.answered, result.requests.lost) == (400, 400, 0)
    assert result.plan.design == "paired"
    methods = {name: found.method for name, found in result.verdict.comparisons.items()}
    assert methods["exact_match"].startswith("McNemar")
    assert methods["latency_s"] == "paired t"
    assert result.verdict.comparisons["exact_match"].baseline.n == 200
    assert engine.registry.active_version() == "v1", "traffic stays until somebody moves it"


async def test_a_paired_metric_takes_the_test_that_its_values_ask_for(engine: SwitchingEngine) -> None:
    metrics = [Paired("exact_match"), Paired("latency_s", role="secondary")]
    result = await run_paired(engine, "better", problems(100), metrics=metrics, evaluation="fixed")
    methods = [found.method for found in result.verdict.comparisons.values()]
    assert methods[0].startswith("McNemar")
    assert methods[1] == "paired t"
    assert result.verdict.decision == "ship"


async def test_conditions_choose_among_the_pairs(engine: SwitchingEngine) -> None:
    longer = Rate("exact_match", where=(Where.of({"column": "prompt_tokens", "above": 1e6}),))
    result = await run_paired(engine, "better", problems(50), metrics=[longer])
    assert result.verdict.rule == "metric-missing"


async def test_what_never_differs_is_equivalent(engine: SwitchingEngine) -> None:
    result = await run_paired(engine, "better", problems(150), metrics=[Rate("truncated", margin=0.05)])
    assert result.verdict.decision == "equivalent"
    assert result.verdict.comparisons["truncated"].p_value == 1.0


async def test_the_plan_comes_before_the_first_request_and_the_verdict_is_kept(engine: SwitchingEngine) -> None:
    result = await run_paired(engine, "better", problems(50), metrics=METRICS, evaluation="fixed")
    plan = engine.query("SELECT digest, at_s FROM plans WHERE operation_id = ?", [result.operation_id]).iloc[0]
    first = engine.query("SELECT min(admitted_at_s) AS s FROM requests WHERE operation_id = ?", [result.operation_id])
    assert plan["digest"] == result.verdict.plan_digest
    assert plan["at_s"] <= first["s"][0]
    kept = engine.query("SELECT decision, rule FROM verdicts WHERE operation_id = ?", [result.operation_id])
    assert kept.to_dict("records") == [{"decision": str(result.verdict.decision), "rule": result.verdict.rule}]


async def test_each_prompt_meets_both_and_a_coin_says_who_is_first(engine: SwitchingEngine) -> None:
    results = [await run_paired(engine, "better", problems(60), metrics=METRICS, experiment="coin") for _ in range(2)]
    firsts = []
    for result in results:
        rows = engine.query(ROWS, [result.operation_id])
        assert set(rows.groupby("pair_id").size()) == {2}
        assert set(rows.groupby("pair_id")["arm"].nunique()) == {2}
        assert list(rows["assigned_version"]) == list(rows["served_version"])
        begun = rows.drop_duplicates("pair_id").set_index("unit_id")["arm"].sort_index()
        firsts.append(begun.to_dict())
    assert firsts[0] == firsts[1], "the same experiment has the same order"
    share = sum(arm == "candidate" for arm in firsts[0].values()) / 60
    assert 0.25 < share < 0.75


async def test_one_slot_answers_everything_one_version_after_the_other(tmp_path: Path) -> None:
    async with engine_for(
        ACCURACY, store=tmp_path / "s.duckdb", config=ModelSwitchingConfig(max_cached_models=1)
    ) as engine:
        await engine.deploy("v1")
        result = await run_paired(engine, "better", problems(100), metrics=METRICS)
        assert result.verdict.decision == "ship"
        rows = engine.query(ROWS, [result.operation_id])
        assert (rows["arm"] != rows["arm"].shift()).sum() == 2, "two stretches, one for each"
        assert engine.registry.active_version() == "v1"


async def test_two_that_do_not_fit_are_not_forced_together() -> None:
    backend = ScriptedBackend(configure=lambda instance: setattr(instance, "memory_bytes", 600 << 20))
    config = ModelSwitchingConfig(cache_memory_limit_gb=1.0)
    async with SwitchingEngine(config, store=":memory:", backends={"scripted": backend}) as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model({"model_id": "adder", "model": "x", "backend": "scripted"}, version)
        await engine.deploy("v1")
        ask = functools.partial(run_paired, engine, "v2", ["a", "b", "c"], metrics=[Mean("latency_s")])
        with pytest.raises(SwitchRefused, match="does not fit"):
            await ask(together=True)
        result = await ask()
        assert result.requests.answered == 6
        assert engine.registry.active_version() == "v1"


async def test_promoting_moves_all_traffic_and_is_timed(engine: SwitchingEngine) -> None:
    result = await run_paired(engine, "better", problems(60), metrics=METRICS)
    status = await result.promote()
    assert (status.finished, status.promoted, status.phase) == (True, True, "succeeded")
    assert engine.registry.active_version() == "better"
    assert result.handle.moved_by is not None
    await engine.generate("1+1=")
    assert switch_timing(engine, result.handle.moved_by).first_token_s is not None
    with pytest.raises(OperationFinished):
        await result.keep()


async def test_keeping_leaves_everything_as_it_is(engine: SwitchingEngine) -> None:
    result = await run_paired(engine, "regressed", problems(60), metrics=METRICS)
    before = len(engine.switcher.operations)
    status = await result.keep()
    assert (status.finished, status.promoted) == (True, False)
    assert len(engine.switcher.operations) == before
    assert result.handle.moved_by is None


async def test_users_with_several_prompts_count_once(engine: SwitchingEngine) -> None:
    questions = [{"prompt": p, "reference": a, "unit_id": f"user-{i % 40}"} for i, (p, a) in enumerate(problems(160))]
    result = await run_paired(engine, "better", questions, metrics=METRICS, evaluation="fixed")
    found = result.verdict.comparisons["exact_match"]
    assert (found.method, found.baseline.n) == ("paired t", 40)
    assert result.plan.planned_n == 80
    assert result.verdict.decision == "ship"


async def test_what_was_answered_is_not_asked_again(engine: SwitchingEngine) -> None:
    ask = functools.partial(
        run_paired, engine, "better", problems(80), metrics=METRICS, evaluation="fixed", resume=True
    )
    with pytest.raises(ExceptionGroup):
        await ask(on_progress=_stop_after(60))
    await engine.scored()
    before = engine.query("SELECT count(*) AS n FROM requests WHERE operation_id LIKE 'paired-%'")["n"][0]
    assert 0 < before < 160
    result = await ask()
    rows = engine.query(ROWS, [result.operation_id])
    assert (rows["error_type"].isna()).sum() == 160
    assert rows.loc[rows["error_type"].isna(), "request_id"].str.replace(r"~\d+$", "", regex=True).is_unique
    assert result.verdict.decision == "ship"
    assert result.evidence.baseline.assigned == 80
    with pytest.raises(InvalidInput, match="the plan it began with"):
        await ask(alpha=0.01)


class _Stop(Exception):
    """Ends a run from within."""


def _stop_after(done: int) -> Any:
    def told(progress: Any) -> None:
        if progress.phase == "asking" and progress.done == done:
            raise _Stop

    return told


async def test_a_budget_that_ends_early_plans_for_fewer(engine: SwitchingEngine) -> None:
    result = await run_paired(engine, "better", problems(100), metrics=METRICS, budget=RequestBudget(requests=61))
    assert (result.requests.sent, result.plan.planned_n) == (60, 60)
    few = RequestBudget(tokens=50)
    late = await run_paired(engine, "better", problems(100), metrics=METRICS, evaluation="fixed", budget=few)
    assert late.verdict.rule == "not-yet"


async def test_a_candidate_that_fails_on_hard_prompts_does_not_look_good(engine: SwitchingEngine) -> None:
    long = [("9" * 5000 + "+1=", "0") for _ in range(40)]  # does not fit into any context here
    result = await run_paired(engine, "better", [*problems(60), *long], metrics=METRICS)
    assert result.requests.failed in (0, 80)
    assert result.evidence.baseline.assigned == result.evidence.candidate.assigned == 100


async def test_the_report_of_a_paired_run(engine: SwitchingEngine, tmp_path: Path) -> None:
    result = await run_paired(engine, "better", problems(80), metrics=METRICS)
    page = write_report(engine, result, tmp_path / "report")
    assert "SHIP better" in page.read_text(encoding="utf-8")


async def test_provenance_says_which_design_asked(engine: SwitchingEngine) -> None:
    result = await run_paired(engine, "better", problems(20), metrics=METRICS)
    why = engine.query("SELECT why FROM provenance WHERE operation_id = ?", [result.operation_id])["why"]
    assert set(why) == {
        f"the paired design of the experiment {result.operation_id} asked v1 as its baseline",
        f"the paired design of the experiment {result.operation_id} asked better as its candidate",
    }


# --- looks ------------------------------------------------------------------------------------------------------------

NEVER = (Rate("truncated"),)
"""Nothing to be found, and no margin to be within: no look decides."""
PACE = Poisson(rate_per_s=80.0)
"""Pairs begin slowly enough for looks to be taken in between."""


@pytest.mark.parametrize(
    ("candidate", "decision", "rule"),
    [("better", "ship", "primary-better"), ("regressed", "keep", "primary-worse")],
)
async def test_it_stops_as_soon_as_a_look_decides(
    engine: SwitchingEngine, candidate: str, decision: str, rule: str
) -> None:
    told: list[Any] = []
    result = await run_paired(
        engine, candidate, problems(600), metrics=METRICS, look_every=20, arrivals=PACE, on_progress=told.append
    )
    assert (result.verdict.decision, result.verdict.rule) == (decision, rule)
    assert (result.plan.evaluation, result.plan.look_every, result.plan.planned_n) == ("sequential", 20, 1200)
    assert result.requests.sent == result.requests.answered < 1000, "it stops"
    rows = engine.query(ROWS, [result.operation_id])
    assert set(rows.groupby("pair_id").size()) == {2}, "no pair is left half"
    assert "at all looks" in result.verdict.in_words()
    assert any(progress.verdicts for progress in told), "the live view sees it coming"


async def test_looks_are_kept_every_so_many_whole_pairs(engine: SwitchingEngine, tmp_path: Path) -> None:
    result = await run_paired(engine, "better", problems(100), metrics=NEVER, look_every=25, arrivals=PACE)
    assert (result.verdict.decision, result.requests.answered) == ("inconclusive", 200)
    assert "pairs" in result.verdict.in_words() and "would have been found" in result.verdict.in_words()
    kept = engine.query("SELECT * FROM looks WHERE operation_id = ? AND metric = 'truncated'", [result.operation_id])
    pairs = kept.sort_values("look")["n_baseline"].tolist()
    assert pairs == sorted(pairs) and pairs[-1] == 100 and len(pairs) >= 2
    assert all(later - before >= 25 for before, later in zip([0, *pairs], pairs[:-1], strict=False))
    assert (kept["n_baseline"] == kept["n_candidate"]).all()
    verdicts = engine.query(
        "SELECT look, rule FROM verdicts WHERE operation_id = ? ORDER BY look", [result.operation_id]
    )
    assert set(verdicts["rule"][:-1]) == {"continue"} and verdicts["rule"].iloc[-1] == "interval-includes-zero"
    write_report(engine, result, tmp_path / "report")
    summary = json.loads((tmp_path / "report" / "summary.json").read_text("utf-8"))
    (curve,) = (curve for curve in summary["looks"] if curve["role"] == "primary")
    assert [point["n_candidate"] for point in curve["points"]] == pairs, "the report has the curve"


async def test_planned_looks_spend_their_error_rate(engine: SwitchingEngine) -> None:
    options: dict[str, Any] = {"evaluation": "group_sequential", "looks": 3, "spending": "pocock", "arrivals": PACE}
    result = await run_paired(engine, "better", problems(150), metrics=METRICS, **options)
    assert (result.verdict.decision, result.plan.look_count) == ("ship", 3)
    assert result.verdict.look < 3 and result.requests.sent < 300


async def test_a_watched_comparison_goes_on_after_a_stop_with_its_looks(engine: SwitchingEngine) -> None:
    ask = functools.partial(
        run_paired, engine, "better", problems(100), metrics=NEVER, look_every=20, resume=True, arrivals=PACE
    )

    def stop(progress: Any) -> None:
        if progress.phase == "asking" and progress.verdicts and progress.done < 150:
            raise _Stop

    with pytest.raises((_Stop, ExceptionGroup)):
        await ask(on_progress=stop)
    result = await ask()
    rows = engine.query(ROWS, [result.operation_id])
    assert (rows["error_type"].isna()).sum() == 200 and result.requests.lost == 0
    looks = engine.query("SELECT look FROM verdicts WHERE operation_id = ? ORDER BY look", [result.operation_id])[
        "look"
    ]
    assert looks.is_unique and looks.iloc[-1] == result.verdict.look >= 3
    again = await ask()
    assert (again.requests.sent, again.verdict.look) == (200, result.verdict.look), "what is over stays so"
    with pytest.raises(InvalidInput, match="the plan it began with"):
        await ask(evaluation="fixed", look_every=None)


async def test_one_after_the_other_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    one_slot = ModelSwitchingConfig(max_cached_models=1)
    async with engine_for(ACCURACY, store=tmp_path / "s.duckdb", config=one_slot) as engine:
        await engine.deploy("v1")
        for evaluation in ("sequential", "group_sequential"):
            with pytest.raises(InvalidInput, match="fixed, as one version answers everything"):
                await run_paired(engine, "better", problems(30), metrics=METRICS, evaluation=evaluation)
        assert not engine.store.rows("SELECT 1 FROM plans")
        result = await run_paired(engine, "better", problems(60), metrics=METRICS)
        assert (result.plan.evaluation, result.requests.sent) == ("fixed", 120)


# --- shadows ----------------------------------------------------------------------------------------------------------


async def mirrored(engine: SwitchingEngine, **options: Any) -> str:
    handle = await engine.start_switch("better", "shadow", {"max_in_flight": 1000}, **options)
    await handle.serving()
    for prompt, answer in problems(120):
        await engine.generate(prompt, reference=answer)
    await handle.keep()
    await engine.scored()
    return handle.operation_id


async def test_a_shadows_pairs_are_compared_by_the_plan_it_began_with(engine: SwitchingEngine, tmp_path: Path) -> None:
    plan = paired_plan("v1", "better", METRICS, units=100)
    operation_id = await mirrored(engine, plan=plan)
    result = await paired_from_shadow(engine, operation_id)
    page = write_report(engine, result, tmp_path / "report").read_text("utf-8")
    assert "half of them within" in page and "requests, none failed" in page, "its traffic is told, too"
    assert result.plan == plan
    assert result.verdict.decision == "ship"
    assert result.evidence.baseline.assigned == result.evidence.candidate.assigned == 120
    assert result.verdict.comparisons["exact_match"].method.startswith("McNemar")


async def test_a_shadow_without_a_plan_has_estimates_and_no_verdict(engine: SwitchingEngine) -> None:
    operation_id = await mirrored(engine)
    result = await paired_from_shadow(engine, operation_id, METRICS)
    assert (result.verdict.decision, result.verdict.rule) == ("invalid", "plan-missing")
    assert result.verdict.comparisons["exact_match"].low > 0
    with pytest.raises(InvalidInput, match="without a plan"):
        await paired_from_shadow(engine, operation_id)
    first = next(iter(engine.switcher.operations))
    with pytest.raises(InvalidInput, match="a shadow"):
        await paired_from_shadow(engine, first, METRICS)


async def test_a_shadows_pairs_may_be_compared_at_any_time(engine: SwitchingEngine) -> None:
    plan = paired_plan("v1", "better", METRICS, units=1000, evaluation="sequential")
    result = await paired_from_shadow(engine, await mirrored(engine, plan=plan))
    assert (result.verdict.decision, result.plan.evaluation) == ("ship", "sequential"), "long before its budget"


async def test_a_shadow_has_no_planned_looks(engine: SwitchingEngine) -> None:
    plan = paired_plan("v1", "better", METRICS, units=100, evaluation="group_sequential")
    with pytest.raises(InvalidInput, match="nobody takes a shadow's looks"):
        await paired_from_shadow(engine, await mirrored(engine, plan=plan))


# --- what is refused --------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"metrics": [Quantile("latency_s", 0.95)]}, "metrics"),
    ({"metrics": [Mean("latency_s", covariate="prompt_tokens")]}, "metric.covariate"),
    ({"metrics": [Mean("latency_s", segments=Segments(column="step"))]}, "metric.segments"),
    ({"prompts": []}, "prompts"),
    ({"metrics": []}, "metrics"),
    ({"concurrency": 0}, "concurrency"),
    ({"alpha": 1.5}, "plan.alpha"),
    ({"candidate": "nobody"}, "version"),
    ({"metrics": [Rate("exact_mach")]}, "metric.column"),
    ({"temperature": -1}, "sampling.temperature"),
    ({"evaluation": "often"}, "plan.evaluation"),
    ({"evaluation": "fixed", "look_every": 5}, "plan.look_every"),
    ({"looks": 3}, "plan.look_count"),
    ({"evaluation": "group_sequential", "looks": 1}, "plan.look_count"),
    ({"evaluation": "fixed", "together": True, "spending": "pocock"}, "plan.spending"),
]


@pytest.mark.parametrize(("change", "field"), BAD)
async def test_bad_arguments_start_nothing(engine: SwitchingEngine, change: dict[str, Any], field: str) -> None:
    call: dict[str, Any] = {"candidate": "better", "prompts": problems(30), "metrics": METRICS} | change
    with pytest.raises(InvalidInput) as caught:
        await run_paired(engine, **call)
    assert caught.value.field == field
    assert not engine.store.rows("SELECT 1 FROM plans")


async def test_there_must_be_another_active_version() -> None:
    async with engine_for(ACCURACY) as engine:
        with pytest.raises(SwitchRefused, match="no active version"):
            await run_paired(engine, "better", problems(30), metrics=METRICS)
        await engine.deploy("better")
        with pytest.raises(SwitchRefused, match="already the active"):
            await run_paired(engine, "better", problems(30), metrics=METRICS)


async def test_a_placement_needs_a_version(engine: SwitchingEngine) -> None:
    with pytest.raises(InvalidInput, match="placement"):
        await engine.generate("1+1=", placement=Placement(operation_id="x", arm="stable"))
