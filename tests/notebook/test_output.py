"""Outputs in a real kernel: one output replaced in place, which a saved notebook keeps in its last state."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from abswitch.notebook.output import in_notebook

PROGRESS = """
from abswitch.experiments import Progress
from abswitch.notebook import ProgressView

view = ProgressView({"stable": "v1", "candidate": "v2"})
for done in range(101):
    view(Progress(phase="asking", done=done, total=100, failed=0, by_arm={"stable": done}, elapsed_s=done / 50))
view(Progress(phase="ship", done=100, total=100, failed=0, by_arm={"stable": 100}, elapsed_s=3))
"""


def executed(*sources: str) -> Any:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    root = Path(__file__).resolve().parents[2]
    resources = {"metadata": {"path": root}}
    return NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()


def test_a_plain_interpreter_is_no_notebook() -> None:
    assert not in_notebook()


@pytest.fixture(scope="module")
def notebook() -> Any:
    return executed(PROGRESS)


def test_progress_is_one_output_in_its_last_state(notebook: Any) -> None:
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert set(output.data) == {"text/html", "text/plain"}
    assert output.data["text/plain"].startswith("ship: 100 of 100 (100%)")
    assert "<svg" in output.data["text/html"]


def test_it_survives_in_exported_html(notebook: Any) -> None:
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert "100 of 100 (100%)" in page
    assert "<strong>ship</strong>" in page


PANEL = """
from abswitch.notebook import SwitchPanel, show
from tests.experiments.scripted import ab_test

async with ab_test(n=60) as (engine, result):
    panel = SwitchPanel(engine, result.handle)
    panel.show()
    panel.promote.click()
    await result.handle.done()
    assert panel.join(20)
    show(engine.get_switching_status())
"""


def test_a_panel_keeps_its_last_state_beside_the_buttons() -> None:
    buttons, state, status = executed(PANEL).cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in buttons.data
    assert "text/html" not in buttons.data  # an export would prefer the widget, and show nothing
    assert "application/vnd.jupyter.widget-view+json" not in state.data
    assert "<strong>succeeded</strong>" in state.data["text/html"]
    assert "Promote: done" in state.data["text/html"]
    assert "v2 100%" in status.data["text/html"]
