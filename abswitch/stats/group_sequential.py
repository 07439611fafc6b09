"""Group sequential tests: a few planned looks, and a boundary for each that spends its part of the error rate.

When looks are few, this finds more with less than a test that may be peeked at without end. How much of alpha is spent
by a given share of the information is fixed beforehand (Lan and DeMets); when exactly looks happen, and how many there
are, is not, as long as it does not follow from the results. Boundaries come from the joint distribution of the
statistics at all looks, by recursive numerical integration.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.components import error_rate
from abswitch.stats.sequential import at_boundary, z_statistic

OBRIEN_FLEMING, POCOCK, POWER_FAMILY = "obrien-fleming", "pocock", "power"
SPENDING = (OBRIEN_FLEMING, POCOCK, POWER_FAMILY)
"""Names of the spending functions."""

Floats = NDArray[np.float64]
_NEVER = 1e-13
"""A look that may spend less than this cannot stop: its boundary is infinite."""
_FAR = 9.0
"""Standard deviations beyond which a path does not go."""
_FINEST = 400
"""Most nodes of the integration, and 6 of them to a step's standard deviation below that."""


def obrien_fleming_spending(fraction: ArrayLike, *, alpha: float = 0.05) -> Floats:
    """Two-sided error rate spent by then, O'Brien–Fleming-like: almost all at the end.

    Args:
        fraction: of the information planned, 0–1, any shape.

    References:
        K. K. G. Lan, D. L. DeMets, Biometrika 70 (1983) 659–663; alpha / 2 on each side, as in D. M. Reboussin et al.,
        Controlled Clinical Trials 21 (2000) 190–207.

    >>> obrien_fleming_spending([0.5, 1.0]).round(4).tolist()
    [0.0031, 0.05]
    """
    t = _fractions(fraction)
    with np.errstate(divide="ignore"):
        spent: Floats = 4 * special.ndtr(-special.ndtri(1 - alpha / 4) / np.sqrt(t))
    return spent


def pocock_spending(fraction: ArrayLike, *, alpha: float = 0.05) -> Floats:
    """Two-sided error rate spent by then, Pocock-like: boundaries about equal at all looks; see above.

    >>> pocock_spending([0.5, 1.0]).round(4).tolist()
    [0.031, 0.05]
    """
    spent: Floats = alpha * np.log1p((math.e - 1) * _fractions(fraction))
    return spent


def power_spending(fraction: ArrayLike, *, alpha: float = 0.05, rho: float = 3.0) -> Floats:
    """Two-sided error rate spent by then, power family: alpha · fraction^rho.

    rho 1 is about Pocock's, 3 about O'Brien and Fleming's.

    References:
        K. Kim, D. L. DeMets, Biometrika 74 (1987) 149–154; C. Jennison, B. W. Turnbull, Group Sequential
        Methods (2000), §7.2.

    >>> power_spending([0.5, 1.0], rho=2.0).tolist()
    [0.0125, 0.05]
    """
    spent: Floats = alpha * _fractions(fraction) ** rho
    return spent


class Exits(NamedTuple):
    """Chance of stopping at each look, above and below; shape (looks,) each."""

    above: Floats
    below: Floats


@dataclass(frozen=True, slots=True)
class GroupSequentialDesign:
    """How the error rate of a two-sided test is spent over its looks.

    Args:
        spending: `obrien-fleming` (default: hardly any at first, so the last look is almost as for a single one),
            `pocock` (stops earliest) or `power`.
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.
        rho: of the power family alone, above 0.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        C. Jennison, B. W. Turnbull, Group Sequential Methods with Applications to Clinical Trials (2000), ch. 7 and 19.

    >>> GroupSequentialDesign().boundaries([0.2, 0.4, 0.6, 0.8, 1.0]).round(2).tolist()
    [4.88, 3.36, 2.68, 2.29, 2.03]
    """

    spending: str = OBRIEN_FLEMING
    alpha: float = 0.05
    rho: float = 3.0

    def __post_init__(self) -> None:
        checks.one_of("spending", self.spending, SPENDING)
        error_rate(self.alpha)
        checks.number("rho", self.rho, low=0.0, above=True)

    def spent(self, fraction: ArrayLike) -> Floats:
        """Error rate spent by these fractions of the information; all of it from 1 on."""
        t = np.minimum(np.asarray(fraction, dtype=np.float64), 1.0)
        if self.spending == POWER_FAMILY:
            return power_spending(t, alpha=self.alpha, rho=self.rho)
        return (pocock_spending if self.spending == POCOCK else obrien_fleming_spending)(t, alpha=self.alpha)

    def boundaries(self, fractions: Sequence[float], *, final: bool = False) -> Floats:
        """How many standard errors from 0 the estimate must be at each look so far to stop; infinite where none stops.

        Args:
            fractions: of the planned information at each look so far, increasing, above 0. The last may pass 1.
            final: the last of them is the last look, whatever was planned: all that is left of alpha is spent.

        Raises:
            InvalidInput: no fractions, or not increasing.
        """
        return np.array(_boundaries(self, _increasing(fractions), final))

    def exits(self, fractions: Sequence[float], noncentrality: float = 0.0) -> Exits:
        """Chance of stopping at each look, with a true difference of so many standard errors at fraction 1."""
        given = _increasing(fractions)
        return exit_probabilities(self.boundaries(given, final=True), given, noncentrality)

    def power(self, fractions: Sequence[float], noncentrality: float) -> float:
        """Chance of finding a true difference of so many standard errors at fraction 1."""
        return float(np.concatenate(self.exits(fractions, noncentrality)).sum())

    def expected_fraction(self, fractions: Sequence[float], noncentrality: float) -> float:
        """Information used on average until the test stops, as a fraction of that planned."""
        stops = np.add(*self.exits(fractions, noncentrality))
        stops[-1] += 1 - stops.sum()
        return float(stops @ np.array(fractions, dtype=np.float64))

    def inflation(self, fractions: Sequence[float], *, power: float = 0.8) -> float:
        """How many times the sample of a single-look test the last look needs for the same power.

        >>> round(GroupSequentialDesign().inflation([0.2, 0.4, 0.6, 0.8, 1.0]), 3)
        1.025
        """
        single = float(
            special.ndtri(1 - self.alpha / 2) + special.ndtri(checks.number("power", power, low=0.5, high=0.9999))
        )
        needed = optimize.brentq(lambda far: self.power(fractions, far) - power, single / 2, 3 * single)
        return float(needed / single) ** 2


