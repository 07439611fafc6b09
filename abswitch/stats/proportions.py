"""Comparisons of rates."""

from __future__ import annotations

import math

from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.summaries import RateSummary

TWO_PROPORTION = "two-proportion z (pooled), Newcombe interval"


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
    checks.number("alpha", alpha, low=0.0, high=0.5, above=True)
    a, b = _arm(baseline, alpha), _arm(candidate, alpha)
    for name, summary in (("baseline", baseline), ("candidate", candidate)):
        if not summary.n:
            why_not = f"not attainable: the {name} has no observation"
            return Comparison(method=TWO_PROPORTION, alpha=alpha, baseline=a, candidate=b, why_not=why_not)
    estimate = b.value - a.value
    low = estimate - math.hypot(b.value - b.low, a.high - a.value)
    high = estimate + math.hypot(b.high - b.value, a.value - a.low)
    pooled = (baseline.successes + candidate.successes) / (baseline.n + candidate.n)
    pooled_error = math.sqrt(pooled * (1 - pooled) * (1 / baseline.n + 1 / candidate.n))
    return Comparison(
        method=TWO_PROPORTION,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=estimate,
        low=low,
        high=high,
        p_value=1.0 if pooled_error == 0 else float(2 * special.ndtr(-abs(estimate) / pooled_error)),
        standard_error=(high - low) / (2 * float(special.ndtri(1 - alpha / 2))),
        notes=() if pooled_error else ("all trials of both arms agree",),
    )


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
    z = float(special.ndtri(1 - alpha / 2))
    rate, z2 = successes / n, z * z
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def _arm(summary: RateSummary, alpha: float) -> ArmEstimate:
    if not isinstance(summary, RateSummary):
        raise InvalidInput("summary", summary, "a RateSummary")
    low, high = wilson_interval(summary.n, summary.successes, alpha=alpha) if summary.n else (math.nan, math.nan)
    return ArmEstimate(n=summary.n, value=summary.mean, low=low, high=high)
