"""Pages: templates filled in such a way that no text from outside becomes markup, or makes a page unreadable."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from jinja2 import Environment

    from abswitch.experiments.chart import Chart

PAGE_IN = 4.6
"""Width of figures within a page: two stand side by side on a screen, and one fits a telephone, its text readable."""

_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_REPLACED = "�"
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def visible(text: str) -> str:
    """Text that a page may hold: what has no picture, or would turn its surroundings around, is shown as one that does.

    Control characters become their pictures (`␀`), those that direct writing their code points (`⟨U+202E⟩`), and what
    no page may hold (surrogates, non-characters) a replacement character.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text.translate(_CONTROLS)))


def _visible(letter: str) -> str:
    if letter in _BIDI:
        return f"⟨U+{ord(letter):04X}⟩"
    if letter in "\n\t" or letter.isprintable():
        return letter
    code = ord(letter)
    unusable = unicodedata.category(letter) in ("Cc", "Cs") or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return _REPLACED if unusable else letter


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    made = Environment(
        loader=PackageLoader("abswitch.experiments", "."), autoescape=True, undefined=StrictUndefined, finalize=shown
    )
    made.tests["address"] = lambda text: text.startswith(("http://", "https://"))
    return made


def render(template: str, **values: Any) -> bytes:
    """A template of this package, filled in."""
    return _templates().get_template(template).render(**values).encode()


def figure(chart: Chart) -> Mapping[str, Any]:
    """A chart as the template's `figure` takes it: an SVG within the page, and what it says in words."""
    from markupsafe import Markup

    svg = quote(chart.svg().replace('"', "'"), safe=" '=:/,;()!*+-.@[]{}|~?$")  # a third shorter than base64
    return {
        "source": Markup("data:image/svg+xml," + svg),
        "alt": chart.finding,
        "width": round(chart.width_in * 96),
        "height": round(chart.height_in * 96),
    }


def instant(at_s: float) -> str:
    """An instant as people read it."""
    return f"{datetime.fromtimestamp(at_s, UTC):%d %B %Y, %H:%M} UTC"


def duration(seconds: float | None) -> str:
    """A length of time in a unit that suits it; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        ms = 1000 * seconds
        return f"{ms:.1f} ms" if ms < 99.95 else f"{ms:,.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes in a unit that suits them."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable: TB ends it")
