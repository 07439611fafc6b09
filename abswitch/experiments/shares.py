"""The figure of the traffic's shares over time: what the routes said, and what requests met."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from abswitch.engine import SwitchingEngine
from abswitch.experiments.chart import WIDE_IN, Chart
from abswitch.experiments.palette import INK, colors_of_versions
from abswitch.experiments.subject import Subject
from abswitch.experiments.traffic import BusyTime

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
_ROUTES = """
WITH known AS (
    SELECT epoch, committed_at_s, arm, version, share FROM routes WHERE model_id = $model AND arm <> 'shadow'
)
SELECT epoch, committed_at_s, version, sum(share) AS share FROM known
WHERE epoch >= coalesce((SELECT max(epoch) FROM known WHERE committed_at_s <= $since), 0)
GROUP BY ALL ORDER BY epoch
"""
_REQUESTS = """
SELECT admitted_at_s, assigned_version <> $baseline AS candidate FROM requests
WHERE model_id = $model AND arm NOT IN ('pinned', 'shadow') AND admitted_at_s >= $since
    AND coalesce(error_type, '') <> 'Cancelled'
ORDER BY admitted_at_s
"""
_BINS, _FEWEST = 30, 8


def shares_chart(engine: SwitchingEngine, subject: Subject, *, width_in: float = WIDE_IN) -> Chart | None:
    """Each version's share of units by the routes, and dots for the candidates' share of the requests that came.

    Time stands still while nothing was asked, as in `traffic_chart`.

    Returns:
        None where nothing was routed, or fewer than two requests came.
    """
    of_model = {"model": subject.model_id, "since": subject.started_at_s}
    routes = engine.query(_ROUTES, of_model)
    requests = engine.query(_REQUESTS, of_model | {"baseline": subject.baseline})
    if routes.empty or len(requests) < 2:
        return None
    instants = requests["admitted_at_s"].to_numpy(dtype=float)
    busy = BusyTime.of(instants)
    table = routes.pivot_table(index="epoch", columns="version", values="share", fill_value=0.0).sort_index()
    committed = routes.groupby("epoch")["committed_at_s"].min().sort_index().to_numpy(dtype=float)
    others = [version for version in table.columns if version not in subject.versions]
    order = [*subject.versions[1:], *others, subject.baseline]  # candidates below, so that their share is a height
    shares = {version: table[version].to_numpy(dtype=float) for version in order if version in table.columns}
    what = "Share of traffic by the routes, by version; dots: what part of the requests met a candidate"
    before = int(np.searchsorted(committed, instants[0], side="right")) - 1  # in force when the first request came
    chart = Chart(_finding(shares, subject, max(before, 0)), what, plot_in=2.4, width_in=width_in)
    axes = chart.plot_area(left_in=0.5, bottom_in=0.62)
    _draw_routes(axes, busy, committed, shares, colors_of_versions(subject.baseline, subject.candidate, order))
    _draw_requests(axes, busy.at(instants), requests["candidate"].to_numpy(dtype=float), busy.total_s)
    axes.set_xlim(0.0, max(busy.total_s, 1e-3))
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("seconds with requests under way", labelpad=1)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4, frameon=False, fontsize=9, labelcolor=INK,
        handlelength=1.0,
    )  # fmt: skip
    return chart


def _finding(shares: dict[str, Floats], subject: Subject, begin: int) -> str:
    total = 1.0 - shares[subject.baseline][begin:] if subject.baseline in shares else np.ones(1)
    steps = [f"{share:.0%}" for share in total]
    path = [steps[0], *(now for before, now in pairwise(steps) if now != before)]
    who = subject.candidate if len(subject.versions) == 2 else "The candidates"
    shown = path if len(path) <= 7 else [*path[:3], "…", *path[-3:]]
    return f"{who} had " + " → ".join(shown).replace("%", " %") + " of the traffic"


def _draw_routes(
    axes: Axes, busy: BusyTime, committed: Floats, shares: dict[str, Floats], colors: dict[str, str]
) -> None:
    positions = np.append(busy.at(committed), busy.total_s)
    heights = [np.append(values, values[-1]) for values in shares.values()]
    axes.stackplot(
        positions, heights, labels=list(shares), colors=[colors[version] for version in shares], step="post",
        alpha=0.35, linewidth=0,
    )  # fmt: skip


def _draw_requests(axes: Axes, positions: Floats, candidate: Floats, total_s: float) -> None:
    """Dots where there are enough requests to speak of a share."""
    edges = np.linspace(0.0, max(total_s, 1e-3), _BINS + 1)
    count = np.histogram(positions, edges)[0]
    met = np.histogram(positions, edges, weights=candidate)[0]
    enough = count >= _FEWEST
    middles = (edges[:-1] + edges[1:]) / 2
    axes.plot(middles[enough], met[enough] / count[enough], "o", color=INK, markersize=3.2, label="requests")
