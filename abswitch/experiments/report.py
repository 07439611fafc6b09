"""`write_report`: one experiment as a page that needs nothing but itself, and as JSON for programs."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.examples import Example, worst_examples
from abswitch.experiments.readings import Reading, p_words, readings_of
from abswitch.experiments.summary import summary_of, to_json, write_atomically
from abswitch.experiments.timing import SwitchTiming
from abswitch.stats import Decision

if TYPE_CHECKING:
    from abswitch.experiments.chart import Chart

PAGE, SUMMARY = "index.html", "summary.json"
_TONES = {Decision.SHIP: "good", Decision.EQUIVALENT: "good", Decision.KEEP: "bad"}
_ARMS = (("stable", "baseline"), ("candidate", "candidate"))
_FEW, _WIDE, _NARROW = 5, "wide", "narrow"


def write_report(
    engine: SwitchingEngine,
    result: ABTestResult,
    folder: Path | str,
    *,
    switch: SwitchTiming | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `index.html` (readable offline, nothing is loaded from anywhere), `summary.json` and a PNG of each figure.

    Each file is replaced at once, and `summary.json` last: where it is new, the rest is too.

    Args:
        engine: still open; figures and examples are read from its store.
        folder: made when it is not there.
        switch: timing of the promotion that followed, see `switch_timing`.
        extra: further facts for people and programs, by name; JSON values.

    Returns:
        The page.

    Raises:
        InvalidInput: `extra` holds something that is no JSON value; nothing was written.
    """
    target = Path(folder).expanduser().resolve()
    summary = summary_of(engine, result, switch=switch, extra=extra or {}, created_at_s=time.time())
    content = _checked_json(summary)
    charts = dict(_charts(engine, result))
    page = _render(summary, engine, result, charts)
    target.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        write_atomically(target / f"{name}.png", chart[_WIDE].png())
    write_atomically(target / PAGE, page.encode())
    write_atomically(target / SUMMARY, content)
    return target / PAGE


def _checked_json(summary: Mapping[str, Any]) -> bytes:
    try:
        return to_json(summary)
    except (TypeError, ValueError) as error:
        raise InvalidInput("extra", summary["extra"], f"JSON values only ({error})") from error


def _charts(engine: SwitchingEngine, result: ABTestResult) -> Iterator[tuple[str, dict[str, Chart]]]:
    from abswitch.experiments.chart import NARROW_IN, WIDE_IN
    from abswitch.experiments.forest import estimates_chart
    from abswitch.experiments.traffic import latency_chart, traffic_chart

    widths = ((_WIDE, WIDE_IN), (_NARROW, NARROW_IN))
    yield "estimates", {w: estimates_chart(result.plan, result.verdict, width_in=width) for w, width in widths}
    yield "latency", {w: latency_chart(engine, result, width_in=width) for w, width in widths}
    yield "traffic", {w: traffic_chart(engine, result, width_in=width) for w, width in widths}


def _render(
    summary: Mapping[str, Any], engine: SwitchingEngine, result: ABTestResult, charts: Mapping[str, Mapping[str, Chart]]
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("abswitch.experiments", "."), autoescape=True, undefined=StrictUndefined
    )
    created = datetime.fromisoformat(summary["created_at"]).astimezone(UTC)
    return templates.get_template("report.html.j2").render(
        s=summary,
        tone=_TONES.get(result.verdict.decision, "open"),
        created=f"{created:%d %B %Y, %H:%M} UTC",
        lead=_primary(result).sentence,
        highlights=list(_highlights(summary, result)),
        figures={name: _figure(variants) for name, variants in charts.items()},
        estimates=readings_of(result.plan, result.verdict),
        interval_words=f"{1 - result.plan.alpha:.0%} intervals; differences are candidate minus baseline.",
        split=list(_split(result)),
        validity=list(_validity(summary, result)),
        switch_rows=list(_switch_rows(summary)),
        examples=list(_examples(engine, result)),
        settings=list(_settings(summary)),
        same_settings=_same_settings(summary),
        links=_links(summary),
        extra=[(name, str(value)) for name, value in summary["extra"].items()],
        environment=[
            (name.replace("_", " "), "not installed" if value is None else value)
            for name, value in summary["environment"].items()
        ],
    )


def _figure(variants: Mapping[str, Chart]) -> dict[str, str]:
    images = {w: "data:image/svg+xml;base64," + base64.b64encode(c.svg()).decode() for w, c in variants.items()}
    return images | {"finding": variants[_WIDE].finding}


def _primary(result: ABTestResult) -> Reading:
    return next(r for r in readings_of(result.plan, result.verdict) if r.metric is result.plan.primary)


