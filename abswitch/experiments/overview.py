"""`write_overview`: a page over all runs in a folder of reports, with what changed from run to run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from abswitch.errors import InvalidInput
from abswitch.experiments.files import write_atomically
from abswitch.experiments.page import duration, instant, render
from abswitch.experiments.past_runs import Estimate, PastRun, past_runs

log = logging.getLogger(__name__)
PAGE = "index.html"
_MOST_ROWS, _MOST_POINTS = 200, 40
_TONES = {"ship": "good", "promote": "good", "equivalent": "good", "keep": "bad", "roll back": "bad", "failed": "bad"}
_FILES = {"index.html": "report", "summary.json": "JSON", "pull_request.md": "Markdown"}


@dataclass(frozen=True, slots=True)
class Overview:
    """What was written.

    Attributes:
        unreadable: runs of which nothing could be told, with the reason in `problem`.
    """

    page: Path
    runs: int
    experiments: int
    unreadable: tuple[PastRun, ...]


def write_overview(reports: Path | str) -> Overview:
    """Write `index.html` into a folder of reports; what cannot be read is listed with its reason.

    Raises:
        InvalidInput: there is no such folder.
        OSError: the page cannot be written.
    """
    folder = Path(reports).expanduser().resolve()
    if not folder.is_dir():
        raise InvalidInput("reports", str(folder), "a folder that exists")
    runs = list(past_runs(folder))
    by_experiment = [(name, list(of)) for name, of in groupby(sorted(runs, key=_experiment), key=_experiment)]
    by_experiment.sort(key=lambda pair: -max(_since(run) for run in pair[1]))
    html = render(
        "overview.html.j2",
        created=instant(time.time()),
        runs=len(runs),
        experiments=[_shown(number, name, of) for number, (name, of) in enumerate(by_experiment, start=1)],
    )
    write_atomically(folder / PAGE, html)
    unreadable = tuple(run for run in runs if run.status == "unreadable")
    return Overview(page=folder / PAGE, runs=len(runs), experiments=len(by_experiment), unreadable=unreadable)


def refresh(reports: Path) -> None:
    """Write the overview after a run; that it could not be written is logged, and never the run's problem."""
    try:
        write_overview(reports)
    except (OSError, InvalidInput) as error:
        log.warning("the overview of all runs was not written: %s", error)


def _experiment(run: PastRun) -> str:
    return run.experiment


def _since(run: PastRun) -> float:
    return run.started_at_s if math.isfinite(run.started_at_s) else 0.0


def _shown(number: int, name: str, runs: Sequence[PastRun]) -> dict[str, Any]:
    latest = runs[0]
    return {
        "name": name,
        "anchor": f"experiment-{number}",
        "count": len(runs),
        "latest": _row(latest),
        "rows": [_row(run) for run in runs[:_MOST_ROWS]],
        "left_out": max(0, len(runs) - _MOST_ROWS),
        **_trends(runs),
    }


def _row(run: PastRun) -> dict[str, Any]:
    page = f"{quote(run.name)}/index.html" if "index.html" in run.files else None
    requests = run.requests
    return {
        "name": run.name.rsplit("/", maxsplit=1)[-1],
        "page": page,
        "status": run.status,
        "tone": _TONES.get(run.status, "open"),
        "headline": run.headline,
        "problem": run.problem,
        "design": run.design,
        "when": instant(run.started_at_s) if math.isfinite(run.started_at_s) else "unknown",
        "versions": "" if run.versions is None else f"{run.versions[0]} → {run.versions[1]}",
        **_words(run.estimate),
        "requests": f"{requests['answered']:,} of {requests['sent']:,}" if requests else "–",
        "trouble": _trouble(requests),
        "took": duration(run.elapsed_s),
        "exit": "–" if run.exit_status is None else str(run.exit_status),
        "alerts": run.alerts,
        "cell": ", ".join(f"{key} {value}" for key, value in run.cell.items()),
        "files": [(_FILES.get(name, "notebook"), f"{quote(run.name)}/{quote(name)}") for name in run.files],
    }


