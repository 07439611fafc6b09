"""Bandits: send more traffic to what does better while it is being found out, and still know what was found.

Thompson sampling with logged propensities: each arm's share of traffic is its chance to be the best, never below a
floor. Because shares follow the outcomes, an arm's plain mean is biased and its t-test wrong; AW-AIPW reweighs each
observation by the share its arm had at that moment, and is sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.bayes import chances_best
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.components import NEITHER_VARIES, TOO_LARGE, bare_arm, error_rate, unattainable
from abswitch.stats.summaries import RateSummary, numbers

AW_AIPW = "AW-AIPW (adaptively weighted, constant allocation)"
FLOOR = 0.05
"""An arm's least share. Inference needs every arm to be tried on and on; a twentieth also shows a change of fortune."""

Floats = NDArray[np.float64]
_SUMS_TO_ONE = 1e-6


@dataclass(frozen=True, slots=True)
class ThompsonSampling:
    """Shares of traffic for rewards of 0 and 1: the chance of each arm to be the best, mixed with a floor.

    The chances are computed, not drawn: the share that is logged is the share that was used.

    Args:
        floor: least share of an arm, a fraction in (0, 1/k] for k arms. 0.05 by default.
        direction: `increase` or `decrease`, whichever is better.
        prior_successes, prior_failures: of each arm's beta prior, above 0; uniform by default.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        W. R. Thompson, Biometrika 25 (1933) 285–294; D. Russo et al., Foundations and Trends in Machine Learning 11
        (2018) 1–96.

    >>> shares = ThompsonSampling(floor=0.1).shares({"v1": RateSummary(50, 20), "v2": RateSummary(50, 40)})
    >>> [round(share, 3) for share in shares.values()]
    [0.1, 0.9]
    """

    floor: float = FLOOR
    direction: str = "increase"
    prior_successes: float = 1.0
    prior_failures: float = 1.0

    def __post_init__(self) -> None:
        checks.number("floor", self.floor, low=0.0, high=0.5, above=True)
        checks.one_of("direction", self.direction, ("increase", "decrease"))
        for name in ("prior_successes", "prior_failures"):
            checks.number(name, getattr(self, name), low=0.0, above=True)

    def shares(self, arms: Mapping[str, RateSummary]) -> Mapping[str, float]:
        """The share of traffic of each arm, given what was seen of them; they sum to 1.

        Raises:
            InvalidInput: fewer than two arms, or so many that the floors do not fit.
        """
        if len(arms) < 2 or len(arms) * self.floor > 1:
            raise InvalidInput(
                "arms", len(arms), f"at least 2, and at most {int(1 / self.floor)} with floor {self.floor:g}"
            )
        best = chances_best([self._posterior(one) for one in arms.values()])
        spare = 1 - len(arms) * self.floor
        return MappingProxyType({name: self.floor + spare * float(p) for name, p in zip(arms, best, strict=True)})

    def _posterior(self, arm: RateSummary) -> tuple[float, float]:
        successes, failures = arm.successes, arm.n - arm.successes
        if self.direction == "decrease":
            return self.prior_failures + failures, self.prior_successes + successes
        return self.prior_successes + successes, self.prior_failures + failures


def generator_at(seed: int, counter: int) -> np.random.Generator:
    """A generator for one decision: the same seed and counter give the same draws, whatever was drawn before.

    Args:
        seed, counter: whole numbers from 0, below 2^64.
    """
    checks.integer("seed", seed, low=0, high=2**64 - 1)
    checks.integer("counter", counter, low=0, high=2**64 - 1)
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, counter]))


def draw_arm(shares: Mapping[str, float], generator: np.random.Generator) -> str:
    """One arm by chance, with these shares (which must be logged with it).

    Raises:
        InvalidInput: shares that are not fractions summing to 1.

    >>> [draw_arm({"v1": 0.5, "v2": 0.5}, generator_at(1, counter)) for counter in range(4)]
    ['v1', 'v1', 'v2', 'v1']
    """
    weights = np.array([checks.share(f"shares.{name}", share) for name, share in shares.items()])
    if not shares or abs(weights.sum() - 1) > _SUMS_TO_ONE:
        raise InvalidInput("shares", dict(shares), "fractions that sum to 1")
    reached = np.cumsum(weights / weights.sum())
    return list(shares)[min(int(np.searchsorted(reached, generator.random(), side="right")), len(shares) - 1)]


