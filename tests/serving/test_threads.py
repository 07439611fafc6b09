"""Threads for calls that may never return."""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import partial

import pytest

from abswitch.serving.threads import LoneThread, on_thread_of_its_own
from tests.patience import PATIENCE_S


async def test_a_call_runs_on_a_daemon_thread_of_its_own() -> None:
    thread = await on_thread_of_its_own(threading.current_thread, "its-own")
    assert (thread.name, thread.daemon) == ("its-own", True)


async def test_whoever_is_cancelled_leaves_the_call_behind() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(on_thread_of_its_own(lambda: release.wait(PATIENCE_S), "left"), 0.01)
    release.set()


async def test_what_would_end_a_program_is_an_error_of_the_call() -> None:
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        await on_thread_of_its_own(lambda: sys.exit(3), "exits")


async def test_one_thread_makes_its_calls_in_order_and_leaves_out_what_was_cancelled() -> None:
    thread, release, made = LoneThread("one"), threading.Event(), list[int]()
    first = thread.begin(lambda: release.wait(PATIENCE_S))
    others = [thread.begin(partial(made.append, n)) for n in range(4)]
    assert others[1].cancel()
    last = thread.begin(threading.current_thread)
    thread.close()
    release.set()
    running = await asyncio.wrap_future(last)
    assert first.result() and made == [0, 2, 3]
    assert (running.name, running.daemon) == ("one", True)
    await asyncio.to_thread(running.join, PATIENCE_S)
    assert not running.is_alive()