def group_sequential_test(
    found: Comparison, fractions: Sequence[float], *, design: GroupSequentialDesign, final: bool = False
) -> Comparison:
    """The comparison at the latest of some planned looks, with its repeated confidence interval.

    The interval excludes 0 exactly where the boundary is passed, and it holds at all looks together, so it may be read
    against margins as well, and after an earlier look that would have stopped.

    Args:
        found: a comparison for a single look, of all data so far, with the design's alpha.
        fractions: of the planned information at each look so far, this one included; usually n / planned n.
        final: no look will follow.

    Returns:
        A `Comparison`, its p-value the least alpha whose boundary is passed now. `why_not` is set where `found`'s is,
        and where this look may spend nothing yet.

    Raises:
        InvalidInput: another alpha than the design's, or fractions that do not increase.

    References:
        Jennison & Turnbull (2000), ch. 9 (repeated intervals), §3.3 (by t, as the normal boundary's tail probability).

    >>> from abswitch.stats.means import welch_t_test
    >>> from abswitch.stats.summaries import MeanSummary
    >>> once = welch_t_test(MeanSummary(400, 10.0, 399.0), MeanSummary(400, 10.3, 399.0))
    >>> found = group_sequential_test(once, [0.25, 0.5], design=GroupSequentialDesign())
    >>> found.look, round(found.low, 2), round(found.high, 2)
    (2, 0.09, 0.51)
    """
    if found.alpha != design.alpha:
        raise InvalidInput("found.alpha", found.alpha, f"that of the design, {design.alpha:g}")
    bound = float(design.boundaries(fractions, final=final)[-1])
    spent = design.alpha if final else float(design.spent(fractions[-1]))
    found = replace(found, notes=(*found.notes, f"boundary {bound:.3g} standard errors, {spent:.2g} of alpha spent"))
    p_value = _repeated_p(abs(z_statistic(found)), tuple(fractions), design, final) if found.attainable else math.nan
    method = f"group sequential, {design.spending} spending"
    return at_boundary(found, bound, method=method, look=len(fractions), p_value=p_value)


def repeated_p(
    p_value: float, fractions: Sequence[float], design: GroupSequentialDesign, *, final: bool = False
) -> float:
    """The least alpha whose boundary a statistic with this two-sided single-look p-value passes now.

    Args:
        fractions, final: as for `group_sequential_test`.

    >>> round(repeated_p(0.05, [1.0], GroupSequentialDesign(), final=True), 3)
    0.05
    """
    if math.isnan(p_value):
        return math.nan
    z = -float(special.ndtri(max(p_value, float(np.finfo(np.float64).tiny)) / 2))
    return _repeated_p(z, tuple(fractions), design, final)


