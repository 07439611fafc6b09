"""`ProgressView`: how far an experiment is, live, wherever it runs: a notebook, a terminal, a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol, TextIO

from abswitch.experiments.asking import Progress
from abswitch.experiments.palette import BASELINE, FAILED, color_of_arm
from abswitch.notebook.output import LiveOutput, Renderable, in_notebook
from abswitch.stats import Decision, Verdict

_MIN_INTERVAL_S = 0.1
_LOG_STEPS = 10
_BAR_WIDTH, _BAR_HEIGHT = 600, 14
_FONT = "font:13px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums"


@dataclass(frozen=True, slots=True)
class StageState:
    """A stage of some work, in words, and the share of the whole that is done, 0–1."""

    words: str
    fraction: float

    def to_text(self) -> str:
        return f"{self.words}: {self.fraction:.0%}"

    def to_html(self) -> str:
        return (
            f'<div style="max-width:600px;{_FONT}"><div style="display:flex;justify-content:space-between;gap:1em">'
            f"<strong>{escape(self.words)}</strong><span>{self.fraction:.0%}</span></div>"
            f"{_bar([(self.fraction, BASELINE)], self.fraction)}</div>"
        )


@dataclass(frozen=True, slots=True)
class ProgressState:
    """One moment of an experiment, with what the progress alone does not tell.

    Attributes:
        names: arm → version, for people.
        rate_per_s: requests ended per second since the asking began; None before there is one to tell.
    """

    progress: Progress
    names: Mapping[str, str]
    rate_per_s: float | None

    @property
    def words(self) -> str:
        """The phase."""
        return self.progress.phase

    @property
    def fraction(self) -> float:
        """Part of the requests that ended, 0–1."""
        return self.progress.done / self.progress.total if self.progress.total else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the present rate; None when nothing is left, it is decided, or not known."""
        if self.progress.phase in {*Decision}:
            return None
        left = self.progress.total - self.progress.done
        return left / self.rate_per_s if self.rate_per_s and left else None

    @property
    def parts(self) -> list[tuple[str, int, str]]:
        """Label, count and colour of each part of what is done: the arms in order, then the failed."""
        arms = sorted(self.progress.by_arm, key=lambda arm: (arm == "candidate", arm))
        parts = [(self.names.get(arm, arm), self.progress.by_arm[arm], color_of_arm(arm)) for arm in arms]
        return parts + ([("failed", self.progress.failed, FAILED)] if self.progress.failed else [])

    @property
    def findings(self) -> list[str]:
        """What the latest look found of each candidate's primary metric, with an interval that holds at all looks."""
        verdicts = self.progress.verdicts
        return [_finding(verdict, named=len(verdicts) > 1) for verdict in verdicts.values()]

    def to_text(self) -> str:
        """One line."""
        split = ", ".join(f"{label} {count:,}" for label, count, _ in self.parts)
        found = "".join(f" · {finding}" for finding in self.findings)
        return f"{self.progress.phase}: {self._counts}" + (f" · {split}" if split else "") + f" · {self._pace}{found}"

    def to_html(self) -> str:
        """A bar, split by arm, over a line of figures."""
        found = "".join(f"<div>{escape(finding)}</div>" for finding in self.findings)
        legend = "".join(
            f'<span style="white-space:nowrap"><span style="color:{color}">■</span> {escape(label)} {count:,}</span>'
            for label, count, color in self.parts
        )
        return (
            f'<div style="max-width:600px;{_FONT}">'
            f'<div style="display:flex;justify-content:space-between;gap:1em"><strong>{escape(self.progress.phase)}'
            f"</strong><span>{self._counts}</span></div>{self._bar()}"
            '<div style="display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1em">'
            f'<span style="display:flex;flex-wrap:wrap;gap:0 1em">{legend}</span><span>{self._pace}</span></div>'
            f"{found}</div>"
        )

    def _bar(self) -> str:
        total = max(self.progress.total, 1)
        return _bar([(count / total, color) for _, count, color in self.parts], self.fraction)

    @property
    def _counts(self) -> str:
        return f"{self.progress.done:,} of {self.progress.total:,} ({self.fraction:.0%})"

    @property
    def _pace(self) -> str:
        pace = [] if self.rate_per_s is None else [f"{self.rate_per_s:,.0f} requests/s"]
        left = [] if self.remaining_s is None else [f"{duration(self.remaining_s)} left"]
        return " · ".join([*pace, *left, f"{duration(self.progress.elapsed_s)} elapsed"])


