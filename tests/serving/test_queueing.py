"""Requests that nothing can serve wait a bounded time, a bounded number of them, and know why."""

from __future__ import annotations

import asyncio

import pytest

from abswitch.domain import Completion
from abswitch.errors import InstanceDied, NoActiveVersion, QueueFull, QueueTimeout
from abswitch.rollout.operation import Phase
from abswitch.serving.scripted import Gate, ScriptedInstance
from tests.patience import PATIENCE_S
from tests.serving.harness import MODEL, Shell, eventually


def gated(gate: Gate) -> Shell:
    def configure(instance: ScriptedInstance) -> None:
        instance.load_gate = gate

    return Shell(configure=configure, max_wait_s=30.0, max_waiting=10)


async def test_requests_of_a_first_deployment_wait_for_it() -> None:
    gate = Gate()
    shell = gated(gate)
    operation_id = await shell.start("v1")
    waiting = [asyncio.create_task(shell.ask()) for _ in range(10)]
    await eventually(lambda: shell.queue.waiting() == 10)
    gate.open()
    assert set(await asyncio.gather(*waiting)) == {"I am v1"}
    await shell.until(operation_id, Phase.SUCCEEDED)
    await shell.close()


async def test_the_queue_is_bounded_and_says_so() -> None:
    gate = Gate()
    shell = gated(gate)
    await shell.start("v1")
    waiting = [asyncio.create_task(shell.ask()) for _ in range(10)]
    await eventually(lambda: shell.queue.waiting() == 10)
    with pytest.raises(QueueFull, match=r"10 requests wait already \(max_queued_requests = 10\) while operation"):
        async with asyncio.timeout(PATIENCE_S):
            await shell.ask()
    assert shell.requests == [], "who was not admitted leaves no row"
    gate.open()
    await asyncio.gather(*waiting)
    await shell.close()


async def test_a_wait_is_bounded_and_says_what_for() -> None:
    gate = Gate()
    shell = gated(gate)
    await shell.start("v1")
    waiting = asyncio.create_task(shell.ask())
    await eventually(lambda: shell.queue.waiting() == 1)
    shell.clock.advance(29.0)
    await asyncio.sleep(0)
    assert not waiting.done()
    shell.clock.advance(1.1)
    with pytest.raises(QueueTimeout, match=r"waited 30 s \(max_queue_wait_seconds\) while operation op-0 is loading"):
        await waiting
    assert shell.queue.waiting() == 0
    assert not shell.router._waiting[MODEL], "nobody is left to be told"
    gate.open()
    await shell.close()


def naming(shell: Shell, version: str) -> asyncio.Task[Completion]:
    """A request that names its version itself."""
    submission = shell.submission()
    submission.version = version
    return asyncio.create_task(shell.dispatcher.complete(submission))


async def test_a_request_that_names_its_version_waits_no_longer_for_it_than_others() -> None:
    gate = Gate()
    shell = gated(gate)
    named = naming(shell, "v1")
    await eventually(lambda: gate.waiting == 1)
    await shell.pass_time(29)
    assert not named.done()
    await shell.pass_time(1)
    assert named.done()
    with pytest.raises(
        QueueTimeout, match=r"waited 30 s \(max_queue_wait_seconds\) while version 'v1' is being loaded"
    ):
        await named
    assert shell.requests == [], "who was not admitted leaves no row"
    gate.open()
    assert (await naming(shell, "v1")).text == "I am v1"
    assert shell.instance("v1").counts.loads == 1, "the load went on for whoever asks next"
    assert shell.clock.next_timer_s() is None
    await shell.close()


async def test_requests_that_name_a_version_are_counted_and_bounded_while_it_loads() -> None:
    gate = Gate()
    shell = gated(gate)
    waiting = [naming(shell, "v1") for _ in range(10)]
    await eventually(lambda: gate.waiting == 1 and shell.queue.waiting(MODEL) == 10)
    refused = naming(shell, "v1")
    with pytest.raises(
        QueueFull,
        match=r"10 requests wait already \(max_queued_requests = 10\) and version 'v1' is not ready; "
        r"await engine\.load\('v1'\) waits for it",
    ):
        async with asyncio.timeout(PATIENCE_S):
            await refused
    assert shell.requests == [], "who was not admitted leaves no row"
    gate.open()
    assert {answer.text for answer in await asyncio.gather(*waiting)} == {"I am v1"}
    assert shell.instance("v1").counts.loads == 1, "the load went on"
    assert shell.queue.waiting() == 0
    await shell.close()


async def test_whatever_they_wait_for_the_requests_of_a_model_share_one_limit() -> None:
    gate = Gate()
    shell = gated(gate)
    await shell.start("v1")
    routed = [asyncio.create_task(shell.ask()) for _ in range(5)]
    named = [naming(shell, "v2") for _ in range(5)]
    await eventually(lambda: shell.queue.waiting(MODEL) == 10)
    for one_more in (shell.ask(), naming(shell, "v2")):
        with pytest.raises(QueueFull):
            async with asyncio.timeout(PATIENCE_S):
                await one_more
    gate.open()
    await asyncio.gather(*routed, *named)
    await shell.close()


async def test_a_version_that_is_ready_is_asked_at_once_however_many_wait_for_others() -> None:
    gate = Gate(is_open=True)
    shell = gated(gate)
    await shell.readiness.prove(shell.registry.get(MODEL, "v1"))
    gate.close()
    waiting = [naming(shell, "v2") for _ in range(10)]
    await eventually(lambda: shell.queue.waiting(MODEL) == 10)
    shell.instance("v1").token_gate = tokens = Gate()
    named = naming(shell, "v1")
    await asyncio.sleep(0)
    assert [lease.key for lease in shell.transitions.in_flight()] == [(MODEL, "v1")], "admitted in one turn of the loop"
    assert shell.queue.waiting() == 10
    tokens.open()
    assert (await named).text == "I am v1"
    gate.open()
    await asyncio.gather(*waiting)
    await shell.close()


