"""`GrowingEvidence`: the evidence of an operation, look by look, each of which reads the rows that came since.

The tables of evidence only ever grow at their end, so a row's number says whether it was read. Nothing else is kept of
the rows than running moments, each unit's sums, and the values of quantiles. Should rows have been renumbered (old ones
went by retention) or scores been corrected afterwards, everything is read again once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metrics import Metric, Paired, Quantile, check_design
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.selection import Where
from abswitch.store.columns import ANSWER_COLUMNS, ARMS, ASSIGNED_COLUMNS, Batch, ValueColumns
from abswitch.store.evidence import stored_digest
from abswitch.store.metric_moments import request_values, summary_of
from abswitch.store.recorder import Recorder
from abswitch.store.running import RunningMoments, RunningOrder

_STATE = ("answered", "errored", "fallback")


class Mark(NamedTuple):
    """Where the tables end at a moment: row numbers, and the id of the last request."""

    requests: int = -1
    scores: int = -1
    request_id: str | None = None


class _Arm:
    """What is known of one arm."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.requests = 0
        self.units: Counter[str] = Counter()  # requests of each
        self.analysed: set[str] = set()  # those with an answer
        self.repeated = self.crossed = 0
        self.tally: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.metrics: dict[str, RunningMoments | RunningOrder] = {
            metric.name: RunningOrder(metric) if isinstance(metric, Quantile) else RunningMoments(metric)
            for metric in metrics
            if not isinstance(metric, Paired)
        }

    def request(self, unit_id: str, state: Mapping[str, bool]) -> None:
        self.requests += 1
        self.units[unit_id] += 1
        self.repeated += self.units[unit_id] == 2
        if state["answered"]:
            self.analysed.add(unit_id)
        self.tally.update(name for name, is_so in state.items() if is_so)

    def evidence(self, version: str, metrics: Sequence[Metric], *, by_unit: bool) -> ArmEvidence:
        return ArmEvidence(
            version=version,
            assigned=len(self.units),
            analysed=len(self.analysed),
            requests=self.requests,
            failed=self.tally["errored"],
            fallbacks=self.tally["fallback"],
            score_failures={scorer: n for scorer, n in self.failures.items() if n},
            summaries={metric.name: self._summary(metric, by_unit=by_unit) for metric in metrics},
        )

    def _summary(self, metric: Metric, *, by_unit: bool) -> MetricSummary:
        running = self.metrics[metric.name]
        if isinstance(running, RunningOrder):
            return running.summary(by_unit=by_unit)
        assert not isinstance(metric, Paired | Quantile), "they have no moments"
        return summary_of(metric, running.joint(by_unit=by_unit), by_unit=by_unit)


class Growing(ABC):
    """Reads the rows of an operation's metrics as they come, each once.

    Not for several threads at once. Take a `mark`, have the scorers catch up, then `advance` to it: so no answer is
    read before its scores.
    """

    def __init__(self, recorder: Recorder, operation_id: str, metrics: Sequence[Metric]) -> None:
        self._recorder, self._operation_id, self._metrics = recorder, operation_id, tuple(metrics)
        self._scorers = sorted(
            {name for metric in metrics for name in metric.columns} - {*ANSWER_COLUMNS, *ASSIGNED_COLUMNS}
        )
        self._digest: str | None = None
        self.rows_read = 0
        self._mark = Mark()
        self._began_at_s: float | None = None
        self._forget()

    @abstractmethod
    def _forget(self) -> None:
        """Begin anew, with no row read."""

    @abstractmethod
    def _read(self, batch: Batch, where: tuple[Where, ...], metrics: Sequence[Metric]) -> None:
        """Take in some rows, for the metrics of these conditions."""

    @abstractmethod
    def requests(self) -> int:
        """In all arms so far."""

    @abstractmethod
    def evidence(self, plan: AnalysisPlan, candidate_arm: str = "candidate") -> Evidence:
        """What was taken in so far."""

    def mark(self) -> Mark:
        """Where the tables end now.

        Raises:
            StoreError: the store cannot be read.
        """
        since = self._mark
        sql = f"""SELECT (SELECT max(rowid) FROM requests WHERE rowid > {since.requests:d}),
  (SELECT arg_max(request_id, rowid) FROM requests WHERE rowid > {since.requests:d}),
  (SELECT max(rowid) FROM scores WHERE rowid > {since.scores:d})"""
        ((requests, request_id, scores),) = self._recorder.rows(sql)
        return Mark(
            since.requests if requests is None else int(requests),
            since.scores if scores is None else int(scores),
            since.request_id if requests is None else request_id,
        )

    def advance(self, mark: Mark) -> None:
        """Take in what came up to a mark.

        Raises:
            StoreError: the store cannot be read.
        """
        if self._was_rewritten():
            self._mark, self._began_at_s = Mark(), None
            self._forget()
        if mark.requests <= self._mark.requests:
            return
        batch = Batch(self._mark.requests, mark.requests, self._mark.scores)
        groups: dict[tuple[Where, ...], list[Metric]] = {(): []}
        for metric in self._metrics:
            groups.setdefault(metric.where, []).append(metric)
        for where, metrics in groups.items():
            self._read(batch, where, metrics)
        self._mark = mark

    def _was_rewritten(self) -> bool:
        """Whether rows that were read have other numbers now, or scores were given afterwards."""
        since = self._mark
        if since.requests < 0:
            return False
        found = self._recorder.rows(f"SELECT request_id FROM requests WHERE rowid = {since.requests:d}")
        if not found or found[0][0] != since.request_id:
            return True
        if not self._scorers:
            return False
        given = ", ".join("?" * len(self._scorers))
        late = (
            f"SELECT count(*) FROM scores WHERE rowid > {since.scores:d} AND source <> 'scorer' AND scorer IN ({given})"
        )
        return bool(self._recorder.rows(late, self._scorers)[0][0])

    @property
    def _stored_digest(self) -> str | None:
        if self._digest is None:
            self._digest = stored_digest(self._recorder, self._operation_id)
        return self._digest

    @property
    def _dropped(self) -> int:
        return self._recorder.missing_since(self._began_at_s or 0.0)

    def _began(self, at_s: float) -> None:
        self._began_at_s = at_s if self._began_at_s is None else min(self._began_at_s, at_s)


