"""Comparisons of rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.mover import implied_error, recovered_interval
from abswitch.stats.summaries import RateSummary

TWO_PROPORTION = "two-proportion z (pooled), Newcombe interval"
MIETTINEN_NURMINEN = "Miettinen–Nurminen score"
FARRINGTON_MANNING = "Farrington–Manning score"
FISHER = "Fisher exact, Newcombe interval"
BOSCHLOO = "Boschloo exact, Newcombe interval"

BOSCHLOO_TABLES = 100_000
"""Boschloo's test weighs every table with these arms; (n + 1)(m + 1) of them beyond this take seconds."""

APART = 1e-12
"""Differences this far apart are told apart. The search for an interval's end begins so far from the estimate, which
where all trials agree solves the equation too."""


def two_proportion_z_test(baseline: RateSummary, candidate: RateSummary, *, alpha: float = 0.05) -> Comparison:
    """Pooled z-test of two rates, with Newcombe's hybrid score interval for the difference.

    The two may disagree near alpha; decisions here read the interval. When all trials of both arms agree (no success,
    or no failure) the p-value is 1 and the interval still tells what can be excluded. The standard error is half the
    interval's width over its quantile, which unlike the pooled one is never 0.

    Args:
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison`; each arm has its Wilson interval; `why_not` is set when an arm is empty.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        R. G. Newcombe, Statistics in Medicine 17 (1998) 873–890, method 10.

    >>> c = two_proportion_z_test(RateSummary(80, 48), RateSummary(70, 56))
    >>> [round(x, 4) for x in (c.estimate, c.low, c.high)]
    [0.2, 0.0524, 0.3339]
    """
    return _compare(TWO_PROPORTION, baseline, candidate, alpha, _pooled_p)


def miettinen_nurminen_test(
    baseline: RateSummary,
    candidate: RateSummary,
    *,
    difference: float = 0.0,
    alternative: str = "two-sided",
    alpha: float = 0.05,
) -> Comparison:
    """Score test of a difference of two rates, any difference, and the interval of all that it does not reject.

    Test and interval are one: the interval excludes a difference exactly where the two-sided test of that difference
    has p < alpha. So `non_inferiority(found, margin=…)` is this test at the margin, one-sided with alpha / 2. The
    variance is that of the rates most likely under the tested difference, times N / (N − 1).

    Args:
        difference: candidate − baseline under the null hypothesis, a fraction in [−1, 1]; −0.05 for non-inferiority
            by a margin of 5 points where more is better. 0 by default: no difference.
        alternative: `two-sided`, `greater` or `less` than `difference`; of the p-value alone.
        alpha: two-sided error rate of the interval, in (0, 0.5]; 0.05 by convention.

    Returns:
        A `Comparison`; each arm has its Wilson interval; a note tells what the p-value is of, unless it is two-sided
        and of no difference. `why_not` is set when an arm is empty.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        O. Miettinen, M. Nurminen, Statistics in Medicine 4 (1985) 213–226.

    >>> c = miettinen_nurminen_test(RateSummary(80, 48), RateSummary(70, 56))
    >>> [round(x, 4) for x in (c.low, c.high)]
    [0.0528, 0.3382]
    """
    return _score_test(MIETTINEN_NURMINEN, _Score(baseline, candidate, corrected=True), difference, alternative, alpha)


def farrington_manning_test(
    baseline: RateSummary,
    candidate: RateSummary,
    *,
    difference: float = 0.0,
    alternative: str = "two-sided",
    alpha: float = 0.05,
) -> Comparison:
    """As `miettinen_nurminen_test`, without the factor N / (N − 1) of the variance: the customary non-inferiority test.

    With `difference` 0 its p-value is that of the pooled z-test. Its interval is Mee's.

    References:
        C. P. Farrington, G. Manning, Statistics in Medicine 9 (1990) 1447–1454; R. W. Mee, Biometrics 40 (1984)
        1175–1176.

    >>> rates = RateSummary(100, 90), RateSummary(100, 88)
    >>> round(farrington_manning_test(*rates, difference=-0.1, alternative="greater").p_value, 4)
    0.0413
    """
    return _score_test(FARRINGTON_MANNING, _Score(baseline, candidate, corrected=False), difference, alternative, alpha)


def fisher_exact_test(baseline: RateSummary, candidate: RateSummary, *, alpha: float = 0.05) -> Comparison:
    """Fisher's exact test of two rates (SciPy's): never errs more than alpha, at a price in power.

    For few events. The interval is Newcombe's, which is not exact; the two may disagree near alpha.

    Returns:
        A `Comparison`; `why_not` is set when an arm is empty.

    References:
        R. A. Fisher, Statistical Methods for Research Workers (1934), §21.02.

    >>> round(fisher_exact_test(RateSummary(15, 12), RateSummary(15, 5)).p_value, 4)
    0.0253
    """
    return _compare(FISHER, baseline, candidate, alpha, _fisher_p)


