"""`Chart`: a matplotlib figure with a stated finding, laid out in inches, without pyplot and its global state."""

from __future__ import annotations

import io
import re
import textwrap

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from abswitch.experiments.palette import GRID, INK, MUTED

WIDE_IN = 7.5
NARROW_IN = 4.0
"""Widths for a page and for a telephone; text keeps its size, so each is drawn for its own width."""

_PNG_DPI = 144
_MARGIN_IN = 0.12
_TITLE_PT, _TEXT_PT = 11.5, 9.0
_LINE_IN = 1.4 / 72  # per point of type size
_LETTER_IN = 0.53 / 72  # mean width of a letter, per point
_SUPERFLUOUS = (
    (re.compile(r"<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL), ""),
    (re.compile(r"(?<!scale\()(\d\.\d{3})\d+"), r"\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"> <"), "><"),
)


class Chart(Figure):
    """A figure whose title says what it shows. It renders itself in notebooks; `png` and `svg` give it as a file.

    Args:
        finding: what is to be seen, as a sentence.
        what: what is drawn and in which units.
        plot_in: height of the plotting area in inches; title and text come on top of it.
    """

    def __init__(self, finding: str, what: str, *, plot_in: float, width_in: float = WIDE_IN) -> None:
        self.finding = finding
        title = _wrapped(finding, _TITLE_PT * 1.08, width_in)  # bold runs wider
        text = _wrapped(what, _TEXT_PT, width_in)
        head_in = (len(title) * _TITLE_PT + len(text) * _TEXT_PT) * _LINE_IN + 0.12
        height_in = head_in + plot_in + 2 * _MARGIN_IN
        super().__init__(figsize=(width_in, height_in), facecolor="white")
        FigureCanvasAgg(self)
        self.width_in, self.height_in, self._top_in = width_in, height_in, height_in - _MARGIN_IN - head_in
        y_in = height_in - _MARGIN_IN
        for lines, size, color, weight in ((title, _TITLE_PT, INK, "bold"), (text, _TEXT_PT, MUTED, "normal")):
            y_in -= 0.03
            self.text(
                _MARGIN_IN / width_in, y_in / height_in, "\n".join(lines),
                fontsize=size, color=color, weight=weight, va="top", linespacing=1.25,
            )  # fmt: skip
            y_in -= len(lines) * size * _LINE_IN

    def plot_area(self, *, left_in: float, bottom_in: float = 0.5, right_in: float = 0.15, top_in: float = 0.0) -> Axes:
        """Axes that fill the space below the text, less these margins."""
        left, bottom = (_MARGIN_IN + left_in) / self.width_in, (_MARGIN_IN + bottom_in) / self.height_in
        width = 1.0 - left - (_MARGIN_IN + right_in) / self.width_in
        axes = self.add_axes((left, bottom, width, (self._top_in - top_in) / self.height_in - bottom))
        style(axes)
        return axes

    def png(self) -> bytes:
        """The figure as PNG, 144 dots per inch."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_PNG_DPI)
        return buffer.getvalue()

    def svg(self) -> str:
        """The figure as SVG with text as outlines: it looks the same everywhere.

        A thousandth of a point is near enough, and what only readers of the source would miss is left out.
        """
        buffer = io.BytesIO()
        self.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        text = buffer.getvalue().decode()
        for pattern, instead in _SUPERFLUOUS:
            text = pattern.sub(instead, text)
        return text[text.index("<svg") :].strip()

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return self.png(), {"width": round(self.width_in * 96), "height": round(self.height_in * 96)}


def style(axes: Axes) -> None:
    """No box, light horizontal grid, quiet labels."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=_TEXT_PT - 0.5, length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.xaxis.label.set_fontsize(_TEXT_PT)
    axes.yaxis.label.set_fontsize(_TEXT_PT)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _wrapped(text: str, size_pt: float, width_in: float) -> list[str]:
    return textwrap.wrap(text, max(20, int((width_in - 2 * _MARGIN_IN) / (size_pt * _LETTER_IN)))) or [""]
