"""`decide`: from a plan and its evidence to a verdict, with the rule that decided and the numbers it read.

Validity comes first; what fails it is `invalid`, never a winner. Nothing is shipped by default, and nothing on no data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from abswitch.stats.comparison import Comparison
from abswitch.stats.evidence import Evidence
from abswitch.stats.metrics import Metric
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.power import detectable_effect, units_needed
from abswitch.stats.srm import SampleRatio, sample_ratio_mismatch


class Decision(StrEnum):
    """What to do."""

    SHIP = "ship"
    KEEP = "keep"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


_HEADLINE = {
    Decision.SHIP: "SHIP {candidate}: it is better than {baseline}.",
    Decision.KEEP: "KEEP {baseline}: {candidate} is not to replace it.",
    Decision.EQUIVALENT: "EQUIVALENT: no difference between {candidate} and {baseline} that matters.",
    Decision.INCONCLUSIVE: "INCONCLUSIVE: {candidate} and {baseline} cannot be told apart yet.",
    Decision.INVALID: "INVALID: this test says nothing about {candidate} and {baseline}.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision with its reasons.

    Attributes:
        rule: stable id of the rule that decided, e.g. `primary-better`.
        reasons: sentences with their numbers, the decisive one first.
        comparisons: by metric name, in the plan's order.
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
        return _HEADLINE[self.decision].format(baseline=self.baseline, candidate=self.candidate)

    def in_words(self) -> str:
        """The headline and the reasons, a line each."""
        return "\n".join((self.headline, *(f"  - {reason}" for reason in self.reasons)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "decision": self.decision.value,
            "rule": self.rule,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "baseline": self.baseline,
            "candidate": self.candidate,
            "alpha": self.alpha,
            "detectable": None if math.isnan(self.detectable) else self.detectable,
            "comparisons": {name: comparison.to_dict() for name, comparison in self.comparisons.items()},
            "sample_ratio": self.sample_ratio.to_dict(),
            "plan_digest": self.plan_digest,
        }


@dataclass(frozen=True, slots=True)
class _Case:
    """Everything the rules read."""

    plan: AnalysisPlan
    evidence: Evidence
    comparisons: dict[str, Comparison]
    sample_ratio: SampleRatio

    @property
    def primary(self) -> Comparison:
        return self.comparisons[self.plan.primary.name]

    def good(self, metric: Metric) -> tuple[float, float]:
        """The interval of the metric's difference, turned so that up is better."""
        found = self.comparisons[metric.name]
        return (found.low, found.high) if metric.sign > 0 else (-found.high, -found.low)


_Finding = tuple[Decision, str, str]


def decide(plan: AnalysisPlan, evidence: Evidence) -> Verdict:
    """Decide a test.

    The first rule that applies decides: validity (plan unchanged, nothing lost, split as planned, enough units, scores
    there, every metric in both arms), then the planned number of units, then harm by a guardrail, the primary's
    interval, and equivalence; what is left is inconclusive.
    """
    case = _Case(plan, evidence, _compare(plan, evidence), _sample_ratio(plan, evidence))
    rules = (*_VALIDITY, _too_early, _guardrail_harmed, _primary_decides)
    decision, rule, reason = next(finding for check in rules if (finding := check(case)) is not None)
    primary = case.primary
    return Verdict(
        decision=decision,
        rule=rule,
        reasons=(reason, *_context(case, decision)),
        baseline=plan.baseline,
        candidate=plan.candidate,
        comparisons=case.comparisons,
        sample_ratio=case.sample_ratio,
        plan_digest=plan.digest(),
        alpha=plan.alpha,
        detectable=detectable_effect(primary.standard_error, alpha=plan.alpha) if primary.attainable else math.nan,
    )


def _compare(plan: AnalysisPlan, evidence: Evidence) -> dict[str, Comparison]:
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
        expected_share=plan.expected_share,
        alpha=plan.srm_alpha,
    )


# --- validity ---------------------------------------------------------------------------------------------------------


def _plan_changed(case: _Case) -> _Finding | None:
    stored, given = case.evidence.plan_digest, case.plan.digest()
    if stored is None:
        return Decision.INVALID, "plan-missing", "INVALID: no plan was stored before the first exposure."
    if stored != given:
        reason = f"INVALID: the plan was changed after the first exposure (stored {stored[:12]}, given {given[:12]})."
        return Decision.INVALID, "plan-changed", reason
    return None


def _rows_dropped(case: _Case) -> _Finding | None:
    dropped = case.evidence.dropped_rows
    if not dropped:
        return None
    return Decision.INVALID, "rows-dropped", f"INVALID: {dropped} row(s) of evidence could not be written."


def _split_off(case: _Case) -> _Finding | None:
    ratio = case.sample_ratio
    if not ratio.mismatch:
        return None
    return (
        Decision.INVALID,
        "sample-ratio-mismatch",
        f"INVALID: sample-ratio mismatch; {ratio.candidate} of {ratio.baseline + ratio.candidate} units met the "
        f"candidate, {ratio.observed_share:.1%} instead of {ratio.expected_share:.1%} "
        f"({ratio.method}, p = {ratio.p_value:.2g} < {ratio.alpha:g}).",
    )


def _units_crossed(case: _Case) -> _Finding | None:
    crossed = case.evidence.crossed_units
    if not crossed:
        return None
    return Decision.INVALID, "units-crossed", f"INVALID: {crossed} unit(s) were seen in both arms."