def boschloo_exact_test(baseline: RateSummary, candidate: RateSummary, *, alpha: float = 0.05) -> Comparison:
    """Boschloo's exact test of two rates (SciPy's): as safe as Fisher's, and at least as powerful.

    The two-sided p-value is twice the smaller one-sided one. The interval is Newcombe's, which is not exact.

    Returns:
        A `Comparison`; `why_not` is set when an arm is empty, or both are too large for it (`BOSCHLOO_TABLES`).

    References:
        R. D. Boschloo, Statistica Neerlandica 24 (1970) 1–9.

    >>> round(boschloo_exact_test(RateSummary(15, 12), RateSummary(15, 5)).p_value, 4)
    0.0127
    """
    too_large = (baseline.n + 1) * (candidate.n + 1) > BOSCHLOO_TABLES
    why_not = "not attainable: too many trials for Boschloo's test; a score test serves here" if too_large else None
    return _compare(BOSCHLOO, baseline, candidate, alpha, _boschloo_p, why_not=why_not)


def newcombe_interval(baseline: RateSummary, candidate: RateSummary, *, alpha: float = 0.05) -> tuple[float, float]:
    """Newcombe's hybrid score interval of candidate − baseline, confidence 1 − alpha; both arms have trials.

    Raises:
        InvalidInput: an arm is empty, or alpha outside (0, 0.5].

    References:
        R. G. Newcombe, Statistics in Medicine 17 (1998) 873–890, method 10.

    >>> [round(x, 4) for x in newcombe_interval(RateSummary(29, 0), RateSummary(56, 5))]
    [-0.0381, 0.1926]
    """
    for name, arm in (("baseline", baseline), ("candidate", candidate)):
        checks.integer(f"{name}.n", arm.n, low=1)
    return recovered_interval(_arm(baseline, alpha), _arm(candidate, alpha))


