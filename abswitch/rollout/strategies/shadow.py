"""Copies of requests, unseen by users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.rollout.strategies.base import HOUR_S, MOST_COUNTED, MOST_HOURS, WHERE, BaseStrategy, Stage, lasting


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowStrategy(BaseStrategy):
    """The candidate answers copies of requests; users never see its answers, which are kept beside theirs.

    Copies never delay a request: above `max_in_flight` copies, further ones are left out and counted.

    Args:
        mirror_percentage: how many requests are copied, in percent. Default 100.
        test_duration_hours: afterwards the copying ends; None waits for `promote` or `keep`.
        keep_outputs: store both answers of each pair (also where the engine stores no text otherwise).
        max_in_flight: copies under way at most.

    Raises:
        InvalidInput: a field is outside its range.
    """

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.SHADOW
    mirror_percentage: float = 100.0
    test_duration_hours: float | None = None
    keep_outputs: bool = True
    max_in_flight: int = 16

    def __post_init__(self) -> None:
        checks.number(f"{WHERE}.mirror_percentage", self.mirror_percentage, low=0.0, high=100.0, above=True)
        if self.test_duration_hours is not None:
            lasting("test_duration_hours", self.test_duration_hours, MOST_HOURS)
        checks.flag(f"{WHERE}.keep_outputs", self.keep_outputs)
        checks.integer(f"{WHERE}.max_in_flight", self.max_in_flight, low=1, high=MOST_COUNTED)

    @property
    def stages(self) -> tuple[Stage, ...]:
        hold_s = None if self.test_duration_hours is None else self.test_duration_hours * HOUR_S
        return (Stage(0.0, hold_s, mirror=self.mirror_percentage / 100.0),)
