"""One metric of pairs at one look, by a method that holds at all looks of its plan together. Pure.

Differences within pairs are one sample. At any time: the mixture SPRT on their mean, for means and ratios; for rates
with Tango's interval once enough pairs differ, and mixed bets before. At planned looks: the single-look comparison with
the boundary that error spending allows, and the same bets for rates of which few pairs differ.
"""

from __future__ import annotations

import math
from dataclasses import replace

from scipy import special

from abswitch.stats.comparison import Comparison
from abswitch.stats.joint import JointSummary, PairedRatioSummary, joint_test
from abswitch.stats.looks import RARE, Look, at_planned_look
from abswitch.stats.metrics import Metric, Rate
from abswitch.stats.mixture import LEAST
from abswitch.stats.paired import PairedRateSummary, PairedSummary, mcnemar_test
from abswitch.stats.paired_sequences import mixed_bets_difference
from abswitch.stats.plan import FIXED, GROUP_SEQUENTIAL, AnalysisPlan
from abswitch.stats.sequential import MIXTURE_SPRT, anytime_valid, mixture_log_e, without_intervals, z_boundary

_FARTHEST = 6.0
"""Standard errors. A look so early that it needs more of them is exact: nothing is about normal that far out."""
_LARGEST = 700.0


def compare_joint_at(plan: AnalysisPlan, metric: Metric, joint: JointSummary, look: Look) -> Comparison:
    """Candidate against baseline where the design binds the arms together, as the plan reads results.

    Args:
        plan: of the paired design; of others with one look.
        joint: of all data so far.
        look: of a group sequential plan with its `fractions`.

    Returns:
        A `Comparison` of error rate `plan.alpha` over all looks together.

    Raises:
        InvalidInput: fractions are missing.

    References:
        As the functions that it chooses from: `joint_test`, `anytime_valid`, `mixed_bets_difference`,
        `group_sequential_test`. McNemar's statistic is a sum over the root of its own squares, whose tails are at most
        normal where differences are symmetric: V. H. de la Peña, Annals of Probability 27 (1999) 537–564.
    """
    if plan.evaluation == FIXED or not isinstance(joint, PairedRateSummary | PairedSummary | PairedRatioSummary):
        return joint_test(joint, alpha=plan.alpha)
    if not isinstance(joint, PairedRatioSummary) and _few_differ(metric, joint):
        return replace(mixed_bets_difference(joint, alpha=plan.alpha), look=look.number)
    if plan.evaluation == GROUP_SEQUENTIAL:
        rates = isinstance(joint, PairedRateSummary)
        return at_planned_look(plan, look, lambda alpha: joint_test(joint, alpha=alpha), by_level=rates)
    if isinstance(joint, PairedRateSummary):
        return _rates(plan, joint, look)
    return _means(plan, joint, look)


def _few_differ(metric: Metric, joint: PairedRateSummary | PairedSummary) -> bool:
    """Whether so few pairs of a rate differ that their mean is not about normal; of units, by how far they differ."""
    if isinstance(joint, PairedRateSummary):
        return joint.discordant < RARE
    return isinstance(metric, Rate) and joint.distance is not None and joint.distance < RARE


def _fraction(plan: AnalysisPlan, n: int) -> float:
    """Pairs over those planned."""
    return n / max(1.0, plan.planned_n / plan.meets)


def _means(plan: AnalysisPlan, joint: PairedSummary | PairedRatioSummary, look: Look) -> Comparison:
    found = joint_test(joint, alpha=plan.alpha)
    n = (joint.parts if isinstance(joint, PairedRatioSummary) else joint).n
    if n < LEAST:
        why_not = f"not attainable: {n} pairs, and {LEAST} are the least at a look"
        return without_intervals(found, f"{found.method}; {MIXTURE_SPRT}", look.number, why_not)
    return anytime_valid(found, fraction=_fraction(plan, n), look=look.number)


def _rates(plan: AnalysisPlan, joint: PairedRateSummary, look: Look) -> Comparison:
    """Tango's interval at the sequence's boundary, so that it excludes 0 where McNemar's statistic passes it."""
    fraction = _fraction(plan, joint.n)
    bound = float(z_boundary(fraction, alpha=plan.alpha))
    if bound > _FARTHEST:
        return replace(mixed_bets_difference(joint, alpha=plan.alpha), look=look.number)
    found = mcnemar_test(joint, alpha=2 * float(special.ndtr(-bound)))
    z = (joint.candidate_only - joint.baseline_only) / math.sqrt(joint.discordant)
    log_e = float(mixture_log_e(z, fraction, alpha=plan.alpha))
    return replace(
        found,
        method=f"{found.method}; {MIXTURE_SPRT}",
        alpha=plan.alpha,
        p_value=math.exp(-max(log_e, 0.0)),
        e_value=math.exp(min(log_e, _LARGEST)),
        look=look.number,
    )
