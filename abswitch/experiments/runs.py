"""A run's folder: what it was told, where it stands, what it found; and which run the same command goes on with.

reports/<experiment>/<run id>/
    spec.json        the spec of this run, whole: defaults, overrides and the matrix's values are in it
    run.json         where it stands; replaced at once
    evidence.duckdb  the store of its engine
    *.ipynb, *.log   the executed notebook, and what the processes said
    index.html, summary.json, *.png
    result.json      the verdict; there once the run has finished, and only then
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.files import to_json, write_atomically
from abswitch.experiments.spec import ExperimentSpec, spec_of

_ORPHAN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The content of `run.json`.

    Attributes:
        cell: what a matrix set for this run.
        attempts: how many processes worked on it.
        prompts_digest: of the questions; a run that is gone on with must ask the same ones.
        operation_id: of its switch; None before it began.
        status: `running`, `finished`, or `failed` (the next attempt goes on).
        pid: of the process that works on it, or last did.
        occasion: what it is for, e.g. one occurrence of a schedule; empty for a run that somebody asked for.
    """

    run_id: str
    experiment: str
    spec_digest: str
    project: str
    cell: Mapping[str, Any]
    started_at_s: float
    attempts: int = 0
    prompts_digest: str | None = None
    operation_id: str | None = None
    status: str = "running"
    pid: int | None = None
    occasion: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The content of `result.json`.

    Attributes:
        exit_status: as `abswitch run` ends with.
        reasons: sentences, the decisive one first.
        requests: sent, answered, failed, lost.
        alerts: what the regression watch found, one line each.
        watched: what a later run is compared with, see `abswitch.experiments.watch.watched`.
        compared_with: the run that the watch held this one against; None where there was none.
        not_posted: why the alerts did not reach the webhook; None where they did, or there is none.
    """

    run_id: str
    experiment: str
    exit_status: int
    decision: str
    headline: str
    reasons: tuple[str, ...]
    requests: Mapping[str, int]
    started_at_s: float
    ended_at_s: float
    report: str | None = None
    alerts: tuple[str, ...] = ()
    watched: Mapping[str, Any] | None = None
    compared_with: str | None = None
    not_posted: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """From its file."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        return cls(**plain | {name: tuple(plain[name]) for name in ("reasons", "alerts")})


