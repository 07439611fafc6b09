"""One metric at one look, by a method that holds at all looks of its plan together. Pure.

Which method that is follows from the metric and the plan. At any time: the mixture SPRT for means and ratios; for rates
the beta-binomial sequence as long as events are rare, and wherever the mixture SPRT refuses; for a service's own
errors, which every unit has or has not, mixed bets on the split; sequences of order statistics for quantiles. At
planned looks: the single-look comparison with the boundary that error spending allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.adjustment import CovariateSummary, RatioCovariateSummary
from abswitch.stats.comparison import Comparison
from abswitch.stats.group_sequential import GroupSequentialDesign, group_sequential_test, repeated_p
from abswitch.stats.kinds import MetricSummary, observations
from abswitch.stats.margins import MarginOutcome, non_inferiority
from abswitch.stats.metric_parts import OF_ASSIGNED, Role, Unit
from abswitch.stats.metrics import Metric, Quantile, Rate, Ratio
from abswitch.stats.mixture import LEAST, mixture_sprt
from abswitch.stats.plan import FIXED, GROUP_SEQUENTIAL, AnalysisPlan
from abswitch.stats.quantile_sequences import sequential_quantile_difference
from abswitch.stats.quantile_summary import QuantileSummary
from abswitch.stats.rate_betting import betting_rate_difference
from abswitch.stats.rate_sequences import beta_binomial_difference
from abswitch.stats.ratios import design_effect
from abswitch.stats.sequential import MIXTURE_SPRT, anytime_valid, without_intervals
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary

RARE = 20
"""Events of the rarer outcome, both arms together, from which a rate is compared by the mixture SPRT: before, intervals
by the normal distribution are too narrow on the side of 0 or 1, which makes equivalence too easy to show."""
CLUSTERED = "clustered by unit"
LOGARITHM = "log_"
"""Columns of this prefix are logarithms, whose tails are light."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Which look at an experiment this is.

    Args:
        number: from 1.
        last: none will follow, so that a verdict is due.
        fractions: of a group sequential plan: units over planned units at each look so far, this one included.

    Raises:
        InvalidInput: a number below 1, or not as many fractions as looks.
    """

    number: int = 1
    last: bool = True
    fractions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        checks.integer("look.number", self.number, low=1)
        if self.fractions and len(self.fractions) != self.number:
            raise InvalidInput("look.fractions", self.fractions, f"one for each of {self.number} looks")


ONLY_LOOK = Look()


def compare_at(
    plan: AnalysisPlan, metric: Metric, baseline: MetricSummary, candidate: MetricSummary, look: Look
) -> Comparison:
    """Candidate against baseline, as the plan reads results.

    Args:
        plan: of the randomised design.
        baseline, candidate: of all data so far.
        look: of a group sequential plan with its `fractions`.

    Returns:
        A `Comparison` of error rate `plan.alpha` over all looks together.

    Raises:
        InvalidInput: a summary is of another kind than its metric, or fractions are missing.

    References:
        As the functions that it chooses from: `mixture_sprt`, `beta_binomial_difference`,
        `sequential_quantile_difference`, `anytime_valid`, `group_sequential_test`.
    """
    if plan.evaluation == FIXED:
        return metric.compare(baseline, candidate, alpha=plan.alpha)
    if plan.evaluation == GROUP_SEQUENTIAL:
        return at_planned_look(
            plan,
            look,
            lambda alpha: metric.compare(baseline, candidate, alpha=alpha),
            by_level=isinstance(metric, Rate | Quantile),
        )
    found = _at_any_time(plan, metric, baseline, candidate)
    return replace(found, look=look.number)


def alpha_spent(plan: AnalysisPlan, look: Look) -> float:
    """Of the error rate of every comparison, what may have been used up to this look.

    Methods that hold at any time spend all of it on all looks together, and a single look does at once.
    """
    if plan.evaluation != GROUP_SEQUENTIAL or look.last or not look.fractions:
        return plan.alpha
    return float(_design(plan).spent(look.fractions[-1]))


# --- at any time ------------------------------------------------------------------------------------------------------


def _at_any_time(plan: AnalysisPlan, metric: Metric, baseline: MetricSummary, candidate: MetricSummary) -> Comparison:
    if isinstance(metric, Quantile):
        return _quantiles(plan, metric, baseline, candidate)
    if isinstance(baseline, CovariateSummary | RatioCovariateSummary):
        return _adjusted(plan, metric, baseline, candidate)
    if isinstance(metric, Rate):
        return _rates(plan, metric, baseline, candidate)
    return _mixture(plan, metric, baseline, candidate)


def _mixture(plan: AnalysisPlan, metric: Metric, baseline: MetricSummary, candidate: MetricSummary) -> Comparison:
    for arm in (baseline, candidate):
        if not isinstance(arm, MeanSummary | RateSummary | RatioSummary):
            raise InvalidInput("summary", arm, f"a summary of a {metric.kind}")
    found = mixture_sprt(
        baseline,  # type: ignore[arg-type]  # checked above
        candidate,  # type: ignore[arg-type]
        planned_n=max(2, plan.planned_n),
        share=plan.expected_share,
        alpha=plan.alpha,
        logarithms=all(column.startswith(LOGARITHM) for column in metric.columns),
    )
    if isinstance(baseline, RatioSummary) and not isinstance(metric, Ratio):
        return replace(found, method=f"{metric.kind}, {CLUSTERED}; {MIXTURE_SPRT}")
    return found


def _rates(plan: AnalysisPlan, metric: Rate, baseline: MetricSummary, candidate: MetricSummary) -> Comparison:
    """Exact while events are rare, as these are not about normal; a service's own errors always are."""
    if not isinstance(baseline, RateSummary | RatioSummary) or not isinstance(candidate, RateSummary | RatioSummary):
        raise InvalidInput("summary", baseline, "a summary of a rate")
    trials = _trials(baseline), _trials(candidate)
    if metric.unit != Unit.UNIT and not OF_ASSIGNED.intersection(metric.columns) and _events(*trials) >= RARE:
        found = _mixture(plan, metric, baseline, candidate)
        if found.attainable:
            return found
    elif metric.unit == Unit.UNIT and any(0.0 < arm.mean < 1.0 for arm in (baseline, candidate)):
        return _mixture(plan, metric, baseline, candidate)
    if isinstance(baseline, RateSummary) or isinstance(candidate, RateSummary):
        if OF_ASSIGNED.intersection(metric.columns):  # of all units that were drawn, so the draw may be bet on
            return betting_rate_difference(*trials, share=plan.expected_share, alpha=plan.alpha)
        return beta_binomial_difference(*trials, alpha=plan.alpha)
    exact = beta_binomial_difference(*trials, alpha=plan.alpha)
    a, b = (
        replace(one, n=arm.n, value=arm.mean)
        for one, arm in zip((exact.baseline, exact.candidate), (baseline, candidate), strict=True)
    )
    notes = (f"units' requests are worth {trials[0].n} + {trials[1].n} independent ones",)
    method = f"{exact.method}, {CLUSTERED}"
    return replace(exact, method=method, baseline=a, candidate=b, estimate=b.value - a.value, notes=notes)


