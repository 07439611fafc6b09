"""Strategies as frozen values: a list of stages, and what happens after the last one.

A strategy never acts or waits; the machine in `machine.py` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput


class AtEnd(StrEnum):
    """What follows the last stage when nobody concluded the operation before."""

    PROMOTE = "promote"
    RETURN = "return to stable"


@dataclass(frozen=True, slots=True)
class Stage:
    """A candidate share (fraction 0–1) and how long it holds; None holds until somebody concludes."""

    share: float
    hold_s: float | None


class Strategy(Protocol):
    """What the machine needs to know."""

    @property
    def type(self) -> SwitchingStrategyType:
        """Its public name."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages in order; none means: straight to promotion."""

    @property
    def at_end(self) -> AtEnd:
        """What follows the last stage."""

    @property
    def needs_stable(self) -> bool:
        """Whether there must be an active version to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImmediateStrategy:
    """All traffic moves at once, as soon as the candidate generated a real token."""

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.IMMEDIATE
    stages: ClassVar[tuple[Stage, ...]] = ()
    at_end: ClassVar[AtEnd] = AtEnd.PROMOTE
    needs_stable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ABTestStrategy:
    """The candidate gets a fixed share until the test is concluded; never promoted by the clock.

    Args:
        traffic_percentage: the candidate's share in percent, above 0 and at most 100. Default 50, which gives the most
            evidence per request.
        test_duration_hours: afterwards traffic returns to the stable version; None (the default) waits for
            `promote` or `keep`.

    Raises:
        InvalidInput: a field is outside its range.
    """

    type: ClassVar[SwitchingStrategyType] = SwitchingStrategyType.AB_TEST
    at_end: ClassVar[AtEnd] = AtEnd.RETURN
    needs_stable: ClassVar[bool] = True
    traffic_percentage: float = 50.0
    test_duration_hours: float | None = None

    def __post_init__(self) -> None:
        checks.number("strategy_config.traffic_percentage", self.traffic_percentage, low=0.0, high=100.0, above=True)
        if self.test_duration_hours is not None:
            checks.number("strategy_config.test_duration_hours", self.test_duration_hours, low=0.0, above=True)

    @property
    def stages(self) -> tuple[Stage, ...]:
        hold_s = None if self.test_duration_hours is None else self.test_duration_hours * 3600.0
        return (Stage(self.traffic_percentage / 100.0, hold_s),)


_BY_TYPE: Mapping[SwitchingStrategyType, type[ImmediateStrategy] | type[ABTestStrategy]] = {
    SwitchingStrategyType.IMMEDIATE: ImmediateStrategy,
    SwitchingStrategyType.AB_TEST: ABTestStrategy,
}


def strategy_of(
    strategy_type: SwitchingStrategyType | str,
    strategy_config: Mapping[str, Any] | Strategy | None = None,
) -> Strategy:
    """Build a strategy from its public name and the documented dictionary, or check one that is already typed.

    Raises:
        InvalidInput: unknown strategy, unknown field, or a value outside its range.
    """
    kind = SwitchingStrategyType(
        checks.one_of("strategy_type", strategy_type, (t.value for t in SwitchingStrategyType))
    )
    cls = _BY_TYPE[kind]
    if isinstance(strategy_config, cls):
        return strategy_config
    if strategy_config is None:
        return cls()
    if not isinstance(strategy_config, Mapping):
        raise InvalidInput("strategy_config", strategy_config, f"a dictionary, or a {cls.__name__}")
    checks.known_fields("strategy_config", strategy_config, (f.name for f in fields(cls)))
    return cls(**strategy_config)
