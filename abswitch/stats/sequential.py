"""Peeking allowed: the mixture sequential probability ratio test, and the confidence sequence that it inverts to.

An estimate in units of its standard error is watched for as long as one likes. The likelihood ratio of "no difference"
against a normal mixture of differences, of either sign, is an e-value: whatever the moment at which one stops, it
exceeds 1 / alpha with probability alpha at most. All differences that it does not reject make an interval that holds at
all looks together. Only one thing is tuned beforehand: the number of observations at which it is narrowest.

What this rests on is that the estimate is about normal from the first look on. Small samples are taken care of by t;
rare events or heavy tails in a small arm are not. `abswitch.stats.mixture` takes summaries and refuses those.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.crossing import mixture_scale

MIXTURE_SPRT = "mixture SPRT, asymptotic confidence sequence"
_LARGEST = 700.0
"""exp of more is beyond doubles."""

Floats = NDArray[np.float64]


def z_boundary(fraction: ArrayLike, *, alpha: float = 0.05) -> Floats:
    """How many standard errors from 0 an estimate must be, at any look, for the mixture SPRT to reject.

    The normal mixture is as wide as makes this least at fraction 1.

    Args:
        fraction: information so far over that planned, any shape, above 0; it may pass 1. Under a constant split it is
            the number of observations over the planned one.
        alpha: two-sided error rate over all looks, in (0, 0.5]; 0.05 by convention.

    Returns:
        Shape of `fraction`.

    References:
        H. Robbins, Annals of Mathematical Statistics 41 (1970) 1397–1409; S. R. Howard et al., Annals of Statistics 49
        (2021) 1055–1080, eq. 14 and § 3.5; I. Waudby-Smith et al., Annals of Statistics 52 (2024) 2613–2640.

    >>> z_boundary([0.1, 1.0, 10.0]).round(2).tolist()
    [3.82, 3.04, 3.25]
    """
    spread = _spread(fraction, alpha)
    bound: Floats = np.sqrt((1 + spread) / spread * (2 * math.log(1 / alpha) + np.log1p(spread)))
    return bound


def mixture_log_e(z: ArrayLike, fraction: ArrayLike, *, alpha: float = 0.05) -> Floats:
    """Logarithm of the mixture SPRT's e-value of estimates `z` standard errors from 0; see `z_boundary`.

    Both signs count alike: the mixture is symmetric, so this is the likelihood ratio of |z| with the folded normal.

    >>> bool(mixture_log_e(z_boundary(0.3), 0.3).round(9) == np.log(20).round(9))
    True
    """
    spread = _spread(fraction, alpha)
    far = np.asarray(z, dtype=np.float64)
    found: Floats = far * far / 2 * (spread / (1 + spread)) - np.log1p(spread) / 2
    return found


def normal_equivalent(statistic: ArrayLike, df: ArrayLike) -> Floats:
    """The normal statistic with the same tail probability as Student's t has with `df` degrees of freedom."""
    t = np.asarray(statistic, dtype=np.float64)
    tail = np.maximum(special.stdtr(np.asarray(df, dtype=np.float64), -np.abs(t)), np.finfo(np.float64).tiny)
    found: Floats = -np.sign(t) * special.ndtri(tail)
    return found


