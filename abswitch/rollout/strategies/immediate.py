"""Everything at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.rollout.strategies.base import WHERE, AtEnd, BaseStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class ImmediateStrategy(BaseStrategy):
    """All traffic moves at once, as soon as the candidate generated a real token.

    Args:
        drain_first: for a machine on which the two versions do not fit together: the stable version finishes what it
            began and leaves, then the candidate is loaded; requests that come meanwhile wait, none is lost.
        in_place: the candidate's weights are put into the stable version's engine once that has finished what it began:
            for checkpoints of one architecture, much quicker than another engine. Requests that come meanwhile wait.
    """

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.IMMEDIATE
    at_end: ClassVar[AtEnd] = AtEnd.PROMOTE
    needs_stable: ClassVar[bool] = False
    drain_first: bool = False
    in_place: bool = False

    def __post_init__(self) -> None:
        checks.flag(f"{WHERE}.drain_first", self.drain_first)
        checks.flag(f"{WHERE}.in_place", self.in_place)

    @property
    def drains_first(self) -> bool:
        return self.drain_first or self.in_place

    @property
    def swaps(self) -> bool:
        return self.in_place
