"""`StepTally`: what each arm did in each step of the running operations; the evidence that judges are given.

Counted as requests end, so that a judgement needs neither the store nor a query, and a locked or full store cannot
make a canary look good.
"""

from __future__ import annotations

import math
import random
import threading
from array import array
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from abswitch.clock import Clock
from abswitch.domain import CANCELLED, RequestRecord, ScoreRecord
from abswitch.rollout.judging import ArmMeasures, StepEvidence
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.seen import measures_of
from abswitch.serving.router import STABLE, candidate_name

KEPT = 20_000
"""Durations kept per arm and step; above that a uniform sample of them (Vitter 1985, algorithm R). Also the requests
whose scores are still taken, of all arms together."""
_NOT_THE_VERSIONS_FAULT = frozenset({CANCELLED, "PromptTooLong"})


def is_failure(record: RequestRecord) -> bool:
    """Whether the assigned version failed the request: it ended in an error, or another version had to answer."""
    return record.fallback or (record.error_type is not None and record.error_type not in _NOT_THE_VERSIONS_FAULT)


def is_counted(record: RequestRecord) -> bool:
    """Whether the request says anything about its version: a caller who left, or asked too much, does not."""
    return record.fallback or record.error_type not in _NOT_THE_VERSIONS_FAULT


class _Sample:
    """A bounded uniform sample of a stream of numbers."""

    def __init__(self) -> None:
        self.seen = 0
        self._kept = array("d")
        self._random = random.Random(0)
        self._ordered: tuple[int, NDArray[np.float64]] = (0, np.empty(0))

    def add(self, value: float) -> None:
        self.seen += 1
        if len(self._kept) < KEPT:
            self._kept.append(value)
        elif (place := self._random.randrange(self.seen)) < KEPT:
            self._kept[place] = value

    def ordered(self) -> NDArray[np.float64]:
        """Ascending; kept, as steps that are over are looked at again and again."""
        if self._ordered[0] != self.seen:
            self._ordered = (self.seen, np.sort(np.frombuffer(self._kept)))
        return self._ordered[1]


@dataclass(slots=True)
class _Moments:
    """Count, mean and sum of squared deviations of numbers, one by one (Welford 1962) or many at once."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    is_fraction: bool = True

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> _Moments:
        """Of an array."""
        if not values.size:
            return cls()
        with np.errstate(over="ignore", invalid="ignore"):  # a spread beyond all numbers says nothing to a judge
            away = values - values[0]  # so that equal values have exactly no spread
            mean = float(values[0] + away.mean())
            m2 = float(((values - mean) ** 2).sum())
        return cls(values.size, mean, m2, bool(((values >= 0.0) & (values <= 1.0)).all()))

    def add(self, value: float) -> None:
        self.n += 1
        away = value - self.mean
        self.mean += away / self.n
        self.m2 += away * (value - self.mean)
        self.is_fraction = self.is_fraction and 0.0 <= value <= 1.0

    def __add__(self, other: _Moments) -> _Moments:
        """Of both together (Chan, Golub & LeVeque 1979)."""
        if not self.n or not other.n:
            return self if self.n else other
        n, away = self.n + other.n, other.mean - self.mean
        m2 = self.m2 + other.m2 + away * away * (self.n * other.n / n)
        return _Moments(n, self.mean + away * (other.n / n), m2, self.is_fraction and other.is_fraction)

    @property
    def variance(self) -> float:
        return self.m2 / (self.n - 1) if self.n > 1 else math.nan


class _Scores:
    """One scorer's values in one arm and step, one for each request: of several the latest.

    Values that may still be corrected are kept as they are, and their moments taken anew when they are asked for:
    running moments from which a value is taken out again lose digits, down to a spread below 0.
    """

    def __init__(self) -> None:
        self._open: dict[str, float] = {}
        self._settled = _Moments()
        self._all: _Moments | None = None

    def put(self, request_id: str, value: float) -> None:
        self._open[request_id] = value
        self._all = None

    def settle(self, request_id: str) -> None:
        """The request's value stays as it is from now on; there need not be one."""
        if (value := self._open.pop(request_id, None)) is not None:
            self._settled.add(value)

    def moments(self) -> _Moments:
        """Of all values; kept, as steps that are over are looked at again and again."""
        if self._all is None:
            values = np.fromiter(self._open.values(), np.float64, len(self._open))
            self._all = self._settled + _Moments.of(values)
        return self._all


