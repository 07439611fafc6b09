"""What every report says, whatever its design: traffic, health, examples, settings; as values for its template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from abswitch.engine import SwitchingEngine
from abswitch.experiments.conditions import MOST_ALERTS, VersionHealth, conditions_of
from abswitch.experiments.examples import Example, scorer_of, worst_examples, worst_pairs
from abswitch.experiments.page import duration, size
from abswitch.experiments.subject import Result, Subject

KINDS = {
    "randomised": "A/B test",
    "paired": "Paired comparison",
    "switchback": "Switchback",
    "bandit": "Bandit",
    "canary": "Canary",
}
_FEW = 5
_NOT_A_SETTING = ("model_id", "version")


def shared_parts(
    engine: SwitchingEngine, result: Result, subject: Subject, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything but the verdict and what follows from the design."""
    conditions = conditions_of(engine, subject)
    return {
        "kind": KINDS[subject.design],
        "created": f"{datetime.fromisoformat(summary['created_at']).astimezone(UTC):%d %B %Y, %H:%M} UTC",
        "arms": [{"name": _css(arm.name), "version": arm.version, "role": arm.role} for arm in subject.arms],
        "arm_rows": list(_arm_rows(summary)),
        "switch_rows": list(_switch_rows(summary)),
        "looks_words": looks_words(summary),
        "shares_words": _shares_words(subject),
        "latency": list(_latency(engine, subject)),
        "latency_rows": _LATENCY_ROWS,
        "health": [_health_row(one) for one in conditions.health],
        "alerts": [_alert_row(one, subject.started_at_s) for one in summary["alerts"]],
        "alerts_left_out": max(0, len(conditions.alerts) - MOST_ALERTS),
        **_examples(engine, result, subject),
        "settings": list(_settings(summary)),
        "same_settings": _same_settings(summary),
        "links": _links(summary),
        "extra": [(name, str(value)) for name, value in summary["extra"].items()],
        "environment": [
            (name.replace("_", " "), "not installed" if value is None else str(value))
            for name, value in summary["environment"].items()
        ],
    }


def _css(arm: str) -> str:
    """A class for an arm's colour; a third candidate and those after it share one."""
    return arm if arm in ("stable", "candidate", "candidate-2") else "candidate-3"


