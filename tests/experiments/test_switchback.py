"""Switchbacks with one slot, on scripted instances whose quality is known by construction, with a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from abswitch import ModelSwitchingConfig, SwitchingEngine
from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments import RequestBudget, run_switchback
from abswitch.experiments.report import write_report
from abswitch.stats import Mean, Metric, Paired, Rate, Ratio
from tests.experiments.scripted import engine_for, problems

ACCURACY = {"v1": 0.58, "better": 0.91, "regressed": 0.2, "alike": 0.58}
METRICS: tuple[Metric, ...] = (
    Rate("exact_match", margin=0.02),
    Mean("latency_s", role="guardrail", margin=1.0),
    Ratio("output_tokens", "latency_s", role="secondary"),
)
ROWS = "SELECT * FROM requests WHERE operation_id = ? ORDER BY admitted_mono_s"


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SwitchingEngine]:
    one = ModelSwitchingConfig(max_cached_models=1)
    async with engine_for(ACCURACY, store=tmp_path / "s.duckdb", config=one) as made:
        await made.deploy("v1")
        yield made


@pytest.mark.parametrize(
    ("candidate", "decisions"),
    [("better", {"ship"}), ("regressed", {"keep"}), ("alike", {"inconclusive", "equivalent"})],
)
async def test_the_verdict_is_right(engine: SwitchingEngine, candidate: str, decisions: set[str]) -> None:
    result = await run_switchback(engine, candidate, problems(640), metrics=METRICS, experiment="known")
    assert result.verdict.decision in decisions, result.verdict.in_words()
    assert (result.requests.sent, result.requests.answered, result.requests.lost) == (640, 640, 0)
    found = result.verdict.comparisons["exact_match"]
    assert (found.baseline.n, found.candidate.n) == (4, 4), "a block counts once"
    assert "switchback" in found.method
    assert result.evidence.baseline.assigned == result.evidence.candidate.assigned == 4
    assert engine.registry.active_version() == "v1", "the baseline serves again"


async def test_the_order_is_in_the_plan_before_the_first_block(engine: SwitchingEngine) -> None:
    result = await run_switchback(engine, "better", problems(160), metrics=METRICS, experiment="order")
    stored = engine.store.rows("SELECT digest, at_s FROM plans WHERE operation_id = ?", (result.operation_id,))[0]
    rows = engine.query(ROWS, [result.operation_id])
    assert stored[0] == result.plan.digest()
    assert stored[1] <= rows["admitted_at_s"].min()
    by_block = rows.groupby("step")["arm"].unique()
    names = {"stable": "baseline", "candidate": "candidate"}
    assert tuple(names[arm] for (arm,) in by_block) == result.plan.blocks
    assert rows["step"].is_monotonic_increasing
    assert list(rows["assigned_version"].map({"v1": "stable", "better": "candidate"})) == list(rows["arm"])


async def test_the_start_of_each_block_is_left_out(engine: SwitchingEngine) -> None:
    result = await run_switchback(engine, "better", problems(160), metrics=METRICS, warmup_requests=5)
    assert result.requests.sent == 8 * 15
    assert engine.query("SELECT count(*) AS n FROM requests WHERE arm = 'pinned'")["n"][0] == 40


async def test_blocks_of_time_ask_again_and_again(engine: SwitchingEngine) -> None:
    result = await run_switchback(
        engine, "better", problems(30), metrics=METRICS, blocks=4, block_s=0.15, warmup_s=0.05, concurrency=4
    )
    rows = engine.query(ROWS, [result.operation_id])
    assert set(rows["step"]) == {0, 1, 2, 3}
    assert result.requests.sent == len(rows)
    assert rows["request_id"].is_unique


async def test_after_a_crash_only_the_interrupted_block_is_asked_again(engine: SwitchingEngine) -> None:
    with pytest.raises(ExceptionGroup):
        await run_switchback(
            engine, "better", problems(640), metrics=METRICS, on_progress=_stop_after(200), resume=True
        )
    result = await run_switchback(engine, "better", problems(640), metrics=METRICS, resume=True)
    rows = engine.query(ROWS, [result.operation_id])
    whole = rows[rows["error_type"].isna()]
    attempts = whole.groupby("step")["pair_id"].nunique()
    assert attempts[0] == attempts[1] == 1, "they were whole"
    assert attempts.drop(2).max() == 1, "and those after it are asked once"
    assert len(engine.store.rows("SELECT 1 FROM plans")) == 1
    assert result.evidence.baseline.requests + result.evidence.candidate.requests == 640
    assert result.verdict.decision == "ship", result.verdict.in_words()
    again = await run_switchback(engine, "better", problems(640), metrics=METRICS, resume=True)
    assert len(engine.query(ROWS, [again.operation_id])) == len(rows), "nothing is asked a third time"


class _Stop(Exception):
    """Ends a run from within."""


def _stop_after(done: int) -> Any:
    def told(progress: Any) -> None:
        if progress.phase == "asking" and progress.done == done:
            raise _Stop

    return told


async def test_a_budget_that_ends_before_the_last_block_decides_nothing(engine: SwitchingEngine) -> None:
    result = await run_switchback(engine, "better", problems(160), metrics=METRICS, budget=RequestBudget(tokens=100))
    assert result.verdict.rule == "not-yet"
    assert engine.registry.active_version() == "v1"
    fewer = await run_switchback(engine, "better", problems(160), metrics=METRICS, budget=RequestBudget(requests=85))
    assert (fewer.requests.sent, fewer.verdict.comparisons["exact_match"].baseline.n) == (80, 4)


async def test_promoting_afterwards(engine: SwitchingEngine, tmp_path: Path) -> None:
    result = await run_switchback(engine, "better", problems(160), metrics=METRICS)
    await result.promote()
    assert engine.registry.active_version() == "better"
    page = write_report(engine, result, tmp_path / "report")
    assert result.verdict.headline in page.read_text(encoding="utf-8")


async def test_requests_of_others_wait_and_none_is_lost(engine: SwitchingEngine) -> None:
    import asyncio

    done = asyncio.Event()

    async def user() -> int:
        answered = 0
        while not done.is_set():
            await engine.generate("1+1=", unit_id="somebody")
            answered += 1
        return answered

    others = asyncio.create_task(user())
    result = await run_switchback(engine, "better", problems(160), metrics=METRICS)
    done.set()
    assert await others > 8
    assert result.requests.lost == 0
    mine = engine.query("SELECT count(*) FILTER (error_type IS NOT NULL) AS n FROM requests WHERE unit_id = 'somebody'")
    assert mine["n"][0] == 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"metrics": [Paired("exact_match")]}, "metrics"),
    ({"blocks": 7}, "blocks"),
    ({"blocks": 2}, "blocks"),
    ({"block_s": 0}, "block_s"),
    ({"block_s": 1.0, "warmup_s": 1.0}, "warmup_s"),
    ({"warmup_requests": 20}, "prompts"),
    ({"warmup_requests": -1}, "warmup_requests"),
    ({"in_place": "yes"}, "in_place"),
    ({"metrics": [Rate("exact_mach")]}, "metric.column"),
    ({"candidate": "nobody"}, "version"),
]


@pytest.mark.parametrize(("change", "field"), BAD)
async def test_bad_arguments_start_nothing(engine: SwitchingEngine, change: dict[str, Any], field: str) -> None:
    call: dict[str, Any] = {"candidate": "better", "prompts": problems(160), "metrics": METRICS} | change
    with pytest.raises(InvalidInput) as caught:
        await run_switchback(engine, **call)
    assert caught.value.field == field
    assert not engine.store.rows("SELECT 1 FROM plans")


async def test_there_must_be_something_to_compare_with() -> None:
    async with engine_for(ACCURACY) as engine:
        with pytest.raises(SwitchRefused, match="no active version"):
            await run_switchback(engine, "better", problems(160), metrics=METRICS)
