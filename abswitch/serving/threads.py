"""Threads for what users hand in: their calls may never return, and then nothing else may wait for them.

A thread of a pool cannot be left behind: the pool runs out of them, and the interpreter's end waits for each. These are
daemon threads, which hold up nobody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def _answer(answer: Future[T], function: Callable[[], T]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(function())
    except Exception as error:
        answer.set_exception(error)
    except BaseException as error:  # sys.exit() in what a user handed in must not end the loop that waits for it
        answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))


def begin_on_thread(function: Callable[[], T], name: str) -> Future[T]:
    """Call a blocking function on a daemon thread that is its alone.

    Raises:
        RuntimeError: the interpreter is ending, and gives out no threads any more.
    """
    answer: Future[T] = Future()
    context = copy_context()
    threading.Thread(target=lambda: context.run(_answer, answer, function), name=name, daemon=True).start()
    return answer


async def on_thread_of_its_own(function: Callable[[], T], name: str) -> T:
    """`begin_on_thread`, awaited; whoever is cancelled leaves the call behind."""
    return await asyncio.wrap_future(begin_on_thread(function, name))


class LoneThread:
    """One daemon thread that makes calls one after the other; it starts with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, function: Callable[[], T]) -> Future[T]:
        """Have a blocking function called once those before it returned; cancel what is returned to leave it out."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        answer: Future[T] = Future()
        self._calls.put(lambda: _answer(answer, function))
        return answer

    def close(self) -> None:
        """Let the thread end after what was begun; waits for nothing."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
