"""Figures of what was served: how fast each version answered, and which version served when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from abswitch.engine import SwitchingEngine
from abswitch.experiments.chart import WIDE_IN, Chart
from abswitch.experiments.palette import FAILED, GRID, INK, colors_of_versions
from abswitch.experiments.subject import Result, Subject, subject_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_LATENCY = """
SELECT served_version AS version, 1000 * total_s AS latency_ms FROM requests
WHERE operation_id = $operation AND error_type IS NULL AND NOT fallback AND arm <> 'pinned' AND admitted_at_s <= $until
"""
_TRAFFIC = """
SELECT admitted_at_s, coalesce(served_version, '') AS version, error_type IS NOT NULL AS failed FROM requests
WHERE model_id = $model AND arm <> 'pinned' AND admitted_at_s >= $since
    AND coalesce(error_type, '') <> 'Cancelled'
ORDER BY admitted_at_s
"""
_ROUTES = """
SELECT committed_at_s, string_agg(version || ' ' || round(100 * share)::INT || ' %', ', ' ORDER BY arm DESC) AS split
FROM routes WHERE model_id = $model AND committed_at_s >= $since GROUP BY epoch, committed_at_s ORDER BY epoch
"""
_IDLE_S = 2.0
_BINS = 70
_MOST_POINTS = 250
"""Of a distribution's curve; more cannot be told apart, and make a page heavy."""


def latency_chart(engine: SwitchingEngine, result: Result | Subject, *, width_in: float = WIDE_IN) -> Chart:
    """How many of each version's answers came within how many milliseconds, from request to last token.

    Only what the comparison counts: answered requests of the test, without fallbacks.
    """
    subject = result if isinstance(result, Subject) else subject_of(result)
    # What is asked after the verdict is not part of the test.
    rows = engine.query(_LATENCY, {"operation": subject.operation_id, "until": subject.ended_at_s})
    versions = subject.versions
    samples = {v: np.sort(rows.loc[rows["version"] == v, "latency_ms"].to_numpy(dtype=float)) for v in versions}
    samples = {version: values for version, values in samples.items() if values.size}
    what = "Share of answers complete within a time, in milliseconds from request to last token; dots: 50 % and 95 %"
    chart = Chart(_latency_finding(samples), what, plot_in=2.6, width_in=width_in)
    axes = chart.plot_area(left_in=0.45, bottom_in=0.36)
    colors = colors_of_versions(subject.baseline, subject.candidate, versions)
    for version, values in samples.items():
        _draw_distribution(axes, version, values, colors[version])
    axes.set_ylim(0.0, 1.03)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 0.95], ["0 %", "25 %", "50 %", "75 %", "95 %"])
    axes.set_xlabel("milliseconds", labelpad=1)
    if samples:
        slowest = max(values[-1] for values in samples.values())
        fastest = min(values[0] for values in samples.values())
        if slowest > 20 * max(fastest, 1e-9):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK, handlelength=1.2)
    return chart


def _latency_finding(samples: dict[str, Floats]) -> str:
    if not samples:
        return "No answer to time"
    return "Half of the answers come within " + " and ".join(f"{_ms(v)} from {name}" for name, v in samples.items())


def _ms(values: Floats) -> str:
    median = float(np.median(values))
    return f"{median:.1f} ms" if median < 10 else f"{median:,.0f} ms"


def _draw_distribution(axes: Axes, version: str, values: Floats, color: str) -> None:
    shares = np.arange(1, values.size + 1) / values.size
    shown = np.unique(np.linspace(0, values.size - 1, min(values.size, _MOST_POINTS)).round().astype(int))
    label = f"{version} ({values.size:,} answers)"
    axes.step(values[shown], shares[shown], where="post", color=color, linewidth=1.8, label=label)
    marks = [0.5, 0.95]
    axes.plot(np.quantile(values, marks, method="inverted_cdf"), marks, "o", color=color, markersize=5)


@dataclass(frozen=True, slots=True)
class BusyTime:
    """Seconds on a clock that stops while nothing is asked, so that a long pause does not flatten the picture.

    Attributes:
        starts_s, ends_s: each busy stretch, on the real clock.
    """

    starts_s: Floats
    ends_s: Floats

    @classmethod
    def of(cls, instants_s: Floats) -> BusyTime:
        """From instants in order: a gap above two seconds and above a tenth of the busy time ends a stretch."""
        gaps = np.diff(instants_s)
        busy_s = float(gaps[gaps <= _IDLE_S].sum())
        cuts = np.flatnonzero(gaps > max(_IDLE_S, 0.1 * busy_s))
        return cls(
            np.concatenate([instants_s[:1], instants_s[cuts + 1]]), np.concatenate([instants_s[cuts], instants_s[-1:]])
        )

    @property
    def pauses(self) -> list[tuple[float, float]]:
        """Where each pause lies on the busy clock, and how long it took (s)."""
        return [
            (float(self.at(np.asarray([end]))[0]), float(start - end))
            for end, start in zip(self.ends_s[:-1], self.starts_s[1:], strict=True)
        ]

    @property
    def total_s(self) -> float:
        """Length of the busy clock."""
        return float((self.ends_s - self.starts_s).sum())

    def at(self, instants_s: Floats) -> Floats:
        """Instants on the busy clock; one within a pause lies where the pause does."""
        inside = np.clip(instants_s[:, None], self.starts_s, self.ends_s) - self.starts_s
        elapsed: Floats = inside.sum(axis=1)
        return elapsed


