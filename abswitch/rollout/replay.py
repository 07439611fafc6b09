"""A policy played over logged requests before it goes live: on one version twice, or with an effect put in. Pure.

One version answered everything that was logged. A replay draws anew which units the candidate would have got; without
an effect put in, whatever the policy then says about the candidate is a false alarm, or a false promotion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.rollout.judging import ArmMeasures, Judge, Ruling
from abswitch.rollout.measured import DURATIONS
from abswitch.rollout.seen import SeenArm
from abswitch.rollout.simulate import Simulated, play
from abswitch.rollout.strategies import ABTestStrategy, CanaryStrategy, Strategy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_TIMES = ("latency_s", "first_token_s", "generation_s")
_OF_EVERY_REQUEST = ("fallback", "step", "admitted_at_s")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestLog:
    """Requests of one version, in order of admission; every array has shape (k,).

    Attributes:
        at_s: of admission, from the first on.
        units: whose request it is: whole numbers from 0, each unit that occurs has one.
        failed: ended in an error; an answer that another version had to give counts as failed.
        counted: says something about the version; requests whose caller went away do not.
        columns: values by column of evidence (scorers included), NaN where a request has none.
        scorers: which of the columns are scores.
        selected: metric → the requests that its conditions choose; metrics without conditions are not listed.
    """

    at_s: Floats
    units: Ints
    failed: Bools
    counted: Bools
    columns: Mapping[str, Floats]
    scorers: tuple[str, ...] = ()
    selected: Mapping[str, Bools] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.at_s.size:
            raise InvalidInput("log", 0, "at least one request")
        if (np.diff(self.at_s) < 0).any():
            raise InvalidInput("log.at_s", "instants out of order", "rising instants")

    @property
    def n_units(self) -> int:
        return int(self.units.max()) + 1

    @property
    def span_s(self) -> float:
        """From the first request to the last."""
        return float(self.at_s[-1] - self.at_s[0])

    @property
    def error_rate(self) -> float:
        """Of counted requests; NaN without any."""
        counted = int(self.counted.sum())
        return float(self.failed[self.counted].sum()) / counted if counted else math.nan

    def repeated(self, times: int) -> RequestLog:
        """The log so many times in a row, its units as new ones each time; in between lies the mean gap."""
        k, round_s = self.at_s.size, self.span_s * (1 + 1 / max(1, self.at_s.size - 1))
        rounds = np.repeat(np.arange(times), k)
        return replace(
            self,
            at_s=np.tile(self.at_s - self.at_s[0], times) + rounds * round_s,
            units=np.tile(self.units, times) + rounds * self.n_units,
            failed=np.tile(self.failed, times),
            counted=np.tile(self.counted, times),
            columns={name: np.tile(values, times) for name, values in self.columns.items()},
            selected={name: np.tile(mask, times) for name, mask in self.selected.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """An effect put into the candidate's requests; none by default.

    Args:
        errors: factor of the logged error rate, 0 or more: 2 doubles it.
        added_errors: requests that fail beyond that, fraction 0–1.
        latency: factor of all durations, above 0: 1.2 makes each 20 % longer.
        scores: scorer → change of its mean, in its own unit. Scores of 0 and 1 are turned over at random, others within
            0–1 are pushed towards the end, so that they stay within; any other moves by the change.

    Raises:
        InvalidInput: a field is outside its range.
    """

    errors: float = 1.0
    added_errors: float = 0.0
    latency: float = 1.0
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.number("what_if.errors", self.errors, low=0.0)
        checks.share("what_if.added_errors", self.added_errors)
        checks.number("what_if.latency", self.latency, low=0.0, above=True)
        if not isinstance(self.scores, Mapping):
            raise InvalidInput(
                "what_if.scores", self.scores, "scorer → change of its mean, e.g. {'exact_match': -0.05}"
            )
        for name, change in self.scores.items():
            checks.number(f"what_if.scores.{name}", change)

    @property
    def is_nothing(self) -> bool:
        """Whether the candidate is as the logged version: an A/A replay."""
        changed = (self.errors, self.added_errors, self.latency) != (1.0, 0.0, 1.0)
        return not changed and not any(self.scores.values())

    def in_words(self) -> str:
        """The effect in one clause."""
        parts = [f"errors × {self.errors:g}"] if self.errors != 1.0 else []
        parts += [f"{self.added_errors:.2%} more errors"] if self.added_errors else []
        parts += [f"latency × {self.latency:g}"] if self.latency != 1.0 else []
        parts += [f"{name} {change:+g}" for name, change in self.scores.items() if change]
        return ", ".join(parts) or "no effect (A/A)"

    def check(self, log: RequestLog) -> None:
        """The log can show the effect.

        Raises:
            InvalidInput: errors are multiplied where none was logged, an error rate beyond 1, or a score that was not
                logged or cannot change by so much.
        """
        rate = log.error_rate
        if self.errors != 1.0 and not rate > 0:
            raise InvalidInput("what_if.errors", self.errors, "1, as no logged request failed; use added_errors")
        if rate * self.errors + self.added_errors > 1:
            allowed = f"an error rate of at most 1; {rate:.3g} were logged"
            raise InvalidInput("what_if.errors", self.errors, allowed)
        for name, change in self.scores.items():
            checks.one_of("what_if.scores", name, log.scorers)
            values = _observed(log.columns[name])
            if not values.size:
                raise InvalidInput("what_if.scores", name, "a scorer that scored a logged answer")
            if _within_one(values) and not 0 <= values.mean() + change <= 1:
                allowed = f"a change that leaves the mean, {values.mean():.3g}, within 0 to 1"
                raise InvalidInput(f"what_if.scores.{name}", change, allowed)

    def applied(self, log: RequestLog, rng: np.random.Generator) -> RequestLog:
        """The log as if the candidate had answered all of it; what is drawn, is drawn anew each time."""
        if self.is_nothing:
            return log
        columns = dict(log.columns)
        for name in _TIMES:
            if name in columns:
                columns[name] = columns[name] * self.latency
        for name, change in self.scores.items():
            columns[name] = _shifted(log.columns[name], change, rng)
        failed = self._failing(log, rng)
        lost, won = failed & ~log.failed, log.failed & ~failed
        for name, values in columns.items():
            if name == "error":
                columns[name] = np.where(lost, 1.0, np.where(won, 0.0, values))
            elif name not in _OF_EVERY_REQUEST:
                columns[name] = np.where(lost, math.nan, values)
        return replace(log, failed=failed, columns=columns)

    def _failing(self, log: RequestLog, rng: np.random.Generator) -> Bools:
        rate = log.error_rate
        wanted = rate * self.errors + self.added_errors
        chance = rng.random(log.failed.size)
        if wanted <= rate:  # some that failed would not have
            return log.failed & (chance * rate < wanted)
        also = (wanted - rate) / (1 - rate)
        return log.failed | (log.counted & (chance < also))


NOTHING = WhatIf()


def _observed(values: Floats) -> Floats:
    seen: Floats = values[~np.isnan(values)]
    return seen


def _within_one(values: Floats) -> bool:
    return bool(((values >= 0.0) & (values <= 1.0)).all())


def _shifted(values: Floats, change: float, rng: np.random.Generator) -> Floats:
    """Values whose mean is changed by so much; those within 0–1 stay within."""
    seen = _observed(values)
    mean = float(seen.mean())
    if not change or not _within_one(seen):
        return values + change
    if change < 0:
        return 1.0 - _shifted(1.0 - values, -change, rng)
    if mean == 1.0:
        return values  # none can be higher
    part = change / (1 - mean)
    if np.isin(seen, (0.0, 1.0)).all():
        turned: Floats = np.where((values == 0.0) & (rng.random(values.size) < part), 1.0, values)
        return turned
    pushed: Floats = 1.0 - (1.0 - values) * (1.0 - part)
    return pushed


class _LoggedArms:
    """Both arms of one replay."""

    def __init__(self, log: RequestLog, candidate: RequestLog, where: Floats) -> None:
        """`where`: of each unit, in [0, 1): the candidate gets those below its share, and keeps them as that grows."""
        self._sides, self._where = (log, candidate), where[log.units]
        self._at_s = log.at_s - log.at_s[0]
        self._erred = np.zeros(log.n_units, dtype=np.bool_)
        self._arms = SeenArm(), SeenArm()
        self._next = 0
        self.exposed = 0

    def begin(self, now_s: float) -> None:
        self._arms = SeenArm(), SeenArm()
        self._next = int(np.searchsorted(self._at_s, now_s))

    def look(self, now_s: float, share: float) -> tuple[ArmMeasures, ArmMeasures]:
        end = int(np.searchsorted(self._at_s, now_s))
        rows = slice(self._next, end)
        mine = self._where[rows] < share
        for arm, side, chosen in zip(self._arms, self._sides, (~mine, mine), strict=True):
            self._see(arm, side, np.flatnonzero(chosen & side.counted[rows]) + self._next)
        self._next = end
        self.exposed += int(mine.sum())
        return self._arms[0].measures("v1"), self._arms[1].measures("v2")

    def _see(self, arm: SeenArm, side: RequestLog, rows: Ints) -> None:
        failed = side.failed[rows]
        erring = np.unique(side.units[rows[failed]])
        first = erring[~self._erred[erring]]
        self._erred[erring] = True
        answered = rows[~failed]
        durations = {
            name: _observed(side.columns[column][answered])
            for name, column in DURATIONS.items()
            if column in side.columns
        }
        scores = {name: _observed(side.columns[name][answered]) for name in side.scorers}
        arm.add(rows.size, int(failed.sum()), durations, scores, first_errors=first.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchReplay:
    """One switch played over a log.

    Attributes:
        ending: `promoted`, `rolled back`, `timed out`, or `undecided` (the log was over first).
        exposed: requests that the candidate would have got by the last look.
    """

    simulated: Simulated
    ending: str
    exposed: int


def replay_switch(
    strategy: Strategy, judge: Judge, log: RequestLog, what_if: WhatIf, rng: np.random.Generator
) -> SwitchReplay:
    """Play one switch over the log, from its first request to the switch's end or the log's.

    A request counts from its admission on, and its scores with it. Which units the candidate gets is drawn.

    Raises:
        InvalidInput: a strategy that no judge decides, or that compares several candidates.
    """
    check_replayable(strategy)
    arms = _LoggedArms(log, what_if.applied(log, rng), rng.random(log.n_units))
    found = play(strategy, arms, judge, limit_s=log.span_s)
    return SwitchReplay(simulated=found, ending=_ending(found), exposed=arms.exposed)


def check_replayable(strategy: Strategy) -> None:
    """A judge decides how it ends, about one candidate.

    Raises:
        InvalidInput: it is another.
    """
    judged = isinstance(strategy, CanaryStrategy | ABTestStrategy) and any(one.judged for one in strategy.stages)
    if not judged:
        allowed = "a canary, or an A/B test whose evaluation_period_minutes says when its judge looks"
        raise InvalidInput("policy", type(strategy).__name__, allowed)
    if isinstance(strategy, ABTestStrategy) and len(strategy.arms) > 1:
        raise InvalidInput("policy.arms", strategy.arms, "one candidate: a log holds one version")


def _ending(run: Simulated) -> str:
    if run.operation.promoted:
        return "promoted"
    if not run.operation.phase.is_final:
        return "undecided"
    return "rolled back" if run.ruling is Ruling.ROLL_BACK else "timed out"
