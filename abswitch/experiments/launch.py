"""`launch`: every run of a spec file, from the command line's words to exit statuses."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from abswitch.errors import InvalidInput, SwitchRefused
from abswitch.experiments import sources
from abswitch.experiments.executing import NotExecuted, execute, parameters_of
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.locks import accelerators, holding
from abswitch.experiments.project import project_of
from abswitch.experiments.runs import RunFolder, RunResult, open_run
from abswitch.experiments.spec import ExperimentSpec
from abswitch.experiments.spec_parts import Call, FilePrompts, FunctionScorer, GeneratedPrompts, TraceLoad
from abswitch.experiments.specfile import PlannedRun, override_of, planned_runs, read_spec, words_of


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
        runs = _planned(path, settings, project)
    except _Refused as refused:
        yield Launched(status=refused.status, cell={}, problem=str(refused))
        return
    for number, planned in enumerate(runs, start=1):
        if len(runs) > 1:
            _say(told, f"run {number} of {len(runs)}: {words_of(planned.cell)}")
        yield _one(planned, project, reports or project / "reports", fresh, wait_s, told, occasion)


class _Refused(Exception):
    def __init__(self, status: ExitStatus, error: Exception) -> None:
        self.status = status
        super().__init__(str(error))


def _planned(path: Path, settings: Sequence[str], project: Path) -> tuple[PlannedRun, ...]:
    try:
        whole = read_spec(path)
    except InvalidInput as error:
        raise _Refused(ExitStatus.BAD_SPEC, error) from error
    except OSError as error:
        raise _Refused(ExitStatus.NO_SPEC, error) from error
    try:
        notebook = parameters_of(project / whole.notebook.path)
        overrides = dict(_placed(override_of(text), notebook) for text in settings)
        _refuse_new_names(whole, overrides)
        runs = planned_runs(path, overrides)
        for name in {name for run in runs for name in run.spec.notebook.parameters}:
            if name not in notebook:
                raise InvalidInput(f"notebook.parameters.{name}", name, "only " + ", ".join(sorted(notebook)))
        for run in runs:
            preflight(run.spec, project)
    except InvalidInput as error:
        raise _Refused(ExitStatus.USAGE if settings else ExitStatus.BAD_SPEC, error) from error
    return runs


def _placed(override: tuple[str, Any], notebook: frozenset[str]) -> tuple[str, Any]:
    key, value = override
    if "." not in key and key not in ExperimentSpec.model_fields and key in notebook - _OURS:
        return f"notebook.parameters.{key}", value
    return key, value


_OURS = frozenset({"run_dir", "spec", "project_dir"})


def _refuse_new_names(spec: ExperimentSpec, overrides: Mapping[str, Any]) -> None:
    """A misspelt version would otherwise be a new one that nobody uses."""
    for key in overrides:
        parts = key.split(".")
        if parts[0] == "versions" and len(parts) > 1 and parts[1] not in spec.versions:
            raise InvalidInput(f"-p {key}", parts[1], "one of the versions: " + ", ".join(spec.versions))


def preflight(spec: ExperimentSpec, project: Path) -> None:
    """Everything a spec names is there: functions that take their arguments, files, the notebook.

    Raises:
        InvalidInput: names what is not.
    """
    calls: list[tuple[str, str, Mapping[str, Any]]] = []
    if isinstance(spec.prompts, GeneratedPrompts):
        calls.append(("prompts", spec.prompts.function, spec.prompts.arguments))
    for name, version in spec.versions.items():
        made = [source for source in (version.model, version.adapter) if isinstance(source, Call)]
        calls += [(f"versions.{name}.model", source.function, source.arguments) for source in made]
    calls += [(f"engine.backends.{name}", made.function, made.arguments) for name, made in spec.engine.backends.items()]
    for field, reference, arguments in calls:
        function = sources.function_of(reference, project, field=field)
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise InvalidInput(f"{field}.arguments", dict(arguments), f"those of {reference} ({error})") from error
    for scorer in spec.scorers:
        if isinstance(scorer, FunctionScorer):
            sources.function_of(scorer.function, project, field=f"scorers.{scorer.name}")
    for field, file in _files(spec):
        if not (project / file).is_file():
            raise InvalidInput(field, str(project / file), "a file that exists")


def _files(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    yield "notebook.path", spec.notebook.path
    if isinstance(spec.prompts, FilePrompts):
        yield "prompts.path", spec.prompts.path
    if isinstance(spec.load, TraceLoad) and spec.load.path is not None:
        yield "load.path", spec.load.path


def _one(
    planned: PlannedRun,
    project: Path,
    reports: Path,
    fresh: bool,
    wait_s: float,
    told: TextIO | None,
    occasion: str,
) -> Launched:
    try:
        run = open_run(
            planned.spec, reports=reports, project=project, cell=planned.cell, fresh=fresh, occasion=occasion
        )
    except OSError as error:
        return Launched(status=ExitStatus.CANNOT_WRITE, cell=planned.cell, problem=str(error))
    if (result := run.result) is not None:
        _say(told, f"{run.spec.name}: {run.path} has finished before")
        return Launched(status=ExitStatus(result.exit_status), cell=planned.cell, folder=run.path, result=result)
    try:
        with (
            run.held("command", 0.0),
            holding(
                accelerators(planned.spec.accelerators),
                holder=f"{planned.spec.name}, run {run.state.run_id}",
                wait_s=wait_s,
            ),
        ):
            run.wait_for_orphan()
            return _executed(run, project, planned.cell, told)
    except SwitchRefused as error:
        return Launched(status=ExitStatus.BUSY, cell=planned.cell, folder=run.path, problem=str(error))


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
    except NotExecuted as error:
        run.update(status="failed")
        return Launched(status=error.status, cell=cell, folder=run.path, problem=str(error))
    except InvalidInput as error:
        return Launched(status=ExitStatus.BAD_SPEC, cell=cell, folder=run.path, problem=str(error))
    result = run.result
    if result is None:
        problem = f"{notebook.name} came to its end without `finish`; a notebook of your own must call it"
        return Launched(status=ExitStatus.FAILED, cell=cell, folder=run.path, problem=problem)
    return Launched(status=ExitStatus(result.exit_status), cell=cell, folder=run.path, result=result)


def _say(told: TextIO | None, words: str) -> None:
    (told or sys.stderr).write(words + "\n")
