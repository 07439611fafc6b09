"""The bridge between the caller's loop and the engine's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress

import pytest

from abswitch.errors import EngineClosed
from abswitch.serving import loop as loop_module
from abswitch.serving.loop import EngineLoop
from tests.patience import PATIENCE_S


@pytest.fixture
def engine_loop() -> Iterator[EngineLoop]:
    loop = EngineLoop()
    yield loop
    loop.close()


async def numbers(n: int, closed: threading.Event | None = None) -> AsyncGenerator[int, None]:
    try:
        for i in range(n):
            await asyncio.sleep(0)
            yield i
    finally:
        if closed is not None:
            closed.set()


async def where() -> str:
    return threading.current_thread().name


async def test_a_coroutine_runs_on_the_engines_thread(engine_loop: EngineLoop) -> None:
    assert await engine_loop.call(where()) == "abswitch-engine"
    assert threading.current_thread().name != "abswitch-engine"


def test_the_blocking_form(engine_loop: EngineLoop) -> None:
    assert engine_loop.run(where()) == "abswitch-engine"


async def test_the_blocking_form_refuses_to_wait_for_itself(engine_loop: EngineLoop) -> None:
    async def inside() -> None:
        engine_loop.run(where())

    with pytest.raises(RuntimeError, match="wait for itself"):
        await engine_loop.call(inside())


async def test_items_arrive_in_order_and_complete(engine_loop: EngineLoop) -> None:
    streams = [[item async for item in engine_loop.iterate(numbers(500))] for _ in range(3)]
    assert streams == [list(range(500))] * 3


async def test_many_streams_at_once_do_not_mix(engine_loop: EngineLoop) -> None:
    async def read(n: int) -> list[int]:
        return [item async for item in engine_loop.iterate(numbers(n))]

    assert await asyncio.gather(*(read(n) for n in range(100))) == [list(range(n)) for n in range(100)]


async def test_an_error_reaches_the_reader_after_the_items_before_it(engine_loop: EngineLoop) -> None:
    async def breaks() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"):
        async for item in engine_loop.iterate(breaks()):
            seen.append(item)
    assert seen == [1]


async def test_leaving_early_closes_the_source_on_its_own_loop(engine_loop: EngineLoop) -> None:
    closed = threading.Event()
    async with aclosing(engine_loop.iterate(numbers(10**9, closed))) as items:
        async for _ in items:
            break
    assert await asyncio.to_thread(closed.wait, 5)


async def test_cancelling_the_reader_closes_the_source(engine_loop: EngineLoop) -> None:
    closed = threading.Event()

    async def read() -> None:
        async for _ in engine_loop.iterate(numbers(10**9, closed)):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_reader_on_the_engines_own_loop_needs_no_bridge(engine_loop: EngineLoop) -> None:
    async def read() -> list[int]:
        return [item async for item in engine_loop.iterate(numbers(5))]

    assert await engine_loop.call(read()) == [0, 1, 2, 3, 4]


async def test_closing_the_engine_tells_a_reader_so() -> None:
    engine_loop = EngineLoop()
    started = asyncio.Event()

    async def forever() -> AsyncGenerator[int, None]:
        yield 0
        await asyncio.Event().wait()

    async def read() -> None:
        async for _ in engine_loop.iterate(forever()):
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    await asyncio.to_thread(engine_loop.close)
    with pytest.raises(EngineClosed, match="shut down"):
        await task
    with pytest.raises(EngineClosed):
        await engine_loop.call(where())
    engine_loop.close()  # again: nothing happens


async def test_closing_works_where_a_loop_runs_in_the_callers_thread_as_in_every_cell() -> None:
    engine_loop = EngineLoop()
    source = numbers(10, closed := threading.Event())

    async def begin() -> int:
        await asyncio.to_thread(lambda: None)  # from here on there are worker threads to end
        return await anext(source)

    assert await engine_loop.call(begin()) == 0
    engine_loop.close()
    assert closed.is_set(), "generators are closed on the loop that ran them"
    with pytest.raises(EngineClosed):
        await engine_loop.call(where())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("abswitch-engine")]


def test_closing_leaves_behind_what_does_not_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_module, "_END_S", 0.05)
    engine_loop = EngineLoop()
    release, begun = threading.Event(), threading.Event()

    async def stubborn() -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                begun.set()
                await asyncio.sleep(PATIENCE_S)

    async def begin() -> None:
        asyncio.get_running_loop().run_in_executor(None, release.wait)
        keep.append(asyncio.create_task(stubborn(), name="stubborn"))

    keep: list[asyncio.Task[None]] = []
    engine_loop.run(begin())
    assert begun.wait(PATIENCE_S)
    closing = threading.Thread(target=engine_loop.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    release.set()  # the interpreter's end waits for a pool's threads
    assert not closing.is_alive()
    assert "stubborn did not end" in caplog.text
    assert "something that the engine began did not end" in caplog.text


async def test_closing_tells_who_waits_for_an_answer_and_cancels_nobodys_task() -> None:
    engine_loop = EngineLoop()

    def blocks() -> None:
        engine_loop.run(asyncio.Event().wait())

    awaiting = asyncio.create_task(engine_loop.call(asyncio.Event().wait()))
    blocking = asyncio.create_task(asyncio.to_thread(blocks))
    await engine_loop.call(asyncio.sleep(0.01))
    await asyncio.to_thread(engine_loop.close)
    for task in (awaiting, blocking):
        with pytest.raises(EngineClosed, match="shut down"):
            await task
        assert not task.cancelled()


async def test_who_is_cancelled_stays_so(engine_loop: EngineLoop) -> None:
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await engine_loop.call(forever())
    assert await asyncio.to_thread(cancelled.wait, PATIENCE_S)


def test_nobody_waits_for_a_loop_that_has_ended() -> None:
    """Whatever moment of the end their call comes in."""
    for _ in range(10):
        engine_loop, ends = EngineLoop(), list[type[BaseException]]()

        def ask(loop: EngineLoop = engine_loop, ends: list[type[BaseException]] = ends) -> None:
            try:
                while True:
                    loop.run(asyncio.sleep(0))
            except BaseException as error:
                ends.append(type(error))

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        engine_loop.run(asyncio.sleep(0.005))
        engine_loop.close()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert set(ends) == {EngineClosed}


async def test_a_stream_is_closed_in_peace_after_its_engine() -> None:
    engine_loop = EngineLoop()
    stream = engine_loop.iterate(numbers(1000))
    await anext(stream)
    engine_loop.close()
    await stream.aclose()


def test_a_call_that_fails_keeps_none_of_those_after_it(
    engine_loop: EngineLoop, caplog: pytest.LogCaptureFixture
) -> None:
    called, hold = threading.Event(), threading.Event()

    def waits() -> None:
        hold.wait(PATIENCE_S)

    def fails() -> None:
        raise ValueError("it failed")

    engine_loop.post(waits)
    engine_loop.post(fails)
    engine_loop.post(called.set)
    hold.set()
    assert called.wait(PATIENCE_S)
    assert "ValueError: it failed" in caplog.text
