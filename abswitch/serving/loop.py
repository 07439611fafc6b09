"""`EngineLoop`: the engine's own event-loop thread, and the bridge from callers on other loops.

A blocked notebook cell must not freeze the engine, so the engine never runs on the caller's loop. Tokens cross between
the two loops in batches: however many streams are open, one wake-up of the caller's loop carries all that is waiting.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from abswitch.errors import EngineClosed
from abswitch.serving.threads import on_thread_of_its_own

T = TypeVar("T")
log = logging.getLogger(__name__)
_END_S = 10.0
"""How long each step of the loop's end may take: tasks that are cancelled, generators, blocking calls in threads."""


async def off_loop(function: Callable[[], T]) -> T:
    """Call a blocking function in a thread; in place when the interpreter is ending and gives out no threads any more.

    A program that forgot to close its engine comes here then, and nobody else is left to be kept waiting.
    """
    try:
        return await asyncio.to_thread(function)
    except RuntimeError as error:
        if "after shutdown" not in str(error) and "interpreter shutdown" not in str(error):
            raise
        return function()


class EngineLoop:
    """An event loop on a daemon thread of its own."""

    def __init__(self, name: str = "abswitch-engine") -> None:
        self._loop = asyncio.new_event_loop()
        self._pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix=f"{name}-worker")
        self._loop.set_default_executor(self._pool)
        self._mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = WeakKeyDictionary()
        self._inbound = _Mailbox(self._loop)
        self._ended = False
        self._left: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._ended = True
        self._loop.run_until_complete(self._cancel_others())  # what came between the end of all others and this

    @property
    def is_current(self) -> bool:
        """Whether the caller already runs on this loop's thread."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to completion on this loop, blocking the calling thread (for scripts and blocked cells).

        Raises:
            RuntimeError: called on the loop's own thread, which would wait for itself.
        """
        if self.is_current:
            coroutine.close()
            raise RuntimeError("run() would wait for itself; await the coroutine instead")
        return _answer_to(self._submit(coroutine))

    def ask(self, question: Callable[[], T]) -> T:
        """What a quick function answers on this loop, from any thread and from this one; blocks until then."""
        return question() if self.is_current else _answer_to(self._submit(_asked(question)))

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine that must run on this loop, from any loop. Who is cancelled cancels it.

        Raises:
            EngineClosed: this loop came to its end meanwhile. The caller's task is not cancelled by that.
        """
        if self.is_current:
            return await coroutine
        answer = self._submit(coroutine)
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            if _is_cancelled_itself():
                raise
            raise EngineClosed("the engine was shut down meanwhile") from None

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if not self._ended:
            with suppress(RuntimeError):  # the loop was closed
                answer = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
                # Of what came after the end nobody can say whether it was begun, and nobody may wait for it. No lock:
                # an engine may be closed by the garbage collector, at any point of this.
                if not (self._ended and answer.cancel()):
                    return answer
        with suppress(RuntimeError, ValueError):  # begun in the loop's last turn, which ends it
            coroutine.close()
        raise EngineClosed("the engine was shut down")

    def post(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back on this loop soon, from any thread, without waiting."""
        if not self._ended:
            with suppress(RuntimeError):  # the loop was closed
                self._inbound.post(callback, *args)
        if self._ended:
            raise EngineClosed("the engine was shut down")

    def iterate(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Iterate on the caller's loop over a generator that runs on this loop.

        Closing the returned generator, or cancelling the task that reads it, closes `source` on its own loop.
        """
        return source if self.is_current else self._bridged(source)

    async def _bridged(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        here = asyncio.get_running_loop()
        mailbox = self._mailboxes.get(here)
        if mailbox is None:
            mailbox = self._mailboxes[here] = _Mailbox(here)
        pipe = _Pipe(source, mailbox)
        self.post(pipe.start)
        try:
            while True:
                while pipe.items:
                    yield pipe.items.popleft()
                if pipe.ended:
                    break
                await pipe.more()
            if pipe.error is not None:
                raise pipe.error
        finally:
            if not pipe.ended:
                with suppress(EngineClosed):  # which ended the source, too
                    self.post(pipe.cancel)

    def close(self) -> None:
        """Cancel what is left, stop the loop and its thread. Idempotent, and bounded: what does not end is left behind.

        All of it happens on the loop's own thread, as a loop may run on the caller's: in a notebook one always does.
        """
        if self._loop.is_closed() or self.is_current:
            return
        try:
            self._submit(self._wind_up()).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _wind_up(self) -> None:
        await self._cancel_others()
        try:
            await asyncio.wait_for(self._loop.shutdown_asyncgens(), _END_S)
            with suppress(RuntimeError):  # at the interpreter's end there is no thread left to wait for the others with
                await asyncio.wait_for(on_thread_of_its_own(self._pool.shutdown, "abswitch-engine-end"), _END_S)
        except TimeoutError:
            log.warning("something that the engine began did not end within %g s; it is left behind", _END_S)

    async def _cancel_others(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()} - self._left
        for task in others:
            task.cancel()
        if others:
            _, left = await asyncio.wait(others, timeout=_END_S)
            self._left |= left
            for task in left:
                log.warning("%s did not end within %g s of being cancelled; it is left behind", task.get_name(), _END_S)


def _answer_to(asked: concurrent.futures.Future[T]) -> T:
    try:
        return asked.result()
    except concurrent.futures.CancelledError:
        raise EngineClosed("the engine was shut down meanwhile") from None


def _is_cancelled_itself() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _asked(question: Callable[[], T]) -> T:
    return question()


class _Mailbox:
    """Calls waiting for a loop; many posts, one wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken = False

    def post(self, callback: Callable[..., None], *args: Any) -> None:
        self._waiting.append((callback, args))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Cleared first: a post that comes while this empties the queue wakes the loop again, so none is left behind.
        self._woken = False
        while self._waiting:
            callback, args = self._waiting.popleft()
            try:
                callback(*args)
            except Exception:  # the others' calls are none the worse for it
                log.exception("a call that was left for a loop failed")


class _Pipe(Generic[T]):
    """One generator's items on their way from the engine's loop to the caller's."""

    def __init__(self, source: AsyncGenerator[T, None], mailbox: _Mailbox) -> None:
        self._source = source
        self._mailbox = mailbox
        self._task: asyncio.Task[None] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._abandoned = False
        self.items: deque[T] = deque()
        self.error: BaseException | None = None
        self.ended = False

    # on the engine's loop

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._pump())

    def cancel(self) -> None:
        if self._task is not None:
            self._abandoned = True
            self._task.cancel()

    async def _pump(self) -> None:
        error: BaseException | None = None
        post, put = self._mailbox.post, self._put
        try:
            async with aclosing(self._source) as source:
                async for item in source:
                    post(put, item)
        except asyncio.CancelledError:
            if self._abandoned:
                raise
            error = EngineClosed("the engine was shut down while the request was under way")
        except Exception as caught:
            error = caught
        finally:
            with suppress(RuntimeError):  # the caller's loop was closed: nobody is left to tell
                post(self._end, error)

    # on the caller's loop

    async def more(self) -> None:
        """Wait until something arrived."""
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader

    def _put(self, item: T) -> None:
        self.items.append(item)
        self._wake()

    def _end(self, error: BaseException | None) -> None:
        self.ended, self.error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