def _trials(arm: RateSummary | RatioSummary) -> RateSummary:
    """Independent trials: of units with several requests, as many as these are worth (Rao & Scott 1992)."""
    if isinstance(arm, RateSummary):
        return arm
    if not arm.n or not arm.mean_y:
        return RateSummary(0, 0)
    if not 0.0 <= arm.mean <= 1.0:
        raise InvalidInput("summary", arm.mean, "a rate from 0 to 1")
    n = max(1, math.floor(arm.n * arm.mean_y / design_effect(arm)))
    return RateSummary(n, round(n * arm.mean))


def _events(baseline: RateSummary, candidate: RateSummary) -> int:
    """Of the rarer outcome, in both arms together."""
    both = baseline + candidate
    return min(both.successes, both.n - both.successes)


def _adjusted(plan: AnalysisPlan, metric: Metric, baseline: MetricSummary, candidate: MetricSummary) -> Comparison:
    """By the covariate; as long as the same values without it may be compared."""
    found = metric.compare(baseline, candidate, alpha=plan.alpha)
    n, m = observations(baseline), observations(candidate)
    if min(n, m) < max(LEAST, plan.min_units):
        why_not = f"not attainable: {n} and {m} observations, and {plan.min_units} are the least that are adjusted"
        return without_intervals(found, f"{found.method}; {MIXTURE_SPRT}", None, found.why_not or why_not)
    plain = _mixture(plan, metric, _unadjusted(baseline), _unadjusted(candidate))
    if not plain.attainable:
        return without_intervals(found, f"{found.method}; {MIXTURE_SPRT}", None, found.why_not or plain.why_not or "")
    share = plan.expected_share
    fraction = n * m / (n + m) / (max(2, plan.planned_n) * share * (1 - share))
    return anytime_valid(found, fraction=fraction)


