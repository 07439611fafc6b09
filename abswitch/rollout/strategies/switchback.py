"""Versions take turns in blocks of time."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.strategies.base import MINUTE_S, MOST_STAGES, WHERE, BaseStrategy, Stage, coming_again

_LARGEST_SEED = 2**128 - 1
"""As large as those that NumPy draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchbackStrategy(BaseStrategy):
    """All traffic goes to one version at a time, in blocks of time whose order is drawn; never promoted by the clock.

    For live traffic on versions that both fit. Where one fits, `run_switchback` takes turns with its own requests.

    Args:
        block_minutes: how long a block lasts. Default 15; several times as long as the after-effects of a switch.
        blocks: an even number from 4 to 10,000; two adjacent ones make a pair, one for each version. Default 8.
        warmup_minutes: the start of each block, left out when blocks are compared. Default 0.
        seed: the order depends on it.

    Raises:
        InvalidInput: a field is outside its range.

    References:
        I. Bojinov, D. Simchi-Levi, J. Zhao, Management Science 69 (2023) 3759–3777.
    """

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.SWITCHBACK
    block_minutes: float = 15.0
    blocks: int = 8
    warmup_minutes: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        coming_again("block_minutes", self.block_minutes)
        checks.integer(f"{WHERE}.blocks", self.blocks, low=4, high=MOST_STAGES)
        if self.blocks % 2:
            raise InvalidInput(f"{WHERE}.blocks", self.blocks, "an even number: one for each version in every pair")
        checks.number(f"{WHERE}.warmup_minutes", self.warmup_minutes, low=0.0)
        if self.warmup_minutes >= self.block_minutes:
            allowed = f"below block_minutes ({self.block_minutes:g})"
            raise InvalidInput(f"{WHERE}.warmup_minutes", self.warmup_minutes, allowed)
        checks.integer(f"{WHERE}.seed", self.seed, low=0, high=_LARGEST_SEED)

    @property
    def order(self) -> tuple[str, ...]:
        """`baseline` or `candidate` of each block."""
        return _drawn_order(self.seed, self.blocks)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return _turns(self.seed, self.blocks, self.block_minutes * MINUTE_S)


@functools.lru_cache(maxsize=64)
def _drawn_order(seed: int, blocks: int) -> tuple[str, ...]:
    from abswitch.stats.switchback import SwitchbackSchedule

    schedule = SwitchbackSchedule(f"switchback-{seed}", block_s=1.0)  # its length has no part in the order
    return tuple(arm for pair in range(blocks // 2) for arm in schedule.order(pair))


@functools.lru_cache(maxsize=64)
def _turns(seed: int, blocks: int, hold_s: float) -> tuple[Stage, ...]:
    """Asked for at every event of a switchback."""
    return tuple(Stage(1.0 if arm == "candidate" else 0.0, hold_s) for arm in _drawn_order(seed, blocks))
