"""Streams of observations for `error_rates.py`: when, if ever, does a test that looks after each one reject?

Each function takes a number of streams and a random generator. Observations are drawn for many streams at once and the
bounds are the library's; where a bound is passed, its own scalar function on its own summaries has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import signal, special

from abswitch.stats.bounded import BettingSequence, betting_difference
from abswitch.stats.error_process import Claim, ErrorProcess
from abswitch.stats.group_sequential import GroupSequentialDesign
from abswitch.stats.mixture import mixture_sprt
from abswitch.stats.quantile_sequences import sequential_quantile_ranks, sequential_quantile_test
from abswitch.stats.quantiles import clustered_quantile_interval, quantile_ranks
from abswitch.stats.rate_sequences import beta_binomial_difference
from abswitch.stats.sequential import normal_equivalent, z_boundary
from abswitch.stats.sequential_srm import dirichlet_log_e
from abswitch.stats.strata import StratifiedSummary
from abswitch.stats.summaries import MeanSummary, RateSummary
from abswitch.stats.switchback import SwitchbackSchedule, switchback_test

ALPHA = 0.05
Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
NEVER = 1 << 60
_AT_ONCE = 2_000_000


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.normal(size=shape)


def lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.lognormal(0.0, 1.5, shape)


def bernoulli(rate: float) -> Draw:
    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        return (rng.random(shape) < rate).astype(np.float64)

    return draw


class Running(NamedTuple):
    """Running count, sum and sum of squares of each arm, shape (2, streams, observations)."""

    n: Floats
    total: Floats
    squares: Floats

    @classmethod
    def of(cls, values: Floats, candidate: NDArray[np.bool_]) -> Running:
        mine = np.stack([~candidate, candidate])
        sums = (np.cumsum(np.where(mine, one, 0.0), axis=2) for one in (np.ones_like(values), values, values**2))
        return cls(*sums)

    def statistic(self) -> tuple[Floats, Floats]:
        """Welch's t and its degrees of freedom; 0 where there is none yet."""
        with np.errstate(all="ignore"):
            spread = np.maximum(self.squares - self.total**2 / self.n, 0.0)
            errors = spread / (self.n - 1) / self.n
            difference = self.total[1] / self.n[1] - self.total[0] / self.n[0]
            t = difference / np.sqrt(errors.sum(axis=0))
            df = errors.sum(axis=0) ** 2 / (errors**2 / (self.n - 1)).sum(axis=0)
        usable = (self.n >= 2).all(axis=0) & np.isfinite(t) & np.isfinite(df)
        return np.where(usable, t, 0.0), np.where(usable, df, 1.0)

    def mean(self, arm: int, stream: int, at: int) -> MeanSummary:
        n, total, squares = (float(one[arm, stream, at]) for one in self)
        return MeanSummary.from_sums(int(n), total, squares)

    def rate(self, arm: int, stream: int, at: int) -> RateSummary:
        return RateSummary(int(self.n[arm, stream, at]), int(self.total[arm, stream, at]))