def _finding(verdict: Verdict, *, named: bool) -> str:
    found = verdict.comparisons.get(verdict.primary)
    whose = f"{verdict.candidate}: " if named else ""
    if found is None or not found.attainable:
        return f"{whose}look {verdict.look}: nothing to tell yet"
    return (
        f"{whose}{verdict.primary} {found.estimate:+.3g} [{found.low:+.3g}, {found.high:+.3g}] at look {verdict.look}, "
        f"{100 * (1 - found.alpha):.4g}% at all looks"
    )


def _bar(parts: Sequence[tuple[float, str]], done: float) -> str:
    """A bar of parts (share of the whole, colour), as SVG."""
    rectangles, x = [], 0.0
    for share, color in parts:
        width = _BAR_WIDTH * share
        rectangles.append(f'<rect x="{x:.1f}" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{color}"/>')
        x += width
    return (
        f'<svg viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{done:.0%} done" style="display:block;width:100%;height:{_BAR_HEIGHT}px;'
        f'border-radius:3px;margin:2px 0"><rect width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" fill="#888" '
        f'fill-opacity=".2"/>{"".join(rectangles)}</svg>'
    )


class StageView:
    """Shows work that reports itself as (words, share done), e.g. `tiny_models(progress=StageView())`.

    Args:
        stream: where text goes, standard error by default; giving one also turns the notebook output off.
    """

    def __init__(self, *, stream: TextIO | None = None) -> None:
        self._sink = _sink(stream)
        self._shown: StageState | None = None

    def __call__(self, words: str, fraction: float) -> None:
        """Show this, unless it is what is shown already, to the percent."""
        state = StageState(words, round(fraction, 2))
        if state != self._shown:
            self._shown = state
            self._sink.show(state)


class ProgressView:
    """Shows progress; give it to `run_ab_test(on_progress=…)`.

    In a notebook it is one output with a bar, replaced in place. On a terminal it is one line that rewrites itself; in
    a pipe or file it is a line for each phase and each tenth. At most ten updates a second, and always the last one.

    Args:
        names: arm → version, e.g. `{"stable": "v1", "candidate": "v2"}`; arms keep their own names otherwise.
        stream: where text goes, standard error by default; giving one also turns the notebook output off.
    """

    def __init__(self, names: Mapping[str, str] | None = None, *, stream: TextIO | None = None) -> None:
        self._names = dict(names or {})
        self._sink = _sink(stream)
        self._shown: Progress | None = None
        self._first_asking: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Take note of the progress, and show it when it is time."""
        if self._first_asking is None and progress.done:
            self._first_asking = progress
        if self._is_due(progress):
            self._shown = progress
            self._sink.show(ProgressState(progress, self._names, self._rate(progress)))

    def _is_due(self, progress: Progress) -> bool:
        shown = self._shown
        if shown is None or progress.phase != shown.phase:
            return True
        if progress.done == progress.total:
            return shown.done != progress.done or shown.verdicts != progress.verdicts
        return progress.elapsed_s - shown.elapsed_s >= _MIN_INTERVAL_S

    def _rate(self, progress: Progress) -> float | None:
        first = self._first_asking
        if first is None or progress.done == first.done:
            return None
        return (progress.done - first.done) / max(progress.elapsed_s - first.elapsed_s, 1e-9)


def duration(seconds: float) -> str:
    """A duration for people: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _State(Renderable, Protocol):
    @property
    def fraction(self) -> float: ...

    @property
    def words(self) -> str: ...


class _Line:
    """One terminal line, rewritten while its stage lasts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._words = ""
        self._open = False

    def show(self, state: _State) -> None:
        if self._open and self._words != state.words:
            self._stream.write("\n")
        self._words = state.words
        self._open = state.fraction < 1.0
        self._stream.write(f"\r\x1b[2K{state.to_text()}" + ("" if self._open else "\n"))
        self._stream.flush()


class _Log:
    """Lines of a file or pipe: one for each stage, one for each tenth."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._words = ""
        self._next = 0.0

    def show(self, state: _State) -> None:
        if state.words == self._words and state.fraction < self._next:
            return
        self._words = state.words
        self._next = min(1.0, (int(state.fraction * _LOG_STEPS + 1e-9) + 1) / _LOG_STEPS)
        self._stream.write(state.to_text() + "\n")
        self._stream.flush()


def _sink(stream: TextIO | None) -> LiveOutput | _Line | _Log:
    if stream is None and in_notebook():
        return LiveOutput()
    stream = stream or sys.stderr
    return _Line(stream) if stream.isatty() else _Log(stream)
