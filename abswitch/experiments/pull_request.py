"""`pull_request`: an experiment in Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.canary import CanaryResult
from abswitch.experiments.page import duration, visible
from abswitch.experiments.readings import readings_of
from abswitch.experiments.report_comparison import headline, leading
from abswitch.experiments.subject import Result

_SPECIAL = re.compile(r"([\\`*\[\]|])")


def pull_request(summary: Mapping[str, Any], result: Result) -> str:
    """Verdict, estimates and checks as GitHub and GitLab show them; details are folded away.

    Args:
        summary: the content of `summary.json`.
    """
    return "\n".join(_lines(summary, result)) + "\n"


def _lines(summary: Mapping[str, Any], result: Result) -> Iterator[str]:
    requests = summary["requests"]
    yield f"### {plain(result.headline if isinstance(result, CanaryResult) else headline(result))}"
    yield ""
    yield from _steps(summary) if isinstance(result, CanaryResult) else _estimates(result)
    yield ""
    lost = "none lost" if not requests["lost"] else f"**{requests['lost']:,} lost**"
    yield (
        f"{requests['answered']:,} of {requests['sent']:,} requests answered, {requests['failed']:,} failed, {lost}; "
        f"model `{summary['model_id']}`, `{summary['versions']['baseline']['version']}` against "
        f"{_candidates(summary)}, {duration(summary['elapsed_s'])}."
    )
    alerts = summary["alerts"]
    if alerts:
        yield ""
        yield f"**{len(alerts):,} alert(s) fired meanwhile**, the first: {plain(alerts[0]['message'])}"
    yield ""
    yield "<details><summary>Why, and how it can be checked</summary>"
    yield ""
    yield from (f"- {plain(reason)}" for reason in _reasons(result))
    yield from _checks(summary)
    yield ""
    yield "</details>"


def _candidates(summary: Mapping[str, Any]) -> str:
    return ", ".join(f"`{one['version']}`" for role, one in summary["versions"].items() if role != "baseline")


def _reasons(result: Result) -> tuple[str, ...]:
    return (result.reason,) if isinstance(result, CanaryResult) else leading(result)[1].reasons


def _estimates(result: ABTestResult) -> Iterator[str]:
    plan = result.plan
    for version, verdict in result.verdicts.items():
        if len(result.verdicts) > 1:
            yield f"**{plain(verdict.headline)}**"
            yield ""
        yield f"| metric | `{plan.baseline}` | `{version}` | difference | interval | finding |"
        yield "|---|---:|---:|---:|---|---|"
        for reading in readings_of(plan, verdict):
            yield (
                f"| {plain(reading.name)}, {reading.metric.role} | {reading.baseline.value} | "
                f"{reading.candidate.value} | {reading.difference.value} | {reading.interval} | {reading.finding} |"
            )
        yield ""
    yield f"{100 * (1 - plan.alpha):.4g}% intervals; differences are candidate minus baseline."


def _steps(summary: Mapping[str, Any]) -> Iterator[str]:
    if not summary["steps"]:
        yield "No step was reached."
        return
    yield "| step | share | requests of the candidate | failed | p95 | how it ended |"
    yield "|---:|---:|---:|---:|---:|---|"
    for step in summary["steps"]:
        side = step["candidate"]
        yield (
            f"| {step['step'] + 1} | {step['share']:.0%} | {side['requests']:,} | {side['failed']:,} | "
            f"{duration(side['latency_p95_s'])} | {plain(step['outcome'])} |"
        )


def _checks(summary: Mapping[str, Any]) -> Iterator[str]:
    if summary["plan_digest"]:
        yield f"- Plan `{summary['plan_digest']}`, stored before the first exposure."
    yield f"- Operation `{summary['operation_id']}`."
    packages = (f"{name} {value}" for name, value in summary["environment"].items() if value is not None)
    yield "- " + plain(", ".join(packages)) + "."


def plain(text: str) -> str:
    """Text on one line that is neither Markdown nor HTML."""
    shown = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", " ".join(shown.split()))
