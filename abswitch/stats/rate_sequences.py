"""Rates, at any time: the beta-binomial confidence sequence, for one arm and for the difference of two.

Exact whatever the sizes of the arms and however rare the events, from counts alone. The price is width: with some
hundred events of either outcome in each arm `mixture_sprt` is narrower, and for whether rare errors differ at all the
error-label e-process sees more.
"""

from __future__ import annotations

import math

from scipy import optimize, special

from abswitch import checks
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.components import bare_arm, error_rate, unattainable
from abswitch.stats.summaries import RateSummary

BETA_BINOMIAL = "beta-binomial confidence sequence"
PRIOR = 0.5
"""Of successes and failures each: Jeffreys', whose regret is least everywhere at once (Krichevsky & Trofimov 1981)."""
_EDGE = 1e-12
_LARGEST = 700.0


def beta_binomial_log_e(arm: RateSummary, rate: float) -> float:
    """Logarithm of the e-value against `rate`: the beta-binomial probability of the trials over the one at that rate.

    >>> round(beta_binomial_log_e(RateSummary(100, 30), 0.5), 2)
    5.7
    """
    checks.share("rate", rate)
    return _log_e(arm, _log_mixed(arm), rate)


def _log_mixed(arm: RateSummary) -> float:
    """Logarithm of the trials' probability under the prior; the same for every rate that they are held against."""
    failures = arm.n - arm.successes
    return float(special.betaln(PRIOR + arm.successes, PRIOR + failures) - special.betaln(PRIOR, PRIOR))


def _log_e(arm: RateSummary, log_mixed: float, rate: float) -> float:
    successes, failures = arm.successes, arm.n - arm.successes
    if (successes and rate <= 0.0) or (failures and rate >= 1.0):
        return math.inf
    log_likelihood = successes * math.log(rate) if successes else 0.0
    return log_mixed - log_likelihood - (failures * math.log1p(-rate) if failures else 0.0)


def beta_binomial_sequence(arm: RateSummary, *, alpha: float = 0.05) -> tuple[float, float]:
    """Interval of a rate that holds at all looks together.

    Args:
        arm: trials and successes so far.
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.

    Returns:
        Its ends; 0 and 1 without trials.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        H. Robbins, Annals of Mathematical Statistics 41 (1970) 1397–1409; S. R. Howard et al., Annals of Statistics 49
        (2021) 1055–1080, proposition 7.

    >>> [round(end, 3) for end in beta_binomial_sequence(RateSummary(1000, 100))]
    [0.069, 0.138]
    """
    bound = -math.log(error_rate(alpha))
    if not arm.n:
        return 0.0, 1.0
    return _end(arm, 0.0, bound), _end(arm, 1.0, bound)


def beta_binomial_difference(baseline: RateSummary, candidate: RateSummary, *, alpha: float = 0.05) -> Comparison:
    """Difference of two rates, at any time; exact for any sizes and rates.

    A difference is refuted when the product of the arms' e-values exceeds 1 / alpha for every pair of rates with it.

    Args:
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.

    Returns:
        A `Comparison` with `e_value`; each arm has its own sequence. `why_not` is set when an arm is empty.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        As `beta_binomial_sequence`; least over the common rate: L. Wasserman, A. Ramdas, S. Balakrishnan, PNAS 117
        (2020) 16880–16890 (universal inference).

    >>> found = beta_binomial_difference(RateSummary(950, 9), RateSummary(50, 12))
    >>> round(found.low, 3), round(found.high, 3), found.excludes_zero()
    (0.048, 0.522, True)
    """
    bound = -math.log(error_rate(alpha))
    if not baseline.n or not candidate.n:
        why_not = f"not attainable: {baseline.n} and {candidate.n} trials, and each arm needs one"
        return unattainable(
            BETA_BINOMIAL, alpha, bare_arm(baseline.n, baseline.mean), bare_arm(candidate.n, candidate.mean), why_not
        )
    estimate = candidate.mean - baseline.mean
    low, high = (_difference_end(baseline, candidate, end, bound) for end in (-1.0, 1.0))
    log_e = _least_log_e(baseline, candidate, 0.0)
    spread = sum(_adjusted_variance(arm) for arm in (baseline, candidate))
    return Comparison(
        method=BETA_BINOMIAL,
        alpha=alpha,
        baseline=_arm(baseline, alpha),
        candidate=_arm(candidate, alpha),
        estimate=estimate,
        low=low,
        high=high,
        p_value=math.exp(-max(log_e, 0.0)),
        e_value=math.exp(min(log_e, _LARGEST)),
        standard_error=math.sqrt(spread),
    )


def _end(arm: RateSummary, limit: float, bound: float) -> float:
    """Where the e-value reaches the bound, between the arm's rate and 0 or 1."""
    log_mixed = _log_mixed(arm)

    def excess(rate: float) -> float:
        return min(_log_e(arm, log_mixed, rate), 1e6) - bound

    if excess(limit) <= 0:
        return limit
    return float(optimize.brentq(excess, arm.mean, limit, xtol=1e-12))


def _difference_end(baseline: RateSummary, candidate: RateSummary, limit: float, bound: float) -> float:
    """Where the least product reaches the bound; it is convex in the difference, and least at the estimate."""

    def excess(difference: float) -> float:
        return min(_least_log_e(baseline, candidate, difference), 1e6) - bound

    estimate = candidate.mean - baseline.mean
    if excess(limit) <= 0 or excess(estimate) >= 0:
        return limit
    return float(optimize.brentq(excess, estimate, limit, xtol=1e-9))


def _least_log_e(baseline: RateSummary, candidate: RateSummary, difference: float) -> float:
    """Least product of the arms' e-values over all pairs of rates with this difference: at the most likely pair."""
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)

    def slope(rate: float) -> float:  # of the log likelihood; it falls
        return _slope(baseline, rate) + _slope(candidate, rate + difference)

    if high - low <= 2 * _EDGE:
        rate = (low + high) / 2
    elif slope(low + _EDGE) <= 0:
        rate = low
    elif slope(high - _EDGE) >= 0:
        rate = high
    else:
        rate = float(optimize.brentq(slope, low + _EDGE, high - _EDGE, xtol=1e-14))
    other = min(max(rate + difference, 0.0), 1.0)
    return beta_binomial_log_e(baseline, rate) + beta_binomial_log_e(candidate, other)


def _slope(arm: RateSummary, rate: float) -> float:
    return arm.successes / max(rate, _EDGE) - (arm.n - arm.successes) / max(1 - rate, _EDGE)


def _adjusted_variance(arm: RateSummary) -> float:
    """Of the rate, with half a success and half a failure more: never 0."""
    rate = (arm.successes + 0.5) / (arm.n + 1)
    return rate * (1 - rate) / arm.n


def _arm(arm: RateSummary, alpha: float) -> ArmEstimate:
    low, high = beta_binomial_sequence(arm, alpha=alpha)
    return ArmEstimate(n=arm.n, value=arm.mean, low=low, high=high)
