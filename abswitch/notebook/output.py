"""Where output goes: one rich output that is replaced in place in a notebook, plain text everywhere else.

A rich output is HTML under a `display_id`. Unlike a widget it survives, in its last state, in the saved notebook and in
every export of it.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol
from uuid import uuid4


class Renderable(Protocol):
    """Anything that can show itself as HTML and as text."""

    def to_html(self) -> str:
        """A fragment of HTML; everything that is not ours is escaped."""

    def to_text(self) -> str:
        """The same for a terminal."""


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code (a plain or IPython terminal does not count)."""
    if "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def bundle(content: Renderable) -> dict[str, Any]:
    """The MIME bundle of a piece of content."""
    return {"text/html": content.to_html(), "text/plain": content.to_text()}


class LiveOutput:
    """One notebook output: the first `show` puts it below the running cell, later ones replace it. Any thread."""

    def __init__(self) -> None:
        self._display_id = f"abswitch-{uuid4().hex}"
        self._shown = False

    def show(self, content: Renderable) -> None:
        """Show this in place of what was shown before."""
        from IPython.display import display, update_display

        send: Any = update_display if self._shown else display
        send(bundle(content), raw=True, display_id=self._display_id)
        self._shown = True
