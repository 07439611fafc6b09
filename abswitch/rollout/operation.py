"""One switch as values: the operation, what can happen to it (events), and what it wants done (effects)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from abswitch import checks
from abswitch.rollout.judging import Judgement
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
        candidate: the switch's target.
        stage: index into the strategy's stages.
        share: of units on candidates, as last committed, fraction 0–1.
        mirror: fraction of requests copied to the candidate, as last committed.
        epoch: grows with every phase; reports of earlier work and timers carry an older one and are dropped.
        evaluation: how often the stage was judged.
        exposed: traffic, or its copies, reached the candidate.
        detached: brought back after a crash; the stable version serves, and the stage's shares are not in force.
        ending: the final phase that follows the drain under way.
        winner: the candidate that is the active version now; None before a promotion, and after a way back.
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
    mirror: float = 0.0
    epoch: int = 0
    evaluation: int = 0
    exposed: bool = False
    detached: bool = False
    ending: Phase | None = None
    winner: str | None = None
    reason: str = "requested"
    created_s: float = 0.0
    phase_since_s: float = 0.0

    @property
    def promoted(self) -> bool:
        """Whether a candidate is the active version."""
        return self.winner is not None

    @property
    def arms(self) -> tuple[tuple[str, float], ...]:
        """The candidates and their parts of the candidates' share (they sum to 1), the target first."""
        return self.strategy.candidates(self.candidate)

    @property
    def shares(self) -> tuple[tuple[str, float], ...]:
        """Each version's share of units as last committed, the stable one first; after a promotion, the winner's."""
        if self.winner is not None:
            return ((self.winner, 1.0),)
        stable = () if self.stable is None else ((self.stable, 1.0 - self.share),)
        return stable + tuple((version, part * self.share) for version, part in self.arms)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The versions compared with the stable one, the target first."""
        return tuple(version for version, _ in self.arms)

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version that takes part, the stable one first; once each, should the candidate be the stable one."""
        return tuple(dict.fromkeys((() if self.stable is None else (self.stable,)) + self.candidates))

    @property
    def stays(self) -> str | None:
        """The version that serves the model when the operation ended as it stands."""
        return self.stable if self.winner is None else self.winner

    @property
    def leaving(self) -> tuple[str, ...]:
        """The versions that take part and do not stay."""
        return tuple(version for version in self.versions if version != self.stays)


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `epoch` is set on answers to effects and on timers, None on commands and facts."""

    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoned(Event):
    """Something that happened for a reason, in words. They come from people and from errors, and end up in the journal.

    Raises:
        InvalidInput: the reason is no text; what cannot be written down would stay undecided for good.
    """

    reason: str

    def __post_init__(self) -> None:
        told = checks.text("reason", self.reason)
        if told is not self.reason:
            object.__setattr__(self, "reason", told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Event):
    """The operation may begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Event):
    """The candidate is able to serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed(Reasoned):
    """The candidate could not be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed(Event):
    """The candidate generated a real token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmFailed(Reasoned):
    """The candidate is loaded but generated nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed(Event):
    """The wanted routing snapshot is in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFailed(Reasoned):
    """The wanted routing snapshot could not be put in force; `serving` is the promoted candidate that still serves."""

    serving: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageElapsed(Event):
    """The stage's time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Event):
    """The judge answered about the stage; when it could not, the judgement says hold."""

    judgement: Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineElapsed(Event):
    """The strategy's longest duration is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclude(Reasoned):
    """A person or a verdict decides: promote a candidate (None: the target), or keep the stable version."""

    promote: bool
    version: str | None = None

    def __post_init__(self) -> None:
        checks.flag("promote", self.promote)  # whoever writes "no" must not promote
        Reasoned.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(Reasoned):
    """Hold the shares as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Event):
    """Go on with the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Reasoned):
    """Back to the stable version, now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateLost(Reasoned):
    """A candidate's process or server went away; `version` is the candidate, None means the one that is decided on."""

    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breached(Reasoned):
    """A candidate that serves broke a critical limit; `version` as in `CandidateLost`."""

    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained(Event):
    """No request holds a version that left, or the deadline passed with `left` still held (they finish on it)."""

    left: int = 0


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effect:
    """Something the controller must do; `answers` names the events that report back."""

    answers: ClassVar[tuple[type[Event], ...]] = ()


@dataclass(frozen=True, slots=True)
class Load(Effect):
    """Make the versions able to serve, and the stable one with them.

    `instead_of` names a version that must leave first: requests wait from here on until the next `Route`.
    """

    answers = (Loaded, LoadFailed)
    versions: tuple[str, ...]
    instead_of: str | None = None


@dataclass(frozen=True, slots=True)
class Warm(Effect):
    """Have each version generate real tokens."""

    answers = (Warmed, WarmFailed)
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route(Effect):
    """Put a routing snapshot in force: each of `arms` at its share, the rest stable.

    `active` names the version that serves the model once the operation is over; None withdraws the model's route.
    `mirror` is the fraction of requests copied to `shadow`.
    """

    answers = (Routed, RouteFailed)
    active: str | None
    arms: tuple[tuple[str, float], ...] = ()
    share: float = 0.0
    shadow: str | None = None
    mirror: float = 0.0


@dataclass(frozen=True, slots=True)
class Withdraw(Effect):
    """Take what the operation routes beside the stable version out of the route, although no way back could be brought
    up: the stable version keeps all traffic, dead as it may be, and is started again like any other."""


@dataclass(frozen=True, slots=True)
class Drain(Effect):
    """Report when no request holds any of the versions any more."""

    answers = (Drained,)
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetTimer(Effect):
    """Report `StageElapsed` after `delay_s`."""

    answers = (StageElapsed,)
    delay_s: float


@dataclass(frozen=True, slots=True)
class SetDeadline(Effect):
    """Report `DeadlineElapsed` after `delay_s`, whatever phase the operation is in then."""

    answers = (DeadlineElapsed,)
    delay_s: float


@dataclass(frozen=True, slots=True)
class AskJudge(Effect):
    """Give the stage's evidence to the judge."""

    answers = (Judged,)
    stage: int
    evaluation: int


@dataclass(frozen=True, slots=True)
class Unpin(Effect):
    """The operation no longer needs the versions; the cache may give their memory to others."""

    versions: tuple[str, ...]
