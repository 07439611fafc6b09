"""The machine does what its table says, for every phase and every event, and never ends up somewhere illegal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from abswitch.errors import IllegalTransition, InvalidInput
from abswitch.rollout import operation as ops
from abswitch.rollout import strategies
from abswitch.rollout.judging import Judgement, Ruling
from abswitch.rollout.machine import TABLE, step
from abswitch.rollout.operation import Event, Operation, Phase
from abswitch.rollout.recovery import operation_of, operation_to_dict, recovered
from abswitch.rollout.strategies import (
    ABTestStrategy,
    BanditStrategy,
    CanaryStrategy,
    GradualStrategy,
    ImmediateStrategy,
    ShadowStrategy,
    Strategy,
    SwitchbackStrategy,
)

AB = ABTestStrategy(traffic_percentage=30, test_duration_hours=1)
ARMS = ABTestStrategy(arms={"v2": 20, "v3": 40}, test_duration_hours=1, evaluation_period_minutes=1)  # type: ignore[arg-type]  # a dictionary is accepted
CANARY = CanaryStrategy(initial_percentage=5, step_percentage=45, evaluation_period_minutes=10)
GRADUAL = GradualStrategy(duration_minutes=30, steps=3)
SHADOW = ShadowStrategy(mirror_percentage=50, test_duration_hours=1)
BLOCKS = SwitchbackStrategy(block_minutes=5, blocks=4)
BANDIT = BanditStrategy(batch_minutes=5, max_duration_hours=1)
AT_ONCE = ImmediateStrategy()
SWAP = ImmediateStrategy(drain_first=True)
STRATEGIES: tuple[Strategy, ...] = (AB, ARMS, CANARY, GRADUAL, SHADOW, BLOCKS, BANDIT, AT_ONCE, SWAP)


def says(ruling: Ruling, version: str | None = None) -> ops.Judged:
    return ops.Judged(judgement=Judgement(ruling=ruling, reason="x", version=version))


EVENTS: tuple[Event, ...] = (
    ops.Start(),
    ops.Loaded(),
    ops.LoadFailed(reason="x"),
    ops.Warmed(),
    ops.WarmFailed(reason="x"),
    ops.Routed(),
    ops.RouteFailed(reason="x"),
    ops.RouteFailed(reason="x", serving="v2"),
    ops.StageElapsed(),
    says(Ruling.ADVANCE),
    says(Ruling.HOLD),
    ops.Judged(judgement=Judgement(ruling=Ruling.HOLD, reason="x", share=0.7)),
    says(Ruling.ROLL_BACK),
    ops.DeadlineElapsed(),
    ops.Conclude(promote=True, reason="x"),
    ops.Conclude(promote=False, reason="x"),
    ops.Pause(reason="x"),
    ops.Resume(),
    ops.Abort(reason="x"),
    ops.CandidateLost(reason="x"),
    ops.CandidateLost(reason="x", version="v3"),
    ops.Breached(reason="x"),
    ops.Breached(reason="x", version="v3"),
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
        winner="v2" if promoted else None,
        ending=Phase.SUCCEEDED,
    )


def walk(start: Operation, *events: Event) -> tuple[Operation, list[ops.Effect]]:
    now = start
    effects: list[ops.Effect] = []
    for at, event in enumerate(events):
        now, more = step(now, event, float(at))
        effects.extend(more)
    return now, effects


TO_TRAFFIC = (ops.Start(), ops.Loaded(), ops.Warmed(), ops.Routed())
STAGED = (Phase.SHIFTING, Phase.EVALUATING, Phase.PAUSED)
"""Phases in which a switch has traffic on a stage; one without stages comes to PAUSED only after a restart."""


ENDINGS = (Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.ABORTED, Phase.FAILED)


PROMOTED = {Phase.PROMOTING: (True,), Phase.DRAINING: (False, True), Phase.SUCCEEDED: (False, True)}
"""Whether a candidate is the active version; in every other phase none is."""


def states(strategy: Strategy, phase: Phase) -> Iterator[Operation]:
    """Every operation that differs in what the machine looks at, in a phase that its strategy can be in."""
    stages = sorted({0, len(strategy.stages) // 2, max(0, len(strategy.stages) - 1)})
    for stage, detached, won, ending in product(stages, (False, True), PROMOTED.get(phase, (False,)), ENDINGS):
        if strategy.stages or phase not in STAGED or (phase is Phase.PAUSED and detached):
            made = operation(strategy, phase=phase, promoted=won)
            yield replace(made, stage=stage, detached=detached, ending=ending, epoch=7)


def test_every_strategy_phase_and_event_is_tried() -> None:
    assert {type(strategy) for strategy in STRATEGIES} == set(strategies.STRATEGIES.values())
    happened = {one.__name__ for kind in (Event, ops.Reasoned) for one in kind.__subclasses__()} - {"Reasoned"}
    assert {type(event).__name__ for event in EVENTS} == happened
    assert {event.judgement.ruling for event in EVENTS if isinstance(event, ops.Judged)} == set(Ruling)
    assert set(TABLE) == set(Phase)
    untried = {
        (strategy.type.value, phase.value)
        for strategy in STRATEGIES
        for phase in Phase
        if not any(True for _ in states(strategy, phase))
    }
    assert untried == {("immediate", "shifting"), ("immediate", "evaluating")}, "it has no stages"


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.type.value)
@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_every_pair_follows_the_table_or_raises_and_changes_nothing(event: Event, strategy: Strategy) -> None:
    for phase in Phase:
        for before in states(strategy, phase):
            copy, allowed = replace(before), TABLE[phase].get(type(event))
            if allowed is None:
                with pytest.raises(IllegalTransition) as caught:
                    step(before, event, 1.0)
                assert (caught.value.phase, caught.value.event) == (phase, type(event).__name__)
            else:
                after, effects = step(before, event, 1.0)
                assert after.phase in allowed
                assert after.epoch == before.epoch + (after.phase is not phase or bool(effects))
                assert (after.operation_id, after.model_id, after.stable, after.candidate, after.strategy) == (
                    (before.operation_id, before.model_id, before.stable, before.candidate, before.strategy)
                )
            assert before == copy, "an operation is a value"


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.type.value)
def test_what_comes_from_an_earlier_epoch_is_dropped_wherever_the_operation_is(strategy: Strategy) -> None:
    for phase, event in product(Phase, EVENTS):
        for before in states(strategy, phase):
            after, effects = step(before, replace(event, epoch=before.epoch - 1), 1.0)
            assert after is before and effects == ()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.type.value)
def test_abort_wins_in_every_phase_that_is_not_final(strategy: Strategy) -> None:
    for phase in Phase:
        for before in states(strategy, phase):
            if phase.is_final:
                continue
            after, effects = step(before, ops.Abort(reason="stop"), 1.0)
            assert after.ending is Phase.ABORTED or after.phase is Phase.ABORTED
            assert not after.promoted and after.reason == "stop"
            assert not any(isinstance(one, ops.Route) and (one.arms or one.shadow) for one in effects)
            assert all(one.active == "v1" for one in effects if isinstance(one, ops.Route))


@pytest.mark.parametrize("event", [ops.CandidateLost(reason="x", version="v3"), ops.Breached(reason="x", version="v3")])
@pytest.mark.parametrize("phase", [Phase.PROMOTING, Phase.DRAINING])
def test_what_becomes_of_a_loser_does_not_undo_the_promotion_of_the_winner(phase: Phase, event: Event) -> None:
    before = operation(ARMS, phase=phase, promoted=True)
    assert step(before, event, 0.0) == (before, ())
    own = replace(event, version="v2")  # type: ignore[call-arg]  # both kinds have it
    assert step(before, own, 0.0)[0].phase is Phase.ROLLING_BACK


def test_without_a_way_back_a_promoted_version_that_still_answers_stays() -> None:
    back = operation(phase=Phase.ROLLING_BACK)
    failed, effects = step(back, ops.RouteFailed(reason="no memory", serving="v2"), 0.0)
    assert (failed.phase, failed.stays, failed.shares) == (Phase.FAILED, "v2", (("v2", 1.0),))
    assert effects == (ops.Unpin(("v1",)),) and "v2 goes on serving" in failed.reason
    failed, effects = step(back, ops.RouteFailed(reason="no memory"), 0.0)
    assert (failed.phase, failed.stays) == (Phase.FAILED, "v1")
    assert effects == (ops.Withdraw(), ops.Unpin(("v2",)))


@pytest.mark.parametrize("strategy", [AT_ONCE, SWAP], ids=["beside", "instead"])
def test_deploying_anew_what_is_active_never_ends_without_an_active_version(strategy: Strategy) -> None:
    """After a restart; it is the stable version and the candidate in one."""
    for phase, event in product((Phase.LOADING, Phase.WARMING, Phase.PROMOTING, Phase.PAUSED, Phase.DRAINING), EVENTS):
        before = replace(operation(strategy, phase=phase), candidate="v1", detached=phase is Phase.PAUSED)
        assert before.versions == ("v1",)
        if type(event) in TABLE[phase] and not (isinstance(event, ops.Conclude) and event.version):
            after, effects = step(before, event, 0.0)
            assert after.stays == "v1"
            assert all(one.active == "v1" for one in effects if isinstance(one, ops.Route))
            assert not any(one.versions for one in effects if isinstance(one, ops.Unpin)), "its end lets go of it"
    assert step(replace(operation(strategy), candidate="v1"), ops.Start(), 0.0)[1] == (ops.Load(("v1",), None),), (
        "nothing makes room for itself"
    )


def test_every_transition_of_the_table_can_be_reached_and_no_other_is() -> None:
    reached = {
        (phase, type(event), step(before, event, 0.0)[0].phase)
        for strategy, phase, event in product(STRATEGIES, Phase, EVENTS)
        if type(event) in TABLE[phase]
        for before in states(strategy, phase)
    }
    listed = {(phase, event, to) for phase, row in TABLE.items() for event, tos in row.items() for to in tos}
    assert listed == reached


def test_final_phases_take_no_event() -> None:
    assert all(not TABLE[phase] for phase in Phase if phase.is_final)
    assert all(ops.Abort in TABLE[phase] for phase in Phase if not phase.is_final), "abort wins everywhere else"


def test_an_immediate_switch_goes_straight_to_promotion() -> None:
    end, effects = walk(
        operation(ImmediateStrategy()), ops.Start(), ops.Loaded(), ops.Warmed(), ops.Routed(), ops.Drained()
    )
    assert end.phase is Phase.SUCCEEDED and end.promoted and end.share == 1.0
    assert effects == [
        ops.Load(("v2",)),
        ops.Warm(("v2",)),
        ops.Route("v2"),
        ops.Drain(("v1",)),
        ops.Unpin(("v1",)),
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
    assert effects[-3:] == [ops.Route("v1"), ops.Drain(("v2",)), ops.Unpin(("v2",))]


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
    assert back.phase is Phase.ROLLING_BACK and effects == (ops.Route("v1"),)
    end, _ = walk(back, ops.Routed(), ops.Drained())
    assert end.phase is Phase.ABORTED and not end.promoted and end.reason == "bad idea"


def test_a_second_abort_does_not_orphan_the_drain_under_way() -> None:
    evaluating, _ = walk(operation(), ops.Start(), ops.Loaded(), ops.Warmed(), ops.Routed())
    draining, _ = walk(evaluating, ops.Conclude(promote=False, reason="keep"), ops.Routed())
    again, effects = step(draining, ops.Abort(reason="again"), 3.0)
    assert again.epoch == draining.epoch and effects == ()
    assert step(again, ops.Drained(epoch=draining.epoch), 4.0)[0].phase is Phase.ABORTED


def test_a_canary_earns_every_step_and_is_promoted_by_its_last_one() -> None:
    assert [stage.share for stage in CANARY.stages] == [0.05, 0.5, 0.95]
    now, effects = walk(operation(CANARY), *TO_TRAFFIC)
    assert effects[-2:] == [ops.SetTimer(600.0), ops.SetDeadline(86_400.0)]
    for share in (0.5, 0.95):
        now, effects = walk(now, ops.StageElapsed(), says(Ruling.ADVANCE), ops.Routed())
        assert now.share == share and ops.Route("v1", (("v2", share),), share) in effects
        assert not any(isinstance(effect, ops.SetDeadline) for effect in effects), "one deadline for the whole"
    now, effects = walk(now, ops.StageElapsed(), says(Ruling.ADVANCE))
    assert now.phase is Phase.PROMOTING and effects[-1] == ops.Route("v2")


def test_a_canary_that_is_held_is_judged_again_and_never_promoted_by_the_clock() -> None:
    now, _ = walk(operation(CANARY), *TO_TRAFFIC)
    for evaluation in range(1, 50):
        now, effects = walk(now, ops.StageElapsed(), says(Ruling.HOLD))
        assert now.phase is Phase.EVALUATING and now.share == 0.05 and now.evaluation == evaluation
        assert effects == [ops.AskJudge(0, evaluation), ops.SetTimer(600.0)]
    end, _ = walk(now, ops.DeadlineElapsed(), ops.Routed(), ops.Drained())
    assert end.phase is Phase.ROLLED_BACK and not end.promoted and "longest duration" in end.reason


def test_the_judge_of_a_paused_canary_is_not_heard() -> None:
    asked, _ = walk(operation(CANARY), *TO_TRAFFIC, ops.StageElapsed())
    paused, _ = step(asked, ops.Pause(reason="wait"), 1.0)
    late = replace(says(Ruling.ADVANCE), epoch=asked.epoch)
    assert step(paused, late, 2.0) == (paused, ())


@pytest.mark.parametrize("event", [says(Ruling.ROLL_BACK), ops.Breached(reason="x"), ops.CandidateLost(reason="x")])
def test_a_canary_that_does_harm_goes_back(event: Event) -> None:
    end, effects = walk(operation(CANARY), *TO_TRAFFIC, ops.StageElapsed(), event, ops.Routed(), ops.Drained())
    assert end.phase is Phase.ROLLED_BACK and end.reason == "x"
    assert effects[-3:] == [ops.Route("v1"), ops.Drain(("v2",)), ops.Unpin(("v2",))]


def test_a_gradual_ramp_goes_by_the_clock_to_everything() -> None:
    now, _ = walk(operation(GRADUAL), *TO_TRAFFIC)
    shares = [now.share]
    while now.phase is Phase.EVALUATING:
        now, _ = walk(now, ops.StageElapsed(), ops.Routed())
        shares.append(now.share)
    assert shares == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert walk(now, ops.Drained())[0].phase is Phase.SUCCEEDED


def test_a_test_of_several_arms_promotes_the_one_its_judge_names() -> None:
    now, effects = walk(operation(ARMS), *TO_TRAFFIC)
    assert ops.Load(("v2", "v3")) in effects
    (route,) = (effect for effect in effects if isinstance(effect, ops.Route))
    assert [version for version, _ in route.arms] == ["v2", "v3"]
    assert [share for _, share in route.arms] == pytest.approx([0.2, 0.4]) and route.share == pytest.approx(0.6)
    end, effects = walk(now, ops.StageElapsed(), says(Ruling.ADVANCE, "v3"), ops.Routed(), ops.Drained())
    assert end.phase is Phase.SUCCEEDED and end.winner == "v3"
    assert effects[-3:] == [ops.Route("v3"), ops.Drain(("v1", "v2")), ops.Unpin(("v1", "v2"))]


def test_a_version_that_takes_no_part_cannot_win() -> None:
    now, _ = walk(operation(ARMS), *TO_TRAFFIC)
    with pytest.raises(InvalidInput, match="'v9'.*v2, v3"):
        step(now, ops.Conclude(promote=True, reason="x", version="v9"), 1.0)


def test_a_shadow_gets_copies_and_no_share() -> None:
    now, effects = walk(operation(SHADOW), *TO_TRAFFIC)
    assert ops.Route("v1", (), 0.0, "v2", 0.5) in effects
    assert (now.share, now.mirror) == (0.0, 0.5)
    end, effects = walk(now, ops.StageElapsed(), ops.Routed(), ops.Drained())
    assert end.phase is Phase.SUCCEEDED and not end.promoted and end.mirror == 0.0


def test_a_swap_that_fails_brings_the_stable_version_back() -> None:
    loading, begun = step(operation(SWAP), ops.Start(), 0.0)
    assert begun == (ops.Load(("v2",), instead_of="v1"),)
    end, effects = walk(loading, ops.LoadFailed(reason="no room"), ops.Routed(), ops.Drained())
    assert end.phase is Phase.FAILED and end.reason == "no room" and effects[0] == ops.Route("v1")


class Switches(RuleBasedStateMachine):
    """Any strategy, any order of events: the operation stays legal, and what it asked for adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.begin(AB)

    def begin(self, strategy: Strategy) -> None:
        self.operation = operation(strategy)
        self.routed: ops.Route | None = None
        self.in_force: ops.Route | None = None
        self.warm = False
        self.pinned = set(self.operation.versions)

    @precondition(lambda self: not self.operation.phase.is_final)
    @rule(event=st.sampled_from(EVENTS), stale=st.booleans())
    def happen(self, event: Event, stale: bool) -> None:
        before = self.operation
        promoted = self.in_force if self.in_force == ops.Route("v2") else None
        if isinstance(event, ops.RouteFailed) and event.serving is not None and promoted is None:
            return  # only what was promoted can be told to serve still
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
        if isinstance(event, ops.Routed):
            self.in_force = self.routed
        elif isinstance(event, ops.RouteFailed) and event.serving is not None:
            self.routed = promoted
        for effect in effects:
            if isinstance(effect, ops.Route):
                self.routed = effect
            if isinstance(effect, ops.Unpin):
                assert self.pinned.issuperset(effect.versions), "unpinned twice"
                self.pinned.difference_update(effect.versions)

    @precondition(lambda self: not self.operation.phase.is_final)
    @rule()
    def restart(self) -> None:
        self.operation = operation_of(json.loads(json.dumps(operation_to_dict(recovered(self.operation, 0.0)))))
        self.routed, self.in_force, self.warm = (
            None,
            None,
            True,
        )  # what a detached operation routes, its controller proves anew
        if self.operation.phase.is_final:
            self.pinned = set()

    @precondition(lambda self: self.operation.phase.is_final)
    @rule(strategy=st.sampled_from(STRATEGIES))
    def begin_another(self, strategy: Strategy) -> None:
        self.begin(strategy)

    @invariant()
    def a_candidate_is_routed_only_when_warm(self) -> None:
        if self.routed is not None and (self.routed.arms or self.routed.shadow or self.routed.active != "v1"):
            assert self.warm

    @invariant()
    def an_end_leaves_the_version_that_stays(self) -> None:
        if self.operation.phase.is_final and self.routed is not None:
            assert self.routed == ops.Route(self.operation.stays)
        if self.operation.phase.is_final:
            assert self.pinned <= {self.operation.stays}, "only the version that stays is still held"

    @invariant()
    def shares_are_fractions_and_add_up(self) -> None:
        assert 0.0 <= self.operation.share <= 1.0
        if self.routed is not None:
            assert math.isclose(sum(share for _, share in self.routed.arms), self.routed.share)


