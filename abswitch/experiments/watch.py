"""Regression watch: a run held against the last good one of the same experiment; what is worse becomes an alert."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.runs import RunResult
from abswitch.experiments.spec_parts import WatchSpec
from abswitch.stats import MarginOutcome, MeanSummary, Metric, RateSummary, RatioSummary, Role, harm_test
from abswitch.stats.comparison import finite

log = logging.getLogger(__name__)
_KINDS: Mapping[str, Any] = {cls.__name__: cls for cls in (MeanSummary, RateSummary, RatioSummary)}
_POST_TIMEOUT_S = 10.0


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
        return (
            f"{self.metric} of the {self.arm} ({self.version}) is {self.now:.4g}, it was {self.before:.4g} in run "
            f"{self.against}: worse by more than {self.margin:g} (difference {self.low:+.4g} to {self.high:+.4g})"
        )


def watched(result: ABTestResult) -> dict[str, Any]:
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
) -> tuple[Regression, ...]:
    """Every watched metric that is worse than in the good run, by more than its margin, beyond chance.

    Args:
        now: `watched` of the new run.
        good: the last good run.
        metrics: the spec's.

    Returns:
        In the order of arms and metrics. Metrics that either run has no values of are left out: an empty sample says
        nothing, and the new run's verdict is `invalid` then.
    """
    found = []
    for arm in watch.arms:
        before = (good.watched or {}).get(arm, {}).get("summaries", {})
        for metric in _chosen(metrics, watch):
            pair = before.get(metric.name), now[arm]["summaries"].get(metric.name)
            if pair[0] is None or pair[1] is None or pair[0]["kind"] != pair[1]["kind"]:
                continue
            try:
                found += _compared(arm, now[arm]["version"], metric, pair[0], pair[1], watch.alpha, good.run_id)
            except TypeError as error:  # the earlier run's file is of another version of abswitch
                log.warning("%s is not compared with run %s: %s", metric.name, good.run_id, error)
    return tuple(found)


def _chosen(metrics: Sequence[Metric], watch: WatchSpec) -> list[Metric]:
    if watch.metrics is None:
        return [metric for metric in metrics if metric.role != Role.SECONDARY]
    return [metric for metric in metrics if metric.name in watch.metrics]


def _compared(
    arm: str, version: str, metric: Metric, before: Any, now: Any, alpha: float, against: str
) -> list[Regression]:
    comparison = metric.compare(_summary(before), _summary(now), alpha=alpha)
    margin = metric.margin or 0.0
    if harm_test(comparison, direction=metric.direction, margin=margin).outcome is not MarginOutcome.SHOWN:
        return []
    return [
        Regression(
            arm=arm,
            version=version,
            metric=metric.name,
            before=comparison.baseline.value,
            now=comparison.candidate.value,
            low=comparison.low,
            high=comparison.high,
            margin=margin,
            against=against,
        )
    ]


def _summary(plain: Mapping[str, Any]) -> Any:
    values = {name: float("nan") if value is None else value for name, value in plain.items() if name != "kind"}
    return _KINDS[plain["kind"]](**values)


def send_alerts(experiment: str, run_id: str, alerts: Sequence[str], watch: WatchSpec) -> bool:
    """Log each alert, and post them to the webhook where the spec names one.

    The body is `{"text": …, "experiment": …, "run_id": …, "alerts": […]}`; `text` is what chat services show.

    Returns:
        Whether everybody who was to be told was. A webhook that cannot be reached never fails the run.
    """
    for alert in alerts:
        log.warning("regression in %s, run %s: %s", experiment, run_id, alert)
    if watch.webhook_env is None or not alerts:
        return True
    address = os.environ.get(watch.webhook_env, "")
    if not address.startswith(("http://", "https://")):
        log.error("the alerts of %s were not posted: %s holds no http address", experiment, watch.webhook_env)
        return False
    text = f"abswitch: {experiment} is worse than its last good run\n" + "\n".join(f"• {alert}" for alert in alerts)
    body = {"text": text, "experiment": experiment, "run_id": run_id, "alerts": list(alerts)}
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_POST_TIMEOUT_S):
            return True
    except (urllib.error.URLError, OSError, ValueError) as error:
        log.error("the alerts of %s were not posted: %s", experiment, error)
        return False
