"""Scorers run beside the requests; one that raises costs a score, not an answer."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading

import pytest

from abswitch.clock import VirtualClock
from abswitch.domain import ScoreRecord
from abswitch.scoring import ExactMatch, Function, Judge, Matches, Sample, Scorer
from abswitch.serving import grading
from abswitch.serving.grading import Grader
from tests.patience import PATIENCE_S


def sample(output: str = "46", reference: str | None = "46", request_id: str = "r1") -> Sample:
    return Sample(request_id=request_id, prompt="12+34=", output=output, reference=reference)


async def scores(*scorers: Scorer, samples: tuple[Sample, ...] = (sample(),)) -> list[ScoreRecord]:
    rows: list[ScoreRecord] = []
    grader = Grader(scorers, VirtualClock(wall_s=5.0), record=rows.append)
    for one in samples:
        grader.submit(one)
    await grader.close()
    return rows


async def test_a_fast_scorer_scores_at_once() -> None:
    rows: list[ScoreRecord] = []
    Grader([ExactMatch()], VirtualClock(wall_s=5.0), record=rows.append).submit(sample())
    assert rows == [ScoreRecord("r1", "exact_match", 1.0, None, 5.0)]


async def test_no_reference_no_score() -> None:
    assert await scores(ExactMatch(), samples=(sample(reference=None),)) == []


async def test_a_plain_callable_runs_off_the_loop() -> None:
    where: list[str] = []

    def length(one: Sample) -> float:
        where.append(threading.current_thread().name)
        return len(one.output)

    assert [row.value for row in await scores(Function(length, "length"))] == [2.0]
    assert where[0].startswith("abswitch-scorer")


async def test_a_scorer_that_raises_leaves_a_row_that_says_so_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(one: Sample) -> float:
        raise KeyError(one.request_id)

    with caplog.at_level(logging.WARNING, logger="abswitch"):
        rows = await scores(
            Function(broken, "broken"), ExactMatch(), samples=(sample(request_id="a"), sample(request_id="b"))
        )
    assert {(r.request_id, r.scorer, r.value, r.error) for r in rows} == {
        ("a", "broken", None, "KeyError: 'a'"),
        ("b", "broken", None, "KeyError: 'b'"),
        ("a", "exact_match", 1.0, None),
        ("b", "exact_match", 1.0, None),
    }
    assert [r.message.count("'broken' raised KeyError") for r in caplog.records] == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", [1]])
async def test_a_score_that_is_no_finite_number_is_an_error(value: object) -> None:
    (row,) = await scores(Function(lambda _: value, "odd"))  # type: ignore[arg-type, return-value]
    assert row.value is None
    assert row.error is not None
    assert "finite number" in row.error


async def test_a_judge_is_asked_with_the_template_filled_in() -> None:
    asked: list[str] = []

    async def ask(prompt: str) -> str:
        asked.append(prompt)
        return "Score: 0.75, because…"

    (row,) = await scores(Judge(ask, template="{prompt}|{reference}|{output}"))
    assert (row.scorer, row.value, asked) == ("judge", 0.75, ["12+34=|46|46"])


@pytest.mark.parametrize("reply", ["no number", "7"])
async def test_a_judge_that_answers_off_the_scale_is_an_error_not_a_score(reply: str) -> None:
    async def ask(_: str) -> str:
        return reply

    (row,) = await scores(Judge(ask))
    assert row.value is None
    assert row.error is not None
    assert row.error.startswith("ScorerError: the judge replied")


async def test_idle_waits_for_the_slow_ones() -> None:
    gate = asyncio.Event()

    async def slow(_: Sample) -> float:
        await gate.wait()
        return 1.0

    rows: list[ScoreRecord] = []
    grader = Grader([Function(slow, "slow"), Matches("4", name="has_4")], VirtualClock(), record=rows.append)
    grader.submit(sample())
    waiting = asyncio.create_task(grader.idle())
    while len(rows) < 1:
        await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    await waiting
    assert {row.scorer for row in rows} == {"slow", "has_4"}


# --- scorers that do not answer ---------------------------------------------------------------------------------------


async def closed_within(grader: Grader) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await grader.close()


async def test_closing_leaves_an_async_scorer_that_never_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grading, "_STALL_S", 0.05)

    async def never(_: Sample) -> float:
        return await asyncio.Event().wait()

    rows: list[ScoreRecord] = []
    grader = Grader([ExactMatch(), Function(never, "never")], VirtualClock(), record=rows.append)
    for request_id in ("a", "b"):
        grader.submit(sample(request_id=request_id))
    await closed_within(grader)
    assert [(row.request_id, row.scorer) for row in rows] == [("a", "exact_match"), ("b", "exact_match")]
    assert "2 answer(s) are left without scores, which took too long: never of 2" in caplog.text
    await grader.idle()


async def test_closing_leaves_a_plain_scorer_that_never_returns_on_its_daemon_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grading, "_STALL_S", 0.05)
    release, threads = threading.Event(), []

    def never(_: Sample) -> float:
        threads.append(threading.current_thread())
        release.wait(PATIENCE_S)
        return 1.0

    rows: list[ScoreRecord] = []
    grader = Grader([Function(never, "never")], VirtualClock(), record=rows.append)
    for request_id in ("a", "b"):
        grader.submit(sample(request_id=request_id))
    await closed_within(grader)
    assert threads[0].daemon, "the interpreter's end does not wait for it"
    assert "never of 2" in caplog.text
    release.set()
    await asyncio.to_thread(threads[0].join, PATIENCE_S)
    assert (len(threads), rows) == (1, []), "what came too late is no score"


async def test_closing_waits_while_scores_keep_coming_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grading, "_CLOSE_S", 0.2)

    async def slow(_: Sample) -> float:
        await asyncio.sleep(0.05)
        return 1.0

    monkeypatch.setattr(grading, "JUDGE_CONCURRENCY", 1)
    rows: list[ScoreRecord] = []
    grader = Grader([Function(slow, "slow")], VirtualClock(), record=rows.append)
    for n in range(1000):
        grader.submit(sample(request_id=f"r{n}"))
    await closed_within(grader)
    assert 0 < len(rows) < 1000
    assert f"slow of {1000 - len(rows)}" in caplog.text


async def test_a_scorer_that_ends_its_thread_or_its_iteration_costs_its_score() -> None:
    def exits(_: Sample) -> float:
        sys.exit(3)

    def stops(_: Sample) -> float:
        return next(iter(()))

    async def stops_too(_: Sample) -> float:
        return float(next(iter("")))

    rows = await scores(Function(exits, "exits"), Function(stops, "stops"), Function(stops_too, "stops_too"))
    assert [row.scorer for row in rows] == ["exits", "stops", "stops_too"] and all(row.value is None for row in rows)


# --- more answers than scorers come to --------------------------------------------------------------------------------


async def test_what_is_over_the_backlog_stays_unscored_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()

    async def slow(_: Sample) -> float:
        await gate.wait()
        return 1.0

    rows: list[ScoreRecord] = []
    scorers: list[Scorer] = [ExactMatch(), Function(slow, "slow"), Matches("4", name="has_4")]
    grader = Grader(scorers, VirtualClock(), record=rows.append, backlog=3)
    for n in range(5):
        grader.submit(sample(request_id=f"r{n}"))
    assert sum(row.scorer == "exact_match" for row in rows) == 5, "what costs nothing is done for every answer"
    unscored = [(row.request_id, row.scorer, row.value, row.error) for row in rows if row.scorer != "exact_match"]
    why = "not scored: 3 answers were waiting to be scored"
    assert unscored == [(f"r{n}", name, None, why) for n in (3, 4) for name in ("has_4", "slow")]
    assert grader.unscored == 2
    assert caplog.text.count("further answers stay unscored") == 1
    gate.set()
    await grader.idle()
    grader.submit(sample(request_id="later"))
    await grader.close()
    assert sum(row.scorer == "slow" and row.value == 1.0 for row in rows) == 4, "there is room again"
    grader.submit(sample(request_id="too late"))
    assert rows[-1].error == "not scored: the engine was closed" and grader.unscored == 3


async def test_who_sends_of_its_own_accord_may_wait_for_room() -> None:
    gate = asyncio.Semaphore(0)

    async def slow(_: Sample) -> float:
        await gate.acquire()
        return 1.0

    grader = Grader([Function(slow, "slow")], VirtualClock(), record=lambda _: None, backlog=4)
    grader.submit(sample(request_id="a"))
    await grader.room()
    grader.submit(sample(request_id="b"))
    waiting = [asyncio.create_task(grader.room()) for _ in range(3)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not grader.has_room and not any(task.done() for task in waiting), "half of it waits"
    gate.release()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*waiting)
    gate.release()
    await grader.close()