async def test_every_waiting_request_is_shown_with_what_it_waits_for() -> None:
    gate = Gate()
    shell = gated(gate)
    operation_id = await shell.start("v1")
    routed = asyncio.create_task(shell.ask("ann"))
    await eventually(lambda: shell.queue.waiting() == 1)
    await shell.pass_time(2)
    named = naming(shell, "v2")
    await eventually(lambda: shell.queue.waiting() == 2)
    await shell.pass_time(1)
    first, second = shell.queue.requests(MODEL)
    assert (first.unit_id, first.version, first.waited_s) == ("ann", None, 3.0)
    assert first.reason == f"operation {operation_id} is loading"
    assert (second.version, second.waited_s, second.reason) == ("v2", 1.0, "version 'v2' is being loaded")
    assert second.since_mono_s == first.since_mono_s + 2.0
    assert str(second) == f"{second.request_id} of bot has waited 1.0 s: version 'v2' is being loaded"
    assert await asyncio.to_thread(shell.queue.requests) == (first, second)
    assert shell.queue.requests("another") == ()
    gate.open()
    answer = await named
    assert answer.request_id == second.request_id
    await routed
    assert shell.queue.requests() == ()
    await shell.close()


async def test_a_request_whose_version_died_is_shown_while_it_waits_for_its_return() -> None:
    gate = Gate(is_open=True)
    shell = gated(gate)
    await shell.deploy("v1")
    shell.instance("v1").token_gate = tokens = Gate()
    asked = asyncio.create_task(shell.ask())
    await eventually(lambda: tokens.waiting == 1)
    gate.close()
    shell.instance("v1").die("bus error")
    await eventually(lambda: gate.waiting == 1)
    assert shell.transitions.in_flight() == ()
    (one,) = shell.queue.requests()
    assert "version 'v1' is being started again after it was lost" in one.reason
    gate.open()
    await asked
    await shell.close()


async def test_a_queue_that_is_full_ends_a_request_whose_named_version_died() -> None:
    gate = Gate(is_open=True)
    shell = gated(gate)
    await shell.readiness.prove(shell.registry.get(MODEL, "v1"))
    shell.instance("v1").token_gate = tokens = Gate()
    named = naming(shell, "v1")
    await eventually(lambda: tokens.waiting == 1)
    gate.close()
    waiting = [naming(shell, "v2") for _ in range(10)]
    await eventually(lambda: shell.queue.waiting(MODEL) == 10)
    shell.instance("v1").die("bus error")
    with pytest.raises(InstanceDied, match="bus error"):
        async with asyncio.timeout(PATIENCE_S):
            await named
    gate.open()
    await asyncio.gather(*waiting)
    await shell.close()


async def test_a_request_whose_named_version_died_waits_no_longer_for_its_return() -> None:
    gate = Gate(is_open=True)
    shell = gated(gate)
    tokens = Gate()
    await shell.readiness.prove(shell.registry.get(MODEL, "v1"))
    shell.instance("v1").token_gate = tokens
    named = naming(shell, "v1")
    await eventually(lambda: tokens.waiting == 1)
    gate.close()
    shell.instance("v1").die("bus error")
    await eventually(lambda: gate.waiting == 1)
    await shell.pass_time(30)
    assert named.done()
    with pytest.raises(InstanceDied, match="bus error"):
        await named
    assert [row.error_type for row in shell.requests] == ["InstanceDied"]
    gate.open()
    await shell.close()


async def test_a_deployment_that_fails_tells_those_who_waited() -> None:
    gate = Gate()
    shell = gated(gate)
    operation_id = await shell.start("v1")
    waiting = asyncio.create_task(shell.ask())
    await eventually(lambda: shell.queue.waiting() == 1)
    await shell.switcher.abort(operation_id)
    with pytest.raises(NoActiveVersion):
        await waiting
    gate.open()
    await shell.close()


async def test_a_caller_who_leaves_the_queue_frees_its_place() -> None:
    gate = Gate()
    shell = gated(gate)
    await shell.start("v1")
    waiting = asyncio.create_task(shell.ask())
    await eventually(lambda: shell.queue.waiting() == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert shell.queue.waiting() == 0
    assert not shell.router._waiting[MODEL], "nobody is left to be told"
    gate.open()
    await shell.close()


async def test_an_active_version_that_is_not_loaded_is_loaded_by_the_first_request() -> None:
    """As after a restart: the registry knows what is active, and nothing runs yet."""
    shell = Shell()
    shell.registry.activate(MODEL, "v1", "op-of-an-earlier-process")
    answers = await asyncio.gather(*(shell.ask() for _ in range(10)))
    assert set(answers) == {"I am v1"}
    assert shell.instance("v1").counts.loads == 1
    assert {row.tier for row in shell.requests} == {"cold"}
    assert await shell.ask() == "I am v1" and shell.requests[-1].tier == "resident"
    await shell.close()


async def test_an_active_version_that_cannot_be_loaded_is_an_error_not_a_hang() -> None:
    def configure(instance: ScriptedInstance) -> None:
        instance.load_error = "no such tensor"

    shell = Shell(configure=configure)
    shell.registry.activate(MODEL, "v1", "op-of-an-earlier-process")
    with pytest.raises(NoActiveVersion, match="did not come up"):
        await shell.ask()
    await shell.close()
