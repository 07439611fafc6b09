"""Strategies as frozen values: a list of stages, and what happens after the last one.

A strategy never acts or waits; the machine in `machine.py` reads it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import islice, pairwise
from typing import Any, ClassVar, get_args

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.judging import Guardrail
from abswitch.rollout.measured import ERROR_RATE, QUANTILES, refuse_near_miss

_WHERE = "strategy_config"
_MIN_S = 60.0
_HOUR_S = 3600.0
_EXACT = 1e-9
MOST_STAGES = 10_000
"""Steps of a canary, or blocks of a switchback, at most: a week of blocks of one minute. All of them are made at once,
and without a limit a slip of the pen would have the engine stand still."""
_MOST_STEPS = 1000
_MOST_HOURS = 87_600.0
"""Ten years: what lasts longer is left out, or given as None, where that is allowed."""
_MOST_MINUTES = 60.0 * _MOST_HOURS
_LEAST_PERIOD_S = 0.01
"""Of what comes again and again: each time is a look by a judge, or a new route, and moves that are written down."""
_MOST_COUNTED = 1_000_000_000
_LARGEST_SEED = 2**128 - 1
"""As large as those that NumPy draws."""
SEQUENTIAL, THRESHOLDS = "sequential", "thresholds"
"""How a canary's evidence is judged."""


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
class _Strategy:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImmediateStrategy(_Strategy):
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
        checks.flag(f"{_WHERE}.drain_first", self.drain_first)
        checks.flag(f"{_WHERE}.in_place", self.in_place)

    @property
    def drains_first(self) -> bool:
        return self.drain_first or self.in_place

    @property
    def swaps(self) -> bool:
        return self.in_place