def _trouble(requests: Mapping[str, int]) -> str:
    told = [f"{requests[name]:,} {name}" for name in ("failed", "lost") if requests.get(name)]
    return ", ".join(told)


def _words(found: Estimate | None) -> dict[str, str]:
    if found is None:
        return {"metric": "", "estimate": "–", "difference": ""}
    unit = _unit(found)
    return {
        "metric": str(found.metric["name"]),
        "estimate": f"{unit.value(found.baseline)} → {unit.value(found.candidate)}",
        "difference": f"{unit.difference(found.difference)}, {unit.show(found.low, signed=True)} to "
        f"{unit.show(found.high, signed=True)}",
    }


def _unit(found: Estimate) -> Any:
    from abswitch.experiments.readings import Unit, unit_of
    from abswitch.stats.metrics import metric_of

    try:
        metric = metric_of(found.metric)
    except (InvalidInput, TypeError):  # of another version, or by another hand
        return Unit()
    return unit_of(metric, max(abs(found.baseline), abs(found.candidate)), (found.high - found.low) / 2)


# --- trends -----------------------------------------------------------------------------------------------------------


def _trends(runs: Sequence[PastRun]) -> dict[str, Any]:
    """The primary metric from run to run, oldest on the left; of the latest run's metric alone."""
    named = next((run.estimate.metric.get("name") for run in runs if run.estimate is not None), None)
    pairs = [(r, r.estimate) for r in runs if r.estimate is not None and r.estimate.metric.get("name") == named]
    pairs = pairs[:_MOST_POINTS][::-1]
    if len(pairs) < 2:
        return {"trends": [], "trend_words": _no_trend(runs)}
    unit = _unit(pairs[-1][1])
    difference = _Scale([0.0, *(end for _, e in pairs for end in (e.low, e.high))])
    values = _Scale([value for _, e in pairs for value in (e.baseline, e.candidate)])
    last = pairs[-1][1]
    return {
        "trends": [
            {
                "title": f"{named}: candidate − baseline",
                "words": f"difference of {named} over {len(pairs)} runs, in the last "
                f"{unit.difference(last.difference)}",
                "top": unit.difference(difference.high),
                "bottom": unit.difference(difference.low),
                "zero": difference.at(0.0),
                "marks": list(_differences(pairs, difference)),
                "lines": [],
            },
            {
                "title": f"{named} of both arms",
                "words": f"{named} over {len(pairs)} runs, in the last {unit.value(last.baseline)} with the baseline "
                f"and {unit.value(last.candidate)} with the candidate",
                "top": unit.value(values.high),
                "bottom": unit.value(values.low),
                "zero": None,
                "marks": [],
                "lines": list(_lines(pairs, values)),
            },
        ],
        "trend_words": "",
    }


def _no_trend(runs: Sequence[PastRun]) -> str:
    told = sum(run.estimate is not None for run in runs)
    if not told:
        return "No run has estimates, so there is no trend to draw."
    return "One run has estimates; a trend needs two."


class _Scale:
    """Values to heights, in percent from the top, with a little room at both ends."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min(values), max(values)

    def at(self, value: float) -> float:
        span = self.high - self.low
        return round(50.0 if not span else 92.0 - 84.0 * (value - self.low) / span, 2)


def _x(index: int, count: int) -> float:
    return round(100.0 * (index + 0.5) / count, 2)


def _differences(pairs: Sequence[tuple[PastRun, Estimate]], scale: _Scale) -> Iterator[dict[str, Any]]:
    for index, (run, found) in enumerate(pairs):
        yield {
            "x": _x(index, len(pairs)),
            "low": scale.at(found.low),
            "high": scale.at(found.high),
            "at": scale.at(found.difference),
            "tone": _TONES.get(run.status, "open"),
        }


def _lines(pairs: Sequence[tuple[PastRun, Estimate]], scale: _Scale) -> Iterator[dict[str, Any]]:
    for arm, of in (("stable", "baseline"), ("candidate", "candidate")):
        points = [(_x(i, len(pairs)), scale.at(getattr(found, of))) for i, (_, found) in enumerate(pairs)]
        yield {"arm": arm, "points": points, "pairs": list(pairwise(points))}
