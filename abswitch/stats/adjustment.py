"""Variance reduction: what was known of a unit before the test takes its share out of the noise.

The covariate must not be touched by the arm: a value from before the first exposure, or a property of the prompt. A
covariate that the arm can move (output length, queue depth) biases every method here.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from typing import Self

from numpy.typing import ArrayLike

from abswitch.errors import InvalidInput
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.components import Part, arm_estimate, bare_arm, compare_parts, error_rate, unattainable
from abswitch.stats.means import welch_t_test
from abswitch.stats.summaries import MeanSummary, RatioSummary

CUPED = "CUPED, pooled theta (Welch t)"
LIN = "Lin's regression adjustment"
FLAT_COVARIATE = "the covariate does not vary: no adjustment"

_CANCELLED = 1e-12
"""A residual spread below this share of what it is the difference of is rounding: the covariate explains all."""
_IMPOSSIBLE = 1.001
"""Rounding may leave a correlation this little above 1; anything more belongs to no data set."""


@dataclass(frozen=True, slots=True)
class CovariateSummary:
    """Joint moments of a metric y and a covariate x known before the test, of one arm.

    `m2`, `m2_x` are sums of squared deviations of y and x, `c_xy` that of their products. As few as two observations
    determine a slope exactly: use it from some tens of units on.
    """

    n: int
    mean: float
    mean_x: float
    m2: float
    m2_x: float
    c_xy: float

    def __post_init__(self) -> None:
        checked = RatioSummary(self.n, self.mean, self.mean_x, self.m2, self.m2_x, self.c_xy)
        for name, value in zip(self.__slots__, astuple(checked), strict=True):
            object.__setattr__(self, name, value)
        if self.n:
            object.__setattr__(self, "c_xy", self._possible_c_xy())

    def _possible_c_xy(self) -> float:
        """The sum of products, within what the two spreads allow (Cauchy–Schwarz)."""
        most = math.sqrt(self.m2) * math.sqrt(self.m2_x)
        if abs(self.c_xy) > most * _IMPOSSIBLE and self.m2 and self.m2_x:
            raise InvalidInput("c_xy", self.c_xy, f"at most {most:g} either way; these moments belong to no data set")
        return max(-most, min(self.c_xy, most))

    @classmethod
    def of(cls, values: ArrayLike, covariates: ArrayLike) -> Self:
        """From two arrays of shape (n,), one pair a unit.

        Raises:
            InvalidInput: not finite numbers, or of different lengths.
        """
        return cls(*astuple(RatioSummary.of(values, covariates)))

    @classmethod
    def from_moments(
        cls,
        n: int,
        mean: float | None,
        mean_x: float | None,
        variance: float | None,
        variance_x: float | None,
        covariance: float | None,
    ) -> Self:
        """From count, means, sample variances and sample covariance (divisor n − 1), as SQL delivers them."""
        return cls(*astuple(RatioSummary.from_moments(n, mean, mean_x, variance, variance_x, covariance)))

    @property
    def without_covariate(self) -> MeanSummary:
        """The metric alone."""
        return MeanSummary(self.n, self.mean, self.m2)

    @property
    def slope(self) -> float:
        """Least-squares slope of y on x; 0 where x does not vary, NaN without observations."""
        return self.c_xy / self.m2_x if self.m2_x else (0.0 if self.n else math.nan)

    def residual_m2(self, slope: float) -> float:
        """Sum of squared deviations of y − slope · x."""
        scale = self.m2 + slope * slope * self.m2_x
        left = self.m2 - 2.0 * slope * self.c_xy + slope * slope * self.m2_x
        return left if left > _CANCELLED * scale else 0.0

    def __add__(self, other: CovariateSummary) -> CovariateSummary:
        """The summary of both data sets together."""
        merged = RatioSummary(*astuple(self)) + RatioSummary(*astuple(other))
        return CovariateSummary(*astuple(merged))


@dataclass(frozen=True, slots=True)
class RatioCovariateSummary:
    """Joint moments of numerator x, denominator y and a covariate z per unit, for a ratio Σx / Σy adjusted by z.

    For units with several requests: x is a unit's sum, y its count, z what was known of the unit before the test.

    Attributes:
        ratio: moments of (x, y).
        mean_z, m2_z: of the covariate.
        c_xz, c_yz: sums of products of deviations.
    """

    ratio: RatioSummary
    mean_z: float
    m2_z: float
    c_xz: float
    c_yz: float

    def __post_init__(self) -> None:
        for pair in (
            self._with_z(self.ratio.mean_x, self.ratio.m2_x, self.c_xz),
            self._with_z(self.ratio.mean_y, self.ratio.m2_y, self.c_yz),
        ):
            object.__setattr__(self, "mean_z", pair.mean_x)
            object.__setattr__(self, "m2_z", pair.m2_x)

    def _with_z(self, mean: float, m2: float, c_z: float) -> CovariateSummary:
        return CovariateSummary(self.ratio.n, mean, self.mean_z, m2, self.m2_z, c_z)

    @classmethod
    def of(cls, numerators: ArrayLike, denominators: ArrayLike, covariates: ArrayLike) -> Self:
        """From three arrays of shape (n,), one value of each a unit.

        Raises:
            InvalidInput: not finite numbers, or of different lengths.
        """
        x = CovariateSummary.of(numerators, covariates)
        y = CovariateSummary.of(denominators, covariates)
        return cls(RatioSummary.of(numerators, denominators), x.mean_x, x.m2_x, x.c_xy, y.c_xy)

    @property
    def linearised(self) -> CovariateSummary:
        """The ratio as a mean with its delta-method spread, beside the covariate; `cuped_test` and `lin_test` take it.

        Raises:
            InvalidInput: the denominators sum to 0.
        """
        ratio, n = self.ratio, self.ratio.n
        if not n:
            return CovariateSummary(0, *(math.nan,) * 5)
        if not ratio.mean_y:
            raise InvalidInput("ratio.mean_y", ratio.mean_y, "another mean denominator than 0")
        m2 = ratio.linearised_variance * (n - 1) if n > 1 else 0.0
        most = math.sqrt(m2) * math.sqrt(self.m2_z)  # beyond it is what rounding left of two numbers close together
        c_xy = max(-most, min((self.c_xz - ratio.mean * self.c_yz) / ratio.mean_y, most))
        return CovariateSummary(n, ratio.mean, self.mean_z, m2, self.m2_z, c_xy)

    def __add__(self, other: RatioCovariateSummary) -> RatioCovariateSummary:
        """The summary of both data sets together."""
        mine, theirs = self.ratio, other.ratio
        x = self._with_z(mine.mean_x, mine.m2_x, self.c_xz) + other._with_z(theirs.mean_x, theirs.m2_x, other.c_xz)
        y = self._with_z(mine.mean_y, mine.m2_y, self.c_yz) + other._with_z(theirs.mean_y, theirs.m2_y, other.c_yz)
        return RatioCovariateSummary(mine + theirs, x.mean_x, x.m2_x, x.c_xy, y.c_xy)


def cuped_theta(baseline: CovariateSummary, candidate: CovariateSummary) -> float:
    """CUPED's theta, pooled within the arms so that their difference does not enter; 0 where no covariate varies."""
    spread = baseline.m2_x + candidate.m2_x
    return (baseline.c_xy + candidate.c_xy) / spread if spread > 0 else 0.0


