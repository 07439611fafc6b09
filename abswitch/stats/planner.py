"""Planning an experiment: how many requests, how long, and what could be found, before the first one is spent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import finite
from abswitch.stats.crossing import anytime_expected_share, anytime_noncentrality, anytime_power
from abswitch.stats.group_sequential import GroupSequentialDesign
from abswitch.stats.power import POWER, design_effect, required_n_mean, required_n_rate, two_sided_power

FIXED, GROUP_SEQUENTIAL, ANYTIME = HORIZONS = ("fixed", "group-sequential", "anytime")
"""One look at the end; a few planned looks; a look whenever one likes."""

Floats = NDArray[np.float64]
_CURVE_POINTS = 41
_CURVE_REACH = 2.0
_MOST_LOOKS = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PowerCurve:
    """What more or fewer requests would find.

    Attributes:
        n: requests in both arms together; shape (k,), up to twice the planned number.
        power: chance to find the planned effect with so many, fractions 0–1; shape (k,).
        detectable: the effect found with the planned power with so many, in the metric's own unit; shape (k,).
    """

    n: Floats
    power: Floats
    detectable: Floats

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: getattr(self, name).tolist() for name in ("n", "power", "detectable")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPlan:
    """What an experiment takes.

    Attributes:
        horizon: `fixed`, `group-sequential` or `anytime`.
        effect: the difference to be found, candidate − baseline, in the metric's own unit.
        share: the candidate's fraction of requests.
        n: requests in both arms together, at most; with sequential horizons it usually takes fewer.
        n_baseline, n_candidate: of them in each arm.
        units: users, sessions or prompts behind them.
        inflation: how many times more requests than with one look.
        design_effect: how many times more because those of a unit resemble each other.
        variance_left: share of the variance that a covariate (CUPED) leaves.
        expected_n: mean number of requests spent if the effect is there, stopping when it is found; None where
            only an inflation was given.
        duration_s: at the observed request rate; None without one.
        still_needed: requests to come, after those already spent.
        curve: for plotting.
    """

    horizon: str
    alpha: float
    power: float
    effect: float
    share: float
    n: int
    n_baseline: int
    n_candidate: int
    units: int
    inflation: float
    design_effect: float
    variance_left: float
    expected_n: int | None
    duration_s: float | None
    still_needed: int
    curve: PowerCurve

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN and infinity become None."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "curve"}
        found: dict[str, Any] = finite(plain | {"curve": self.curve.to_dict()})
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How requests come.

    Args:
        share: the candidate's fraction of them, in (0, 1). 0.5 by default, which takes the fewest.
        requests_per_s: observed rate of both arms together, above 0; None where it is not known.
        requests_per_unit: of one user or session, on average; 1, the default, is independent requests.
        unit_size_cv: standard deviation of the units' numbers of requests over their mean.
        correlation: of two requests of one unit, 0–1.
        spent: requests already observed in both arms.
        measured_design_effect: how many times more requests it takes as those of a unit resemble each other, where that
            was measured, in place of what follows from the three above; at least 1.
    """

    share: float = 0.5
    requests_per_s: float | None = None
    requests_per_unit: float = 1.0
    unit_size_cv: float = 0.0
    correlation: float = 0.0
    spent: int = 0
    measured_design_effect: float | None = None

    def __post_init__(self) -> None:
        checks.number("share", self.share, low=0.0, high=1.0, above=True)
        if self.share == 1.0:
            raise InvalidInput("share", self.share, "below 1: both arms need units")
        if self.requests_per_s is not None:
            checks.number("requests_per_s", self.requests_per_s, low=0.0, above=True)
        checks.integer("spent", self.spent, low=0)
        if self.measured_design_effect is not None:
            checks.number("measured_design_effect", self.measured_design_effect, low=1.0)
        _ = self._formula

    @property
    def design_effect(self) -> float:
        """How many times more requests it takes as those of a unit resemble each other."""
        return self._formula if self.measured_design_effect is None else self.measured_design_effect

    @property
    def _formula(self) -> float:
        return design_effect(self.requests_per_unit, self.correlation, size_cv=self.unit_size_cv)


