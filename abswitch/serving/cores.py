"""`CoreGroups`: which CPU cores each engine computes on, so that versions at work do not slow each other down.

vLLM binds every engine of a machine to the same cores. Two that serve at the same time, as the arms of an experiment
do, then compute on cores they share while others idle, and every latency is that of the pair. Here the cores are
divided into groups of equal size, and an engine that gets work while its group is busy moves to one that is not.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SYSFS = Path("/sys/devices/system/cpu")
_SPARE_FROM = 4
"""From so many cores a group on, one core of the machine is left to the process that hands the tokens out."""


@dataclass(frozen=True, slots=True)
class CoreGroup:
    """Cores of one group.

    Attributes:
        cpus: numbers of the logical CPUs.
        threads: how many threads compute on them: one for each physical core.
    """

    cpus: tuple[int, ...]
    threads: int


def core_groups(n: int, *, sysfs: Path = _SYSFS) -> tuple[CoreGroup, ...]:
    """The cores that this process may use, in `n` groups of equal size; fewer where there are fewer cores.

    There are no groups where the system does not bind threads to cores (macOS). A core and its hyper-threads stay
    together, and so do, as far as groups allow, the cores of one socket.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    cores = _physical_cores(os.sched_getaffinity(0), sysfs)
    n = min(n, len(cores))
    usable = len(cores) - (len(cores) >= _SPARE_FROM * n)
    size = usable // n
    parts = [cores[i * size : (i + 1) * size] for i in range(n)]
    return tuple(CoreGroup(tuple(cpu for core in part for cpu in core), len(part)) for part in parts)


def _physical_cores(allowed: Collection[int], sysfs: Path) -> list[tuple[int, ...]]:
    """Logical CPUs by physical core, those of one socket side by side; where nothing is told, each is a core."""
    found: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(allowed):
        topology = sysfs / f"cpu{cpu}" / "topology"
        socket, core = _number(topology / "physical_package_id", 0), _number(topology / "core_id", cpu)
        found.setdefault((socket, core), []).append(cpu)
    return [tuple(found[place]) for place in sorted(found)]


def _number(file: Path, otherwise: int) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return otherwise


class CoreGroups:
    """Gives engines their groups. Knows of no process: whoever asks binds the engine's threads."""

    def __init__(self, groups: Sequence[CoreGroup]) -> None:
        self.groups = tuple(groups)
        self._seats: list[Seat] = []

    def seat(self) -> Seat | None:
        """For a new engine, in the group that has the fewest; None where there are no groups."""
        if not self.groups:
            return None
        taken = Counter(seat.number for seat in self._seats)
        seat = Seat(self, min(range(len(self.groups)), key=lambda number: taken[number]))
        self._seats.append(seat)
        return seat

    def _idlest(self, seat: Seat) -> int:
        """The group where the fewest others are at work; the seat's own if that is one of them."""
        busy = Counter(other.number for other in self._seats if other.is_at_work and other is not seat)
        return min(range(len(self.groups)), key=lambda number: (busy[number], number != seat.number))

    def _leave(self, seat: Seat) -> None:
        if seat in self._seats:
            self._seats.remove(seat)


class Seat:
    """One engine's place."""

    def __init__(self, groups: CoreGroups, number: int) -> None:
        self._groups = groups
        self._requests = 0
        self.number = number

    @property
    def group(self) -> CoreGroup:
        return self._groups.groups[self.number]

    @property
    def is_at_work(self) -> bool:
        return self._requests > 0

    def begin(self) -> CoreGroup | None:
        """A request begins. The group to move to, where another engine is at work on this one's cores and fewer are on
        others'; else None."""
        self._requests += 1
        if self._requests > 1:
            return None
        number = self._groups._idlest(self)
        if number == self.number:
            return None
        self.number = number
        return self.group

    def end(self) -> None:
        """A request ended."""
        self._requests -= 1

    def leave(self) -> None:
        """The engine is gone; a second time does nothing."""
        self._groups._leave(self)


def bind(pids: Iterable[int], cpus: Iterable[int]) -> None:
    """Have all threads of these processes run on these CPUs; those that ended meanwhile are passed over."""
    wanted = set(cpus)
    for pid in pids:
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    os.sched_setaffinity(int(thread.name), wanted)
