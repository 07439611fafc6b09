"""`RequestRouter`: one immutable snapshot per model; the switcher replaces it, requests read it.

Choosing an arm is a pure function of the snapshot and the unit. See `rollout/assignment.py` for the hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from abswitch.clock import Clock
from abswitch.domain import EMPTY, RouteRecord
from abswitch.errors import NoActiveVersion
from abswitch.rollout.assignment import salted, unit_fraction
from abswitch.serving.instance import ModelInstance

STABLE = "stable"
CANDIDATE = "candidate"
PINNED = "pinned"
"""The arm name of requests that name their version themselves; they are never part of a comparison."""


@dataclass(frozen=True, slots=True)
class RoutedArm:
    """One arm of a snapshot: the instance behind it and its share of units (fraction 0–1)."""

    name: str
    version: str
    instance: ModelInstance
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSnapshot:
    """Where a model's requests go, from one instant to the next.

    Attributes:
        epoch: 1, 2, 3, … within the model.
        candidate: None outside operations and when nothing may reach it.
        committed_mono_s: when the snapshot came into force.
    """

    model_id: str
    epoch: int
    stable: RoutedArm
    candidate: RoutedArm | None = None
    operation_id: str | None = None
    step: int = 0
    salt: str = ""
    committed_at_s: float = 0.0
    committed_mono_s: float = 0.0
    _state: blake2b = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_state", salted(self.salt))

    @property
    def arms(self) -> tuple[RoutedArm, ...]:
        """The arms that traffic may reach."""
        return tuple(arm for arm in (self.candidate, self.stable) if arm is not None and arm.share > 0.0)

    def choose(self, unit_id: str) -> RoutedArm:
        """The unit's arm: the candidate below its share, the stable version above."""
        candidate = self.candidate
        if candidate is not None and unit_fraction(self._state, unit_id) < candidate.share:
            return candidate
        return self.stable

    def records(self) -> tuple[RouteRecord, ...]:
        """The snapshot as rows of evidence, one per arm that traffic may reach."""
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
            for arm in self.arms
        )


class RequestRouter:
    """Holder of the current snapshot of each model. Lives on the engine's loop.

    Args:
        last_epochs: the last epoch of each model recorded by an earlier process, so that none is used twice.
    """

    def __init__(self, clock: Clock, *, last_epochs: Mapping[str, int] = EMPTY) -> None:
        self._clock = clock
        self._snapshots: dict[str, RouteSnapshot] = {}
        self._epochs: dict[str, int] = dict(last_epochs)

    def snapshot(self, model_id: str) -> RouteSnapshot:
        """The snapshot in force.

        Raises:
            NoActiveVersion: nothing serves this model.
        """
        snapshot = self._snapshots.get(model_id)
        if snapshot is None:
            raise NoActiveVersion(
                f"model {model_id!r} has no active version; deploy one with "
                f"start_switch(target_version=…, strategy_type=SwitchingStrategyType.IMMEDIATE)"
            )
        return snapshot

    @property
    def snapshots(self) -> Mapping[str, RouteSnapshot]:
        """All snapshots in force, by model."""
        return dict(self._snapshots)

    def is_routed(self, model_id: str, version: str) -> bool:
        """Whether traffic may reach the version now."""
        snapshot = self._snapshots.get(model_id)
        return snapshot is not None and any(arm.version == version for arm in snapshot.arms)

    def commit(
        self,
        model_id: str,
        *,
        stable: tuple[str, ModelInstance],
        candidate: tuple[str, ModelInstance, float] | None = None,
        operation_id: str | None = None,
        step: int = 0,
        salt: str = "",
    ) -> RouteSnapshot:
        """Replace the model's snapshot; every later request sees the new one.

        Args:
            stable: version and instance that take what the candidate does not.
            candidate: version, instance and share (fraction 0–1).
            salt: names the experiment; the same salt assigns the same units to the candidate.
        """
        share = candidate[2] if candidate else 0.0
        epoch = self._next_epoch(model_id)
        snapshot = RouteSnapshot(
            model_id=model_id,
            epoch=epoch,
            stable=RoutedArm(STABLE, *stable, 1.0 - share),
            candidate=RoutedArm(CANDIDATE, candidate[0], candidate[1], share) if candidate else None,
            operation_id=operation_id,
            step=step,
            salt=salt,
            committed_at_s=self._clock.wall_s(),
            committed_mono_s=self._clock.monotonic_s(),
        )
        self._snapshots[model_id] = snapshot
        return snapshot

    def replace_instance(self, model_id: str, version: str, instance: ModelInstance) -> RouteSnapshot | None:
        """Put a restarted instance in the place of the one that died; None when the version is not routed."""
        current = self._snapshots.get(model_id)
        if current is None or not self.is_routed(model_id, version):
            return None
        renewed = replace(
            current,
            epoch=self._next_epoch(model_id),
            stable=_renewed(current.stable, version, instance),
            candidate=_renewed(current.candidate, version, instance) if current.candidate else None,
            committed_at_s=self._clock.wall_s(),
            committed_mono_s=self._clock.monotonic_s(),
        )
        self._snapshots[model_id] = renewed
        return renewed

    def _next_epoch(self, model_id: str) -> int:
        self._epochs[model_id] = self._epochs.get(model_id, 0) + 1
        return self._epochs[model_id]

    def withdraw(self, model_id: str) -> None:
        """Let nothing serve the model any more."""
        self._snapshots.pop(model_id, None)


def _renewed(arm: RoutedArm, version: str, instance: ModelInstance) -> RoutedArm:
    return replace(arm, instance=instance) if arm.version == version else arm