EVEN_TRAFFIC = Traffic()


def plan_experiment(
    effect: float,
    *,
    std: float | None = None,
    baseline_rate: float | None = None,
    traffic: Traffic = EVEN_TRAFFIC,
    horizon: str = ANYTIME,
    inflation: float | None = None,
    looks: int | None = None,
    covariate_correlation: float = 0.0,
    alpha: float = 0.05,
    power: float = POWER,
) -> ExperimentPlan:
    """How many requests it takes to find an effect, how long that lasts, and what fewer would do.

    Args:
        effect: the smallest difference worth finding, candidate − baseline, in the metric's own unit; not 0.
        std: standard deviation of one request's value, for a mean; above 0.
        baseline_rate: for a rate, a fraction 0–1; the candidate's is then `baseline_rate + effect`.
        traffic: how requests come.
        horizon: `fixed` (one look), `group-sequential` or `anytime` (the normal-mixture confidence sequence tuned to
            the planned number: the default, as decisions here may be looked at any time).
        looks: of `group-sequential`: how many, evenly spread, 2 to 20; the error rate is spent by O'Brien and Fleming.
        inflation: of `group-sequential`, in place of `looks`, for boundaries of one's own: how many times the requests
            of one look its last look needs, at least 1. One of the two is required there, and refused elsewhere.
        covariate_correlation: of the metric with a covariate known before (CUPED), in (−1, 1).
        alpha: two-sided error rate, in (0, 0.5]. 0.05 by convention.
        power: chance to find the effect, in [0.5, 0.9999]. 0.8 by convention.

    Returns:
        An `ExperimentPlan`. Normal approximations throughout.

    Raises:
        InvalidInput: an argument outside its range, neither or both of `std` and `baseline_rate`, or a candidate's rate
            outside 0–1.

    References:
        J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed. (1988); C. Jennison, B. W. Turnbull,
        Group Sequential Methods (2000), § 2.3 (inflation); L. Kish, Survey Sampling (1965) (design effect).

    >>> plan = plan_experiment(0.1, baseline_rate=0.6, horizon="fixed", traffic=Traffic(requests_per_s=2.0))
    >>> plan.n, plan.duration_s
    (712, 356.0)
    >>> plan_experiment(0.1, baseline_rate=0.6).n
    1193
    """
    one_look = _one_look(effect, std, baseline_rate, traffic.share, alpha, power)
    method = _Horizon(checks.one_of("horizon", horizon, HORIZONS), inflation, looks, alpha)
    left = 1 - checks.number("covariate_correlation", covariate_correlation, low=-0.9999, high=0.9999) ** 2
    n = math.ceil(one_look * method.factor(power) * traffic.design_effect * left)
    candidate = round(n * traffic.share)
    expected = method.expected_share(power)
    return ExperimentPlan(
        horizon=horizon,
        alpha=alpha,
        power=power,
        effect=float(effect),
        share=traffic.share,
        n=n,
        n_baseline=n - candidate,
        n_candidate=candidate,
        units=math.ceil(n / traffic.requests_per_unit),
        inflation=method.factor(power),
        design_effect=traffic.design_effect,
        variance_left=left,
        expected_n=None if expected is None else math.ceil(n * expected),
        duration_s=None if traffic.requests_per_s is None else n / traffic.requests_per_s,
        still_needed=max(0, n - traffic.spent),
        curve=_curve(n, effect, method, power),
    )


def anytime_inflation(*, alpha: float = 0.05, power: float = POWER) -> float:
    """How many times more requests the confidence sequence takes, at most, than one look at the end.

    On average it stops earlier than that one look if the effect is as planned or larger.

    >>> round(anytime_inflation(), 2)
    1.67
    """
    return _Horizon(ANYTIME, None, None, alpha).factor(power)


