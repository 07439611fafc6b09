"""What the quickstart notebook refuses, before anything is trained or started."""

from pathlib import Path
from typing import Any

import papermill
import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_quickstart.ipynb"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"n_question": 500}, r"parameters\.n_question: got 500; allowed: only candidate, concurrency"),
        ({"n_questions": 5}, r"parameters\.n_questions: got 5; allowed: a whole number of at least 40"),
        ({"candidate": "best"}, r"parameters\.candidate: got 'best'; allowed: one of better, regressed, identical"),
    ],
)
def test_bad_parameters(tmp_path: Path, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(papermill.PapermillExecutionError, match=words):
        papermill.execute_notebook(
            NOTEBOOK, tmp_path / "executed.ipynb", parameters, cwd=NOTEBOOK.parent, progress_bar=False
        )


def test_papermill_can_tell_what_each_parameter_is_for() -> None:
    described = papermill.inspect_notebook(NOTEBOOK)
    assert described["n_questions"]["inferred_type_name"] == "int"
    assert all(parameter["help"] for parameter in described.values())
