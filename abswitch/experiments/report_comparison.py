"""The part of a report that a plan's verdict fills: findings by metric, and whether they can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.bars import bar_of
from abswitch.experiments.page import duration
from abswitch.experiments.readings import Reading, p_words, readings_of
from abswitch.stats import AnalysisPlan, Decision, Verdict

_TONES = {Decision.SHIP: "good", Decision.EQUIVALENT: "good", Decision.KEEP: "bad"}
_UNITS = {"paired": "prompts", "switchback": "blocks"}


def comparison_parts(summary: Mapping[str, Any], result: ABTestResult) -> dict[str, Any]:
    """What the template needs of a comparison."""
    plan, verdict = leading(result)
    return {
        "headline": headline(result),
        "decision": verdict.decision.value,
        "reasons": list(verdict.reasons),
        "tone": _TONES.get(verdict.decision, "open"),
        "rule": verdict.rule,
        "lead": primary_of(result).sentence,
        "highlights": list(_highlights(summary, result)),
        "estimates": list(_estimates(result)),
        "interval_words": f"{100 * (1 - plan.alpha):.4g}% intervals; differences are candidate minus baseline.",
        "validity": list(_validity(summary, result)),
        "steps": [],
        "step_scores": [],
        "moves": [],
        "split_words": _split_words(plan.design),
        "plan_rows": list(_plan_rows(summary)),
        "plan_words": f"The plan was fixed and stored before the first request met {plan.candidate}; its digest is ",
    }


def leading(result: ABTestResult) -> tuple[AnalysisPlan, Verdict]:
    """Of several candidates, the comparison that comes first in a report: the winner's, or the first one's."""
    version = result.plan.candidate if result.winner is None else result.winner
    plan = result.plan if version == result.plan.candidate else replace(result.plan, candidate=version)
    return plan, result.verdicts[version]


def headline(result: ABTestResult) -> str:
    """The verdict in one line; of several candidates, whether one wins."""
    verdict = leading(result)[1]
    if len(result.verdicts) == 1 or result.winner is not None:
        return verdict.headline
    decisions = ", ".join(f"{version}: {one.decision}" for version, one in result.verdicts.items())
    return f"NO WINNER among {len(result.verdicts)} candidates ({decisions})."


def primary_of(result: ABTestResult) -> Reading:
    """The reading of the metric that decides."""
    plan, verdict = leading(result)
    return next(r for r in readings_of(plan, verdict) if r.metric is plan.primary)


def _estimates(result: ABTestResult) -> Iterator[dict[str, Any]]:
    """A group for each candidate, in the order of their arms."""
    for index, (version, verdict) in enumerate(result.verdicts.items()):
        yield {
            "version": version,
            "arm": "candidate" if not index else f"candidate-{min(index + 1, 3)}",
            "headline": verdict.headline if len(result.verdicts) > 1 else "",
            "rows": [{"row": reading, "bar": bar_of(reading)} for reading in readings_of(result.plan, verdict)],
        }


def _highlights(summary: Mapping[str, Any], result: ABTestResult) -> Iterator[tuple[str, str, str]]:
    primary, n = primary_of(result), summary["n"]
    candidate = leading(result)[0].candidate
    yield primary.name, f"{primary.baseline.value} → {primary.candidate.value}", primary.difference.value
    yield answered(summary)
    unit = _UNITS.get(result.plan.design, "units")
    if len(n) == 2:
        yield "compared", f"{n['baseline']:,} + {n['candidate']:,}", f"{unit}, baseline and candidate"
    else:
        yield "compared", f"{sum(n.values()):,}", f"{unit} in {len(n)} arms"
    switch = summary["switch"]
    if switch is not None and switch["first_token_s"] is not None:
        yield "switch", duration(switch["first_token_s"]), f"until the first token of {candidate}"
    else:
        yield "took", duration(result.elapsed_s), "loading the candidate included"


def answered(summary: Mapping[str, Any]) -> tuple[str, str, str]:
    """The highlight of what became of the requests."""
    requests = summary["requests"]
    lost = "none lost" if not requests["lost"] else f"{requests['lost']:,} LOST"
    failed = "none failed" if not requests["failed"] else f"{requests['failed']:,} failed"
    return "requests answered", f"{requests['answered']:,} of {requests['sent']:,}", f"{failed}, {lost}"


def _split_words(design: str) -> str:
    if design == "switchback":
        return "Blocks by arm; within them, failed requests are left out of the comparison of answers"
    left_out = "failed requests, and those that another version answered, are left out of the comparison of answers"
    return f"Units by arm; {left_out}"


def _validity(summary: Mapping[str, Any], result: ABTestResult) -> Iterator[tuple[bool, str]]:
    evidence, requests = result.evidence, result.requests
    for version, verdict in result.verdicts.items():
        yield _split(verdict, f" between {result.plan.baseline} and {version}" if len(result.verdicts) > 1 else "")
    lost = requests.lost
    yield (
        lost == 0,
        f"{requests.sent:,} requests sent, {requests.answered:,} answered, {requests.failed:,} failed, {lost:,} lost.",
    )
    dropped = evidence.dropped_rows
    yield dropped == 0, "Every row of evidence was written." if not dropped else f"{dropped:,} rows were not written."
    same = evidence.plan_digest == summary["plan_digest"]
    yield same, f"The plan {'is the one' if same else 'is NOT the one'} that was stored before the first exposure."
    crossed = evidence.crossed_units
    if result.plan.design == "randomised" or crossed:
        yield crossed == 0, "No unit met both arms." if not crossed else f"{crossed:,} units met both arms."
    raised = sum(sum(arm["score_failures"].values()) for arm in summary["arms"].values())
    yield raised == 0, "No scorer failed." if not raised else f"Scorers failed on {raised:,} answers."


def _split(verdict: Verdict, between: str) -> tuple[bool, str]:
    ratio = verdict.sample_ratio
    believable = "not believable: sample-ratio mismatch" if ratio.mismatch else "as planned"
    return (
        not ratio.mismatch,
        f"Traffic split{between} {believable} ({ratio.method}, p {p_words(ratio.p_value)}, limit {ratio.alpha:g}).",
    )


def _plan_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    plan = summary["plan"]
    yield "design", plan["design"]
    yield "decided by", next(m["name"] for m in plan["metrics"] if m["role"] == "primary")
    yield "alpha", f"{plan['alpha']:g}, two-sided, for every comparison"
    yield (
        "planned",
        f"{plan['planned_n']:,} units in both arms together, {plan['expected_share']:.0%} of them candidate",
    )
    yield "looks", str(plan["looks"])
    for metric in plan["metrics"]:
        margin = "" if metric.get("margin") is None else f", margin {metric['margin']:g}"
        yield f"{metric['role']}: {metric['name']}", f"{metric['kind']}, better when it {metric['direction']}s{margin}"
