"""`RequestRouter`: one immutable snapshot per model; the switcher replaces it, requests read it.

Choosing an arm is a pure function of the snapshot and the unit. See `rollout/assignment.py` for the hash.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate

from abswitch.clock import Clock
from abswitch.domain import EMPTY, RouteRecord, SwitchPath
from abswitch.errors import NoActiveVersion
from abswitch.rollout.assignment import salted, unit_fraction
from abswitch.serving.instance import ModelInstance

STABLE = "stable"
CANDIDATE = "candidate"
"""The arm of the candidate; of several, the second is `candidate-2`, and so on."""
SHADOW = "shadow"
"""The arm of copies that users never see."""
PINNED = "pinned"
"""The arm name of requests that name their version themselves; they are never part of a comparison."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class RoutedArm:
    """One arm of a snapshot: the instance behind it and its share of units (fraction 0–1).

    A shadow arm's share is the fraction of requests copied to it.
    """

    name: str
    version: str
    instance: ModelInstance
    share: float
    path: SwitchPath = SwitchPath.LOAD
    weights_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Copies of requests for an arm that users never see.

    Attributes:
        keep_outputs: rows of both sides carry their answers.
        max_in_flight: copies under way at most; further ones are left out.
    """

    arm: RoutedArm
    keep_outputs: bool = True
    max_in_flight: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSnapshot:
    """Where a model's requests go, from one instant to the next.

    Attributes:
        epoch: 1, 2, 3, … within the model.
        candidates: none outside operations and when nothing may reach them.
        committed_mono_s: when the snapshot came into force.
    """

    model_id: str
    epoch: int
    stable: RoutedArm
    candidates: tuple[RoutedArm, ...] = ()
    mirror: Mirror | None = None
    operation_id: str | None = None
    step: int = 0
    salt: str = ""
    committed_at_s: float = 0.0
    committed_mono_s: float = 0.0
    _state: blake2b = field(init=False, repr=False, compare=False)
    _segments: tuple[tuple[float, float, RoutedArm], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_state", salted(self.salt))
        object.__setattr__(self, "_segments", _segments(self.candidates))

    @property
    def arms(self) -> tuple[RoutedArm, ...]:
        """The arms that users' traffic may reach."""
        return tuple(arm for arm in (*self.candidates, self.stable) if arm.share > 0.0)

    def choose(self, unit_id: str) -> RoutedArm:
        """The unit's arm.

        Each candidate owns a fixed part of the units and is given the first of them, up to its share; so a higher share
        keeps every unit where it was, however many candidates there are. The stable version takes the rest.
        """
        if self._segments:
            fraction = unit_fraction(self._state, unit_id)
            for low, high, arm in self._segments:
                if low <= fraction < high:
                    return arm
        return self.stable

    def is_mirrored(self, request_id: str) -> bool:
        """Whether the request is copied to the shadow; independent of the arm its unit is in."""
        mirror = self.mirror
        return mirror is not None and unit_fraction(self._state, f"{SHADOW}\0{request_id}") < mirror.arm.share

    def records(self) -> tuple[RouteRecord, ...]:
        """The snapshot as rows of evidence, one per arm that traffic, or its copies, may reach."""
        shadow = () if self.mirror is None else (self.mirror.arm,)
        return tuple(
            RouteRecord(
                model_id=self.model_id,
                epoch=self.epoch,
                operation_id=self.operation_id,
                step=self.step,
                arm=arm.name,
                version=arm.version,
                share=arm.share,
                committed_at_s=self.committed_at_s,
                committed_mono_s=self.committed_mono_s,
            )
            for arm in (*self.arms, *shadow)
        )


def _segments(candidates: Sequence[RoutedArm]) -> tuple[tuple[float, float, RoutedArm], ...]:
    total = sum(arm.share for arm in candidates)
    if total <= 0.0:
        return ()
    *lows, _ = accumulate((arm.share / total for arm in candidates), initial=0.0)
    if total > 1.0 - _ROUNDING:  # everything is taken: no unit may fall between two parts
        return tuple(zip(lows, (*lows[1:], math.inf), candidates, strict=True))
    return tuple((low, low + arm.share, arm) for low, arm in zip(lows, candidates, strict=True))


def candidate_name(index: int) -> str:
    """The arm name of the candidate at a position, the target being 0."""
    return CANDIDATE if not index else f"{CANDIDATE}-{index + 1}"


