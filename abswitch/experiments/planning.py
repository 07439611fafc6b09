"""`plan`: how many requests an experiment takes and how long that lasts, from the traffic that a store has logged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.experiments.readings import Unit, unit_of
from abswitch.stats import ExperimentPlan, Metric, Rate, Traffic, plan_experiment
from abswitch.stats.comparison import finite
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.metrics import metric_of, metric_to_dict
from abswitch.stats.planner import ANYTIME, GROUP_SEQUENTIAL
from abswitch.stats.power import POWER
from abswitch.store.logged import Logged, LoggedMetric, find_logged, measure_logged, needs_values
from abswitch.store.reading import RowSource

if TYPE_CHECKING:
    from abswitch.engine import SwitchingEngine
    from abswitch.experiments.chart import Chart
    from abswitch.store.reader import Reader
    from abswitch.store.recorder import Recorder

_FIVE = 5
_NO_EVENT = "All requests agree, so how alike those of a unit are is not known; they are taken for independent."


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedTraffic:
    """What a plan starts from: logged requests of the version that served as the stable one.

    Attributes:
        requests: with a value of the metric.
        units: behind them.
        requests_per_s: such requests, of the model and all its versions together, from the first to the last one.
        span_s: that time.
        value: of the metric.
        std: of one request, such that std² / requests is the variance of the metric if requests were independent.
        design_effect: how many times more requests it takes because those of a unit resemble each other, at least 1.
        variance_left: share of the variance that the metric's covariate leaves; 1 without one.
        note: what could not be told from so few values; empty where all could.
    """

    model_id: str
    version: str
    requests: int
    units: int
    requests_per_s: float
    span_s: float
    value: float
    std: float
    design_effect: float
    unit_size_cv: float
    variance_left: float
    note: str = ""

    @property
    def requests_per_unit(self) -> float:
        """On average."""
        return self.requests / self.units


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedExperiment:
    """What an experiment takes, and what that was worked out from."""

    metric: Metric
    observed: ObservedTraffic
    plan: ExperimentPlan

    @property
    def unit(self) -> Unit:
        """How the metric's numbers are shown; differences to two digits."""
        return unit_of(self.metric, abs(self.observed.value), abs(self.plan.effect) / 2)

    def in_words(self) -> str:
        """Three sentences with the numbers."""
        seen, plan = self.observed, self.plan
        alike = ""
        if seen.requests > seen.units:
            alike = f", {seen.requests_per_unit:.3g} each, which takes {seen.design_effect:.2f} times as many"
        covariate = (
            "" if seen.variance_left >= 1 else f"; {self.metric.covariate} takes out {1 - seen.variance_left:.0%}"
        )
        time = "" if plan.duration_s is None else f", {_time(plan.duration_s)} at {seen.requests_per_s:.3g} requests/s"
        usual = ""
        if plan.expected_n is not None and plan.expected_n < plan.n:
            usual = f", {plan.expected_n:,} on average if the difference is there"
        return (
            f"{self.metric.name} of {seen.version} is {self.unit.value(seen.value)} on {seen.requests:,} requests of "
            f"{seen.units:,} units{alike}{covariate}. Finding {self.unit.difference(plan.effect)} with a chance of "
            f"{plan.power:.0%} at α = {plan.alpha:g} ({plan.horizon}, {plan.share:.0%} on the candidate) takes "
            f"{'at most ' if plan.expected_n != plan.n else ''}{plan.n:,} requests in both arms, of {plan.units:,} "
            f"units{time}{usual}.{' ' + seen.note if seen.note else ''}"
        )

    def chart(self, **size: float) -> Chart:
        """Chance to find the effect, and the effect that is found, by the number of requests; see `power_chart`."""
        from abswitch.experiments.power_chart import power_chart

        return power_chart(self.plan, name=self.metric.name, unit=self.unit, **size)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        found: dict[str, Any] = finite(asdict(self.observed))
        return {"metric": metric_to_dict(self.metric), "observed": found, "plan": self.plan.to_dict()}


