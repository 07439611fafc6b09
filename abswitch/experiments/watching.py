"""Looking at an experiment beside its traffic: a look whenever enough requests ended, never in a request's way."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from abswitch.engine import SwitchingEngine
from abswitch.errors import StoreError
from abswitch.experiments.asking import Asking
from abswitch.looking import Looks, Standing

log = logging.getLogger(__name__)


class Watching:
    """Takes looks while its context is open, and the last one afterwards.

    Looks follow each other; traffic goes on meanwhile, and is read by the next one.

    Args:
        asking: whose requests are looked at; it is told what was found.
        looks: of the operation.
    """

    def __init__(self, engine: SwitchingEngine, asking: Asking, looks: Looks) -> None:
        self._engine, self._asking, self._looks = engine, asking, looks
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._new = 0
        self._closing = False
        self.is_over = looks.was_over

    async def __aenter__(self) -> Self:
        self._asking.on_ended = self._one_ended
        self._task = asyncio.create_task(self._look_on())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None, "set on entering"
        self._asking.on_ended = lambda: None
        self._closing = True
        self._ended.set()  # a look that was begun is finished: what it writes down must be what is known
        (ended,) = await asyncio.gather(self._task, return_exceptions=True)
        if error is None and isinstance(ended, Exception):
            raise ended

    def _one_ended(self) -> None:
        self._new += 1
        self._ended.set()

    async def _look_on(self) -> None:
        while not (self.is_over or self._closing):
            await self._ended.wait()
            self._ended.clear()
            if self._new >= self._looks.wanting and not self._closing:
                self._new = 0
                try:
                    await self._look()
                except Exception:
                    self.is_over = True  # nothing that is asked now would be decided
                    raise

    async def _look(self) -> None:
        try:
            mark = await asyncio.to_thread(self._looks.mark)
            await self._engine.scored()
            standing = await asyncio.to_thread(self._looks.take, mark)
        except StoreError as error:  # the next look reads what this one could not
            log.warning("no look was taken: %s", error)
            return
        if standing is not None:
            self._told(standing)

    def _told(self, standing: Standing) -> None:
        self._asking.verdicts = standing.verdicts
        self.is_over = standing.is_final
        self._asking.tell("asking")

    async def close(self) -> Standing:
        """The last look, once everything was asked and scored."""
        return await asyncio.to_thread(self._looks.close)
