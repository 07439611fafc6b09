"""`write_report`: one experiment as a page that needs nothing but itself, as JSON for programs, and as Markdown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch.engine import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.experiments import page, report_comparison
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.canary import CanaryResult
from abswitch.experiments.files import to_json, write_atomically
from abswitch.experiments.looks import Curve, curves_of, leading
from abswitch.experiments.pull_request import pull_request
from abswitch.experiments.readings import Unit, readings_of
from abswitch.experiments.report_canary import canary_parts
from abswitch.experiments.report_parts import shared_parts
from abswitch.experiments.subject import Result, Subject, subject_of
from abswitch.experiments.summary import summary_of
from abswitch.experiments.timing import SwitchTiming

if TYPE_CHECKING:
    from abswitch.experiments.chart import Chart

PAGE, SUMMARY, PULL_REQUEST = "index.html", "summary.json", "pull_request.md"
FIGURES = ("estimates", "looks", "shares", "traffic", "latency")
_ON_THE_PAGE = FIGURES[1:]  # its table draws the estimates


def write_report(
    engine: SwitchingEngine,
    result: Result,
    folder: Path | str,
    *,
    switch: SwitchTiming | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `index.html` (readable offline, nothing is loaded from anywhere), `summary.json`, `pull_request.md` and a
    PNG of each figure, for whatever design. docs/reports.md says what is where.

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
    subject = subject_of(result)
    drawings = dict(_Drawing(engine, result, subject).all())
    files = sorted({*(f"{name}.png" for name in drawings), PAGE, SUMMARY, PULL_REQUEST, *_beside(target)})
    summary = summary_of(engine, result, switch=switch, extra=extra or {}, created_at_s=time.time(), files=files)
    content = _checked_json(summary)
    html = _page(engine, result, subject, summary, drawings, is_run=(target / "run.json").is_file())
    target.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        if name in drawings:
            write_atomically(target / f"{name}.png", drawings[name][0].png())
        else:
            (target / f"{name}.png").unlink(missing_ok=True)  # of an earlier report
    write_atomically(target / PULL_REQUEST, pull_request(summary, result).encode())
    write_atomically(target / PAGE, html)
    write_atomically(target / SUMMARY, content)
    return target / PAGE


def _checked_json(summary: Mapping[str, Any]) -> bytes:
    try:
        return to_json(summary)
    except (TypeError, ValueError) as error:
        raise InvalidInput("extra", summary["extra"], f"JSON values only ({error})") from error


def _beside(folder: Path) -> list[str]:
    """What a run leaves in its folder by itself."""
    names = ("evidence.duckdb", "spec.json")
    found = [name for name in names if (folder / name).is_file()]
    return found + [path.name for path in folder.glob("*.ipynb")]


class _Drawing:
    """The figures of a report: each for its own file, and once more in the width that the page shows it in."""

    def __init__(self, engine: SwitchingEngine, result: Result, subject: Subject) -> None:
        self._engine, self._result, self._subject = engine, result, subject

    def all(self) -> Iterator[tuple[str, tuple[Chart, Chart | None]]]:
        """(name, (wide, for the page, where it is on it)) of those that there is something to draw for."""
        from abswitch.experiments.chart import WIDE_IN

        for name in FIGURES:
            wide = self._draw(name, WIDE_IN)
            if wide is not None:
                yield name, (wide, self._draw(name, page.PAGE_IN) if name in _ON_THE_PAGE else None)

    def _draw(self, name: str, width_in: float) -> Chart | None:
        from abswitch.experiments.forest import estimates_chart
        from abswitch.experiments.shares import shares_chart
        from abswitch.experiments.traffic import latency_chart, traffic_chart

        engine, result, subject = self._engine, self._result, self._subject
        if name == "estimates":
            if isinstance(result, CanaryResult):
                return None
            return estimates_chart(*report_comparison.leading(result), width_in=width_in)
        if name == "looks":
            return self._looks(width_in)
        if name == "shares":
            return shares_chart(engine, subject, width_in=width_in) if subject.design != "paired" else None
        if not result.requests.sent:
            return None
        return (traffic_chart if name == "traffic" else latency_chart)(engine, subject, width_in=width_in)

    def _looks(self, width_in: float) -> Chart | None:
        from abswitch.experiments.looks import looks_chart

        curves = leading(curves_of(self._engine, self._subject.operation_id))
        if not curves:
            return None
        versions = {arm.name: arm.version for arm in self._subject.arms}
        unit, margin = _unit_of(self._result, curves[0])
        return looks_chart(curves, versions, unit, margin=margin, width_in=width_in)


def _unit_of(result: Result, curve: Curve) -> tuple[Unit, float | None]:
    """How a curve's metric is shown, and its margin."""
    if isinstance(result, ABTestResult):
        for reading in readings_of(result.plan, result.verdict):
            if reading.name == curve.metric:
                return reading.unit, reading.metric.margin
    return Unit(), None


def _page(
    engine: SwitchingEngine,
    result: Result,
    subject: Subject,
    summary: Mapping[str, Any],
    drawings: Mapping[str, tuple[Chart, Chart | None]],
    *,
    is_run: bool,
) -> bytes:
    shown = {name: drawings[name][1] if name in drawings else None for name in _ON_THE_PAGE}
    parts = (
        canary_parts(summary, result)
        if isinstance(result, CanaryResult)
        else report_comparison.comparison_parts(summary, result)
    )
    return page.render(
        "report.html.j2",
        s=summary,
        figures={name: None if chart is None else page.figure(chart) for name, chart in shown.items()},
        is_run=is_run,
        **shared_parts(engine, result, subject, summary),
        **parts,
    )