def anytime_valid(found: Comparison, *, fraction: float, look: int | None = None) -> Comparison:
    """The same comparison, with an interval and p-value that hold at all looks together.

    For any estimate that is a mean of independent parts in the long run: means, ratios, clustered, adjusted (CUPED),
    stratified or paired differences, pairs of switchback blocks. Not for quantiles, ranks, or rates of rare events.
    Its look costs what the comparison costs: with sufficient statistics kept, that is reading the new rows.

    Args:
        found: a comparison for a single look; its alpha is kept.
        fraction: information so far over that planned, above 0; see `z_boundary`. To be planned beforehand, as
            `n / planned_n`, not from what was measured.
        look: number of this look, from 1, for the record.

    Returns:
        A `Comparison` with `e_value`. Its p-value is 1 / e_value, at most 1. `why_not` is set where `found`'s is, and
        where it is so early that nothing can be excluded.

    Raises:
        InvalidInput: fraction or look outside its range.

    References:
        As `z_boundary`; R. Johari et al., Operations Research 70 (2022) 1806–1821; A. Bibaut, N. Kallus,
        M. Lindon, arXiv:2212.14411 (estimates that are means only in the long run).

    >>> from abswitch.stats import MeanSummary, welch_t_test
    >>> a, b = MeanSummary(500, 10.0, 499.0), MeanSummary(500, 10.3, 499.0)
    >>> found = anytime_valid(welch_t_test(a, b), fraction=0.5)
    >>> round(found.low, 3), round(found.high, 3), found.excludes_zero()
    (0.105, 0.495, True)
    """
    checks.number("fraction", fraction, low=0.0, above=True)
    if look is not None:
        checks.integer("look", look, low=1)
    log_e = float(mixture_log_e(z_statistic(found), fraction, alpha=found.alpha)) if found.attainable else math.nan
    bound = float(z_boundary(fraction, alpha=found.alpha))
    return at_boundary(
        found,
        bound,
        method=MIXTURE_SPRT,
        look=look,
        p_value=math.exp(-max(log_e, 0.0)),
        e_value=math.exp(min(log_e, _LARGEST)),
    )


def at_boundary(
    found: Comparison, bound: float, *, method: str, look: int | None, p_value: float, e_value: float = math.nan
) -> Comparison:
    """A comparison for a single look with its intervals, and its arms', widened from the normal quantile to `bound`.

    The boundary of a normal statistic is turned into that of t with the same tail probability. Arms whose interval is
    not about their value by t keep its shape. No result where the boundary is infinite: nothing can be excluded yet.
    """
    method = f"{found.method}; {method}"
    if not found.attainable or not found.standard_error > 0:
        return without_intervals(found, method, look, found.why_not or "not attainable: no standard error")
    reach = _t_bound(bound, found.df)
    half = reach * found.standard_error
    if not math.isfinite(half):
        return without_intervals(found, method, look, "not attainable: too early to exclude anything")
    wider = reach / _t_bound(float(special.ndtri(1 - found.alpha / 2)), found.df)
    return replace(
        found,
        method=method,
        baseline=_widened(found.baseline, wider),
        candidate=_widened(found.candidate, wider),
        low=found.estimate - half,
        high=found.estimate + half,
        p_value=p_value,
        e_value=e_value,
        look=look,
    )


def without_intervals(found: Comparison, method: str, look: int | None, why_not: str) -> Comparison:
    """No result; the arms keep their values, but no intervals: theirs were for a single look."""
    baseline, candidate = (replace(arm, low=math.nan, high=math.nan) for arm in (found.baseline, found.candidate))
    return Comparison(
        method=method,
        alpha=found.alpha,
        baseline=baseline,
        candidate=candidate,
        why_not=why_not,
        notes=found.notes,
        look=look,
    )


def z_statistic(found: Comparison) -> float:
    """How many standard errors from 0 the estimate is, as a normal statistic; NaN where there is no standard error."""
    statistic = found.estimate / found.standard_error if found.standard_error > 0 else math.nan
    return statistic if found.df is None else float(normal_equivalent(statistic, found.df))


def _t_bound(bound: float, df: float | None) -> float:
    return bound if df is None else -float(special.stdtrit(df, float(special.ndtr(-bound))))


def _widened(arm: ArmEstimate, factor: float) -> ArmEstimate:
    low, high = (arm.value + factor * (end - arm.value) for end in (arm.low, arm.high))
    return replace(arm, low=low, high=high)


def _spread(fraction: ArrayLike, alpha: float) -> Floats:
    """Variance of the mixture over that of the estimate."""
    given = np.asarray(fraction, dtype=np.float64)
    if not (given > 0).all():
        raise InvalidInput("fraction", fraction, "numbers above 0")
    return given / mixture_scale(alpha)
