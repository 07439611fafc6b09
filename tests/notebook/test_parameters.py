from pathlib import Path
from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.notebook.parameters import check_parameters, project_folder, store_uri

ALLOWED: dict[str, Any] = {"n": range(40, 1001), "candidate": ("better", "regressed"), "store": str, "quick": bool}
VALUES: dict[str, Any] = {"n": 600, "candidate": "better", "store": "", "quick": False}


def test_allowed_values_pass() -> None:
    check_parameters(VALUES, **ALLOWED)
    check_parameters(VALUES | {"n": 1000, "quick": True}, **ALLOWED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 39),
        ("n", 1001),
        ("n", "600"),
        ("n", True),
        ("candidate", "best"),
        ("store", None),
        ("store", 3),
        ("quick", 1),
    ],
)
def test_a_value_outside_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_parameters(VALUES | {name: value}, **ALLOWED)
    assert refused.value.field == f"parameters.{name}"
    assert refused.value.value == value


def test_a_missing_parameter_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"parameters\.n"):
        check_parameters({name: value for name, value in VALUES.items() if name != "n"}, **ALLOWED)


def test_a_name_that_papermill_injected_and_nobody_knows_is_refused() -> None:
    cells = ["", "n = 600", '# Parameters\nn = 700\nn_question = {"of": [1]}\n']
    with pytest.raises(InvalidInput, match=r"parameters\.n_question: .*candidate, n, quick, store"):
        check_parameters(VALUES | {"In": cells, "n_question": 3}, **ALLOWED)


def test_names_of_other_cells_are_nobodys_business() -> None:
    check_parameters(VALUES | {"In": ["helper = 1", "# Parameters\nn = 700\n"]}, **ALLOWED)


def test_project_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for here in (tmp_path, notebooks):
        monkeypatch.chdir(here)
        assert project_folder() == tmp_path
    assert project_folder(notebooks) == notebooks
    assert project_folder("deeper") == notebooks / "deeper"


def test_project_folder_outside_any_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_folder() == tmp_path


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("", None),
        ("sqlite:///mlflow/mlflow.db", "sqlite:////project/mlflow/mlflow.db"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_store_uri(given: str, resolved: str | None) -> None:
    assert store_uri(given, Path("/project")) == resolved
