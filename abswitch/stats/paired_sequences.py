"""Pairs of bounded answers, at any time: mixed bets on their differences, exact however few pairs differ.

Of pairs that agree nothing can be learnt about who is better, so that it is the few others whose number decides what is
about normal. Given that a pair differs, "no difference" is a fair coin: bets on it need no distribution at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.components import bare_arm, error_rate, unattainable
from abswitch.stats.paired import PairedRateSummary, PairedSummary
from abswitch.stats.rate_sequences import beta_binomial_sequence
from abswitch.stats.summaries import MeanSummary, RateSummary

MIXED_BETS = "mixed bets on the pairs that differ"
_GAMBLERS = 256
_SHARES: NDArray[np.float64] = np.sin((2 * np.arange(_GAMBLERS) + 1) * np.pi / (4 * _GAMBLERS)) ** 2
"""Of each gambler's stake, what is on the candidate: even quantiles of the Beta(½, ½) distribution, whose regret is the
least everywhere at once. As their prior is fixed, finitely many of them are as exact as all."""
_LARGEST = 700.0
_FAR = 1e6


def mixed_bets_log_e(up: float, down: float, n: int, difference: float = 0.0) -> float:
    """Logarithm of the e-value against a mean difference, from pairs of answers within 0 and 1.

    Each gambler puts a share b of the capital on the candidate, at the odds that are fair for the difference: a pair
    with d multiplies it by 1 + λ·(d − difference), with one λ throughout. The e-value is the mean over
    b. Against 0 it is that of the beta-binomial test of the pairs that differ, and the others do not count.

    Args:
        up, down: sums of the differences above 0, and of those below, both without sign; for answers of 0 and 1 how
            many pairs only the candidate, and only the baseline, succeeded in. For answers in between this is the
            least that such sums can mean, as the logarithm is concave.
        n: pairs.
        difference: candidate − baseline under the null hypothesis, in [−1, 1].

    >>> round(math.exp(mixed_bets_log_e(8, 0, 100)), 1)  # all of 8 coins on one side
    50.3
    """
    level, apart = (1 + difference) / 2, n - up - down
    with np.errstate(divide="ignore"):
        more, less = _SHARES / np.float64(level), (1 - _SHARES) / np.float64(1 - level)
        grown = special.xlogy(up, more) + special.xlogy(down, less) + special.xlogy(apart, (more + less) / 2)
    most = float(grown.max())
    return most if math.isinf(most) else most + math.log(float(np.exp(grown - most).mean()))


def mixed_bets_difference(pairs: PairedRateSummary | PairedSummary, *, alpha: float = 0.05) -> Comparison:
    """Difference of two paired rates, at any time; exact for any number of pairs, and of pairs that differ.

    Args:
        pairs: yes-or-no answers, or means of such within units, with their `distance`.
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.

    Returns:
        A `Comparison` with `e_value`, whose interval excludes 0 exactly where that reaches 1 / alpha. Arms of
        yes-or-no answers have their own sequences. `why_not` is set without pairs.

    Raises:
        InvalidInput: alpha outside its range, or differences beyond [−1, 1], or whose distance is not known.

    References:
        F. Orabona, K.-S. Jun, IEEE Transactions on Information Theory 70 (2024) 436–455 (mixtures of bets as
        confidence sequences); at 0: R. E. Krichevsky, V. K. Trofimov, ibid. 27 (1981) 199–207; Q. McNemar,
        Psychometrika 12 (1947) 153–157.

    >>> found = mixed_bets_difference(PairedRateSummary(both=140, candidate_only=2, baseline_only=1, neither=57))
    >>> round(found.low, 3), round(found.high, 3), found.p_value
    (-0.03, 0.045, 1.0)
    """
    bound = -math.log(error_rate(alpha))
    up, down = _sums(pairs)
    n = pairs.n
    if not n:
        return unattainable(MIXED_BETS, alpha, bare_arm(0), bare_arm(0), "not attainable: there are no pairs")
    estimate = (up - down) / n
    a, b = (_arm(arm, alpha) for arm in (pairs.baseline, pairs.candidate))

    def excess(difference: float) -> float:
        return min(mixed_bets_log_e(up, down, n, difference), _FAR) - bound

    low, high = (_end(excess, estimate, limit) for limit in (-1.0, 1.0))
    log_e = mixed_bets_log_e(up, down, n)
    return Comparison(
        method=MIXED_BETS,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=estimate,
        low=low,
        high=high,
        p_value=math.exp(-max(log_e, 0.0)),
        e_value=math.exp(min(log_e, _LARGEST)),
        standard_error=math.sqrt(_adjusted_variance(up, down, n)),
        notes=() if up + down else ("no pair differs",),
    )


def _sums(pairs: PairedRateSummary | PairedSummary) -> tuple[float, float]:
    if isinstance(pairs, PairedRateSummary):
        return pairs.candidate_only, pairs.baseline_only
    if not pairs.n:
        return 0.0, 0.0
    if pairs.distance is None or pairs.distance > pairs.n:
        raise InvalidInput("pairs.distance", pairs.distance, "that of differences from −1 to 1")
    total = pairs.n * pairs.difference.mean
    return max(0.0, (pairs.distance + total) / 2), max(0.0, (pairs.distance - total) / 2)


def _end(excess: Callable[[float], float], estimate: float, limit: float) -> float:
    """Where the e-value reaches the bound; it rises from the estimate, where it is below 1, towards both limits."""
    if limit == estimate or excess(limit) <= 0:
        return limit
    return float(optimize.brentq(excess, estimate, limit, xtol=1e-8))


def _adjusted_variance(up: float, down: float, n: int) -> float:
    """Of the mean difference, with half a pair more for either side: never 0."""
    mean = (up - down) / (n + 1)
    return max((up + down + 1) / (n + 1) - mean * mean, 0.0) / n


def _arm(arm: MeanSummary | RateSummary, alpha: float) -> ArmEstimate:
    if not isinstance(arm, RateSummary):
        return bare_arm(arm.n, arm.mean)
    low, high = beta_binomial_sequence(arm, alpha=alpha)
    return ArmEstimate(n=arm.n, value=arm.mean, low=low, high=high)
