"""What dies comes back, with pauses between the tries; what cannot come back gives way to the last good version."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from abswitch.domain import Prompt
from abswitch.errors import InstanceDied, InvalidInput, NoActiveVersion
from abswitch.rollout.operation import Phase
from abswitch.rollout.strategies import ImmediateStrategy
from abswitch.serving.backoff import BackOff, RestartPolicy
from abswitch.serving.readiness import WARM_PROMPT
from abswitch.serving.scripted import Gate, ScriptedInstance
from tests.serving.harness import MODEL, Shell, eventually

POLICY = RestartPolicy(initial_s=1.0, max_s=4.0, max_restarts=3, window_s=100.0)


def test_pauses_double_up_to_the_longest_and_old_restarts_are_forgotten() -> None:
    backoff = BackOff(RestartPolicy(initial_s=1.0, max_s=4.0, max_restarts=5, window_s=100.0))
    assert [backoff.next_delay_s(0.0) for _ in range(6)] == [0.0, 1.0, 2.0, 4.0, 4.0, None]
    assert backoff.next_delay_s(110.0) == 0.0


def test_restarts_that_failed_slowly_are_not_forgotten_for_it() -> None:
    backoff = BackOff(RestartPolicy(initial_s=1.0, max_s=4.0, max_restarts=2, window_s=100.0))
    assert backoff.next_delay_s(0.0) == 0.0
    backoff.in_vain(90.0)
    assert backoff.next_delay_s(90.0) == 1.0
    backoff.in_vain(90.0)
    assert backoff.next_delay_s(181.0) is None, "it did not run in those 180 s"
    assert backoff.next_delay_s(282.0) == 0.0


@pytest.mark.parametrize("field", ["initial_s", "max_s", "max_restarts", "window_s"])
def test_a_policy_that_makes_no_sense_is_refused(field: str) -> None:
    with pytest.raises(InvalidInput):
        RestartPolicy(**{field: -1})


def breakable() -> Shell:
    return Shell(restarts=POLICY, max_wait_s=1000.0)


def never_load(shell: Shell, version: str) -> None:
    def configure(instance: ScriptedInstance) -> None:
        instance.load_error = "the disk is gone" if instance.version.version == version else None

    shell.backend._configure = configure


async def passing(shell: Shell, seconds: int) -> None:
    """Let virtual seconds pass one by one, with whatever they set off."""
    for _ in range(seconds):
        shell.clock.advance(1.0)
        for _ in range(100):
            await asyncio.sleep(0)


async def test_a_crash_is_answered_by_a_restart_at_once() -> None:
    shell = breakable()
    await shell.deploy("v1")
    shell.instance("v1").die("bus error")
    answers = await asyncio.gather(*(shell.ask() for _ in range(50)))
    assert set(answers) == {"I am v1"}, "not one request is lost"
    assert all(row.fallback and row.switch_path == "restart" for row in shell.requests)
    assert shell.instance("v1").counts.loads == 1, "fifty requests met the same death; one restart answers it"
    await shell.close()


async def test_a_started_answer_ends_in_an_error_and_is_not_repeated() -> None:
    shell = breakable()
    await shell.deploy("v1")
    gate = shell.instance("v1").token_gate = Gate()
    begun = asyncio.create_task(shell.ask())
    await eventually(lambda: gate.waiting == 1)
    gate.let(1)
    await eventually(lambda: gate.waiting == 1)
    shell.instance("v1").die("bus error")
    with pytest.raises(Exception, match=r"died after 1 token\(s\)") as caught:
        await begun
    assert caught.value.text == "I "  # type: ignore[attr-defined]
    assert shell.requests[-1].error_type == "StreamBroken"
    await shell.close()


async def test_a_version_that_cannot_come_back_gives_way_to_the_last_good_one() -> None:
    shell = breakable()
    await shell.deploy("v1")
    await shell.deploy("v2")
    never_load(shell, "v2")
    shell.instance("v2").die("bus error")
    waiting = asyncio.create_task(shell.ask())
    await passing(shell, 20)
    assert await waiting == "I am v1", "the request waited, and was answered by the version that was good before"
    assert shell.registry.active_version(MODEL) == "v1"
    last = list(shell.switcher.operations.values())[-1]
    assert (last.candidate, last.phase) == ("v1", Phase.SUCCEEDED)
    await shell.close()


async def test_with_nothing_to_go_back_to_requests_get_an_error() -> None:
    shell = breakable()
    await shell.deploy("v1")
    never_load(shell, "v1")
    shell.instance("v1").die("bus error")
    waiting = asyncio.create_task(shell.ask())
    await passing(shell, 20)
    with pytest.raises(InstanceDied):
        await waiting
    await shell.close()


async def test_a_request_that_kills_whatever_serves_it_is_given_up() -> None:
    shell = Shell(restarts=RestartPolicy(max_restarts=100, initial_s=0.01, max_s=0.01))
    met: list[Prompt] = []

    def poisoned(prompt: Prompt) -> Sequence[str]:
        if prompt == WARM_PROMPT:
            return ("ok",)
        met.append(prompt)
        raise InstanceDied("poison")

    shell.backend._answers["v1"] = poisoned
    await shell.deploy("v1")
    poison = asyncio.create_task(shell.ask())
    await passing(shell, 10)
    with pytest.raises(InstanceDied, match="poison"):
        await poison
    assert len(met) == 4, "it is tried a few times, not for ever"
    await shell.close()


async def test_a_breach_outside_an_operation_falls_back_once_and_does_not_swing() -> None:
    shell = breakable()
    await shell.deploy("v1")
    await shell.deploy("v2")
    shell.switcher.breached(MODEL, "v2", "error_rate 40 %")
    await eventually(lambda: shell.registry.active_version(MODEL) == "v1")
    await eventually(lambda: shell.switcher.running(MODEL) is None)
    started = len(shell.switcher.operations)
    shell.switcher.breached(MODEL, "v1", "error_rate 40 %")
    await passing(shell, 3)
    assert len(shell.switcher.operations) == started, "v2 was bad before; nothing better is known"
    assert await shell.ask() == "I am v1"
    await shell.deploy("v3")
    await shell.deploy("v1")
    shell.switcher.breached(MODEL, "v1", "error_rate 40 %")
    await eventually(lambda: shell.registry.active_version(MODEL) == "v3")
    await shell.close()


async def test_a_stable_version_that_dies_during_an_operation_is_tried_for_as_long_as_it_takes() -> None:
    shell = breakable()
    await shell.deploy("v1")
    operation_id = await shell.split("v2", 50)
    never_load(shell, "v1")
    shell.instance("v1").die("bus error")
    waiting = [asyncio.create_task(shell.ask()) for _ in range(40)]
    await passing(shell, 30)
    assert shell.switcher.operation(operation_id).phase is Phase.EVALUATING
    never_load(shell, "nothing")
    await passing(shell, 10)
    assert set(await asyncio.gather(*waiting)) == {"I am v1", "I am v2"}
    await shell.close()


async def test_where_nothing_can_be_brought_back_the_stable_version_keeps_all_traffic() -> None:
    shell = breakable()
    await shell.deploy("v1")
    operation_id = await shell.split("v2", 50)
    never_load(shell, "v1")
    for version in ("v1", "v2"):
        shell.instance(version).die("out of memory")
    waiting = [asyncio.create_task(shell.ask(f"user-{i}")) for i in range(40)]
    await passing(shell, 3)
    failed = shell.switcher.operation(operation_id)
    assert failed.phase is Phase.FAILED and "no way back" in failed.reason
    route = shell.router.snapshot(MODEL)
    assert [(arm.version, arm.share) for arm in route.arms] == [("v1", 1.0)], "no share for one that is gone"
    assert route.operation_id is None
    assert [(row.version, row.share) for row in shell.routes if row.epoch == route.epoch] == [("v1", 1.0)]
    never_load(shell, "nothing")
    await passing(shell, 10)
    assert set(await asyncio.gather(*waiting)) == {"I am v1"}
    await shell.close()


async def test_a_bring_up_that_hangs_at_its_first_token_fails_in_time_and_the_next_request_has_a_fresh_engine() -> None:
    made: list[ScriptedInstance] = []

    def configure(instance: ScriptedInstance) -> None:
        instance.token_gate = None if made else Gate()
        made.append(instance)

    shell = Shell(restarts=POLICY, max_wait_s=1000.0, configure=configure)
    shell.registry.activate(MODEL, "v1", "op-of-an-earlier-process")
    waiting = asyncio.create_task(shell.ask())
    await eventually(lambda: bool(made) and made[0].in_flight == 1)
    await shell.pass_time(300, 30.0)
    assert waiting.done(), "it is told, not left to wait for what hangs"
    with pytest.raises(NoActiveVersion, match=r"did not come up: .*within 300 s"):
        await waiting
    assert made[0].counts.stops == 1
    await shell.pass_time(5)
    assert await shell.ask() == "I am v1"
    await shell.close()


async def test_restarts_that_hang_are_counted_and_give_way_to_the_last_good_version() -> None:
    shell = breakable()
    await shell.deploy("v1")
    await shell.deploy("v2")
    gate = Gate()
    shell.backend._configure = lambda instance: setattr(instance, "load_gate", gate)
    shell.instance("v2").die("bus error")
    waiting = asyncio.create_task(shell.ask())
    await shell.pass_time(3 * 300, 10.0)
    assert not waiting.done() and shell.registry.active_version(MODEL) == "v2"
    await shell.pass_time(60, 10.0)
    assert shell.registry.active_version(MODEL) == "v1", "three restarts, of 300 s each, are more than enough"
    assert await waiting == "I am v1"
    gate.open()
    await shell.close()


async def test_a_version_that_never_comes_up_gives_way_to_the_last_good_one() -> None:
    """As after a restart: nothing serves, and what is active cannot be loaded any more."""
    shell = breakable()
    shell.registry.activate(MODEL, "v1", "op-of-an-earlier-process")
    shell.registry.activate(MODEL, "v2", "op-of-an-earlier-process")
    never_load(shell, "v2")
    for _ in range(3):
        with pytest.raises(NoActiveVersion, match="the disk is gone"):
            await shell.ask()
        await shell.pass_time(5)
    assert await shell.ask() == "I am v1"
    assert shell.registry.active_version(MODEL) == "v1"
    await shell.close()


class Planned:
    """A way back that takes time to be planned, as where an engine's memory is estimated from files."""

    def __init__(self, shell: Shell, way: ImmediateStrategy | None = None) -> None:
        self.gate = asyncio.Event()
        self.asked = 0
        self.way = way or ImmediateStrategy()
        shell.switcher._way_back = self._way

    async def _way(self, _model_id: str, _version: str, _stable: str | None) -> ImmediateStrategy:
        self.asked += 1
        await self.gate.wait()
        return self.way


