"""Bayesian summaries: how likely is the candidate better, and what would it cost to be wrong?

Easy to read, and often mistaken for a stopping rule. They are not one: stopped as soon as a 95 % chance to win is seen,
two copies of one version are told apart more often than not when looked at 50 times. Decisions rest on other methods;
every result here says so (`label`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison, finite
from abswitch.stats.components import error_rate
from abswitch.stats.means import Estimate, why_no_t
from abswitch.stats.summaries import MeanSummary, RateSummary

UNCONTROLLED = "error rate not controlled under peeking"
BETA_BINOMIAL = "beta-binomial"
NORMAL = "normal"

Floats = NDArray[np.float64]
_PANELS = np.concatenate([10.0 ** np.arange(-12, -1), np.linspace(0.1, 0.9, 9), 1 - 10.0 ** np.arange(-2, -13, -1)])
"""Quantiles between which posteriors are integrated piece by piece."""
_NODES = 12
"""Gauss–Legendre points of each piece; twice as many change a chance to win by less than 1e-10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BayesianComparison:
    """What the posterior says of candidate − baseline.

    Attributes:
        estimate: posterior mean of the difference, in the metric's own unit.
        low, high: equal-tailed credible interval of probability 1 − alpha.
        chance_to_win: posterior probability that the candidate is better.
        loss_if_candidate: how much worse than the better one the candidate is, on average: expected loss of shipping.
        loss_if_baseline: the same of keeping the baseline.
        label: always `UNCONTROLLED`.
        why_not: why there is no result; None when there is one.
    """

    method: str
    alpha: float
    n_baseline: int
    n_candidate: int
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    chance_to_win: float = math.nan
    loss_if_candidate: float = math.nan
    loss_if_baseline: float = math.nan
    label: str = UNCONTROLLED
    why_not: str | None = None

    @property
    def attainable(self) -> bool:
        """Whether there is a result at all."""
        return self.why_not is None

    def in_words(self) -> str:
        """Chance to win and expected losses in one clause, with the label."""
        if not self.attainable:
            return f"{self.why_not} ({self.label})"
        return (
            f"chance to win {self.chance_to_win:.1%}, expected loss {self.loss_if_candidate:.2g} if the candidate is "
            f"shipped and {self.loss_if_baseline:.2g} if the baseline is kept ({self.method}; {self.label})"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN and infinity become None."""
        plain: dict[str, Any] = finite(asdict(self) | {"attainable": self.attainable})
        return plain


def beta_binomial(
    baseline: RateSummary,
    candidate: RateSummary,
    *,
    direction: str = "increase",
    prior_successes: float = 1.0,
    prior_failures: float = 1.0,
    alpha: float = 0.05,
    interval: bool = True,
) -> BayesianComparison:
    """Two rates with a beta prior on each: chance to win and expected loss, by quadrature, without chance.

    Args:
        direction: `increase` or `decrease`, whichever is better.
        prior_successes, prior_failures: of the beta prior, each above 0; 1 and 1, the default, are Bayes' uniform one.
        alpha: the credible interval has probability 1 − alpha; in (0, 0.5].
        interval: False leaves the interval out (NaN), which takes nine tenths of the time.

    Returns:
        A `BayesianComparison`. An arm without trials counts with its prior, as Bayes has it, unless both are empty.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        A. Gelman et al., Bayesian Data Analysis, 3rd ed. (2013), § 2.4; C. Stucchio, "Bayesian A/B Testing at VWO"
        (2015) (expected loss).

    >>> found = beta_binomial(RateSummary(100, 10), RateSummary(100, 16))
    >>> round(found.chance_to_win, 3), found.label
    (0.893, 'error rate not controlled under peeking')
    """
    error_rate(alpha)
    sign = _sign(direction)
    prior = tuple(
        checks.number(name, value, low=0.0, above=True)
        for name, value in (("prior_successes", prior_successes), ("prior_failures", prior_failures))
    )
    if not baseline.n and not candidate.n:
        return _nothing(BETA_BINOMIAL, alpha, baseline.n, candidate.n, "not attainable: neither arm has a trial")
    a, b = (_Beta(prior[0] + one.successes, prior[1] + one.n - one.successes) for one in (baseline, candidate))
    low, high = (_difference_quantile(a, b, p) if interval else math.nan for p in (alpha / 2, 1 - alpha / 2))
    above, below = _excess(b, a), _excess(a, b)  # of the candidate over the baseline, and the other way round
    wins = _chance_above(b, [a])
    return BayesianComparison(
        method=BETA_BINOMIAL,
        alpha=alpha,
        n_baseline=baseline.n,
        n_candidate=candidate.n,
        estimate=b.mean - a.mean,
        low=low,
        high=high,
        chance_to_win=wins if sign > 0 else 1 - wins,
        loss_if_candidate=below if sign > 0 else above,
        loss_if_baseline=above if sign > 0 else below,
    )


def normal_posterior(
    baseline: MeanSummary,
    candidate: MeanSummary,
    *,
    direction: str = "increase",
    prior_mean: float = 0.0,
    prior_std: float | None = None,
    alpha: float = 0.05,
) -> BayesianComparison:
    """Difference of two means with a normal prior on it; the standard error is taken as known (Welch's).

    Sound from some tens of observations an arm. With `prior_std` of the effects seen before, large differences found by
    chance shrink towards what is usual.

    Args:
        direction: `increase` or `decrease`, whichever is better.
        prior_mean, prior_std: of the difference, in the metric's own unit; None, the default, is a flat prior.
        alpha: the credible interval has probability 1 − alpha; in (0, 0.5].

    Returns:
        A `BayesianComparison`; `why_not` is set when an arm has fewer than two observations or neither arm varies.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        A. Gelman et al., Bayesian Data Analysis, 3rd ed. (2013), § 2.5.

    >>> found = normal_posterior(MeanSummary(50, 10.0, 49.0), MeanSummary(50, 10.4, 49.0))
    >>> round(found.chance_to_win, 3), round(found.loss_if_candidate, 5)
    (0.977, 0.0017)
    """
    error_rate(alpha)
    sign = _sign(direction)
    checks.number("prior_mean", prior_mean)
    if prior_std is not None:
        checks.number("prior_std", prior_std, low=0.0, above=True)
    why_not = why_no_t(*(Estimate(one.n, one.mean, one.variance) for one in (baseline, candidate)))
    if why_not is not None:
        return _nothing(NORMAL, alpha, baseline.n, candidate.n, why_not)
    variance = baseline.variance / baseline.n + candidate.variance / candidate.n
    centre, spread = _shrunk(candidate.mean - baseline.mean, variance, prior_mean, prior_std)
    half = float(special.ndtri(1 - alpha / 2)) * spread
    return BayesianComparison(
        method=NORMAL,
        alpha=alpha,
        n_baseline=baseline.n,
        n_candidate=candidate.n,
        estimate=centre,
        low=centre - half,
        high=centre + half,
        chance_to_win=float(special.ndtr(sign * centre / spread)),
        loss_if_candidate=_normal_loss(sign * centre, spread),
        loss_if_baseline=_normal_loss(-sign * centre, spread),
    )


def posterior_of(found: Comparison, *, direction: str = "increase") -> BayesianComparison:
    """What a flat prior makes of any comparison for a single look with a standard error: normal, as above.

    Args:
        direction: `increase` or `decrease`, whichever is better.
    """
    sign, spread = _sign(direction), found.standard_error
    n, m = found.baseline.n, found.candidate.n
    if not found.attainable or not 0 < spread < math.inf:
        return _nothing(NORMAL, found.alpha, n, m, found.why_not or "not attainable: no standard error")
    half = float(special.ndtri(1 - found.alpha / 2)) * spread
    return BayesianComparison(
        method=NORMAL,
        alpha=found.alpha,
        n_baseline=n,
        n_candidate=m,
        estimate=found.estimate,
        low=found.estimate - half,
        high=found.estimate + half,
        chance_to_win=float(special.ndtr(sign * found.estimate / spread)),
        loss_if_candidate=_normal_loss(sign * found.estimate, spread),
        loss_if_baseline=_normal_loss(-sign * found.estimate, spread),
    )


def _shrunk(estimate: float, variance: float, prior_mean: float, prior_std: float | None) -> tuple[float, float]:
    """Mean and standard deviation of the difference after a normal prior."""
    if prior_std is None:
        return estimate, math.sqrt(variance)
    trust = prior_std**2 / (prior_std**2 + variance)
    return prior_mean + trust * (estimate - prior_mean), math.sqrt(trust * variance)


def _normal_loss(centre: float, spread: float) -> float:
    """Mean of how far a normal value is below 0."""
    z = centre / spread
    density = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return max(0.0, spread * (density - z * float(special.ndtr(-z))))


class _Beta(NamedTuple):
    """A beta distribution."""

    successes: float
    failures: float

    @property
    def mean(self) -> float:
        return self.successes / (self.successes + self.failures)

    def below(self, x: Floats) -> Floats:
        found: Floats = special.betainc(self.successes, self.failures, np.clip(x, 0.0, 1.0))
        return found

    def above(self, x: Floats) -> Floats:
        found: Floats = special.betaincc(self.successes, self.failures, np.clip(x, 0.0, 1.0))
        return found

    def quantile(self, p: Floats) -> Floats:
        found: Floats = special.betaincinv(self.successes, self.failures, p)
        return found


def chances_best(posteriors: Sequence[tuple[float, float]]) -> Floats:
    """Probability of each of several beta posteriors to be the highest, by quadrature, without chance.

    Args:
        posteriors: (successes, failures) of each, prior included, each above 0; k of them.

    Returns:
        Shape (k,), summing to 1.

    Raises:
        InvalidInput: a parameter is not above 0, or there is no posterior.

    >>> chances_best([(1, 1), (1, 1), (1, 1), (1, 1)]).round(6).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if not posteriors:
        raise InvalidInput("posteriors", posteriors, "at least one")
    for pair in posteriors:
        for value in pair:
            checks.number("posteriors", value, low=0.0, above=True)
    betas = [_Beta(float(a), float(b)) for a, b in posteriors]
    best = np.array([_chance_above(one, [*betas[:k], *betas[k + 1 :]]) for k, one in enumerate(betas)])
    found: Floats = best / best.sum()
    return found


def _integral(of: Callable[[Floats], Floats], ends: Floats) -> float:
    """Gauss–Legendre between each two neighbouring ends."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    edges = np.unique(ends)
    half = np.diff(edges)[:, None] / 2
    return float(((of(edges[:-1, None] + half * (nodes + 1)) * half) @ weights).sum())


def _chance_above(one: _Beta, others: Sequence[_Beta], by: float = 0.0) -> float:
    """Probability that `one` is above all others by this much: over its quantiles, so that no density is needed."""

    def all_below(p: Floats) -> Floats:
        x = one.quantile(p) - by
        return np.prod([other.below(x) for other in others], axis=0) if others else np.ones_like(p)

    steps = [one.below(other.quantile(_PANELS) + by) for other in others]
    return _integral(all_below, np.concatenate([[0.0, 1.0], _PANELS, *steps]))


def _excess(one: _Beta, other: _Beta) -> float:
    """Mean of how far `one` is above `other`, and 0 where it is not."""
    ends = np.concatenate([one.quantile(_PANELS), other.quantile(_PANELS)])
    return _integral(lambda x: other.below(x) * one.above(x), ends)


def _difference_quantile(baseline: _Beta, candidate: _Beta, p: float) -> float:
    """The difference candidate − baseline that is not exceeded with probability p."""
    return float(optimize.brentq(lambda d: _chance_above(candidate, [baseline], by=d) - (1 - p), -1.0, 1.0, xtol=1e-12))


def _sign(direction: str) -> int:
    return 1 if checks.one_of("direction", direction, ("increase", "decrease")) == "increase" else -1


def _nothing(method: str, alpha: float, n: int, m: int, why_not: str) -> BayesianComparison:
    return BayesianComparison(method=method, alpha=alpha, n_baseline=n, n_candidate=m, why_not=why_not)
