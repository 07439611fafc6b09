"""Switchback: one version serves at a time, and they take turns in blocks of time, in random order.

For when both do not fit on one GPU, or when one version's load would slow the other. Two adjacent blocks make a pair,
one for each arm, and a coin decides which comes first. Adjacent blocks share the load of their hour, so their
difference is free of it; the coin makes these differences independent of each other however long the load remembers.
Within a block requests are anything but independent: a block counts once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison
from abswitch.stats.components import Part, bare_arm, compare_parts, error_rate, unattainable
from abswitch.stats.strata import StratifiedSummary
from abswitch.stats.summaries import MeanSummary

SWITCHBACK = "switchback, paired t of block means"
BASELINE, CANDIDATE = "baseline", "candidate"


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of time in which one arm serves.

    Attributes:
        index, pair: both from 0; blocks 2k and 2k + 1 are pair k.
        arm: `baseline` or `candidate`.
        start_s, end_s: since the experiment's start.
        counted_from_s: requests that began before are left out: the other version's queue is still being worked off.
    """

    index: int
    pair: int
    arm: str
    start_s: float
    end_s: float
    counted_from_s: float


@dataclass(frozen=True, slots=True)
class SwitchbackSchedule:
    """Which arm serves when: a pure function of a salt, so that it can be known before, and checked after.

    Args:
        salt: of the experiment; another salt gives unrelated orders.
        block_s: length of a block; several times as long as a switch and its after-effects take.
        washout_s: from the start of each block, not counted; 0 by default, below `block_s`.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        I. Bojinov, D. Simchi-Levi, J. Zhao, Management Science 69 (2023) 3759–3777.

    >>> schedule = SwitchbackSchedule("exp-1", block_s=600.0, washout_s=30.0)
    >>> schedule.block_at(650.0).pair, schedule.block_at(650.0).counted_from_s
    (0, 630.0)
    """

    salt: str
    block_s: float
    washout_s: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.salt, str) or not self.salt:
            raise InvalidInput("salt", self.salt, "a text that is not empty")
        checks.number("block_s", self.block_s, low=0.0, above=True)
        checks.number("washout_s", self.washout_s, low=0.0)
        if self.washout_s >= self.block_s:
            raise InvalidInput("washout_s", self.washout_s, f"below block_s ({self.block_s:g})")

    def order(self, pair: int) -> tuple[str, str]:
        """The arms of a pair, first and second block."""
        checks.integer("pair", pair, low=0)
        key = blake2b(self.salt.encode(), digest_size=32).digest()
        coin = blake2b(pair.to_bytes(8, "big"), key=key, digest_size=1).digest()[0] & 1
        return (CANDIDATE, BASELINE) if coin else (BASELINE, CANDIDATE)

    def block(self, index: int) -> Block:
        """A block by its number, from 0."""
        checks.integer("index", index, low=0)
        pair, second = divmod(index, 2)
        start_s = index * self.block_s
        end_s = (index + 1) * self.block_s
        return Block(index, pair, self.order(pair)[second], start_s, end_s, start_s + self.washout_s)

    def block_at(self, elapsed_s: float) -> Block:
        """The block at this time since the experiment's start; a block begins at its start and ends before the next."""
        checks.number("elapsed_s", elapsed_s, low=0.0)
        index = int(elapsed_s // self.block_s)  # rounding may put it one off
        return self.block(index + (elapsed_s >= (index + 1) * self.block_s) - (elapsed_s < index * self.block_s))

    def blocks(self, pairs: int) -> Sequence[Block]:
        """All blocks of the first so many pairs."""
        checks.integer("pairs", pairs, low=0)
        return [self.block(index) for index in range(2 * pairs)]


def switchback_test(baseline: StratifiedSummary, candidate: StratifiedSummary, *, alpha: float = 0.05) -> Comparison:
    """Compare two arms that took turns in randomised adjacent blocks: paired t of block means.

    Every pair counts the same, however many requests its blocks had: what is compared is time under either version.

    Args:
        baseline, candidate: a summary of each arm's block, by the name of its pair; means, rates or ratios.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison` whose n is the number of pairs. Pairs with an empty block are left out and named. `why_not` is
        set below two pairs, or when all differences are equal. The arms have no intervals of their own: under drift a
        block alone says nothing about chance.

    Raises:
        InvalidInput: summaries of different kinds, or alpha outside its range.

    References:
        Student, Biometrika 6 (1908) 1–25; I. Bojinov, D. Simchi-Levi, J. Zhao, Management Science 69 (2023) 3759–3777.

    >>> a = StratifiedSummary.of_means([10.0, 12.0, 11.0], ["0", "1", "2"])
    >>> b = StratifiedSummary.of_means([11.0, 13.1, 11.9], ["0", "1", "2"])
    >>> round(switchback_test(a, b).estimate, 4)
    1.0
    """
    error_rate(alpha)
    baseline.kind_with(candidate)
    names = list(dict.fromkeys((*baseline.strata, *candidate.strata)))
    means = {name: tuple(_block_mean(arm, name) for arm in (baseline, candidate)) for name in names}
    whole = {name: both for name, both in means.items() if all(map(math.isfinite, both))}
    left_out = [name for name in names if name not in whole]
    notes = (f"left out, without both blocks: pair {', '.join(left_out)}",) if left_out else ()
    return _paired(list(whole.values()), alpha, notes)


def _paired(pairs: Sequence[tuple[float, ...]], alpha: float, notes: tuple[str, ...]) -> Comparison:
    n = len(pairs)
    first, second, difference = (
        MeanSummary.of(values) for values in ([a for a, _ in pairs], [b for _, b in pairs], [b - a for a, b in pairs])
    )
    arms = bare_arm(n, first.mean), bare_arm(n, second.mean)
    if n < 2:
        why_not = f"not attainable: {n} whole pair(s) of blocks, and 2 are the least"
        return unattainable(SWITCHBACK, alpha, *arms, why_not, notes)
    if not difference.m2:
        return unattainable(SWITCHBACK, alpha, *arms, "not attainable: all pairs of blocks differ by the same", notes)
    variance = Part(difference.variance / n, n - 1)
    return compare_parts(SWITCHBACK, alpha, *arms, difference.mean, (variance,), notes)


def _block_mean(arm: StratifiedSummary, pair: str) -> float:
    return arm.strata[pair].mean if pair in arm.strata else math.nan