def plan(
    source: SwitchingEngine | Recorder | Reader | Path | str,
    metric: Metric,
    *,
    effect: float | None = None,
    share: float = 0.5,
    horizon: str = ANYTIME,
    looks: int = _FIVE,
    alpha: float = 0.05,
    power: float = POWER,
    model_id: str | None = None,
    version: str | None = None,
    last_hours: float | None = None,
) -> PlannedExperiment:
    """Plan an experiment from the traffic that a store has logged.

    Request rate, the metric's value and spread, how alike the requests of a unit are and what a covariate saves are
    read from the requests of the version that serves as the stable one; its arm is what the candidate is compared with.

    Args:
        source: an engine, its store, `abswitch.read(path)`, or a path.
        metric: with conditions, covariate and unit as the experiment will have them; not `Paired`.
        effect: the smallest difference worth finding, candidate − baseline, in the metric's own unit; not 0. By default
            the metric's margin, on the side that is better where a rate leaves room for it.
        share: the candidate's fraction of units.
        horizon: `fixed`, `group-sequential` or `anytime`, see `plan_experiment`.
        looks: of `group-sequential`: how many, evenly spread.
        alpha: two-sided error rate.
        power: chance to find the effect.
        model_id: not needed with an engine or a store that know one model.
        version: by default the active one, or the one that was stable last.
        last_hours: how far back from the last request; all there is by default. A pause within makes the rate low.

    Returns:
        A `PlannedExperiment`; numbers of requests count those that have a value of the metric.

    Raises:
        InvalidInput: an argument outside its range, no such model or version, nothing was logged, or what was logged
            does not vary or is too little for the metric; says which.
        StoreError: the store cannot be read.
    """
    metric = metric_of(metric)
    wanted = _effect(metric, effect)
    with store_of(source) as store:
        model_id, version = defaults_of(source, model_id, version)
        logged = find_logged(store, model_id=model_id, version=version, last_hours=last_hours)
        found = measure_logged(store, logged, metric)
    observed = _observed(metric, logged, found)
    traffic = Traffic(
        share=share,
        requests_per_s=observed.requests_per_s if observed.requests_per_s > 0 else None,
        requests_per_unit=observed.requests_per_unit,
        unit_size_cv=observed.unit_size_cv,
        measured_design_effect=observed.design_effect,
    )
    is_rate = isinstance(metric, Rate)
    if effect is None and is_rate and not 0 <= observed.value + wanted <= 1:
        wanted = -wanted
    planned = plan_experiment(
        wanted,
        std=None if is_rate else observed.std,
        baseline_rate=observed.value if is_rate else None,
        traffic=traffic,
        horizon=horizon,
        looks=looks if horizon == GROUP_SEQUENTIAL else None,
        covariate_correlation=min(0.9999, math.sqrt(max(0.0, 1 - observed.variance_left))),
        alpha=alpha,
        power=power,
    )
    return PlannedExperiment(metric=metric, observed=observed, plan=planned)


@contextmanager
def store_of(source: SwitchingEngine | Recorder | Reader | Path | str) -> Iterator[RowSource]:
    """The store behind what a caller gave; one that was opened here is closed again.

    Raises:
        InvalidInput: nothing that has a store.
        StoreError: there is no store at the path.
    """
    from abswitch.store.reader import open_readonly

    if isinstance(source, Path | str):
        with open_readonly(source) as reader:
            yield reader
        return
    store: Any = getattr(source, "store", source)
    if not callable(getattr(store, "rows", None)):
        raise InvalidInput("source", source, "an engine, its store, a reader of one, or a path")
    yield store


def defaults_of(source: object, model_id: str | None, version: str | None) -> tuple[str | None, str | None]:
    """What an engine knows by itself."""
    registry = getattr(source, "registry", None)
    if registry is None:
        return model_id, version
    model = registry.resolve_model(model_id)
    return model, version or registry.active_version(model)


def _effect(metric: Metric, effect: float | None) -> float:
    if effect is None:
        if metric.margin is None:
            raise InvalidInput("effect", None, f"a number other than 0, as {metric.name} has no margin to go by")
        return metric.sign * metric.margin
    if checks.number("effect", effect) == 0:
        raise InvalidInput("effect", effect, "a number other than 0; no number of requests tells equals apart")
    return effect


def _observed(metric: Metric, logged: Logged, found: LoggedMetric) -> ObservedTraffic:
    needs_values("metric", metric, found)
    value, plain, by_unit, adjusted = _errors(metric, found)
    is_rate = isinstance(metric, Rate)
    spread = math.sqrt(value * (1 - value)) if is_rate else plain * math.sqrt(found.counted)
    unseen = is_rate and found.repeated and not spread  # with no event, nothing says how alike a unit's requests are
    return ObservedTraffic(
        model_id=logged.model_id,
        version=logged.version,
        requests=found.counted,
        units=found.units,
        requests_per_s=logged.requests_per_s * found.counted / logged.requests,
        span_s=logged.span_s,
        value=value,
        std=spread,
        design_effect=max(1.0, (by_unit / plain) ** 2) if found.repeated and not unseen else 1.0,
        unit_size_cv=found.unit_size_cv,
        variance_left=1.0 if unseen else min(1.0, (adjusted / by_unit) ** 2),
        note=_NO_EVENT if unseen else "",
    )


def _errors(metric: Metric, found: LoggedMetric) -> tuple[float, float, float, float]:
    """The metric's value, and its standard error in one arm: by requests, by units, and with the covariate."""
    values, errors = [], []
    for summary in (found.plain, found.by_unit, found.adjusted):
        value, error = _error(metric, summary)
        values.append(value)
        errors.append(error)
    return values[1], errors[0], errors[1], errors[2]


def _error(metric: Metric, summary: MetricSummary) -> tuple[float, float]:
    """Of a difference between two arms like this one, as the experiment will compute it, over √2."""
    same = metric.compare(summary, summary, alpha=0.05)
    if not same.attainable or not same.standard_error > 0:
        raise InvalidInput("metric", metric.name, f"a metric with a result: {same.why_not or 'it does not vary'}")
    return same.baseline.value, same.standard_error / math.sqrt(2)


def _time(seconds: float) -> str:
    for size, name in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.0f} s"