def _unadjusted(arm: MetricSummary) -> MetricSummary:
    if isinstance(arm, CovariateSummary):
        return arm.without_covariate
    return arm.ratio if isinstance(arm, RatioCovariateSummary) else arm


def _quantiles(plan: AnalysisPlan, metric: Quantile, baseline: MetricSummary, candidate: MetricSummary) -> Comparison:
    parts = (1 - plan.expected_share, plan.expected_share)
    arms = []
    for arm, part in zip((baseline, candidate), parts, strict=True):
        if not isinstance(arm, QuantileSummary) or arm.q != metric.q:
            raise InvalidInput("summary", arm, f"a QuantileSummary of q = {metric.q:g}")
        arms.append(arm.sequence(planned_n=max(2, round(plan.planned_n * part)), alpha=plan.alpha / 2))
    return replace(sequential_quantile_difference(*arms), alpha=plan.alpha)


# --- at planned looks -------------------------------------------------------------------------------------------------


def _design(plan: AnalysisPlan) -> GroupSequentialDesign:
    assert plan.spending is not None, "set when it was made"
    return GroupSequentialDesign(plan.spending, plan.alpha)


def at_planned_look(
    plan: AnalysisPlan, look: Look, compare: Callable[[float], Comparison], *, by_level: bool
) -> Comparison:
    """A comparison at a look of a group sequential plan.

    Args:
        compare: gives the comparison for a single look at an error rate.
        by_level: its interval is no multiple of a standard error: the same method, at the boundary's own error rate.

    Raises:
        InvalidInput: fractions are missing.
    """
    if not look.fractions:
        raise InvalidInput("look.fractions", look.fractions, "those of all looks so far: the plan is group sequential")
    design = _design(plan)
    found = compare(plan.alpha)
    if not by_level:
        return group_sequential_test(found, look.fractions, design=design, final=look.last)
    bound = float(design.boundaries(look.fractions, final=look.last)[-1])
    method = f"group sequential, {design.spending} spending"
    if not math.isfinite(bound):
        why_not = found.why_not or "not attainable: too early to exclude anything"
        return without_intervals(found, f"{found.method}; {method}", look.number, why_not)
    single = compare(min(0.5, 2 * float(special.ndtr(-bound))))
    spent = alpha_spent(plan, look)
    p_value = repeated_p(found.p_value, look.fractions, design, final=look.last) if found.attainable else math.nan
    return replace(
        single,
        method=f"{single.method}; {method}",
        alpha=plan.alpha,
        p_value=p_value,
        look=look.number,
        notes=(*single.notes, f"boundary {bound:.3g} standard errors, {spent:.2g} of alpha spent"),
    )


# --- in a word --------------------------------------------------------------------------------------------------------


def finding_of(metric: Metric, found: Comparison) -> str:
    """What a metric says at a look: `better`, `worse`, `equivalent`, `undecided`; of a guardrail `non-inferior` or
    `harmed`; or `not attainable`."""
    if not found.attainable:
        return "not attainable"
    if metric.role == Role.GUARDRAIL and metric.margin is not None:
        outcome = non_inferiority(found, margin=metric.margin, direction=metric.direction).outcome
        return {MarginOutcome.SHOWN: "non-inferior", MarginOutcome.REFUTED: "harmed"}.get(outcome, "undecided")
    if metric.margin is not None and found.within(metric.margin):
        return "equivalent"
    if not found.excludes_zero():
        return "undecided"
    return "better" if metric.sign * found.estimate > 0 else "worse"
