"""`decide`: from a plan and its evidence to a verdict, with the rule that decided and the numbers it read.

Validity comes first; what fails it is `invalid`, never a winner. Nothing is shipped by default, and nothing on no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from abswitch.stats.comparison import Comparison, finite
from abswitch.stats.evidence import Evidence
from abswitch.stats.joint import joint_test
from abswitch.stats.plan import RANDOMISED, AnalysisPlan
from abswitch.stats.power import detectable_effect
from abswitch.stats.rules import Case, Decision, first_finding
from abswitch.stats.srm import SampleRatio, sample_ratio_mismatch

_HEADLINE = {
    Decision.SHIP: "SHIP {candidate}: it is better than {baseline}.",
    Decision.KEEP: "KEEP {baseline}: {candidate} is not to replace it.",
    Decision.EQUIVALENT: "EQUIVALENT: no difference between {candidate} and {baseline} that matters.",
    Decision.INCONCLUSIVE: "INCONCLUSIVE: {candidate} and {baseline} cannot be told apart yet.",
    Decision.INVALID: "INVALID: this test says nothing about {candidate} and {baseline}.",
}
_HEADLINE_OF_RULE = {
    "not-yet": "INCONCLUSIVE: too early to say whether {candidate} is better than {baseline}.",
    "guardrail-unsure": "INCONCLUSIVE: {candidate} is better than {baseline}, but a guardrail is not shown to hold.",
    "primary-worse": "KEEP {baseline}: {candidate} is worse.",
    "guardrail-harmed": "KEEP {baseline}: {candidate} harms a guardrail.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision with its reasons.

    Attributes:
        decision: what to do.
        rule: stable id of the rule that decided, e.g. `primary-better`.
        reasons: sentences with their numbers, the decisive one first.
        comparisons: by metric name, in the plan's order.
        sample_ratio: the check of the split.
        plan_digest: of the plan that was applied.
        detectable: the difference in the primary that a test of this size finds four times in five; NaN if unknown.
    """

    decision: Decision
    rule: str
    reasons: tuple[str, ...]
    baseline: str
    candidate: str
    comparisons: dict[str, Comparison]
    sample_ratio: SampleRatio
    plan_digest: str
    alpha: float
    detectable: float

    @property
    def headline(self) -> str:
        """One line for people."""
        words = _HEADLINE_OF_RULE.get(self.rule, _HEADLINE[self.decision])
        return words.format(baseline=self.baseline, candidate=self.candidate)

    def in_words(self) -> str:
        """The headline and the reasons, a line each."""
        return "\n".join((self.headline, *(f"  - {reason}" for reason in self.reasons)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values under the names of the fields, and `headline`; what JSON cannot hold is None."""
        return {
            "decision": self.decision.value,
            "rule": self.rule,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "baseline": self.baseline,
            "candidate": self.candidate,
            "alpha": self.alpha,
            "detectable": finite(self.detectable),
            "comparisons": {name: comparison.to_dict() for name, comparison in self.comparisons.items()},
            "sample_ratio": self.sample_ratio.to_dict(),
            "plan_digest": self.plan_digest,
        }


def decide(plan: AnalysisPlan, evidence: Evidence) -> Verdict:
    """Decide a test.

    The first rule that applies decides: validity (plan unchanged, nothing lost, split as planned, no unit in both arms,
    scores there, planned number reached, enough units, every metric in both arms), then harm by a guardrail, answers
    lost unevenly, equivalence, and the primary's interval; what is left is inconclusive.

    Args:
        plan: as it was stored before the first exposure; `evidence.plan_digest` must be its digest.
        evidence: collected once, when the planned number of units is reached.

    Raises:
        InvalidInput: a summary is of another kind than its metric.
    """
    case = Case(plan, evidence, _compare(plan, evidence), _sample_ratio(plan, evidence))
    decision, rule, reason = first_finding(case)
    return Verdict(
        decision=decision,
        rule=rule,
        reasons=(reason, *_context(case, reason)),
        baseline=plan.baseline,
        candidate=plan.candidate,
        comparisons=dict(case.comparisons),
        sample_ratio=case.sample_ratio,
        plan_digest=plan.digest(),
        alpha=plan.alpha,
        detectable=_detectable(case),
    )


def _detectable(case: Case) -> float:
    found = case.primary
    if found is None or not found.attainable:
        return math.nan
    return detectable_effect(found.standard_error, alpha=case.plan.alpha)


def _compare(plan: AnalysisPlan, evidence: Evidence) -> dict[str, Comparison]:
    if plan.design != RANDOMISED:
        return {
            metric.name: joint_test(evidence.joint[metric.name], alpha=plan.alpha)
            for metric in plan.metrics
            if metric.name in evidence.joint
        }
    return {
        metric.name: metric.compare(
            evidence.baseline.summaries[metric.name], evidence.candidate.summaries[metric.name], alpha=plan.alpha
        )
        for metric in plan.metrics
        if metric.name in evidence.baseline.summaries and metric.name in evidence.candidate.summaries
    }


def _sample_ratio(plan: AnalysisPlan, evidence: Evidence) -> SampleRatio:
    return sample_ratio_mismatch(
        evidence.baseline.assigned,
        evidence.candidate.assigned,
        expected_share=plan.expected_share if evidence.expected_share is None else evidence.expected_share,
        alpha=plan.srm_alpha,
    )


def _context(case: Case, decisive: str) -> Iterator[str]:
    """The other metrics and the checks, for the reader."""
    for metric in case.plan.metrics:
        if metric.name in case.comparisons and (clause := case.describe(metric)) not in decisive:
            yield f"{metric.role}: {clause}."
    ratio = case.sample_ratio
    yield (
        f"Split: {ratio.baseline} baseline and {ratio.candidate} candidate units, {ratio.observed_share:.1%} on the "
        f"candidate where {ratio.expected_share:.1%} was planned ({ratio.method}, p = {ratio.p_value:.2g})."
    )
    for name, arm in case.evidence.arms:
        if arm.failed or arm.fallbacks or any(arm.score_failures.values()):
            raised = sum(arm.score_failures.values())
            yield (
                f"The {name} had {arm.failed} failed request(s), {arm.fallbacks} answered by another version, and "
                f"{raised} answer(s) whose scorer raised."
            )
    yield f"Plan {case.plan.digest()[:12]}; {case.plan.looks}; alpha {case.plan.alpha:g}."
