"""`simulate`: a strategy played over a world whose truth is known, on time that costs nothing. Pure.

The machine is the one that switches real traffic; here its effects are answered at once, and the judge is given what
arms of known error rate and latency would have shown by then.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

import numpy as np
from numpy.typing import NDArray

from abswitch import checks
from abswitch.rollout import operation as ops
from abswitch.rollout.judging import ArmMeasures, Judge, Judgement, Ruling, StepEvidence
from abswitch.rollout.machine import step
from abswitch.rollout.operation import Event, Operation
from abswitch.rollout.strategies import Strategy

_QUANTILES = {"latency_p50_s": 0.5, "latency_p95_s": 0.95}
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
    """

    operation: Operation
    hours: float
    looks: int
    largest_share: float


def simulate(
    strategy: Strategy, world: World, judge: Judge, rng: np.random.Generator, *, limit_s: float = 7 * 86_400.0
) -> Simulated:
    """Play one switch from `v1` to `v2` to its end, or for `limit_s` of its time."""
    return _Play(strategy, world, judge, rng).run(limit_s)


@dataclass(slots=True)
class _Seen:
    """What an arm showed in a stage; latencies in ascending order."""

    requests: int = 0
    errors: int = 0
    latencies_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def add(self, requests: int, errors: int, latencies_s: NDArray[np.float64]) -> None:
        self.requests, self.errors = self.requests + requests, self.errors + errors
        new = np.sort(latencies_s)
        self.latencies_s = np.insert(self.latencies_s, np.searchsorted(self.latencies_s, new), new)

    def measures(self, version: str) -> ArmMeasures:
        if not self.requests:
            return ArmMeasures(version=version)
        n, latencies = len(self.latencies_s), self.latencies_s
        return ArmMeasures(
            version=version,
            requests=self.requests,
            errors=self.errors,
            values={name: float(latencies[math.ceil(q * n) - 1]) for name, q in _QUANTILES.items()},
            counts=dict.fromkeys(_QUANTILES, self.requests),
            samples={name: (q, latencies) for name, q in _QUANTILES.items()},
        )


class _Play:
    def __init__(self, strategy: Strategy, world: World, judge: Judge, rng: np.random.Generator) -> None:
        self._world, self._judge, self._rng = world, judge, rng
        self._operation = Operation(operation_id="op", model_id="m", stable="v1", candidate="v2", strategy=strategy)
        self._events: list[tuple[float, int, Event]] = []
        self._order = count()
        self._now_s = 0.0
        self._stage_began_s = 0.0
        self._stage = -1
        self._arms = {"v1": _Seen(), "v2": _Seen()}
        self._earlier: list[tuple[float, ArmMeasures, tuple[ArmMeasures, ...]]] = []
        self._share = 0.0
        self._seen_s = 0.0
        self._looks, self._largest = 0, 0.0

    def run(self, limit_s: float) -> Simulated:
        self._put(0.0, ops.Start())
        for _ in range(_ENOUGH):
            if not self._events or self._operation.phase.is_final:
                break
            self._now_s, _, event = heapq.heappop(self._events)
            if self._now_s > limit_s:
                break
            self._operation, effects = step(self._operation, event, self._now_s)
            for effect in effects:
                self._carry_out(effect)
        return Simulated(
            operation=self._operation, hours=self._now_s / 3600.0, looks=self._looks, largest_share=self._largest
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
                self._put(0.0, ops.Routed(epoch=epoch))
            case ops.Drain():
                self._put(0.0, ops.Drained(epoch=epoch))
            case ops.SetTimer(delay_s):
                self._put(delay_s, ops.StageElapsed(epoch=epoch))
            case ops.SetDeadline(delay_s):
                self._put(delay_s, ops.DeadlineElapsed())
            case ops.AskJudge():
                self._looks += 1
                self._put(0.0, ops.Judged(epoch=epoch, judgement=self._asked()))

    # --- evidence ---------------------------------------------------------------------------------------------------

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
        stable = self._arm("v1", self._world.stable, 1.0 - operation.share)
        candidate = self._arm("v2", self._world.candidate, operation.share)
        self._seen_s = self._now_s
        return StepEvidence(
            operation_id=operation.operation_id,
            stage=operation.stage,
            share=operation.share,
            evaluation=operation.evaluation + 1,
            elapsed_s=self._now_s - self._stage_began_s,
            stable=stable,
            candidates=(self._spoilt(candidate),),
            earlier=tuple(self._earlier),
        )

    def _begin(self, operation: Operation) -> None:
        if self._stage >= 0:
            stable, candidate = (seen.measures(version) for version, seen in self._arms.items())
            self._earlier.append((self._share, stable, (candidate,)))
        self._stage, self._stage_began_s, self._share = operation.stage, operation.phase_since_s, operation.share
        self._seen_s, self._arms = operation.phase_since_s, {"v1": _Seen(), "v2": _Seen()}

    def _arm(self, version: str, truth: Truth, share: float) -> ArmMeasures:
        """What the arm showed since the last look, on top of what it had shown in this stage before."""
        seen = self._arms[version]
        new = int(self._rng.poisson(self._world.requests_per_s * share * (self._now_s - self._seen_s)))
        day = 1.0 + self._world.drift * (0.5 + 0.5 * math.sin(self._now_s * 2 * math.pi / 86_400.0))
        seen.add(new, int(self._rng.binomial(new, truth.error_rate)),
                 truth.latency_s * day * np.exp(truth.latency_sigma * self._rng.normal(size=new)))  # fmt: skip
        return seen.measures(version)

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
