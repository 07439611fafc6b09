"""One switch as values: the operation, what can happen to it (events), and what it wants done (effects)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from abswitch.rollout.strategies import Strategy


class Phase(StrEnum):
    """Where an operation stands; the last four are final."""

    PENDING = "pending"
    LOADING = "loading"
    WARMING = "warming"
    SHIFTING = "shifting"
    EVALUATING = "evaluating"
    PAUSED = "paused"
    PROMOTING = "promoting"
    ROLLING_BACK = "rolling back"
    DRAINING = "draining"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled back"
    ABORTED = "aborted"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.ABORTED, Phase.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One switch, from the stable version to the candidate.

    Attributes:
        stable: the active version when it began; None for a model's first deployment.
        stage: index into the strategy's stages.
        share: the candidate's share as last committed, fraction 0–1.
        epoch: grows with every phase; reports of earlier work and timers carry an older one and are dropped.
        ending: the final phase that follows the drain under way.
        promoted: the candidate is the active version.
        reason: why the last move was made, in words.
    """

    operation_id: str
    model_id: str
    stable: str | None
    candidate: str
    strategy: Strategy
    phase: Phase = Phase.PENDING
    stage: int = 0
    share: float = 0.0
    epoch: int = 0
    ending: Phase | None = None
    promoted: bool = False
    reason: str = "requested"
    created_s: float = 0.0
    phase_since_s: float = 0.0


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `epoch` is set on answers to effects and on timers, None on commands and facts."""

    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Event):
    """The operation may begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Event):
    """The candidate is able to serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed(Event):
    """The candidate could not be loaded."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed(Event):
    """The candidate generated a real token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmFailed(Event):
    """The candidate is loaded but generated nothing."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed(Event):
    """The wanted routing snapshot is in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFailed(Event):
    """The wanted routing snapshot could not be put in force."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageElapsed(Event):
    """The stage's time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclude(Event):
    """A person or a verdict decides: promote the candidate, or keep the stable version."""

    promote: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(Event):
    """Hold the shares as they are."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Event):
    """Go on with the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Event):
    """Back to the stable version, now."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateLost(Event):
    """The candidate's process or server went away."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained(Event):
    """No request holds the version that left, or the deadline passed with `left` still held (they finish on it)."""

    left: int = 0


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effect:
    """Something the controller must do; `answers` names the events that report back."""

    answers: ClassVar[tuple[type[Event], ...]] = ()


@dataclass(frozen=True, slots=True)
class Load(Effect):
    """Make the version able to serve."""

    answers = (Loaded, LoadFailed)
    version: str


@dataclass(frozen=True, slots=True)
class Warm(Effect):
    """Have the version generate one real token."""

    answers = (Warmed, WarmFailed)
    version: str


@dataclass(frozen=True, slots=True)
class Route(Effect):
    """Put a routing snapshot in force: the candidate at `share`, the rest stable.

    `active` names the version that serves the model once the operation is over; None withdraws the model's route.
    """

    answers = (Routed, RouteFailed)
    active: str | None
    candidate: str | None
    share: float


@dataclass(frozen=True, slots=True)
class Drain(Effect):
    """Report when no request holds the version any more."""

    answers = (Drained,)
    version: str | None


@dataclass(frozen=True, slots=True)
class SetTimer(Effect):
    """Report `StageElapsed` after `delay_s`."""

    answers = (StageElapsed,)
    delay_s: float


@dataclass(frozen=True, slots=True)
class Unpin(Effect):
    """The operation no longer needs the version; the cache may give its memory to others."""

    version: str
