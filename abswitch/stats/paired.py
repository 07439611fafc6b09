"""Comparisons of pairs: the same prompts answered by both versions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.means import t_quantile, two_sided_p
from abswitch.stats.mover import implied_error
from abswitch.stats.proportions import APART, check_hypothesis, hypothesis_note, score_end, tail_p, wilson_interval
from abswitch.stats.summaries import MeanSummary, RateSummary, numbers

PAIRED_T = "paired t"
MCNEMAR = "McNemar ({}), Tango interval"
TANGO = "Tango score"

_ROUNDING = 1e-6
"""How far, against its own size, a mean of differences may be from the difference of the means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSummary:
    """Moments of n pairs: of both sides, and of candidate − baseline within pairs, which is what is tested.

    Mergeable with `+`; from SQL as three times `count`, `avg` and `var_samp` over one row per pair.

    Args:
        distance: sum of the differences without their signs; None where it is not known. For rates: of few pairs that
            differ, moments say too little.

    Raises:
        InvalidInput: the three do not belong to the same pairs.
    """

    baseline: MeanSummary
    candidate: MeanSummary
    difference: MeanSummary
    distance: float | None = None

    def __post_init__(self) -> None:
        a, b, d = self.baseline, self.candidate, self.difference
        for name, one in (("candidate.n", b.n), ("difference.n", d.n)):
            if one != a.n:
                raise InvalidInput(name, one, f"as many as the baseline has ({a.n})")
        if a.n and abs(d.mean - (b.mean - a.mean)) > _ROUNDING * (abs(a.mean) + abs(b.mean) + abs(d.mean)):
            raise InvalidInput("difference.mean", d.mean, f"candidate − baseline, that is {b.mean - a.mean:g}")

    @classmethod
    def of(cls, baseline: ArrayLike, candidate: ArrayLike) -> Self:
        """From two arrays of shape (n,), in the order of the pairs.

        Raises:
            InvalidInput: not finite numbers, or of different lengths.
        """
        a, b = pairs_of(baseline, candidate)
        return cls(
            baseline=MeanSummary.of(a),
            candidate=MeanSummary.of(b),
            difference=MeanSummary.of(b - a),
            distance=float(np.abs(b - a).sum()),
        )

    @property
    def n(self) -> int:
        """How many pairs."""
        return self.difference.n

    def __add__(self, other: PairedSummary) -> PairedSummary:
        return PairedSummary(
            baseline=self.baseline + other.baseline,
            candidate=self.candidate + other.candidate,
            difference=self.difference + other.difference,
            distance=None if self.distance is None or other.distance is None else self.distance + other.distance,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRateSummary:
    """Counts of pairs of yes-or-no answers, by who succeeded. Mergeable with `+`."""

    both: int
    candidate_only: int
    baseline_only: int
    neither: int

    def __post_init__(self) -> None:
        for name in ("both", "candidate_only", "baseline_only", "neither"):
            checks.integer(name, getattr(self, name), low=0)

    @classmethod
    def of(cls, baseline: ArrayLike, candidate: ArrayLike) -> Self:
        """From two arrays of zeros and ones, shape (n,), in the order of the pairs.

        Raises:
            InvalidInput: any other value, or different lengths.
        """
        a, b = pairs_of(baseline, candidate)
        successes, total = RateSummary.of(a).successes, RateSummary.of(b).successes
        both = int((a * b).sum())
        neither = a.size - successes - total + both
        return cls(both=both, candidate_only=total - both, baseline_only=successes - both, neither=neither)

    @property
    def n(self) -> int:
        """How many pairs."""
        return self.both + self.candidate_only + self.baseline_only + self.neither

    @property
    def discordant(self) -> int:
        """Pairs in which only one side succeeded."""
        return self.candidate_only + self.baseline_only

    @property
    def baseline(self) -> RateSummary:
        """The baseline's own rate."""
        return RateSummary(self.n, self.both + self.baseline_only)

    @property
    def candidate(self) -> RateSummary:
        """The candidate's own rate."""
        return RateSummary(self.n, self.both + self.candidate_only)

    def __add__(self, other: PairedRateSummary) -> PairedRateSummary:
        return PairedRateSummary(
            both=self.both + other.both,
            candidate_only=self.candidate_only + other.candidate_only,
            baseline_only=self.baseline_only + other.baseline_only,
            neither=self.neither + other.neither,
        )


def paired_t_test(pairs: PairedSummary, *, alpha: float = 0.05) -> Comparison:
    """Student's t-test of the mean difference within pairs.

    The unit is one pair: where a prompt was answered several times, average its answers on each side first.

    Args:
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison` with n − 1 degrees of freedom; each arm has its own t interval. `why_not` is set below two pairs
        and where the differences do not vary.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        "Student", Biometrika 6 (1908) 1–25.

    >>> first_h = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    >>> second_h = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    >>> c = paired_t_test(PairedSummary.of(first_h, second_h))
    >>> round(c.estimate, 2), round(c.p_value, 5)
    (1.58, 0.00283)
    """
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    a, b, d = (_by_t(one, alpha) for one in (pairs.baseline, pairs.candidate, pairs.difference))
    why_not = _why_no_t(pairs.difference)
    if why_not is not None:
        return Comparison(method=PAIRED_T, alpha=alpha, baseline=a, candidate=b, why_not=why_not)
    error = math.sqrt(pairs.difference.variance / pairs.n)
    return Comparison(
        method=PAIRED_T,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=d.value,
        low=d.low,
        high=d.high,
        p_value=two_sided_p(d.value / error, pairs.n - 1),
        df=pairs.n - 1,
        standard_error=error,
    )


def mcnemar_test(pairs: PairedRateSummary, *, kind: str = "asymptotic", alpha: float = 0.05) -> Comparison:
    """McNemar's test of two paired rates, with Tango's score interval for their difference.

    The interval is the one of the asymptotic test: it excludes 0 exactly where that has p < alpha; the other kinds may
    disagree with it near alpha. Where no pair differs p is 1, and the interval still tells what can be excluded.

    Args:
        kind: of the p-value: `asymptotic` (chi-square without continuity correction), `mid-p`, or `exact` (the
            conditional binomial test, which is the most cautious). The first two are what Fagerland et al. recommend.
        alpha: two-sided error rate of the interval, in (0, 0.5]; 0.05 by convention.

    Returns:
        A `Comparison`; each arm has its Wilson interval; `why_not` is set without pairs.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        Q. McNemar, Psychometrika 12 (1947) 153–157; T. Tango, Statistics in Medicine 17 (1998) 891–908;
        M. W. Fagerland, S. Lydersen, P. Laake, BMC Medical Research Methodology 13 (2013) 91.

    >>> airways = PairedRateSummary(both=1, candidate_only=7, baseline_only=1, neither=12)
    >>> [round(mcnemar_test(airways, kind=kind).p_value, 4) for kind in ("asymptotic", "mid-p", "exact")]
    [0.0339, 0.0391, 0.0703]
    """
    checks.one_of("kind", kind, ("asymptotic", "mid-p", "exact"))
    p_value = _asymptotic_p(pairs) if kind == "asymptotic" else _conditional_p(pairs, exact=kind == "exact")
    return _compare_rates(MCNEMAR.format(kind), pairs, alpha, p_value)


def tango_score_test(
    pairs: PairedRateSummary, *, difference: float = 0.0, alternative: str = "two-sided", alpha: float = 0.05
) -> Comparison:
    """Score test of a difference of two paired rates, any difference: McNemar's with a margin.

    Args:
        difference: candidate − baseline under the null hypothesis, in [−1, 1]; 0 is McNemar's asymptotic test.
        alternative: `two-sided`, `greater` or `less` than `difference`; of the p-value alone.
        alpha: two-sided error rate of the interval, in (0, 0.5]; 0.05 by convention.

    Returns:
        As `mcnemar_test`; a note tells what the p-value is of, unless it is two-sided and of no difference.

    References:
        T. Tango, Statistics in Medicine 17 (1998) 891–908.

    >>> c = tango_score_test(PairedRateSummary(both=4, candidate_only=9, baseline_only=3, neither=16))
    >>> round(c.low, 3), round(c.high, 3)
    (-0.027, 0.39)
    """
    check_hypothesis(difference, alternative)
    p_value = tail_p(_tango_z(pairs, difference), alternative) if pairs.n else math.nan
    return _compare_rates(TANGO, pairs, alpha, p_value, hypothesis_note(difference, alternative))


def pairs_of(baseline: ArrayLike, candidate: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sides as numbers; of one length."""
    a, b = numbers("baseline", baseline), numbers("candidate", candidate)
    if a.size != b.size:
        raise InvalidInput("candidate", b.size, f"as many values as the baseline ({a.size})")
    with np.errstate(over="ignore"):
        too_far = ~np.isfinite(b - a)
    if too_far.any():
        raise InvalidInput("candidate", float(b[too_far][0]), "values whose difference from the baseline is finite")
    return a, b


def _by_t(summary: MeanSummary, alpha: float) -> ArmEstimate:
    if summary.n < 2 or not 0 < summary.variance < math.inf:
        return ArmEstimate(n=summary.n, value=summary.mean, low=math.nan, high=math.nan)
    half = t_quantile(1 - alpha / 2, summary.n - 1) * math.sqrt(summary.variance / summary.n)
    return ArmEstimate(n=summary.n, value=summary.mean, low=summary.mean - half, high=summary.mean + half)


def _why_no_t(differences: MeanSummary) -> str | None:
    if differences.n < 2:
        return f"not attainable: there are {differences.n} pair(s), and 2 are the least"
    if not differences.variance:
        return "not attainable: the pairs differ by one and the same amount, so nothing can be said about chance"
    return None


def _compare_rates(
    method: str, pairs: PairedRateSummary, alpha: float, p_value: float, notes: tuple[str, ...] = ()
) -> Comparison:
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    a, b = _by_wilson(pairs.baseline, alpha), _by_wilson(pairs.candidate, alpha)
    if not pairs.n:
        return Comparison(
            method=method, alpha=alpha, baseline=a, candidate=b, why_not="not attainable: there are no pairs"
        )
    low, high = tango_interval(pairs, alpha=alpha)
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=(pairs.candidate_only - pairs.baseline_only) / pairs.n,
        low=low,
        high=high,
        p_value=p_value,
        standard_error=implied_error(low, high, alpha),
        notes=(*(() if pairs.discordant else ("no pair differs",)), *notes),
    )


def tango_interval(pairs: PairedRateSummary, *, alpha: float = 0.05) -> tuple[float, float]:
    """Tango's score interval of the difference of two paired rates; there are pairs."""
    quantile = float(special.ndtri(1 - alpha / 2))
    estimate = (pairs.candidate_only - pairs.baseline_only) / pairs.n

    def unrejected(difference: float) -> float:
        return quantile * _tango_error(pairs, difference) - abs(estimate - difference)

    return score_end(unrejected, estimate, -1.0), score_end(unrejected, estimate, 1.0)


def _tango_error(pairs: PairedRateSummary, difference: float) -> float:
    """Standard error of the difference of the rates if `difference` were the true one."""
    n, b, c = pairs.n, pairs.candidate_only, pairs.baseline_only
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    root = math.sqrt(max(linear * linear - 8 * n * constant, 0.0))
    # Both forms of the larger root of 2n·q² + linear·q + constant; this choice loses no digits.
    rate = -2 * constant / (linear + root) if linear > 0 else (root - linear) / (4 * n)
    return math.sqrt(max(2 * rate + difference * (1 - difference), 0.0) / n)


def _tango_z(pairs: PairedRateSummary, difference: float) -> float:
    distance = (pairs.candidate_only - pairs.baseline_only) / pairs.n - difference
    error = _tango_error(pairs, difference)
    if error == 0:
        return math.copysign(math.inf, distance) if abs(distance) > APART else 0.0
    return distance / error


def _asymptotic_p(pairs: PairedRateSummary) -> float:
    if not pairs.discordant:
        return 1.0
    return tail_p((pairs.candidate_only - pairs.baseline_only) / math.sqrt(pairs.discordant), "two-sided")


def _conditional_p(pairs: PairedRateSummary, *, exact: bool) -> float:
    fewer, n = min(pairs.candidate_only, pairs.baseline_only), pairs.discordant
    up_to = float(special.bdtr(fewer, n, 0.5))
    if exact:
        return min(1.0, 2 * up_to)
    before = float(special.bdtr(fewer - 1, n, 0.5)) if fewer else 0.0
    return min(1.0, up_to + before)


def _by_wilson(summary: RateSummary, alpha: float) -> ArmEstimate:
    low, high = wilson_interval(summary.n, summary.successes, alpha=alpha) if summary.n else (math.nan, math.nan)
    return ArmEstimate(n=summary.n, value=summary.mean, low=low, high=high)
