"""A thread for what may wait: showing the store to other processes, and letting go of old rows."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

log = logging.getLogger("abswitch.store")

_LONGEST_PAUSE_S = 30.0


@dataclass(slots=True)
class Chore:
    """Something to do every `every_s`; after a failure it is left alone for longer, up to half a minute more."""

    name: str
    every_s: float
    do: Callable[[], None]
    due_s: float = 0.0
    failures: int = field(default=0, init=False)

    def attempt(self, now_s: float) -> None:
        """Do it, and say when next."""
        try:
            self.do()
        except Exception as error:
            self.failures += 1
            pause_s = min(self.every_s * 2.0**self.failures, self.every_s + _LONGEST_PAUSE_S)
            if self.failures == 1:
                log.warning("%s: %s; tried again from time to time", self.name, error)
        else:
            pause_s, self.failures = self.every_s, 0
        self.due_s = now_s + pause_s


class Housekeeper:
    """Does its chores until it is closed. A daemon thread, as the writer's is."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._chores = tuple(chores)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="abswitch-housekeeper", daemon=True)
        if chores:
            self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(self._pause_s()):
            now_s = time.monotonic()
            for chore in self._chores:
                if chore.due_s <= now_s and not self._closing.is_set():
                    chore.attempt(now_s)

    def _pause_s(self) -> float:
        return max(0.0, min(chore.due_s for chore in self._chores) - time.monotonic())

    def close(self) -> None:
        """End the thread after the chore under way. Idempotent."""
        self._closing.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
