"""Rows for tests of the store."""

from __future__ import annotations

from typing import Any

from abswitch.domain import RequestRecord, RouteRecord, TransitionRecord
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import ABTestStrategy


def a_request(request_id: str = "r1", **changes: Any) -> RequestRecord:
    record = RequestRecord(
        request_id=request_id,
        model_id="bot",
        operation_id="op",
        step=0,
        route_epoch=1,
        arm="stable",
        assigned_version="v1",
        served_version="v1",
        unit_id="u1",
        fallback=False,
        admitted_at_s=1_700_000_000.5,
        admitted_mono_s=10.25,
        queue_s=0.001,
        first_token_s=0.01,
        total_s=0.05,
        prompt_tokens=7,
        output_tokens=3,
        finish_reason="stop",
        error_type=None,
        error_message=None,
        prompt=None,
        output="größer 😀",
    )
    return record._replace(**changes)


def routes_of(operation_id: str, *, epoch: int = 1, share: float = 0.5) -> tuple[RouteRecord, RouteRecord]:
    """Both arms of a snapshot in which the operation's candidate has a share."""
    at_s = (1_700_000_000.0, 1.0)
    return (
        RouteRecord("bot", epoch, operation_id, 0, "stable", "v1", 1.0 - share, *at_s),
        RouteRecord("bot", epoch, operation_id, 0, "candidate", "v2", share, *at_s),
    )


def a_transition(sequence: int = 1) -> TransitionRecord:
    return TransitionRecord("op", sequence, "bot", "Start", "pending", "loading", 0, 0.0, "requested", 5.0)


def an_operation(phase: Phase = Phase.LOADING) -> Operation:
    return Operation(
        operation_id="op",
        model_id="bot",
        stable="v1",
        candidate="v2",
        strategy=ABTestStrategy(traffic_percentage=25.0),
        phase=phase,
    )
