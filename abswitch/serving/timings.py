"""`Timings`: how long loads, wakes, swaps and drains took, so that the next one can be foretold."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from abswitch.domain import VersionKey

_KEPT = 20


class Timing(NamedTuple):
    """One measurement; `what` is a switch path (`load`, `wake`, …) or `drain`."""

    model_id: str
    version: str
    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Expectation:
    """The median of what was measured.

    Attributes:
        seconds: None where nothing of the kind was measured yet.
        n: measurements it rests on.
        of_others: they are of other versions, as this one has none yet.
    """

    seconds: float | None = None
    n: int = 0
    of_others: bool = False

    def __str__(self) -> str:
        if self.seconds is None:
            return "not measured yet"
        whose = " of other versions" if self.of_others else ""
        return f"{self.seconds:.2g} s (median of {self.n}{whose})"


class Timings:
    """Lives on the engine's loop.

    Args:
        known: measurements of earlier processes, oldest first.
        backend_of: what serves a version; what another backend took says nothing about it. None: it is not known.
        keep: writes a new one down; must not block for long.
    """

    def __init__(
        self,
        known: Iterable[Timing] = (),
        *,
        keep: Callable[[Timing], None] = lambda _: None,
        backend_of: Callable[[VersionKey], str | None] = lambda _: None,
    ) -> None:
        self._measured: dict[tuple[str, str, str], deque[float]] = {}
        self._backend_of = backend_of
        self._keep = keep
        for timing in known:
            self._add(timing)

    def took(self, model_id: str, version: str, what: str, seconds: float) -> None:
        """Note a measurement."""
        timing = Timing(model_id, version, what, seconds)
        self._add(timing)
        self._keep(timing)

    def expect(self, model_id: str, version: str, what: str) -> Expectation:
        """How long it will take: from this version's measurements, else from all others' on the same backend."""
        own = self._measured.get((model_id, version, what))
        if own:
            return Expectation(statistics.median(own), len(own))
        backend = self._backend_of((model_id, version))
        others = [
            seconds
            for (model, name, kind), past in self._measured.items()
            if kind == what and self._backend_of((model, name)) == backend
            for seconds in past
        ]
        return Expectation(statistics.median(others), len(others), True) if others else Expectation()

    def _add(self, timing: Timing) -> None:
        key = (timing.model_id, timing.version, timing.what)
        self._measured.setdefault(key, deque(maxlen=_KEPT)).append(timing.seconds)
