"""How much a test could see, and how much more it needs. Normal approximations, for planning.

Numbers of units are of both arms together; `share` is the candidate's fraction of them.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.summaries import numbers

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


def power_mean(
    n: ArrayLike, effect: float, std: float, *, share: float = 0.5, alpha: float = 0.05
) -> NDArray[np.float64]:
    """Chance that a two-sided z-test finds a difference of two means, with this standard deviation in both arms.

    Args:
        n: units in all, any shape, each at least 2.
        effect: the true difference, of either sign.

    Returns:
        Shape of `n`; fractions 0–1.

    References:
        J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed. (1988), ch. 2.

    >>> power_mean([126, 252], 0.5, 1.0).round(3).tolist()
    [0.801, 0.978]
    """
    checks.number("effect", effect)
    checks.number("std", std, low=0.0, above=True)
    error = std * np.sqrt(_inverse_shares(share) / _sizes(n))
    return two_sided_power(effect / error, alpha=alpha)


def power_rate(
    n: ArrayLike, baseline: float, candidate: float, *, share: float = 0.5, alpha: float = 0.05
) -> NDArray[np.float64]:
    """Chance that the pooled two-proportion z-test finds the difference of these two rates.

    Args:
        n: units in all, any shape, each at least 2.

    Returns:
        Shape of `n`; fractions 0–1.

    References:
        J. L. Fleiss, B. Levin, M. C. Paik, Statistical Methods for Rates and Proportions, 3rd ed. (2003), § 4.3.

    >>> power_rate([356, 712], 0.6, 0.7).round(3).tolist()
    [0.507, 0.8]
    """
    without, with_effect = _rate_spreads(baseline, candidate, share)
    root, distance = np.sqrt(_sizes(n)), abs(candidate - baseline)
    bound = float(special.ndtri(1 - _alpha(alpha) / 2)) * without
    if not with_effect:  # both rates are 0 or 1: certain
        return (distance * root > bound).astype(np.float64)
    up, down = ((sign * distance * root - bound) / with_effect for sign in (1, -1))
    found: NDArray[np.float64] = special.ndtr(up) + special.ndtr(down)
    return found


def two_sided_power(noncentrality: ArrayLike, *, alpha: float = 0.05) -> NDArray[np.float64]:
    """Chance that a two-sided z-test finds a true difference of so many standard errors; any shape.

    >>> two_sided_power([0.0, 2.8]).round(2).tolist()
    [0.05, 0.8]
    """
    bound = float(special.ndtri(1 - _alpha(alpha) / 2))
    far = np.asarray(noncentrality, dtype=np.float64)
    found: NDArray[np.float64] = special.ndtr(far - bound) + special.ndtr(-far - bound)
    return found


def required_pairs(effect: float, std_difference: float, *, alpha: float = 0.05, power: float = POWER) -> int:
    """Pairs with which the paired t-test finds a mean difference: prompts given to both arms, or pairs of blocks.

    Args:
        std_difference: standard deviation of the pairs' differences, above 0.

    References:
        J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed. (1988), § 2.3.5.

    >>> required_pairs(0.5, 1.0)
    34
    """
    checks.number("effect", effect, low=0.0, above=True)
    checks.number("std_difference", std_difference, low=0.0, above=True)
    start = max(2, _whole(1.0, sum(_quantiles(alpha, power)) * std_difference / effect, effect))

    def found(n: int) -> float:
        return _paired_t_power(n, math.sqrt(n) * effect / std_difference, alpha)

    # The normal approximation is short by about half the square of its quantile: a few pairs.
    return next(n for n in itertools.count(start) if found(n) >= power)


def design_effect(mean_size: float, correlation: float, *, size_cv: float = 0.0) -> float:
    """How many times more requests it takes because those of one unit (user, session) resemble each other.

    Args:
        mean_size: requests of a unit, on average, at least 1.
        correlation: of two requests of one unit (intraclass correlation), 0–1.
        size_cv: standard deviation of units' numbers of requests over their mean; 0 by default, all alike.

    References:
        L. Kish, Survey Sampling (1965), § 5.4; S. M. Eldridge, D. Ashby, S. Kerry, International Journal of
        Epidemiology 35 (2006) 1292–1300 (unequal sizes).

    >>> design_effect(10, 0.1)
    1.9
    """
    checks.number("mean_size", mean_size, low=1.0)
    checks.number("size_cv", size_cv, low=0.0)
    return 1 + ((1 + size_cv * size_cv) * mean_size - 1) * checks.share("correlation", correlation)


def _paired_t_power(n: int, noncentrality: float, alpha: float) -> float:
    bound = float(special.stdtrit(n - 1, 1 - alpha / 2))
    both = special.nctdtr(n - 1, noncentrality, [bound, -bound])
    return float(1 - both[0] + both[1])


def _sizes(n: ArrayLike) -> NDArray[np.float64]:
    sizes = np.asarray(n)
    flat = numbers("n", sizes.ravel())
    if flat.size and flat.min() < 2:
        raise InvalidInput("n", float(flat.min()), "at least 2 units")
    return flat.reshape(sizes.shape)


def _rate_spreads(baseline: float, candidate: float, share: float) -> tuple[float, float]:
    """Standard error of the difference times √n: if the rates were equal, and as they are."""
    checks.share("baseline", baseline)
    checks.share("candidate", candidate)
    spread = _inverse_shares(share)
    pooled = (1 - share) * baseline + share * candidate
    with_effect = math.sqrt(baseline * (1 - baseline) / (1 - share) + candidate * (1 - candidate) / share)
    return math.sqrt(pooled * (1 - pooled) * spread), with_effect


def _units_for_rates(baseline: float, candidate: float, share: float, alpha: float, power: float) -> float:
    z_alpha, z_power = _quantiles(alpha, power)
    without, with_effect = _rate_spreads(baseline, candidate, share)
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
    checks.number("power", power, low=0.5, high=0.9999)
    return float(special.ndtri(1 - _alpha(alpha) / 2)), float(special.ndtri(power))


def _alpha(alpha: float) -> float:
    return checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
