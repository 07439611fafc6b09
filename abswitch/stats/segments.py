"""Segments: is the difference the same in all of them, and what is it over all of them?

Look at segments for whether they differ (`cochran_q_test`), not for the one that looks best; that one needs a
correction for how many were looked at (`abswitch.stats.many`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison, finite
from abswitch.stats.components import bare_arm, error_rate, unattainable
from abswitch.stats.strata import NO_STRATUM, StratifiedSummary
from abswitch.stats.summaries import RateSummary

COCHRAN_Q = "Cochran's Q"
WELCH_Q = "Cochran's Q, Welch's F"
CMH = "Cochran–Mantel–Haenszel, Sato interval"
ALL_AGREE = "not attainable: all trials agree in every stratum"
BY_NULL = "every stratum is split by arm: the interval is that of the test"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heterogeneity:
    """Whether segments differ in their difference between the arms.

    Attributes:
        segments: names of those with a result.
        q: weighted sum of squares around the common estimate; about `df` when all segments share one difference.
        p_value: chance of so much variation or more if they do.
        i_squared: share of the variation that chance does not explain, 0–1 (Higgins & Thompson 2002).
        pooled, low, high: the common estimate by inverse variance, and its interval of confidence 1 − alpha; to be
            read only where the segments agree.
        why_not: why there is no result; None when there is one.
        notes: segments left out.
    """

    method: str
    alpha: float
    segments: tuple[str, ...]
    df: int = 0
    q: float = math.nan
    p_value: float = math.nan
    i_squared: float = math.nan
    pooled: float = math.nan
    low: float = math.nan
    high: float = math.nan
    why_not: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def attainable(self) -> bool:
        """Whether there is a result at all."""
        return self.why_not is None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN and infinity become None."""
        plain: dict[str, Any] = finite(asdict(self) | {"attainable": self.attainable})
        return plain


def cochran_q_test(segments: Mapping[str, Comparison], *, alpha: float = 0.05) -> Heterogeneity:
    """Cochran's Q: do segments share one difference? With I² and the common estimate by inverse variance.

    Where all comparisons have degrees of freedom, Welch's correction is applied: Q takes variances for known, and with
    a few units a segment finds differences that are not there.

    Args:
        segments: a comparison for each, of the same metric and method, on different units.
        alpha: two-sided error rate of the common interval, in (0, 0.5]. 0.05 by convention.

    Returns:
        A `Heterogeneity`; comparisons without a result are left out and named. `why_not` is set below two segments.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        W. G. Cochran, Biometrics 10 (1954) 101–129; B. L. Welch, Biometrika 38 (1951) 330–336;
        J. P. T. Higgins, S. G. Thompson, Statistics in Medicine 21 (2002) 1539–1558.
    """
    error_rate(alpha)
    kept = {name: one for name, one in segments.items() if one.attainable and one.standard_error > 0}
    left_out = [name for name in segments if name not in kept]
    notes = (f"left out, without a result: {', '.join(left_out)}",) if left_out else ()
    if len(kept) < 2:
        why_not = f"not attainable: {len(kept)} segment(s) with a result, and 2 are the least"
        return Heterogeneity(method=COCHRAN_Q, alpha=alpha, segments=tuple(kept), why_not=why_not, notes=notes)
    estimates = np.array([one.estimate for one in kept.values()])
    weights = np.array([one.standard_error**-2.0 for one in kept.values()])
    known_df = [one.df for one in kept.values() if one.df is not None]
    freedoms = np.array(known_df) if len(known_df) == len(kept) else None
    return _heterogeneity(tuple(kept), estimates, weights, freedoms, alpha, notes)


def _heterogeneity(
    names: tuple[str, ...],
    estimates: Floats,
    weights: Floats,
    freedoms: Floats | None,
    alpha: float,
    notes: tuple[str, ...],
) -> Heterogeneity:
    pooled = float(np.average(estimates, weights=weights))
    q, df = float(weights @ (estimates - pooled) ** 2), len(names) - 1
    half = float(special.ndtri(1 - alpha / 2)) / math.sqrt(weights.sum())
    return Heterogeneity(
        method=COCHRAN_Q if freedoms is None else WELCH_Q,
        alpha=alpha,
        segments=names,
        df=df,
        q=q,
        p_value=float(special.chdtrc(df, q)) if freedoms is None else _welch_p(q, weights, freedoms),
        i_squared=max(0.0, 1 - df / q) if q else 0.0,
        pooled=pooled,
        low=pooled - half,
        high=pooled + half,
        notes=notes,
    )


def _welch_p(q: float, weights: Floats, freedoms: Floats) -> float:
    """p-value of Q when the variances behind the weights were estimated with these degrees of freedom."""
    k = len(weights)
    doubt = float(np.sum((1 - weights / weights.sum()) ** 2 / freedoms))
    f = q / (k - 1) / (1 + 2 * (k - 2) / (k * k - 1) * doubt)
    return float(special.fdtrc(k - 1, (k * k - 1) / (3 * doubt), f))