def wilson_interval(n: int, successes: int, *, alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's score interval of a rate, confidence 1 − alpha.

    References:
        E. B. Wilson, Journal of the American Statistical Association 22 (1927) 209–212.

    >>> [round(x, 4) for x in wilson_interval(263, 81)]
    [0.2553, 0.3662]
    """
    checks.integer("n", n, low=1)
    checks.integer("successes", successes, low=0, high=n)
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    return wilson_ends(successes / n, n, float(special.ndtri(1 - alpha / 2)))


def wilson_ends(rate: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a rate from `n` trials, which may be an effective number, at a normal or t quantile."""
    z2 = quantile * quantile
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = quantile * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (0.0 if rate == 0 else centre - half, 1.0 if rate == 1 else centre + half)


class _Score(NamedTuple):
    """The score statistic of two rates."""

    baseline: RateSummary
    candidate: RateSummary
    corrected: bool

    @property
    def estimate(self) -> float:
        return self.candidate.mean - self.baseline.mean

    def error(self, difference: float) -> float:
        """Standard error of the estimate if `difference` were the true one."""
        n, m = self.baseline.n, self.candidate.n
        rate = rate_under(self.baseline, self.candidate, difference)
        other = min(max(rate + difference, 0.0), 1.0)
        factor = (n + m) / (n + m - 1) if self.corrected else 1.0
        return math.sqrt((rate * (1 - rate) / n + other * (1 - other) / m) * factor)

    def z(self, difference: float) -> float:
        distance, error = self.estimate - difference, self.error(difference)
        if error == 0:
            return math.copysign(math.inf, distance) if abs(distance) > APART else 0.0
        return distance / error

    def interval(self, alpha: float) -> tuple[float, float]:
        """All differences that the two-sided test does not reject."""
        quantile = float(special.ndtri(1 - alpha / 2))

        def unrejected(difference: float) -> float:
            return quantile * self.error(difference) - abs(self.estimate - difference)

        return score_end(unrejected, self.estimate, -1.0), score_end(unrejected, self.estimate, 1.0)


def rate_under(baseline: RateSummary, candidate: RateSummary, difference: float) -> float:
    """The baseline's rate that is most likely if the candidate's is `difference` above it.

    Solves the score equation as it stands: the closed form of its cubic loses half of the digits where an arm has no
    events, and with them the variance.
    """
    x, n, y, m = baseline.successes, baseline.n, candidate.successes, candidate.n

    def slope(rate: float) -> float:  # of the likelihood, times all four rates, so that it is finite at both ends
        other = rate + difference
        p, q, r, s = rate, 1.0 - rate, other, 1.0 - other
        return (x * q - (n - x) * p) * r * s + (y * s - (m - y) * r) * p * q

    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    step = (high - low) * APART
    if slope(low + step) <= 0:
        return low
    if slope(high - step) >= 0:
        return high
    return float(optimize.brentq(slope, low + step, high - step, xtol=1e-16))


def score_end(unrejected: Callable[[float], float], estimate: float, bound: float) -> float:
    """Where, from the estimate towards a bound, a score test begins to reject; `unrejected` is positive until there."""
    start = estimate + (bound - estimate) * APART
    if abs(estimate - bound) <= APART or unrejected(bound) > 0:
        return bound
    return float(optimize.brentq(unrejected, start, bound, xtol=1e-15))


def check_hypothesis(difference: float, alternative: str) -> None:
    """A tested difference of two rates, and the side of it that the p-value looks at."""
    checks.number("difference", difference, low=-1.0, high=1.0)
    checks.one_of("alternative", alternative, ("two-sided", "greater", "less"))


def tail_p(z: float, alternative: str) -> float:
    """Normal p-value of a score, for an alternative."""
    if alternative == "two-sided":
        return min(1.0, float(2 * special.ndtr(-abs(z))))
    return float(special.ndtr(-z if alternative == "greater" else z))


def hypothesis_note(difference: float, alternative: str) -> tuple[str, ...]:
    """What the p-value is of, where a reader would not guess it."""
    if difference == 0 and alternative == "two-sided":
        return ()
    kind = {"two-sided": "other than", "greater": "above", "less": "below"}[alternative]
    return (f"the p-value is for a difference {kind} {difference:g}",)


def _score_test(method: str, score: _Score, difference: float, alternative: str, alpha: float) -> Comparison:
    check_hypothesis(difference, alternative)
    found = _compare(
        method,
        score.baseline,
        score.candidate,
        alpha,
        lambda *_: tail_p(score.z(difference), alternative),
        interval=lambda *_, alpha: score.interval(alpha),
    )
    return replace(found, notes=(*found.notes, *hypothesis_note(difference, alternative)))


def _compare(
    method: str,
    baseline: RateSummary,
    candidate: RateSummary,
    alpha: float,
    p_value: Callable[[RateSummary, RateSummary], float],
    *,
    interval: Callable[..., tuple[float, float]] = newcombe_interval,
    why_not: str | None = None,
) -> Comparison:
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    a, b = _arm(baseline, alpha), _arm(candidate, alpha)
    for name, summary in (("baseline", baseline), ("candidate", candidate)):
        if not summary.n:
            why_not = f"not attainable: the {name} has no observation"
    if why_not is not None:
        return Comparison(method=method, alpha=alpha, baseline=a, candidate=b, why_not=why_not)
    low, high = interval(baseline, candidate, alpha=alpha)
    return Comparison(
        method=method,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=candidate.mean - baseline.mean,
        low=low,
        high=high,
        p_value=p_value(baseline, candidate),
        standard_error=implied_error(low, high, alpha),
        notes=("all trials of both arms agree",) if _agree(baseline, candidate) else (),
    )


def _agree(baseline: RateSummary, candidate: RateSummary) -> bool:
    return baseline.successes + candidate.successes in (0, baseline.n + candidate.n)


def _pooled_p(baseline: RateSummary, candidate: RateSummary) -> float:
    if _agree(baseline, candidate):
        return 1.0
    pooled = (baseline.successes + candidate.successes) / (baseline.n + candidate.n)
    error = math.sqrt(pooled * (1 - pooled) * (1 / baseline.n + 1 / candidate.n))
    return float(2 * special.ndtr(-abs(candidate.mean - baseline.mean) / error))


def _fisher_p(baseline: RateSummary, candidate: RateSummary) -> float:
    return 1.0 if _agree(baseline, candidate) else float(stats.fisher_exact(_table(baseline, candidate)).pvalue)


def _boschloo_p(baseline: RateSummary, candidate: RateSummary) -> float:
    return 1.0 if _agree(baseline, candidate) else float(stats.boschloo_exact(_table(baseline, candidate)).pvalue)


def _table(baseline: RateSummary, candidate: RateSummary) -> NDArray[np.int64]:
    """Arms as columns, as SciPy reads binomial samples."""
    arms = (candidate, baseline)
    return np.array([[arm.successes for arm in arms], [arm.n - arm.successes for arm in arms]], dtype=np.int64)


def _arm(summary: RateSummary, alpha: float) -> ArmEstimate:
    if not isinstance(summary, RateSummary):
        raise InvalidInput("summary", summary, "a RateSummary")
    low, high = wilson_interval(summary.n, summary.successes, alpha=alpha) if summary.n else (math.nan, math.nan)
    return ArmEstimate(n=summary.n, value=summary.mean, low=low, high=high)