def _highlights(summary: Mapping[str, Any], result: ABTestResult) -> Iterator[tuple[str, str, str]]:
    primary = _primary(result)
    yield primary.name, f"{primary.baseline.value} → {primary.candidate.value}", f"{primary.difference.value}"
    requests = result.requests
    lost = "none lost" if not requests.lost else f"{requests.lost:,} LOST"
    failed = "none failed" if not requests.failed else f"{requests.failed:,} failed"
    yield "requests answered", f"{requests.answered:,} of {requests.sent:,}", f"{failed}, {lost}"
    n = summary["n"]
    yield (
        "compared",
        f"{n['baseline']:,} + {n['candidate']:,}",
        f"with {result.plan.baseline} and {result.plan.candidate}",
    )
    switch = summary["switch"]
    if switch is not None and switch["first_token_s"] is not None:
        yield "switch", _ms(switch["first_token_s"]), f"until the first token of {result.plan.candidate}"


def _split(result: ABTestResult) -> Iterator[dict[str, str]]:
    total = sum(arm.assigned for _, arm in result.evidence.arms)
    share = result.plan.expected_share
    for (arm_name, _), (_, arm), expected in zip(_ARMS, result.evidence.arms, (1 - share, share), strict=True):
        yield {
            "arm": arm_name,
            "version": arm.version,
            "assigned": f"{arm.assigned:,}",
            "analysed": f"{arm.analysed:,}",
            "failed": f"{arm.failed:,}",
            "fallbacks": f"{arm.fallbacks:,}",
            "expected": f"{expected:.1%}",
            "observed": f"{arm.assigned / total:.1%}" if total else "–",
        }


def _validity(summary: Mapping[str, Any], result: ABTestResult) -> Iterator[tuple[bool, str]]:
    ratio, evidence, requests = result.verdict.sample_ratio, result.evidence, result.requests
    believable = "not believable: sample-ratio mismatch" if ratio.mismatch else "as planned"
    yield (
        not ratio.mismatch,
        f"Traffic split {believable} ({ratio.method}, p {p_words(ratio.p_value)}, limit {ratio.alpha:g}).",
    )
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
    yield crossed == 0, "No unit met both arms." if not crossed else f"{crossed:,} units met both arms."
    raised = sum(sum(arm.score_failures.values()) for _, arm in evidence.arms)
    yield raised == 0, "No scorer raised." if not raised else f"Scorers raised on {raised:,} answers."


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
        yield what, "not yet" if seconds is None else f"after {_ms(seconds)}"


def _ms(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.1f} ms" if ms < 99.95 else f"{ms:,.0f} ms"


def _examples(engine: SwitchingEngine, result: ABTestResult) -> Iterator[dict[str, Any]]:
    columns = [(arm, worst_examples(engine, result, arm, most=_FEW)) for arm, _ in _ARMS]
    if not any(rows for _, rows in columns):
        return
    for (arm, rows), version in zip(columns, (result.plan.baseline, result.plan.candidate), strict=True):
        yield {"arm": arm, "version": version, "rows": [_example_words(row, result) for row in rows]}


def _example_words(example: Example, result: ABTestResult) -> dict[str, str]:
    score = f"{result.plan.primary.name} {example.score:g}, " if example.score is not None else ""
    return {
        "prompt": example.prompt,
        "output": example.output if example.output is not None else (example.error or "no answer"),
        "note": ("failed after " if example.error else score) + _ms(example.total_s),
    }


def _settings(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Rows that differ, and those that matter even when they do not."""
    left, right = (_flat(summary["versions"][role]) for _, role in _ARMS)
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name) or name in ("model", "backend"):
            yield name, left.get(name, "–"), right.get(name, "–")


def _same_settings(summary: Mapping[str, Any]) -> str:
    left, right = (_flat(summary["versions"][role]) for _, role in _ARMS)
    same = [f"{name} {value}" for name, value in left.items() if right.get(name) == value]
    hidden = [text for text in same if not text.startswith(("model ", "backend ", "model_id "))]
    return "The same for both: " + "; ".join(hidden) + "." if hidden else ""


def _flat(version: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in version.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": str(inner) for key, inner in value.items()}
        elif value is not None and name not in ("model_id", "version"):
            flat[name] = str(value)
    return flat


def _links(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    tracking = summary["tracking"]
    if tracking is None:
        return []
    sink = tracking.get("sink", "MLflow")
    links = ((f"{sink}, both arms side by side", tracking["compare"]), (f"{sink}, all runs", tracking["experiment"]))
    return [(name, address) for name, address in links if address.startswith(("http://", "https://"))]
