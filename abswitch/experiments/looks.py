"""Sequential curves: every look at an experiment, as the table `looks` has them, and the figure of the primary's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from abswitch.engine import SwitchingEngine
from abswitch.experiments.chart import WIDE_IN, Chart
from abswitch.experiments.palette import CANDIDATE, GOOD, INK, MUTED, OTHERS
from abswitch.experiments.readings import Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 200
_LOOKS = """
SELECT metric, role, method, arm, look, n_baseline, n_candidate, estimate, low, high, p_value, e_value, alpha_spent,
    decision, at_s
FROM looks WHERE operation_id = ? ORDER BY role <> 'primary', metric, arm, look, at_s
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One look at one metric.

    Attributes:
        estimate, low, high: candidate − baseline with its interval; None where there was no result.
        at_s: seconds since the epoch.
    """

    look: int
    n_baseline: int
    n_candidate: int
    estimate: float | None
    low: float | None
    high: float | None
    p_value: float | None
    e_value: float | None
    alpha_spent: float | None
    decision: str
    at_s: float

    @property
    def is_whole(self) -> bool:
        """Whether it has an estimate and an interval with two ends."""
        return all(one is not None and math.isfinite(one) for one in (self.estimate, self.low, self.high))


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one arm over all looks.

    Attributes:
        arm: the arm held against the baseline.
        points: in order; of more than 200 looks, evenly spread ones, the last among them.
    """

    metric: str
    role: str
    method: str
    arm: str
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def curves_of(engine: SwitchingEngine, operation_id: str) -> tuple[Curve, ...]:
    """The curves of an operation, the primary's first; none where nothing looked before the end."""
    rows = engine.store.rows(_LOOKS, (operation_id,))
    found = []
    for (metric, role, arm), group in groupby(rows, key=lambda row: (row[0], row[1], row[3])):
        points = [*group]
        found.append(Curve(metric, role, points[-1][2], arm, tuple(Point(*row[4:]) for row in _thinned(points))))
    return tuple(found)


def _thinned(rows: Sequence[Any]) -> list[Any]:
    if len(rows) <= MOST_POINTS:
        return list(rows)
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, MOST_POINTS).round().astype(int))]


def leading(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """The curves of one figure: those of the primary metric, or of the first where there is none, with two looks."""
    first = next((curve.metric for curve in curves if curve.role == "primary"), curves[0].metric if curves else None)
    return tuple(c for c in curves if c.metric == first and sum(point.is_whole for point in c.points) > 1)


def looks_chart(
    curves: Sequence[Curve], versions: dict[str, str], unit: Unit, *, margin: float | None, width_in: float = WIDE_IN
) -> Chart:
    """The difference and its interval, look by look, over the observations there were.

    Args:
        curves: of one metric, see `leading`; not empty.
        versions: of each arm.
        margin: shaded on both sides of zero; None shades nothing.
    """
    what = f"{curves[0].metric}, candidate − baseline{_in(unit)}, with an interval that holds at every look"
    chart = Chart(_finding(curves, versions, unit), what, plot_in=2.4, width_in=width_in)
    axes = chart.plot_area(left_in=0.62, bottom_in=0.66 if len(curves) > 1 else 0.38)
    axes.axhline(0.0, color=MUTED, linewidth=1.0)
    if margin is not None:
        axes.axhspan(-margin, margin, color=GOOD, alpha=0.1, linewidth=0)
    for index, curve in enumerate(curves):
        _draw(axes, curve, color_of(index), versions.get(curve.arm, curve.arm))
    _scale(axes, curves, unit, margin)
    if len(curves) > 1:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=9, labelcolor=INK,
            handlelength=1.2,
        )  # fmt: skip
    return chart


def color_of(index: int) -> str:
    """Of the candidates in order: the first has the candidate's colour."""
    return CANDIDATE if index == 0 else OTHERS[(index - 1) % len(OTHERS)]


def _in(unit: Unit) -> str:
    return f" in{unit.difference_symbol}" if unit.difference_symbol else ""


def _finding(curves: Sequence[Curve], versions: dict[str, str], unit: Unit) -> str:
    last = curves[0].points[-1]
    if len(curves) > 1:
        ends = ((versions.get(curve.arm, curve.arm), curve.points[-1].estimate) for curve in curves)
        told = ", ".join(f"{name} {'–' if end is None else unit.difference(end)}" for name, end in ends)
        return f"After {last.look:,} looks: {told}"
    if last.estimate is None or last.low is None or last.high is None:
        return f"{curves[0].metric} has no interval at the last look"
    away = "clear of zero" if last.low > 0 or last.high < 0 else "zero is still inside"
    return (
        f"After {last.look:,} looks the difference is {unit.difference(last.estimate)}, "
        f"{unit.show(last.low, signed=True)} to {unit.show(last.high, signed=True)}: {away}"
    )


def _draw(axes: Axes, curve: Curve, color: str, label: str) -> None:
    points = [point for point in curve.points if point.is_whole]
    n = [point.n_baseline + point.n_candidate for point in points]
    low, high, estimates = ([getattr(point, name) for point in points] for name in ("low", "high", "estimate"))
    axes.fill_between(n, low, high, color=color, alpha=0.18, linewidth=0, step=None)
    for bound in (low, high):
        axes.plot(n, bound, color=color, linewidth=0.9, alpha=0.7)
    few = len(points) <= 30
    axes.plot(
        n, estimates, color=color, linewidth=1.8, label=label,
        marker="o" if few else None, markersize=3.5,
    )  # fmt: skip
    axes.plot(n[-1:], estimates[-1:], "D", color=color, markersize=6)


def _scale(axes: Axes, curves: Sequence[Curve], unit: Unit, margin: float | None) -> None:
    """What the first looks leave open would flatten the rest: the axis ends a little beyond what later ones reach."""
    whole = [[p for p in curve.points if p.is_whole] for curve in curves]
    later = [end for points in whole for p in points[len(points) // 4 :] for end in (p.low, p.high)]
    reach = [0.0, *([-margin, margin] if margin is not None else []), *(end for end in later if end is not None)]
    room = 0.15 * (max(reach) - min(reach)) or 1.0
    axes.set_ylim(min(reach) - room, max(reach) + room)
    axes.yaxis.set_major_formatter(lambda value, _: _tick(value * unit.scale))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("observations in both arms", labelpad=1)


def _tick(value: float) -> str:
    value = round(value, 9)  # an axis' zero may be 1e-17
    return f"{value:{'+' if value else ''},.4g}".replace("-", "−")
