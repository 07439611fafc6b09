"""Many comparisons at once: the more that are looked at, the likelier one of them looks good by chance."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison, finite
from abswitch.stats.components import NEITHER_VARIES, Part, arm_estimate, bare_arm, error_rate, unattainable
from abswitch.stats.summaries import MeanSummary, numbers

Floats = NDArray[np.float64]

HOLM = "Holm"
BENJAMINI_HOCHBERG = "Benjamini–Hochberg"
BENJAMINI_YEKUTIELI = "Benjamini–Yekutieli"
E_BH = "e-BH"
DUNNETT = "Dunnett (many to one, pooled variance)"

_SPREADS = 48
"""Points of the quadrature over the estimated spread; more of them change Dunnett's p-value by less than 2e-5."""
_FARTHEST = 8.5
"""Standard normal values beyond this are left out: 2e-17 of them."""
_MOST = 4096
"""Enough steps for a candidate 20,000 times as large as its baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What is left of a family of tests after correction, in the order given.

    Attributes:
        adjusted: p-values that can be held against alpha; shape (k,). NaN where a test had no result.
        rejected: which hypotheses of no difference are rejected; shape (k,).
        names: of the tests, where they had names.
    """

    method: str
    alpha: float
    adjusted: Floats
    rejected: NDArray[np.bool_]
    names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        plain = {"method": self.method, "alpha": self.alpha, "names": self.names}
        found: dict[str, Any] = finite(plain | {"adjusted": self.adjusted.tolist(), "rejected": self.rejected.tolist()})
        return found


