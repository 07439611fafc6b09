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
from typing import TypeVar

T = TypeVar("T")


def _answer(answer: Future[T], function: Callable[[], T]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(function())
    except BaseException as error:
        answer.set_exception(error)


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
