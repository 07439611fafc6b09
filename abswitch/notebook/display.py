"""`show`: verdicts, results, statuses and figures as they look best wherever the code runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from abswitch.errors import InvalidInput
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.asking import RequestCounts
from abswitch.experiments.canary import CanaryResult
from abswitch.experiments.palette import BAD, BASELINE, CANDIDATE, GOOD, OPEN
from abswitch.experiments.readings import Reading, Words, readings_of
from abswitch.notebook.output import Renderable, in_notebook
from abswitch.notebook.panel import SwitchView
from abswitch.serving.status import ModelStatus, OperationStatus, SwitchingStatus
from abswitch.stats import Decision, Verdict

if TYPE_CHECKING:
    from abswitch.experiments.chart import Chart

_DECISION_COLORS = {Decision.SHIP: GOOD, Decision.EQUIVALENT: GOOD, Decision.KEEP: BAD}
_CANARY_COLORS = {"promote": GOOD, "roll back": BAD}
_TONES = {"good": GOOD, "bad": BAD, "open": OPEN}
_CELL = "text-align:left;vertical-align:top;padding:4px 14px 4px 0"
_FONT = "font:13px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums"

Showable = Verdict | ABTestResult | CanaryResult | SwitchingStatus | ModelStatus | OperationStatus


def show(what: Showable | Chart) -> None:
    """Show a verdict, an experiment's result, a status or a figure: rich in a notebook, as text elsewhere.

    Raises:
        InvalidInput: it is none of these.
    """
    drawn = hasattr(what, "_repr_png_")
    content = what if drawn else card(what)
    if not in_notebook():
        sys.stdout.write(f"{getattr(what, 'finding', content)}\n")
        return
    from IPython.display import display

    display(content)  # type: ignore[no-untyped-call]  # IPython's


def card(what: object) -> Card:
    """The same as an object that renders itself, for the last line of a cell.

    Raises:
        InvalidInput: not a verdict, result or status.
    """
    match what:
        case Verdict():
            return Card(_VerdictContent(what))
        case ABTestResult():
            return Card(_ResultContent(what))
        case CanaryResult():
            return Card(_CanaryContent(what))
        case SwitchingStatus():
            return Card(_StatusContent(what))
        case ModelStatus():
            return Card(_StatusContent(SwitchingStatus(models=(what,))))
        case OperationStatus():
            return Card(SwitchView(what))
    raise InvalidInput("what", what, "a verdict, the result of an experiment, or a status")


@dataclass(frozen=True, slots=True)
class Card:
    """Content that IPython renders by itself."""

    content: Renderable

    def to_html(self) -> str:
        """A fragment of HTML."""
        return self.content.to_html()

    def to_text(self) -> str:
        """The same for a terminal."""
        return self.content.to_text()

    def _repr_html_(self) -> str:
        return self.content.to_html()

    def __repr__(self) -> str:
        return self.content.to_text()


@dataclass(frozen=True, slots=True)
class _VerdictContent:
    verdict: Verdict

    def to_text(self) -> str:
        return self.verdict.in_words()

    def to_html(self) -> str:
        first, *others = self.verdict.reasons
        return f"{_opening(*_head(self.verdict))}<div>{escape(first)}</div>{_list(others)}</div>"


@dataclass(frozen=True, slots=True)
class _ResultContent:
    result: ABTestResult

    def to_text(self) -> str:
        return f"{self.result.in_words()}\n{_counts(self.result.requests)}"

    def to_html(self) -> str:
        cards = "".join(map(self._candidate, self.result.verdicts.values()))
        if len(self.result.verdicts) == 1:
            return cards
        winner = self.result.winner
        told = "No candidate wins." if winner is None else f"{winner} wins."
        return f'<div style="font-size:1.25em;font-weight:600;{_FONT}">{escape(told)}</div>{cards}'

    def _candidate(self, verdict: Verdict) -> str:
        heads = (
            "metric",
            f'<span style="color:{BASELINE}">●</span> {escape(verdict.baseline)}',
            f'<span style="color:{CANDIDATE}">●</span> {escape(verdict.candidate)}',
            "difference",
            "margin",
            "finding",
        )
        rows = "".join(map(_metric_row, readings_of(self.result.plan, verdict)))
        return (
            f"{_opening(*_head(verdict))}<div>{escape(verdict.reasons[0])}</div>"
            f'<table style="border-collapse:collapse;margin:8px 0;{_FONT}"><thead><tr>'
            + "".join(f'<th style="{_CELL};font-weight:500">{head}</th>' for head in heads)
            + f"</tr></thead><tbody>{rows}</tbody></table><div>{_counts(self.result.requests)}</div></div>"
        )


@dataclass(frozen=True, slots=True)
class _CanaryContent:
    result: CanaryResult

    def to_text(self) -> str:
        lines = (self.result.headline, *(f"  - {reason}" for reason in self.result.reasons))
        return "\n".join((*lines, _counts(self.result.requests)))

    def to_html(self) -> str:
        reason, *moves = self.result.reasons
        opening = _opening(self.result.headline, _CANARY_COLORS.get(self.result.decision, OPEN))
        return f"{opening}<div>{escape(reason)}</div>{_list(moves)}<div>{_counts(self.result.requests)}</div></div>"


@dataclass(frozen=True, slots=True)
class _StatusContent:
    status: SwitchingStatus

    def to_text(self) -> str:
        return str(self.status)

    def to_html(self) -> str:
        return self.status._repr_html_()


def _metric_row(reading: Reading) -> str:
    words = (reading.baseline, reading.candidate, reading.difference)
    return (
        f'<tr><td style="{_CELL}"><strong>{escape(reading.name)}</strong>{_small(reading.about)}</td>'
        + "".join(f'<td style="{_CELL}">{_words(word)}</td>' for word in words)
        + f'<td style="{_CELL}">{escape(reading.margin)}</td>'
        f'<td style="{_CELL};color:{_TONES[reading.tone]};font-weight:600">{escape(reading.finding)}</td></tr>'
    )


def _words(words: Words) -> str:
    return escape(words.value) + _small(words.detail)


def _small(text: str) -> str:
    return f'<br><small style="opacity:.75">{escape(text)}</small>'


def _list(lines: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul style="margin:4px 0;opacity:.8">{items}</ul>' if items else ""


def _counts(made: RequestCounts) -> str:
    return f"{made.sent:,} requests sent, {made.answered:,} answered, {made.failed:,} failed, {made.lost:,} lost"


def _head(verdict: Verdict) -> tuple[str, str]:
    return verdict.headline, _DECISION_COLORS.get(verdict.decision, OPEN)


def _opening(headline: str, color: str) -> str:
    """The beginning of a card, headline included; the caller closes the `div`."""
    return (
        f'<div style="max-width:60em;{_FONT};border-left:4px solid {color};padding:2px 0 2px 12px">'
        f'<div style="font-size:1.25em;font-weight:600">{escape(headline)}</div>'
    )
