"""What people and errors say is checked where it becomes an event: what cannot be written down would never end."""

from __future__ import annotations

from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.rollout import operation as ops

REASONED: tuple[Any, ...] = (
    ops.LoadFailed,
    ops.WarmFailed,
    ops.RouteFailed,
    ops.Pause,
    ops.Abort,
    ops.CandidateLost,
    ops.Breached,
)


def test_every_event_with_a_reason_is_tried() -> None:
    assert {one.__name__ for one in ops.Reasoned.__subclasses__()} == {
        one.__name__ for one in (*REASONED, ops.Conclude)
    }


@pytest.mark.parametrize("reason", [ValueError("worse"), None, b"worse", 3, ["worse"]])
def test_a_reason_that_is_no_text_is_refused_when_the_event_is_made(reason: Any) -> None:
    for kind in REASONED:
        with pytest.raises(InvalidInput) as caught:
            kind(reason=reason)
        assert (caught.value.field, caught.value.value, caught.value.allowed) == ("reason", reason, "a text")
    with pytest.raises(InvalidInput, match="reason: .*a text"):
        ops.Conclude(promote=False, reason=reason)


@pytest.mark.parametrize("promote", ["no", 0, None])
def test_only_true_promotes(promote: Any) -> None:
    with pytest.raises(InvalidInput, match="promote: .*True or False"):
        ops.Conclude(promote=promote, reason="x")


def test_what_no_file_can_hold_is_written_as_its_escape() -> None:
    assert ops.Abort(reason="\ud800 schlechter").reason == "\\ud800 schlechter"
    assert ops.Conclude(promote=True, reason="größer \udfff").reason == "größer \\udfff"
    assert ops.Pause(reason="größer").reason == "größer"
