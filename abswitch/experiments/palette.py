"""The colours of arms and versions, the same in every figure, page and notebook output.

Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey print by lightness.
"""

from __future__ import annotations

from collections.abc import Iterable

BASELINE = "#0072B2"
CANDIDATE = "#D55E00"
FAILED = "#767676"
INK = "#1f2933"
MUTED = "#5f6b76"
GRID = "#dfe4e8"

GOOD = "#00755a"
BAD = "#b3261e"
OPEN = "#8a6100"

OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#B8860B")


def color_of_arm(arm: str) -> str:
    """The colour of an arm: `stable` and `candidate` have theirs, any other is grey."""
    return {"stable": BASELINE, "candidate": CANDIDATE}.get(arm, FAILED)


def colors_of_versions(baseline: str, candidate: str, others: Iterable[str] = ()) -> dict[str, str]:
    """Version → colour; versions outside the comparison get the remaining colours in order, again and again."""
    rest = (version for version in others if version not in (baseline, candidate))
    extra = {version: OTHERS[i % len(OTHERS)] for i, version in enumerate(rest)}
    return {baseline: BASELINE, candidate: CANDIDATE} | extra