TestSwitches = Switches.TestCase
TestSwitches.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


@given(st.sampled_from(STRATEGIES), st.lists(st.sampled_from(EVENTS), max_size=40))
def test_epochs_never_go_back(strategy: Strategy, events: list[Event]) -> None:
    now = operation(strategy)
    for event in events:
        try:
            after, _ = step(now, event, 0.0)
        except IllegalTransition:
            continue
        assert after.epoch in (now.epoch, now.epoch + 1)
        now = after


def test_a_batch_of_a_bandit_changes_the_share_and_nothing_else() -> None:
    evaluating = replace(operation(BANDIT, phase=Phase.EVALUATING), share=0.5, exposed=True, evaluation=2)
    moves = ops.Judged(judgement=Judgement(ruling=Ruling.HOLD, reason="x", share=0.7))
    judged, effects = step(evaluating, moves, 5.0)
    assert (judged.phase, judged.stage, judged.share, judged.evaluation) == (Phase.SHIFTING, 0, 0.7, 3)
    assert effects == (ops.Route("v1", (("v2", 0.7),), 0.7),)
    routed, effects = step(judged, ops.Routed(epoch=judged.epoch), 5.0)
    assert (routed.phase, routed.share) == (Phase.EVALUATING, 0.7)
    assert effects == (ops.SetTimer(300.0),)
    assert operation_of(json.loads(json.dumps(operation_to_dict(routed)))) == routed


def test_why_an_interrupted_switch_was_promoted_is_told_although_it_must_make_room_first() -> None:
    paused = recovered(operation(SWAP, phase=Phase.WARMING), 0.0)
    after, effects = step(paused, ops.Conclude(promote=True, reason="the numbers are good"), 1.0)
    assert after.phase is Phase.LOADING and effects == (ops.Load(("v2",), "v1"),)
    assert after.reason == "the numbers are good; v1 leaves to make room for the candidate"
