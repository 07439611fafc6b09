"""Regression watch: a run held against the last good one of the same experiment; what is worse becomes an alert."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abswitch.errors import InvalidInput
from abswitch.experiments.runs import RunResult
from abswitch.experiments.spec_parts import WatchSpec
from abswitch.experiments.trial import ExperimentResult
from abswitch.serving.webhook import post
from abswitch.stats import (
    CovariateSummary,
    MarginOutcome,
    MeanSummary,
    Metric,
    MetricSummary,
    QuantileSummary,
    RateSummary,
    RatioCovariateSummary,
    RatioSummary,
    Role,
    harm_test,
)
from abswitch.stats.comparison import finite
from abswitch.stats.kinds import observations

log = logging.getLogger(__name__)
_FLAT: Mapping[str, Any] = {cls.__name__: cls for cls in (MeanSummary, RateSummary, RatioSummary, CovariateSummary)}
_KINDS = frozenset({*_FLAT, QuantileSummary.__name__, RatioCovariateSummary.__name__})
_POST_TIMEOUT_S = 10.0
_ATTEMPTS = 4
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """One metric of one arm that is worse than it was.

    Attributes:
        before, now: the values then and now.
        low, high: interval of the difference, now minus before.
        margin: how much worse was still accepted; 0 where the metric has none.
    """

    arm: str
    version: str
    metric: str
    before: float
    now: float
    low: float
    high: float
    margin: float
    against: str

    def __str__(self) -> str:
        more = f"worse by more than {self.margin:g}" if self.margin else "worse"
        return (
            f"{self.metric} of the {self.arm} ({self.version}) is {self.now:.4g}, it was {self.before:.4g} in run "
            f"{self.against}: {more} (difference {self.low:+.4g} to {self.high:+.4g})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """One metric of one arm that has no values any more."""

    arm: str
    version: str
    metric: str
    had: int
    against: str

    def __str__(self) -> str:
        return (
            f"{self.metric} of the {self.arm} ({self.version}) has no values; "
            f"in run {self.against} it was of {self.had:,}"
        )


def watched(result: ExperimentResult) -> dict[str, Any]:
    """What a later run is compared with: the summaries of both arms, as JSON values."""
    return {
        role: {
            "version": arm.version,
            "summaries": {
                name: {"kind": type(summary).__name__, **finite(asdict(summary))}
                for name, summary in arm.summaries.items()
                if type(summary).__name__ in _KINDS
            },
        }
        for role, arm in result.evidence.arms
    }


def regressions(
    now: Mapping[str, Any], good: RunResult, metrics: Sequence[Metric], watch: WatchSpec
) -> tuple[Regression | Lost, ...]:
    """Every watched metric that is worse than in the good run, by more than its margin, beyond chance; or that lost all
    its values, which is never a success.

    Both runs count as independent samples, which is careful where they asked the same prompts.

    Args:
        now: `watched` of the new run.
        good: the run to compare with.
        metrics: the spec's.

    Returns:
        In the order of arms and metrics. A metric that the good run did not have, or had as another kind, is left out,
        and logged.
    """
    found: list[Regression | Lost] = []
    for arm in watch.arms:
        before = (good.watched or {}).get(arm, {}).get("summaries", {})
        for metric in watched_metrics(metrics, watch):
            finding = _held_against(metric, arm, before.get(metric.name), now[arm], watch.alpha, good.run_id)
            found += [] if finding is None else [finding]
    return tuple(found)


def watched_metrics(metrics: Sequence[Metric], watch: WatchSpec) -> list[Metric]:
    """Those that are watched: the ones named, or else the primary and the guardrails. `Paired` ones have values of both
    versions together only, which another run cannot be compared with."""
    if watch.metrics is not None:
        return [metric for metric in metrics if metric.name in watch.metrics]
    return [metric for metric in metrics if metric.role != Role.SECONDARY and metric.kind != "paired"]


def _held_against(
    metric: Metric, arm: str, before: Mapping[str, Any] | None, now: Mapping[str, Any], alpha: float, against: str
) -> Regression | Lost | None:
    told = now["summaries"].get(metric.name)
    try:
        had = 0 if before is None else _count(before)
        if before is None or not had:
            log.info("%s of the %s is not watched yet: run %s had no values of it", metric.name, arm, against)
            return None
        if told is None or not _count(told):
            return Lost(arm=arm, version=now["version"], metric=metric.name, had=had, against=against)
        comparison = metric.compare(_summary(before), _summary(told), alpha=alpha)
    except (InvalidInput, TypeError, KeyError) as error:  # the metric is another one by now, or the file is damaged
        log.warning("%s of the %s cannot be compared with run %s: %s", metric.name, arm, against, error)
        return None
    if not comparison.attainable:
        log.warning("%s of the %s cannot be compared with run %s: %s", metric.name, arm, against, comparison.why_not)
        return None
    margin = metric.margin or 0.0
    if harm_test(comparison, direction=metric.direction, margin=margin).outcome is not MarginOutcome.SHOWN:
        return None
    return Regression(
        arm=arm,
        version=now["version"],
        metric=metric.name,
        before=comparison.baseline.value,
        now=comparison.candidate.value,
        low=comparison.low,
        high=comparison.high,
        margin=margin,
        against=against,
    )


def _count(plain: Mapping[str, Any]) -> int:
    return observations(_summary(plain))


def _summary(plain: Mapping[str, Any]) -> MetricSummary:
    fields = {name: value for name, value in plain.items() if name != "kind"}
    if plain["kind"] == QuantileSummary.__name__:
        shares = fields.pop("shares")
        sides = None if shares is None else tuple(RatioSummary(**_numbers(one)) for one in shares)
        fields |= {name: tuple(fields[name]) for name in ("values", "counts")}
        return QuantileSummary(**fields, shares=sides)  # type: ignore[arg-type]  # both sides, as they were written
    if plain["kind"] == RatioCovariateSummary.__name__:
        ratio = RatioSummary(**_numbers(fields.pop("ratio")))
        return RatioCovariateSummary(ratio, **_numbers(fields))
    summary: MetricSummary = _FLAT[plain["kind"]](**_numbers(fields))
    return summary


def _numbers(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float("nan") if value is None else value for name, value in plain.items()}


def send_alerts(
    experiment: str, alerts: Sequence[str], watch: WatchSpec, *, run_id: str = "", headline: str = ""
) -> str | None:
    """Log each alert, and post them to the webhook where the spec names one; try again where that can help.

    The body is `{"text": …, "experiment": …, "run_id": …, "alerts": […]}`; `text` is what chat services show.

    Args:
        headline: in place of "… is worse than its last good run".

    Returns:
        Why they were not posted, None where they were or nobody is to be told. A webhook never fails a run.
    """
    for alert in alerts:
        log.warning("%s %s: %s", experiment, run_id, alert)
    if watch.webhook_env is None or not alerts:
        return None
    address = os.environ.get(watch.webhook_env, "")
    if not address.startswith(("http://", "https://")):
        problem: str | None = f"the environment has no http address in {watch.webhook_env}"
    else:
        first = headline or f"{experiment} is worse than its last good run"
        text = f"abswitch: {first}\n" + "\n".join(f"• {alert}" for alert in alerts)
        body = {"text": text, "experiment": experiment, "run_id": run_id, "alerts": list(alerts)}
        problem = _posted(address, json.dumps(body).encode())
    if problem is not None:
        log.error("the alerts of %s were not posted: %s", experiment, problem)
    return problem


def _posted(address: str, content: bytes) -> str | None:
    """Why it was not, after some attempts; an address may be secret, so it is not told."""
    problem: str | None = None
    for attempt in range(_ATTEMPTS):
        problem, again = post(address, content, {}, timeout_s=_POST_TIMEOUT_S)
        if problem is None or not again:
            break
        if attempt < _ATTEMPTS - 1:
            threading.Event().wait(_PAUSE_S * 2.0**attempt)
    return problem
