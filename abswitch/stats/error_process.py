"""The error-label e-process: whose errors are they? Exact for rare errors, however unevenly traffic is split.

Look only at the errors, and at each one's arm. Without a difference an error is the candidate's with the probability
with which its unit was put there, whatever made the error rate rise or fall in the meantime: load, prompts, time of
day. With candidate errors `ratio` times as likely, the odds are `ratio` times as high. So errors are coin flips with a
known coin, and an e-process of them may be read after each one.

Anything rare that can be said of a request serves as an error: a failure, an empty answer, slower than the objective.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.components import error_rate
from abswitch.stats.summaries import numbers

ERROR_LABELS = "error-label e-process"
HARM_SPREAD = math.log(3.0)
"""Ratios that a harm or difference test looks for: two thirds of the weight lie within three times the tested one."""

Floats = NDArray[np.float64]
_LARGEST = 700.0
_REACH, _STEPS = math.log(100.0), 920
_GRID: Floats = np.linspace(-_REACH, _REACH, _STEPS + 1)
"""Logarithms of ratios, 1 % apart. Ends of intervals are rounded outward to them."""
_ALL = np.ones(_GRID.shape, dtype=np.bool_)


class Claim(StrEnum):
    """What evidence is gathered for."""

    HARM = "harm"
    NO_HARM = "no harm"
    DIFFERENCE = "difference"


@dataclass(frozen=True, slots=True)
class ErrorProcess:
    """Evidence from error labels for one claim about the ratio of the candidate's error rate to the baseline's.

    Begin with `ErrorProcess(Claim.HARM)` and give each look's new labels to `update`: a look costs what the new labels
    cost. With users who stay in their arm, give each user's first error alone (`first_errors`): the later ones say
    nothing new about chance.

    Args:
        claim: `harm`: the ratio is above `ratio`. `no harm`: it is below (non-inferiority at a ratio margin).
            `difference`: it is another.
        ratio: that is to be refuted: 1 by default; for `no harm` a margin above 1, such as 1.5.
        alpha: error rate of the claim over all looks, in (0, 0.5]; 0.05 by convention. Of several harm tests, any of
            which rolls back, each has its part.
        spread: standard deviation of the logarithm of the ratios looked for. Harm: a half-normal from `ratio` up,
            log 3. No harm: a normal around 1, below `ratio`; half of log `ratio`. Difference: a normal around
            `ratio`, log 3. It has a bearing on power alone.

    Attributes:
        baseline, candidate: labels so far.
        peak: logarithm of the largest e-value at any look so far.
        log_likelihoods, at_null: of the labels so far: of ratios in general, and of `ratio`.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        J. ter Schure et al., "The Anytime-Valid Logrank Test", New England Journal of Statistics in Data Science 2
        (2024) 190–214; G. Shafer, JRSS A 184 (2021) 407–431; H. Robbins, D. Siegmund, "The expected sample size of some
        tests of power one", Annals of Statistics 2 (1974) 415–436 (mixtures).

    >>> process = ErrorProcess(Claim.HARM).update(baseline=19, candidate=1, share=0.05)
    >>> process.shown, process.update(baseline=0, candidate=5, share=0.05).shown
    (False, True)
    """

    claim: Claim
    ratio: float = 1.0
    alpha: float = 0.05
    spread: float | None = None
    baseline: int = 0
    candidate: int = 0
    peak: float = 0.0
    log_likelihoods: tuple[float, ...] = (0.0,) * (_STEPS + 1)
    at_null: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "claim", Claim(checks.one_of("claim", self.claim, list(Claim))))
        checks.number("ratio", self.ratio, low=1 / 20, high=20.0)
        if self.claim is Claim.NO_HARM and self.ratio <= 1:
            raise InvalidInput("ratio", self.ratio, "a margin above 1: how many times as many errors are too many")
        error_rate(self.alpha)
        if self.spread is not None:
            checks.number("spread", self.spread, low=0.01, high=5.0)

    @property
    def labels(self) -> int:
        """Errors so far."""
        return self.baseline + self.candidate

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value now; 0 without labels."""
        return self._mixed(self._at_grid()) - self.at_null

    @property
    def e_value(self) -> float:
        """Evidence now: at most 1 on average where the claim is not true, at whatever moment it is read."""
        return math.exp(min(self.log_e, _LARGEST))

    @property
    def p_value(self) -> float:
        """Anytime-valid p-value: 1 over the largest e-value so far, at most 1."""
        return math.exp(-self.peak)

    @property
    def shown(self) -> bool:
        """Whether the claim was shown, now or at an earlier look."""
        return self.peak >= -math.log(self.alpha)

    @property
    def estimate(self) -> float:
        """The most likely ratio, 0.01 to 100; NaN without labels."""
        return math.exp(_GRID[int(np.argmax(self.log_likelihoods))]) if self.labels else math.nan

    def update(self, *, baseline: int, candidate: int, share: float) -> ErrorProcess:
        """With so many new labels, from a stretch with one share.

        Args:
            share: the candidate's share of units while these errors' units came, fraction 0–1. It may differ from look
                to look as long as results up to a moment do not tell what it is for units before. Where many units have
                erred already and each counts once, the candidate's share of those that have not is more exact.

        Raises:
            InvalidInput: a negative count, a share outside 0–1, or errors of an arm that had no traffic.
        """
        checks.integer("baseline", baseline, low=0)
        checks.integer("candidate", candidate, low=0)
        return self.update_labels(np.repeat([0.0, 1.0], [baseline, candidate]), checks.share("share", share))

    def update_labels(self, labels: ArrayLike, shares: ArrayLike) -> ErrorProcess:
        """With new labels, each with the share that was in force.

        Args:
            labels: shape (n,): 1 or true where the error was the candidate's, else 0.
            shares: shape (n,), or one number for all; as for `update`.

        Raises:
            InvalidInput: labels other than 0 and 1, or shares as for `update`.
        """
        flags = numbers("labels", labels)
        if not ((flags == 0) | (flags == 1)).all():
            raise InvalidInput("labels", labels, "0 and 1 only")
        given = np.asarray(shares, dtype=np.float64)
        if given.shape not in ((), flags.shape) or not ((given >= 0) & (given <= 1)).all():
            raise InvalidInput("shares", shares, f"one number from 0 to 1, or {flags.size} of them")
        distinct, at = np.unique(np.broadcast_to(given, flags.shape), return_inverse=True)
        yes, no = (np.bincount(at, weights=which, minlength=distinct.size) for which in (flags, 1 - flags))
        impossible = np.where(distinct == 0, yes, 0) + np.where(distinct == 1, no, 0)
        if impossible.any():
            raise InvalidInput("shares", shares, "above 0 where the candidate erred, below 1 where the baseline did")
        mixed = (distinct > 0) & (distinct < 1)  # an arm with all of the traffic has all of the errors: no evidence
        odds = np.log(distinct[mixed]) - np.log1p(-distinct[mixed])
        counts = odds, yes[mixed].astype(np.float64), no[mixed].astype(np.float64)
        grid = self._at_grid() + _log_likelihood(_GRID, *counts)
        at_null = self.at_null + float(_log_likelihood(np.array([math.log(self.ratio)]), *counts)[0])
        return replace(
            self,
            baseline=self.baseline + int((flags == 0).sum()),
            candidate=self.candidate + int(flags.sum()),
            log_likelihoods=tuple(grid.tolist()),
            at_null=at_null,
            peak=max(self.peak, self._mixed(grid) - at_null),
        )

    def interval(self) -> tuple[float, float]:
        """Ratios that the labels so far do not refute, at all looks together with confidence 1 − alpha, both ends.

        From a mixture of ratios around 1, whatever the claim. 0 and infinity where there is no end within 0.01 to 100.
        """
        seen = self._at_grid()
        mixed = _log_mean(seen, _log_weights(Claim.DIFFERENCE, 1.0, HARM_SPREAD))
        within = np.flatnonzero(mixed - seen < -math.log(self.alpha))
        low, high = int(within[0]) - 1, int(within[-1]) + 1  # the ends lie between this ratio and its neighbour
        return (math.exp(_GRID[low]) if low >= 0 else 0.0, math.exp(_GRID[high]) if high <= _STEPS else math.inf)

    def in_words(self) -> str:
        """One clause with the numbers."""
        low, high = self.interval()
        return (
            f"{self.candidate} of {self.labels} errors are the candidate's, ratio {self.estimate:.3g} "
            f"[{low:.3g}, {high:.3g}] ({ERROR_LABELS} of {self.claim} at ratio {self.ratio:g}, e = {self.e_value:.3g}, "
            f"largest {math.exp(min(self.peak, _LARGEST)):.3g} of the {1 / self.alpha:.4g} that it takes, "
            f"α = {self.alpha:.3g})"
        )

    def _mixed(self, grid: Floats) -> float:
        """Logarithm of the likelihood, averaged over the ratios of the claim."""
        return _log_mean(grid, _log_weights(self.claim, self.ratio, self.spread))

    def _at_grid(self) -> Floats:
        return np.array(self.log_likelihoods)


