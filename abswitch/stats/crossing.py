"""When does a confidence sequence exclude 0? The power of looking at any time, by numerical integration.

Time is scaled so that the planned number of units is 1; the test statistic is then a Brownian motion whose drift is the
noncentrality: the true difference over its standard error at the planned number. The sequence is the normal mixture,
tuned to be narrowest at `tuned_at`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from abswitch import checks
from abswitch.stats.components import error_rate
from abswitch.stats.summaries import numbers

Floats = NDArray[np.float64]

LOOKS = 100
"""Looks within the planned number of units; a look at every single one finds an effect a little sooner."""
_NODES = 128
"""Points at which the statistic is followed; twice as many change a power by less than 1e-5."""
_LARGEST = 40.0


def mixture_scale(alpha: float, tuned_at: float = 1.0) -> float:
    """Scale ρ of the normal mixture whose sequence is narrowest at `tuned_at`, in the same unit of time.

    References:
        S. R. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, Annals of Statistics 49 (2021) 1055–1080, § 3.5.
    """
    error_rate(alpha)
    checks.number("tuned_at", tuned_at, low=0.0, above=True)
    return tuned_at / (-float(special.lambertw(-(alpha**2) / math.e, -1).real) - 1)


def mixture_boundary(time: Floats, alpha: float, scale: float) -> Floats:
    """What |S| must reach for the sequence to exclude 0: √((t + ρ) log((t + ρ) / (ρ α²))).

    References:
        H. Robbins, Annals of Mathematical Statistics 41 (1970) 1397–1409.
    """
    found: Floats = np.sqrt((time + scale) * np.log((time + scale) / (scale * alpha**2)))
    return found


def anytime_power(noncentrality: ArrayLike, *, alpha: float = 0.05, tuned_at: float = 1.0) -> Floats:
    """Chance that the sequence has excluded 0 by the planned number of units, looked at 100 times on the way.

    Args:
        noncentrality: true difference over its standard error at the planned number; shape (k,), either sign.
        alpha: error rate of the sequence, in (0, 0.5].
        tuned_at: where it is narrowest, as a fraction of the planned number, above 0.

    Returns:
        Shape (k,); at 0 below alpha, the price of looking for ever.

    >>> anytime_power([0.0, 2.8, 3.8]).round(2).tolist()
    [0.01, 0.52, 0.84]
    """
    drift = np.clip(numbers("noncentrality", noncentrality), -_LARGEST, _LARGEST)
    found: Floats = 1.0 - _followed(error_rate(alpha), _tuned(tuned_at)).surviving(drift)[-1]
    return found


def anytime_noncentrality(power: float, *, alpha: float = 0.05, tuned_at: float = 1.0) -> float:
    """The noncentrality at the planned number with which `anytime_power` is `power`."""
    checks.number("power", power, low=0.5, high=0.9999)

    def lacking(drift: float) -> float:
        return float(anytime_power([drift], alpha=alpha, tuned_at=tuned_at)[0]) - power

    return float(optimize.brentq(lacking, 0.1, _LARGEST, xtol=1e-9))


def anytime_expected_share(noncentrality: float, *, alpha: float = 0.05, tuned_at: float = 1.0) -> float:
    """Mean fraction of the planned number that is spent when one stops as soon as 0 is excluded, or at that number.

    >>> round(anytime_expected_share(0.0), 2), round(anytime_expected_share(3.8), 2)
    (0.99, 0.59)
    """
    checks.number("noncentrality", noncentrality, low=-_LARGEST, high=_LARGEST)
    left = _followed(error_rate(alpha), _tuned(tuned_at)).surviving(np.array([noncentrality]))[:, 0]
    return float((1.0 + left[:-1].sum()) / LOOKS)


@dataclass(frozen=True, slots=True)
class _Followed:
    """Where paths without drift are that never crossed: values and their chances at each look, shape (looks, nodes)."""

    values: Floats
    chances: Floats

    def surviving(self, drift: Floats) -> Floats:
        """Chance not to have crossed by each look with these drifts, shape (looks, k): paths reweighed (Girsanov)."""
        times = np.arange(1, LOOKS + 1)[:, None, None] / LOOKS
        ratios = np.exp(self.values[:, :, None] * drift - drift**2 * times / 2)
        found: Floats = np.clip(np.einsum("ln,lnk->lk", self.chances, ratios), 0.0, 1.0)
        return found


@functools.lru_cache(maxsize=32)
def _followed(alpha: float, tuned_at: float) -> _Followed:
    """Armitage, McPherson and Rowe's recursion (Journal of the Royal Statistical Society A 132, 1969, 235–244)."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    times = np.arange(1, LOOKS + 1) / LOOKS
    bounds = mixture_boundary(times, alpha, mixture_scale(alpha, tuned_at))
    values, steps = bounds[:, None] * nodes, bounds[:, None] * weights
    chances = np.empty_like(values)
    chances[0] = _density(values[0]) * steps[0]
    for look in range(1, LOOKS):
        arrived = _density(values[look][:, None] - values[look - 1]) @ chances[look - 1]
        chances[look] = arrived * steps[look]
    return _Followed(values, chances)


def _density(step: Floats) -> Floats:
    """Of a path's step between two looks."""
    found: Floats = np.exp(-0.5 * LOOKS * step**2) * math.sqrt(LOOKS / (2 * math.pi))
    return found


def _tuned(tuned_at: float) -> float:
    return checks.number("tuned_at", tuned_at, low=0.0, above=True)
