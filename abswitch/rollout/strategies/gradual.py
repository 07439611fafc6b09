"""A ramp by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import ClassVar

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.strategies.base import EXACT, MINUTE_S, MOST_MINUTES, WHERE, AtEnd, BaseStrategy, Stage, lasting

_MOST_STEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class GradualStrategy(BaseStrategy):
    """The candidate's share grows by the clock until it has everything: a ramp without a judge.

    A breach of the critical alert thresholds brings traffic back at any time; for a ramp that must earn each step, use
    `CanaryStrategy`.

    Args:
        duration_minutes: of the whole ramp, in equal steps. Default 30, or the sum of `minutes`.
        steps: how many, at most 1000; 3, the default, means 33 → 67 → 100 %. With `percentages`, their number.
        percentages: explicit shares in percent, rising, the last one 100, instead of `steps`.
        minutes: how long each of `percentages` holds, instead of `duration_minutes`.

    Raises:
        InvalidInput: a field is outside its range, or the two ways are mixed and do not say the same.
    """

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.GRADUAL
    at_end: ClassVar[AtEnd] = AtEnd.PROMOTE
    duration_minutes: float | None = None
    steps: int | None = None
    percentages: tuple[float, ...] = ()
    minutes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.duration_minutes is not None:
            lasting("duration_minutes", self.duration_minutes, MOST_MINUTES)
        if self.steps is not None:
            checks.integer(f"{WHERE}.steps", self.steps, low=1, high=_MOST_STEPS)
        object.__setattr__(self, "percentages", _numbers("percentages", self.percentages, high=100.0))
        object.__setattr__(self, "minutes", _numbers("minutes", self.minutes, high=MOST_MINUTES))
        shares = self.percentages
        if shares and (shares[-1] != 100.0 or any(b <= a for a, b in pairwise(shares))):
            raise InvalidInput(f"{WHERE}.percentages", shares, "rising numbers, the last one 100")
        if self.minutes and len(self.minutes) != len(shares):
            raise InvalidInput(f"{WHERE}.minutes", self.minutes, f"one for each of percentages ({len(shares)})")
        self._settle()

    def _settle(self) -> None:
        """What was left out follows from the rest; what was given beside it must say the same."""
        steps, duration = len(self.percentages), sum(self.minutes)
        if self.steps is not None and steps not in (0, self.steps):
            raise InvalidInput(f"{WHERE}.steps", self.steps, f"left out, as percentages say the {steps} steps")
        if self.duration_minutes is not None and self.minutes and abs(duration - self.duration_minutes) > EXACT:
            allowed = f"left out, as minutes say how long each step holds ({duration:g} in all)"
            raise InvalidInput(f"{WHERE}.duration_minutes", self.duration_minutes, allowed)
        if self.steps is None:
            object.__setattr__(self, "steps", steps or 3)
        if self.duration_minutes is None:
            object.__setattr__(self, "duration_minutes", float(duration) or 30.0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        assert self.steps is not None and self.duration_minutes is not None, "set when it was made"
        shares = self.percentages or tuple(100.0 * (step + 1) / self.steps for step in range(self.steps))
        each = (self.duration_minutes / len(shares),) * len(shares)
        return tuple(Stage(s / 100.0, m * MINUTE_S) for s, m in zip(shares, self.minutes or each, strict=True))


def _numbers(name: str, given: object, *, high: float) -> tuple[float, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidInput(f"{WHERE}.{name}", given, "a list of numbers")
    first = tuple(islice(given, _MOST_STEPS + 1))
    if len(first) > _MOST_STEPS:
        raise InvalidInput(f"{WHERE}.{name}", given, f"at most {_MOST_STEPS} numbers")
    return tuple(checks.number(f"{WHERE}.{name}", one, low=0.0, high=high, above=True) for one in first)
