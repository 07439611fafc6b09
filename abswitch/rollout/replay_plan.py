"""A test's plan played over logged requests: what its verdict would have been. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abswitch.errors import InvalidInput
from abswitch.rollout.replay import RequestLog, WhatIf
from abswitch.stats.column_summaries import summarise
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.plan import RANDOMISED, AnalysisPlan
from abswitch.stats.verdict import Verdict, decide

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReplay:
    """One test played over a log.

    Attributes:
        ending: the verdict's decision, or `undecided`: the log was over before the plan's units were there.
        verdict: the last one that was taken; None where there was none.
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
    """Take the looks that a plan allows over a log whose units are split anew.

    Raises:
        InvalidInput: a design that a log of one version cannot play, or a metric's column that was not logged.
    """
    check_replayable_plan(plan)
    changed = what_if.applied(log, rng)
    mine = (rng.random(log.n_units) < plan.expected_share)[log.units]
    ends = _rows_by_units(log)
    found: PlanReplay | None = None
    for units in _looks(plan):
        if units > ends.size:
            break
        rows = int(ends[units - 1])
        verdict = decide(plan, _evidence(plan, log, changed, mine, rows))
        found = PlanReplay(
            ending=verdict.decision.value,
            verdict=verdict,
            hours=float(log.at_s[rows - 1] - log.at_s[0]) / 3600.0,
            units=units,
            exposed=int(mine[:rows].sum()),
        )
    if found is not None and found.units >= plan.planned_n:
        return found
    hours = log.span_s / 3600.0
    return PlanReplay(ending="undecided", verdict=None, hours=hours, units=ends.size, exposed=int(mine.sum()))


def check_replayable_plan(plan: AnalysisPlan) -> None:
    """Units are split between two arms.

    Raises:
        InvalidInput: another design.
    """
    if plan.design != RANDOMISED:
        raise InvalidInput("policy.design", plan.design, f"{RANDOMISED}: a log of one version has no pairs or blocks")


def _looks(plan: AnalysisPlan) -> Iterator[int]:
    """Units at each look."""
    yield plan.planned_n


def _rows_by_units(log: RequestLog) -> NDArray[np.int64]:
    """How many rows there are when the first, second, … unit has come; shape (units,)."""
    _, first = np.unique(log.units, return_index=True)
    return np.sort(first).astype(np.int64) + 1


def _evidence(plan: AnalysisPlan, log: RequestLog, changed: RequestLog, mine: Bools, rows: int) -> Evidence:
    """What the store would have told: of the first rows, the stable arm's as logged, the other's as changed."""
    sides = ((plan.baseline, log, ~mine), (plan.candidate, changed, mine))
    masks = [_first(chosen, rows) for _, _, chosen in sides]
    repeated = sum(_repeated(side, mask) for (_, side, _), mask in zip(sides, masks, strict=True))
    arms = [
        _arm(plan, version, side, mask, by_unit=repeated > 0)
        for (version, side, _), mask in zip(sides, masks, strict=True)
    ]
    return Evidence(baseline=arms[0], candidate=arms[1], plan_digest=plan.digest(), repeated_units=repeated)


def _first(chosen: Bools, rows: int) -> Bools:
    mask = chosen.copy()
    mask[rows:] = False
    return mask


def _answered(side: RequestLog, mask: Bools) -> Bools:
    return mask & side.counted & ~side.failed


def _repeated(side: RequestLog, mask: Bools) -> int:
    return int((np.bincount(side.units[_answered(side, mask)]) > 1).sum())


def _arm(plan: AnalysisPlan, version: str, side: RequestLog, mask: Bools, *, by_unit: bool) -> ArmEvidence:
    summaries = {}
    for metric in plan.metrics:
        chosen = mask & side.selected[metric.name] if metric.name in side.selected else mask
        columns = {name: values[chosen] for name, values in side.columns.items()}
        summaries[metric.name] = summarise(metric, columns, side.units[chosen], by_unit=by_unit)
    answered = _answered(side, mask)
    scored = [name for name in side.scorers if any(name in metric.columns for metric in plan.metrics)]
    return ArmEvidence(
        version=version,
        assigned=int(np.unique(side.units[mask]).size),
        analysed=int(np.unique(side.units[answered]).size),
        requests=int(mask.sum()),
        failed=int((mask & side.failed).sum()),
        score_failures={name: n for name in scored if (n := int((answered & np.isnan(side.columns[name])).sum()))},
        summaries=summaries,
    )