def cuped_summaries(baseline: CovariateSummary, candidate: CovariateSummary) -> tuple[MeanSummary, MeanSummary]:
    """Both arms with the covariate's share taken out: what any other test of means takes, a sequential one too.

    A value becomes y − theta (x − mean of x over both arms). The spread makes up for theta being estimated:
    (N − 2) / (N − 3) with N units in all.

    Returns:
        The adjusted summaries of baseline and candidate; an empty arm stays empty.
    """
    if not baseline.n or not candidate.n:
        return baseline.without_covariate, candidate.without_covariate
    theta, n = cuped_theta(baseline, candidate), baseline.n + candidate.n
    centre = (baseline.n * baseline.mean_x + candidate.n * candidate.mean_x) / n
    spent = (n - 2) / (n - 3) if theta and n > 3 else 1.0
    adjusted = (
        MeanSummary(arm.n, arm.mean - theta * (arm.mean_x - centre), arm.residual_m2(theta) * spent)
        for arm in (baseline, candidate)
    )
    return next(adjusted), next(adjusted)


def cuped_test(baseline: CovariateSummary, candidate: CovariateSummary, *, alpha: float = 0.05) -> Comparison:
    """Difference of means with a covariate's share of the noise taken out (CUPED), by Welch's t.

    The estimate is that of an analysis of covariance. How much narrower it gets is in the notes: a covariate that
    correlates by r leaves 1 − r² of the variance.

    Args:
        baseline, candidate: one pair (metric, covariate) a unit; for a ratio of sums, or units with several requests,
            `RatioCovariateSummary.linearised`.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison` of the adjusted means; without a varying covariate it is Welch's, and says so. `why_not` is set
        when an arm has fewer than two units, both have fewer than five, or nothing varies that the covariate does not
        explain.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        A. Deng, Y. Xu, R. Kohavi, T. Walker, "Improving the Sensitivity of Online Controlled Experiments by Utilizing
        Pre-Experiment Data", WSDM 2013.

    >>> a = CovariateSummary.of([1.0, 2.0, 3.0, 4.2], [1.0, 2.1, 2.9, 4.0])
    >>> b = CovariateSummary.of([2.0, 3.1, 4.0, 5.0], [1.1, 2.0, 3.0, 3.9])
    >>> round(cuped_test(a, b).estimate, 3)
    0.975
    """
    error_rate(alpha)
    few = _too_few(baseline, candidate, 2)
    if few is None and baseline.n + candidate.n < 5:
        few = "not attainable: 5 units in both arms together are the least"
    if few is not None:
        return unattainable(CUPED, alpha, _bare(baseline), _bare(candidate), few)
    found = welch_t_test(*cuped_summaries(baseline, candidate), alpha=alpha)
    return replace(found, method=CUPED, notes=found.notes + _gain(baseline, candidate, found))


