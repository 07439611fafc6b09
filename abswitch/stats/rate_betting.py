"""Rare events of split traffic, at any time: the difference of two rates by betting on whose event comes next.

Each unit is worth 1 / share to the arm that it was drawn into, where its event happens, and nothing where none does; on
average that is the difference of the rates. It lies between known bounds, so a gambler's capital refutes a difference,
exactly, whatever the rates, their sum, and the shares are. Bets are mixed over instead of tuned, so the capital follows
from four counts.

What it rests on is the draw: trials are the units as they were split, all of them. Of answers alone, as scorers have
them, `beta_binomial_difference` asks for no split; where events are rare it is half as wide again.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy import optimize, special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.components import bare_arm, error_rate, unattainable
from abswitch.stats.rate_sequences import beta_binomial_sequence
from abswitch.stats.summaries import RateSummary

BETTING_RATES = "difference of rates by mixed bets on the split"
_BETS = np.geomspace(0.02, 0.99, 48)
"""Parts of the largest bet that cannot ruin, mixed evenly on a logarithmic scale, as nobody knows which is best. The
least is for millions of units."""
_LARGEST = 700.0
_INSIDE = 1.0 - 1e-9


def betting_rate_difference(
    baseline: RateSummary, candidate: RateSummary, *, share: float, alpha: float = 0.05
) -> Comparison:
    """Compare the rates of two arms that units were drawn into, at any time; exact for any sizes and rates.

    Args:
        baseline, candidate: all units of each arm, and those with the event: the rarer outcome.
        share: the candidate's, with which each unit was drawn, in (0, 1).
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.

    Returns:
        A `Comparison` with `e_value`; each arm has its own beta-binomial sequence. `why_not` is set when an arm is
        empty.

    Raises:
        InvalidInput: share or alpha outside its range.

    References:
        I. Waudby-Smith, L. Wu, A. Ramdas, N. Karampatziakis, P. Mineiro, "Anytime-valid off-policy inference for
        contextual bandits", ACM/IMS Journal of Data Science 1 (2024) (inverse propensities); I. Waudby-Smith,
        A. Ramdas, Journal of the Royal Statistical Society B 86 (2024) 1–27 (capital processes); T. M. Cover,
        Mathematical Finance 1 (1991) 1–29 (mixed bets).

    >>> found = betting_rate_difference(RateSummary(500, 5), RateSummary(500, 5), share=0.5)
    >>> round(found.low, 3), round(found.high, 3)
    (-0.025, 0.025)
    """
    if checks.number("share", share, low=0.0, high=1.0, above=True) == 1.0:
        raise InvalidInput("share", share, "a number above 0 and below 1")
    bound = math.log(2 / error_rate(alpha))  # one half of the capital bets either way
    if not baseline.n or not candidate.n:
        why_not = f"not attainable: {baseline.n} and {candidate.n} units, and each arm needs one"
        bare = (bare_arm(baseline.n, baseline.mean), bare_arm(candidate.n, candidate.mean))
        return unattainable(BETTING_RATES, alpha, *bare, why_not)
    estimate = candidate.mean - baseline.mean
    low = _low_end(baseline, candidate, share, bound)
    high = -_low_end(candidate, baseline, 1 - share, bound)
    log_e = float(
        np.logaddexp(_log_capital(baseline, candidate, share, 0.0), _log_capital(candidate, baseline, 1 - share, 0.0))
    ) - math.log(2)
    arms = []
    for arm in (baseline, candidate):
        ends = beta_binomial_sequence(arm, alpha=alpha)
        arms.append(replace(bare_arm(arm.n, arm.mean), low=ends[0], high=ends[1]))
    return Comparison(
        method=BETTING_RATES,
        alpha=alpha,
        baseline=arms[0],
        candidate=arms[1],
        estimate=estimate,
        low=min(low, estimate),  # arms that are not of the planned sizes
        high=max(high, estimate),
        p_value=math.exp(-max(log_e, 0.0)),
        e_value=math.exp(min(log_e, _LARGEST)),
        standard_error=math.sqrt(sum(map(_variance, (baseline, candidate)))),
    )


def _log_capital(baseline: RateSummary, candidate: RateSummary, share: float, difference: float) -> float:
    """Logarithm of the capital from betting that the difference is larger; falls with the difference bet against."""
    gain, loss = 1 / share, 1 / (1 - share)
    bets = _BETS / (difference + loss)
    nothing = baseline.n + candidate.n - baseline.successes - candidate.successes
    grown = (
        candidate.successes * np.log1p(bets * (gain - difference))
        + baseline.successes * np.log1p(-bets * (loss + difference))
        + nothing * np.log1p(-bets * difference)
    )
    return float(special.logsumexp(grown)) - math.log(_BETS.size)


def _low_end(baseline: RateSummary, candidate: RateSummary, share: float, bound: float) -> float:
    """The least difference that is not refuted."""

    def excess(difference: float) -> float:
        return min(_log_capital(baseline, candidate, share, difference), 1e6) - bound

    if excess(-_INSIDE) <= 0:
        return -1.0
    if excess(_INSIDE) >= 0:
        return 1.0
    return float(optimize.brentq(excess, -_INSIDE, _INSIDE, xtol=1e-9))


def _variance(arm: RateSummary) -> float:
    """Of the rate, with half a success and half a failure more: never 0."""
    rate = (arm.successes + 0.5) / (arm.n + 1)
    return rate * (1 - rate) / arm.n
