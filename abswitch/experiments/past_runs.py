"""What lies in a folder of reports: every run that can be read, and every folder that cannot, with the reason.

Folders are others' as much as ours: files may be half-written, of an older version, edited by hand, or not ours at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

_NAMES = ("run.json", "result.json", "summary.json")
_LARGEST = 64 << 20
_BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The primary metric of one run.

    Attributes:
        metric: as `summary.json` has it, see `metric_of`.
        baseline, candidate: each arm's value; `low` to `high` is the interval of their difference.
    """

    metric: Mapping[str, Any]
    baseline: float
    candidate: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """One run as its folder tells it.

    Attributes:
        name: its folder's, relative to the reports.
        status: the decision of a finished run, else `unfinished`, `failed` or `unreadable`.
        problem: why it cannot be read, or not wholly.
        started_at_s: seconds since the epoch; NaN where nobody knows.
        cell: what a matrix set for it.
        files: what lies there, by name.
    """

    experiment: str
    name: str
    status: str
    headline: str = ""
    design: str = ""
    problem: str = ""
    exit_status: int | None = None
    started_at_s: float = math.nan
    elapsed_s: float | None = None
    requests: Mapping[str, int] = field(default_factory=dict)
    versions: tuple[str, str] | None = None
    estimate: Estimate | None = None
    alerts: int = 0
    cell: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it came to a verdict."""
        return self.status not in ("unfinished", "failed", "unreadable")


def past_runs(reports: Path) -> Iterator[PastRun]:
    """Every run in a folder of reports, the latest first; a folder with none of our files is no run.

    A report that was written by hand may lie a level higher, as `reports/quickstart/` does.
    """
    found = [_read(folder, reports) for folder in _folders(reports)]
    yield from sorted(found, key=lambda run: (_known(run.started_at_s), run.name), reverse=True)


def _known(at_s: float) -> float:
    return at_s if math.isfinite(at_s) else 0.0


def _folders(reports: Path) -> Iterator[Path]:
    for folder in _subfolders(reports):
        if _is_run(folder):
            yield folder
        yield from (inner for inner in _subfolders(folder) if _is_run(inner))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _NAMES)


def _read(folder: Path, reports: Path) -> PastRun:
    name = folder.relative_to(reports).as_posix()
    experiment = name.split("/", maxsplit=1)[0]
    try:
        return _told(folder, name, experiment)
    except _BROKEN as error:
        return PastRun(
            experiment=experiment, name=name, status="unreadable", problem=_words(error), files=_files(folder)
        )


def _told(folder: Path, name: str, experiment: str) -> PastRun:
    state, result = _json(folder / "run.json"), _json(folder / "result.json")
    if state is None and result is None:
        return _of_summary(_required(_json(folder / "summary.json")), name, experiment, _files(folder))
    status = "unfinished"
    if result is not None:
        status = _text(result["decision"])
    elif state is not None and state.get("status") == "failed":
        status = "failed"
    of_both = {**(state or {}), **(result or {})}
    began, ended = _number(of_both.get("started_at_s")), _number((result or {}).get("ended_at_s"))
    run = PastRun(
        experiment=experiment,
        name=name,
        status=status,
        headline="" if result is None else _text(result["headline"]),
        exit_status=None if result is None else int(result["exit_status"]),
        started_at_s=math.nan if began is None else began,
        elapsed_s=None if began is None or ended is None else ended - began,
        requests={} if result is None else _counts(result["requests"]),
        alerts=0 if result is None else len(result.get("alerts") or ()),
        cell={} if state is None else dict(state.get("cell") or {}),
        files=_files(folder),
    )
    return _with_summary(run, folder)


def _with_summary(run: PastRun, folder: Path) -> PastRun:
    """What only the summary knows; a run of which it cannot be read is told without."""
    try:
        summary = _json(folder / "summary.json")
        if summary is None or not run.finished:
            return run
        versions, estimate = _versions(summary), _estimate(summary)
        return replace(run, design=_text(summary.get("design", "")), versions=versions, estimate=estimate)
    except _BROKEN as error:
        return replace(run, problem=f"summary.json: {_words(error)}")


def _of_summary(summary: Mapping[str, Any], name: str, experiment: str, files: tuple[str, ...]) -> PastRun:
    return PastRun(
        experiment=experiment,
        name=name,
        status=_text(summary["verdict"]["decision"]),
        headline=_text(summary["verdict"]["headline"]),
        design=_text(summary.get("design", "")),
        started_at_s=datetime.fromisoformat(summary["started_at"]).timestamp(),
        elapsed_s=_number(summary.get("elapsed_s")),
        requests=_counts(summary["requests"]),
        versions=_versions(summary),
        estimate=_estimate(summary),
        files=files,
    )


def _json(path: Path) -> Mapping[str, Any] | None:
    """An object from its file; None where there is no file.

    Raises:
        OSError, ValueError: it cannot be read, is too large to be one of ours, or holds no object.
    """
    if not path.is_file():
        return None
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} is larger than any of ours")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{path.name} holds no object")
    return plain


def _required(summary: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if summary is None:
        raise ValueError("summary.json is not there any more")
    return summary


def _versions(summary: Mapping[str, Any]) -> tuple[str, str]:
    first, second = (summary["versions"][role] for role in ("baseline", "candidate"))
    if isinstance(first, str):  # as canaries of the first schema had it
        return first, _text(second)
    return _text(first["version"]), _text(second["version"])


def _estimate(summary: Mapping[str, Any]) -> Estimate | None:
    for one in summary.get("estimates", ()):
        found = one["comparison"]
        values = [
            _number(value)
            for value in (
                found["baseline"]["value"], found["candidate"]["value"], found["estimate"], found["low"], found["high"],
            )
        ]  # fmt: skip
        if one["role"] == "primary" and not any(value is None for value in values):
            metric = {key: value for key, value in one.items() if key != "comparison"}
            return Estimate(metric, *(value for value in values if value is not None))
    return None


def _counts(given: Any) -> dict[str, int]:
    return {name: int(given[name]) for name in ("sent", "answered", "failed", "lost")}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text was expected, not {type(value).__name__}")
    return value


def _files(folder: Path) -> tuple[str, ...]:
    names = ("index.html", "summary.json", "pull_request.md")
    there = [name for name in names if (folder / name).is_file()]
    return (*there, *sorted(path.name for path in folder.glob("*.ipynb")))


def _words(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error) or repr(error)
