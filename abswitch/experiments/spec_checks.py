"""What can be known of a spec before anything is started: its functions, files, prompts and columns are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.experiments import sources
from abswitch.experiments.spec import ExperimentSpec
from abswitch.experiments.spec_parts import (
    Call,
    CanaryDesign,
    FilePrompts,
    FunctionScorer,
    GeneratedPrompts,
    RandomisedDesign,
    SwitchbackDesign,
    TraceLoad,
    VersionSpec,
)
from abswitch.rollout.measured import BUILT_IN
from abswitch.serving.source import check_source
from abswitch.stats import AnalysisPlan
from abswitch.store.evidence import check_columns
from abswitch.store.joint_evidence import check_metrics


def preflight(spec: ExperimentSpec, project: Path) -> None:
    """Everything a spec names is there: functions that take their arguments, model folders (a hub id is checked for its
    form), files, the notebook, columns; and prompts that are in the spec or in files can be read.

    Raises:
        InvalidInput: names what is not.
    """
    for field, reference, arguments in _calls(spec):
        sources.fitting(reference, arguments, project, field=field)
    for scorer in spec.scorers:
        if isinstance(scorer, FunctionScorer):
            sources.function_of(scorer.function, project, field=f"scorers.{scorer.name}")
    _check_sources(spec, project)
    for field, file in _files(spec):
        if not (project / file).is_file():
            raise InvalidInput(field, str(project / file), "a file that exists")
    if isinstance(spec.load, TraceLoad) and spec.load.path is not None:
        sources.read_instants(project / spec.load.path)
    if sources.at_hand(spec.prompts, project):
        sources.read_prompts(spec.prompts, project, seed=spec.seed)
    _check_columns(spec)


def _calls(spec: ExperimentSpec) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    if isinstance(spec.prompts, GeneratedPrompts):
        yield "prompts", spec.prompts.function, spec.prompts.arguments
    for where, version in _versions(spec).items():
        for field in ("model", "adapter"):
            made = getattr(version, field)
            if isinstance(made, Call):
                yield f"{where}.{field}", made.function, made.arguments
    for name, made in spec.engine.backends.items():
        yield f"engine.backends.{name}", made.function, made.arguments


def _versions(spec: ExperimentSpec) -> dict[str, VersionSpec]:
    """Where in the spec → version."""
    judge = {} if spec.judge is None else {"judge.version": spec.judge.version}
    return {f"versions.{name}": version for name, version in spec.all_versions.items()} | judge


def _check_sources(spec: ExperimentSpec, project: Path) -> None:
    """Folders that versions are loaded from, where no function is to make them."""
    for where, version in _versions(spec).items():
        if isinstance(version.model, Call) or isinstance(version.adapter, Call):
            continue
        model, adapter = (sources.in_project(source, project) for source in (version.model, version.adapter))
        try:
            check_source(version.config(spec.model_id, model=model, adapter=adapter))
        except InvalidInput as error:
            raise InvalidInput(
                f"{where}.{error.field.removeprefix('model_config.')}", error.value, error.allowed
            ) from error


def _check_columns(spec: ExperimentSpec) -> None:
    """What metrics and guardrails name is measured, or scored by this spec; and the design can hold the metrics."""
    if isinstance(spec.design, CanaryDesign):
        for number, rail in enumerate(spec.design.guardrails):
            known = (*BUILT_IN, *spec.scores)
            checks.one_of(f"design.guardrails.{number}.metric", rail.metric, known)
        return
    blocks = ("baseline", "candidate") * 2 if isinstance(spec.design, SwitchbackDesign) else ()
    plan = AnalysisPlan(
        baseline=spec.baseline,
        candidate=spec.candidate,
        metrics=spec.metrics,
        expected_share=0.5,
        planned_n=4,
        alpha=spec.alpha,
        min_units=2,
        design=spec.design.kind,
        blocks=blocks,
    )
    check_columns(plan, spec.scores)
    if not isinstance(spec.design, RandomisedDesign):
        check_metrics(plan)


def _files(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    yield "notebook.path", spec.notebook.path
    if isinstance(spec.prompts, FilePrompts):
        yield "prompts.path", spec.prompts.path
    if isinstance(spec.load, TraceLoad) and spec.load.path is not None:
        yield "load.path", spec.load.path
