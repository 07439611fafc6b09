"""Whatever an operation was doing when its process ended, the next one finds it in a legal, safe state."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from abswitch.rollout import operation as ops
from abswitch.rollout.machine import step
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.recovery import operation_of, operation_to_dict, recovered
from abswitch.rollout.strategies import (
    ABTestStrategy,
    CanaryStrategy,
    GradualStrategy,
    ImmediateStrategy,
    ShadowStrategy,
    Strategy,
)

STRATEGIES: tuple[Strategy, ...] = (
    ImmediateStrategy(),
    ImmediateStrategy(drain_first=True),
    GradualStrategy(percentages=(10, 100), minutes=(1, 2)),
    CanaryStrategy(guardrails=({"metric": "latency_p95_s", "max": 1.0},)),  # type: ignore[arg-type]  # dictionaries are accepted
    ABTestStrategy(arms={"v2": 10, "v3": 20}),  # type: ignore[arg-type]  # the same
    ShadowStrategy(mirror_percentage=5),
)


def operation(phase: Phase, strategy: Strategy = STRATEGIES[3], *, winner: str | None = None) -> Operation:
    ending = Phase.SUCCEEDED if phase in (Phase.DRAINING, Phase.ROLLING_BACK, Phase.PROMOTING) else None
    return Operation(
        operation_id="op",
        model_id="m",
        stable="v1",
        candidate="v2",
        strategy=strategy,
        phase=phase,
        stage=0,
        share=0.2,
        epoch=7,
        exposed=True,
        winner=winner,
        ending=ending,
        created_s=900.0,
        phase_since_s=950.0,
    )


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.type.value)
def test_an_operation_survives_the_journal(strategy: Strategy) -> None:
    before = operation(Phase.PAUSED, strategy)
    assert operation_of(json.loads(json.dumps(operation_to_dict(before)))) == before


def test_a_ramp_that_an_earlier_version_wrote_with_its_defaults_is_read() -> None:
    written = json.loads(json.dumps(operation_to_dict(operation(Phase.PAUSED, STRATEGIES[2]))))
    written["strategy"]["config"] |= {"steps": 3, "duration_minutes": 30.0}
    assert operation_of(written).strategy == STRATEGIES[2]


@pytest.mark.parametrize(
    "phase",
    [Phase.PENDING, Phase.LOADING, Phase.WARMING, Phase.SHIFTING, Phase.EVALUATING, Phase.PAUSED, Phase.PROMOTING],
)
def test_what_wanted_a_decision_is_paused_with_the_stable_version_serving(phase: Phase) -> None:
    winner = "v2" if phase is Phase.PROMOTING else None
    after = recovered(operation(phase, winner=winner), 5.0)
    assert after.phase is Phase.PAUSED and after.detached
    assert (after.share, after.winner, after.stays) == (0.0, None, "v1")
    assert phase.value in after.reason, "it says what it was doing"
    assert (after.created_s, after.phase_since_s) == (5.0, 5.0), "the old process's clock means nothing here"


def test_what_is_paused_says_what_each_version_had() -> None:
    two = recovered(replace(operation(Phase.EVALUATING, STRATEGIES[4]), share=0.3), 5.0)
    assert "evaluating at stage 0 (10% on v2, 20% on v3); " in two.reason
    assert "evaluating at stage 0 (20% on v2); " in recovered(operation(Phase.EVALUATING), 5.0).reason


@pytest.mark.parametrize("winner", ["v2", None])
def test_a_drain_that_was_interrupted_has_ended(winner: str | None) -> None:
    after = recovered(operation(Phase.DRAINING, winner=winner), 5.0)
    assert after.phase is Phase.SUCCEEDED and after.winner == winner


def test_a_way_back_that_was_interrupted_has_been_gone() -> None:
    before = replace(operation(Phase.ROLLING_BACK), ending=Phase.ROLLED_BACK)
    assert recovered(before, 5.0).phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.is_final])
def test_what_had_ended_is_left_alone(phase: Phase) -> None:
    before = operation(phase)
    assert recovered(before, 5.0) is before


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.type.value)
def test_a_paused_operation_can_be_resumed_promoted_kept_or_aborted(strategy: Strategy) -> None:
    paused = recovered(operation(Phase.EVALUATING if strategy.stages else Phase.LOADING, strategy), 5.0)
    resumed, effects = step(paused, ops.Resume(), 6.0)
    assert not resumed.detached
    if strategy.drains_first:  # the stable version serves again, and must leave again
        assert resumed.phase is Phase.LOADING and effects == (ops.Load(("v2",), "v1"),)
    else:
        assert resumed.phase is (Phase.SHIFTING if strategy.stages else Phase.PROMOTING)
        assert isinstance(effects[0], ops.Route), "its shares come into force anew; nothing is taken for granted"
    for event, phase in (
        (ops.Conclude(promote=True, reason="x"), Phase.LOADING if strategy.drains_first else Phase.PROMOTING),
        (ops.Conclude(promote=False, reason="x"), Phase.ROLLING_BACK),
        (ops.Abort(reason="x"), Phase.ROLLING_BACK),
    ):
        assert step(paused, event, 6.0)[0].phase is phase


def test_a_reason_of_an_earlier_abswitch_that_was_no_text_is_read_as_one() -> None:
    plain = operation_to_dict(operation(Phase.PAUSED)) | {"reason": 5}
    assert operation_of(plain).reason == "5"


def test_an_answer_to_the_old_process_is_dropped() -> None:
    before = operation(Phase.EVALUATING)
    after = recovered(before, 5.0)
    assert step(after, ops.StageElapsed(epoch=before.epoch), 6.0) == (after, ())