async def test_requests_wait_while_a_way_back_is_planned() -> None:
    shell = breakable()
    shell.registry.activate(MODEL, "v1", "op-of-an-earlier-process")
    shell.registry.activate(MODEL, "v2", "op-of-an-earlier-process")
    never_load(shell, "v2")
    planned = Planned(shell)
    for _ in range(3):
        with pytest.raises(NoActiveVersion, match="the disk is gone"):
            await shell.ask()
        await shell.pass_time(5)
    waiting = asyncio.create_task(shell.ask())
    await passing(shell, 3)
    assert not waiting.done() and "goes back to version 'v1'" in str(shell.queue.requests()[0])
    shell.switcher.breached(MODEL, "v2", "error_rate 40 %")
    assert planned.asked == 1, "one way back is enough"
    planned.gate.set()
    assert await waiting == "I am v1"
    assert shell.switcher.awaited(MODEL) is None
    await shell.close()


async def test_a_way_back_that_cannot_be_planned_is_tried() -> None:
    """The files of a version that is broken may be what cannot be read."""
    shell = breakable()
    await shell.deploy("v1")
    await shell.deploy("v2")

    async def unreadable(_model_id: str, _version: str, _stable: str | None) -> ImmediateStrategy:
        raise OSError("the folder is gone")

    shell.switcher._way_back = unreadable
    shell.switcher.breached(MODEL, "v2", "error_rate 40 %")
    await eventually(lambda: shell.registry.active_version(MODEL) == "v1")
    await eventually(lambda: shell.switcher.running(MODEL) is None)
    assert shell.switcher.awaited(MODEL) is None and await shell.ask() == "I am v1"
    await shell.close()