@dataclass(frozen=True, slots=True, eq=False)
class BanditLog:
    """What was decided and what came of it, in the order of decisions.

    Attributes:
        arms: names, k of them.
        chosen: number of the arm of each decision, shape (t,), whole numbers below k.
        rewards: shape (t,), any finite numbers.
        propensities: chance that each arm had at each decision, shape (t, k); rows sum to 1, the chosen one is above 0.
            They may depend on everything before the decision, and on nothing after.

    Raises:
        InvalidInput: any of this does not hold.
    """

    arms: tuple[str, ...]
    chosen: NDArray[np.int64]
    rewards: Floats
    propensities: Floats

    def __post_init__(self) -> None:
        arms = tuple(self.arms)
        if len(arms) < 2 or len(set(arms)) < len(arms):
            raise InvalidInput("arms", arms, "at least two different names")
        rewards, chosen = numbers("rewards", self.rewards), numbers("chosen", self.chosen)
        if chosen.size != rewards.size or not np.isin(chosen, np.arange(len(arms))).all():
            raise InvalidInput("chosen", self.chosen, f"an arm's number, 0 to {len(arms) - 1}, for each reward")
        chances = _propensities(self.propensities, (rewards.size, len(arms)))
        picked = chosen.astype(np.int64)
        if rewards.size and chances[np.arange(rewards.size), picked].min() <= 0:
            raise InvalidInput("propensities", 0.0, "above 0 for every arm that was chosen")
        for name, value in (("arms", arms), ("chosen", picked), ("rewards", rewards), ("propensities", chances)):
            object.__setattr__(self, name, value)

    def __add__(self, later: BanditLog) -> BanditLog:
        """This log and what was decided afterwards."""
        if later.arms != self.arms:
            raise InvalidInput("arms", later.arms, f"the same arms ({', '.join(self.arms)})")
        pairs = ((getattr(self, name), getattr(later, name)) for name in ("chosen", "rewards", "propensities"))
        return BanditLog(self.arms, *(np.concatenate(pair) for pair in pairs))


def aw_aipw_value(log: BanditLog, arm: str, *, alpha: float = 0.05) -> ArmEstimate:
    """An arm's mean reward had it had all traffic, from traffic that shifted with the outcomes.

    Args:
        arm: its name.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        An `ArmEstimate`; n counts how often the arm was chosen. Without an interval where it was not chosen twice or
        its rewards do not vary; NaN where it was never chosen.

    Raises:
        InvalidInput: an unknown arm, one that at some decision had no chance, or alpha outside its range.

    References:
        V. Hadad, D. A. Hirshberg, R. Zhan, S. Wager, S. Athey, PNAS 118 (2021) e2014602118.
    """
    error_rate(alpha)
    k = _number(log, arm)
    n, varies = _count_and_variation(log, k)
    if not n:
        return bare_arm(0)
    value, errors = _weighted(log, k)
    if not varies:
        return bare_arm(n, value)
    half = float(special.ndtri(1 - alpha / 2)) * float(np.linalg.norm(errors))
    return ArmEstimate(n=n, value=value, low=value - half, high=value + half)