def exit_probabilities(boundaries: ArrayLike, fractions: Sequence[float], noncentrality: float = 0.0) -> Exits:
    """Chance of first leaving (−boundary, boundary) at each look, above and below.

    Args:
        boundaries: shape (looks,), in standard errors; infinite where none stops.
        fractions: of the planned information, increasing, one a look.
        noncentrality: true difference in standard errors at fraction 1.

    References:
        P. Armitage, C. K. McPherson, B. C. Rowe, Journal of the Royal Statistical Society A 132 (1969) 235–244.

    >>> exits = exit_probabilities([2.413] * 5, [0.2, 0.4, 0.6, 0.8, 1.0])  # Pocock's constant for five looks
    >>> round(float(sum(exits.above) + sum(exits.below)), 4)
    0.05
    """
    given, bounds = _increasing(fractions), np.asarray(boundaries, dtype=np.float64)
    if bounds.shape != (len(given),) or not (bounds > 0).all():
        raise InvalidInput("boundaries", boundaries, f"{len(given)} numbers above 0")
    paths, above, below = _START, [], []
    for bound, fraction in zip(bounds, given, strict=True):
        up, down = paths.beyond(float(bound), fraction, noncentrality)
        above.append(up)
        below.append(down)
        paths = paths.onward(float(bound), fraction, noncentrality)
    return Exits(np.array(above), np.array(below))


class _Paths(NamedTuple):
    """Paths that have not left yet: nodes on the scale of a Brownian motion, with the probability at each."""

    fraction: float
    at: Floats
    mass: Floats

    def beyond(self, bound: float, fraction: float, drift: float) -> tuple[float, float]:
        """Chance of lying above or below the boundary at the next look."""
        step = math.sqrt(fraction - self.fraction)
        centre = self.at + drift * (fraction - self.fraction)
        edge = bound * math.sqrt(fraction)
        up, down = special.ndtr((centre - edge) / step), special.ndtr((-edge - centre) / step)
        return float(self.mass @ up), float(self.mass @ down)

    def onward(self, bound: float, fraction: float, drift: float) -> _Paths:
        """Those within the boundary at the next look."""
        step = math.sqrt(fraction - self.fraction)
        middle, reach = drift * fraction, _FAR * math.sqrt(fraction)
        edge = bound * math.sqrt(fraction)
        low, high = max(-edge, middle - reach), min(edge, middle + reach)
        if low >= high:  # all of them have left
            return _Paths(fraction, np.zeros(1), np.zeros(1))
        nodes, weights = _rule(min(_FINEST, 48 + math.ceil(6 * (high - low) / step)))
        at = (low + high) / 2 + nodes * (high - low) / 2
        distance = (at[:, None] - self.at[None, :] - drift * (fraction - self.fraction)) / step
        density = np.exp(-distance * distance / 2) @ self.mass / (step * math.sqrt(2 * math.pi))
        return _Paths(fraction, at, density * weights * (high - low) / 2)


_START = _Paths(0.0, np.zeros(1), np.ones(1))


@functools.lru_cache(maxsize=64)
def _rule(size: int) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(size)
    return nodes, weights


@functools.lru_cache(maxsize=512)
def _boundaries(design: GroupSequentialDesign, fractions: tuple[float, ...], final: bool) -> tuple[float, ...]:
    paths, before, bounds = _START, 0.0, []
    for index, fraction in enumerate(fractions):
        last = final and index == len(fractions) - 1
        spent = design.alpha if last else float(design.spent(fraction))
        bound = _boundary(paths, fraction, spent - before)
        if math.isfinite(bound):  # what cannot be spent yet is kept for the next look
            before = spent
        paths = paths.onward(bound, fraction, 0.0)
        bounds.append(bound)
    return tuple(bounds)


def _boundary(paths: _Paths, fraction: float, to_spend: float) -> float:
    if to_spend < _NEVER:
        return math.inf

    def excess(bound: float) -> float:
        return sum(paths.beyond(bound, fraction, 0.0)) - to_spend

    return float(optimize.brentq(excess, 0.0, _FAR, xtol=1e-10)) if excess(0.0) > 0 else 0.0


def _repeated_p(z: float, fractions: tuple[float, ...], design: GroupSequentialDesign, final: bool) -> float:
    """The least alpha, between 1e-10 and 0.5, whose boundary is passed; 1 where none is."""

    def short(log_alpha: float) -> float:
        wanted = replace(design, alpha=math.exp(log_alpha))
        return min(float(wanted.boundaries(fractions, final=final)[-1]), _FAR) - z

    low, high = math.log(1e-10), math.log(0.5)
    if not short(high) <= 0:
        return 1.0
    return math.exp(low) if short(low) < 0 else math.exp(float(optimize.brentq(short, low, high, xtol=1e-4)))


def _fractions(given: ArrayLike) -> Floats:
    array = np.asarray(given, dtype=np.float64)
    if not ((array >= 0) & (array <= 1)).all():
        raise InvalidInput("fraction", given, "numbers from 0 to 1")
    return array


def _increasing(given: Sequence[float]) -> tuple[float, ...]:
    fractions = tuple(checks.number("fractions", float(one), low=0.0, above=True) for one in given)
    if not fractions or any(later <= earlier for earlier, later in itertools.pairwise(fractions)):
        raise InvalidInput("fractions", given, "at least one, and each above the one before")
    return fractions
