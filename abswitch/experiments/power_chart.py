"""The figure of a plan: the chance to find the effect, and the effect that is found, by the number of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abswitch.experiments.chart import WIDE_IN, Chart, style
from abswitch.experiments.palette import BASELINE, CANDIDATE, INK, MUTED
from abswitch.experiments.readings import Unit
from abswitch.stats import ExperimentPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIDE_BY_SIDE_IN = 6.0
_PLOT_IN, _STACKED_IN = 2.6, 2.25
_GAP_IN = 0.75
_TIMES = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_PLAIN = Unit()


def power_chart(
    plan: ExperimentPlan, *, name: str = "the metric", unit: Unit = _PLAIN, width_in: float = WIDE_IN
) -> Chart:
    """Left: the chance to find the planned effect, right: the smallest effect found with the planned chance.

    Both by the number of requests in both arms; the dot is the plan. Above: how long that takes, where the rate of
    requests is known.

    Args:
        name: of the metric.
        unit: how effects are shown; plain numbers by default.
    """
    effect = unit.difference(plan.effect)
    finding = f"{plan.n:,} requests find {effect} of {name} with a chance of {plan.power:.0%}"
    what = (
        f"By requests in both arms ({plan.share:.0%} on the candidate, α = {plan.alpha:g}, {plan.horizon}): the chance "
        f"to find {effect}, and the smallest difference found with {plan.power:.0%}; dots: the plan"
    )
    stacked = width_in < _SIDE_BY_SIDE_IN
    chart = Chart(finding, what, plot_in=2 * _STACKED_IN if stacked else _PLOT_IN, width_in=width_in)
    top_in = 0.05 if plan.duration_s is None else 0.42
    left, right = (_above_each_other if stacked else _side_by_side)(chart, top_in)
    curve = plan.curve
    left.plot(curve.n, curve.power, color=BASELINE, linewidth=2)
    left.plot([plan.n], [plan.power], "o", color=CANDIDATE, markersize=7, zorder=3)
    left.set_ylim(0.0, 1.02)
    left.set_yticks(np.linspace(0, 1, 6))
    left.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _label(left, "chance to find it")
    right.plot(curve.n, curve.detectable * unit.scale, color=BASELINE, linewidth=2)
    right.plot([plan.n], [abs(plan.effect) * unit.scale], "o", color=CANDIDATE, markersize=7, zorder=3)
    right.set_ylim(0.0, 4.2 * abs(plan.effect) * unit.scale)
    _label(right, f"smallest difference found{_in_units(unit)}")
    for axes in (left, right):
        axes.set_xlim(0.0, float(curve.n[-1]))
        axes.set_xlabel("requests in both arms")
        axes.xaxis.set_major_formatter(_thousands if curve.n[-1] >= 10_000 else "{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        if plan.duration_s is not None:
            _add_time(axes, plan.n, plan.duration_s)
    return chart


def _side_by_side(chart: Chart, top_in: float) -> tuple[Axes, Axes]:
    half_in = (chart.width_in - 0.24 - _GAP_IN) / 2
    left = chart.plot_area(left_in=0.45, right_in=half_in + _GAP_IN - 0.45, top_in=top_in)
    return left, chart.plot_area(left_in=half_in + _GAP_IN + 0.1, right_in=0.2, top_in=top_in)


def _above_each_other(chart: Chart, top_in: float) -> tuple[Axes, Axes]:
    upper = chart.plot_area(left_in=0.5, bottom_in=_STACKED_IN + 0.5, top_in=top_in)
    return upper, chart.plot_area(left_in=0.5, top_in=_STACKED_IN + top_in)


def _label(axes: Axes, words: str) -> None:
    axes.annotate(
        words, (0.98, 0.04), xycoords="axes fraction", ha="right", va="bottom", fontsize=9, color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _in_units(unit: Unit) -> str:
    symbol = unit.difference_symbol.strip()
    return f", {symbol}" if symbol else ""


def _thousands(value: float, _: object) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value else "0"


def _add_time(axes: Axes, n: int, duration_s: float) -> None:
    """The same axis in time."""
    span_s = duration_s / n * axes.get_xlim()[1]
    size_s, name = next((one for one in _TIMES if span_s >= 2 * one[0]), _TIMES[-1])
    per_request = duration_s / n / size_s
    above = axes.twiny()
    style(above)
    above.grid(visible=False)
    above.set_xlim(0.0, axes.get_xlim()[1] * per_request)
    above.locator_params(axis="x", nbins=5)
    above.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    above.set_xlabel(f"{name} at the observed rate", color=MUTED, labelpad=5)
