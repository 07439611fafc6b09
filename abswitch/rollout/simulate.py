"""`simulate`: a strategy played over a world whose truth is known, on time that costs nothing. Pure.

The machine is the one that switches real traffic; here its effects are answered at once, and the judge is given what
arms of known error rate and latency would have shown by then. `play` does the same with any other source of evidence.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Protocol

import numpy as np

from abswitch import checks
from abswitch.rollout import operation as ops
from abswitch.rollout.judging import ArmMeasures, Judge, Judgement, Ruling, StepEvidence
from abswitch.rollout.machine import step
from abswitch.rollout.operation import Event, Operation
from abswitch.rollout.seen import SeenArm
from abswitch.rollout.strategies import Strategy

_ENOUGH = 100_000  # events of one operation; more means that it turns in a circle


class Outage(StrEnum):
    """What becomes of the evidence on its way to the judge."""

    NONE = "none"
    NO_DATA = "no data"
    NAN = "NaN"
    SINGLE = "a single sample"
    ERROR = "the metric cannot be had"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One arm as it is.

    Args:
        error_rate: chance that a request fails, fraction 0–1.
        latency_s: the median; latencies are lognormal.
        latency_sigma: of the logarithm.
    """

    error_rate: float = 0.0
    latency_s: float = 0.5
    latency_sigma: float = 0.5

    def __post_init__(self) -> None:
        checks.share("error_rate", self.error_rate)
        checks.number("latency_s", self.latency_s, low=0.0, above=True)
        checks.number("latency_sigma", self.latency_sigma, low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What traffic meets.

    Args:
        requests_per_s: of all arms together, on average.
        drift: how the latency of both arms changes over a day: a factor of at most 1 + drift, as load comes and goes.
        outage: what the judge is given of it.
    """

    requests_per_s: float
    stable: Truth = field(default_factory=Truth)
    candidate: Truth = field(default_factory=Truth)
    drift: float = 0.0
    outage: Outage = Outage.NONE

    def __post_init__(self) -> None:
        checks.number("requests_per_s", self.requests_per_s, low=0.0, above=True)
        checks.number("drift", self.drift, low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """How it went.

    Attributes:
        operation: as it ended.
        hours: from its first exposure to its end.
        looks: judgements asked for.
        largest_share: that the candidate ever had, before a promotion, fraction 0–1.
        ruling: the last judgement's; None where nobody was asked.
    """

    operation: Operation
    hours: float
    looks: int
    largest_share: float
    ruling: Ruling | None = None


class Arms(Protocol):
    """Where the evidence of a played switch comes from."""

    def begin(self, now_s: float) -> None:
        """A stage begins: what is seen from now on belongs to it."""
        ...

    def look(self, now_s: float, share: float) -> tuple[ArmMeasures, ArmMeasures]:
        """What `v1` and `v2` showed since the stage began, the candidate `v2` having this share.

        Raises:
            ArithmeticError: it cannot be had.
        """
        ...


def simulate(
    strategy: Strategy, world: World, judge: Judge, rng: np.random.Generator, *, limit_s: float = 7 * 86_400.0
) -> Simulated:
    """Play one switch from `v1` to `v2` to its end, or for `limit_s` of its time."""
    return play(strategy, _WorldArms(world, rng), judge, limit_s=limit_s)


def play(strategy: Strategy, arms: Arms, judge: Judge, *, limit_s: float) -> Simulated:
    """Play one switch from `v1` to `v2` to its end, or for `limit_s` of its time, over any evidence."""
    return _Play(strategy, arms, judge).run(limit_s)


class _Play:
    def __init__(self, strategy: Strategy, arms: Arms, judge: Judge) -> None:
        self._arms, self._judge = arms, judge
        self._operation = Operation(operation_id="op", model_id="m", stable="v1", candidate="v2", strategy=strategy)
        self._events: list[tuple[float, int, Event]] = []
        self._order = count()
        self._now_s = 0.0
        self._routed_s = self._stage_began_s = 0.0
        self._stage = -1
        self._seen = ArmMeasures(version="v1"), ArmMeasures(version="v2")
        self._earlier: list[tuple[float, ArmMeasures, tuple[ArmMeasures, ...]]] = []
        self._share = 0.0
        self._looks, self._largest = 0, 0.0
        self._ruling: Ruling | None = None

    def run(self, limit_s: float) -> Simulated:
        self._put(0.0, ops.Start())
        for _ in range(_ENOUGH):
            if not self._events or self._operation.phase.is_final:
                break
            self._now_s, _, event = heapq.heappop(self._events)
            if self._now_s > limit_s:
                self._now_s = limit_s
                break
            self._operation, effects = step(self._operation, event, self._now_s)
            for effect in effects:
                self._carry_out(effect)
        return Simulated(
            operation=self._operation,
            hours=self._now_s / 3600.0,
            looks=self._looks,
            largest_share=self._largest,
            ruling=self._ruling,
        )

    def _put(self, delay_s: float, event: Event) -> None:
        heapq.heappush(self._events, (self._now_s + delay_s, next(self._order), event))

    def _carry_out(self, effect: ops.Effect) -> None:
        epoch = self._operation.epoch
        match effect:
            case ops.Load():
                self._put(0.0, ops.Loaded(epoch=epoch))
            case ops.Warm():
                self._put(0.0, ops.Warmed(epoch=epoch))
            case ops.Route(share=share, active=active):
                if active == "v1":
                    self._largest = max(self._largest, share)
                    self._routed_s = self._now_s
                self._put(0.0, ops.Routed(epoch=epoch))
            case ops.Drain():
                self._put(0.0, ops.Drained(epoch=epoch))
            case ops.SetTimer(delay_s):
                self._put(delay_s, ops.StageElapsed(epoch=epoch))
            case ops.SetDeadline(delay_s):
                self._put(delay_s, ops.DeadlineElapsed())
            case ops.AskJudge():
                self._looks += 1
                judgement = self._asked()
                self._ruling = judgement.ruling
                self._put(0.0, ops.Judged(epoch=epoch, judgement=judgement))

    def _asked(self) -> Judgement:
        """As the engine does it: a judge that cannot answer makes the step hold."""
        try:
            return self._judge(self._evidence())
        except ArithmeticError as error:
            return Judgement(ruling=Ruling.HOLD, reason=f"the judge failed: {error}")

    def _evidence(self) -> StepEvidence:
        operation = self._operation
        if operation.stage != self._stage:
            self._begin(operation)
        self._seen = self._arms.look(self._now_s, operation.share)
        stable, candidate = self._seen
        return StepEvidence(
            operation_id=operation.operation_id,
            stage=operation.stage,
            share=operation.share,
            evaluation=operation.evaluation + 1,
            elapsed_s=self._now_s - self._stage_began_s,
            stable=stable,
            candidates=(candidate,),
            earlier=tuple(self._earlier),
        )

    def _begin(self, operation: Operation) -> None:
        if self._stage >= 0:
            stable, candidate = self._seen
            self._earlier.append((self._share, stable, (candidate,)))
        self._stage, self._stage_began_s, self._share = operation.stage, self._routed_s, operation.share
        self._seen = ArmMeasures(version="v1"), ArmMeasures(version="v2")
        self._arms.begin(self._routed_s)


class _WorldArms:
    """Arms of a world whose truth is known."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world, self._rng = world, rng
        self._arms = SeenArm(), SeenArm()
        self._seen_s = 0.0

    def begin(self, now_s: float) -> None:
        self._arms, self._seen_s = (SeenArm(), SeenArm()), now_s

    def look(self, now_s: float, share: float) -> tuple[ArmMeasures, ArmMeasures]:
        truths = (self._world.stable, 1.0 - share), (self._world.candidate, share)
        for arm, (truth, part) in zip(self._arms, truths, strict=True):
            self._see(arm, truth, part, now_s)
        self._seen_s = now_s
        return self._arms[0].measures("v1"), self._spoilt(self._arms[1].measures("v2"))

    def _see(self, arm: SeenArm, truth: Truth, share: float, now_s: float) -> None:
        """What the arm showed since the last look, on top of what it had shown in this stage before."""
        new = int(self._rng.poisson(self._world.requests_per_s * share * (now_s - self._seen_s)))
        day = 1.0 + self._world.drift * (0.5 + 0.5 * math.sin(now_s * 2 * math.pi / 86_400.0))
        errors = int(self._rng.binomial(new, truth.error_rate))
        latencies_s = truth.latency_s * day * np.exp(truth.latency_sigma * self._rng.normal(size=new))
        arm.add(new, errors, {"latency": latencies_s})

    def _spoilt(self, arm: ArmMeasures) -> ArmMeasures:
        match self._world.outage:
            case Outage.NO_DATA:
                return ArmMeasures(version=arm.version)
            case Outage.NAN:
                nan = dict.fromkeys(arm.values, math.nan)
                lost = {name: (q, np.full(len(values), math.nan)) for name, (q, values) in arm.samples.items()}
                return ArmMeasures(version=arm.version, values=nan, counts=arm.counts, samples=lost)
            case Outage.SINGLE:
                return ArmMeasures(version=arm.version, requests=1, errors=0, values=arm.values,
                                   counts=dict.fromkeys(arm.counts, 1),
                                   samples={name: (q, x[:1]) for name, (q, x) in arm.samples.items()})  # fmt: skip
            case Outage.ERROR:
                raise ArithmeticError("the metric cannot be had")
        return arm
