"""Any order of switches, requests, faults and crashes: the promises of the design hold after every step.

`ABSWITCH_HYPOTHESIS=soak` (`make soak`) runs many more, and others every time.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from abswitch.errors import (
    AbswitchError,
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
from tests.serving.world import MODELS, VERSIONS, World, locked

RUNS = {"ci": 500, "soak": 20_000}
PROFILE = os.environ.get("ABSWITCH_HYPOTHESIS", "ci")
STEPS = 25

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
models = st.sampled_from(MODELS)
versions = st.sampled_from(VERSIONS)
units = st.integers(0, 30).map("user-{}".format)
REFUSALS = (OperationInProgress, SwitchRefused, InvalidInput, StoreError)


class Switching(RuleBasedStateMachine):
    """What people, engines, disks and the machine may do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def teardown(self) -> None:
        try:
            self.world.finish()
        finally:
            self.world.close()

    def running(self, model_id: str) -> Operation | None:
        return self.world.life.switcher.running(model_id)

    # --- switches -----------------------------------------------------------------------------------------------

    @initialize(deployed=st.booleans())
    def begin(self, deployed: bool) -> None:
        for version in VERSIONS[:3]:
            self.register(MODELS[0], version)
        if deployed:
            self.start(MODELS[0], "v1", STRATEGIES[0])

    @rule(model_id=models, version=versions)
    def register(self, model_id: str, version: str) -> None:
        registry = self.world.life.registry
        if model_id in registry.list_models() and version in {v.version for v in registry.get_model_versions(model_id)}:
            return
        registry.register_model({"model_id": model_id, "model": "script", "backend": "scripted"}, version)

    @rule(model_id=models, version=versions, kind=st.sampled_from(STRATEGIES))
    def start(self, model_id: str, version: str, kind: tuple[str, dict[str, Any]]) -> None:
        life, config = self.world.life, dict(kind[1])
        if config.get("arms"):
            active = life.registry.active_version(model_id) if model_id in life.registry.list_models() else None
            config["arms"] = {v: 25 for v in VERSIONS[:3] if v != active}
        holder = self.running(model_id)
        self.world.numbers += 1
        operation_id = f"op-{self.world.numbers}"
        judge = ThresholdJudge(max_error_rate=0.05, min_requests=5) if kind[0] == "ab_test" else None
        begun = life.switcher.start(
            model_id, version, strategy_of(kind[0], config), operation_id=operation_id, salt=operation_id, judge=judge
        )
        try:
            self.world.run(begun)
        except REFUSALS as refused:
            assert operation_id not in life.switcher.operations, "refused, and yet there"
            if isinstance(refused, OperationInProgress):
                assert holder is not None and holder.operation_id in str(refused)
            return
        assert holder is None, "one operation per model"

    def tell(self, model_id: str, event: ops.Event) -> None:
        operation, life = self.running(model_id), self.world.life
        if operation is None:
            return
        try:
            self.world.run(life.switcher.tell(operation.operation_id, event))
        except (IllegalTransition, InvalidInput, OperationFinished, StoreError):
            if life is self.world.life:  # no crash meanwhile
                assert life.switcher.operation(operation.operation_id).epoch == operation.epoch, "refused, yet it moved"

    @rule(model_id=models)
    def pause(self, model_id: str) -> None:
        self.tell(model_id, ops.Pause(reason="lunch"))

    @rule(model_id=models)
    def resume(self, model_id: str) -> None:
        self.tell(model_id, ops.Resume())

    @rule(model_id=models, version=st.none() | versions)
    def promote(self, model_id: str, version: str | None) -> None:
        self.tell(model_id, ops.Conclude(promote=True, reason="better", version=version))

    @rule(model_id=models)
    def keep(self, model_id: str) -> None:
        self.tell(model_id, ops.Conclude(promote=False, reason="no better"))

    @rule(model_id=models)
    def abort(self, model_id: str) -> None:
        operation, world = self.running(model_id), self.world
        if operation is None:
            return
        aborted = world.run(world.life.switcher.abort(operation.operation_id))
        if aborted and world.life.journal_error is None:
            world.aborted.add(operation.operation_id)
            phase = world.life.switcher.operation(operation.operation_id).phase
            assert phase in (Phase.ROLLING_BACK, Phase.DRAINING, Phase.ABORTED, Phase.FAILED), phase

    # --- time and requests --------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 15.0, 60.0, 61.0, 130.0, 1000.0]))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(model_id=models, unit=units)
    def request(self, model_id: str, unit: str) -> None:
        self.world.ask(model_id, unit)
        self.world.settle()

    @rule(model_id=models, count=st.integers(10, 40))
    def requests(self, model_id: str, count: int) -> None:
        for at in range(count):
            self.world.ask(model_id, f"user-{at}")
        self.world.settle()

    @rule(model_id=models, unit=units, chunks=st.integers(1, 2))
    def stream_and_leave(self, model_id: str, unit: str, chunks: int) -> None:
        self.world.ask(model_id, unit, leave_after=chunks)
        self.world.settle()

    @rule(model_id=models, version=versions)
    def request_pinned(self, model_id: str, version: str) -> None:
        registry = self.world.life.registry
        if model_id in registry.list_models() and version in {v.version for v in registry.get_model_versions(model_id)}:
            self.world.ask(model_id, "somebody", version=version)
            self.world.settle()

    @precondition(lambda self: any(not task.done() for task in self.world.clients.values()))
    @rule(which=st.integers(0, 50))
    def cancel_a_caller(self, which: int) -> None:
        waiting = [task for task in self.world.clients.values() if not task.done()]
        waiting[which % len(waiting)].cancel()
        self.world.settle()

    # --- engines ------------------------------------------------------------------------------------------------

    def loaded(self, model_id: str, version: str) -> Any:
        cached = self.world.life.cache.loaded.get((model_id, version))
        return None if cached is None else cached.instance

    @rule(model_id=models, version=versions)
    def crash_engine(self, model_id: str, version: str) -> None:
        instance = self.loaded(model_id, version)
        if instance is not None:
            self.world.faults += 1
            self.world.call(instance.die, "killed")

    @rule(model_id=models, version=versions)
    def hang_engine(self, model_id: str, version: str) -> None:
        self.world.gates[model_id, version].close()

    @rule(model_id=models, version=versions, tokens=st.integers(1, 3))
    def engine_goes_on(self, model_id: str, version: str, tokens: int) -> None:
        self.world.gates[model_id, version].let(tokens)
        self.world.settle()

    @rule(model_id=models, version=versions)
    def engine_recovers(self, model_id: str, version: str) -> None:
        self.world.gates[model_id, version].open()
        self.world.settle()

    @rule(model_id=models, version=versions)
    def watchdog_finds_it_hung(self, model_id: str, version: str) -> None:
        instance = self.loaded(model_id, version)
        if instance is not None:
            self.world.faults += 1
            self.world.lost.add(id(instance))
            self.world.call(self.world.life.switcher.instance_lost, model_id, instance, "no token for 10 s")

    @rule(model_id=models, version=versions)
    def breach(self, model_id: str, version: str) -> None:
        if model_id in self.world.life.registry.list_models():
            self.world.call(self.world.life.switcher.breached, model_id, version, "error rate above critical")

    @rule(version=versions)
    def answers_go_bad(self, version: str) -> None:
        self.world.faults += 1
        self.world.bad.add(version)

    @rule(version=versions, broken=st.booleans())
    def files_break(self, version: str, broken: bool) -> None:
        self.world.faults += broken
        (self.world.unloadable.add if broken else self.world.unloadable.discard)(version)

    @rule(is_open=st.booleans())
    def loads_take_long(self, is_open: bool) -> None:
        self.world.load_gate.open() if is_open else self.world.load_gate.close()
        self.world.settle()

    # --- the machine --------------------------------------------------------------------------------------------

    @rule(fails=st.booleans())
    def journal(self, fails: bool) -> None:
        self.world.unwritten |= fails
        self.world.life.journal_error = locked() if fails else None

    @rule()
    def crash_controller(self) -> None:
        self.world.crash()

    @rule()
    def crash_at_the_next_write(self) -> None:
        self.world.crash_at_write = True

    @invariant()
    def promises(self) -> None:
        self.world.check()


TestSwitching = pytest.mark.timeout(0 if PROFILE == "soak" else 280)(Switching.TestCase)
TestSwitching.settings = settings(
    max_examples=RUNS[PROFILE],
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=PROFILE == "ci",
    database=None,
    suppress_health_check=list(HealthCheck),
)
_ = AbswitchError