async def test_a_way_back_is_not_gone_once_another_version_became_active() -> None:
    shell = breakable()
    await shell.deploy("v1")
    await shell.deploy("v2")
    planned = Planned(shell)
    shell.switcher.breached(MODEL, "v2", "error_rate 40 %")
    await eventually(lambda: planned.asked == 1)
    await shell.deploy("v3")
    planned.gate.set()
    await passing(shell, 3)
    assert shell.registry.active_version(MODEL) == "v3" and await shell.ask() == "I am v3"
    await shell.close()


async def test_a_way_back_for_which_all_traffic_stood_in_vain_is_not_gone_again() -> None:
    shell = breakable()
    await shell.deploy("v1")
    await shell.deploy("v2")
    await shell.cache.discard((MODEL, "v1"))
    planned = Planned(shell, ImmediateStrategy(drain_first=True))
    planned.gate.set()
    never_load(shell, "v1")
    assert shell.switcher.breached(MODEL, "v2", "error_rate 40 %")
    await eventually(lambda: shell.switcher.running(MODEL) is not None)
    await eventually(lambda: shell.switcher.running(MODEL) is None)
    assert list(shell.switcher.operations.values())[-1].phase is Phase.FAILED
    assert await shell.ask() == "I am v2", "it had left for nothing"
    assert not shell.switcher.breached(MODEL, "v2", "error_rate 40 %")
    never_load(shell, "nothing")
    await shell.deploy("v1")
    await shell.deploy("v3")
    assert shell.switcher.breached(MODEL, "v3", "error_rate 40 %"), "somebody wanted v1 since then"
    await eventually(lambda: shell.registry.active_version(MODEL) == "v1")
    await shell.close()
