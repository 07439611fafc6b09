"""The machine does what its table says, for every phase and every event, and never ends up somewhere illegal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from abswitch.errors import IllegalTransition
from abswitch.rollout import operation as ops
from abswitch.rollout.machine import TABLE, step
from abswitch.rollout.operation import Event, Operation, Phase
from abswitch.rollout.strategies import ABTestStrategy, ImmediateStrategy, Strategy

AB = ABTestStrategy(traffic_percentage=30, test_duration_hours=1)
EVENTS: tuple[Event, ...] = (
    ops.Start(),
    ops.Loaded(),
    ops.LoadFailed(reason="x"),
    ops.Warmed(),
    ops.WarmFailed(reason="x"),
    ops.Routed(),
    ops.RouteFailed(reason="x"),
    ops.StageElapsed(),
    ops.Conclude(promote=True, reason="x"),
    ops.Conclude(promote=False, reason="x"),
    ops.Pause(reason="x"),
    ops.Resume(),
    ops.Abort(reason="x"),
    ops.CandidateLost(reason="x"),
    ops.Drained(),
)


def operation(strategy: Strategy = AB, *, phase: Phase = Phase.PENDING, promoted: bool = False) -> Operation:
    return Operation(
        operation_id="op-1",
        model_id="m",
        stable="v1",
        candidate="v2",
        strategy=strategy,
        phase=phase,
        promoted=promoted,
        ending=Phase.SUCCEEDED,
    )


def walk(start: Operation, *events: Event) -> tuple[Operation, list[ops.Effect]]:
    now = start
    effects: list[ops.Effect] = []
    for at, event in enumerate(events):
        now, more = step(now, event, float(at))
        effects.extend(more)
    return now, effects


STAGED = (Phase.SHIFTING, Phase.EVALUATING, Phase.PAUSED)
"""Phases that an immediate switch, which has no stages, never comes to."""


@pytest.mark.parametrize("promoted", [False, True])
@pytest.mark.parametrize(
    ("strategy", "phase"),
    [(AB, phase) for phase in Phase] + [(ImmediateStrategy(), phase) for phase in Phase if phase not in STAGED],
)
@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_every_pair_follows_the_table_or_raises_and_changes_nothing(
    phase: Phase, event: Event, strategy: Strategy, promoted: bool
) -> None:
    before = operation(strategy, phase=phase, promoted=promoted)
    allowed = TABLE[phase].get(type(event))
    if allowed is None:
        with pytest.raises(IllegalTransition) as caught:
            step(before, event, 1.0)
        assert (caught.value.phase, caught.value.event) == (phase, type(event).__name__)
    else:
        after, _ = step(before, event, 1.0)
        assert after.phase in allowed


def test_every_transition_of_the_table_can_be_reached() -> None:
    endings = (Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.ABORTED, Phase.FAILED)
    cases = [
        (replace(operation(strategy, phase=phase, promoted=promoted), ending=ending), event)
        for strategy in (AB, ImmediateStrategy())
        for phase in Phase
        if strategy.stages or phase not in STAGED
        for promoted in (False, True)
        for ending in endings
        for event in EVENTS
        if type(event) in TABLE[phase]
    ]
    reached = {(before.phase, type(event), step(before, event, 0.0)[0].phase) for before, event in cases}
    listed = {(phase, event, to) for phase, row in TABLE.items() for event, tos in row.items() for to in tos}
    # These need a strategy of several stages, or one that promotes at its end; the machine is laid for them.
    later = {
        (Phase.EVALUATING, ops.StageElapsed, Phase.SHIFTING),
        (Phase.EVALUATING, ops.StageElapsed, Phase.PROMOTING),
    }
    assert listed - reached == later


def test_final_phases_take_no_event() -> None:
    assert all(not TABLE[phase] for phase in Phase if phase.is_final)
    assert all(ops.Abort in TABLE[phase] for phase in Phase if not phase.is_final), "abort wins everywhere else"


def test_an_immediate_switch_goes_straight_to_promotion() -> None:
    end, effects = walk(
        operation(ImmediateStrategy()), ops.Start(), ops.Loaded(), ops.Warmed(), ops.Routed(), ops.Drained()
    )
    assert end.phase is Phase.SUCCEEDED and end.promoted and end.share == 1.0
    assert effects == [
        ops.Load("v2"),
        ops.Warm("v2"),
        ops.Route(active="v2", candidate=None, share=0.0),
        ops.Drain("v1"),
        ops.Unpin("v1"),
    ]


def test_no_traffic_before_the_candidate_generated_a_token() -> None:
    _, effects = walk(operation(), ops.Start(), ops.Loaded())
    assert not any(isinstance(effect, ops.Route) for effect in effects)


def test_an_ab_test_that_runs_out_of_time_keeps_the_stable_version() -> None:
    end, effects = walk(
        operation(),
        ops.Start(),
        ops.Loaded(),
        ops.Warmed(),
        ops.Routed(),
        ops.StageElapsed(),
        ops.Routed(),
        ops.Drained(),
    )
    assert end.phase is Phase.SUCCEEDED and not end.promoted and end.share == 0.0
    assert ops.SetTimer(3600.0) in effects
    assert effects[-3:] == [ops.Route("v1", None, 0.0), ops.Drain("v2"), ops.Unpin("v2")]


def test_an_answer_from_before_an_abort_is_dropped() -> None:
    loading, _ = step(operation(), ops.Start(), 0.0)
    aborted, _ = step(loading, ops.Abort(reason="no"), 1.0)
    late = ops.Loaded(epoch=loading.epoch)
    assert step(aborted, late, 2.0) == (aborted, ())


def test_a_timer_from_before_a_pause_is_dropped() -> None:
    evaluating, _ = walk(operation(), ops.Start(), ops.Loaded(), ops.Warmed(), ops.Routed())
    paused, _ = step(evaluating, ops.Pause(reason="wait"), 5.0)
    assert step(paused, ops.StageElapsed(epoch=evaluating.epoch), 6.0) == (paused, ())
    resumed, effects = step(paused, ops.Resume(), 7.0)
    assert resumed.phase is Phase.EVALUATING and effects == (ops.SetTimer(3600.0),)


def test_abort_after_promotion_brings_the_stable_version_back() -> None:
    draining, _ = walk(operation(ImmediateStrategy()), ops.Start(), ops.Loaded(), ops.Warmed(), ops.Routed())
    back, effects = step(draining, ops.Abort(reason="bad idea"), 9.0)
    assert back.phase is Phase.ROLLING_BACK and effects == (ops.Route("v1", None, 0.0),)
    end, _ = walk(back, ops.Routed(), ops.Drained())
    assert end.phase is Phase.ABORTED and not end.promoted and end.reason == "bad idea"


def test_a_second_abort_does_not_orphan_the_drain_under_way() -> None:
    evaluating, _ = walk(operation(), ops.Start(), ops.Loaded(), ops.Warmed(), ops.Routed())
    draining, _ = walk(evaluating, ops.Conclude(promote=False, reason="keep"), ops.Routed())
    again, effects = step(draining, ops.Abort(reason="again"), 3.0)
    assert again.epoch == draining.epoch and effects == ()
    assert step(again, ops.Drained(epoch=draining.epoch), 4.0)[0].phase is Phase.ABORTED


class Switches(RuleBasedStateMachine):
    """Any order of events: the operation stays legal, and what it asked for adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.operation = operation(AB)
        self.routed: ops.Route | None = None
        self.warm = False

    @precondition(lambda self: not self.operation.phase.is_final)
    @rule(event=st.sampled_from(EVENTS), stale=st.booleans())
    def happen(self, event: Event, stale: bool) -> None:
        before = self.operation
        tagged = replace(event, epoch=before.epoch - 1) if stale else event
        try:
            self.operation, effects = step(before, tagged, 0.0)
        except IllegalTransition:
            assert not stale and type(event) not in TABLE[before.phase]
            return
        if stale:
            assert self.operation is before
            return
        self.warm |= isinstance(event, ops.Warmed)
        for effect in effects:
            if isinstance(effect, ops.Route):
                self.routed = effect

    @precondition(lambda self: self.operation.phase.is_final)
    @rule()
    def begin_another(self) -> None:
        self.operation, self.routed, self.warm = operation(AB), None, False

    @invariant()
    def the_candidate_is_routed_only_when_warm(self) -> None:
        if self.routed is not None:
            assert self.warm

    @invariant()
    def an_end_without_promotion_leaves_the_stable_version(self) -> None:
        if self.operation.phase.is_final and self.routed is not None:
            expected = "v2" if self.operation.promoted else "v1"
            assert self.routed.active == expected and self.routed.candidate is None

    @invariant()
    def a_share_is_a_fraction(self) -> None:
        assert 0.0 <= self.operation.share <= 1.0


TestSwitches = Switches.TestCase
TestSwitches.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_epochs_never_go_back(events: list[Event]) -> None:
    now = operation()
    for event in events:
        try:
            after, _ = step(now, event, 0.0)
        except IllegalTransition:
            continue
        assert after.epoch in (now.epoch, now.epoch + 1)
        now = after
