"""`launch`: every run of a spec file, from the command line's words to exit statuses."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments.executing import NotExecuted, execute, parameters_of
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.locks import accelerators, holding
from abswitch.experiments.overriding import words_of
from abswitch.experiments.overview import refresh
from abswitch.experiments.project import project_of
from abswitch.experiments.runs import RunFolder, RunResult, open_run
from abswitch.experiments.spec import ExperimentSpec
from abswitch.experiments.spec_checks import preflight
from abswitch.experiments.specfile import PlannedRun, override_of, planned_runs, read_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One run as it ended.

    Attributes:
        result: None when it came to no verdict.
        problem: why it came to none.
    """

    status: ExitStatus
    cell: Mapping[str, Any]
    folder: Path | None = None
    result: RunResult | None = None
    problem: str = ""


def launch(
    path: Path,
    settings: Sequence[str] = (),
    *,
    reports: Path | None = None,
    fresh: bool = False,
    wait_s: float = 0.0,
    told: TextIO | None = None,
    occasion: str = "",
) -> Iterator[Launched]:
    """Run a spec file: one run after the other, each given as it ends. What can be checked is checked before the first.

    Args:
        settings: `key=value`; a key is a dotted field of the spec, or a parameter of its notebook.
        reports: folder of the reports; `reports` in the project by default.
        fresh: begin anew, instead of going on with an interrupted run of the same spec.
        wait_s: for the accelerator, when another run holds it.
        told: where to say what is going on; standard error by default.
        occasion: what the runs are for. The same one goes on with its own runs only, and those of it that have finished
            are given as they ended, not run again.
    """
    project = project_of(path)
    try:
        runs = planned(path, settings)
    except Refused as refused:
        yield Launched(status=refused.status, cell={}, problem=str(refused))
        return
    for number, run in enumerate(runs, start=1):
        if len(runs) > 1:
            _say(told, f"run {number} of {len(runs)}: {words_of(run.cell)}")
        launched = _one(run, project, reports or project / "reports", fresh, wait_s, told, occasion)
        refresh(reports or project / "reports")
        yield launched


class Refused(Exception):
    """Nothing was started; the message says why.

    Attributes:
        status: what a command should exit with.
    """

    def __init__(self, status: ExitStatus, message: str) -> None:
        self.status = status
        super().__init__(message)


def planned(path: Path, settings: Sequence[str] = ()) -> tuple[PlannedRun, ...]:
    """Every run of a spec file, checked as far as it can be without starting anything.

    Args:
        settings: as in `launch`.

    Raises:
        Refused: the file, what it names, or a setting is wrong.
    """
    project = project_of(path)
    try:
        return _checked(path, settings, project)
    except OSError as error:
        raise Refused(ExitStatus.NO_SPEC, f"{path}: {error.strerror or error}") from error
    except InvalidInput as error:
        at_fault = ExitStatus.USAGE if _is_of_settings(path, settings, project) else ExitStatus.BAD_SPEC
        raise Refused(at_fault, str(error)) from error


def _is_of_settings(path: Path, settings: Sequence[str], project: Path) -> bool:
    """Whether the file alone would have been fine."""
    try:
        return bool(settings and _checked(path, (), project))
    except InvalidInput:
        return False


def _checked(path: Path, settings: Sequence[str], project: Path) -> tuple[PlannedRun, ...]:
    given = dict(map(override_of, settings))
    whole = read_spec(path, {key: value for key, value in given.items() if "." in key or key in _FIELDS})
    notebook = parameters_of(project / whole.notebook.path)
    runs = planned_runs(path, {_placed(key, notebook): value for key, value in given.items()})
    for name in {name for run in runs for name in run.spec.notebook.parameters}:
        if name not in notebook - _OURS:
            raise InvalidInput(f"notebook.parameters.{name}", name, "only " + _listed(notebook - _OURS))
    for run in runs:
        try:
            preflight(run.spec, project)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error.field}", error.value, error.allowed) from error
    return runs


def _placed(key: str, notebook: frozenset[str]) -> str:
    """A setting's key as a field of the spec: a name alone may be a parameter of the notebook."""
    if "." in key or key in _FIELDS:
        return key
    if key not in notebook - _OURS:
        close = difflib.get_close_matches(key, {*_FIELDS, *notebook - _OURS}, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        told = f"a field of the spec, dotted, or a parameter of its notebook: {_listed(notebook - _OURS)}{hint}"
        raise InvalidInput(f"-p {key}", key, told)
    return f"notebook.parameters.{key}"


_FIELDS = frozenset(ExperimentSpec.model_fields)
_OURS = frozenset({"run_dir", "spec", "project_dir"})
"""Parameters that are no user's: the command itself gives them."""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "it has none"


def _one(
    planned: PlannedRun,
    project: Path,
    reports: Path,
    fresh: bool,
    wait_s: float,
    told: TextIO | None,
    occasion: str,
) -> Launched:
    spec, cell = planned.spec, planned.cell
    with ExitStack() as held:
        try:
            # The accelerator first: who is refused has left nothing behind.
            held.enter_context(holding(accelerators(spec.accelerators), holder=spec.name, wait_s=wait_s))
            run = open_run(spec, reports=reports, project=project, cell=cell, fresh=fresh, occasion=occasion)
            held.enter_context(run.held("command", 0.0))
            run.wait_for_orphan()
        except OSError as error:
            return Launched(status=ExitStatus.CANNOT_WRITE, cell=cell, problem=f"cannot write: {error}")
        except SwitchRefused as error:
            return Launched(status=ExitStatus.BUSY, cell=cell, problem=str(error))
        if run.result is not None:  # before, or by the kernel of a killed command, just now
            _say(told, f"{run.spec.name}: {run.path} has finished already")
            return _ended(run, run.result, cell)
        return _executed(run, project, cell, told)


def _executed(run: RunFolder, project: Path, cell: Mapping[str, Any], told: TextIO | None) -> Launched:
    going_on = ", going on with an interrupted run" if run.state.attempts else ""
    _say(told, f"{run.spec.name}: {run.path}{going_on}")
    notebook = project / run.spec.notebook.path
    given = {"run_dir": str(run.path), "project_dir": str(project), **run.spec.notebook.parameters}
    try:
        execute(
            notebook,
            run.path / notebook.name,
            {name: value for name, value in given.items() if name != "project_dir" or name in parameters_of(notebook)},
            title=run.spec.name,
            cell_timeout_s=run.spec.notebook.cell_timeout_s,
            start_timeout_s=run.spec.notebook.start_timeout_s,
        )
    except (NotExecuted, InvalidInput) as error:
        return _failed(run, getattr(error, "status", ExitStatus.BAD_SPEC), str(error))
    except OSError as error:
        return _failed(run, ExitStatus.CANNOT_WRITE, f"cannot write: {error}")
    result = run.result
    if result is None:
        problem = f"{notebook.name} came to its end without `finish`; a notebook of your own must call it"
        return _failed(run, ExitStatus.FAILED, problem)
    return _ended(run, result, cell)


def _ended(run: RunFolder, result: RunResult, cell: Mapping[str, Any]) -> Launched:
    return Launched(status=ExitStatus(result.exit_status), cell=cell, folder=run.path, result=result)


def _failed(run: RunFolder, status: ExitStatus, problem: str) -> Launched:
    with suppress(OSError):  # the disk may be what is wrong
        run.update(status="failed")
    return Launched(status=status, cell=run.state.cell, folder=run.path, problem=problem)


def _say(told: TextIO | None, words: str) -> None:
    (told or sys.stderr).write(words + "\n")
