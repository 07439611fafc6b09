"""Any order of switches, requests, faults and crashes: the promises of the design hold after every step.

`ABSWITCH_HYPOTHESIS=soak` (`make soak`) runs many more, and others every time.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from abswitch.errors import (
    IllegalTransition,
    InvalidInput,
    OperationFinished,
    OperationInProgress,
    StoreError,
    SwitchRefused,
)
from abswitch.rollout import operation as ops
from abswitch.rollout.judging import ThresholdJudge
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import strategy_of
from abswitch.serving.scripted import ScriptedInstance
from tests.serving.world import MODELS, VERSIONS, World, locked

RUNS = {"ci": 500, "soak": 20_000}
PROFILE = os.environ.get("ABSWITCH_HYPOTHESIS", "ci")
STEPS = 40

CANARY = {"initial_percentage": 20, "step_percentage": 40, "evaluation_period_minutes": 1, "min_requests": 5}
STRATEGIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("immediate", {}),
    ("immediate", {"drain_first": True}),
    ("gradual", {"duration_minutes": 3, "steps": 3}),
    ("canary", CANARY | {"max_duration_hours": 0.2}),
    ("ab_test", {"traffic_percentage": 40, "test_duration_hours": 0.1}),
    ("ab_test", {"arms": "others", "evaluation_period_minutes": 2, "test_duration_hours": 0.2}),
    ("shadow", {"mirror_percentage": 50, "max_in_flight": 4}),
)
DEPLOY = STRATEGIES[0]
REFUSALS = (OperationInProgress, SwitchRefused, InvalidInput, StoreError)
STAGED = (Phase.EVALUATING, Phase.PAUSED)

models = st.sampled_from(MODELS)
versions = st.sampled_from(VERSIONS)
units = st.integers(0, 30).map("user-{}".format)
which = st.integers(0, 5)


class Switching(RuleBasedStateMachine):
    """What people, engines, disks and the machine may do, in any order.

    Preconditions and the choice of what is hit are there to make things happen; what makes no sense is tried as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def teardown(self) -> None:
        try:
            self.world.finish()
        finally:
            self.world.close()

    def running(self, *phases: Phase) -> list[Operation]:
        """The operations under way, in one of the phases if any are named."""
        switcher = self.world.life.switcher
        found = [operation for model_id in MODELS if (operation := switcher.running(model_id)) is not None]
        return [operation for operation in found if not phases or operation.phase in phases]

    @initialize(deployed=st.sampled_from([MODELS, MODELS, MODELS[:1], ()]))
    def begin(self, deployed: tuple[str, ...]) -> None:
        for model_id in MODELS:
            for version in VERSIONS[:3]:
                self.register(model_id, version)
        for model_id in deployed:
            self.try_to_start(model_id, "v1", DEPLOY)

    @rule(model_id=models, version=versions)
    def register(self, model_id: str, version: str) -> None:
        if not self.is_registered(model_id, version):
            config = {"model_id": model_id, "model": "script", "backend": "scripted"}
            self.world.life.registry.register_model(config, version)

    def is_registered(self, model_id: str, version: str) -> bool:
        registry = self.world.life.registry
        known = registry.get_model_versions(model_id) if model_id in registry.list_models() else ()
        return version in {one.version for one in known}

    # --- switches -----------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.running()) < len(MODELS))
    @rule(at=which, kind=st.sampled_from(STRATEGIES))
    def start(self, at: int, kind: tuple[str, dict[str, Any]]) -> None:
        """A switch that makes sense: of a model that is free, to a version that it does not have."""
        registry = self.world.life.registry
        held = {operation.model_id for operation in self.running()}
        free = [model_id for model_id in MODELS if model_id not in held]
        model_id = free[at % len(free)]
        active = registry.active_version(model_id)
        others = [one.version for one in registry.get_model_versions(model_id) if one.version != active]
        self.try_to_start(model_id, others[at % len(others)], kind if active else DEPLOY)

    @rule(model_id=models, version=versions, kind=st.sampled_from(STRATEGIES))
    def try_to_start(self, model_id: str, version: str, kind: tuple[str, dict[str, Any]]) -> None:
        life, config = self.world.life, dict(kind[1])
        if config.get("arms"):
            config["arms"] = {v: 25 for v in VERSIONS[:3] if v != life.registry.active_version(model_id)}
        holder = life.switcher.running(model_id)
        self.world.numbers += 1
        operation_id = f"op-{self.world.numbers}"
        judge = ThresholdJudge(max_error_rate=0.05, min_requests=5) if kind[0] == "ab_test" else None
        begun = life.switcher.start(
            model_id, version, strategy_of(kind[0], config), operation_id=operation_id, salt=operation_id, judge=judge
        )
        refused = self.refusal(begun)
        if refused is None:
            assert holder is None, "one operation per model"
        else:
            assert operation_id not in life.switcher.operations, "refused, and yet there"
        if isinstance(refused, OperationInProgress):
            assert holder is not None and holder.operation_id in str(refused)

    def refusal(self, begun: Coroutine[Any, Any, Operation]) -> Exception | None:
        try:
            self.world.run(begun)
        except REFUSALS as refused:
            return refused
        return None

    def tell(self, event: ops.Event, at: int, *phases: Phase) -> None:
        operation, life = self.running(*phases)[at % len(self.running(*phases))], self.world.life
        try:
            self.world.run(life.switcher.tell(operation.operation_id, event))
        except (IllegalTransition, InvalidInput, OperationFinished, StoreError):
            if life is self.world.life:  # no crash meanwhile
                assert life.switcher.operation(operation.operation_id).epoch == operation.epoch, "refused, yet it moved"

    @precondition(lambda self: self.running())
    @rule(at=which)
    def pause(self, at: int) -> None:
        self.tell(ops.Pause(reason="lunch"), at)

    @precondition(lambda self: self.running(Phase.PAUSED))
    @rule(at=which)
    def resume(self, at: int) -> None:
        self.tell(ops.Resume(), at, Phase.PAUSED)

    @precondition(lambda self: self.running(*STAGED))
    @rule(at=which, version=st.none() | versions)
    def promote(self, at: int, version: str | None) -> None:
        self.tell(ops.Conclude(promote=True, reason="better", version=version), at, *STAGED)

    @precondition(lambda self: self.running(*STAGED))
    @rule(at=which)
    def keep(self, at: int) -> None:
        self.tell(ops.Conclude(promote=False, reason="no better"), at, *STAGED)

    @precondition(lambda self: self.running())
    @rule(at=which)
    def abort(self, at: int) -> None:
        operation, world = self.running()[at % len(self.running())], self.world
        life = world.life
        aborted = world.run(life.switcher.abort(operation.operation_id))
        if aborted and life is world.life and life.journal_error is None:
            world.aborted.add(operation.operation_id)
            phase = life.switcher.operation(operation.operation_id).phase
            assert phase in (Phase.ROLLING_BACK, Phase.DRAINING, Phase.ABORTED, Phase.FAILED), phase

    # --- time and requests --------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 15.0, 61.0, 130.0, 1000.0]))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(model_id=models, unit=units, pinned=st.none() | versions)
    def request(self, model_id: str, unit: str, pinned: str | None) -> None:
        if pinned is None or self.is_registered(model_id, pinned):
            self.world.ask(model_id, unit, version=pinned)
            self.world.settle()

    @rule(seconds=st.sampled_from([0.0, 61.0, 121.0]))
    def traffic(self, seconds: float) -> None:
        """What a judge needs to see, and then the time to look at it."""
        for at in range(40):
            self.world.ask(MODELS[at % len(MODELS)], f"user-{at}")
        self.world.settle()
        self.world.tick(seconds)

    @rule(model_id=models, unit=units, chunks=st.integers(1, 2))
    def stream_and_leave(self, model_id: str, unit: str, chunks: int) -> None:
        self.world.ask(model_id, unit, leave_after=chunks)
        self.world.settle()

    @precondition(lambda self: self.world.waiting())
    @rule(at=st.integers(0, 50))
    def cancel_a_caller(self, at: int) -> None:
        waiting = self.world.waiting()
        waiting[at % len(waiting)].cancel()
        self.world.settle()

    # --- engines ------------------------------------------------------------------------------------------------

    def engine(self, at: int) -> ScriptedInstance:
        loaded = [cached.instance for cached in self.world.life.cache.loaded.values()]
        return cast(ScriptedInstance, loaded[-1 - at % len(loaded)])

    @precondition(lambda self: self.world.life.cache.loaded)
    @rule(at=which, found_by=st.sampled_from(["request", "watchdog"]))
    def crash_engine(self, at: int, found_by: str) -> None:
        instance, life = self.engine(at), self.world.life
        self.world.faults += 1
        if found_by == "request":
            self.world.call(instance.die, "killed")
        else:
            self.world.lost.add(id(instance))
            self.world.call(life.switcher.instance_lost, instance.version.model_id, instance, "no token for 10 s")

    @precondition(lambda self: self.world.life.cache.loaded)
    @rule(at=which, tokens=st.integers(0, 2))
    def hang_engine(self, at: int, tokens: int) -> None:
        """It gives the next tokens, and no more."""
        gate = self.world.gates[self.engine(at).version.key]
        gate.close()
        gate.let(tokens)
        self.world.settle()

    @rule()
    def engines_go_on(self) -> None:
        for gate in tuple(self.world.gates.values()):
            gate.open()
        self.world.settle()

    @precondition(lambda self: self.world.life.cache.loaded)
    @rule(at=which)
    def breach(self, at: int) -> None:
        model_id, version = self.engine(at).version.key
        self.world.call(self.world.life.switcher.breached, model_id, version, "error rate above critical")

    @rule(version=versions, what=st.sampled_from(["answers", "files", "loads"]))
    def break_version(self, version: str, what: str) -> None:
        self.world.faults += what != "loads"
        if what == "answers":
            self.world.bad.add(version)
        elif what == "files":
            self.world.unloadable.add(version)
        else:
            self.world.load_gate.close()

    @rule()
    def mend_versions(self) -> None:
        self.world.bad.clear()
        self.world.unloadable.clear()
        self.world.load_gate.open()
        self.world.settle()

    # --- the machine --------------------------------------------------------------------------------------------

    @rule(fails=st.booleans())
    def journal_fails(self, fails: bool) -> None:
        """Another process holds the file, or the disk is full; and later no more."""
        self.world.unwritten |= fails
        self.world.life.journal_error = locked() if fails else None

    @rule(at_write=st.booleans())
    def crash_controller(self, at_write: bool) -> None:
        if at_write:  # the next move is durable, and its effects are never begun
            self.world.crash_at_write = True
        else:
            self.world.crash()

    @invariant()
    def promises(self) -> None:
        self.world.check()


TestSwitching = pytest.mark.timeout(0 if PROFILE == "soak" else 900)(Switching.TestCase)
TestSwitching.settings = settings(
    max_examples=RUNS[PROFILE],
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=PROFILE == "ci",
    database=None,
    suppress_health_check=list(HealthCheck),
)