class GrowingEvidence(Growing):
    """Equal to what `collect_evidence` finds at the same moment, segments aside, at the price of the new rows.

    Args:
        recorder: the store.
        operation_id: whose requests.
        plan: its metrics; of several candidates any of their plans.
        arms: `stable` and every candidate's.

    Raises:
        InvalidInput: a metric that the design cannot hold.
    """

    def __init__(
        self, recorder: Recorder, operation_id: str, plan: AnalysisPlan, *, arms: Sequence[str] = ARMS
    ) -> None:
        check_design(plan.metrics, plan.design)
        self._names = tuple(arms)
        super().__init__(recorder, operation_id, plan.metrics)

    def _forget(self) -> None:
        self._arms = {name: _Arm(self._metrics) for name in self._names}

    def requests(self) -> int:
        """In all arms so far."""
        return sum(arm.requests for arm in self._arms.values())

    def evidence(self, plan: AnalysisPlan, candidate_arm: str = "candidate") -> Evidence:
        """What was taken in so far.

        Args:
            plan: of the pair.
            candidate_arm: of several candidates, the one compared with the stable version.

        Raises:
            InvalidInput: a `Rate` of a column that holds more than 0 and 1.
            StoreError: the store cannot be read.
        """
        stable, candidate = self._arms[self._names[0]], self._arms[candidate_arm]
        repeated = stable.repeated + candidate.repeated
        return Evidence(
            baseline=stable.evidence(plan.baseline, self._metrics, by_unit=repeated > 0),
            candidate=candidate.evidence(plan.candidate, self._metrics, by_unit=repeated > 0),
            plan_digest=self._stored_digest,
            dropped_rows=self._dropped,
            repeated_units=repeated,
            crossed_units=candidate.crossed,
        )

    def _count_crossing(self, name: str, unit_id: str) -> None:
        """A unit is new in an arm: has it been in the stable one, or the other way round?"""
        stable, *others = self._names
        for candidate in others if name == stable else [name]:
            met = self._arms[candidate if name == stable else stable]
            self._arms[candidate].crossed += unit_id in met.units

    def _read(self, batch: Batch, where: tuple[Where, ...], metrics: Sequence[Metric]) -> None:
        names = [n for m in metrics for n in (*m.columns, *([m.covariate] if m.covariate else []))]
        if not where:
            names += self._scorers
        columns = ValueColumns(
            self._recorder,
            self._operation_id,
            names,
            where=where,
            arms=self._names,
            batch=batch,
            keys=("admitted_at_s",),
        )
        quantiles = [metric for metric in metrics if isinstance(metric, Quantile)]
        additive = [metric for metric in metrics if not isinstance(metric, Quantile | Paired)]
        failures = [columns.failures(scorer) for scorer in self._scorers] if not where else []
        values = [*map(columns.column, (one.column for one in quantiles)), *request_values(columns, additive)]
        asked = ", ".join(("arm", "unit_id", "admitted_at_s", *_STATE, *failures, *values))
        rows = self._recorder.rows(f"{columns.with_clause} SELECT {asked} FROM value_rows", columns.params)
        self.rows_read += len(rows)
        for row in rows:
            self._take(row, is_first=not where, failures=len(failures), quantiles=quantiles, additive=additive)

    def _take(
        self,
        row: tuple[Any, ...],
        *,
        is_first: bool,
        failures: int,
        quantiles: Sequence[Metric],
        additive: Sequence[Metric],
    ) -> None:
        name, unit_id, at_s, *rest = row
        arm = self._arms[name]
        state, rest = rest[: len(_STATE)], rest[len(_STATE) :]
        if is_first:  # the group without conditions sees every request, once
            if unit_id not in arm.units:
                self._count_crossing(name, unit_id)
            arm.request(unit_id, dict(zip(_STATE, state, strict=True)))
            self._began(at_s)
            for scorer, n in zip(self._scorers, rest[:failures], strict=True):
                arm.failures[scorer] += n or 0
            rest = rest[failures:]
        for metric, value in zip(quantiles, rest, strict=False):
            running = arm.metrics[metric.name]
            assert isinstance(running, RunningOrder)
            running.add(unit_id, value)
        values = rest[len(quantiles) :]
        for index, metric in enumerate(additive):
            moments = arm.metrics[metric.name]
            assert isinstance(moments, RunningMoments)
            moments.add(unit_id, *values[4 * index : 4 * index + 4])
