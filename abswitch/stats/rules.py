"""The rules of a verdict, in the order in which they are asked; the first that applies decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from abswitch.stats.comparison import Comparison
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.looks import ONLY_LOOK, Look
from abswitch.stats.margins import MarginOutcome, non_inferiority, tost_equivalence
from abswitch.stats.metrics import Metric, Role
from abswitch.stats.plan import FIXED, PAIRED, SWITCHBACK, AnalysisPlan
from abswitch.stats.power import POWER, detectable_effect
from abswitch.stats.rate_sequences import beta_binomial_difference, beta_binomial_sequence
from abswitch.stats.srm import SampleRatio
from abswitch.stats.summaries import RateSummary

_OUT_OF_REACH = 30.0
"""An effect so many times smaller than the detectable one takes 900 times the units: no number worth naming."""


CONTINUE = "continue"
"""Rule of a look that decides nothing and is not the last."""


class Decision(StrEnum):
    """What to do."""

    SHIP = "ship"
    KEEP = "keep"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


class Finding(NamedTuple):
    """What a rule decided, its stable id, and the decisive sentence."""

    decision: Decision
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Case:
    """Everything the rules read."""

    plan: AnalysisPlan
    evidence: Evidence
    comparisons: Mapping[str, Comparison]
    sample_ratio: SampleRatio
    look: Look = ONLY_LOOK

    @property
    def repeated(self) -> bool:
        """Whether the plan has several looks, so that every check must hold at all of them together."""
        return self.plan.evaluation != FIXED

    @property
    def goes_on(self) -> bool:
        """Whether a later look may still decide."""
        return self.repeated and not self.look.last

    @property
    def primary(self) -> Comparison | None:
        """The primary's comparison; None where an arm has no values of it at all."""
        return self.comparisons.get(self.plan.primary.name)

    def guardrail(self, metric: Metric) -> MarginOutcome:
        """Whether a guardrail holds, is harmed, or neither is shown."""
        assert metric.margin is not None, "a guardrail without a margin cannot be made"
        found = self.comparisons[metric.name]
        return non_inferiority(found, margin=metric.margin, direction=metric.direction).outcome

    def describe(self, metric: Metric) -> str:
        """One metric's finding in one clause."""
        return describe(metric, self.comparisons[metric.name])


def first_finding(case: Case) -> Finding:
    """What the first rule that applies decides."""
    for rule in REPEATED_RULES if case.repeated else RULES:
        found = rule(case)
        if found is not None:
            return found
    return _primary_decides(case)


def detectable(case: Case, found: Comparison) -> float:
    """The true difference whose interval, as wide as this one's, would exclude 0 four times in five."""
    if not case.repeated:
        return detectable_effect(found.standard_error, alpha=case.plan.alpha)
    return (found.high - found.low) / 2 + float(special.ndtri(POWER)) * found.standard_error


def describe(metric: Metric, found: Comparison) -> str:
    """One metric's finding in one clause."""
    if not found.attainable:
        return f"{metric.name}: {found.why_not}"
    a, b = found.baseline, found.candidate
    margin = f", margin {metric.margin:g}" if metric.margin is not None else ""
    at_all_looks = "" if found.look is None else f" at all looks, look {found.look}"
    return (
        f"{metric.name} {a.value:.4g} → {b.value:.4g}, difference {found.estimate:+.4g} "
        f"[{found.low:+.4g}, {found.high:+.4g}] ({found.method}, {100 * (1 - found.alpha):.4g}% "
        f"interval{at_all_looks}, "
        f"p = {found.p_value:.2g}, n = {a.n} + {b.n}{margin})"
    )


# --- validity ---------------------------------------------------------------------------------------------------------


def _invalid(rule: str, reason: str) -> Finding:
    return Finding(Decision.INVALID, rule, f"INVALID: {reason}")


def _plan_changed(case: Case) -> Finding | None:
    stored, given = case.evidence.plan_digest, case.plan.committed
    if stored is None:
        return _invalid("plan-missing", "no plan was stored before the first exposure.")
    if stored == given:
        return None
    reason = f"the plan was changed after the first exposure (stored {stored[:12]}, given {given[:12]})."
    return _invalid("plan-changed", reason)


def _rows_dropped(case: Case) -> Finding | None:
    dropped = case.evidence.dropped_rows
    return _invalid("rows-dropped", f"{dropped} row(s) of evidence could not be written.") if dropped else None