def lin_test(baseline: CovariateSummary, candidate: CovariateSummary, *, alpha: float = 0.05) -> Comparison:
    """Lin's regression adjustment: each arm has its own slope, both are read at the mean covariate of all units.

    Never less precise in large samples than the plain difference, also with unequal arms and effects that vary with the
    covariate, where CUPED's single slope can lose. The standard error is that of two separate regressions, plus what
    the mean covariate itself is uncertain by where slopes differ (units are a sample of those to come).

    Args:
        baseline, candidate: one pair (metric, covariate) a unit.
        alpha: two-sided error rate, in (0, 0.5]; the interval has confidence 1 − alpha. 0.05 by convention.

    Returns:
        A `Comparison` of the adjusted means; `why_not` is set when an arm has fewer than three units, or nothing varies
        that the covariate does not explain.

    Raises:
        InvalidInput: alpha outside its range.

    References:
        W. Lin, Annals of Applied Statistics 7 (2013) 295–318; A. Negi, J. M. Wooldridge, Econometric Reviews 40 (2021)
        504–534 (the last term of the variance).

    >>> a = CovariateSummary.of([1.0, 2.0, 3.0, 4.2], [1.0, 2.1, 2.9, 4.0])
    >>> b = CovariateSummary.of([2.0, 3.1, 4.0, 5.0], [1.1, 2.0, 3.0, 3.9])
    >>> round(lin_test(a, b).estimate, 3)
    0.975
    """
    error_rate(alpha)
    few = _too_few(baseline, candidate, 3)
    if few is not None:
        return unattainable(LIN, alpha, _bare(baseline), _bare(candidate), few)
    both = baseline + candidate
    a, b = _prediction(baseline, both.mean_x), _prediction(candidate, both.mean_x)
    values = tuple(arm.mean + arm.slope * (both.mean_x - arm.mean_x) for arm in (baseline, candidate))
    slopes = (candidate.slope - baseline.slope) ** 2 * both.m2_x / (both.n - 1) / both.n
    arm_a, arm_b = (
        arm_estimate(arm.n, value, (part,), alpha)
        for arm, value, part in zip((baseline, candidate), values, (a, b), strict=True)
    )
    parts = (a, b, Part(slopes, both.n - 1))
    found = compare_parts(LIN, alpha, arm_a, arm_b, values[1] - values[0], parts)
    return replace(found, notes=_gain(baseline, candidate, found))


def _prediction(arm: CovariateSummary, at_x: float) -> Part:
    """Variance of one arm's regression line at this covariate; with no varying covariate that of its mean."""
    if not arm.m2_x:
        return Part(arm.m2 / (arm.n - 1) / arm.n, arm.n - 1)
    noise = arm.residual_m2(arm.slope) / (arm.n - 2)
    return Part(noise * (1 / arm.n + (at_x - arm.mean_x) ** 2 / arm.m2_x), arm.n - 2)


def _too_few(baseline: CovariateSummary, candidate: CovariateSummary, least: int) -> str | None:
    for name, arm in (("baseline", baseline), ("candidate", candidate)):
        if arm.n < least:
            return f"not attainable: the {name} has {arm.n} observation(s), and {least} are the least"
    return None


def _bare(arm: CovariateSummary) -> ArmEstimate:
    return bare_arm(arm.n, arm.mean)


def _gain(baseline: CovariateSummary, candidate: CovariateSummary, found: Comparison) -> tuple[str, ...]:
    if not baseline.m2_x + candidate.m2_x:
        return (FLAT_COVARIATE,)
    plain = welch_t_test(baseline.without_covariate, candidate.without_covariate)
    if not found.attainable or not plain.attainable:
        return ()
    left = (found.standard_error / plain.standard_error) ** 2
    return (f"the covariate takes the variance to {left:.0%} of the unadjusted one",)
