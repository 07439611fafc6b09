"""`Comparison`: what a test of two arms found. One type for every method."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEstimate:
    """One arm's own value with its interval (same confidence as the comparison's)."""

    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate minus baseline, with interval and p-value.

    Attributes:
        method: the test, by its standard name.
        estimate: candidate − baseline, in the metric's own unit; NaN when not attainable.
        low, high: two-sided interval of confidence 1 − alpha.
        p_value: two-sided, of no difference.
        df: degrees of freedom, where the method has them.
        standard_error: of the estimate: half the interval's width over the method's quantile.
        why_not: why there is no result, e.g. an arm with one observation; None when there is one.
        e_value: evidence against no difference, where the method has it: its mean is at most 1 without a difference, at
            whatever moment it is read; 1 / alpha decides. NaN otherwise.
        look: which look at the data this is, counted from 1, where the method counts them.
        notes: what a reader should know, e.g. "no variation in the baseline".
    """

    method: str
    alpha: float
    baseline: ArmEstimate
    candidate: ArmEstimate
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    df: float | None = None
    standard_error: float = math.nan
    why_not: str | None = None
    notes: tuple[str, ...] = ()
    e_value: float = math.nan
    look: int | None = None

    @property
    def attainable(self) -> bool:
        """Whether there is a result at all."""
        return self.why_not is None

    @property
    def relative(self) -> float:
        """The estimate as a fraction of the baseline's value; NaN where that is 0 or missing."""
        return self.estimate / abs(self.baseline.value) if self.baseline.value else math.nan

    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.attainable and (self.low > 0 or self.high < 0)

    def within(self, margin: float) -> bool:
        """Whether the interval lies inside (−margin, margin): two one-sided tests, alpha / 2 each (Schuirmann 1987)."""
        return self.attainable and -margin < self.low and self.high < margin

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN and infinity become None."""
        plain: dict[str, Any] = finite(asdict(self) | {"attainable": self.attainable, "relative": self.relative})
        return plain


def finite(value: Any) -> Any:
    """The same structure with every float that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