def chunks(streams: int, n: int) -> Iterator[int]:
    """Sizes of portions of streams that fit into memory."""
    portion = max(1, _AT_ONCE // n)
    for start in range(0, streams, portion):
        yield min(portion, streams - start)


def mixture_rejects_at(
    rng: np.random.Generator,
    streams: int,
    draw: Draw,
    *,
    n: int,
    planned_n: int,
    share: float = 0.5,
    effect: float = 0.0,
    rates: bool = False,
    logarithms: bool = False,
) -> NDArray[np.int64]:
    """Observation at which `mixture_sprt` first excludes 0, for each stream; `NEVER` where it does not."""
    first: list[int] = []
    for size in chunks(streams, n):
        candidate = rng.random((size, n)) < share
        running = Running.of(draw(rng, (size, n)) + effect * candidate, candidate)
        t, df = running.statistic()
        worth = running.n[0] * running.n[1] / np.maximum(running.n.sum(axis=0), 1)
        bound = z_boundary(np.maximum(worth, 0.25) / (planned_n * share * (1 - share)), alpha=ALPHA)
        beyond = np.abs(t) >= bound  # the normal equivalent of t is nearer to 0 than t
        beyond[beyond] = np.abs(normal_equivalent(t[beyond], df[beyond])) >= bound[beyond] * (1 - 1e-9)
        arm = running.rate if rates else running.mean
        for stream in range(size):
            first.append(NEVER)
            for at in np.flatnonzero(beyond[stream]):
                arms = (arm(0, stream, at), arm(1, stream, at))
                found = mixture_sprt(*arms, planned_n=planned_n, share=share, logarithms=logarithms)
                if found.excludes_zero():
                    first[-1] = int(at) + 1
                    break
    return np.array(first)


def t_test_rejects_ever(rng: np.random.Generator, streams: int, *, n: int) -> float:
    """Share of A/A streams of normal values in which a t-test for a single look, made after each, is ever below .05."""
    rejected = 0
    for size in chunks(streams, n):
        t, df = Running.of(normal(rng, (size, n)), rng.random((size, n)) < 0.5).statistic()
        rejected += int((np.abs(t)[:, 20:] > special.stdtrit(df, 1 - ALPHA / 2)[:, 20:]).any(axis=1).sum())
    return rejected / streams


def labels_reject_ever(
    rng: np.random.Generator, streams: int, claim: Claim, *, n: int, rate: float, share: float
) -> float:
    """Share of A/A streams in which the error-label e-process, read after each error, ever shows its claim."""
    errors = rng.binomial(n, rate, streams)
    most = int(errors.max())
    counts = np.cumsum(rng.random((streams, most)) < share, axis=1)
    low, high = label_bounds(claim, most, share)
    seen = np.arange(1, most + 1) <= errors[:, None]
    return float((((counts <= low) | (counts >= high)) & seen).any(axis=1).mean())


def label_bounds(claim: Claim, most: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each number of errors up to `most`: how many of the candidate's, at most or at least, show the claim."""

    def shown(n: int, k: int) -> bool:
        return ErrorProcess(claim, alpha=ALPHA).update(baseline=n - k, candidate=k, share=share).shown

    low, high = np.full(most, -1), np.full(most, NEVER)
    reached = 0
    for n in range(1, most + 1):
        while reached < n and (reached <= n * share or not shown(n, reached)):
            reached += 1
        if shown(n, reached) and reached > n * share:
            high[n - 1] = reached
        if claim is not Claim.HARM:
            below = max(int(low[n - 2]) if n > 1 else -1, -1)
            while below + 1 < n * share and shown(n, below + 1):
                below += 1
            low[n - 1] = below
    return low, high


def betting_rejects_ever(rng: np.random.Generator, streams: int, *, n: int, share: float, looks: int) -> float:
    """Share of A/A streams of scores that are 1 in one of fifty in which the betting difference ever excludes 0."""
    rejected = 0
    for _ in range(streams):
        arms = [BettingSequence(alpha=ALPHA), BettingSequence(alpha=ALPHA)]
        for _look in range(looks):
            scores, mine = (rng.random(n // looks) < 0.02).astype(np.float64), rng.random(n // looks) < share
            arms = [arm.update(scores[which]) for arm, which in zip(arms, (~mine, mine), strict=True)]
            if betting_difference(arms[0], arms[1]).excludes_zero():
                rejected += 1
                break
    return rejected / streams


def beta_binomial_rejects_ever(
    rng: np.random.Generator, streams: int, *, n: int, rate: float, share: float, looks: int
) -> float:
    """Share of A/A streams in which the beta-binomial difference ever excludes 0."""
    rejected = 0
    for _ in range(streams):
        arms = [RateSummary(0, 0), RateSummary(0, 0)]
        for _look in range(looks):
            mine = int(rng.binomial(n // looks, share))
            sizes = (n // looks - mine, mine)
            arms = [arm + RateSummary(m, int(rng.binomial(m, rate))) for arm, m in zip(arms, sizes, strict=True)]
            if beta_binomial_difference(arms[0], arms[1], alpha=ALPHA).excludes_zero():
                rejected += 1
                break
    return rejected / streams


def srm_rejects_ever(rng: np.random.Generator, streams: int, *, n: int, alpha: float) -> tuple[float, float]:
    """Share of sound splits called off by the sequential check, and by chi-square at .05 after each unit."""
    candidate = np.cumsum(rng.random((streams, n)) < 0.5, axis=1)
    units = np.arange(1, n + 1)
    log_e = dirichlet_log_e(np.stack([units - candidate, candidate], axis=-1), [0.5, 0.5])
    chi = (2 * candidate - units) ** 2 / units
    return (
        float((log_e > -math.log(alpha)).any(axis=1).mean()),
        float((chi[:, 100:] > special.chdtri(1, alpha)).any(axis=1).mean()),
    )


def group_sequential_run(rng: np.random.Generator, streams: int, *, n: int, power: float) -> tuple[float, float, float]:
    """Five looks, made for `power` at an effect that one look at `n` finds with 80 %: power, mean n, A/A errors."""
    design, looks = GroupSequentialDesign(), np.arange(1, 6) / 5
    for_80, for_more = (float(special.ndtri(0.975) + special.ndtri(wanted)) for wanted in (0.8, power))
    effect = for_80 * math.sqrt(4 / n)
    largest = math.ceil(n * (for_more / for_80) ** 2 * design.inflation(list(looks), power=power) / 5) * 5
    ends = (looks * largest).astype(int) - 1
    bounds = design.boundaries(list((ends + 1) / largest), final=True)
    stopped, spent, wrong = 0, 0, 0
    for size in chunks(streams, largest):
        for true_effect in (effect, 0.0):
            candidate = rng.random((size, largest)) < 0.5
            t, df = Running.of(normal(rng, (size, largest)) + true_effect * candidate, candidate).statistic()
            stops = np.abs(normal_equivalent(t[:, ends], df[:, ends])) >= bounds
            if not true_effect:
                wrong += int(stops.any(axis=1).sum())
                continue
            stopped += int(stops.any(axis=1).sum())
            spent += int((np.where(stops.any(axis=1), ends[stops.argmax(axis=1)], ends[-1]) + 1).sum())
    return stopped / streams, spent / streams / n, wrong / streams


def quantile_sequence_misses(rng: np.random.Generator, streams: int, q: float, *, n: int) -> tuple[float, float]:
    """Share of streams whose sequence ever misses the true quantile; and intervals for one look, at 100 looks."""
    below = np.cumsum(rng.random((streams, n)) < q, axis=1)  # values up to the true quantile, whatever they are
    missed = {"sequence": np.zeros(streams, dtype=bool), "single": np.zeros(streams, dtype=bool)}
    for at in range(n):
        ranks = {"sequence": sequential_quantile_ranks(at + 1, q, planned_n=n)}
        if (at + 1) % (n // 100) == 0:
            ranks["single"] = quantile_ranks(at + 1, q)
        for kind, one in ranks.items():
            if one.low is not None and one.high is not None:
                missed[kind] |= (below[:, at] < one.low) | (below[:, at] >= one.high)
    return float(missed["sequence"].mean()), float(missed["single"].mean())


def quantile_test_rejects_ever(rng: np.random.Generator, streams: int, q: float, *, n: int, looks: int) -> float:
    """Share of A/A streams of latencies in which the two-sample sequential quantile test ever excludes 0."""
    rejected = 0
    for _ in range(streams):
        values, candidate = rng.lognormal(0.0, 1.5, n), rng.random(n) < 0.5
        for end in np.linspace(n / looks, n, looks).astype(int):
            arms = (values[:end][~candidate[:end]], values[:end][candidate[:end]])
            if sequential_quantile_test(*arms, q, planned_n=n).excludes_zero():
                rejected += 1
                break
    return rejected / streams


def fixed_quantile_coverage(rng: np.random.Generator, streams: int, q: float, *, n: int) -> float:
    """Share of single-look intervals that hold the true quantile."""
    ranks = quantile_ranks(n, q)
    assert ranks.low is not None and ranks.high is not None
    below = rng.binomial(n, q, streams)
    return float(((below >= ranks.low) & (below < ranks.high)).mean())


def clustered_quantile_coverage(rng: np.random.Generator, streams: int, q: float, *, users: int, each: int) -> float:
    """The same where users differ: lognormal latencies, half of their variance between users."""
    truth = math.exp(float(special.ndtri(q)))
    units = np.repeat(np.arange(users), each)
    held = 0
    for _ in range(streams):
        logs = math.sqrt(0.5) * (np.repeat(rng.normal(size=users), each) + rng.normal(size=users * each))
        found = clustered_quantile_interval(np.exp(logs), units, q)
        held += found.low <= truth <= found.high
    return held / streams


def switchback_rejects(rng: np.random.Generator, streams: int, *, pairs: int, block: int) -> tuple[float, float]:
    """A/A under a load that remembers (AR .99): randomised adjacent blocks by paired t; before/after by a plain t."""
    n = 2 * pairs * block
    wrong = naive = 0
    names = [str(pair) for pair in range(pairs)]
    for stream in range(streams):
        load = signal.lfilter([1.0], [1.0, -0.99], rng.normal(size=n + 500))[500:]
        means = (load + rng.normal(size=n)).reshape(pairs, 2, block).mean(axis=2)
        schedule = SwitchbackSchedule(f"aa-{stream}", block_s=60.0)
        second = np.array([schedule.order(pair)[1] == "candidate" for pair in range(pairs)])
        arms = (np.where(second, means[:, arm], means[:, 1 - arm]) for arm in (0, 1))
        found = switchback_test(*(StratifiedSummary.of_means(values, names) for values in arms))
        wrong += found.excludes_zero()
        halves = load[: n // 2], load[n // 2 :]
        error = math.sqrt(sum(float(half.var(ddof=1)) / half.size for half in halves))
        naive += abs(float(halves[1].mean() - halves[0].mean())) > 1.96 * error
    return wrong / streams, naive / streams
