"""What must leave so that something else fits. Pure: a function of what is held, in use, asked for, and the budget."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from abswitch.domain import Residency, VersionKey

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory, in bytes: on the accelerator, and of the host."""

    device_bytes: int = 0
    host_bytes: int = 0

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.device_bytes + other.device_bytes, self.host_bytes + other.host_bytes)

    def __str__(self) -> str:
        device = f"{self.device_bytes / GIB:.2f} GiB of device memory" if self.device_bytes else ""
        host = f"{self.host_bytes / GIB:.2f} GiB of host memory" if self.host_bytes or not device else ""
        return " and ".join(filter(None, (device, host)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be held at once; None is no limit.

    Attributes:
        max_models: versions held, in whatever tier; those in use are kept beyond it, as requests are never dropped.
        device_bytes, host_bytes: hard limits, for those in use as well.
    """

    max_models: int
    device_bytes: int | None = None
    host_bytes: int | None = None

    def __str__(self) -> str:
        device = "" if self.device_bytes is None else f"{self.device_bytes / GIB:.2f} GiB of device memory"
        host = "" if self.host_bytes is None else f"{Footprint(0, self.host_bytes)}"
        return " and ".join(filter(None, (device, host))) or "unlimited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One version that takes memory now.

    Attributes:
        tiers: memory of its engine in each tier that it can be in, the present one included; being cold takes none.
        engine: equal for versions on one engine, whose memory is counted once.
        protected: leased, routed, pinned, or being loaded; it stays as it is.
    """

    key: VersionKey
    tier: Residency
    tiers: tuple[tuple[Residency, Footprint], ...]
    engine: Hashable
    protected: bool

    @property
    def footprint(self) -> Footprint:
        return dict(self.tiers).get(self.tier, Footprint())


class Step(NamedTuple):
    """Bring a version down to a tier."""

    key: VersionKey
    to: Residency


@dataclass(frozen=True, slots=True)
class Room:
    """What to do, in order; `lacking` is what is still missing after all of it (nothing when it fits)."""

    steps: tuple[Step, ...]
    lacking: Footprint

    @property
    def fits(self) -> bool:
        return self.lacking == Footprint()


def usage(held: Iterable[Held]) -> Footprint:
    """Memory of all, each engine once."""
    engines: dict[Hashable, Footprint] = {}
    for one in held:
        known, now = engines.get(one.engine, Footprint()), one.footprint
        engines[one.engine] = Footprint(
            max(known.device_bytes, now.device_bytes), max(known.host_bytes, now.host_bytes)
        )
    return sum(engines.values(), Footprint())


def make_room(least_recent_first: Sequence[Held], need: Footprint, budget: Budget, *, models: int = 1) -> Room:
    """The way to fit `need` more bytes and `models` more versions; least recently used first, the protected never.

    A version goes to sleep where host memory allows, has its weights discarded where it can, and is unloaded else.
    """
    held, steps = list(least_recent_first), dict[VersionKey, Step]()
    while (step := _next(held, need, budget, models)) is not None:
        steps.pop(step.key, None)  # what is to be unloaded in the end need not be put to sleep before
        steps[step.key] = step
        held = _after(held, step)
    return Room(tuple(steps.values()), lacking(usage(held) + need, budget))


def lacking(used: Footprint, budget: Budget) -> Footprint:
    """By how much a use is over the budget."""
    device = 0 if budget.device_bytes is None else max(0, used.device_bytes - budget.device_bytes)
    host = 0 if budget.host_bytes is None else max(0, used.host_bytes - budget.host_bytes)
    return Footprint(device, host)


def _next(held: list[Held], need: Footprint, budget: Budget, models: int) -> Step | None:
    free = [one for one in held if not one.protected]
    missing = lacking(usage(held) + need, budget)
    if len(held) + models > budget.max_models and free:
        return Step(free[0].key, Residency.COLD)
    # What sleeps keeps a little of the device, and is ended for it only where that is enough or all that is left.
    kept = sum(one.footprint.device_bytes for one in free if one.tier is not Residency.RESIDENT)
    spares = missing.device_bytes > kept and any(
        one.tier is Residency.RESIDENT and one.footprint.device_bytes for one in free
    )
    for one in free:
        spared = spares and one.tier is not Residency.RESIDENT
        helps_device = missing.device_bytes and one.footprint.device_bytes and not spared
        helps_host = missing.host_bytes and one.footprint.host_bytes
        if helps_device:
            return Step(one.key, _down(one, held, need, budget))
        if helps_host:
            return Step(one.key, Residency.COLD if one.tier is not Residency.SLEEPING else _deeper(one))
    return None


def _down(one: Held, held: list[Held], need: Footprint, budget: Budget) -> Residency:
    """From the device: asleep, if the host has room for it; else whatever takes less."""
    shared = any(other.engine == one.engine and other is not one for other in held)
    if shared or one.tier is not Residency.RESIDENT:
        return Residency.COLD
    for tier in (Residency.SLEEPING, Residency.DISCARDED):
        if tier in dict(one.tiers):
            asleep = [replace(other, tier=tier) if other is one else other for other in held]
            if not lacking(usage(asleep) + need, replace(budget, device_bytes=None)).host_bytes:
                return tier
    return Residency.COLD


def _deeper(one: Held) -> Residency:
    less = dict(one.tiers).get(Residency.DISCARDED)
    return Residency.DISCARDED if less and less.host_bytes < one.footprint.host_bytes else Residency.COLD


def _after(held: list[Held], step: Step) -> list[Held]:
    if step.to is Residency.COLD:
        return [one for one in held if one.key != step.key]
    return [replace(one, tier=step.to) if one.key == step.key else one for one in held]