@dataclass(frozen=True, slots=True)
class _Horizon:
    """A way of looking, by the noncentrality (true difference over standard error at the planned end) it needs."""

    name: str
    inflation: float | None
    looks: int | None
    alpha: float

    def __post_init__(self) -> None:
        given = {"inflation": self.inflation, "looks": self.looks}
        if self.name != GROUP_SEQUENTIAL:
            for field, value in given.items():
                if value is not None:
                    raise InvalidInput(field, value, f"none; only '{GROUP_SEQUENTIAL}' takes one")
        elif (self.inflation is None) == (self.looks is None):
            allowed = (
                "either looks, 2 or more, or inflation, a number of at least 1 from the boundaries that are planned"
            )
            raise InvalidInput("inflation", given, allowed)
        elif self.inflation is not None:
            checks.number("inflation", self.inflation, low=1.0)
        else:
            checks.integer("looks", self.looks, low=2, high=_MOST_LOOKS)

    @property
    def _fractions(self) -> tuple[float, ...]:
        return tuple((i + 1) / self.looks for i in range(self.looks)) if self.looks else ()

    @property
    def _design(self) -> GroupSequentialDesign:
        return GroupSequentialDesign(alpha=self.alpha)

    def _factor_of_looks(self, power: float) -> float:
        if self.looks:
            return self._design.inflation(self._fractions, power=power)
        return self.inflation or 1.0

    def noncentrality(self, power: float) -> float:
        """What finds with this power."""
        if self.name == ANYTIME:
            return anytime_noncentrality(power, alpha=self.alpha)
        return _noncentrality(self.alpha, power) * math.sqrt(self._factor_of_looks(power))

    def factor(self, power: float) -> float:
        """Requests as a multiple of those of one look."""
        return (self.noncentrality(power) / _noncentrality(self.alpha, power)) ** 2

    def power(self, noncentrality: Floats) -> Floats:
        """Chance to find; where only the inflation is known, as if one look lost as much as the looks do."""
        if self.name == ANYTIME:
            return anytime_power(noncentrality, alpha=self.alpha)
        if self.looks:
            return np.array([self._design.power(self._fractions, float(far)) for far in noncentrality])
        return two_sided_power(noncentrality / math.sqrt(self.inflation or 1.0), alpha=self.alpha)

    def expected_share(self, power: float) -> float | None:
        """Mean fraction of the planned number spent if the effect is there."""
        if self.name == ANYTIME:
            return anytime_expected_share(self.noncentrality(power), alpha=self.alpha)
        if self.looks:
            return self._design.expected_fraction(self._fractions, self.noncentrality(power))
        return 1.0 if self.name == FIXED else None


def _noncentrality(alpha: float, power: float) -> float:
    return float(special.ndtri(1 - alpha / 2) + special.ndtri(power))


def _one_look(
    effect: float, std: float | None, baseline_rate: float | None, share: float, alpha: float, power: float
) -> int:
    """Independent requests in both arms that one look at the end needs."""
    checks.number("effect", effect)
    if effect == 0:
        raise InvalidInput("effect", effect, "not 0; no number of requests tells equals apart")
    if (std is None) == (baseline_rate is None):
        raise InvalidInput("std", std, "either std, for a mean, or baseline_rate, for a rate")
    if baseline_rate is not None:
        checks.share("effect + baseline_rate", baseline_rate + effect)
        return required_n_rate(baseline_rate, baseline_rate + effect, share=share, alpha=alpha, power=power)
    spread = checks.number("std", std, low=0.0, above=True)
    return required_n_mean(abs(effect), spread, share=share, alpha=alpha, power=power)


def _curve(n: int, effect: float, method: _Horizon, power: float) -> PowerCurve:
    """Power and detectable effect up to twice the planned number; the standard error falls with the root of n."""
    fractions = np.linspace(0, _CURVE_REACH, _CURVE_POINTS)[1:]
    root = np.sqrt(fractions)
    needed = method.noncentrality(power)
    return PowerCurve(n=np.ceil(n * fractions), power=method.power(needed * root), detectable=abs(effect) / root)