def cochran_mantel_haenszel_test(
    baseline: StratifiedSummary, candidate: StratifiedSummary, *, alpha: float = 0.05
) -> Comparison:
    """Cochran–Mantel–Haenszel test of rates over strata (segments, or stages of a ramp), however sparse each is.

    The p-value is that of the chi-square without continuity correction; it asks whether the candidate does better or
    worse given each stratum's own totals. The estimate is Mantel and Haenszel's risk difference, weighted by
    n·m / (n + m), with Sato's variance, sound for few large strata and for many sparse ones. The two may disagree near
    alpha; decisions here read the interval.

    Args:
        baseline, candidate: rates by stratum, matched by name.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison`; the arms' values are weighted as the difference is. Strata without both arms are left out and
        named. `why_not` is set when no stratum is left, or all trials agree in each of them.

    Raises:
        InvalidInput: other summaries than rates, or alpha outside its range.

    References:
        W. G. Cochran, Biometrics 10 (1954) 417–451; N. Mantel, W. Haenszel, Journal of the National Cancer Institute 22
        (1959) 719–748; T. Sato, Biometrics 45 (1989) 1323–1324.

    >>> a = StratifiedSummary({"one": RateSummary(40, 10), "two": RateSummary(50, 30)})
    >>> b = StratifiedSummary({"one": RateSummary(30, 12), "two": RateSummary(45, 33)})
    >>> round(cochran_mantel_haenszel_test(a, b).estimate, 4)
    0.1403
    """
    error_rate(alpha)
    tables, notes = _tables(baseline, candidate)
    if tables.hypergeometric.sum() > 0:
        return _compare(tables, alpha, notes)
    why_not = ALL_AGREE if tables.weights.size else NO_STRATUM
    return unattainable(CMH, alpha, bare_arm(baseline.n), bare_arm(candidate.n), why_not, notes)


class _Tables(NamedTuple):
    """Two-by-two tables, one a stratum: trials and successes of baseline (n, x) and candidate (m, y)."""

    n: Floats
    x: Floats
    m: Floats
    y: Floats

    @property
    def weights(self) -> Floats:
        return self.n * self.m / (self.n + self.m)

    @property
    def hypergeometric(self) -> Floats:
        """Variance of y given each table's totals; 0 for a table of one trial."""
        total, successes = self.n + self.m, self.x + self.y
        spread: Floats = self.n * self.m * successes * (total - successes)
        scale: Floats = total**2 * np.maximum(total - 1, 1)
        return spread / scale

    @property
    def p_value(self) -> float:
        excess = self.y - (self.x + self.y) * self.m / (self.n + self.m)
        return float(special.chdtrc(1, excess.sum() ** 2 / self.hypergeometric.sum()))

    @property
    def null_variance(self) -> float:
        """Variance of the risk difference that the test goes by."""
        return float(self.hypergeometric.sum()) / float(self.weights.sum()) ** 2

    def sato_variance(self, difference: float) -> float:
        """Variance of the risk difference if it is the same in every stratum; may be 0 where trials split by arm."""
        n, x, m, y = self
        total = n + m
        slope = (m * m * x - n * n * y + n * m * (n - m) / 2) / total**2
        mixed = (y * (n - x) + x * (m - y)) / (2 * total)
        return float(slope.sum() * difference + mixed.sum()) / float(self.weights.sum()) ** 2


def _compare(tables: _Tables, alpha: float, notes: tuple[str, ...]) -> Comparison:
    value_a, value_b = (
        float(np.average(one, weights=tables.weights)) for one in (tables.x / tables.n, tables.y / tables.m)
    )
    estimate = value_b - value_a
    variance = tables.sato_variance(estimate)
    if variance <= tables.null_variance * 1e-9:
        variance, notes = tables.null_variance, (*notes, BY_NULL)
    error = math.sqrt(variance)
    half = float(special.ndtri(1 - alpha / 2)) * error
    return Comparison(
        method=CMH,
        alpha=alpha,
        baseline=bare_arm(int(tables.n.sum()), value_a),
        candidate=bare_arm(int(tables.m.sum()), value_b),
        estimate=estimate,
        low=max(-1.0, estimate - half),
        high=min(1.0, estimate + half),
        p_value=tables.p_value,
        standard_error=error,
        notes=notes,
    )


def _tables(baseline: StratifiedSummary, candidate: StratifiedSummary) -> tuple[_Tables, tuple[str, ...]]:
    """Tables of the strata that both arms have, and a note that names the others."""
    rows, left_out = [], []
    for name in dict.fromkeys((*baseline.strata, *candidate.strata)):
        a, b = _rate(baseline, name), _rate(candidate, name)
        if a.n and b.n:
            rows.append((a.n, a.successes, b.n, b.successes))
        else:
            left_out.append(name)
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    notes = (f"left out, with no trial in an arm: {', '.join(left_out)}",) if left_out else ()
    return _Tables(*columns), notes


def _rate(arm: StratifiedSummary, name: str) -> RateSummary:
    found = arm.strata.get(name, RateSummary(0, 0))
    if not isinstance(found, RateSummary):
        raise InvalidInput(f"strata.{name}", type(found).__name__, "a RateSummary")
    return found
