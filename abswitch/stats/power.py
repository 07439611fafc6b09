"""How much a test could see, and how much more it needs. Normal approximations, for planning.

Numbers of units are of both arms together; `share` is the candidate's fraction of them.
"""

from __future__ import annotations

import math

from scipy import optimize, special

from abswitch import checks
from abswitch.errors import InvalidInput

POWER = 0.8
"""The customary chance of finding what is there: J. Cohen, Statistical Power Analysis, 2nd ed. (1988), § 2.4."""


def detectable_effect(standard_error: float, *, alpha: float = 0.05, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test with this standard error finds with probability `power`.

    References:
        J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed. (1988), ch. 2.

    >>> round(detectable_effect(0.02), 4)
    0.056
    """
    checks.number("standard_error", standard_error, low=0.0)
    return sum(_quantiles(alpha, power)) * standard_error


def units_needed(n: int, standard_error: float, effect: float, *, alpha: float = 0.05, power: float = POWER) -> int:
    """Units in all that would find `effect`, judged from a test of `n` units with this standard error.

    The standard error falls with the square root of n at an unchanged split.
    """
    checks.integer("n", n, low=1)
    checks.number("effect", effect, low=0.0, above=True)
    return _whole(n, detectable_effect(standard_error, alpha=alpha, power=power) / effect, effect)


def mde_mean(n: int, std: float, *, share: float = 0.5, alpha: float = 0.05, power: float = POWER) -> float:
    """Minimum detectable difference of two means with `n` units in all and this standard deviation in both arms."""
    checks.integer("n", n, low=2)
    checks.number("std", std, low=0.0)
    return detectable_effect(std * math.sqrt(_inverse_shares(share) / n), alpha=alpha, power=power)


def required_n_mean(effect: float, std: float, *, share: float = 0.5, alpha: float = 0.05, power: float = POWER) -> int:
    """Units in all that find a difference of two means, with this standard deviation in both arms.

    >>> required_n_mean(0.5, 1.0)  # 63 an arm, as in every table for d = 0.5 by z
    126
    """
    checks.number("effect", effect, low=0.0, above=True)
    checks.number("std", std, low=0.0)
    return _whole(_inverse_shares(share), sum(_quantiles(alpha, power)) * std / effect, effect)


def required_n_rate(
    baseline: float, candidate: float, *, share: float = 0.5, alpha: float = 0.05, power: float = POWER
) -> int:
    """Units in all with which the two-proportion z-test finds the difference of two rates.

    References:
        J. L. Fleiss, B. Levin, M. C. Paik, Statistical Methods for Rates and Proportions, 3rd ed. (2003), eq. 4.14
        and 4.18 without continuity correction.

    >>> required_n_rate(0.6, 0.7)
    712
    """
    checks.share("baseline", baseline)
    checks.share("candidate", candidate)
    if baseline == candidate:
        raise InvalidInput("candidate", candidate, "another rate than the baseline's; no number of units tells equals")
    return math.ceil(_units_for_rates(baseline, candidate, share, alpha, power))


def mde_rate(n: int, baseline: float, *, share: float = 0.5, alpha: float = 0.05, power: float = POWER) -> float:
    """Minimum detectable increase of a rate with `n` units in all; NaN where not even an increase to 1 is found.

    For decreases, ask with the complement: `mde_rate(n, 1 − baseline)`.
    """
    checks.integer("n", n, low=2)
    checks.share("baseline", baseline)

    def lacking(effect: float) -> float:
        return _units_for_rates(baseline, baseline + effect, share, alpha, power) - n

    largest = 1.0 - baseline
    if largest < 1e-9 or lacking(largest) > 0:
        return math.nan
    return float(optimize.brentq(lacking, 1e-9, largest)) if lacking(1e-9) > 0 else 1e-9


def _units_for_rates(baseline: float, candidate: float, share: float, alpha: float, power: float) -> float:
    z_alpha, z_power = _quantiles(alpha, power)
    spread = _inverse_shares(share)
    pooled = (1 - share) * baseline + share * candidate
    without = math.sqrt(pooled * (1 - pooled) * spread)
    with_effect = math.sqrt(baseline * (1 - baseline) / (1 - share) + candidate * (1 - candidate) / share)
    return ((z_alpha * without + z_power * with_effect) / (candidate - baseline)) ** 2


def _whole(scale: float, factor: float, effect: float) -> int:
    units = scale * factor * factor
    if not math.isfinite(units):
        raise InvalidInput("effect", effect, "large enough to be found with a finite number of units")
    return math.ceil(units)


def _inverse_shares(share: float) -> float:
    checks.number("share", share, low=0.0, high=1.0, above=True)
    if share == 1.0:
        raise InvalidInput("share", share, "below 1: both arms need units")
    return 1 / share + 1 / (1 - share)


def _quantiles(alpha: float, power: float) -> tuple[float, float]:
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    checks.number("power", power, low=0.5, high=0.9999)
    return float(special.ndtri(1 - alpha / 2)), float(special.ndtri(power))
