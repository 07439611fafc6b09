"""`Experiment`: what a spec says is what happens: judge, scorers, budgets, loads, seeds; on scripted versions."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments import Experiment, Progress, open_run
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.runs import RunFolder, RunResult
from abswitch.experiments.spec import spec_of
from tests.experiments.test_conduct_designs import PROJECT, carried_out, plain, run_of
from tests.serving.test_openai import USAGE, events, piece, send, server

JUDGED: dict[str, Any] = {
    "engine": {"backends": {"scripted": {"function": "tests.experiments.scripted:judged_adders"}}}
}
JUDGE: dict[str, Any] = {"version": {"backend": "scripted", "model": "script"}}


def given(n: int = 120, **more: Any) -> dict[str, Any]:
    # Both versions answer without being cut short: nothing to be found, so that a test goes on to its end.
    more = {"metrics": [{"kind": "rate", "column": "truncated"}], **more}
    spec = plain(more.pop("design", {"kind": "randomised"}), **more)
    return spec if "prompts" in more else spec | {"prompts": {**spec["prompts"], "arguments": {"n": n}}}


async def asked(run: RunFolder, sql: str, **options: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """Conduct the run; its result, and what the store says then."""
    experiment = Experiment(run)
    engine = await experiment.start()
    try:
        result = await experiment.conduct(engine, **options)
        return result, engine.store.rows(sql, ())
    finally:
        await experiment.close(engine)


# --- the judge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["randomised", "paired"])
async def test_a_judge_grades_every_answer_of_both_versions(tmp_path: Path, design: str) -> None:
    metrics = [{"kind": "mean", "column": "grade", "margin": 0.05}]
    spec = given(160, **JUDGED, judge=JUDGE | {"name": "grade"}, metrics=metrics, design={"kind": design})
    # Sums up to 150 alone: every one of them can be graded.
    spec["prompts"] = {
        "kind": "inline",
        "items": [[f"{10 + i % 60}+{10 + i}=", str(20 + i % 60 + i)] for i in range(80)],
    }
    sql = """SELECT r.served_version, count(*), count(g.value), sum((g.value <> e.value)::INT)
        FROM requests r LEFT JOIN scores g ON g.request_id = r.request_id AND g.scorer = 'grade'
        LEFT JOIN scores e ON e.request_id = r.request_id AND e.scorer = 'exact_match'
        WHERE r.operation_id IS NOT NULL AND r.model_id = 'adder' AND r.arm IN ('stable', 'candidate')
        GROUP BY r.served_version"""
    result, rows = await asked(run_of(tmp_path, spec), sql)
    assert {version for version, *_ in rows} == {"v58", "v95"}
    assert all(answers == graded and wrong == 0 for _, answers, graded, wrong in rows), "it agrees with exact_match"
    grades = result.verdict.comparisons["grade"]
    assert grades.candidate.value > grades.baseline.value


async def test_a_reply_that_is_no_grade_is_a_failed_score_and_the_judge_is_not_judged(tmp_path: Path) -> None:
    items = [["90+80=", "170"], ["10+20=", "30"]] * 3
    spec = given(**JUDGED, judge=JUDGE, prompts={"kind": "inline", "items": items})
    sql = "SELECT value IS NULL, error, count(*) FROM scores WHERE scorer = 'judge' GROUP BY ALL ORDER BY ALL"
    _, rows = await asked(run_of(tmp_path, spec), sql)
    assert [(failed, n) for failed, _, n in rows] == [(False, 3), (True, 3)]
    assert "expected a number from 0 to 1" in rows[1][1]


async def test_a_judge_may_be_a_served_model_elsewhere(tmp_path: Path) -> None:
    prompts: list[str] = []

    async def reply(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        prompts.append(str(body["prompt"]))
        await send(writer, "200 OK", events(piece("Grade: 3", "stop"), USAGE, "[DONE]"), "text/event-stream")

    async with server(reply) as address:
        version = {"backend": "openai", "model": "served", "engine_args": {"base_url": address}}
        judge = {"version": version, "template": "Rate from 1 to 5: {prompt} {output}", "low": 1.0, "high": 5.0}
        sql = "SELECT count(*), min(value), max(value) FROM scores WHERE scorer = 'judge'"
        _, rows = await asked(run_of(tmp_path, given(12, judge=judge)), sql)
    assert rows == [(12, 3.0, 3.0)]
    assert sum(prompt.startswith("Rate from 1 to 5: ") for prompt in prompts) == 12


async def test_a_judge_that_has_no_room_is_refused(tmp_path: Path) -> None:
    spec = given(**JUDGED, judge=JUDGE)
    spec["engine"] = {**spec["engine"], "max_cached_models": 1}
    with pytest.raises(InvalidInput, match=r"engine\.max_cached_models.*judge"):
        run_of(tmp_path, spec)


# --- scores that a crash left out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["randomised", "paired", "switchback"])
async def test_answers_without_their_scores_are_scored_by_the_next_attempt(tmp_path: Path, design: str) -> None:
    spec = given(160, **JUDGED, judge=JUDGE, design={"kind": design})
    run = run_of(tmp_path, spec)

    def stop(progress: Progress) -> None:
        if progress.phase == "asking" and progress.done == 70:
            raise RuntimeError("the power went")

    with pytest.raises(ExceptionGroup):
        await asked(run, "SELECT 1", on_progress=stop)
    await forget_scores(run)
    sql = """SELECT s.scorer, count(DISTINCT r.request_id), count(DISTINCT s.request_id)
        FROM requests r LEFT JOIN scores s USING (request_id)
        WHERE r.arm IN ('stable', 'candidate') AND r.model_id = 'adder' AND r.error_type IS NULL
            AND r.operation_id IS NOT NULL
        GROUP BY s.scorer ORDER BY s.scorer"""
    result, rows = await asked(run, sql)
    assert [scorer for scorer, *_ in rows] == ["exact_match", "judge"]
    assert all(answered == scored for _, answered, scored in rows)
    assert result.requests.lost == 0


async def forget_scores(run: RunFolder, n: int = 1000) -> None:
    """As if the process had been killed after its answers, and before their scores, were written."""
    import duckdb

    with duckdb.connect(run.path / "evidence.duckdb") as store:
        store.execute("DELETE FROM scores WHERE request_id IN (SELECT DISTINCT request_id FROM scores LIMIT ?)", [n])


async def test_without_text_they_stay_unscored_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = given()
    spec["engine"] = {**spec["engine"], "record_text": False}
    run = run_of(tmp_path, spec)
    await asked(run, "SELECT 1")
    await forget_scores(run, 20)
    _, rows = await asked(run, "SELECT count(*) FROM scores")
    assert rows == [(100,)]
    assert "20 answers" in caplog.text
    assert "text was not kept" in caplog.text


# --- arms -----------------------------------------------------------------------------------------------------------

ARMED: dict[str, Any] = {
    "engine": {"backends": {"scripted": {"function": "tests.experiments.scripted:armed_adders"}}},
    "arms": {"sampling.temperature": [0.0, 0.7]},
    "metrics": [{"kind": "rate", "column": "exact_match", "margin": 0.05}],
}
SPLIT = """SELECT served_version, count(*) FROM requests
    WHERE operation_id IS NOT NULL AND (arm = 'stable' OR starts_with(arm, 'candidate')) GROUP BY ALL ORDER BY ALL"""


async def test_settings_of_a_candidate_become_arms_of_one_run_and_the_best_serves(tmp_path: Path) -> None:
    run = run_of(tmp_path, plain({"kind": "randomised"}, **ARMED))
    experiment = Experiment(run)
    assert experiment.arm_names == {"stable": "v58", "candidate": "v95-1", "candidate-2": "v95-2"}
    _, told, active = await carried_out(run)
    assert (told.decision, told.exit_status, active) == ("ship", ExitStatus.SUCCESS, "v95-1")
    assert [reason.split(":")[0] for reason in told.reasons] == ["v95-1", "v95-2"]
    assert "v95-1" in told.headline
    import duckdb

    with duckdb.connect(run.path / "evidence.duckdb", read_only=True) as store:
        split = dict(store.execute(SPLIT).fetchall())
        configs = dict(
            store.execute("SELECT version, config->>'$.sampling.temperature' FROM model_versions").fetchall()
        )
    assert set(split) == {"v58", "v95-1", "v95-2"}
    assert (configs["v95-1"], configs["v95-2"]) == ("0.0", "0.7")


async def test_arms_go_on_after_a_crash_without_asking_anything_twice(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, plain({"kind": "randomised"}, **ARMED | {"metrics": [{"kind": "rate", "column": "truncated"}]})
    )

    def stop(progress: Progress) -> None:
        if progress.phase == "asking" and progress.done == 100:
            raise RuntimeError("the power went")

    with pytest.raises(ExceptionGroup):
        await asked(run, "SELECT 1", on_progress=stop)
    # Whoever was in flight when it crashed has a row without an answer, and is asked again.
    answered = "SELECT count(*) FROM requests WHERE operation_id IS NOT NULL AND arm <> 'pinned' AND error_type IS NULL"
    result, ((n,),) = await asked(run, answered)
    assert n == 320
    assert result.requests.sent == result.requests.answered == 320


# --- budgets and loads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "most"),
    [({"requests": 40}, 40), ({"requests": 1}, 1), ({"tokens": 100}, 100), ({"time_s": 1e-6}, 0)],
    ids=str,
)
async def test_asking_stops_at_the_budget(tmp_path: Path, budget: dict[str, Any], most: int) -> None:
    run = run_of(tmp_path, given(budget=budget, load={"concurrency": 1 if "tokens" in budget else 16}))
    sql = """SELECT count(*), coalesce(sum(output_tokens), 0) FROM requests
        WHERE operation_id IS NOT NULL AND arm IN ('stable', 'candidate')"""
    result, ((sent, tokens),) = await asked(run, sql)
    assert result.requests.sent == sent
    if "requests" in budget:
        assert sent == most
    elif "tokens" in budget:
        assert most <= tokens <= most + 4, "the answer under way still ends"
    else:
        assert sent == most


async def test_budgets_are_of_all_attempts_together(tmp_path: Path) -> None:
    run = run_of(tmp_path, given(budget={"requests": 60}))

    def stop(progress: Progress) -> None:
        if progress.phase == "asking" and progress.done == 30:
            raise RuntimeError("the power went")

    with pytest.raises(ExceptionGroup):
        await asked(run, "SELECT 1", on_progress=stop)
    result, _ = await asked(run, "SELECT 1")
    assert result.requests.sent == result.requests.answered == 60


@pytest.mark.parametrize(
    "load",
    [
        {"kind": "closed_loop", "concurrency": 4},
        {"kind": "poisson", "rate_per_s": 2000.0},
        {"kind": "trace", "at_s": [5.0, 5.001, 5.003]},
    ],
    ids=lambda load: load["kind"],
)
async def test_every_load_asks_every_prompt_once(tmp_path: Path, load: dict[str, Any]) -> None:
    sql = "SELECT count(*), count(DISTINCT unit_id) FROM requests WHERE arm IN ('stable', 'candidate')"
    result, rows = await asked(run_of(tmp_path, given(60, load=load)), sql)
    assert rows == [(60, 60)]
    assert result.requests.answered == 60


async def test_the_seed_splits_differently_and_the_same_seed_the_same(tmp_path: Path) -> None:
    sql = "SELECT unit_id FROM requests WHERE arm = 'candidate' AND operation_id IS NOT NULL ORDER BY unit_id"
    found = [(await asked(run_of(tmp_path / str(i), given(60, seed=seed)), sql))[1] for i, seed in enumerate((1, 1, 2))]
    assert found[0] == found[1] != found[2]


async def finished(run: RunFolder) -> RunResult:
    """Without a report, which takes seconds."""
    experiment = Experiment(run)
    engine = await experiment.start()
    try:
        return await experiment.finish(engine, await experiment.conduct(engine))
    finally:
        await experiment.close(engine)


@pytest.mark.parametrize("design", ["randomised", "paired", "switchback"])
async def test_a_run_that_is_worse_than_the_last_good_one_is_told_and_exits_so(tmp_path: Path, design: str) -> None:
    common: dict[str, Any] = {"baseline": "v20", "watch": {}}
    good = await finished(run_of(tmp_path, plain({"kind": design}, candidate="v95", **common)))
    told = await finished(run_of(tmp_path, plain({"kind": design}, candidate="v58", **common)))
    assert (good.exit_status, good.alerts) == (ExitStatus.SUCCESS, ())
    assert (told.decision, told.exit_status) == ("ship", ExitStatus.REGRESSED)
    (alert,) = told.alerts
    assert alert.startswith("exact_match of the candidate (v58) is 0.")
    assert f"in run {good.run_id}" in alert


# --- what is refused, and what comes to an end in order -------------------------------------------------------------


async def test_other_prompts_than_before_are_refused(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"prompt": "1+1=", "reference": "2"}\n' * 30)
    spec = given(prompts={"kind": "jsonl", "path": str(items)})
    run = run_of(tmp_path, spec)
    Experiment(run).questions  # noqa: B018  # reads and notes them
    items.write_text('{"prompt": "2+2=", "reference": "4"}\n' * 30)
    with pytest.raises(InvalidInput, match="the prompts that this run began with.*--fresh"):
        await Experiment(run).start()


async def test_a_start_that_fails_lets_go_of_the_run(tmp_path: Path) -> None:
    spec = given()
    spec["versions"] = {**spec["versions"], "v58": {"model": "no/such/folder"}}
    run = run_of(tmp_path, spec)
    for _ in range(2):
        with pytest.raises(Exception, match="no/such/folder"):
            await Experiment(run).start()
    with run.held("kernel", 0.0):
        pass


async def test_a_run_is_one_kernels_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abswitch.experiments.conduct.KERNEL_WAIT_S", 0.05)
    run = run_of(tmp_path, given())
    experiment = Experiment(run)
    engine = await experiment.start()
    try:
        with pytest.raises(SwitchRefused, match="under way in another process"):
            await Experiment(RunFolder(run.path)).start()
    finally:
        await experiment.close(engine)


async def test_traffic_stays_where_it_is_when_people_are_to_decide(tmp_path: Path) -> None:
    _, told, active = await carried_out(run_of(tmp_path, plain({"kind": "randomised"}, policy={"apply": False})))
    assert (told.decision, active) == ("ship", "v58")
    assert told.exit_status == ExitStatus.SUCCESS


async def test_the_store_keeps_the_run_with_its_spec_and_environment(tmp_path: Path) -> None:
    spec = spec_of(plain({"kind": "randomised"}))
    run = open_run(spec, reports=tmp_path / "reports", project=PROJECT, cell={"seed": 0})
    _, told, _ = await carried_out(run)
    import duckdb

    with duckdb.connect(run.path / "evidence.duckdb", read_only=True) as store:
        row = store.execute("SELECT run_id, exit_code, spec_digest, spec, parameters, environment FROM runs").fetchall()
    ((run_id, code, digest, body, parameters, environment),) = row
    assert (run_id, code, digest) == (told.run_id, told.exit_status, spec.digest())
    assert spec_of(json.loads(body)) == spec
    assert json.loads(parameters) == {"seed": 0}
    assert "python" in json.loads(environment)