def _split_off(case: Case) -> Finding | None:
    ratio = case.sample_ratio
    if not ratio.mismatch:
        return None
    return _invalid(
        "sample-ratio-mismatch",
        f"sample-ratio mismatch; {ratio.candidate} of {ratio.baseline + ratio.candidate} units met the candidate, "
        f"{ratio.observed_share:.1%} instead of {ratio.expected_share:.1%} "
        f"({ratio.method}, p = {ratio.p_value:.2g} < {ratio.alpha:g}).",
    )


def _units_crossed(case: Case) -> Finding | None:
    crossed = case.evidence.crossed_units
    return _invalid("units-crossed", f"{crossed} unit(s) were seen in both arms.") if crossed else None


def _scores_missing(case: Case) -> Finding | None:
    for name, arm in case.evidence.arms:
        answers = max(0, arm.requests - arm.failed)
        for scorer, failures in arm.score_failures.items():
            if failures > case.plan.max_score_failures * answers:
                if case.goes_on and not _surely_above(answers, failures, case):
                    continue
                reason = f"scorer {scorer!r} gave no score for {failures} of {answers} answers of the {name}."
                return _invalid("scores-missing", reason)
    return None


def _surely_above(answers: int, failures: int, case: Case) -> bool:
    """Whether more than the allowed share will be missing in the end, too; a first failed score says little."""
    low, _ = beta_binomial_sequence(RateSummary(max(answers, failures), failures), alpha=case.plan.srm_alpha)
    return low > case.plan.max_score_failures


def _too_early(case: Case) -> Finding | None:
    units = case.evidence.baseline.assigned + case.evidence.candidate.assigned
    missing = case.plan.planned_n - units
    if missing <= 0:
        return None
    reason = (
        f"Not yet: {units} of the {case.plan.planned_n} planned units were seen; {missing} more are needed. The plan "
        f"allows one look, at its end."
    )
    return Finding(Decision.INCONCLUSIVE, "not-yet", reason)


def _too_few(case: Case) -> Finding | None:
    least = case.plan.min_units
    for name, arm in case.evidence.arms:
        if arm.analysed < least:
            return _invalid_in_the_end(
                case, "too-few-units", f"the {name} has {arm.analysed} analysed unit(s); at least {least} decide."
            )
    return None


def _invalid_in_the_end(case: Case, rule: str, reason: str) -> Finding:
    """What voids a test that is over, and only delays one that goes on."""
    return _continue(reason) if case.goes_on else _invalid(rule, reason)


def _continue(reason: str) -> Finding:
    return Finding(Decision.INCONCLUSIVE, CONTINUE, f"Not decided yet: {reason}")


def _metric_missing(case: Case) -> Finding | None:
    for metric in case.plan.metrics:
        found = case.comparisons.get(metric.name)
        if found is None or not found.baseline.n or not found.candidate.n:
            reason = f"metric {metric.name!r} has no values in at least one arm."
            return _invalid_in_the_end(case, "metric-missing", reason)
        if metric.role == Role.SECONDARY:
            continue
        fewest = min(found.baseline.n, found.candidate.n)
        if fewest < case.plan.min_units:
            reason = f"metric {metric.name!r} has {fewest} value(s) in an arm; at least {case.plan.min_units} decide."
            return _invalid_in_the_end(case, "too-few-units", reason)
        if not found.attainable or not all(map(math.isfinite, (found.estimate, found.low, found.high))):
            reason = f"{metric.name}: {found.why_not or 'the interval is not finite'}."
            return _invalid_in_the_end(case, "not-attainable", reason)
    return None


def _guardrail_harmed(case: Case) -> Finding | None:
    for metric in case.plan.guardrails:
        found = case.comparisons.get(metric.name)
        if found is None or min(found.baseline.n, found.candidate.n) < case.plan.min_units:
            continue  # of a test for one look, refused before
        if case.guardrail(metric) is MarginOutcome.REFUTED:
            reason = f"Guardrail harmed: {case.describe(metric)}; worse than its margin."
            return Finding(Decision.KEEP, "guardrail-harmed", reason)
    return None


def _answers_lost(case: Case) -> Finding | None:
    """An arm whose hard cases end in errors looks good on the answers that are left.

    Fisher's exact test, at the error rate of the sample-ratio check: this is the same question, one step later. At
    every look, the beta-binomial sequence.
    """
    a, b = case.evidence.baseline, case.evidence.candidate
    if case.plan.design == SWITCHBACK:  # its units are blocks; it is requests that get lost
        a, b = (replace(arm, assigned=arm.requests, analysed=_answers(arm)) for arm in (a, b))
    method, p_value = _lost_alike(case, a, b)
    if not p_value < case.plan.srm_alpha:
        return None
    return _invalid(
        "answers-lost-unevenly",
        f"{b.assigned - b.analysed} of {b.assigned} candidate units and {a.assigned - a.analysed} of {a.assigned} "
        f"baseline units have no answer to compare, so those that do are not alike ({method}, "
        f"p = {p_value:.2g} < {case.plan.srm_alpha:g}).",
    )


