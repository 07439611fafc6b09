"""Evidence that holds both arms together: pairs of answers to one prompt, pairs of adjacent blocks, a bandit's log.

Where a design binds the arms, what varies is the difference within a pair, and each arm's own summary cannot tell it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from abswitch.errors import InvalidInput
from abswitch.stats.bandits import BanditLog, aw_aipw_test
from abswitch.stats.comparison import Comparison
from abswitch.stats.paired import PairedRateSummary, PairedSummary, mcnemar_test, paired_t_test
from abswitch.stats.strata import StratifiedSummary
from abswitch.stats.summaries import numbers
from abswitch.stats.switchback import switchback_test

PAIRED_RATIO = "paired delta method"


@dataclass(frozen=True, slots=True)
class PairedRatioSummary:
    """Both arms' ratios Σx / Σy over the same n units, linearised per unit so that their difference is a mean.

    A unit's part in an arm's ratio R is R + (x − R·y) / mean(y); the parts have R as their mean, and the variance of
    their differences is the delta method's.

    References:
        A. Deng, U. Knoblich, J. Lu, KDD (2018) 233–242.
    """

    parts: PairedSummary

    @classmethod
    def of(
        cls,
        baseline_numerators: ArrayLike,
        baseline_denominators: ArrayLike,
        candidate_numerators: ArrayLike,
        candidate_denominators: ArrayLike,
    ) -> Self:
        """From four arrays of shape (n,), in the order of the units.

        Raises:
            InvalidInput: not finite numbers, of different lengths, or an arm's denominators sum to 0.
        """
        a = _parts("baseline", baseline_numerators, baseline_denominators)
        b = _parts("candidate", candidate_numerators, candidate_denominators)
        return cls(PairedSummary.of(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSummary:
    """Both arms' blocks of a switchback: a summary of each arm's block, by the name of its pair."""

    baseline: StratifiedSummary
    candidate: StratifiedSummary


JointSummary = PairedSummary | PairedRateSummary | PairedRatioSummary | BlockSummary | BanditLog


def joint_test(joint: JointSummary, *, alpha: float = 0.05) -> Comparison:
    """The test that belongs to the kind of evidence.

    Paired t for means, McNemar with Tango's interval for rates, the paired delta method for ratios, the paired t of
    block means for a switchback, and AW-AIPW for a bandit's log (its first arm is the baseline).

    Args:
        alpha: two-sided error rate, in (0, 0.5].

    >>> joint_test(PairedSummary.of([1.0, 2.0, 4.0], [2.0, 3.5, 4.5])).method
    'paired t'
    """
    match joint:
        case PairedRateSummary():
            return mcnemar_test(joint, alpha=alpha)
        case PairedRatioSummary(parts):
            return replace(paired_t_test(parts, alpha=alpha), method=PAIRED_RATIO)
        case BlockSummary():
            return switchback_test(joint.baseline, joint.candidate, alpha=alpha)
        case BanditLog():
            return aw_aipw_test(joint, *joint.arms[:2], alpha=alpha)
        case PairedSummary():
            return paired_t_test(joint, alpha=alpha)


def _parts(arm: str, numerators: ArrayLike, denominators: ArrayLike) -> ArrayLike:
    x, y = numbers(f"{arm}_numerators", numerators), numbers(f"{arm}_denominators", denominators)
    if x.size != y.size:
        raise InvalidInput(f"{arm}_denominators", y.size, f"as many values as numerators ({x.size})")
    if not x.size:
        return x
    if not y.sum():
        raise InvalidInput(f"{arm}_denominators", 0.0, "values that do not sum to 0")
    ratio = x.sum() / y.sum()
    return np.asarray(ratio + (x - ratio * y) / y.mean())
