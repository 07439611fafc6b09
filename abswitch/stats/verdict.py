"""`decide`: from a plan and its evidence to a verdict, with the rule that decided and the numbers it read.

Validity comes first; what fails it is `invalid`, never a winner. Nothing is shipped by default, and nothing on no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from abswitch.stats.bayes import BayesianComparison, beta_binomial, posterior_of
from abswitch.stats.comparison import Comparison, finite
from abswitch.stats.evidence import Evidence
from abswitch.stats.joint_looks import compare_joint_at
from abswitch.stats.looks import ONLY_LOOK, Look, alpha_spent, compare_at
from abswitch.stats.plan import FIXED, RANDOMISED, AnalysisPlan
from abswitch.stats.rules import CONTINUE, Case, Decision, detectable, first_finding
from abswitch.stats.sequential_srm import sequential_sample_ratio
from abswitch.stats.srm import SampleRatio, sample_ratio_mismatch
from abswitch.stats.summaries import RateSummary

_HEADLINE = {
    Decision.SHIP: "SHIP {candidate}: it is better than {baseline}.",
    Decision.KEEP: "KEEP {baseline}: {candidate} is not to replace it.",
    Decision.EQUIVALENT: "EQUIVALENT: no difference between {candidate} and {baseline} that matters.",
    Decision.INCONCLUSIVE: "INCONCLUSIVE: {candidate} and {baseline} cannot be told apart yet.",
    Decision.INVALID: "INVALID: this test says nothing about {candidate} and {baseline}.",
}
_HEADLINE_OF_RULE = {
    CONTINUE: "INCONCLUSIVE SO FAR: {candidate} and {baseline} are still being compared.",
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
        alpha: two-sided error rate of every comparison, over all looks.
        detectable: the difference in the primary that a test of this size finds four times in five; NaN if unknown.
        evaluation: when results were read, and by what: `fixed`, `sequential` or `group_sequential`.
        look: which look this is, from 1.
        alpha_spent: of `alpha`, what may have been used up to this look.
        primary: name of the metric that decides.
        bayes: the primary's chance to win and expected losses; of verdicts that end a test alone, and never what
            decides.
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
    evaluation: str = FIXED
    look: int = 1
    alpha_spent: float = math.nan
    primary: str = ""
    bayes: BayesianComparison | None = None

    @property
    def is_final(self) -> bool:
        """Whether the test is over: something was decided, or no look will follow."""
        return self.rule != CONTINUE

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
            "evaluation": self.evaluation,
            "look": self.look,
            "alpha_spent": finite(self.alpha_spent),
            "primary": self.primary,
            "bayes": None if self.bayes is None else self.bayes.to_dict(),
        }


def decide(plan: AnalysisPlan, evidence: Evidence, look: Look = ONLY_LOOK) -> Verdict:
    """Decide a test, or one look at it.

    The first rule that applies decides: validity (plan unchanged, nothing lost, split as planned, no unit in both arms,
    scores there, planned number reached, enough units, every metric in both arms), then harm by a guardrail, answers
    lost unevenly, equivalence, and the primary's interval; what is left is inconclusive.

    With a plan of several looks every check and interval holds at all of them together. Harm by a guardrail is asked
    for before what may still be missing; a look that is not the last and decides nothing has the rule `continue`.

    Args:
        plan: as it was stored before the first exposure; `evidence.plan_digest` must be its digest.
        evidence: collected once, when the planned number of units is reached; with several looks, all data so far.
        look: which look it is; the only one by default. Of a group sequential plan it holds the fractions.

    Raises:
        InvalidInput: a summary is of another kind than its metric.
    """
    case = Case(plan, evidence, _compare(plan, evidence, look), _sample_ratio(plan, evidence), look)
    decision, rule, reason = first_finding(case)
    bayes = None if rule == CONTINUE else _bayes(case)
    return Verdict(
        decision=decision,
        rule=rule,
        reasons=(reason, *_context(case, reason, bayes)),
        baseline=plan.baseline,
        candidate=plan.candidate,
        comparisons=dict(case.comparisons),
        sample_ratio=case.sample_ratio,
        plan_digest=plan.committed,
        alpha=plan.alpha,
        detectable=_detectable(case),
        evaluation=plan.evaluation,
        look=look.number,
        alpha_spent=alpha_spent(plan, look),
        primary=plan.primary.name,
        bayes=bayes,
    )


def _detectable(case: Case) -> float:
    found = case.primary
    return math.nan if found is None or not found.attainable else detectable(case, found)


def _bayes(case: Case) -> BayesianComparison | None:
    """Of the primary, for the reader; it decides nothing."""
    found, metric = case.primary, case.plan.primary
    if found is None or not found.attainable:
        return None
    a, b = (arm.summaries.get(metric.name) for _, arm in case.evidence.arms)
    if isinstance(a, RateSummary) and isinstance(b, RateSummary) and not case.evidence.joint:
        return beta_binomial(a, b, direction=metric.direction, alpha=case.plan.alpha, interval=False)
    return posterior_of(found, direction=metric.direction)


def _compare(plan: AnalysisPlan, evidence: Evidence, look: Look) -> dict[str, Comparison]:
    if plan.design != RANDOMISED:
        return {
            metric.name: compare_joint_at(plan, metric, evidence.joint[metric.name], look)
            for metric in plan.metrics
            if metric.name in evidence.joint
        }
    return {
        metric.name: compare_at(
            plan, metric, evidence.baseline.summaries[metric.name], evidence.candidate.summaries[metric.name], look
        )
        for metric in plan.metrics
        if metric.name in evidence.baseline.summaries and metric.name in evidence.candidate.summaries
    }


def _sample_ratio(plan: AnalysisPlan, evidence: Evidence) -> SampleRatio:
    if plan.evaluation != FIXED:
        units = (evidence.baseline.assigned, evidence.candidate.assigned, plan.expected_share)
        return sequential_sample_ratio([units], alpha=plan.srm_alpha)
    return sample_ratio_mismatch(
        evidence.baseline.assigned,
        evidence.candidate.assigned,
        expected_share=plan.expected_share if evidence.expected_share is None else evidence.expected_share,
        alpha=plan.srm_alpha,
    )


def _context(case: Case, decisive: str, bayes: BayesianComparison | None) -> Iterator[str]:
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
                f"{raised} answer(s) that a scorer failed to score."
            )
    if bayes is not None:
        yield f"Bayesian summary of {case.plan.primary.name}, which decides nothing: {bayes.in_words()}."
    looks = f"{case.plan.looks}; alpha {case.plan.alpha:g}"
    if case.repeated:
        looks += f", {alpha_spent(case.plan, case.look):.2g} of it spent by this look, number {case.look.number}"
    yield f"Plan {case.plan.committed[:12]}; {looks}."
