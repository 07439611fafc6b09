"""Looks beside the traffic: what fails there never fails a request, and nothing is asked in vain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from abswitch import SwitchingEngine
from abswitch.errors import InvalidInput, StoreError
from abswitch.experiments import run_ab_test
from abswitch.looking import Looks
from abswitch.stats import Mean, Rate
from abswitch.store.growing import Mark
from tests.experiments.scripted import engine_for, problems

ALIKE = [problems(900)[i % 900] for i in range(3000)]


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SwitchingEngine]:
    async with engine_for({"v1": 0.5, "v2": 0.95, "v3": 0.5}) as made:
        await made.deploy("v1")
        yield made


async def test_a_look_that_cannot_read_is_left_out_and_told(
    engine: SwitchingEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    marked, asked = Looks.mark, list[int]()

    def mark(looks: Looks) -> Mark:
        asked.append(len(asked))
        if len(asked) == 1:
            raise StoreError("the disk is full")
        return marked(looks)

    monkeypatch.setattr(Looks, "mark", mark)
    result = await run_ab_test(engine, "v2", ALIKE, metrics=[Rate("exact_match")], concurrency=2)
    assert result.verdict.rule == "primary-better" and result.requests.failed == result.requests.lost == 0
    assert "no look was taken: the disk is full" in caplog.text and len(asked) > 1
    looks = engine.query("SELECT DISTINCT look FROM looks ORDER BY look")["look"]
    assert list(looks) == list(range(1, len(looks) + 1)), "what was left out does not count"


async def test_what_can_never_be_decided_is_not_asked_to_the_end(engine: SwitchingEngine) -> None:
    """Tokens are no rate, which shows in the first answers."""
    with pytest.raises(InvalidInput, match="0 and 1 only"):
        await run_ab_test(engine, "v2", ALIKE, metrics=[Rate("output_tokens")], concurrency=2)
    assert len(engine.query("SELECT 1 FROM requests WHERE arm <> 'pinned'")) < len(ALIKE)


async def test_a_caller_who_goes_away_ends_the_looks_too(engine: SwitchingEngine) -> None:
    going, told = asyncio.Event(), list[Any]()

    def heard(progress: Any) -> None:
        told.append(progress)
        if progress.done >= 60:
            going.set()

    test = asyncio.create_task(
        run_ab_test(
            engine, "v3", ALIKE, metrics=[Mean("exact_match")], concurrency=1, look_every=10, on_progress=heard
        )
    )  # fmt: skip
    await going.wait()
    test.cancel()
    with pytest.raises(asyncio.CancelledError):
        await test
    heard_of = len(told)
    await engine.generate(ALIKE[0][0])
    assert len(told) == heard_of < len(ALIKE)
