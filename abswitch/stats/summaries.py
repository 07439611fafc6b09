"""Sufficient statistics of one metric in one arm: all that a test reads; mergeable; the same from SQL and arrays.

An empty summary has no mean (NaN), never 0: an arm without data must not look like one without errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abswitch import checks
from abswitch.errors import InvalidInput

_ROUNDING = 1e-9
"""A negative spread of at most this share of its scale is rounding; anything more belongs to no data set."""
_EPSILON = float(np.finfo(np.float64).eps)
_CANCELLED = 1e-12
"""The same for the difference of two spreads: numerators in fixed proportion to their denominators do not vary."""
_UNRESOLVED = (4 * _EPSILON) ** 2
"""Below this share of n·mean², doubles cannot hold a spread: what is left of equal values is rounding."""


@dataclass(frozen=True, slots=True)
class MeanSummary:
    """Count, mean and sum of squared deviations (`m2`) of a real-valued metric."""

    n: int
    mean: float
    m2: float

    def __post_init__(self) -> None:
        checks.integer("n", self.n, low=0)
        if self.n == 0:
            object.__setattr__(self, "mean", math.nan)
            object.__setattr__(self, "m2", math.nan)
            return
        checks.number("mean", self.mean)
        object.__setattr__(self, "m2", _spread("m2", self.m2, self.n * self.mean * self.mean))

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """From an array of shape (n,).

        Raises:
            InvalidInput: not numbers, not one-dimensional, or not finite.
        """
        array = numbers("values", values)
        if not array.size:
            return cls(0, math.nan, math.nan)
        mean, deviations = _centred(array)
        return cls(array.size, mean, _sum_of_products(deviations, deviations))

    @classmethod
    def from_sums(cls, n: int, sum_x: float, sum_xx: float) -> Self:
        """From count, sum and sum of squares. Loses digits where the mean is large against the spread, which then reads
        as no variation: prefer `from_moments` where there is a choice.

        Raises:
            InvalidInput: sums that belong to no data set.
        """
        if n == 0:
            return cls(0, math.nan, math.nan)
        return cls(n, sum_x / n, _central("sum_xx", sum_xx, sum_x * sum_x / n, sum_xx, n))

    @classmethod
    def from_moments(cls, n: int, mean: float | None, variance: float | None) -> Self:
        """From count, mean and sample variance (divisor n − 1), as `avg` and `var_samp` of SQL deliver them.

        The variance of one observation is not read; with none, neither is the mean.
        """
        if n == 0:
            return cls(0, math.nan, math.nan)
        return cls(n, _given("mean", mean), 0.0 if n == 1 else _given("variance", variance) * (n - 1))

    @property
    def variance(self) -> float:
        """Sample variance, divisor n − 1; NaN below two observations."""
        return self.m2 / (self.n - 1) if self.n > 1 else math.nan

    def __add__(self, other: MeanSummary) -> MeanSummary:
        """The summary of both data sets together (Chan, Golub & LeVeque 1979)."""
        if not self.n or not other.n:
            return other if not self.n else self
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * other.n / n
        return MeanSummary(n, mean, self.m2 + other.m2 + delta * delta * self.n * other.n / n)


@dataclass(frozen=True, slots=True)
class RateSummary:
    """Count of trials and of successes of a yes-or-no metric."""

    n: int
    successes: int

    def __post_init__(self) -> None:
        checks.integer("n", self.n, low=0)
        checks.integer("successes", self.successes, low=0, high=self.n)

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """From an array of zeros and ones (or booleans), shape (n,).

        Raises:
            InvalidInput: any other value.
        """
        array = numbers("values", values)
        if not np.isin(array, (0.0, 1.0)).all():
            raise InvalidInput("values", float(array[~np.isin(array, (0.0, 1.0))][0]), "0 and 1 only")
        return cls(array.size, int(array.sum()))

    @property
    def mean(self) -> float:
        """The rate; NaN without trials."""
        return self.successes / self.n if self.n else math.nan

    def __add__(self, other: RateSummary) -> RateSummary:
        return RateSummary(self.n + other.n, self.successes + other.successes)


@dataclass(frozen=True, slots=True)
class RatioSummary:
    """Joint moments of numerator x and denominator y of a ratio metric Σx / Σy.

    `m2_x`, `m2_y` and `c_xy` are sums of squared deviations and of their products.
    """

    n: int
    mean_x: float
    mean_y: float
    m2_x: float
    m2_y: float
    c_xy: float

    def __post_init__(self) -> None:
        checks.integer("n", self.n, low=0)
        if self.n == 0:
            for name in ("mean_x", "mean_y", "m2_x", "m2_y", "c_xy"):
                object.__setattr__(self, name, math.nan)
            return
        for name in ("mean_x", "mean_y", "c_xy"):
            checks.number(name, getattr(self, name))
        for name, mean in (("m2_x", self.mean_x), ("m2_y", self.mean_y)):
            object.__setattr__(self, name, _spread(name, getattr(self, name), self.n * mean * mean))

    @classmethod
    def of(cls, numerators: ArrayLike, denominators: ArrayLike) -> Self:
        """From two arrays of shape (n,).

        Raises:
            InvalidInput: not finite numbers, or of different lengths.
        """
        x, y = numbers("numerators", numerators), numbers("denominators", denominators)
        if x.size != y.size:
            raise InvalidInput("denominators", y.size, f"as many values as numerators ({x.size})")
        if not x.size:
            return cls(0, *(math.nan,) * 5)
        (mean_x, dx), (mean_y, dy) = _centred(x), _centred(y)
        spreads = (_sum_of_products(a, b) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
        return cls(x.size, mean_x, mean_y, *spreads)

    @classmethod
    def from_sums(cls, n: int, sum_x: float, sum_y: float, sum_xx: float, sum_yy: float, sum_xy: float) -> Self:
        """From count, sums, sums of squares and sum of products; see `MeanSummary.from_sums` for what that loses."""
        if n == 0:
            return cls(0, *(math.nan,) * 5)
        m2_x = _central("sum_xx", sum_xx, sum_x * sum_x / n, sum_xx, n)
        m2_y = _central("sum_yy", sum_yy, sum_y * sum_y / n, sum_yy, n)
        return cls(n, sum_x / n, sum_y / n, m2_x, m2_y, sum_xy - sum_x * sum_y / n)

    @classmethod
    def from_moments(
        cls,
        n: int,
        mean_x: float | None,
        mean_y: float | None,
        variance_x: float | None,
        variance_y: float | None,
        covariance: float | None,
    ) -> Self:
        """From count, means, sample variances and sample covariance (divisor n − 1), as SQL delivers them."""
        if n == 0:
            return cls(0, *(math.nan,) * 5)
        means = (_given("mean_x", mean_x), _given("mean_y", mean_y))
        if n == 1:
            return cls(1, *means, 0.0, 0.0, 0.0)
        given = (("variance_x", variance_x), ("variance_y", variance_y), ("covariance", covariance))
        return cls(n, *means, *(_given(name, value) * (n - 1) for name, value in given))

    @property
    def mean(self) -> float:
        """The ratio Σx / Σy; NaN without data or with a denominator of 0."""
        return self.mean_x / self.mean_y if self.n and self.mean_y else math.nan

    @property
    def linearised_variance(self) -> float:
        """Delta-method variance of one observation's part in the ratio.

        NaN where it is not defined; infinite where it is beyond what a number can hold.
        """
        if self.n < 2 or not self.mean_y:
            return math.nan
        ratio = self.mean
        spread = self.m2_x - 2.0 * ratio * self.c_xy + ratio * ratio * self.m2_y
        scale = self.m2_x + ratio * ratio * self.m2_y
        if not math.isfinite(spread):
            return math.inf
        left = _spread("variance", spread, scale, unresolved=_CANCELLED)
        return left / (self.n - 1) / self.mean_y / self.mean_y

    def __add__(self, other: RatioSummary) -> RatioSummary:
        if not self.n or not other.n:
            return other if not self.n else self
        n = self.n + other.n
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        weight = self.n * other.n / n
        return RatioSummary(
            n,
            self.mean_x + dx * other.n / n,
            self.mean_y + dy * other.n / n,
            self.m2_x + other.m2_x + dx * dx * weight,
            self.m2_y + other.m2_y + dy * dy * weight,
            self.c_xy + other.c_xy + dx * dy * weight,
        )


Summary = MeanSummary | RateSummary | RatioSummary


def numbers(field: str, values: ArrayLike) -> NDArray[np.float64]:
    """A one-dimensional array of finite numbers.

    Raises:
        InvalidInput: strings, mixed types, NaN, infinity, or more than one dimension.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise InvalidInput(field, values, "numbers in one dimension") from error
    if array.ndim != 1:
        raise InvalidInput(field, array.shape, "one dimension")
    if array.size and array.dtype.kind not in "bifu":
        raise InvalidInput(field, str(array.dtype), "numbers only")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InvalidInput(field, float(array[~np.isfinite(array)][0]), "finite numbers only")
    return array