def first_errors(units: Collection[str], before: Collection[str] = ()) -> list[bool]:
    """Which errors are the first of their unit, given those units that had one before.

    Args:
        units: of each new error, in the order of time.
        before: units of earlier looks' errors; a set, for speed.

    >>> first_errors(["a", "b", "a", "c"], {"c"})
    [True, True, False, False]
    """
    seen: set[str] = set()
    fresh = []
    for unit in units:
        fresh.append(unit not in seen and unit not in before)
        seen.add(unit)
    return fresh


def _log_likelihood(log_ratios: Floats, odds: Floats, yes: Floats, no: Floats) -> Floats:
    """Of counts of labels by share (as log odds), for each ratio."""
    each = log_ratios[:, None] + odds[None, :]
    found: Floats = special.log_expit(each) @ yes + special.log_expit(-each) @ no
    return found


def _log_mean(log_likelihoods: Floats, log_weights: Floats) -> float:
    """Logarithm of the weighted mean of likelihoods."""
    terms = log_likelihoods + log_weights
    most = float(terms.max())
    return most + math.log(float(np.exp(terms - most).sum()))


@functools.lru_cache(maxsize=64)
def _log_weights(claim: Claim, ratio: float, spread: float | None) -> Floats:
    """Logarithms of the weights of all ratios in a claim's mixture; they sum to 1."""
    null = math.log(ratio)
    if claim is Claim.NO_HARM:
        centre, width, among = 0.0, spread or null / 2, null > _GRID
    else:
        centre, width, among = null, spread or HARM_SPREAD, (null < _GRID if claim is Claim.HARM else _ALL)
    raw = np.where(among, -(((_GRID - centre) / width) ** 2) / 2, -math.inf)
    weights: Floats = raw - _log_mean(raw, np.zeros_like(raw))
    return weights
