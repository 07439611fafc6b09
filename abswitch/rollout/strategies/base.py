"""What every strategy is made of: stages, what follows the last one, and limits that several of them share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput

WHERE = "strategy_config"
MINUTE_S = 60.0
HOUR_S = 3600.0
EXACT = 1e-9
"""Numbers of percent or minutes that differ by no more are the same."""
MOST_STAGES = 10_000
"""Steps of a canary, or blocks of a switchback, at most: a week of blocks of one minute. All of them are made at once,
and without a limit a slip of the pen would have the engine stand still."""
MOST_HOURS = 87_600.0
"""Ten years: what lasts longer is left out, or given as None, where that is allowed."""
MOST_MINUTES = 60.0 * MOST_HOURS
MOST_COUNTED = 1_000_000_000
_LEAST_PERIOD_S = 0.01
"""Of what comes again and again: each time is a look by a judge, or a new route, and moves that are written down."""


class AtEnd(StrEnum):
    """What follows the last stage when nobody concluded the operation before."""

    PROMOTE = "promote"
    RETURN = "return to stable"


@dataclass(frozen=True, slots=True)
class Stage:
    """What holds for a while.

    Attributes:
        share: of units on candidates, fraction 0–1.
        hold_s: how long; None holds until somebody concludes.
        judged: when its time is over a judge decides, instead of the next stage simply following.
        mirror: fraction of requests whose copy goes to the candidate, unseen by users.
    """

    share: float
    hold_s: float | None
    judged: bool = False
    mirror: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseStrategy:
    """What the machine needs to know of any strategy; the defaults are those of a plain one."""

    type: ClassVar[SwitchingStrategyType]
    at_end: ClassVar[AtEnd] = AtEnd.RETURN
    needs_stable: ClassVar[bool] = True
    redraws: ClassVar[bool] = False
    """Whether units are drawn anew whenever the shares change."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages in order; none means: straight to promotion."""
        return ()

    @property
    def deadline_s(self) -> float | None:
        """From the first exposure; afterwards traffic returns to the stable version. None: there is none."""
        return None

    @property
    def drains_first(self) -> bool:
        """Whether the stable version leaves before the candidate is loaded; requests wait meanwhile."""
        return False

    @property
    def swaps(self) -> bool:
        """Whether the candidate takes over the stable version's engine."""
        return False

    @property
    def metrics(self) -> tuple[str, ...]:
        """What its judge asks for by name."""
        return ()

    def candidates(self, target: str) -> tuple[tuple[str, float], ...]:
        """The versions compared with the stable one, and their parts of the candidates' share (they sum to 1)."""
        return ((target, 1.0),)


def lasting(name: str, value: object, most: float) -> None:
    """Refuse a duration that is not above 0 and at most `most`."""
    checks.number(f"{WHERE}.{name}", value, low=0.0, high=most, above=True)


def coming_again(name: str, minutes: object) -> None:
    """Refuse a period that is too short to look again after each, or longer than anything may last."""
    if checks.number(f"{WHERE}.{name}", minutes, low=0.0, high=MOST_MINUTES, above=True) * MINUTE_S < _LEAST_PERIOD_S:
        raise InvalidInput(f"{WHERE}.{name}", minutes, f"at least {_LEAST_PERIOD_S:g} seconds, in minutes")