@dataclass(slots=True)
class _Arm:
    requests: int = 0
    errors: int = 0
    first_errors: int = 0
    durations: dict[str, _Sample] = field(default_factory=lambda: defaultdict(_Sample))
    scores: dict[str, _Scores] = field(default_factory=lambda: defaultdict(_Scores))

    def request(self, record: RequestRecord, erred: set[str]) -> None:
        self.requests += 1
        if is_failure(record):
            self.errors += 1
            self.first_errors += record.unit_id not in erred
            if len(erred) < KEPT:  # more units than that: the later ones count as new each time
                erred.add(record.unit_id)
            return
        self.durations["latency"].add(record.total_s)
        if record.first_token_s is not None:
            self.durations["first_token"].add(record.first_token_s)

    def score(self, request_id: str, scorer: str, value: float) -> None:
        self.scores[scorer].put(request_id, value)

    def settle(self, request_id: str) -> None:
        for scores in self.scores.values():
            scores.settle(request_id)

    def measures(self, version: str) -> ArmMeasures:
        moments = {name: scores.moments() for name, scores in self.scores.items()}
        return measures_of(
            version,
            requests=self.requests,
            errors=self.errors,
            first_errors=self.first_errors,
            durations={name: sample.ordered() for name, sample in self.durations.items()},
            scores=moments,
            fractions={name: one.is_fraction for name, one in moments.items()},
            seen={name: sample.seen for name, sample in self.durations.items()},
        )


_Key = tuple[str, int, str]  # operation, step, arm


class StepTally:
    """Counts by operation, step and arm. Lives on the engine's loop, but for `score`, which any thread may call."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._arms: dict[_Key, _Arm] = {}
        self._of_request: dict[str, _Key] = {}
        self._since_s: dict[tuple[str, int], float] = {}
        self._shares: dict[tuple[str, int], float] = {}
        self._erred: dict[str, set[str]] = defaultdict(set)

    def moved(self, operation: Operation) -> None:
        """An operation took an event: a step of it may be in force from now on, or it is over."""
        with self._lock:
            if operation.phase.is_final:
                self._end(operation.operation_id)
            elif operation.phase in (Phase.SHIFTING, Phase.EVALUATING):
                self._begin(operation)

    def _begin(self, operation: Operation) -> None:
        key = (operation.operation_id, operation.stage)
        self._since_s.setdefault(key, self._clock.monotonic_s())
        self._shares[key] = operation.share
        for arm in (STABLE, *map(candidate_name, range(len(operation.candidates)))):
            self._arms.setdefault((*key, arm), _Arm())

    def _end(self, operation_id: str) -> None:
        self._arms = {key: arm for key, arm in self._arms.items() if key[0] != operation_id}
        self._erred.pop(operation_id, None)
        self._since_s = {key: at_s for key, at_s in self._since_s.items() if key[0] != operation_id}
        self._shares = {key: share for key, share in self._shares.items() if key[0] != operation_id}
        self._of_request = {request: key for request, key in self._of_request.items() if key[0] != operation_id}

    def request(self, record: RequestRecord) -> None:
        """A request ended."""
        if record.operation_id is None:
            return
        with self._lock:
            self._count(record, record.operation_id)

    def _count(self, record: RequestRecord, operation_id: str) -> None:
        key = (operation_id, record.step, record.arm)
        arm = self._arms.get(key)
        if arm is None or not is_counted(record):
            return
        arm.request(record, self._erred[operation_id])
        if record.error_type is None and not record.fallback:
            self._settle(record.request_id)  # an id that came before is another answer's
            self._of_request[record.request_id] = key
            if len(self._of_request) > KEPT:  # its scores never came, or came long ago
                self._settle(next(iter(self._of_request)))

    def _settle(self, request_id: str) -> None:
        """Forget a request; what it was scored counts as it is."""
        key = self._of_request.pop(request_id, None)
        if key is not None:
            self._arms[key].settle(request_id)

    def score(self, record: ScoreRecord) -> None:
        """A score arrived; it belongs to the step in which its request was admitted.

        Of several of one request by the same name the latest counts; none counts once `KEPT` requests came after it.
        """
        with self._lock:
            key = self._of_request.get(record.request_id)
            if key is not None and record.value is not None:
                self._arms[key].score(record.request_id, record.scorer, record.value)

    def evidence(self, operation: Operation) -> StepEvidence:
        """What is known about the operation's step now."""
        with self._lock:
            return self._evidence(operation)

    def _evidence(self, operation: Operation) -> StepEvidence:
        operation_id, stage = operation.operation_id, operation.stage
        since_s = self._since_s.get((operation_id, stage), self._clock.monotonic_s())
        stable, candidates = self._measures(operation, stage)
        return StepEvidence(
            operation_id=operation_id,
            stage=stage,
            share=operation.share,
            evaluation=operation.evaluation + 1,
            elapsed_s=self._clock.monotonic_s() - since_s,
            stable=stable,
            candidates=candidates,
            earlier=tuple(
                (self._shares.get((operation_id, before), 0.0), *self._measures(operation, before))
                for before in range(stage)
            ),
        )

    def _measures(self, operation: Operation, stage: int) -> tuple[ArmMeasures, tuple[ArmMeasures, ...]]:
        def of(arm: str, version: str) -> ArmMeasures:
            return self._arms.get((operation.operation_id, stage, arm), _Arm()).measures(version)

        candidates = tuple(of(candidate_name(i), version) for i, version in enumerate(operation.candidates))
        return of(STABLE, operation.stable or ""), candidates
