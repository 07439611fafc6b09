"""`replay`: a policy played over logged traffic, many times, before it goes live: how often would it be wrong?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.experiments.planning import defaults_of, store_of
from abswitch.rollout.judging import Judge
from abswitch.rollout.replay import NOTHING, RequestLog, WhatIf, check_replayable, replay_switch
from abswitch.rollout.replay_plan import check_replayable_plan, replay_plan
from abswitch.rollout.strategies import Strategy
from abswitch.serving.judges import default_judge
from abswitch.stats import AnalysisPlan, wilson_interval
from abswitch.stats.comparison import finite
from abswitch.store.logged import Logged, find_logged, read_log

if TYPE_CHECKING:
    from abswitch.engine import SwitchingEngine
    from abswitch.store.reader import Reader
    from abswitch.store.recorder import Recorder

RUNS = 200
"""Enough to tell a false-alarm rate of 5 % from one of 10 %."""
_ENDINGS = {
    "promoted": "promoted",
    "rolled back": "rolled back",
    "timed out": "returned to stable as time was up",
    "ship": "shipped",
    "keep": "kept the baseline",
    "equivalent": "found equivalent",
    "inconclusive": "inconclusive",
    "invalid": "invalid",
    "undecided": "undecided when the log was over",
}
_WRONG_OF_EQUALS = ("rolled back", "ship", "keep")
"""Endings that two copies of one version must rarely have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRun:
    """One of the runs.

    Attributes:
        ending: see `Replayed.endings`.
        hours: from the log's first request to the end.
        exposed: requests that the candidate would have got by then.
        reason: of the judge's last word, or of the verdict.
    """

    ending: str
    hours: float
    exposed: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """How a policy ends on logged traffic.

    Attributes:
        policy: what was played, in a word.
        what_if: what was put into the candidate's requests.
        alpha: the error rate that the policy promises; NaN where it promises none.
        requests, units, span_s: of the log.
        runs: one for each time that the units were split anew.
    """

    policy: str
    what_if: WhatIf
    model_id: str
    version: str
    alpha: float
    requests: int
    units: int
    span_s: float
    runs: tuple[ReplayRun, ...] = field(repr=False)

    @property
    def endings(self) -> Mapping[str, int]:
        """Of switches `promoted`, `rolled back`, `timed out`; of plans the verdict's decision; `undecided`: the log was
        over first. By how many runs ended so, the most frequent first."""
        return dict(Counter(run.ending for run in self.runs).most_common())

    def share(self, *endings: str) -> tuple[float, float, float]:
        """Fraction of runs that ended in one of these ways, with its 95 % interval (Wilson)."""
        n = sum(run.ending in endings for run in self.runs)
        return (n / len(self.runs), *wilson_interval(len(self.runs), n))

    @property
    def false_alarms(self) -> tuple[float, float, float]:
        """Of an A/A replay: fraction of runs that told two copies of one version apart, with its 95 % interval.

        Of a switch: those that were rolled back; of a plan: shipped or kept.

        Raises:
            InvalidInput: an effect was put in.
        """
        if not self.what_if.is_nothing:
            raise InvalidInput("what_if", self.what_if.in_words(), "none: false alarms are those of an A/A replay")
        return self.share(*_WRONG_OF_EQUALS)

    def hours(self, ending: str, q: float = 0.5) -> float:
        """When runs with this ending ended: a quantile, hours from the log's first request; NaN without any."""
        return self._quantile([run.hours for run in self.runs if run.ending == ending], q)

    def exposed(self, ending: str, q: float = 0.5) -> float:
        """Requests that the candidate would have got in runs with this ending: a quantile; NaN without any."""
        return self._quantile([float(run.exposed) for run in self.runs if run.ending == ending], q)

    def in_words(self) -> str:
        """What was played, and a line for each ending."""
        head = (
            f"{self.policy} over {self.requests:,} requests of {self.units:,} units in {self.span_s / 3600:.3g} h of "
            f"{self.version}, {len(self.runs)} times, with {self.what_if.in_words()}:"
        )
        lines = [head]
        for ending, n in self.endings.items():
            share, low, high = self.share(ending)
            when = f"median {self.hours(ending):.3g} h, {self.exposed(ending):,.0f} requests on the candidate"
            lines.append(
                f"  - {share:.1%} [{low:.1%}, {high:.1%}] {_ENDINGS[ending]} ({n} run{'s' if n > 1 else ''}; {when})"
            )
        if self.what_if.is_nothing:
            share, low, high = self.false_alarms
            promised = "" if math.isnan(self.alpha) else f"; the policy promises at most {self.alpha:g}"
            lines.append(f"  False alarms: {share:.1%} [{low:.1%}, {high:.1%}]{promised}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        names = ("policy", "model_id", "version", "alpha", "requests", "units", "span_s")
        plain = {name: getattr(self, name) for name in names} | {"endings": dict(self.endings)}
        plain |= {"what_if": asdict(self.what_if), "runs": [asdict(run) for run in self.runs]}
        found: dict[str, Any] = finite(plain)
        return found

    @staticmethod
    def _quantile(values: list[float], q: float) -> float:
        return float(np.quantile(values, checks.share("q", q))) if values else math.nan


def replay(
    source: SwitchingEngine | Recorder | Reader | Path | str,
    policy: Strategy | AnalysisPlan,
    *,
    what_if: WhatIf = NOTHING,
    runs: int = RUNS,
    seed: int = 0,
    judge: Judge | None = None,
    repeat: int = 1,
    model_id: str | None = None,
    version: str | None = None,
    last_hours: float | None = None,
) -> Replayed:
    """Play a policy over logged traffic of one version, on time that costs nothing.

    Each run draws anew which of the logged units the candidate would have got. Without an effect (A/A) both arms are
    one version, so that whatever tells them apart is a false alarm; with one (`WhatIf`) it is seen whether, and when,
    the policy reacts. What a replay cannot show is what the other version would do to load, and users' reactions.

    Args:
        source: an engine, its store, `abswitch.read(path)`, or a path.
        policy: `CanaryStrategy`, `ABTestStrategy` with a judge, or the `AnalysisPlan` of a randomised test.
        what_if: what to put into the candidate's requests.
        runs: how often.
        seed: of all that is drawn: the same seed gives the same runs.
        judge: of a strategy, in place of its default one. Alert thresholds, which also send traffic back, are not
            played.
        repeat: play the log so many times in a row, its units as new ones each time, where it is too short.
        model_id, version, last_hours: which logged requests, see `plan`.

    Returns:
        A `Replayed`; print its `in_words()`.

    Raises:
        InvalidInput: an argument outside its range, a policy that cannot be played, an effect that the log cannot show,
            no logged requests, or a metric or guardrail that was not logged.
        StoreError: the store cannot be read.
    """
    checks.integer("runs", runs, low=1)
    checks.integer("seed", seed, low=0)
    checks.integer("repeat", repeat, low=1, high=1000)
    if not isinstance(what_if, WhatIf):
        raise InvalidInput("what_if", what_if, "a WhatIf")
    asked = _checked(policy, judge)
    with store_of(source) as store:
        model_id, version = defaults_of(source, model_id, version)
        logged = find_logged(store, model_id=model_id, version=version, last_hours=last_hours)
        if isinstance(policy, AnalysisPlan):
            log = read_log(store, logged, _TIMES_AND_ERRORS, metrics=policy.metrics, scorers=tuple(what_if.scores))
        else:
            log = read_log(store, logged, _TIMES_AND_ERRORS, scorers=None)
    _check_guardrails(policy, log)
    what_if.check(log)
    rng, whole = np.random.default_rng(seed), log.repeated(repeat) if repeat > 1 else log
    if isinstance(policy, AnalysisPlan):
        made = tuple(_plan_run(policy, whole, what_if, rng) for _ in range(runs))
    else:
        assert asked is not None, "checked before"
        made = tuple(_switch_run(policy, asked, whole, what_if, rng) for _ in range(runs))
    return _replayed(policy, what_if, logged, whole, made)


_TIMES_AND_ERRORS = ("latency_s", "first_token_s", "error", "fallback")


def _checked(policy: object, judge: Judge | None) -> Judge | None:
    """The judge of a strategy; a plan has none."""
    if isinstance(policy, AnalysisPlan):
        if judge is not None:
            raise InvalidInput("judge", judge, "none: a plan decides by its own rules")
        check_replayable_plan(policy)
        return None
    if not isinstance(policy, Strategy):
        raise InvalidInput("policy", policy, "a strategy such as CanaryStrategy, or an AnalysisPlan")
    check_replayable(policy)
    asked = judge or default_judge(policy)
    if asked is None:
        raise InvalidInput("judge", None, f"a judge: {type(policy).__name__} has none of its own")
    return asked


def _check_guardrails(policy: Strategy | AnalysisPlan, log: RequestLog) -> None:
    """A guardrail that was never measured holds for ever: that is no finding about the policy."""
    known = {"error_rate", *log.scorers}
    known |= {f"{name}_p{q}_s" for name in ("latency", "first_token") for q in (50, 95, 99)}
    for rail in getattr(policy, "guardrails", ()) if not isinstance(policy, AnalysisPlan) else ():
        if rail.metric not in known:
            raise InvalidInput("policy.guardrails", rail.metric, f"one of {', '.join(sorted(known))}")


def _switch_run(
    policy: Strategy, judge: Judge, log: RequestLog, what_if: WhatIf, rng: np.random.Generator
) -> ReplayRun:
    found = replay_switch(policy, judge, log, what_if, rng)
    reason = found.simulated.operation.reason
    return ReplayRun(ending=found.ending, hours=found.simulated.hours, exposed=found.exposed, reason=reason)


def _plan_run(policy: AnalysisPlan, log: RequestLog, what_if: WhatIf, rng: np.random.Generator) -> ReplayRun:
    found = replay_plan(policy, log, what_if, rng)
    reason = found.verdict.reasons[0] if found.verdict else "the log has fewer units than the plan needs"
    return ReplayRun(ending=found.ending, hours=found.hours, exposed=found.exposed, reason=reason)


def _replayed(
    policy: Strategy | AnalysisPlan, what_if: WhatIf, logged: Logged, log: RequestLog, runs: tuple[ReplayRun, ...]
) -> Replayed:
    return Replayed(
        policy=f"{policy.design} test" if isinstance(policy, AnalysisPlan) else f"{policy.type.value} switch",
        what_if=what_if,
        model_id=logged.model_id,
        version=logged.version,
        alpha=float(getattr(policy, "alpha", math.nan)),
        requests=log.at_s.size,
        units=log.n_units,
        span_s=log.span_s,
        runs=runs,
    )
