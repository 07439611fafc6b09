"""Tables of HTML for notebooks, of plain texts: whatever is in a cell is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_FONT = "border-collapse:collapse;font:13px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums"
_CELL = "text-align:left;vertical-align:top;padding:2px 14px 2px 0"


def paragraph(text: str) -> str:
    """One line of text."""
    return f'<div style="{_FONT}">{escape(text)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a row of headings."""
    heads = "".join(f'<th style="{_CELL};font-weight:500">{escape(one)}</th>' for one in head)
    return f'<table style="{_FONT}"><thead><tr>{heads}</tr></thead><tbody>{"".join(map(_row, rows))}</tbody></table>'


def named(lines: Iterable[tuple[str, str]]) -> str:
    """A table of two columns: a name, and what is to be said of it."""
    rows = (
        f'<tr><td style="{_CELL};opacity:.75">{escape(name)}</td><td style="{_CELL}">{escape(words)}</td></tr>'
        for name, words in lines
    )
    return f'<table style="{_FONT}"><tbody>{"".join(rows)}</tbody></table>'


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in cells) + "</tr>"


def figure(value: float | None, spec: str, unit: str = "") -> str:
    """A number as it is shown; a dash where there is none."""
    return "–" if value is None else f"{value:{spec}}{unit}"
