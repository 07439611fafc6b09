"""Alerts as a person sees them: one output in a real kernel, lines elsewhere."""

from __future__ import annotations

import io

import pytest

from abswitch.errors import InvalidInput
from abswitch.notebook import AlertsView
from abswitch.notebook.alerts import AlertLines
from abswitch.serving.alerts import AlertState
from tests.notebook.test_output import executed
from tests.serving.test_webhook import alert

CELL = """
import threading
from abswitch.notebook import AlertsView
from tests.serving.test_webhook import alert

view = AlertsView(limit=2)

def send():
    for number in range(3):
        view.send(alert(alert_id=f"alert-{number}", message=f"message {number}"))

thread = threading.Thread(target=send)
thread.start()
thread.join()
"""


def test_in_a_notebook_it_is_one_output_that_another_thread_keeps_up_to_date() -> None:
    notebook = executed(CELL)
    (output,) = notebook.cells[0].outputs
    assert "message 2" in output.data["text/plain"] and "message 1" in output.data["text/html"]
    assert "message 0" not in output.data["text/plain"]


def test_elsewhere_it_is_a_line_an_alert() -> None:
    lines = io.StringIO()
    view = AlertsView(stream=lines)
    view.send(alert())
    view.send(alert(state=AlertState.RESOLVED))
    assert [line[9:] for line in lines.getvalue().splitlines()] == [
        "[critical] firing error_rate of bot:v2: 7 of 20 requests failed",
        "[critical] resolved error_rate of bot:v2: 7 of 20 requests failed",
    ]


def test_what_others_wrote_is_escaped() -> None:
    shown = AlertLines((alert(message="<script>alert(1)</script>", version="<b>"),)).to_html()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "<b>" not in shown
    assert "no alerts" in AlertLines(()).to_html()


def test_a_limit_is_at_least_one() -> None:
    with pytest.raises(InvalidInput, match="limit"):
        AlertsView(limit=0)
