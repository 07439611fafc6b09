"""`QuantileSummary`: the sorted values around one quantile, which is all that its interval reads."""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.quantile_sequences import sequential_quantile_ranks
from abswitch.stats.quantiles import (
    QuantileInterval,
    QuantileRanks,
    clustered_quantile_ranks,
    quantile_ranks,
    shares_up_to,
)
from abswitch.stats.summaries import RatioSummary, numbers

_ERRORS = 6.0
"""How many standard errors of the quantile are kept either side: enough for any alpha down to 1e-8."""
_FEW = 20.0
"""And so many values more, as near the ends errors are not normal."""
_MOST = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileSummary:
    """Order statistics around the quantile q of n values, ties counted: some thousand numbers for millions of values.

    Mergeable with `+` where values are independent. Windows shrink to what both know; far apart they leave nothing, and
    then there is no interval (never a wrong one).

    Attributes:
        q: in (0, 1).
        n: values in all.
        below: how many of them are less than the first kept value.
        values: those kept, rising, each once.
        counts: how often each occurs.
        shares: of values that belong to units: per unit, (values up to the quantile, values), and the same of the
            median; see `clustered_quantile_ranks`. None where values are independent.
    """

    q: float
    n: int
    below: int = 0
    values: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    shares: tuple[RatioSummary, RatioSummary] | None = None

    def __post_init__(self) -> None:
        if checks.number("q", self.q, low=0.0, high=1.0, above=True) == 1.0:
            raise InvalidInput("q", self.q, "a number above 0 and below 1")
        checks.integer("n", self.n, low=0)
        checks.integer("below", self.below, low=0, high=self.n)
        if len(self.values) != len(self.counts):
            raise InvalidInput("counts", len(self.counts), f"one for each value ({len(self.values)})")
        self._check_kept()
        checks.integer("n", self.n, low=self.below + sum(self.counts))

    def _check_kept(self) -> None:
        """All at once, as there may be thousands; one by one only to name the one that is wrong."""
        plain = {type(value) for value in self.values} <= {int, float} and {type(c) for c in self.counts} <= {int}
        if not (plain and all(map(math.isfinite, self.values)) and min(self.counts, default=1) >= 1):
            for value in self.values:
                checks.number("values", value)
            for count in self.counts:
                checks.integer("counts", count, low=1)
        if any(map(operator.ge, self.values, itertools.islice(self.values, 1, None))):
            raise InvalidInput("values", "values out of order", "rising values")

    @classmethod
    def of(cls, values: ArrayLike, q: float, *, units: ArrayLike | None = None) -> Self:
        """From an array of shape (n,), and whose value each is where units have several.

        Raises:
            InvalidInput: values that are not finite numbers, units of another length, or q outside its range.
        """
        array = numbers("values", values)
        shares = None if units is None else shares_up_to(array, units, q)
        kept, counts = np.unique(array, return_counts=True)
        whole = cls(q=q, n=array.size, values=tuple(kept.tolist()), counts=tuple(counts.tolist()), shares=shares)
        return whole._trimmed()

    @property
    def above(self) -> int:
        """How many values are greater than the last kept one."""
        return self.n - self.below - sum(self.counts)

    def interval(self, *, alpha: float = 0.05) -> QuantileInterval:
        """The quantile with its interval of confidence 1 − alpha; `why_not` where it is not attainable."""
        return self._at_ranks(self._ranks(alpha))

    def sequence(self, *, planned_n: int, alpha: float = 0.05) -> QuantileInterval:
        """The quantile with an interval that holds at all looks together, see `sequential_quantile_ranks`.

        Values of units are taken as so many independent ones as their design effect says they are worth.

        Args:
            planned_n: values of this arm at which it is to be narrowest; fixed beforehand.
        """
        if self.shares is None or not self.n:
            return self._at_ranks(sequential_quantile_ranks(self.n, self.q, planned_n=planned_n, alpha=alpha))
        single = self._ranks(alpha)
        if single.why_not is not None:
            return self._at_ranks(single)
        effect = max(single.design_effect, 1.0)
        worth = sequential_quantile_ranks(
            max(1, math.floor(self.n / effect)), self.q, planned_n=max(2, round(planned_n / effect)), alpha=alpha
        )
        low, high = (None if rank is None else rank * effect for rank in (worth.low, worth.high))
        kept = low is not None and high is not None and math.floor(low) > 1 and math.ceil(high) < self.n
        why_not = worth.why_not or f"not attainable: {self.n} values of {single.units} units are too few at all looks"
        ranks = replace(
            single,
            low=math.floor(low) if kept and low is not None else None,
            high=math.ceil(high) if kept and high is not None else None,
            why_not=None if kept else why_not,
        )
        return self._at_ranks(ranks)

    def _at_ranks(self, ranks: QuantileRanks) -> QuantileInterval:
        found = [self._at(rank) for rank in ranks.needed]
        if None not in found:
            return ranks.interval(*(value for value in found if value is not None))
        point = math.nan if ranks.point is None else self._at(ranks.point)
        why_not = f"not attainable: too few values around p{100 * self.q:g} were kept for this interval"
        bare = replace(ranks, low=None, high=None, why_not=ranks.why_not or why_not)
        return QuantileInterval(ranks=bare, value=math.nan if point is None else point, low=math.nan, high=math.nan)

    def __add__(self, other: QuantileSummary) -> QuantileSummary:
        """The summary of both data sets together.

        Raises:
            InvalidInput: of another quantile, or of values that belong to units: how these share the merged quantile
                is in neither summary.
        """
        if self.q != other.q:
            raise InvalidInput("q", other.q, f"that of the other summary, {self.q:g}")
        if not self.n or not other.n:
            return other if not self.n else self
        if self.shares is not None or other.shares is not None:
            raise InvalidInput("shares", "summaries by unit", "independent values; summarise units' values together")
        both = (self, other)
        low = max(-math.inf if not one.below else one.values[0] if one.values else math.inf for one in both)
        high = min(math.inf if not one.above else one.values[-1] if one.values else -math.inf for one in both)
        n = self.n + other.n
        if low > high:
            return QuantileSummary(q=self.q, n=n)
        merged: dict[float, int] = {}
        below = sum(one.below for one in both)
        for value, count in itertools.chain.from_iterable(zip(one.values, one.counts, strict=True) for one in both):
            if value < low:
                below += count
            elif value <= high:
                merged[value] = merged.get(value, 0) + count
        values = tuple(sorted(merged))
        counts = tuple(merged[value] for value in values)
        return QuantileSummary(q=self.q, n=n, below=below, values=values, counts=counts)._trimmed()

    def _ranks(self, alpha: float) -> QuantileRanks:
        if self.shares is None or not self.n:
            return quantile_ranks(self.n, self.q, alpha=alpha)
        return clustered_quantile_ranks(*self.shares, self.q, alpha=alpha)

    def _at(self, rank: int) -> float | None:
        """The value of a rank; None where it was not kept."""
        up_to = list(itertools.accumulate(self.counts, initial=self.below))
        if not self.below < rank <= up_to[-1]:
            return None
        return self.values[bisect.bisect_left(up_to, rank) - 1]

    def _trimmed(self) -> Self:
        """The same without values far from the quantile."""
        if not self.n or not self.values:
            return self
        low, high = kept_ranks(self.n, self.q, self.shares)
        up_to = list(itertools.accumulate(self.counts, initial=self.below))
        kept = [i for i in range(len(self.values)) if up_to[i + 1] >= low and up_to[i] < high]
        first, last = (kept[0], kept[-1] + 1) if kept else (0, 0)
        return replace(
            self,
            below=up_to[first] if kept else 0,
            values=self.values[first:last],
            counts=self.counts[first:last],
        )


def kept_ranks(n: int, q: float, shares: tuple[RatioSummary, RatioSummary] | None = None) -> tuple[int, int]:
    """Ranks of the first and the last value that a summary keeps, from 1 to n; there are values.

    >>> kept_ranks(10_000, 0.95)
    (9349, 9651)
    """
    effect = 1.0 if shares is None else clustered_quantile_ranks(*shares, q).design_effect
    half = min(_ERRORS * math.sqrt(n * q * (1 - q) * effect) + _FEW * effect, _MOST)
    return max(1, math.floor(n * q - half)), min(n, math.ceil(n * q + half))