class RequestRouter:
    """Holder of the current snapshot of each model. Lives on the engine's loop.

    Args:
        last_epochs: the last epoch of each model recorded by an earlier process, so that none is used twice.
    """

    def __init__(self, clock: Clock, *, last_epochs: Mapping[str, int] = EMPTY) -> None:
        self._clock = clock
        self._snapshots: dict[str, RouteSnapshot] = {}
        self._epochs: dict[str, int] = dict(last_epochs)
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}

    def snapshot(self, model_id: str) -> RouteSnapshot:
        """The snapshot in force.

        Raises:
            NoActiveVersion: nothing serves this model.
        """
        snapshot = self._snapshots.get(model_id)
        if snapshot is None:
            raise NoActiveVersion(
                f"model {model_id!r} has no active version; deploy one with await engine.deploy(version)"
            )
        return snapshot

    def current(self, model_id: str) -> RouteSnapshot | None:
        """The snapshot in force, or None when nothing serves the model."""
        return self._snapshots.get(model_id)

    @property
    def snapshots(self) -> Mapping[str, RouteSnapshot]:
        """All snapshots in force, by model."""
        return dict(self._snapshots)

    def is_routed(self, model_id: str, version: str) -> bool:
        """Whether traffic, or its copies, may reach the version now."""
        snapshot = self._snapshots.get(model_id)
        if snapshot is None:
            return False
        shadowed = snapshot.mirror is not None and snapshot.mirror.arm.version == version
        return shadowed or any(arm.version == version for arm in snapshot.arms)

    def leads_to(self, model_id: str, instance: ModelInstance) -> bool:
        """Whether users' traffic may reach this very instance now."""
        snapshot = self._snapshots.get(model_id)
        return snapshot is not None and any(arm.instance is instance for arm in snapshot.arms)

    def commit(
        self,
        model_id: str,
        *,
        stable: RoutedArm,
        candidates: tuple[RoutedArm, ...] = (),
        mirror: Mirror | None = None,
        operation_id: str | None = None,
        step: int = 0,
        salt: str = "",
    ) -> RouteSnapshot:
        """Replace the model's snapshot; every later request sees the new one.

        Args:
            stable: takes what the candidates do not; its share is worked out here.
            candidates: with their shares of all units, fractions that sum to at most 1.
            salt: names the experiment; the same salt assigns the same units to the candidates.
        """
        snapshot = RouteSnapshot(
            model_id=model_id,
            epoch=self._next_epoch(model_id),
            stable=replace(stable, share=max(0.0, 1.0 - sum(arm.share for arm in candidates))),
            candidates=candidates,
            mirror=mirror,
            operation_id=operation_id,
            step=step,
            salt=salt,
            committed_at_s=self._clock.wall_s(),
            committed_mono_s=self._clock.monotonic_s(),
        )
        return self._put(snapshot)

    def replace_instance(self, model_id: str, renewed: RoutedArm) -> RouteSnapshot | None:
        """Put a restarted instance in the place of the one that died; None when the version is not routed.

        Args:
            renewed: its version says which arms are meant; names and shares stay as they are.
        """
        current = self._snapshots.get(model_id)
        if current is None or not self.is_routed(model_id, renewed.version):
            return None
        mirror = current.mirror
        snapshot = replace(
            current,
            epoch=self._next_epoch(model_id),
            stable=_renewed(current.stable, renewed),
            candidates=tuple(_renewed(arm, renewed) for arm in current.candidates),
            mirror=None if mirror is None else replace(mirror, arm=_renewed(mirror.arm, renewed)),
            committed_at_s=self._clock.wall_s(),
            committed_mono_s=self._clock.monotonic_s(),
        )
        return self._put(snapshot)

    def stable_alone(self, model_id: str, operation_id: str) -> tuple[RouteRecord, ...]:
        """End an operation's split: the stable arm has all of it, whatever became of its instance.

        Returns:
            The rows of the new snapshot; none where the snapshot in force is not the operation's.
        """
        current = self._snapshots.get(model_id)
        if current is None or current.operation_id != operation_id:
            return ()
        return self.commit(model_id, stable=current.stable).records()

    def withdraw(self, model_id: str) -> None:
        """Let nothing serve the model any more; who waits for a change is told."""
        self._snapshots.pop(model_id, None)
        self.tell(model_id)

    def changed(self, model_id: str) -> asyncio.Future[None]:
        """Done at the next change of the model's snapshot; cancel it when it is no longer wanted."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(model_id, {})[future] = None
        future.add_done_callback(lambda done: self._waiting.get(model_id, {}).pop(done, None))
        return future

    def _put(self, snapshot: RouteSnapshot) -> RouteSnapshot:
        self._snapshots[snapshot.model_id] = snapshot
        self.tell(snapshot.model_id)
        return snapshot

    def tell(self, model_id: str) -> None:
        """Wake who waits for a change of the model's snapshot."""
        for future in self._waiting.pop(model_id, ()):
            if not future.done():
                future.set_result(None)

    def _next_epoch(self, model_id: str) -> int:
        self._epochs[model_id] = self._epochs.get(model_id, 0) + 1
        return self._epochs[model_id]


def _renewed(arm: RoutedArm, renewed: RoutedArm) -> RoutedArm:
    return replace(renewed, name=arm.name, share=arm.share) if arm.version == renewed.version else arm
