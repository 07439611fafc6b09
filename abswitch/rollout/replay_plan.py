"""A test's plan played over logged requests: what its verdict would have been. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.rollout.replay import RequestLog, WhatIf
from abswitch.stats.column_summaries import summarise
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.looks import Look
from abswitch.stats.metrics import Metric
from abswitch.stats.plan import RANDOMISED, AnalysisPlan
from abswitch.stats.verdict import Verdict, decide

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReplay:
    """One test played over a log.

    Attributes:
        ending: the verdict's decision, or `undecided`: the log was over before the plan's units were there.
        verdict: of the look that decided; None where none did.
        hours: from the log's first request to that look.
        units: seen by then, in both arms.
        exposed: requests that the candidate would have got by then.
    """

    ending: str
    verdict: Verdict | None
    hours: float
    units: int
    exposed: int


def replay_plan(plan: AnalysisPlan, log: RequestLog, what_if: WhatIf, rng: np.random.Generator) -> PlanReplay:
    """Take the looks that a plan allows over a log whose units are split anew, until one decides.

    Looks are due after so many requests, as in a live test; the last one when the planned number of units has come.

    Raises:
        InvalidInput: a design that a log of one version cannot play, or a metric's column that was not logged.
    """
    check_replayable_plan(plan)
    changed = what_if.applied(log, rng)
    mine = (rng.random(log.n_units) < plan.expected_share)[log.units]
    ends = _rows_by_units(log)
    for look, rows in _looks(plan, _planned_rows(plan, ends)):
        if rows > log.at_s.size:
            break
        verdict = decide(plan, _evidence(plan, log, changed, mine, rows), look)
        if verdict.is_final:
            return PlanReplay(
                ending=verdict.decision.value,
                verdict=verdict,
                hours=float(log.at_s[rows - 1] - log.at_s[0]) / 3600.0,
                units=int(np.searchsorted(ends, rows, side="right")),
                exposed=int(mine[:rows].sum()),
            )
    hours = log.span_s / 3600.0
    return PlanReplay(ending="undecided", verdict=None, hours=hours, units=ends.size, exposed=int(mine.sum()))


def check_replayable_plan(plan: AnalysisPlan) -> None:
    """Units are split between two arms.

    Raises:
        InvalidInput: another design.
    """
    if plan.design != RANDOMISED:
        raise InvalidInput("policy.design", plan.design, f"{RANDOMISED}: a log of one version has no pairs or blocks")


def _planned_rows(plan: AnalysisPlan, ends: NDArray[np.int64]) -> int:
    """Requests by which the planned units have come; where the log has fewer, as many as its rate of new units says."""
    if plan.planned_n <= ends.size:
        return int(ends[plan.planned_n - 1])
    return math.ceil(plan.planned_n * int(ends[-1]) / ends.size) + 1


def _looks(plan: AnalysisPlan, planned_rows: int) -> Iterator[tuple[Look, int]]:
    """Each look with the requests after which it is due; see `abswitch.looking.Looks`."""
    every = plan.look_every
    if plan.look_count is not None:
        dues = [-(-planned_rows * number // plan.look_count) for number in range(1, plan.look_count)]
    else:
        dues = [] if every is None else list(range(every, planned_rows, every))
    dues = [*dict.fromkeys(due for due in dues if due < planned_rows), planned_rows]
    for number, due in enumerate(dues, start=1):
        fractions = tuple(one / planned_rows for one in dues[:number]) if plan.look_count is not None else ()
        yield Look(number=number, last=number == len(dues), fractions=fractions), due


def _rows_by_units(log: RequestLog) -> NDArray[np.int64]:
    """How many rows there are when the first, second, … unit has come; shape (units,)."""
    _, first = np.unique(log.units, return_index=True)
    return np.sort(first).astype(np.int64) + 1


def _evidence(plan: AnalysisPlan, log: RequestLog, changed: RequestLog, mine: Bools, rows: int) -> Evidence:
    """What the store would have told: of the first rows, the stable arm's as logged, the other's as changed."""
    sides = [
        _Side(plan.baseline, log, np.flatnonzero(~mine[:rows])),
        _Side(plan.candidate, changed, np.flatnonzero(mine[:rows])),
    ]
    repeated = sum(side.repeated for side in sides)
    arms = [side.evidence(plan, by_unit=repeated > 0) for side in sides]
    return Evidence(baseline=arms[0], candidate=arms[1], plan_digest=plan.committed, repeated_units=repeated)


@dataclass(frozen=True, slots=True)
class _Side:
    """One arm: which rows of a log are its own."""

    version: str
    log: RequestLog
    rows: NDArray[np.int64]

    @property
    def _answered(self) -> NDArray[np.int64]:
        return self.rows[self.log.counted[self.rows] & ~self.log.failed[self.rows]]

    @property
    def repeated(self) -> int:
        """Units with several requests."""
        return int((np.bincount(self.log.units[self.rows]) > 1).sum())

    def evidence(self, plan: AnalysisPlan, *, by_unit: bool) -> ArmEvidence:
        """As `collect_evidence` makes it."""
        log, answered = self.log, self._answered
        scored = [name for name in log.scorers if any(name in metric.columns for metric in plan.metrics)]
        missing = {name: int(np.isnan(log.columns[name][answered]).sum()) for name in scored}
        return ArmEvidence(
            version=self.version,
            assigned=int(np.unique(log.units[self.rows]).size),
            analysed=int(np.unique(log.units[answered]).size),
            requests=self.rows.size,
            failed=int(log.failed[self.rows].sum()),
            score_failures={name: n for name, n in missing.items() if n},
            summaries={metric.name: self._summary(metric, by_unit=by_unit) for metric in plan.metrics},
        )

    def _summary(self, metric: Metric, *, by_unit: bool) -> MetricSummary:
        log, rows = self.log, self.rows
        if metric.name in log.selected:
            rows = rows[log.selected[metric.name][rows]]
        named = [*metric.columns, *([metric.covariate] if metric.covariate else [])]
        columns = {name: log.columns[checks.one_of("metric.column", name, log.columns)][rows] for name in named}
        return summarise(metric, columns, log.units[rows], by_unit=by_unit)