@dataclass(frozen=True, slots=True, kw_only=True)
class GradualStrategy(_Strategy):
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
            _lasting("duration_minutes", self.duration_minutes, _MOST_MINUTES)
        if self.steps is not None:
            checks.integer(f"{_WHERE}.steps", self.steps, low=1, high=_MOST_STEPS)
        object.__setattr__(self, "percentages", _numbers("percentages", self.percentages, high=100.0))
        object.__setattr__(self, "minutes", _numbers("minutes", self.minutes, high=_MOST_MINUTES))
        shares = self.percentages
        if shares and (shares[-1] != 100.0 or any(b <= a for a, b in pairwise(shares))):
            raise InvalidInput(f"{_WHERE}.percentages", shares, "rising numbers, the last one 100")
        if self.minutes and len(self.minutes) != len(shares):
            raise InvalidInput(f"{_WHERE}.minutes", self.minutes, f"one for each of percentages ({len(shares)})")
        self._settle()

    def _settle(self) -> None:
        """What was left out follows from the rest; what was given beside it must say the same."""
        steps, duration = len(self.percentages), sum(self.minutes)
        if self.steps is not None and steps not in (0, self.steps):
            raise InvalidInput(f"{_WHERE}.steps", self.steps, f"left out, as percentages say the {steps} steps")
        if self.duration_minutes is not None and self.minutes and abs(duration - self.duration_minutes) > _EXACT:
            allowed = f"left out, as minutes say how long each step holds ({duration:g} in all)"
            raise InvalidInput(f"{_WHERE}.duration_minutes", self.duration_minutes, allowed)
        if self.steps is None:
            object.__setattr__(self, "steps", steps or 3)
        if self.duration_minutes is None:
            object.__setattr__(self, "duration_minutes", float(duration) or 30.0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        assert self.steps is not None and self.duration_minutes is not None, "set when it was made"
        shares = self.percentages or tuple(100.0 * (step + 1) / self.steps for step in range(self.steps))
        each = (self.duration_minutes / len(shares),) * len(shares)
        return tuple(Stage(s / 100.0, m * _MIN_S) for s, m in zip(shares, self.minutes or each, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryStrategy(_Strategy):
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
            checks.number(f"{_WHERE}.{name}", getattr(self, name), low=0.0, high=high, above=True)
        _lasting("max_duration_hours", self.max_duration_hours, _MOST_HOURS)
        if (100.0 - self.initial_percentage) / self.step_percentage > MOST_STAGES:
            allowed = f"enough for at most {MOST_STAGES} steps from {self.initial_percentage:g} to 100"
            raise InvalidInput(f"{_WHERE}.step_percentage", self.step_percentage, allowed)
        _coming_again("evaluation_period_minutes", self.evaluation_period_minutes)
        checks.share(f"{_WHERE}.max_error_rate_threshold", self.max_error_rate_threshold)
        checks.integer(f"{_WHERE}.min_requests", self.min_requests, low=1, high=_MOST_COUNTED)
        checks.one_of(f"{_WHERE}.evaluation", self.evaluation, (SEQUENTIAL, THRESHOLDS))
        checks.number(f"{_WHERE}.alpha", self.alpha, low=0.0, high=0.5, above=True)
        object.__setattr__(self, "guardrails", Guardrail.all_of(f"{_WHERE}.guardrails", self.guardrails))
        needed = len(self.stages) * self.evaluation_period_minutes / 60.0
        if self.max_duration_hours < needed:
            raise InvalidInput(
                f"{_WHERE}.max_duration_hours",
                self.max_duration_hours,
                f"at least {needed:g}: {len(self.stages)} step(s) of {self.evaluation_period_minutes:g} minutes",
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        return _ramp(self.initial_percentage, self.step_percentage, self.evaluation_period_minutes * _MIN_S)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(rail.metric for rail in self.guardrails)

    @property
    def deadline_s(self) -> float | None:
        return self.max_duration_hours * _HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ABTestStrategy(_Strategy):
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
        checks.number(f"{_WHERE}.traffic_percentage", given, low=0.0, high=100.0, above=True)
        if total is not None and abs(total - given) > _EXACT:
            raise InvalidInput(f"{_WHERE}.traffic_percentage", given, f"the sum of arms ({total:g}), or left out")
        object.__setattr__(self, "traffic_percentage", float(given))
        if self.test_duration_hours is not None:
            _lasting("test_duration_hours", self.test_duration_hours, _MOST_HOURS)
        if self.evaluation_period_minutes is not None:
            _coming_again("evaluation_period_minutes", self.evaluation_period_minutes)

    @property
    def stages(self) -> tuple[Stage, ...]:
        assert self.traffic_percentage is not None, "set when it was made"
        share = self.traffic_percentage / 100.0
        if self.evaluation_period_minutes is not None:
            return (Stage(share, self.evaluation_period_minutes * _MIN_S, judged=True),)
        return (Stage(share, None if self.test_duration_hours is None else self.test_duration_hours * _HOUR_S),)

    @property
    def deadline_s(self) -> float | None:
        judged = self.evaluation_period_minutes is not None and self.test_duration_hours is not None
        return self.test_duration_hours * _HOUR_S if judged and self.test_duration_hours else None

    def candidates(self, target: str) -> tuple[tuple[str, float], ...]:
        if not self.arms:
            return ((target, 1.0),)
        if target not in dict(self.arms):
            raise InvalidInput(f"{_WHERE}.arms", tuple(dict(self.arms)), f"arms that include the target {target!r}")
        total = sum(share for _, share in self.arms)
        first = [arm for arm in self.arms if arm[0] == target]
        return tuple((v, share / total) for v, share in first + [arm for arm in self.arms if arm[0] != target])


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowStrategy(_Strategy):
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
        checks.number(f"{_WHERE}.mirror_percentage", self.mirror_percentage, low=0.0, high=100.0, above=True)
        if self.test_duration_hours is not None:
            _lasting("test_duration_hours", self.test_duration_hours, _MOST_HOURS)
        checks.flag(f"{_WHERE}.keep_outputs", self.keep_outputs)
        checks.integer(f"{_WHERE}.max_in_flight", self.max_in_flight, low=1, high=_MOST_COUNTED)

    @property
    def stages(self) -> tuple[Stage, ...]:
        hold_s = None if self.test_duration_hours is None else self.test_duration_hours * _HOUR_S
        return (Stage(0.0, hold_s, mirror=self.mirror_percentage / 100.0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchbackStrategy(_Strategy):
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
        _coming_again("block_minutes", self.block_minutes)
        checks.integer(f"{_WHERE}.blocks", self.blocks, low=4, high=MOST_STAGES)
        if self.blocks % 2:
            raise InvalidInput(f"{_WHERE}.blocks", self.blocks, "an even number: one for each version in every pair")
        checks.number(f"{_WHERE}.warmup_minutes", self.warmup_minutes, low=0.0)
        if self.warmup_minutes >= self.block_minutes:
            allowed = f"below block_minutes ({self.block_minutes:g})"
            raise InvalidInput(f"{_WHERE}.warmup_minutes", self.warmup_minutes, allowed)
        checks.integer(f"{_WHERE}.seed", self.seed, low=0, high=_LARGEST_SEED)

    @property
    def order(self) -> tuple[str, ...]:
        """`baseline` or `candidate` of each block."""
        return _drawn_order(self.seed, self.blocks)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return _turns(self.seed, self.blocks, self.block_minutes * _MIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditStrategy(_Strategy):
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
        checks.name(f"{_WHERE}.reward", self.reward)
        if self.reward in QUANTILES:
            raise InvalidInput(f"{_WHERE}.reward", self.reward, "a scorer of 0 and 1, or error_rate")
        refuse_near_miss(f"{_WHERE}.reward", self.reward)
        if self.direction == "":
            object.__setattr__(self, "direction", "decrease" if self.reward == ERROR_RATE else "increase")
        checks.one_of(f"{_WHERE}.direction", self.direction, ("increase", "decrease"))
        checks.number(f"{_WHERE}.floor_percentage", self.floor_percentage, low=0.0, high=50.0, above=True)
        checks.number(f"{_WHERE}.initial_percentage", self.initial_percentage, low=0.0, high=100.0)
        if not self.floor_percentage <= self.initial_percentage <= 100.0 - self.floor_percentage:
            allowed = (
                f"{self.floor_percentage:g} to {100.0 - self.floor_percentage:g}, as neither falls below the floor"
            )
            raise InvalidInput(f"{_WHERE}.initial_percentage", self.initial_percentage, allowed)
        _coming_again("batch_minutes", self.batch_minutes)
        checks.integer(f"{_WHERE}.min_rewards", self.min_rewards, low=1, high=_MOST_COUNTED)
        if self.max_duration_hours is not None:
            _lasting("max_duration_hours", self.max_duration_hours, _MOST_HOURS)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.initial_percentage / 100.0, self.batch_minutes * _MIN_S, judged=True),)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.reward,)

    @property
    def deadline_s(self) -> float | None:
        return None if self.max_duration_hours is None else self.max_duration_hours * _HOUR_S


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
        raise InvalidInput(_WHERE, strategy_config, f"a dictionary, or a {cls.__name__}")
    checks.known_fields(_WHERE, strategy_config, (f.name for f in fields(cls)))
    return cls(**strategy_config)


@functools.lru_cache(maxsize=64)
def _ramp(first: float, step: float, hold_s: float) -> tuple[Stage, ...]:
    """Judged steps below 100 %; asked for at every event of a canary."""
    shares = [first]
    while shares[-1] + step < 100.0 - _EXACT:
        shares.append(shares[-1] + step)
    return tuple(Stage(share / 100.0, hold_s, judged=True) for share in shares)


@functools.lru_cache(maxsize=64)
def _drawn_order(seed: int, blocks: int) -> tuple[str, ...]:
    from abswitch.stats.switchback import SwitchbackSchedule

    schedule = SwitchbackSchedule(f"switchback-{seed}", block_s=1.0)  # its length has no part in the order
    return tuple(arm for pair in range(blocks // 2) for arm in schedule.order(pair))


@functools.lru_cache(maxsize=64)
def _turns(seed: int, blocks: int, hold_s: float) -> tuple[Stage, ...]:
    """Asked for at every event of a switchback."""
    return tuple(Stage(1.0 if arm == "candidate" else 0.0, hold_s) for arm in _drawn_order(seed, blocks))


def _lasting(name: str, value: object, most: float) -> None:
    checks.number(f"{_WHERE}.{name}", value, low=0.0, high=most, above=True)


def _coming_again(name: str, minutes: object) -> None:
    if checks.number(f"{_WHERE}.{name}", minutes, low=0.0, high=_MOST_MINUTES, above=True) * _MIN_S < _LEAST_PERIOD_S:
        raise InvalidInput(f"{_WHERE}.{name}", minutes, f"at least {_LEAST_PERIOD_S:g} seconds, in minutes")


def _numbers(name: str, given: object, *, high: float) -> tuple[float, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidInput(f"{_WHERE}.{name}", given, "a list of numbers")
    first = tuple(islice(given, _MOST_STEPS + 1))
    if len(first) > _MOST_STEPS:
        raise InvalidInput(f"{_WHERE}.{name}", given, f"at most {_MOST_STEPS} numbers")
    return tuple(checks.number(f"{_WHERE}.{name}", one, low=0.0, high=high, above=True) for one in first)


def _arms(given: object) -> tuple[tuple[str, float], ...]:
    where = f"{_WHERE}.arms"
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
    if sum(share for _, share in arms) > 100.0 + _EXACT:
        raise InvalidInput(where, dict(arms), "shares that sum to at most 100")
    return arms


def _is_pair(one: object) -> bool:
    return isinstance(one, Sequence) and not isinstance(one, str) and len(one) == 2