def traffic_chart(engine: SwitchingEngine, result: Result | Subject, *, width_in: float = WIDE_IN) -> Chart:
    """Requests per second by the version that served them, from the first request of the test until now.

    Lines mark every change of the routes; pauses without requests are left out and marked.
    """
    subject = result if isinstance(result, Subject) else subject_of(result)
    since = {"model": subject.model_id, "since": subject.started_at_s}
    rows, routes = engine.query(_TRAFFIC, since), engine.query(_ROUTES, since)
    baseline, candidate = subject.baseline, subject.candidate
    failed = int(rows["failed"].sum())
    what = "Requests per second by the version that served them; dashed: the routes change; pauses are cut out"
    chart = Chart(_traffic_finding(rows["version"].tolist(), failed), what, plot_in=2.4, width_in=width_in)
    axes = chart.plot_area(left_in=0.62, top_in=0.35)
    if rows.empty:
        return chart
    instants = rows["admitted_at_s"].to_numpy(dtype=float)
    busy = BusyTime.of(instants)
    order = sorted(rows.loc[~rows["failed"], "version"].unique(), key=lambda v: (v != baseline, v != candidate, v))
    colors = colors_of_versions(baseline, candidate, order)
    series = [(v, colors[v], busy.at(instants[(rows["version"] == v) & ~rows["failed"]])) for v in order]
    if failed:
        series.append(("failed", FAILED, busy.at(instants[rows["failed"]])))
    _draw_rates(axes, series, busy.total_s)
    committed = routes["committed_at_s"].to_numpy(dtype=float)
    _mark_routes(axes, busy.at(committed), routes["split"].tolist())
    for position, length_s in busy.pauses:
        _mark_pause(axes, position, length_s)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False, fontsize=9, labelcolor=INK,
        handlelength=1.0,
    )  # fmt: skip
    return chart


def _traffic_finding(served: Sequence[str], failed: int) -> str:
    if not served:
        return "No request was made"
    outcome = "none failed" if not failed else f"{failed:,} failed"
    last = next((version for version in reversed(served) if version), None)
    ending = "nothing" if last is None else last
    return f"{len(served):,} requests, {outcome}; in the end {ending} serves"


def _draw_rates(axes: Axes, series: Sequence[tuple[str, str, Floats]], total_s: float) -> None:
    edges = np.linspace(0.0, max(total_s, 1e-3), _BINS + 1)
    width = edges[1] - edges[0]
    base = np.zeros(_BINS)
    for label, color, instants in series:
        rates = np.histogram(instants, edges)[0] / width
        axes.stairs(base + rates, edges, baseline=base, fill=True, color=color, label=label, linewidth=0)
        base += rates
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0.0, max(float(base.max()), 1.0) * 1.04)
    axes.set_xlabel("seconds with requests under way", labelpad=1)
    axes.set_ylabel("requests per second")
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _mark_routes(axes: Axes, positions: Floats, splits: Sequence[str]) -> None:
    """A dashed line at each change, labelled above the plot; a label that would cover the one before is left out."""
    left, right = axes.get_xlim()
    free_from = -np.inf
    room = 0.22 * (right - left)
    for position, split in zip(positions, splits, strict=True):
        axes.axvline(position, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        if position < free_from:
            continue
        free_from = position + room
        at_end = position > right - room
        axes.annotate(
            split.removesuffix(" 100 %") + " alone" if split.endswith(" 100 %") else split, (position, 1.0),
            xycoords=("data", "axes fraction"), xytext=(-3 if at_end else 3, 6), textcoords="offset points",
            ha="right" if at_end else "left", fontsize=8.5, color=INK, annotation_clip=False,
        )  # fmt: skip


def _mark_pause(axes: Axes, position: float, length_s: float) -> None:
    axes.axvline(position, color=GRID, linewidth=4.0)
    axes.annotate(
        f"pause {length_s:,.0f} s", (position, 0.98), xycoords=("data", "axes fraction"), rotation=90,
        ha="right", va="top", fontsize=7.5, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip
