"""Several candidates against one baseline: one plan, one verdict each, and the winner among them. Pure.

The more candidates, the likelier one of them looks better by chance, so they share the error rate. Looked at several
times, each has its part (Bonferroni), which holds at all looks together. Read once, they step down (Holm): the clearest
candidate needs its part of alpha, the next a part among one fewer, until one is not told apart.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.evidence import Evidence
from abswitch.stats.looks import ONLY_LOOK, Look
from abswitch.stats.metrics import Metric
from abswitch.stats.plan import FIXED, RANDOMISED, AnalysisPlan
from abswitch.stats.rules import Decision
from abswitch.stats.verdict import Verdict, decide

HOLM, BONFERRONI = "holm", "bonferroni"


@dataclass(frozen=True, slots=True)
class FamilyPlan:
    """The rules of an experiment with several candidates.

    Args:
        first: of the switch's target against the baseline: its metrics, error rate, evaluation and `planned_n` are
            those of the whole; `expected_share` is the target's share of all units.
        others: the other candidates, each with its share of all units, fraction.

    Raises:
        InvalidInput: another design than the randomised one, a candidate twice, or shares that leave the baseline none.
    """

    first: AnalysisPlan
    others: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        checks.one_of("plan.design", self.first.design, (RANDOMISED,))
        others = []
        for version, share in self.others:
            checks.name("plan.others", version)
            others.append((version, checks.number("plan.others", share, low=0.0, high=1.0, above=True)))
        object.__setattr__(self, "others", tuple(others))
        versions = [self.baseline, *(version for version, _ in self.candidates)]
        if len(set(versions)) < len(versions):
            raise InvalidInput("plan.others", versions[2:], "versions that differ from each other and the baseline")
        if not others or not self.baseline_share > 0:
            raise InvalidInput("plan.others", others, "one or more, whose shares leave some units to the baseline")

    @property
    def baseline(self) -> str:
        return self.first.baseline

    @property
    def candidate(self) -> str:
        """The switch's target."""
        return self.first.candidate

    @property
    def candidates(self) -> tuple[tuple[str, float], ...]:
        """Every candidate with its share of all units, the target first."""
        return ((self.first.candidate, self.first.expected_share), *self.others)

    @property
    def baseline_share(self) -> float:
        """Of all units, fraction."""
        return 1.0 - math.fsum(share for _, share in self.candidates)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return self.first.metrics

    @property
    def planned_n(self) -> int:
        """Units in all arms together."""
        return self.first.planned_n

    @property
    def correction(self) -> str:
        """How the candidates share the error rate."""
        return HOLM if self.first.evaluation == FIXED else BONFERRONI

    @property
    def committed(self) -> str:
        """Digest of what was stored before the first exposure."""
        return self.digest()

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `of` reads them back."""
        others = [[version, share] for version, share in self.others]
        return self.first.to_dict() | {"others": others, "correction": self.correction}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> FamilyPlan:
        """A plan from its dictionary.

        Raises:
            InvalidInput: as `AnalysisPlan.of`.
        """
        first = {name: one for name, one in value.items() if name not in ("others", "correction")}
        return cls(AnalysisPlan.of(first), tuple((version, share) for version, share in value["others"]))

    def digest(self) -> str:
        """SHA-256 over the plan's canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def pair(self, version: str, *, alpha: float | None = None) -> AnalysisPlan:
        """The plan of one candidate against the baseline.

        Args:
            alpha: its part of the error rate; that of Bonferroni by default.
        """
        share = dict(self.candidates)[version]
        both = share + self.baseline_share
        units = 1 if self.first.evaluation == FIXED else max(1, round(self.planned_n * both))
        return replace(
            self.first,
            candidate=version,
            expected_share=share / both,
            planned_n=units,  # of one look, those of all arms together are counted, see `decide_family`
            alpha=self.first.alpha / len(self.candidates) if alpha is None else alpha,
            srm_alpha=self.first.srm_alpha / len(self.candidates),
            part_of=self.digest(),
        )


def decide_family(plan: FamilyPlan, evidence: Mapping[str, Evidence], look: Look = ONLY_LOOK) -> dict[str, Verdict]:
    """One verdict for each candidate, the target's first.

    Args:
        plan: as it was stored before the first exposure.
        evidence: by candidate, each with the same baseline.
        look: as for `decide`.

    References:
        S. Holm, Scandinavian Journal of Statistics 6 (1979) 65–70.
    """
    versions = [version for version, _ in plan.candidates]
    if plan.correction == BONFERRONI:
        return {version: decide(plan.pair(version), evidence[version], look) for version in versions}
    units = sum(one.candidate.assigned for one in evidence.values()) + evidence[versions[0]].baseline.assigned
    if units < plan.planned_n:
        return {version: _too_early(plan, version, evidence[version], units) for version in versions}
    found = dict(_stepping_down(plan, evidence, look))
    return {version: found[version] for version in versions}


def _stepping_down(plan: FamilyPlan, evidence: Mapping[str, Evidence], look: Look) -> Iterator[tuple[str, Verdict]]:
    def p_value(version: str) -> float:
        found = decide(plan.pair(version), evidence[version], look).comparisons.get(plan.first.primary.name)
        return math.inf if found is None or not found.p_value >= 0 else found.p_value

    left = len(plan.candidates)
    for version in sorted((version for version, _ in plan.candidates), key=p_value):
        verdict = decide(plan.pair(version, alpha=plan.first.alpha / left), evidence[version], look)
        yield version, verdict
        primary = verdict.comparisons.get(plan.first.primary.name)
        if left > 1 and primary is not None and primary.excludes_zero():
            left -= 1


def _too_early(plan: FamilyPlan, version: str, evidence: Evidence, units: int) -> Verdict:
    """As `decide` has it for a pair."""
    pair = plan.pair(version)
    pair_units = evidence.baseline.assigned + evidence.candidate.assigned
    missing = plan.planned_n - units
    return decide(replace(pair, planned_n=pair_units + missing), evidence)


def winner_of(plan: FamilyPlan, verdicts: Mapping[str, Verdict]) -> str | None:
    """Of the candidates that are shown better with every guardrail held, the one with the best estimate; None without.

    That it is better than the baseline is shown; that it is better than the other winners is not.
    """
    primary = plan.first.primary
    best = [version for version, verdict in verdicts.items() if verdict.decision is Decision.SHIP]
    return max(
        best, key=lambda version: primary.sign * verdicts[version].comparisons[primary.name].estimate, default=None
    )


def overall(verdicts: Mapping[str, Verdict]) -> Decision:
    """`ship` where there is a winner; else what all candidates have in common, or `inconclusive`."""
    decisions = {verdict.decision for verdict in verdicts.values()}
    if Decision.SHIP in decisions:
        return Decision.SHIP
    settled = decisions <= {Decision.KEEP, Decision.EQUIVALENT}
    return decisions.pop() if len(decisions) == 1 else Decision.KEEP if settled else Decision.INCONCLUSIVE
