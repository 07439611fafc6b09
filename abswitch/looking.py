"""`Looks`: looking at an experiment while its traffic flows, and writing down what each look found.

A look reads the rows that came since the one before, decides by the plan's rules, and is kept: a row of `verdicts`, and
one of `looks` for each metric and candidate. The first look that decides ends the test of its candidate.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from abswitch.errors import InvalidInput
from abswitch.records import LookRecord
from abswitch.rollout.judging import Judgement, Ruling
from abswitch.rollout.operation import Operation
from abswitch.serving.router import STABLE, candidate_name
from abswitch.stats.comparison import finite
from abswitch.stats.evidence import Evidence
from abswitch.stats.family import FamilyPlan, decide_family, overall, winner_of
from abswitch.stats.looks import Look, alpha_spent, finding_of
from abswitch.stats.plan import GROUP_SEQUENTIAL, PAIRED, RANDOMISED, AnalysisPlan
from abswitch.stats.rules import CONTINUE, Decision
from abswitch.stats.verdict import Verdict, decide
from abswitch.store.evidence import collect_evidence
from abswitch.store.growing import Growing, GrowingEvidence, Mark
from abswitch.store.growing_pairs import GrowingPairs
from abswitch.store.joint_evidence import collect_joint_evidence
from abswitch.store.recorder import Recorder, VerdictRecord

SPLIT = "sample_ratio"
"""How the check of the split is called in the table `looks`."""
Plan = AnalysisPlan | FamilyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of every candidate after a look.

    Attributes:
        verdicts, evidence: by candidate, the switch's target first. A verdict that ended the test of its candidate
            stays, with what it rested on.
        winner: of several candidates, the best of those that are shown better.
        look: number of the look, from 1.
    """

    verdicts: Mapping[str, Verdict]
    evidence: Mapping[str, Evidence]
    winner: str | None
    look: int

    @property
    def is_final(self) -> bool:
        """Whether every candidate's test is over."""
        return all(verdict.is_final for verdict in self.verdicts.values())

    @property
    def decision(self) -> Decision:
        """Of all candidates together."""
        return overall(self.verdicts)


