"""Strategies as frozen values: a list of stages, and what happens after the last one. A module for each.

A strategy never acts or waits; the machine in `machine.py` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.strategies.ab_test import ABTestStrategy
from abswitch.rollout.strategies.bandit import BanditStrategy
from abswitch.rollout.strategies.base import MOST_STAGES, WHERE, AtEnd, Stage
from abswitch.rollout.strategies.canary import SEQUENTIAL, THRESHOLDS, CanaryStrategy
from abswitch.rollout.strategies.gradual import GradualStrategy
from abswitch.rollout.strategies.immediate import ImmediateStrategy
from abswitch.rollout.strategies.shadow import ShadowStrategy
from abswitch.rollout.strategies.switchback import SwitchbackStrategy

__all__ = [
    "MOST_STAGES",
    "SEQUENTIAL",
    "STRATEGIES",
    "THRESHOLDS",
    "ABTestStrategy",
    "AtEnd",
    "BanditStrategy",
    "CanaryStrategy",
    "GradualStrategy",
    "ImmediateStrategy",
    "ShadowStrategy",
    "Stage",
    "Strategy",
    "SwitchbackStrategy",
    "strategy_of",
]

Strategy = (
    ImmediateStrategy
    | GradualStrategy
    | CanaryStrategy
    | ABTestStrategy
    | ShadowStrategy
    | SwitchbackStrategy
    | BanditStrategy
)

STRATEGIES: Mapping[SwitchingStrategyType, type[Strategy]] = {cls.type: cls for cls in get_args(Strategy)}


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
    cls = STRATEGIES[kind]
    if isinstance(strategy_config, cls):
        return strategy_config
    if strategy_config is None:
        return cls()
    if not isinstance(strategy_config, Mapping):
        raise InvalidInput(WHERE, strategy_config, f"a dictionary, or a {cls.__name__}")
    checks.known_fields(WHERE, strategy_config, (f.name for f in fields(cls)))
    return cls(**strategy_config)
