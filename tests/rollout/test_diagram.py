from __future__ import annotations

from pathlib import Path

from abswitch.rollout.diagram import mermaid

PAGE = Path(__file__).parents[2] / "docs" / "state-machine.md"


def test_the_page_shows_the_table_the_machine_runs_on() -> None:
    text = PAGE.read_text(encoding="utf-8")
    drawn = text.split("```mermaid\n")[1].split("\n```")[0]
    assert drawn == mermaid(), f"draw it anew: python -m abswitch.rollout.diagram, and paste into {PAGE.name}"
