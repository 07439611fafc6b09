"""The figure of a verdict: every metric's estimate in both arms, and the difference against its margin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from abswitch.experiments.chart import WIDE_IN, Chart, style
from abswitch.experiments.palette import BAD, BASELINE, CANDIDATE, GOOD, GRID, INK, MUTED, OPEN
from abswitch.experiments.readings import Reading, readings_of
from abswitch.stats import AnalysisPlan, ArmEstimate, Comparison, Role, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW_IN, _ROW_TITLE_IN = 1.36, 0.3
_BASELINE_Y, _CANDIDATE_Y, _DIFFERENCE_Y = 1.2, 0.0, 0.45
_TONES = {"good": GOOD, "bad": BAD, "open": OPEN}


def estimates_chart(plan: AnalysisPlan, verdict: Verdict, *, width_in: float = WIDE_IN) -> Chart:
    """One row a metric: on the left both arms with their intervals, on the right the difference with its own.

    The right side shades what the margin allows; an interval clear of zero is a difference.
    """
    readings = readings_of(plan, verdict)
    primary = next(reading for reading in readings if reading.metric is plan.primary)
    what = (
        f"Estimates with {1 - plan.alpha:.0%} intervals: {plan.baseline} (blue) and {plan.candidate} (orange), and the "
        "difference; shaded: within the margin"
    )
    chart = Chart(_finding(primary, plan), what, plot_in=_ROW_IN * len(readings), width_in=width_in)
    for index, reading in enumerate(readings):
        _draw_row(chart, index, len(readings), reading, plan)
    return chart


def _finding(primary: Reading, plan: AnalysisPlan) -> str:
    if primary.comparison is None or not primary.comparison.attainable:
        return f"{primary.name} could not be compared"
    return (
        f"{primary.name} {primary.baseline.value} with {plan.baseline}, {primary.candidate.value} with "
        f"{plan.candidate}: {primary.finding}"
    )


def _draw_row(chart: Chart, index: int, rows: int, reading: Reading, plan: AnalysisPlan) -> None:
    top_in = _ROW_IN * (rows - index) + 0.12
    left_in, middle_in, right_in = 0.12, chart.width_in * 0.53, chart.width_in - 0.12
    name = _short(reading.name, chart.width_in)
    for x_in, text, color, side in (
        (left_in, name, INK, "left"),
        (right_in, reading.finding, _TONES[reading.tone], "right"),
    ):
        x, y = x_in / chart.width_in, (top_in - 0.1) / chart.height_in
        chart.text(x, y, text, fontsize=9.5, weight="bold", color=color, va="top", ha=side)
    if reading.comparison is None:
        return
    arms = _row_axes(chart, left_in + 0.3, middle_in - 0.15, top_in)
    _draw_arm(arms, _BASELINE_Y, reading.comparison.baseline, reading, BASELINE, plan.baseline)
    _draw_arm(arms, _CANDIDATE_Y, reading.comparison.candidate, reading, CANDIDATE, plan.candidate)
    _scale(arms, reading, signed=False)
    difference = _row_axes(chart, middle_in + 0.15, right_in - 0.1, top_in)
    if reading.comparison.attainable:
        _draw_difference(difference, reading, reading.comparison)
    else:
        difference.set_axis_off()


def _row_axes(chart: Chart, left_in: float, right_in: float, top_in: float) -> Axes:
    width, height = chart.width_in, chart.height_in
    low_in = top_in - _ROW_IN + 0.32
    axes = chart.add_axes(
        (left_in / width, low_in / height, (right_in - left_in) / width, (top_in - _ROW_TITLE_IN - low_in) / height)
    )
    style(axes)
    axes.grid(visible=False)
    axes.set_ylim(-0.5, 2.0)
    axes.set_yticks([])
    axes.spines["bottom"].set_color(GRID)
    return axes


def _draw_arm(axes: Axes, y: float, arm: ArmEstimate, reading: Reading, color: str, version: str) -> None:
    if not math.isfinite(arm.value):
        return
    if math.isfinite(arm.low) and math.isfinite(arm.high):
        axes.plot([arm.low, arm.high], [y, y], color=color, linewidth=2.4, solid_capstyle="round")
    axes.plot([arm.value], [y], "o", color=color, markersize=6.5)
    axes.annotate(
        f"{_short(version, 3.0)}  {reading.unit.value(arm.value)}", (arm.value, y), xytext=(0, 5),
        textcoords="offset points", ha="center", va="bottom", fontsize=8.5, color=INK,
    )  # fmt: skip


def _draw_difference(axes: Axes, reading: Reading, found: Comparison) -> None:
    from matplotlib.patheffects import withStroke

    color = _TONES[reading.tone]
    axes.plot(
        [found.low, found.high], [_DIFFERENCE_Y, _DIFFERENCE_Y], color=color, linewidth=2.4, solid_capstyle="round"
    )
    axes.plot([found.estimate], [_DIFFERENCE_Y], "D", color=color, markersize=6)
    axes.annotate(
        reading.difference.value, (found.estimate, _DIFFERENCE_Y), xytext=(0, 6), textcoords="offset points",
        ha="center", va="bottom", fontsize=8.5, color=INK, path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip
    margin = reading.metric.margin
    reach = max(abs(found.low), abs(found.high), *([margin] if margin and margin < 3 * _reach(found) else []))
    axes.set_xlim(-1.25 * reach, 1.25 * reach)
    axes.axvline(0.0, color=MUTED, linewidth=1.0)
    if margin is not None:
        _shade(axes, reading, margin)
    _scale(axes, reading, signed=True)


def _reach(found: Comparison) -> float:
    return max(abs(found.low), abs(found.high))


def _shade(axes: Axes, reading: Reading, margin: float) -> None:
    left, right = axes.get_xlim()
    low, high = (-margin, margin)
    if reading.metric.role == Role.GUARDRAIL:  # a guardrail may be as much better as it likes
        low, high = (-margin, right) if reading.metric.sign > 0 else (left, margin)
    axes.axvspan(max(low, left), min(high, right), color="#009e73", alpha=0.12, linewidth=0)


def _scale(axes: Axes, reading: Reading, *, signed: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if not signed:
        axes.margins(x=0.28)
    scale = reading.unit.scale
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value * scale:{'+' if signed and value else ''},.4g}".replace("-", "−"))
    )


def _short(name: str, width_in: float) -> str:
    """The name, cut where it would run into what stands to the right of it."""
    longest = max(8, int((width_in - 1.6) / 0.085))
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