def _arm_rows(summary: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    total = sum(arm["assigned"] for arm in summary["arms"].values())
    ratio = summary["verdict"].get("sample_ratio")
    planned = {} if ratio is None else {"baseline": 1 - ratio["expected_share"], "candidate": ratio["expected_share"]}
    if len(summary["arms"]) > 2:
        planned = {}
    for role, arm in summary["arms"].items():
        yield {
            "arm": _css("stable" if role == "baseline" else role),
            "version": arm["version"],
            "assigned": f"{arm['assigned']:,}",
            "planned": f"{planned[role]:.1%}" if role in planned else "–",
            "observed": f"{arm['assigned'] / total:.1%}" if total else "–",
            "analysed": f"{arm['analysed']:,}",
            "failed": f"{arm['failed']:,}",
            "fallbacks": f"{arm['fallbacks']:,}",
        }


def _switch_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    switch, candidate = summary["switch"], summary["versions"]["candidate"]["version"]
    if switch is None:
        return
    rows = (
        (f"every new request goes to {candidate}", switch["routed_s"]),
        (f"first token of a request admitted to {candidate} afterwards", switch["first_token_s"]),
        (f"last request on {summary['versions']['baseline']['version']} ended", switch["drained_s"]),
    )
    for what, seconds in rows:
        yield what, "not yet" if seconds is None else f"after {duration(seconds)}"


def looks_words(summary: Mapping[str, Any]) -> str:
    """Why there is no curve, where there is none; else what it is."""
    most = max((len(curve["points"]) for curve in summary["looks"]), default=0)
    if most > 1:
        return "Every look at the experiment; the interval holds at all of them together, so that looking is no sin."
    if summary["design"] == "canary":
        return "The canary's judge kept no curve of its looks; its steps are in the table above."
    return "The plan allows one look at the data, at its end; there is no curve to follow."


def _shares_words(subject: Subject) -> str:
    if subject.design == "paired":
        return "Every prompt went to both versions; no traffic was split."
    return "No request was routed by shares."


_LATENCY = """
SELECT served_version, count(*), quantile_cont(total_s, [0.5, 0.95, 0.99]), quantile_cont(first_token_s, [0.5, 0.95]),
    sum(output_tokens) / nullif(sum(total_s - first_token_s), 0)
FROM requests
WHERE operation_id = $operation AND error_type IS NULL AND NOT fallback AND arm <> 'pinned' AND admitted_at_s <= $until
GROUP BY served_version
"""
_LATENCY_ROWS = (
    ("n", "answers"),
    ("p50", "half of them within"),
    ("p95", "95% within"),
    ("p99", "99% within"),
    ("first", "first token, half within"),
    ("first95", "first token, 95% within"),
    ("rate", "tokens per second of one answer"),
)


def _latency(engine: SwitchingEngine, subject: Subject) -> Iterator[dict[str, str]]:
    of = {"operation": subject.operation_id, "until": subject.ended_at_s}
    found = {row[0]: row[1:] for row in engine.store.rows(_LATENCY, of)}
    for arm in subject.arms:
        if arm.version not in found:
            continue
        n, totals, firsts, rate = found[arm.version]
        first, first95 = (None, None) if firsts is None else firsts
        yield {
            "arm": _css(arm.name),
            "version": arm.version,
            "n": f"{n:,}",
            **dict(zip(("p50", "p95", "p99"), map(duration, totals), strict=True)),
            "first": duration(first),
            "first95": duration(first95),
            "rate": "–" if rate is None else f"{rate:,.0f}",
        }


def _health_row(one: VersionHealth) -> dict[str, str]:
    error = "" if one.error is None else f"; last seen down: {one.error}"
    return {
        "version": one.version,
        "looks": f"{one.alive:,} of {one.samples:,}" + error,
        "tone": "good" if one.alive == one.samples else "bad",
        "p95": duration(one.latency_p95_s),
        "errors": "–" if one.error_rate is None else f"{one.error_rate:.1%}",
        "rate": "–" if one.requests_per_s is None else f"{one.requests_per_s:,.0f}",
        "waiting": f"{one.waiting:,}",
        "silent": duration(one.silent_s),
        "memory": size(one.memory_bytes) if one.memory_bytes else "–",
    }


def _alert_row(alert: Mapping[str, Any], started_at_s: float) -> dict[str, str]:
    after = max(0.0, alert["fired_at_s"] - started_at_s)
    resolved = alert["resolved_at_s"]
    lasted = "" if resolved is None else f" after {duration(max(0.0, resolved - alert['fired_at_s']))}"
    return {
        "severity": alert["severity"],
        "tone": "bad" if alert["severity"] == "critical" else "open",
        "message": alert["message"],
        "about": " · ".join(filter(None, (alert["metric"], alert["version"]))),
        "when": f"{duration(after)} after the start",
        "state": alert["state"] + lasted,
    }


# --- examples ---------------------------------------------------------------------------------------------------------


def _examples(engine: SwitchingEngine, result: Result, subject: Subject) -> dict[str, Any]:
    scorer = scorer_of(engine, result)
    if subject.design == "paired":
        pairs = [
            {"prompt": right.prompt, "answers": [_answer(left, scorer[0]), _answer(right, scorer[0])]}
            for left, right in worst_pairs(engine, subject, scorer, most=_FEW)
        ]
        return {"pairs": pairs, "columns": [], "examples_words": _order_words(subject, scorer[0])}
    columns = [
        {
            "arm": _css(arm.name),
            "version": arm.version,
            "rows": [
                {"prompt": one.prompt, **_answer(one, scorer[0])}
                for one in worst_examples(engine, subject, arm, scorer, most=_FEW)
            ],
        }
        for arm in subject.arms
    ]
    shown = columns if any(column["rows"] for column in columns) else []
    return {"pairs": [], "columns": shown, "examples_words": _order_words(subject, scorer[0])}


def _order_words(subject: Subject, scorer: str) -> str:
    if subject.design == "paired":
        lost = f"then those where it lost most by {scorer}" if scorer else "then those that took longest"
        return f"The same prompts to both versions: those that {subject.candidate} failed at first, {lost}."
    then = f"then the lowest by {scorer}, then the slowest" if scorer else "then the slowest"
    return f"Failed requests first, {then}; each prompt above its answer."


def _answer(example: Example, scorer: str) -> dict[str, str]:
    score = f"{scorer} {example.score:g}, " if example.score is not None else ""
    told = "failed after " if example.error else score
    answer = example.error if example.error is not None else example.output
    return {"output": "no answer" if answer is None else answer or "(empty)", "note": told + duration(example.total_s)}


# --- settings ---------------------------------------------------------------------------------------------------------


def _settings(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Rows that differ, and those that matter even when they do not."""
    sides = [_flat(version) for version in summary["versions"].values()]
    for name in dict.fromkeys(name for side in sides for name in side):
        values = [side.get(name, "–") for side in sides]
        if len(set(values)) > 1 or name in ("model", "backend"):
            yield name, values


def _same_settings(summary: Mapping[str, Any]) -> str:
    sides = [_flat(version) for version in summary["versions"].values()]
    same = [
        f"{name} {value}"
        for name, value in sides[0].items()
        if name not in ("model", "backend") and all(side.get(name) == value for side in sides)
    ]
    return "The same for all: " + "; ".join(same) + "." if same else ""


def _flat(version: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in version.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": str(inner) for key, inner in value.items()}
        elif value is not None and name not in _NOT_A_SETTING:
            flat[name] = str(value)
    return flat


def _links(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    tracking = summary["tracking"]
    if tracking is None:
        return []
    sink = tracking.get("sink", "MLflow")
    links = ((f"{sink}, both arms side by side", tracking["compare"]), (f"{sink}, all runs", tracking["experiment"]))
    return [(name, address) for name, address in links if address.startswith(("http://", "https://"))]
