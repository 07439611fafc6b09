"""Fixed shares until somebody, or a plan, concludes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.strategies.base import (
    EXACT,
    HOUR_S,
    MINUTE_S,
    MOST_HOURS,
    WHERE,
    BaseStrategy,
    Stage,
    coming_again,
    lasting,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ABTestStrategy(BaseStrategy):
    """The candidates get fixed shares until the test is concluded; never promoted by the clock.

    Args:
        traffic_percentage: the candidate's share in percent, above 0 and at most 100. Default 50, which gives the most
            evidence per request of two arms; with `arms`, their sum.
        test_duration_hours: afterwards traffic returns to the stable version; None (the default) waits for
            `promote` or `keep`.
        arms: several candidates at once: version → share in percent; the stable version takes the rest. The switch's
            target must be one of them.
        evaluation_period_minutes: how often the judge given to `start_switch` looks, or without one the test's plan is
            applied, and ends it with its verdict; None (the default) never.

    Raises:
        InvalidInput: a field is outside its range, or the shares exceed 100 %.
    """

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.AB_TEST
    traffic_percentage: float | None = None
    test_duration_hours: float | None = None
    arms: tuple[tuple[str, float], ...] = ()
    evaluation_period_minutes: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", _arms(self.arms))
        total = sum(share for _, share in self.arms) if self.arms else None
        given = self.traffic_percentage
        if given is None:
            given = 50.0 if total is None else total
        checks.number(f"{WHERE}.traffic_percentage", given, low=0.0, high=100.0, above=True)
        if total is not None and abs(total - given) > EXACT:
            raise InvalidInput(f"{WHERE}.traffic_percentage", given, f"the sum of arms ({total:g}), or left out")
        object.__setattr__(self, "traffic_percentage", float(given))
        if self.test_duration_hours is not None:
            lasting("test_duration_hours", self.test_duration_hours, MOST_HOURS)
        if self.evaluation_period_minutes is not None:
            coming_again("evaluation_period_minutes", self.evaluation_period_minutes)

    @property
    def stages(self) -> tuple[Stage, ...]:
        assert self.traffic_percentage is not None, "set when it was made"
        share = self.traffic_percentage / 100.0
        if self.evaluation_period_minutes is not None:
            return (Stage(share, self.evaluation_period_minutes * MINUTE_S, judged=True),)
        return (Stage(share, None if self.test_duration_hours is None else self.test_duration_hours * HOUR_S),)

    @property
    def deadline_s(self) -> float | None:
        judged = self.evaluation_period_minutes is not None and self.test_duration_hours is not None
        return self.test_duration_hours * HOUR_S if judged and self.test_duration_hours else None

    def candidates(self, target: str) -> tuple[tuple[str, float], ...]:
        if not self.arms:
            return ((target, 1.0),)
        if target not in dict(self.arms):
            raise InvalidInput(f"{WHERE}.arms", tuple(dict(self.arms)), f"arms that include the target {target!r}")
        total = sum(share for _, share in self.arms)
        first = [arm for arm in self.arms if arm[0] == target]
        return tuple((v, share / total) for v, share in first + [arm for arm in self.arms if arm[0] != target])


def _arms(given: object) -> tuple[tuple[str, float], ...]:
    where = f"{WHERE}.arms"
    pairs = tuple(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not all(map(_is_pair, pairs)):
        raise InvalidInput(where, given, "a dictionary version → share in percent")
    arms = tuple(
        (checks.name(f"{where} (a version)", version), checks.number(f"{where}.{version}", share, low=0.0, above=True))
        for version, share in pairs
    )
    often = [version for version, times in Counter(version for version, _ in arms).items() if times > 1]
    if often:  # two names of one version come here, too, once aliases are versions
        raise InvalidInput(where, arms, f"every version once, under one of its names; not {', '.join(often)} twice")
    if sum(share for _, share in arms) > 100.0 + EXACT:
        raise InvalidInput(where, dict(arms), "shares that sum to at most 100")
    return arms


def _is_pair(one: object) -> bool:
    return isinstance(one, Sequence) and not isinstance(one, str) and len(one) == 2