class Looks:
    """The looks at one operation. One thread at a time.

    Args:
        store: has the operation's plan and rows; earlier looks of the same operation are continued.
        operation_id: a switch by the strategy `ab_test`, or a paired comparison, of which whole pairs count, as two
            requests each.
        plan: as it was stored.
        planned_requests: of all arms; as many as the plan has units by default. By them goes what is planned of looks.
        wall_s: seconds since the epoch, now.
    """

    def __init__(
        self,
        store: Recorder,
        operation_id: str,
        plan: Plan,
        *,
        planned_requests: int | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.plan, self.operation_id = plan, operation_id
        self._store, self._wall_s = store, wall_s
        self._first = plan.first if isinstance(plan, FamilyPlan) else plan
        versions = [version for version, _ in plan.candidates] if isinstance(plan, FamilyPlan) else [plan.candidate]
        self._arms = {version: candidate_name(index) for index, version in enumerate(versions)}
        self._growing: Growing
        if self._first.design == PAIRED:
            self._growing = GrowingPairs(store, operation_id, self._first)
        else:
            self._growing = GrowingEvidence(store, operation_id, self._first, arms=(STABLE, *self._arms.values()))
        self._ended: dict[str, tuple[Verdict, Evidence]] = {}
        self._planned = self._first.planned_n if planned_requests is None else planned_requests
        self._number = self._requests = 0
        self._fractions: tuple[float, ...] = ()
        self.was_over = False
        """Whether an earlier process had come to its verdict."""
        self._go_on()

    def _go_on(self) -> None:
        sql = """SELECT look, rule, CAST(body->>'requests_seen' AS BIGINT) FROM verdicts
            WHERE operation_id = ? ORDER BY look"""
        for look, rule, requests in self._store.rows(sql, (self.operation_id,)):
            self._number, self._requests, self.was_over = int(look), int(requests or 0), rule != CONTINUE
            self._fractions = (*self._fractions, max(self._requests, 1) / self._planned)

    @property
    def next_at(self) -> int:
        """Requests in all from which the next look is due; where only the last one is left, more than are planned."""
        plan, number = self._first, self._number + 1
        if plan.look_count is not None and number < plan.look_count:
            return max(self._requests + 1, -(-self._planned * number // plan.look_count))
        if plan.look_every is not None:
            return self._requests + plan.look_every * plan.meets
        return max(self._planned, self._requests) + 1

    @property
    def wanting(self) -> int:
        """How many more requests it takes until the next look is due, 1 at least."""
        return max(1, self.next_at - self._growing.requests())

    @property
    def is_spent(self) -> bool:
        """Whether as many requests as were planned have been taken in: the last look is due."""
        return self._growing.requests() >= self._planned

    def mark(self) -> Mark:
        """Where the rows end now; have the scorers catch up before `take`."""
        return self._growing.mark()

    def take(self, mark: Mark) -> Standing | None:
        """Look at everything up to a mark; None where too few requests came for another look.

        Raises:
            StoreError: the store cannot be read; nothing was counted as a look.
        """
        self._growing.advance(mark)
        requests = self._growing.requests()
        if requests < self.next_at:
            return None
        evidence = {version: self._growing.evidence(self._pair(version), arm) for version, arm in self._arms.items()}
        return self._look(evidence, requests, last=False)

    def close(self) -> Standing:
        """The last look, at everything that was recorded, segments included.

        A candidate whose test was ended by an earlier look keeps that verdict, unless all data say the same; a group
        sequential one in any case, as looks beyond those planned are none.
        """
        evidence = {version: self._collect(self._pair(version), arm) for version, arm in self._arms.items()}
        some = next(iter(evidence.values()))
        requests = some.baseline.requests + sum(one.candidate.requests for one in evidence.values())
        return self._look(evidence, requests, last=True)

    def _collect(self, plan: AnalysisPlan, arm: str) -> Evidence:
        if plan.design == PAIRED:
            return collect_joint_evidence(self._store, self.operation_id, plan)
        return collect_evidence(self._store, self.operation_id, plan, candidate_arm=arm)

    def _pair(self, version: str) -> AnalysisPlan:
        return self.plan.pair(version) if isinstance(self.plan, FamilyPlan) else self.plan

    def _look(self, evidence: dict[str, Evidence], requests: int, *, last: bool) -> Standing:
        look = self._next(requests, last=last)
        found = self._decide(evidence, look)
        for version, verdict in found.items():
            ended = self._ended.get(version)
            if ended is not None and (self._is_planned or verdict.decision is not ended[0].decision):
                found[version], evidence[version] = ended
            elif verdict.is_final and not last:
                self._ended.setdefault(version, (verdict, evidence[version]))
        winner = None
        if isinstance(self.plan, FamilyPlan):
            winner = winner_of(self.plan, found)
        standing = Standing(verdicts=found, evidence=evidence, winner=winner, look=look.number)
        self._keep(standing, look)
        return standing

    @property
    def _is_planned(self) -> bool:
        return self._first.evaluation == GROUP_SEQUENTIAL

    def _next(self, requests: int, *, last: bool) -> Look:
        """A last look without new requests is the one before, with nothing to follow."""
        if not (last and self._number and requests <= self._requests):
            self._number, self._requests = self._number + 1, requests
            self._fractions = (*self._fractions, max(requests, 1) / self._planned)
        return Look(number=self._number, last=last, fractions=self._fractions if self._is_planned else ())

    def _decide(self, evidence: Mapping[str, Evidence], look: Look) -> dict[str, Verdict]:
        if isinstance(self.plan, FamilyPlan):
            return decide_family(self.plan, evidence, look)
        return {version: decide(self.plan, one, look) for version, one in evidence.items()}

    # --- writing down -----------------------------------------------------------------------------------------------

    def _keep(self, standing: Standing, look: Look) -> None:
        at_s = self._wall_s()
        for version, verdict in standing.verdicts.items():
            for record in self._records(version, verdict, look, at_s):
                self._store.look(record)
        self._verdict(standing, at_s).result()

    def _verdict(self, standing: Standing, at_s: float) -> Future[None]:
        target = next(iter(standing.verdicts.values()))
        several = len(standing.verdicts) > 1
        shown = standing.verdicts[standing.winner] if standing.winner is not None else target
        body = target.to_dict() | {"requests_seen": self._requests}
        if several:
            body |= {
                "winner": standing.winner,
                "candidates": {version: one.to_dict() for version, one in standing.verdicts.items()},
            }
        return self._store.verdict(
            VerdictRecord(
                operation_id=self.operation_id,
                look=standing.look,
                decision=(standing.decision if several else target.decision).value,
                rule=shown.rule if standing.is_final or not several else CONTINUE,
                reason=shown.reasons[0],
                body=body,
                at_s=at_s,
            )
        )

    def _records(self, version: str, verdict: Verdict, look: Look, at_s: float) -> Iterator[LookRecord]:
        ratio = verdict.sample_ratio
        split = LookRecord(
            operation_id=self.operation_id,
            look=look.number,
            metric=SPLIT,
            role="validity",
            method=ratio.method,
            arm=self._arms[version],
            n_baseline=ratio.baseline,
            n_candidate=ratio.candidate,
            estimate=finite(ratio.observed_share - ratio.expected_share),
            low=None,
            high=None,
            p_value=finite(ratio.p_value),
            e_value=None,
            alpha_spent=ratio.alpha,
            decision="mismatch" if ratio.mismatch else "as planned",
            at_s=at_s,
        )
        yield split
        pair = self._pair(version)
        for metric in pair.metrics:
            found = verdict.comparisons.get(metric.name)
            if found is None:
                continue
            yield split._replace(
                metric=metric.name,
                role=str(metric.role),
                method=found.method,
                n_baseline=found.baseline.n,
                n_candidate=found.candidate.n,
                estimate=finite(found.estimate),
                low=finite(found.low),
                high=finite(found.high),
                p_value=finite(found.p_value),
                e_value=finite(found.e_value),
                alpha_spent=alpha_spent(pair, look),
                decision=finding_of(metric, found),
            )


def plan_of(store: Recorder, operation_id: str) -> Plan | None:
    """The plan that an operation was started with; None without one."""
    rows = store.rows("SELECT body FROM plans WHERE operation_id = ?", (operation_id,))
    if not rows:
        return None
    body: dict[str, Any] = json.loads(rows[0][0])
    return FamilyPlan.of(body) if "others" in body else AnalysisPlan.of(body)


class PlannedJudge:
    """Judges A/B tests by the plan that they were started with: a look each evaluation period, until one decides.

    A winner gets all traffic; whatever else ends a test (worse, equivalent, harm, invalid, or as many requests as were
    planned without a decision) brings it back. Everything is read from the store, so that it goes on after a restart.

    Args:
        caught_up: waits until what was answered before has its scores.
    """

    def __init__(self, store: Recorder, caught_up: Callable[[], Awaitable[None]]) -> None:
        self._store, self._caught_up = store, caught_up
        self._looks: dict[str, Looks] = {}

    async def __call__(self, operation: Operation) -> Judgement:
        """What the plan's rules make of everything up to now.

        Raises:
            InvalidInput: the operation has no plan of the randomised design.
            StoreError: the store cannot be read.
        """
        looks = await asyncio.to_thread(self._looks_of, operation.operation_id)
        mark = await asyncio.to_thread(looks.mark)
        await self._caught_up()
        standing = await asyncio.to_thread(looks.take, mark)
        if looks.is_spent or (standing is not None and standing.is_final):
            self._looks.pop(operation.operation_id, None)
            return _judgement(await asyncio.to_thread(looks.close))
        if standing is None:
            return Judgement(ruling=Ruling.HOLD, reason=f"the next look takes {looks.wanting} more requests")
        words = (f"{version}: {one.reasons[0]}" for version, one in standing.verdicts.items())
        return Judgement(ruling=Ruling.HOLD, reason=f"look {standing.look}: {'; '.join(words)}")

    def _looks_of(self, operation_id: str) -> Looks:
        if operation_id not in self._looks:
            plan = plan_of(self._store, operation_id)
            if plan is None or (isinstance(plan, AnalysisPlan) and plan.design != RANDOMISED):
                allowed = "a judge, given to start_switch(judge=…) and not kept over a restart; or a plan to judge by"
                raise InvalidInput("judge", None, allowed)
            self._looks[operation_id] = Looks(self._store, operation_id, plan)
        return self._looks[operation_id]


def _judgement(standing: Standing) -> Judgement:
    target = next(iter(standing.verdicts))
    version = target if standing.winner is None else standing.winner
    verdict = standing.verdicts[version]
    ships = verdict.decision is Decision.SHIP
    reason = f"{verdict.headline} {verdict.reasons[0]}"
    return Judgement(ruling=Ruling.ADVANCE if ships else Ruling.ROLL_BACK, reason=reason, version=version)