class RunFolder:
    """One run on disk.

    Raises:
        InvalidInput: the folder holds no run.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()
        for name in ("spec.json", "run.json"):
            if not (self.path / name).is_file():
                raise InvalidInput("run_dir", str(self.path), f"a folder that `abswitch run` made, with {name}")
        self.spec: ExperimentSpec = spec_of(json.loads((self.path / "spec.json").read_text(encoding="utf-8")))

    @property
    def state(self) -> RunState:
        """Where it stands."""
        return RunState(**json.loads((self.path / "run.json").read_text(encoding="utf-8")))

    def update(self, **changes: Any) -> RunState:
        """Change `run.json`."""
        state = replace(self.state, **changes)
        write_atomically(self.path / "run.json", to_json(asdict(state)))
        return state

    @property
    def project(self) -> Path:
        """The folder that the spec's paths start from."""
        return Path(self.state.project)

    @property
    def result(self) -> RunResult | None:
        """What it found; None while it has not finished."""
        path = self.path / "result.json"
        return RunResult.read(path) if path.is_file() else None

    def finish(self, result: RunResult) -> None:
        """Write `result.json`; the run is over."""
        write_atomically(self.path / "result.json", to_json(asdict(result)))
        self.update(status="finished")

    @contextmanager
    def held(self, role: str, wait_s: float) -> Iterator[None]:
        """Work on it alone.

        Args:
            role: `command` or `kernel`: a killed command may leave its kernel for a moment.

        Raises:
            SwitchRefused: another process does, even after `wait_s`.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / f".{role}.lock", timeout=wait_s)
        try:
            lock.acquire()
        except Timeout:
            raise SwitchRefused(
                f"run {self.state.run_id} is under way in another process ({role}; last seen: {self.state.pid})"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def wait_for_orphan(self) -> None:
        """Return once no kernel of a killed command works on it any more.

        Raises:
            SwitchRefused: one still does after a minute.
        """
        with self.held("kernel", _ORPHAN_S):
            pass


def open_run(
    spec: ExperimentSpec,
    *,
    reports: Path,
    project: Path,
    cell: Mapping[str, Any] | None = None,
    fresh: bool = False,
    occasion: str = "",
) -> RunFolder:
    """The run to work on: the latest unfinished one of the same spec, or a new one.

    Args:
        reports: folder of all reports.
        fresh: a new one in any case.
        occasion: the run of this occasion instead, also when it has finished; a new one where there is none.

    Raises:
        OSError: the folder cannot be written.
    """
    with _alone_in(reports / spec.name):  # of two commands at once one opens the run, and the other finds it
        left = None
        if not fresh:
            left = _run_for(occasion, spec, cell or {}, reports) if occasion else unfinished_run(spec, reports)
        return left or _new_run(spec, reports, project, cell or {}, occasion)


def _new_run(spec: ExperimentSpec, reports: Path, project: Path, cell: Mapping[str, Any], occasion: str) -> RunFolder:
    now = datetime.now(UTC)
    digest = spec.digest()
    # Names are in the order of time: runs that begin in one second must not be told apart by their digests.
    stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z"
    folder = _new_folder(reports / spec.name, f"{stamp}-{digest[:8]}")
    state = RunState(
        run_id=folder.name,
        experiment=spec.name,
        spec_digest=digest,
        project=str(project),
        cell=dict(cell),
        started_at_s=time.time(),
        occasion=occasion,
    )
    write_atomically(folder / "spec.json", to_json(spec.to_plain()))
    write_atomically(folder / "run.json", to_json(asdict(state)))
    return RunFolder(folder)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".opening.lock", timeout=_ORPHAN_S):
        yield


def _new_folder(parent: Path, name: str) -> Path:
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        try:
            (parent / f"{name}{suffix}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{name}{suffix}"
    raise FileExistsError(parent / name)


def unfinished_run(spec: ExperimentSpec, reports: Path) -> RunFolder | None:
    """The latest run of exactly this spec that has no verdict yet."""
    digest = spec.digest()
    for run in runs_of(spec.name, reports):
        if run.state.spec_digest == digest:
            return run if run.result is None else None
    return None


def _run_for(occasion: str, spec: ExperimentSpec, cell: Mapping[str, Any], reports: Path) -> RunFolder | None:
    """The latest run for the occasion: a finished one whatever became of the spec since, or one to go on with."""
    for run in runs_of(spec.name, reports):
        state = run.state
        if state.occasion == occasion and state.cell == dict(cell):
            return run if run.result is not None or state.spec_digest == spec.digest() else None
    return None


def runs_of(experiment: str, reports: Path) -> Iterator[RunFolder]:
    """The runs of an experiment, the latest first."""
    folder = reports / experiment
    for path in sorted(folder.iterdir() if folder.is_dir() else (), key=lambda path: path.name, reverse=True):
        if (path / "run.json").is_file() and (path / "spec.json").is_file():
            yield RunFolder(path)


def last_good(now: RunFolder, reports: Path) -> RunResult | None:
    """What the latest run that ended with success found, older than this one and of the same cell of the matrix."""
    state = now.state
    for run in runs_of(state.experiment, reports):
        if run.path.name < now.path.name and run.state.cell == state.cell:
            found = run.result
            if found is not None and found.exit_status == ExitStatus.SUCCESS:
                return found
    return None


def result_of(experiment: str, reports: Path, run_id: str) -> RunResult | None:
    """What a run found; None where there is no such run, or it has not finished."""
    path = reports / experiment / run_id / "result.json"
    return RunResult.read(path) if Path(run_id).name == run_id and path.is_file() else None


def working_on(run: RunFolder) -> RunState:
    """Note that this process works on it."""
    return run.update(status="running", attempts=run.state.attempts + 1, pid=os.getpid())