def _scores_missing(case: _Case) -> _Finding | None:
    for name, arm in case.evidence.arms:
        for scorer, failures in arm.score_failures.items():
            if failures > case.plan.max_score_failures * max(1, arm.requests):
                reason = f"INVALID: scorer {scorer!r} raised on {failures} of {arm.requests} answers of the {name}."
                return Decision.INVALID, "scores-missing", reason
    return None


def _too_few(case: _Case) -> _Finding | None:
    for name, arm in case.evidence.arms:
        if arm.analysed < case.plan.min_units:
            reason = f"INVALID: the {name} has {arm.analysed} analysed unit(s); at least {case.plan.min_units} decide."
            return Decision.INVALID, "too-few-units", reason
    return None


def _metric_missing(case: _Case) -> _Finding | None:
    for metric in case.plan.metrics:
        found = case.comparisons.get(metric.name)
        if found is None or not found.baseline.n or not found.candidate.n:
            reason = f"INVALID: metric {metric.name!r} has no values in at least one arm."
            return Decision.INVALID, "metric-missing", reason
        decides = metric is case.plan.primary or metric in case.plan.guardrails
        if decides and not found.attainable:
            return Decision.INVALID, "not-attainable", f"INVALID: {metric.name}: {found.why_not}."
    return None


_VALIDITY: tuple[Callable[[_Case], _Finding | None], ...] = (
    _plan_changed,
    _rows_dropped,
    _split_off,
    _units_crossed,
    _scores_missing,
    _too_few,
    _metric_missing,
)


# --- deciding ---------------------------------------------------------------------------------------------------------


def _too_early(case: _Case) -> _Finding | None:
    units = case.evidence.baseline.assigned + case.evidence.candidate.assigned
    missing = case.plan.planned_n - units
    if missing <= 0:
        return None
    reason = (
        f"Not yet: {units} of the {case.plan.planned_n} planned units were seen; {missing} more are needed. The plan "
        f"allows one look, at its end."
    )
    return Decision.INCONCLUSIVE, "not-yet", reason


def _guardrail_harmed(case: _Case) -> _Finding | None:
    for metric in case.plan.guardrails:
        assert metric.margin is not None, "a guardrail without a margin cannot be made"
        if case.good(metric)[1] < -metric.margin:
            reason = f"Guardrail harmed: {describe(metric, case.comparisons[metric.name])}; worse than its margin."
            return Decision.KEEP, "guardrail-harmed", reason
    return None


def _primary_decides(case: _Case) -> _Finding:
    metric, found = case.plan.primary, case.primary
    low, high = case.good(metric)
    sentence = describe(metric, found)
    if metric.margin is not None and found.within(metric.margin):
        also = " It differs from 0, but not by enough to matter." if found.excludes_zero() else ""
        return Decision.EQUIVALENT, "within-margin", f"{sentence}; inside ±{metric.margin:g}.{also}"
    if high < 0:
        return Decision.KEEP, "primary-worse", f"{sentence}; worse, the interval excludes 0."
    if low <= 0:
        return Decision.INCONCLUSIVE, "interval-includes-zero", f"{sentence}; includes 0. {_outlook(case)}"
    unsure = next((g for g in case.plan.guardrails if case.good(g)[0] <= -_margin(g)), None)
    if unsure is not None:
        veto = describe(unsure, case.comparisons[unsure.name])
        reason = f"{sentence}; better, but guardrail not shown to hold: {veto}."
        return Decision.INCONCLUSIVE, "guardrail-unsure", reason
    held = " and every guardrail holds" if case.plan.guardrails else ""
    return Decision.SHIP, "primary-better", f"{sentence}; better, the interval excludes 0{held}."


def _margin(metric: Metric) -> float:
    return metric.margin or 0.0


def _outlook(case: _Case) -> str:
    """What the test could have seen, and how many units would tell."""
    found, metric = case.primary, case.plan.primary
    n = found.baseline.n + found.candidate.n
    seen = detectable_effect(found.standard_error, alpha=case.plan.alpha)
    text = f"A difference of {seen:.3g} would have been found four times in five."
    effect = metric.margin if metric.margin is not None else abs(found.estimate)
    if effect and found.standard_error:
        units = units_needed(n, found.standard_error, effect, alpha=case.plan.alpha)
        text += f" To find {effect:.3g} takes about {units:,} units in all ({n:,} were analysed)."
    return text


def _context(case: _Case, decision: Decision) -> Iterator[str]:
    """The other metrics and the checks, for the reader."""
    decisive = case.plan.primary.name if decision is not Decision.INVALID else None
    for metric in case.plan.metrics:
        if metric.name != decisive and metric.name in case.comparisons:
            yield f"{metric.role}: {describe(metric, case.comparisons[metric.name])}."
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


def describe(metric: Metric, found: Comparison) -> str:
    """One metric's finding in one clause."""
    if not found.attainable:
        return f"{metric.name}: {found.why_not}"
    a, b = found.baseline, found.candidate
    return (
        f"{metric.name} {a.value:.4g} → {b.value:.4g}, difference {found.estimate:+.4g} "
        f"[{found.low:+.4g}, {found.high:+.4g}] ({found.method}, {1 - found.alpha:.0%} interval, "
        f"p = {found.p_value:.2g}, n = {a.n} + {b.n}"
        + (f", margin {metric.margin:g})" if metric.margin is not None else ")")
    )