def _lost_alike(case: Case, a: ArmEvidence, b: ArmEvidence) -> tuple[str, float]:
    """The test that was made, and its p-value."""
    if case.repeated:
        arms = (RateSummary(arm.assigned, arm.assigned - arm.analysed) for arm in (a, b))
        found = beta_binomial_difference(*arms, alpha=case.plan.srm_alpha)
        return found.method, found.p_value
    table = np.array([[arm.analysed, arm.assigned - arm.analysed] for arm in (a, b)])
    return "Fisher exact", float(stats.fisher_exact(table).pvalue)


def _answers(arm: ArmEvidence) -> int:
    return max(0, arm.requests - arm.failed - arm.fallbacks)


RULES: tuple[Callable[[Case], Finding | None], ...] = (
    _plan_changed,
    _rows_dropped,
    _split_off,
    _units_crossed,
    _scores_missing,
    _too_early,
    _too_few,
    _metric_missing,
    _guardrail_harmed,
    _answers_lost,
)
"""Each answers or passes; when all pass, the primary metric decides."""
REPEATED_RULES: tuple[Callable[[Case], Finding | None], ...] = (
    _plan_changed,
    _rows_dropped,
    _split_off,
    _units_crossed,
    _scores_missing,
    _guardrail_harmed,
    _answers_lost,
    _too_few,
    _metric_missing,
)
"""The same for plans with several looks: harm stops a test whatever is still missing."""


# --- deciding ---------------------------------------------------------------------------------------------------------


def _primary_decides(case: Case) -> Finding:
    metric, found = case.plan.primary, case.comparisons[case.plan.primary.name]
    sentence = describe(metric, found)
    if _negligible(metric, found):
        also = " Different but negligible: the interval excludes 0 too." if found.excludes_zero() else ""
        return Finding(Decision.EQUIVALENT, "within-margin", f"{sentence}; inside ±{metric.margin:g}.{also}")
    low, high = (found.low, found.high) if metric.sign > 0 else (-found.high, -found.low)
    if high < 0:
        return Finding(Decision.KEEP, "primary-worse", f"{sentence}; worse, the interval excludes 0.")
    if not low > 0:  # written so that NaN lands here, not at a winner
        if case.goes_on:
            return _continue(f"{sentence}; includes 0.")
        reason = f"{sentence}; includes 0. {_outlook(case, metric, found)}"
        return Finding(Decision.INCONCLUSIVE, "interval-includes-zero", reason)
    return _better(case, f"{sentence}; better")


def _better(case: Case, sentence: str) -> Finding:
    """A winner has every guardrail non-inferior."""
    unsure = [case.describe(g) for g in case.plan.guardrails if case.guardrail(g) is not MarginOutcome.SHOWN]
    if unsure:
        reason = f"{sentence}, but guardrail not shown to hold: {'; '.join(unsure)}."
        if case.goes_on:
            return _continue(reason)
        return Finding(Decision.INCONCLUSIVE, "guardrail-unsure", reason)
    held = " and every guardrail holds" if case.plan.guardrails else ""
    return Finding(Decision.SHIP, "primary-better", f"{sentence}, the interval excludes 0{held}.")


def _negligible(metric: Metric, found: Comparison) -> bool:
    if metric.margin is None:
        return False
    return tost_equivalence(found, margin=metric.margin).outcome is MarginOutcome.SHOWN


def _outlook(case: Case, metric: Metric, found: Comparison) -> str:
    """What the test could have seen, and how many units would tell."""
    paired = case.plan.design == PAIRED
    n = found.baseline.n if paired else found.baseline.n + found.candidate.n
    seen = detectable(case, found)
    text = f"A difference of {seen:.3g} would have been found four times in five."
    effect = metric.margin if metric.margin is not None else abs(found.estimate)
    if effect * _OUT_OF_REACH > seen:
        units = math.ceil(n * (seen / effect) ** 2)
        what = "pairs" if paired else "units"
        text += f" To find {effect:.3g} takes about {units:,} {what} in all ({n:,} were analysed)."
    return text
