"""A ramp that a judge lets go on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.judging import Guardrail
from abswitch.rollout.strategies.base import (
    EXACT,
    HOUR_S,
    MINUTE_S,
    MOST_COUNTED,
    MOST_HOURS,
    MOST_STAGES,
    WHERE,
    AtEnd,
    BaseStrategy,
    Stage,
    coming_again,
    lasting,
)

SEQUENTIAL, THRESHOLDS = "sequential", "thresholds"
"""How a canary's evidence is judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryStrategy(BaseStrategy):
    """The candidate starts small and earns every step: a judge looks at its evidence and says advance, hold or back.

    It is never promoted by the clock, and never without evidence.

    Args:
        initial_percentage: share of the first step, in percent. Default 5.
        step_percentage: how much each further step adds, in percent; at most 10,000 steps. Default 15.
        evaluation_period_minutes: how long a step holds before it is judged, and before it is judged again.
        max_error_rate_threshold: the candidate's share of failed requests (fraction 0–1) that is still accepted.
        min_requests: answers of the candidate in a step, below which it is not judged good.
        max_duration_hours: afterwards traffic returns to the stable version, whatever was found. Default 24.
        guardrails: further limits, see `Guardrail`; all must hold.
        evaluation: `sequential` (the default) goes back on shown harm, and is promoted on shown safety, whatever number
            of looks it takes, see `SequentialJudge`. `thresholds` compares bare values with the limits once there are
            `min_requests`, see `ThresholdJudge`: quick, and wrong as often as noise has it.
        alpha: of `sequential`: chance that a candidate as good as the stable version goes back, and that one beyond a
            limit is promoted; in (0, 0.5]. Default 0.05.

    Raises:
        InvalidInput: a field is outside its range, or the steps do not fit into `max_duration_hours`.
    """

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.CANARY
    at_end: ClassVar[AtEnd] = AtEnd.PROMOTE
    initial_percentage: float = 5.0
    step_percentage: float = 15.0
    evaluation_period_minutes: float = 15.0
    max_error_rate_threshold: float = 0.05
    min_requests: int = 50
    max_duration_hours: float = 24.0
    guardrails: tuple[Guardrail, ...] = ()
    evaluation: str = SEQUENTIAL
    alpha: float = 0.05

    def __post_init__(self) -> None:
        for name, high in (("initial_percentage", 100.0), ("step_percentage", 100.0)):
            checks.number(f"{WHERE}.{name}", getattr(self, name), low=0.0, high=high, above=True)
        lasting("max_duration_hours", self.max_duration_hours, MOST_HOURS)
        if (100.0 - self.initial_percentage) / self.step_percentage > MOST_STAGES:
            allowed = f"enough for at most {MOST_STAGES} steps from {self.initial_percentage:g} to 100"
            raise InvalidInput(f"{WHERE}.step_percentage", self.step_percentage, allowed)
        coming_again("evaluation_period_minutes", self.evaluation_period_minutes)
        checks.share(f"{WHERE}.max_error_rate_threshold", self.max_error_rate_threshold)
        checks.integer(f"{WHERE}.min_requests", self.min_requests, low=1, high=MOST_COUNTED)
        checks.one_of(f"{WHERE}.evaluation", self.evaluation, (SEQUENTIAL, THRESHOLDS))
        checks.number(f"{WHERE}.alpha", self.alpha, low=0.0, high=0.5, above=True)
        object.__setattr__(self, "guardrails", Guardrail.all_of(f"{WHERE}.guardrails", self.guardrails))
        needed = len(self.stages) * self.evaluation_period_minutes / 60.0
        if self.max_duration_hours < needed:
            raise InvalidInput(
                f"{WHERE}.max_duration_hours",
                self.max_duration_hours,
                f"at least {needed:g}: {len(self.stages)} step(s) of {self.evaluation_period_minutes:g} minutes",
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        return _ramp(self.initial_percentage, self.step_percentage, self.evaluation_period_minutes * MINUTE_S)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(rail.metric for rail in self.guardrails)

    @property
    def deadline_s(self) -> float | None:
        return self.max_duration_hours * HOUR_S


@functools.lru_cache(maxsize=64)
def _ramp(first: float, step: float, hold_s: float) -> tuple[Stage, ...]:
    """Judged steps below 100 %; asked for at every event of a canary."""
    shares = [first]
    while shares[-1] + step < 100.0 - EXACT:
        shares.append(shares[-1] + step)
    return tuple(Stage(share / 100.0, hold_s, judged=True) for share in shares)
