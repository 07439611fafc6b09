"""Shares follow what does better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.measured import ERROR_RATE, QUANTILES, refuse_near_miss
from abswitch.rollout.strategies.base import (
    HOUR_S,
    MINUTE_S,
    MOST_COUNTED,
    MOST_HOURS,
    WHERE,
    BaseStrategy,
    Stage,
    coming_again,
    lasting,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditStrategy(BaseStrategy):
    """Traffic follows what does better while that is being found out: Thompson sampling, batch by batch.

    Shares stay as they are for a batch; then each becomes the version's chance to be the better one, given all batches
    so far, mixed with a floor. Units are drawn anew with each batch, and every request's row has the chance it was
    drawn with (`propensity`), so that what was found can be told soundly afterwards (`aw_aipw_test`). It promotes
    nobody.

    Args:
        reward: a scorer of 0 and 1, or `error_rate` (of which less is better); scores may be recorded by hand.
        direction: `increase` or `decrease`, whichever is better; by default `decrease` for `error_rate`.
        initial_percentage: the candidate's share in the first batch, in percent. Default 50.
        floor_percentage: neither version's share falls below it, in percent. Default 5, at most 50.
        batch_minutes: how long shares stay as they are. Default 15.
        min_rewards: of a version, below which shares stay where they are. Default 10.
        max_duration_hours: afterwards traffic returns to the stable version; None (the default) waits for `promote` or
            `keep`.

    Raises:
        InvalidInput: a field is outside its range.

    References:
        W. R. Thompson, Biometrika 25 (1933) 285–294.
    """

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.BANDIT
    redraws: ClassVar[bool] = True
    reward: str = ERROR_RATE
    direction: str = ""
    initial_percentage: float = 50.0
    floor_percentage: float = 5.0
    batch_minutes: float = 15.0
    min_rewards: int = 10
    max_duration_hours: float | None = None

    def __post_init__(self) -> None:
        checks.name(f"{WHERE}.reward", self.reward)
        if self.reward in QUANTILES:
            raise InvalidInput(f"{WHERE}.reward", self.reward, "a scorer of 0 and 1, or error_rate")
        refuse_near_miss(f"{WHERE}.reward", self.reward)
        if self.direction == "":
            object.__setattr__(self, "direction", "decrease" if self.reward == ERROR_RATE else "increase")
        checks.one_of(f"{WHERE}.direction", self.direction, ("increase", "decrease"))
        checks.number(f"{WHERE}.floor_percentage", self.floor_percentage, low=0.0, high=50.0, above=True)
        checks.number(f"{WHERE}.initial_percentage", self.initial_percentage, low=0.0, high=100.0)
        if not self.floor_percentage <= self.initial_percentage <= 100.0 - self.floor_percentage:
            allowed = (
                f"{self.floor_percentage:g} to {100.0 - self.floor_percentage:g}, as neither falls below the floor"
            )
            raise InvalidInput(f"{WHERE}.initial_percentage", self.initial_percentage, allowed)
        coming_again("batch_minutes", self.batch_minutes)
        checks.integer(f"{WHERE}.min_rewards", self.min_rewards, low=1, high=MOST_COUNTED)
        if self.max_duration_hours is not None:
            lasting("max_duration_hours", self.max_duration_hours, MOST_HOURS)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.initial_percentage / 100.0, self.batch_minutes * MINUTE_S, judged=True),)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.reward,)

    @property
    def deadline_s(self) -> float | None:
        return None if self.max_duration_hours is None else self.max_duration_hours * HOUR_S
