from __future__ import annotations

from pathlib import Path

import pytest

from abswitch.experiments.environment import environment
from abswitch.experiments.project import project_folder, project_of, store_uri


def test_a_specs_paths_start_at_the_nearest_project(tmp_path: Path) -> None:
    spec = tmp_path / "a/experiments/deep/x.yaml"
    spec.parent.mkdir(parents=True)
    assert project_of(spec) == spec.parent
    assert project_of(tmp_path / "a/experiments/x.yaml") == tmp_path / "a"
    (tmp_path / "a/pyproject.toml").touch()
    assert project_of(spec) == tmp_path / "a"


def test_a_notebooks_paths_start_where_it_is_told_or_at_the_nearest_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/notebooks")
    assert project_folder(tmp_path / "b") == tmp_path / "b"
    assert project_folder() == tmp_path / "a/notebooks"
    (tmp_path / "a/pyproject.toml").touch()
    assert project_folder() == tmp_path / "a"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sqlite:///mlflow/mlflow.db", "sqlite:////p/mlflow/mlflow.db"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("", None),
    ],
)
def test_addresses_of_stores_within_the_project(given: str, meant: str | None) -> None:
    assert store_uri(given, Path("/p")) == meant


def test_the_environment_names_what_results_depend_on() -> None:
    found = environment()
    assert {"abswitch", "vllm", "torch", "duckdb", "mlflow", "python", "platform", "cpu_count"} == set(found)
    assert found["duckdb"] is not None
    assert isinstance(found["cpu_count"], int)
