"""The examples beside docs/schedules.md name commands, specs, parameters and functions that exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from abswitch import cli
from abswitch.experiments.executing import parameters_of
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.schedules.occurrences import check_cron, check_zone
from abswitch.experiments.spec_parts import ScheduleSpec, WatchSpec
from abswitch.experiments.specfile import read_spec

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
AIRFLOW = EXAMPLES / "airflow_nightly.py"


def commands_of(value: Any) -> list[str]:
    """Every command line in a CI file."""
    if isinstance(value, str):
        return [line for line in value.splitlines() if "abswitch run" in line or line.startswith("make ")]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [line for part in parts for line in commands_of(part)]


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_ci_files_run_what_exists(name: str) -> None:
    commands = commands_of(yaml.safe_load((EXAMPLES / name).read_text()))
    assert "make setup" in commands
    (run,) = [shlex.split(command) for command in commands if "abswitch" in command]
    assert run[0] == ".venv/bin/abswitch"
    options = cli._parser().parse_args(run[1:])
    spec = read_spec(ROOT / options.spec)
    assert spec.watch is not None
    assert f"{spec.watch.webhook_env}" in (EXAMPLES / name).read_text(), "the address has to be given"


def test_the_github_file_is_a_workflow() -> None:
    plain = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())
    assert plain["jobs"]["nightly"]["steps"][0]["uses"].startswith("actions/checkout@")
    check_cron(plain[True]["schedule"][0]["cron"])  # YAML 1.1 reads the key `on` as true


def test_the_gitlab_file_allows_statuses_that_exist() -> None:
    plain = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())
    codes = plain["nightly"]["allow_failure"]["exit_codes"]
    assert [ExitStatus(code) for code in codes] == [ExitStatus.INCONCLUSIVE]


def calls_of(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def test_the_dag_names_the_notebooks_parameters_and_our_functions() -> None:
    source = AIRFLOW.read_text()
    tree = ast.parse(source)
    compile(tree, str(AIRFLOW), "exec")
    (operator,) = calls_of(tree, "PapermillOperator")
    given = {keyword.arg: keyword.value for keyword in operator.keywords}
    assert set(given) == {"task_id", "input_nb", "output_nb", "parameters", "kernel_name", "pool"}
    parameters = given["parameters"]
    assert isinstance(parameters, ast.Dict)
    names = {ast.literal_eval(key) for key in parameters.keys if key is not None}
    assert names <= parameters_of(ROOT / "notebooks" / "run_experiment.ipynb")
    for imported in ast.walk(tree):
        if isinstance(imported, ast.ImportFrom) and str(imported.module).startswith("abswitch"):
            module = importlib.import_module(str(imported.module))
            assert all(hasattr(module, alias.name) for alias in imported.names)
    (opened,) = calls_of(tree, "open_run")
    open_run = importlib.import_module("abswitch.experiments").open_run
    assert {keyword.arg for keyword in opened.keywords} <= set(inspect.signature(open_run).parameters)
    (dag,) = calls_of(tree, "dag")
    schedule = {keyword.arg: keyword.value for keyword in dag.keywords}["schedule"]
    check_cron(ast.literal_eval(schedule))
    zones = re.findall(r'tz="([^"]+)"', source)
    check_zone(zones[0])
    for place in re.findall(r'PROJECT / "(\w+)" / "([\w.]+)"', source):
        assert (ROOT / Path(*place)).is_file()


def test_the_page_lists_every_field() -> None:
    page = (ROOT / "docs" / "schedules.md").read_text()
    for model in (ScheduleSpec, WatchSpec):
        for name, field in model.model_fields.items():
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                assert row.endswith(f"| {field.default:g} |"), row
    for linked in re.findall(r"\]\((examples/[\w.-]+)\)", page):
        assert (ROOT / "docs" / linked).is_file()


def test_the_example_is_scheduled_and_watched() -> None:
    spec = read_spec(ROOT / "experiments" / "nightly_watch.yaml")
    assert spec.schedule is not None
    assert spec.watch is not None