def _centred(array: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Mean and deviations. Anchored at the first value, so that equal values have exactly no deviation."""
    with np.errstate(over="ignore", invalid="ignore"):  # values too large to square are refused with their sums
        mean = float(array[0] + (array - array[0]).mean())
        return mean, array - mean


def _sum_of_products(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float((left * right).sum() - left.sum() * right.sum() / left.size)


def _given(field: str, value: float | None) -> float:
    if value is None:
        raise InvalidInput(field, None, "a finite number, as there are observations")
    return float(value)


def _central(field: str, raw: float, shift: float, scale: float, n: int) -> float:
    """A raw second moment turned central; what cancellation cannot have left intact is no variation."""
    lost = min(_ROUNDING, max(n, 16) * _EPSILON)
    return _spread(field, raw - shift, scale, unresolved=lost)


def _spread(field: str, value: float, scale: float, *, unresolved: float = _UNRESOLVED) -> float:
    """A sum of squares: 0 where rounding is all that is left of it; clearly below 0 it is an error in the data."""
    if not math.isfinite(value):
        raise InvalidInput(field, value, "a finite number")
    if value < -_ROUNDING * scale:
        raise InvalidInput(field, value, "zero or more; these moments belong to no data set")
    return float(value) if value > unresolved * scale else 0.0
