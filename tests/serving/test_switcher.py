"""The controller carries out what the machine asks for, on scripted instances."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import pytest

from abswitch.domain import ModelVersion
from abswitch.errors import (
    IllegalTransition,
    InstanceDied,
    InvalidInput,
    NoActiveVersion,
    OperationFinished,
    OperationInProgress,
    StoreError,
    SwitchRefused,
    UnknownVersion,
)
from abswitch.rollout import operation as ops
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import strategy_of
from abswitch.serving.backoff import RestartPolicy
from abswitch.serving.policy import Budget
from abswitch.serving.scripted import Gate, ScriptedInstance
from tests.serving.harness import MODEL, Shell, eventually


async def test_nothing_serves_before_the_first_deployment(shell: Shell) -> None:
    with pytest.raises(NoActiveVersion, match="engine.deploy"):
        await shell.ask()
    assert shell.requests == [], "nothing was admitted, so there is no row"


async def test_the_first_deployment(shell: Shell) -> None:
    operation = await shell.deploy("v1")
    assert operation.promoted
    assert shell.registry.active_version(MODEL) == "v1"
    assert await shell.ask() == "I am v1"
    assert [r.phase_to for r in shell.journal] == ["loading", "warming", "promoting", "draining", "succeeded"]


async def test_an_immediate_switch_lets_the_old_version_finish_what_it_began(shell: Shell) -> None:
    await shell.deploy("v1")
    gate = shell.instance("v1").token_gate = Gate()
    begun = asyncio.create_task(shell.ask())
    await eventually(lambda: gate.waiting == 1)
    operation_id = await shell.start("v2")
    await shell.until(operation_id, Phase.DRAINING)
    assert await shell.ask() == "I am v2", "new requests go to the new version while the old one drains"
    assert not shell.switcher.operation(operation_id).phase.is_final
    gate.open()
    assert await begun == "I am v1"
    await shell.until(operation_id, Phase.SUCCEEDED)


async def test_a_drain_that_takes_too_long_ends_the_switch_but_not_the_request() -> None:
    shell = Shell(drain_timeout_s=0.001)
    await shell.deploy("v1")
    gate = shell.instance("v1").token_gate = Gate()
    begun = asyncio.create_task(shell.ask())
    await eventually(lambda: gate.waiting == 1)
    operation = await shell.until(await shell.start("v2"), Phase.SUCCEEDED)
    assert "1 request(s) finish on the version that left" in operation.reason
    gate.open()
    assert await begun == "I am v1"
    await shell.close()


async def test_an_ab_test_splits_by_unit_and_sticks(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.split("v2", 30)
    first = [await shell.ask(f"user-{i}") for i in range(400)]
    assert [await shell.ask(f"user-{i}") for i in range(400)] == first
    assert 80 <= first.count("I am v2") <= 160, "30 % of 400, within six standard errors"
    arms = {(r.arm, r.assigned_version, r.served_version, r.step) for r in shell.requests}
    assert arms == {("stable", "v1", "v1", 0), ("candidate", "v2", "v2", 0)}


async def test_promotion_and_return(shell: Shell) -> None:
    await shell.deploy("v1")
    kept = await shell.split("v2")
    await shell.switcher.tell(kept, ops.Conclude(promote=False, reason="no better"))
    ended = await shell.until(kept, Phase.SUCCEEDED)
    assert (ended.reason, shell.registry.active_version(MODEL)) == ("no better", "v1")
    promoted = await shell.split("v3")
    await shell.switcher.tell(promoted, ops.Conclude(promote=True, reason="better"))
    await shell.until(promoted, Phase.SUCCEEDED)
    assert {await shell.ask() for _ in range(20)} == {"I am v3"}
    assert [entry.version for entry in shell.registry.history(MODEL)] == ["v1", "v3"]


async def test_a_test_that_runs_out_of_time_returns_to_stable(shell: Shell) -> None:
    await shell.deploy("v1")
    operation_id = await shell.split("v2", test_duration_hours=24)
    shell.clock.advance(24 * 3600 - 1)
    await asyncio.sleep(0)
    assert shell.switcher.operation(operation_id).phase is Phase.EVALUATING
    shell.clock.advance(1)
    assert (await shell.until(operation_id, Phase.SUCCEEDED)).promoted is False


async def test_a_wall_clock_that_jumps_does_not_end_a_test(shell: Shell) -> None:
    await shell.deploy("v1")
    operation_id = await shell.split("v2", test_duration_hours=24)
    shell.clock.jump_wall(10 * 24 * 3600)
    await asyncio.sleep(0)
    assert shell.switcher.operation(operation_id).phase is Phase.EVALUATING


async def test_one_operation_per_model(shell: Shell) -> None:
    await shell.deploy("v1")
    holder = await shell.split("v2")
    with pytest.raises(OperationInProgress, match=holder):
        await shell.start("v3")
    assert await shell.switcher.abort(holder)
    await shell.until(holder, Phase.ABORTED)
    await shell.deploy("v3")


async def test_aborting_a_finished_operation_says_so_and_does_nothing(shell: Shell) -> None:
    operation = await shell.deploy("v1")
    assert await shell.switcher.abort(operation.operation_id) is False
    with pytest.raises(OperationFinished, match="succeeded"):
        await shell.switcher.tell(operation.operation_id, ops.Pause(reason="x"))
    assert shell.switcher.operation(operation.operation_id) == operation


async def test_abort_while_loading_leaves_the_stable_version_alone() -> None:
    gate = Gate(is_open=True)

    def configure(instance: ScriptedInstance) -> None:
        instance.load_gate = gate

    shell = Shell(configure=configure)
    await shell.deploy("v1")
    gate.close()
    operation_id = await shell.start("v2")
    assert await shell.switcher.abort(operation_id)
    assert shell.switcher.operation(operation_id).phase is Phase.ABORTED
    assert await shell.ask() == "I am v1"
    gate.open()
    await shell.close()
    assert all(instance.counts.stops == 1 for instance in shell.backend.made), "also the one that was loading"


ARMS = {"arms": {"v2": 25, "v3": 25}}


def made(shell: Shell) -> list[str]:
    return [instance.version.version for instance in shell.backend.made]


async def test_after_an_abort_no_further_candidate_is_loaded() -> None:
    gate = Gate(is_open=True)
    shell = Shell(configure=lambda instance: setattr(instance, "load_gate", gate))
    await shell.deploy("v1")
    gate.close()
    operation_id = await shell.start("v2", "ab_test", ARMS)
    await eventually(lambda: gate.waiting == 1)
    await shell.switcher.abort(operation_id)
    gate.open()
    await settled()
    assert made(shell) == ["v1", "v2"]
    await shell.close()


def found(kind: str, config: Mapping[str, Any]) -> Operation:
    """A switch from v1 to v2 that an earlier process was in the middle of, as it is taken over."""
    return Operation(
        operation_id="op-found",
        model_id=MODEL,
        stable="v1",
        candidate="v2",
        strategy=strategy_of(kind, config),
        phase=Phase.PAUSED,
        detached=True,
    )


async def test_an_abort_ends_the_bringing_back_of_versions_that_do_not_all_fit() -> None:
    """Nothing keeps them loaded any more: each would push out another one, and so on without an end."""
    gate = Gate(is_open=True)
    shell = Shell(configure=lambda instance: setattr(instance, "load_gate", gate), max_cached_models=2)
    await shell.deploy("v1")
    gate.close()
    shell.switcher.adopt(found("ab_test", ARMS), "salt", 1)
    await shell.switcher.tell("op-found", ops.Resume())
    await eventually(lambda: gate.waiting == 1)
    await shell.switcher.abort("op-found")
    await shell.until("op-found", Phase.ABORTED)
    gate.open()
    await settled()
    assert made(shell) == ["v1", "v2"] and await shell.ask() == "I am v1"
    await shell.close()


@pytest.mark.parametrize("config", [{"drain_first": True}, {"in_place": True}], ids=lambda one: next(iter(one)))
async def test_an_abort_while_the_stable_version_drains_keeps_it(shell: Shell, config: dict[str, bool]) -> None:
    """It serves again from the abort on: what waited for its drain must not unload it, or change its weights."""
    await shell.deploy("v1")
    gate = shell.instance("v1").token_gate = Gate()
    begun = asyncio.create_task(shell.ask())
    await eventually(lambda: gate.waiting == 1)
    operation_id = await shell.start("v2", "immediate", config)
    await settled()
    await shell.switcher.abort(operation_id)
    await shell.until(operation_id, Phase.ABORTED)
    gate.open()
    assert await begun == "I am v1"
    await settled()
    assert made(shell) == ["v1"] and shell.instance("v1").counts.stops == 0
    assert await shell.ask() == "I am v1"


async def test_a_routed_version_that_was_unloaded_all_the_same_is_started_again(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.cache.discard((MODEL, "v1"))
    assert await shell.ask() == "I am v1"
    assert made(shell) == ["v1", "v1"]


async def no_way_back(shell: Shell, *, dies: bool) -> Operation:
    """v2 took the place of v1, is told to go again while it is being promoted, and v1 does not load any more."""
    await shell.deploy("v1")
    gate = shell.instance("v1").token_gate = Gate(is_open=True)
    operation_id = await shell.start("v2", "immediate", {"drain_first": True})
    moved = shell.switcher._on_move

    def on_move(operation: Operation) -> None:
        moved(operation)
        if operation.phase is Phase.DRAINING and operation.promoted:
            shell.backend._configure = refuses
            if dies:
                shell.instance("v2").die("bus error")
                shell.switcher.instance_lost(MODEL, shell.instance("v2"), "bus error")
            else:
                shell.switcher._put(operation.operation_id, ops.Abort(reason="by hand"))

    shell.switcher._on_move = on_move
    ended = await shell.until(operation_id, *(phase for phase in Phase if phase.is_final))
    gate.open()
    return ended


def refuses(instance: ScriptedInstance) -> None:
    if instance.version.version == "v1":
        instance.load_error = "no memory"


async def test_without_a_way_back_the_stable_version_is_brought_up_as_soon_as_it_loads() -> None:
    shell = Shell()
    ended = await no_way_back(shell, dies=True)
    assert ended.phase is Phase.FAILED and ended.stays == "v1"
    assert shell.registry.active_version(MODEL) == shell.entries[-1].active == "v1"
    with pytest.raises(NoActiveVersion, match="no memory"):
        await shell.ask()
    shell.backend._configure = None
    await shell.pass_time(400, 10.0)
    assert await shell.ask() == "I am v1"
    assert not shell.cache._pins
    await shell.close()


async def test_without_a_way_back_a_promoted_version_that_lives_goes_on_serving() -> None:
    shell = Shell()
    ended = await no_way_back(shell, dies=False)
    assert ended.phase is Phase.FAILED and ended.stays == "v2"
    assert shell.registry.active_version(MODEL) == shell.entries[-1].active == "v2"
    assert await shell.ask() == "I am v2"
    assert not shell.cache._pins
    await shell.close()


async def test_a_loser_that_dies_while_it_leaves_does_not_undo_the_promotion(shell: Shell) -> None:
    await shell.deploy("v1")
    operation_id = await shell.start("v2", "ab_test", {"arms": {"v2": 40, "v3": 40}})
    await shell.until(operation_id, Phase.EVALUATING)
    gate = shell.instance("v3").token_gate = Gate()
    route = shell.router.snapshot(MODEL)
    unit = next(name for name in map("u{}".format, range(999)) if route.choose(name).version == "v3")
    asked = asyncio.create_task(shell.ask(unit))
    await eventually(lambda: gate.waiting == 1)
    await shell.switcher.tell(operation_id, ops.Conclude(promote=True, reason="v2 is better"))
    await shell.until(operation_id, Phase.DRAINING)
    shell.instance("v3").die("bus error")
    await asyncio.gather(asked, return_exceptions=True)
    ended = await shell.until(operation_id, *(phase for phase in Phase if phase.is_final))
    assert ended.phase is Phase.SUCCEEDED and shell.registry.active_version(MODEL) == "v2"


async def test_a_request_on_a_promoted_version_that_dies_waits_for_the_way_back(shell: Shell) -> None:
    await shell.deploy("v1")
    draining = shell.instance("v1").token_gate = Gate()
    begun = asyncio.create_task(shell.ask())
    await eventually(lambda: draining.waiting == 1)
    operation_id = await shell.start("v2")
    await shell.until(operation_id, Phase.DRAINING)
    silent = shell.instance("v2").token_gate = Gate()
    asked = asyncio.create_task(shell.ask())
    await eventually(lambda: silent.waiting == 1)
    shell.instance("v2").die("bus error")
    await eventually(lambda: shell.switcher.operation(operation_id).phase is not Phase.DRAINING)
    draining.open()
    assert (await asked, await begun) == ("I am v1", "I am v1")
    assert (await shell.until(operation_id, Phase.ROLLED_BACK)).stays == "v1"


async def test_a_stable_version_that_hangs_on_its_way_back_is_not_waited_for_without_end() -> None:
    shell = Shell()
    gate = Gate(is_open=True)
    shell.backend._configure = lambda instance: setattr(instance, "load_gate", gate)
    await shell.deploy("v1")
    operation_id = await shell.start("v2", "immediate", {"drain_first": True})
    shell.switcher._on_move = lambda operation: gate.close() if operation.phase is Phase.WARMING else None
    await shell.until(operation_id, Phase.SUCCEEDED)
    back = await shell.start("v1", "immediate", {"drain_first": True})
    await eventually(lambda: gate.waiting == 1)
    assert await shell.switcher.abort(back)  # the way back to v2, which was unloaded, hangs as well
    await eventually(lambda: gate.waiting == 2)
    await shell.pass_time(301, 10.0)
    assert shell.switcher.operation(back).phase is Phase.FAILED
    assert "not ready within 300 s" in shell.switcher.operation(back).reason
    gate.open()
    await shell.close()


async def test_an_end_that_could_not_be_written_down_is_written_before_another_beginning(shell: Shell) -> None:
    """Or a restart would find two operations that hold the model."""
    gate = Gate(is_open=True)
    shell.backend._configure = lambda instance: setattr(instance, "load_gate", gate)
    await shell.deploy("v1")
    gate.close()
    operation_id = await shell.start("v2", "canary")
    shell.journal_error = StoreError("disk full")
    assert await shell.switcher.abort(operation_id)
    with pytest.raises(StoreError, match="disk full"):
        await shell.start("v3", "canary")
    shell.journal_error = None
    await shell.start("v3", "canary")
    written = [(one.operation_id == operation_id, one.phase_to) for one in shell.journal[-2:]]
    gate.open()
    assert written == [(True, "aborted"), (False, "loading")]


async def test_an_end_that_could_not_be_written_down_is_written_as_soon_as_it_can_be() -> None:
    gate = Gate(is_open=True)
    shell = Shell(configure=lambda instance: setattr(instance, "load_gate", gate))
    await shell.deploy("v1")
    gate.close()
    operation_id = await shell.start("v2", "canary")
    shell.journal_error = StoreError("disk full")
    assert await shell.switcher.abort(operation_id)
    await shell.pass_time(3)
    assert shell.journal[-1].phase_to == "loading"
    shell.journal_error = None
    await shell.pass_time(2)
    assert [one.phase_to for one in shell.journal].count("aborted") == 1
    gate.open()
    await shell.close()


async def settled() -> None:
    for _ in range(300):
        await asyncio.sleep(0)


async def test_a_command_the_phase_does_not_take_changes_nothing(shell: Shell) -> None:
    await shell.deploy("v1")
    operation_id = await shell.split("v2")
    with pytest.raises(IllegalTransition, match="evaluating does not take event Resume"):
        await shell.switcher.tell(operation_id, ops.Resume())
    assert shell.switcher.operation(operation_id).phase is Phase.EVALUATING


@pytest.mark.parametrize(
    ("version", "kind", "error"),
    [("v9", "immediate", UnknownVersion), ("v1", "immediate", SwitchRefused)],
)
async def test_senseless_switches_are_refused(shell: Shell, version: str, kind: str, error: type[Exception]) -> None:
    await shell.deploy("v1")
    with pytest.raises(error):
        await shell.start(version, kind)
    assert len(shell.switcher.operations) == 1


async def test_an_ab_test_needs_a_stable_version(shell: Shell) -> None:
    with pytest.raises(SwitchRefused, match="IMMEDIATE"):
        await shell.start("v1", "ab_test")


async def test_an_unknown_operation_is_named(shell: Shell) -> None:
    with pytest.raises(InvalidInput, match="operation_id"):
        await shell.switcher.abort("op-404")


async def test_a_candidate_that_does_not_load_stays_out(shell: Shell) -> None:
    await shell.deploy("v1")
    shell.backend._configure = lambda instance: setattr(instance, "load_error", "no such tensor")
    operation = await shell.until(await shell.start("v2"), Phase.FAILED)
    assert "no such tensor" in operation.reason
    assert await shell.ask() == "I am v1"
    assert all(route.version == "v1" for route in shell.routes), "it was never routed"
    shell.backend._configure = None
    assert (await shell.deploy("v2")).promoted, "the next try loads it anew"


async def test_a_candidate_that_generates_nothing_stays_out(shell: Shell) -> None:
    await shell.deploy("v1")
    shell.backend._answers["v2"] = lambda _: ()
    operation = await shell.until(await shell.start("v2"), Phase.FAILED)
    assert "generated no token" in operation.reason
    assert await shell.ask() == "I am v1"


async def test_a_candidate_that_dies_under_traffic_is_rolled_back_and_nobody_notices(shell: Shell) -> None:
    await shell.deploy("v1")
    operation_id = await shell.split("v2", 100)
    shell.instance("v2").die("out of memory")
    assert await shell.ask() == "I am v1", "no token had been produced, so the stable version answers"
    ended = await shell.until(operation_id, Phase.ROLLED_BACK)
    assert "out of memory" in ended.reason
    row = shell.requests[-1]
    assert (row.assigned_version, row.served_version, row.fallback) == ("v2", "v1", True)
    assert shell.registry.active_version(MODEL) == "v1"


async def test_a_stable_version_that_dies_is_started_again_and_no_request_is_lost(shell: Shell) -> None:
    await shell.deploy("v1")
    dead = shell.instance("v1")
    dead.die("bus error")
    assert await shell.ask() == "I am v1", "the request had no token yet: it waits for the restart"
    assert shell.instance("v1") is not dead
    row = shell.requests[-1]
    assert row.fallback and row.switch_path == "restart" and row.error_type is None


async def test_a_switch_whose_start_cannot_be_journalled_never_began(shell: Shell) -> None:
    await shell.deploy("v1")
    shell.journal_error = StoreError("disk full")
    with pytest.raises(StoreError, match="disk full"):
        await shell.start("v2")
    shell.journal_error = None
    assert len(shell.switcher.operations) == 1
    assert (await shell.deploy("v2")).promoted, "the model is not held by the switch that never began"


async def test_another_thread_may_look_while_a_switch_that_never_began_is_forgotten(shell: Shell) -> None:
    """`engine.waiting()` and the status read what runs from any thread."""
    seen = []

    class Watched(dict[str, Operation]):
        def __delitem__(self, key: str) -> None:
            super().__delitem__(key)
            seen.append(shell.switcher.running(MODEL))

    shell.switcher._operations = Watched()
    shell.journal_error = StoreError("disk full")
    with pytest.raises(StoreError, match="disk full"):
        await shell.start("v1")
    assert seen == [None]


async def test_journal_before_effects(shell: Shell) -> None:
    """When a move cannot be made durable, the traffic it would have moved stays where it is."""
    await shell.deploy("v1")
    operation_id = await shell.split("v2")
    routes = len(shell.routes)
    shell.journal_error = StoreError("disk full")
    with pytest.raises(StoreError):
        await shell.switcher.tell(operation_id, ops.Conclude(promote=True, reason="x"))
    assert len(shell.routes) == routes
    assert shell.switcher.operation(operation_id).phase is Phase.EVALUATING
    shell.journal_error = None
    await shell.switcher.tell(operation_id, ops.Conclude(promote=True, reason="x"))
    await shell.until(operation_id, Phase.SUCCEEDED)


async def test_a_move_that_could_not_be_written_down_is_made_up_for(shell: Shell) -> None:
    """Otherwise an operation that was aborted while the disk was full would hold its model for ever."""
    await shell.deploy("v1")
    operation_id = await shell.split("v2")
    shell.journal_error = StoreError("disk full")
    assert await shell.switcher.abort(operation_id)
    for _ in range(3):
        shell.clock.advance(1.0)
        await eventually(shell.switcher._inbox.empty)
        assert shell.switcher.operation(operation_id).phase is Phase.ROLLING_BACK
    assert await shell.ask() == "I am v1", "the way back itself did not wait for the disk"
    shell.journal_error = None
    shell.clock.advance(1.0)
    await shell.until(operation_id, Phase.ABORTED)
    assert (await shell.deploy("v2")).promoted


async def test_what_could_not_be_written_down_does_not_outlive_an_abort(shell: Shell) -> None:
    await shell.deploy("v1")
    operation_id = await shell.start("v2", "gradual", {"duration_minutes": 30, "steps": 3})
    before = await shell.until(operation_id, Phase.EVALUATING)
    shell.journal_error = StoreError("disk full")
    shell.clock.advance(600)  # the next step is due, and that cannot be written down
    await eventually(lambda: bool(shell.switcher._unwritten))
    assert shell.switcher.operation(operation_id) == before
    shell.journal_error = None
    assert await shell.switcher.abort(operation_id)
    ended = await shell.until(operation_id, Phase.ABORTED)
    shell.clock.advance(60)
    for _ in range(20):
        await asyncio.sleep(0)
    assert shell.switcher.operation(operation_id) == ended


@pytest.mark.parametrize("is_full", [False, True])
async def test_a_move_back_that_is_owed_is_tried_once_more_at_the_end(shell: Shell, is_full: bool) -> None:
    await shell.deploy("v1")
    operation_id = await shell.split("v2")
    shell.journal_error = StoreError("disk full")
    await shell.switcher.abort(operation_id)
    if not is_full:
        shell.journal_error = None
    await shell.close()
    left = Phase.EVALUATING if is_full else Phase.ROLLING_BACK
    assert shell.entries[-1].operation.phase is left, "else a restart revives an operation that was aborted"
    assert (await shell.instance("v2").health()).alive is False


async def test_a_request_that_nobody_could_take_over_is_a_failure_and_no_fallback() -> None:
    shell = Shell(restarts=RestartPolicy(max_restarts=0))
    await shell.deploy("v1")
    shell.instance("v1").die("bus error")
    with pytest.raises(InstanceDied):
        await shell.ask()
    row = shell.requests[-1]
    assert (row.error_type, row.fallback, row.served_version) == ("InstanceDied", False, "v1")
    await shell.close()


async def test_a_request_for_a_version_that_died_and_does_not_come_back_says_that_it_died(shell: Shell) -> None:
    submission = shell.submission()
    submission.version = "v2"
    shell.backend._configure = lambda instance: setattr(instance, "token_gate", Gate())
    asked = asyncio.create_task(shell.dispatcher.complete(submission))
    await eventually(lambda: bool(shell.backend.made))
    gate = shell.instance("v2").token_gate
    assert gate is not None
    await eventually(lambda: gate.waiting == 1)
    gate.let(1)  # the token that proves it
    await eventually(lambda: bool(shell.transitions.in_flight()) and gate.waiting == 1)
    shell.backend._configure = lambda instance: setattr(instance, "load_error", "no such tensor")
    shell.instance("v2").die("bus error")
    with pytest.raises(InstanceDied, match="bus error"):
        await asked
    assert shell.requests[-1].fallback is False


async def test_ten_requests_for_a_cold_version_start_one_load(shell: Shell) -> None:
    version = shell.registry.get(MODEL, "v1")
    cached = await asyncio.gather(*(shell.cache.ensure(version) for _ in range(10)))
    assert len({id(one.instance) for one in cached}) == 1
    assert shell.instance("v1").counts.loads == 1


async def test_one_caller_that_gives_up_does_not_end_the_load_for_the_others() -> None:
    gate = Gate()
    shell = Shell(configure=lambda instance: setattr(instance, "load_gate", gate))
    version = shell.registry.get(MODEL, "v1")
    first, second = (asyncio.create_task(shell.cache.ensure(version)) for _ in range(2))
    await eventually(lambda: gate.waiting == 1)
    first.cancel()
    gate.open()
    assert (await second).instance is shell.instance("v1")
    await shell.close()


async def test_the_cache_unloads_the_least_recently_used_and_never_what_is_in_use() -> None:
    shell = Shell(max_cached_models=1)
    await shell.deploy("v1")
    gate = shell.instance("v1").token_gate = Gate()
    begun = asyncio.create_task(shell.ask())
    await eventually(lambda: gate.waiting == 1)
    operation_id = await shell.start("v2")
    await shell.until(operation_id, Phase.DRAINING)
    assert (MODEL, "v1") in shell.cache.loaded, "a request still holds it"
    gate.open()
    assert await begun == "I am v1"
    await shell.until(operation_id, Phase.SUCCEEDED)
    await eventually(lambda: shell.instance("v1").counts.stops == 1)
    assert (MODEL, "v1") not in shell.cache.loaded
    await shell.close()


async def test_leaving_a_stream_early_releases_its_lease_and_leaves_a_row(shell: Shell) -> None:
    await shell.deploy("v1")
    async with aclosing(shell.dispatcher.stream(shell.submission())) as chunks:
        async for _ in chunks:
            assert len(shell.transitions.in_flight()) == 1
            break
    assert shell.transitions.in_flight() == ()
    assert (shell.requests[-1].error_type, shell.requests[-1].output) == ("Cancelled", "I ")
    assert shell.instance("v1").counts.cancelled == 1


async def test_stats_count_how_operations_ended(shell: Shell) -> None:
    await shell.deploy("v1")
    aborted = await shell.split("v2")
    await shell.switcher.abort(aborted)
    await shell.until(aborted, Phase.ABORTED)
    running = await shell.split("v3")
    stats = shell.switcher.get_switcher_stats()
    assert (stats.started, stats.running, stats.succeeded, stats.aborted) == (3, 1, 1, 1)
    assert stats.last_duration_s is not None
    assert running in shell.switcher.operations


async def test_a_version_that_fails_to_come_up_takes_nothing_from_the_one_that_a_switch_brought() -> None:
    gate, is_restarted = Gate(), False

    def configure(instance: ScriptedInstance) -> None:
        if is_restarted and instance.version.version == "v1":
            instance.load_gate, instance.load_error = gate, "no such file"

    shell = Shell(configure=configure)
    await shell.deploy("v1")
    shell.router.withdraw(MODEL)
    await shell.cache.discard((MODEL, "v1"))
    is_restarted = True  # as it were: the active version serves nothing yet
    shell.switcher.bring_up(MODEL)
    await eventually(lambda: gate.waiting == 1)
    await shell.deploy("v2")
    gate.open()
    await eventually(lambda: not shell.cache.why_needed((MODEL, "v1")) and shell.switcher.expected(MODEL) is None)
    assert await shell.ask() == "I am v2"
    assert shell.switcher.failure(MODEL) is None


@pytest.mark.parametrize("way", [{"drain_first": True}, {"in_place": True}])
@pytest.mark.parametrize("stuck", ["load_gate", "token_gate"])
async def test_an_abort_gives_the_one_place_there_is_back_to_the_stable_version(
    way: dict[str, bool], stuck: str
) -> None:
    gate = Gate()

    def configure(instance: ScriptedInstance) -> None:
        instance.device_bytes = 10
        if instance.version.version == "v2":
            setattr(instance, stuck, gate)

    shell = Shell(configure=configure)
    shell.cache.budget = Budget(max_models=5, device_bytes=15)
    await shell.deploy("v1")
    operation_id = await shell.start("v2", "immediate", way)
    await eventually(lambda: gate.waiting == 1)
    asked = asyncio.create_task(shell.ask())
    await shell.switcher.abort(operation_id)
    for _ in range(50):
        await asyncio.sleep(0)
    if stuck == "load_gate":  # which cannot be cut short
        assert shell.switcher.operation(operation_id).phase is Phase.ROLLING_BACK
        gate.open()
    await shell.until(operation_id, Phase.ABORTED)
    assert await asked == "I am v1"
    assert list(shell.cache.loaded) == [(MODEL, "v1")]
    await shell.close()


@pytest.mark.parametrize("way", [{"drain_first": True}, {"in_place": True}])
@pytest.mark.parametrize("stable_is", ["cold", "loading", "serving"])
async def test_an_interrupted_switch_goes_on_although_there_is_place_for_one(
    way: dict[str, bool], stable_is: str
) -> None:
    """After a restart the stable version serves again, or is about to: it must leave again."""
    gate = Gate(is_open=True)

    def configure(instance: ScriptedInstance) -> None:
        instance.device_bytes = 10
        instance.load_gate = gate if instance.version.version == "v1" else None

    shell = Shell(configure=configure)
    shell.cache.budget = Budget(max_models=5, device_bytes=15)
    shell.registry.activate(MODEL, "v1", "op-of-an-earlier-process")
    shell.switcher.adopt(found("immediate", way), "salt", 1)
    if stable_is == "loading":
        gate.close()
        shell.switcher.bring_up(MODEL)
        await eventually(lambda: gate.waiting == 1)
    elif stable_is == "serving":
        assert await shell.ask() == "I am v1"
    await shell.switcher.tell("op-found", ops.Resume())
    asked = asyncio.create_task(shell.ask())
    await settled()
    gate.open()
    assert await asked == "I am v2"
    await shell.until("op-found", Phase.SUCCEEDED)
    assert list(shell.cache.loaded) == [(MODEL, "v2")]
    await shell.close()


@pytest.mark.parametrize("way", [{"drain_first": True}, {"in_place": True}])
async def test_a_candidate_that_never_loads_is_not_waited_for_without_an_end(way: dict[str, bool]) -> None:
    gate = Gate()

    def configure(instance: ScriptedInstance) -> None:
        instance.device_bytes = 10
        instance.load_gate = gate if instance.version.version == "v2" else None

    shell = Shell(configure=configure, load_timeout_s=30.0)
    shell.cache.budget = Budget(max_models=5, device_bytes=15)
    await shell.deploy("v1")
    operation_id = await shell.start("v2", "immediate", way)
    await shell.pass_time(100.0)
    assert shell.switcher.operation(operation_id).phase is Phase.FAILED
    gate.open()
    await shell.close()


async def test_a_version_whose_place_is_to_be_taken_finishes_a_request_that_came_meanwhile(shell: Shell) -> None:
    await shell.deploy("v1")
    stable, looks, tokens = shell.instance("v1"), Gate(), Gate()
    why_not, stable.token_gate = stable.why_not_in_place, tokens

    async def slowly(version: ModelVersion) -> str | None:
        await looks.passage()
        return await why_not(version)

    stable.why_not_in_place = slowly  # type: ignore[method-assign]
    operation_id = await shell.start("v2", "immediate", {"in_place": True})
    await eventually(lambda: looks.waiting == 1)
    submission = shell.submission()
    submission.version = "v1"
    named = asyncio.create_task(shell.dispatcher.complete(submission))
    await eventually(lambda: tokens.waiting == 1)
    looks.open()
    for _ in range(50):
        await asyncio.sleep(0)
    assert stable.counts.stops == 0, "what is leased is not stopped"
    tokens.open()
    assert (await named).text == "I am v1"
    await shell.until(operation_id, Phase.SUCCEEDED)
    assert submission.deaths == 0
