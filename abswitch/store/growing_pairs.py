"""`GrowingPairs`: the evidence of a paired comparison, look by look, each of which reads the rows that came since.

Of a pair whose other side is still to come, one row is kept until it does. Of the pairs that are whole, each unit's
sums are; what a look makes of them is arithmetic on arrays in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from abswitch import checks
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.metrics import Metric
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.selection import Where
from abswitch.store.columns import Batch, ValueColumns
from abswitch.store.growing import Growing
from abswitch.store.joint_evidence import PAIRED_ROWS, Floats, check_metrics, pairs_found
from abswitch.store.recorder import Recorder

_STATE = ("answered", "errored", "fallback")
_FIRST = 64
_Row = tuple[Any, ...]


class _Sums:
    """Of each unit, how many whole pairs it brought, and the sums of their values, the baseline's columns first."""

    def __init__(self, cells: int) -> None:
        self._at: dict[str, int] = {}
        self._sums = np.zeros((_FIRST, cells))
        self._pairs = np.zeros(_FIRST)

    def add(self, unit_id: str, values: Sequence[float]) -> None:
        at = self._at.setdefault(unit_id, len(self._at))
        if at == len(self._pairs):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
            self._pairs = np.concatenate([self._pairs, np.zeros_like(self._pairs)])
        self._sums[at] += values
        self._pairs[at] += 1

    def means(self) -> tuple[list[Floats], bool]:
        """Each unit's means, and whether a unit has several pairs."""
        n = len(self._at)
        pairs = self._pairs[:n]
        return list((self._sums[:n] / pairs[:, None]).T), bool((pairs > 1).any())


class _Side:
    """What became of one version's requests, of whole pairs."""

    def __init__(self) -> None:
        self.analysed: set[str] = set()
        self.tally: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def take(self, unit_id: str, state: Sequence[bool], scorers: Sequence[str], failures: Sequence[int | None]) -> None:
        if state[0]:
            self.analysed.add(unit_id)
        self.tally.update(name for name, is_so in zip(_STATE, state, strict=True) if is_so)
        for scorer, n in zip(scorers, failures, strict=True):
            self.failures[scorer] += n or 0


class GrowingPairs(Growing):
    """Equal to what `collect_joint_evidence` finds of pairs at the same moment, at the price of the new rows.

    Args:
        recorder: the store.
        operation_id: whose requests.
        plan: of the paired design.

    Raises:
        InvalidInput: a metric that the design cannot hold.
    """

    def __init__(self, recorder: Recorder, operation_id: str, plan: AnalysisPlan) -> None:
        check_metrics(plan)
        super().__init__(recorder, operation_id, plan.metrics)

    def _forget(self) -> None:
        self._halves: dict[tuple[Where, ...], dict[str, tuple[bool, _Row]]] = {}
        self._sides = (_Side(), _Side())
        self._units: set[str] = set()
        self._whole = 0
        self._sums = {metric.name: _Sums(2 * len(metric.columns)) for metric in self._metrics}

    def requests(self) -> int:
        """Of whole pairs so far, two each."""
        return 2 * self._whole

    def evidence(self, plan: AnalysisPlan, candidate_arm: str = "candidate") -> Evidence:
        """What was taken in so far.

        Raises:
            InvalidInput: a `Rate` of a column that holds more than 0 and 1.
            StoreError: the store cannot be read.
        """
        checks.one_of("candidate_arm", candidate_arm, ("candidate",))  # a pair has two sides
        arms = [self._arm(side) for side in self._sides]
        found, joint = pairs_found(plan, arms, {name: sums.means() for name, sums in self._sums.items()})
        return Evidence(
            baseline=found[0],
            candidate=found[1],
            plan_digest=self._stored_digest,
            dropped_rows=self._dropped,
            joint=joint,
        )

    def _arm(self, side: _Side) -> ArmEvidence:
        return ArmEvidence(
            version="",
            assigned=len(self._units),
            analysed=len(side.analysed),
            requests=self._whole,
            failed=side.tally["errored"],
            fallbacks=side.tally["fallback"],
            score_failures={scorer: n for scorer, n in side.failures.items() if n},
        )

    def _read(self, batch: Batch, where: tuple[Where, ...], metrics: Sequence[Metric]) -> None:
        names = [name for metric in metrics for name in metric.columns]
        columns = ValueColumns(
            self._recorder,
            self._operation_id,
            [*names, *([] if where else self._scorers)],
            where=where,
            rows=PAIRED_ROWS,
            batch=batch,
            keys=("request_id", "pair_id", "admitted_at_s"),
        )
        failures = [] if where else [columns.failures(scorer) for scorer in self._scorers]
        asked = ", ".join((*_STATE, *failures, *map(columns.column, names)))
        sql = f"""{columns.with_clause}
SELECT coalesce(pair_id, request_id), arm = 'stable', unit_id, admitted_at_s, {asked}
FROM value_rows WHERE NOT cancelled"""
        rows = self._recorder.rows(sql, columns.params)
        self.rows_read += len(rows)
        halves = self._halves.setdefault(where, {})
        for pair, is_baseline, *row in rows:
            if not where:
                self._began(row[1])
            other = halves.get(pair)
            if other is None or other[0] == is_baseline:
                halves[pair] = (is_baseline, tuple(row))
                continue
            del halves[pair]
            sides = (tuple(row), other[1]) if is_baseline else (other[1], tuple(row))
            self._take(sides, metrics, is_first=not where, failures=len(failures))

    def _take(self, sides: tuple[_Row, _Row], metrics: Sequence[Metric], *, is_first: bool, failures: int) -> None:
        """One pair that is whole now; its unit is the baseline's."""
        unit_id, end = sides[0][0], 2 + len(_STATE)
        if is_first:  # the group without conditions sees every pair, once
            self._whole += 1
            self._units.add(unit_id)
            for side, row in zip(self._sides, sides, strict=True):
                side.take(unit_id, row[2:end], self._scorers, row[end : end + failures])
        at = end + failures
        for metric in metrics:
            values = [value for row in sides for value in row[at : at + len(metric.columns)]]
            at += len(metric.columns)
            if None not in values:
                self._sums[metric.name].add(unit_id, values)
