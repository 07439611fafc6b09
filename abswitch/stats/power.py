"""How much a test could see, and how much more it needs. Normal approximations, for planning."""

from __future__ import annotations

import math

from scipy import special

from abswitch import checks


def detectable_effect(standard_error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test with this standard error finds with probability `power`.

    References:
        J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed. (1988), ch. 2.

    >>> round(detectable_effect(0.02), 4)
    0.056
    """
    checks.number("standard_error", standard_error, low=0.0)
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    checks.number("power", power, low=0.5, high=0.9999)
    return float(special.ndtri(1 - alpha / 2) + special.ndtri(power)) * standard_error


def units_needed(n: int, standard_error: float, effect: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Units in all that would find `effect`, judged from a test of `n` units with this standard error.

    The standard error falls with the square root of n at an unchanged split.
    """
    checks.number("effect", effect, low=0.0, above=True)
    return math.ceil(n * (detectable_effect(standard_error, alpha=alpha, power=power) / effect) ** 2)