def aw_aipw_test(log: BanditLog, baseline: str, candidate: str, *, alpha: float = 0.05) -> Comparison:
    """Difference of two arms' mean rewards, from traffic that shifted with the outcomes: AW-AIPW.

    Each decision gives an unbiased score for every arm: what was expected of it before, plus, where it was chosen, the
    surprise divided by its chance. Scores are averaged with the weight √chance, which steadies the variance, so that
    the estimate is about normal although the shares moved; half of the plain means' bias is left. For one look at the
    end. An arm needs some tens of successes and failures: at a rate of 5 % tried 50 times, intervals cover 90 %.
    Rewards must not drift.

    Args:
        baseline, candidate: names of two arms.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison` by the normal distribution; `why_not` is set when an arm was chosen less than twice or neither
        arm's rewards vary.

    Raises:
        InvalidInput: an unknown arm, one that at some decision had no chance, or alpha outside its range.

    References:
        V. Hadad, D. A. Hirshberg, R. Zhan, S. Wager, S. Athey, PNAS 118 (2021) e2014602118.
    """
    error_rate(alpha)
    a, b = (aw_aipw_value(log, name, alpha=alpha) for name in (baseline, candidate))
    why_not = _why_not(log, baseline, candidate)
    if why_not is not None:
        return unattainable(AW_AIPW, alpha, a, b, why_not)
    (_, errors_a), (_, errors_b) = (_weighted(log, _number(log, name)) for name in (baseline, candidate))
    estimate, error = b.value - a.value, float(np.linalg.norm(errors_b - errors_a))
    if not 0 < error < math.inf or not math.isfinite(estimate):
        return unattainable(AW_AIPW, alpha, a, b, NEITHER_VARIES if error == 0 else TOO_LARGE)
    half = float(special.ndtri(1 - alpha / 2)) * error
    return Comparison(
        method=AW_AIPW,
        alpha=alpha,
        baseline=a,
        candidate=b,
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        p_value=float(2 * special.ndtr(-abs(estimate) / error)),
        standard_error=error,
    )


def _weighted(log: BanditLog, k: int) -> tuple[float, Floats]:
    """An arm's estimate, and each decision's part in its error."""
    chance = log.propensities[:, k]
    expected = _expected(log, k)
    scores = expected + np.where(log.chosen == k, (log.rewards - expected) / chance, 0.0)
    weights = np.sqrt(chance)
    value = float(np.average(scores, weights=weights))
    return value, weights * (scores - value) / weights.sum()


def _expected(log: BanditLog, k: int) -> Floats:
    """The arm's mean reward before each decision; that of all arms until it was chosen, and 0 before the first."""
    own, everyone = (_running_mean(log.rewards, used) for used in (log.chosen == k, np.ones_like(log.chosen, bool)))
    return np.where(np.isnan(own), np.nan_to_num(everyone), own)


def _running_mean(values: Floats, used: NDArray[np.bool_]) -> Floats:
    """Mean of the used values before each position; NaN before the first."""
    counts = np.concatenate([[0], np.cumsum(used)[:-1]])
    sums = np.concatenate([[0.0], np.cumsum(np.where(used, values, 0.0))[:-1]])
    means: Floats = np.divide(sums, counts, out=np.full(values.size, math.nan), where=counts > 0)
    return means


def _why_not(log: BanditLog, baseline: str, candidate: str) -> str | None:
    found = [_count_and_variation(log, _number(log, name)) for name in (baseline, candidate)]
    for name, (n, _) in zip(("baseline", "candidate"), found, strict=True):
        if n < 2:
            return f"not attainable: the {name} has {n} observation(s), and 2 are the least"
    return None if any(varies for _, varies in found) else NEITHER_VARIES


def _count_and_variation(log: BanditLog, k: int) -> tuple[int, bool]:
    rewards = log.rewards[log.chosen == k]
    return rewards.size, bool(rewards.size) and bool(np.ptp(rewards) > 0)


def _number(log: BanditLog, arm: str) -> int:
    checks.one_of("arm", arm, log.arms)
    k = log.arms.index(arm)
    if log.rewards.size and log.propensities[:, k].min() <= 0:
        raise InvalidInput("arm", arm, "an arm that had a chance at every decision")
    return k


def _propensities(given: ArrayLike, shape: tuple[int, int]) -> Floats:
    array = numbers("propensities", np.asarray(given).ravel())
    if np.shape(given) != shape and array.size:
        raise InvalidInput("propensities", np.shape(given), f"the shape {shape}: a row a decision, a column an arm")
    chances = array.reshape(shape)
    if chances.size and (chances.min() < 0 or np.abs(chances.sum(axis=1) - 1).max() > _SUMS_TO_ONE):
        raise InvalidInput("propensities", "rows", "fractions that sum to 1 in each row")
    return chances