def holm(p_values: ArrayLike, *, alpha: float = 0.05) -> Corrected:
    """Holm's step-down correction: the chance of any false rejection is at most alpha, however the tests depend.

    Args:
        p_values: shape (k,), each from 0 to 1; k may be 0.
        alpha: error rate of the whole family, in (0, 0.5].

    Raises:
        InvalidInput: not p-values.

    References:
        S. Holm, Scandinavian Journal of Statistics 6 (1979) 65–70.

    >>> holm([0.01, 0.04, 0.03, 0.005]).adjusted.round(4).tolist()
    [0.03, 0.06, 0.06, 0.02]
    """
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(p.size, 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return _corrected(HOLM, alpha, adjusted)


def benjamini_hochberg(p_values: ArrayLike, *, alpha: float = 0.05) -> Corrected:
    """Benjamini–Hochberg (SciPy's): the expected share of false rejections among all is at most alpha.

    For independent or positively dependent tests; otherwise `benjamini_yekutieli`. For screening many metrics or
    segments, not for guardrails.

    Args:
        p_values: shape (k,), each from 0 to 1; k may be 0.
        alpha: false discovery rate, in (0, 0.5].

    Raises:
        InvalidInput: not p-values.

    References:
        Y. Benjamini, Y. Hochberg, Journal of the Royal Statistical Society B 57 (1995) 289–300.

    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.005]).adjusted.round(4).tolist()
    [0.02, 0.04, 0.04, 0.02]
    """
    return _corrected(BENJAMINI_HOCHBERG, alpha, _false_discovery(_p_values(p_values), "bh"))


def benjamini_yekutieli(p_values: ArrayLike, *, alpha: float = 0.05) -> Corrected:
    """As `benjamini_hochberg`, valid however the tests depend, at a price in power (SciPy's).

    References:
        Y. Benjamini, D. Yekutieli, Annals of Statistics 29 (2001) 1165–1188.
    """
    return _corrected(BENJAMINI_YEKUTIELI, alpha, _false_discovery(_p_values(p_values), "by"))


def e_bh(e_values: ArrayLike, *, alpha: float = 0.05) -> Corrected:
    """e-BH: the false discovery rate of e-values is at most alpha, however they depend and whenever one stopped.

    The correction for sequential tests: e-values of several metrics may be read at any time.

    Args:
        e_values: shape (k,), each 0 or more; k may be 0. `adjusted` is then k / (rank · e), at most 1.
        alpha: false discovery rate, in (0, 0.5].

    Raises:
        InvalidInput: negative or infinite values.

    References:
        R. Wang, A. Ramdas, Journal of the Royal Statistical Society B 84 (2022) 822–852.

    >>> e_bh([100.0, 1.0, 30.0, 12.0]).rejected.tolist()
    [True, False, False, False]
    """
    e = numbers("e_values", e_values)
    if e.size and e.min() < 0:
        raise InvalidInput("e_values", float(e.min()), "0 or more")
    with np.errstate(divide="ignore", over="ignore"):
        p = np.minimum(1.0, 1.0 / e)
    return _corrected(E_BH, alpha, _false_discovery(p, "bh"))


CORRECTIONS: Mapping[str, Callable[..., Corrected]] = {
    "holm": holm,
    "benjamini-hochberg": benjamini_hochberg,
    "benjamini-yekutieli": benjamini_yekutieli,
}
"""Corrections of p-values, by the name that a plan gives them."""


def correct_comparisons(
    comparisons: Mapping[str, Comparison], *, method: str = "holm", alpha: float = 0.05
) -> Corrected:
    """Correct a family of comparisons, e.g. several candidates, secondary metrics or segments.

    One without a result stays in the family, as if it had shown nothing: failing to measure must not help the others.

    Args:
        comparisons: by name; their own alpha is not read.
        method: `holm`, `benjamini-hochberg` or `benjamini-yekutieli`.
        alpha: error rate of the family, or false discovery rate, in (0, 0.5].
    """
    correction = CORRECTIONS[checks.one_of("method", method, CORRECTIONS)]
    known = np.array([one.attainable for one in comparisons.values()], dtype=np.bool_)
    p_values = [one.p_value if one.attainable else 1.0 for one in comparisons.values()]
    found = correction(p_values, alpha=alpha)
    adjusted = np.where(known, found.adjusted, np.nan)
    return replace(found, adjusted=adjusted, rejected=found.rejected & known, names=tuple(comparisons))


def dunnett_test(
    baseline: MeanSummary, candidates: Sequence[MeanSummary], *, alpha: float = 0.05
) -> tuple[Comparison, ...]:
    """Dunnett's test: each of several candidates against one baseline, with simultaneous intervals.

    The chance that any of the intervals misses is at most alpha. The variance is pooled over all arms: where it clearly
    differs between them, use Welch's test for each candidate and `correct_comparisons`. The same as
    `scipy.stats.dunnett`, from summaries and by quadrature instead of chance.

    Args:
        candidates: one or more.
        alpha: two-sided error rate of the whole family, in (0, 0.5].

    Returns:
        One `Comparison` for each candidate, in order; p-values are already adjusted. `why_not` is set on all when an
        arm is empty, there are no more observations than arms, or nothing varies. Each arm's own interval is a plain
        t one.

    Raises:
        InvalidInput: no candidate, or alpha outside its range.

    References:
        C. W. Dunnett, Journal of the American Statistical Association 50 (1955) 1096–1121.

    >>> a, b = MeanSummary.of([7.4, 8.5, 7.2, 8.24, 9.84, 8.32]), MeanSummary.of([9.76, 8.8, 7.68, 9.36])
    >>> c = MeanSummary.of([12.8, 9.68, 12.16, 9.2, 10.55])
    >>> [round(one.p_value, 4) for one in dunnett_test(a, [b, c])]
    [0.6201, 0.0058]
    """
    error_rate(alpha)
    if not candidates:
        raise InvalidInput("candidates", candidates, "at least one candidate")
    why_not = _why_no_dunnett(baseline, candidates)
    if why_not is not None:
        return tuple(
            unattainable(DUNNETT, alpha, bare_arm(baseline.n, baseline.mean), bare_arm(one.n, one.mean), why_not)
            for one in candidates
        )
    df = baseline.n + sum(one.n - 1 for one in candidates) - 1
    variance = (baseline.m2 + sum(one.m2 for one in candidates)) / df
    family = _Family(np.array([math.sqrt(one.n / (one.n + baseline.n)) for one in candidates]), df)
    quantile = family.quantile(alpha)
    return tuple(_against(baseline, one, variance, family, quantile, alpha) for one in candidates)


@dataclass(frozen=True, slots=True)
class _Family:
    """Student's t of several candidates that share a baseline: correlations loadings_i · loadings_j."""

    loadings: Floats
    df: int

    def beyond(self, largest: float) -> float:
        """Chance that any |t| exceeds this."""
        scale = np.sqrt(1.0 - self.loadings**2)
        weights, shared = _normal_nodes(float(scale.min()))
        chances, spreads = _chi_nodes(self.df)
        bounds, shift = largest * spreads[:, None, None], shared[:, None] * self.loadings
        inside = special.ndtr((bounds - shift) / scale) - special.ndtr((-bounds - shift) / scale)
        given_spread = inside.prod(axis=2) @ weights
        return float(np.clip(1.0 - given_spread @ chances, 0.0, 1.0))

    def quantile(self, alpha: float) -> float:
        """The |t| that any exceeds with chance alpha."""
        highest = float(special.stdtrit(self.df, 1 - alpha / 2 / len(self.loadings)))  # Bonferroni's
        lowest = float(special.stdtrit(self.df, 1 - alpha / 2))
        if highest - lowest < 1e-9:
            return lowest
        return float(optimize.brentq(lambda t: self.beyond(t) - alpha, 0.99 * lowest, 1.01 * highest, xtol=1e-9))


@functools.cache
def _legendre() -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(_SPREADS)
    return nodes, weights


def _normal_nodes(scale: float) -> tuple[Floats, Floats]:
    """Trapezoid quadrature over a standard normal value: chances and values, close enough to see steps this smooth."""
    count = min(math.ceil(2 * _FARTHEST / (0.5 * scale)), _MOST)
    values = np.linspace(-_FARTHEST, _FARTHEST, count + 1)
    chances = np.exp(-0.5 * values**2)
    return chances / chances.sum(), values


def _chi_nodes(df: int) -> tuple[Floats, Floats]:
    """Quadrature over the estimated spread, as a fraction of the true one: chances and values."""
    nodes, weights = _legendre()
    low, high = np.sqrt(special.chdtri(df, [1 - 1e-14, 1e-14]) / df)
    spreads = low + (high - low) * (nodes + 1) / 2
    logarithms = (df - 1) * np.log(spreads) - 0.5 * df * spreads**2
    chances = weights * np.exp(logarithms - logarithms.max())
    return chances / chances.sum(), spreads


def _against(
    baseline: MeanSummary, candidate: MeanSummary, variance: float, family: _Family, quantile: float, alpha: float
) -> Comparison:
    estimate = candidate.mean - baseline.mean
    error = math.sqrt(variance * (1 / baseline.n + 1 / candidate.n))
    arms = (arm_estimate(one.n, one.mean, [Part(variance / one.n, family.df)], alpha) for one in (baseline, candidate))
    return Comparison(
        method=DUNNETT,
        alpha=alpha,
        baseline=next(arms),
        candidate=next(arms),
        estimate=estimate,
        low=estimate - quantile * error,
        high=estimate + quantile * error,
        p_value=family.beyond(abs(estimate) / error),
        df=float(family.df),
        standard_error=error,
    )


def _why_no_dunnett(baseline: MeanSummary, candidates: Sequence[MeanSummary]) -> str | None:
    for name, one in (("baseline", baseline), *((f"candidate {k}", one) for k, one in enumerate(candidates))):
        if not one.n:
            return f"not attainable: the {name} has no observation"
    if baseline.n + sum(one.n - 1 for one in candidates) < 2:
        return "not attainable: there are no more observations than arms"
    return None if baseline.m2 + sum(one.m2 for one in candidates) > 0 else NEITHER_VARIES


def _p_values(given: ArrayLike) -> Floats:
    p = numbers("p_values", given)
    outside = p[(p < 0) | (p > 1)]
    if outside.size:
        raise InvalidInput("p_values", float(outside[0]), "0 to 1")
    return p


def _false_discovery(p: Floats, method: Literal["bh", "by"]) -> Floats:
    return np.asarray(stats.false_discovery_control(p, method=method), dtype=np.float64) if p.size else p


def _corrected(method: str, alpha: float, adjusted: Floats) -> Corrected:
    return Corrected(method=method, alpha=error_rate(alpha), adjusted=adjusted, rejected=adjusted <= alpha)
