"""The part of a report that a canary fills: where it stands, what each of its steps showed, and every move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from abswitch.experiments.canary import CanaryResult
from abswitch.experiments.page import duration
from abswitch.experiments.readings import p_words
from abswitch.experiments.report_comparison import answered

_TONES = {"promote": "good", "roll back": "bad"}


def canary_parts(summary: Mapping[str, Any], result: CanaryResult) -> dict[str, Any]:
    """What the template needs of a canary."""
    scorers = sorted({name for step in summary["steps"] for side in _SIDES for name in step[side]["scores"]})
    return {
        "headline": result.headline,
        "decision": result.decision,
        "reasons": _clauses(result.reason),
        "tone": _TONES.get(result.decision, "open"),
        "rule": None,
        "lead": _lead(result),
        "highlights": list(_highlights(summary, result)),
        "estimates": [],
        "interval_words": "",
        "validity": list(_validity(summary)),
        "steps": [_step_row(step, scorers) for step in summary["steps"]],
        "step_scores": scorers,
        "moves": list(_moves(summary, result)),
        "split_words": "Units by arm, over all steps; a unit that met the candidate stays with it as the share grows",
        "plan_rows": list(_strategy_rows(summary)),
        "plan_words": "",
    }


_SIDES = ("baseline", "candidate")


def _highlights(summary: Mapping[str, Any], result: CanaryResult) -> Iterator[tuple[str, str, str]]:
    status, steps = result.handle.status, summary["steps"]
    most = max((step["share"] for step in steps), default=0.0)
    yield "highest share", f"{most:.0%}", f"step {len(steps)} of {status.stages}"
    yield answered(summary)
    requests, failed = (sum(step["candidate"][key] for step in steps) for key in ("requests", "failed"))
    rate = "–" if not requests else f"{failed / requests:.1%}"
    yield f"errors of {result.candidate}", rate, f"{failed:,} of {requests:,} requests"
    yield "took", duration(result.elapsed_s), "loading the candidate included"


def _validity(summary: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    ratio = summary["verdict"]["sample_ratio"]
    if ratio is not None:
        believable = "not believable: sample-ratio mismatch" if ratio["mismatch"] else "as the steps planned"
        numbers = f"{ratio['observed_share']:.1%} of new units on the candidate, {ratio['expected_share']:.1%} planned"
        yield not ratio["mismatch"], f"Traffic split {believable} ({numbers}, p {p_words(ratio['p_value'])})."
    requests = summary["requests"]
    yield (
        requests["lost"] == 0,
        f"{requests['sent']:,} requests sent, {requests['answered']:,} answered, {requests['failed']:,} failed, "
        f"{requests['lost']:,} lost.",
    )
    met = summary["arms"]["candidate"]["assigned"]
    yield met > 0, f"{met:,} units met the candidate." if met else "No unit met the candidate: nothing was shown."


def _moves(summary: Mapping[str, Any], result: CanaryResult) -> Iterator[tuple[str, str, str]]:
    """When, what, and at which share; a look that led nowhere is left out."""
    for move in summary["moves"]:
        if move["phase_from"] != move["phase_to"]:
            after = duration(max(0.0, move["at_s"] - result.started_at_s))
            yield f"after {after}", f"{move['phase_from']} → {move['phase_to']}", f"{move['share']:.0%}"


def _step_row(step: Mapping[str, Any], scorers: list[str]) -> dict[str, Any]:
    def both(show: Any) -> str:
        left, right = (show(step[side]) for side in _SIDES)
        return f"{left} → {right}"

    def errors(side: Mapping[str, Any]) -> str:
        return f"{side['failed'] / side['requests']:.1%}" if side["requests"] else "–"

    return {
        "name": f"{step['step'] + 1}",
        "share": f"{step['share']:.0%}",
        "requests": both(lambda side: f"{side['requests']:,}"),
        "errors": both(errors),
        "p95": both(lambda side: duration(side["latency_p95_s"])),
        "scores": [both(lambda side, name=name: _score(side["scores"].get(name))) for name in scorers],
        "outcome": step["outcome"],
        "tone": _tone(step["outcome"]),
        "why": _clauses(step["why"]) if step["why"] else [],
    }


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _tone(outcome: str) -> str:
    return {"sent back": "bad", "next step": "good", "promoted": "good"}.get(outcome, "open")


def _lead(result: CanaryResult) -> str:
    status = result.handle.status
    return {
        "promote": f"{result.candidate} kept every guardrail through {status.stages} steps, and has all the traffic.",
        "roll back": f"{result.baseline} has all the traffic again.",
        "hold": f"It stands at step {status.stage + 1} of {status.stages}, with {status.share:.0%} of the traffic.",
    }[result.decision]


def _clauses(reason: str) -> list[str]:
    """The judge's findings, one by one; it joins them with semicolons."""
    return [f"{clause[:1].upper()}{clause[1:]}." for clause in reason.rstrip(".").split("; ") if clause]


def _strategy_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in (summary["strategy"] or {}).items():
        if name == "guardrails":
            for rail in value:
                limits = ", ".join(f"{key} {one:g}" for key, one in rail.items() if key != "metric" and one is not None)
                yield f"guardrail: {rail['metric']}", limits
        elif value is not None and not isinstance(value, list | dict):
            yield name.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value)
