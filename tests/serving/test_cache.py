"""The cache keeps its budget, loads once, wakes what sleeps, swaps in place, and never takes away what is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from abswitch.domain import GenerationRequest, ModelConfig, ModelVersion, Sampling, SwitchPath, VersionKey
from abswitch.errors import InstanceError, LoadFailed, OutOfBudget
from abswitch.serving.cache import ModelCache
from abswitch.serving.golden import GoldenPrompts
from abswitch.serving.readiness import Readiness
from abswitch.serving.scripted import Gate, ScriptedBackend, ScriptedInstance
from abswitch.serving.timings import Timings
from tests.patience import PATIENCE_S


def version(name: str, model: str = "script") -> ModelVersion:
    return ModelVersion(version=name, config=ModelConfig(model_id="m", model=model, backend="scripted"))


def raising(error: Exception) -> Callable[..., Any]:
    async def fail(*_: object) -> None:
        raise error

    return fail


@contextmanager
def failing(instance: ScriptedInstance, method: str, error: Exception) -> Iterator[None]:
    """For a while one of an instance's methods raises."""
    setattr(instance, method, raising(error))
    try:
        yield
    finally:
        delattr(instance, method)


class Bench:
    """A cache of scripted instances of 10 bytes on the device and 1 of the host each."""

    def __init__(
        self,
        *,
        max_cached_models: int = 9,
        device_bytes: int | None = None,
        host_bytes: int | None = None,
        change_timeout_s: float = 300.0,
    ) -> None:
        self.sizes: dict[str, tuple[int, int]] = {}
        self.used: set[VersionKey] = set()
        self.gate: Gate | None = None
        self.gates: list[Gate] = []
        self.broken: dict[str, Exception] = {}
        self.unreadable: set[str] = set()
        self.joining: set[str] = set()
        self.backend = ScriptedBackend(configure=self._configure)
        self.timings = Timings()
        self.cache = ModelCache(
            {"scripted": self.backend},
            in_use=self.used.__contains__,
            timings=self.timings,
            digest=self._digest,
            max_cached_models=max_cached_models,
            device_bytes=device_bytes,
            host_bytes=host_bytes,
            change_timeout_s=change_timeout_s,
        )

    def _configure(self, instance: ScriptedInstance) -> None:
        instance.load_gate = self.gate
        instance.shared_engine = "one" if instance.version.version in self.joining else None
        instance.device_bytes, instance.memory_bytes = self.sizes.get(instance.version.version, (10, 1))

        for method, error in self.broken.items():
            setattr(instance, method, raising(error))

    async def _digest(self, one: ModelVersion) -> str:
        if one.version in self.unreadable:
            raise ValueError("not a tensor")
        return f"digest of {one.version}"

    def new_gate(self) -> Gate:
        """One that is open at the latest when the test ends."""
        self.gates.append(Gate())
        return self.gates[-1]

    async def load(self, *names: str) -> None:
        for name in names:
            await self.cache.ensure(version(name))

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never came")

    def tiers(self, *names: str) -> list[str]:
        return [self.cache.tier(("m", name)).value for name in names]


@pytest.fixture
async def bench() -> AsyncIterator[type[Bench]]:
    made: list[Bench] = []

    class Noted(Bench):
        def __init__(self, **limits: Any) -> None:
            super().__init__(**limits)
            made.append(self)

    yield Noted
    for one in made:
        for gate in one.gates:
            gate.open()  # after a failure it would be waited for
        await one.cache.close()
        assert all(instance.counts.loads <= instance.counts.stops for instance in one.backend.made), "one is left"


async def test_what_does_not_fit_on_the_device_puts_the_oldest_to_sleep(bench: type[Bench]) -> None:
    b = bench(device_bytes=20)
    await b.load("a", "b", "a", "c")
    assert b.tiers("a", "b", "c") == ["resident", "sleeping", "resident"], "a was used after b"
    cached = await b.cache.ensure(version("b"))
    assert cached.path is SwitchPath.WAKE and b.tiers("a", "b") == ["sleeping", "resident"]
    assert sum(instance.counts.loads for instance in b.backend.made) == 3, "a wake is no load"


async def test_without_host_memory_weights_are_discarded_and_then_versions_unloaded(bench: type[Bench]) -> None:
    b = bench(device_bytes=20, host_bytes=5)
    await b.load("a", "b", "c")
    assert b.tiers("a", "b", "c") == ["discarded", "resident", "resident"]
    b = bench(device_bytes=20, host_bytes=2)
    await b.load("a", "b", "c")
    assert b.tiers("a", "b", "c") == ["cold", "resident", "resident"]


async def test_what_a_sleeper_keeps_of_the_device_is_counted(bench: type[Bench]) -> None:
    b = bench(device_bytes=21)
    await b.load("a", "b")
    for name in "ab":
        b.backend["m", name].kept_bytes = 1
    await b.load("c")
    assert b.tiers("a", "b", "c") == ["sleeping", "resident", "resident"]
    assert sum(one.footprint.device_bytes for one in b.cache.held) == 21
    assert (await b.cache.needs(version("a"))).device_bytes == 9, "it holds the rest already"
    await b.load("d")
    assert b.tiers("a", "b", "c", "d") == ["cold", "sleeping", "resident", "resident"], "two sleepers are too much"
    assert sum(one.footprint.device_bytes for one in b.cache.held) == 21


async def test_out_of_budget_is_one_clear_error_and_nothing_was_touched(bench: type[Bench]) -> None:
    b = bench(device_bytes=25)
    await b.load("a", "b")
    b.used |= {("m", "a"), ("m", "b")}
    with pytest.raises(OutOfBudget, match=r"m:c did not load: it needs .*m:a \(in use\), m:b \(in use\)") as refused:
        await b.load("c")
    assert "budget" in str(refused.value) and b.tiers("a", "b", "c") == ["resident", "resident", "cold"]
    assert b.backend["m", "c"].counts.loads == 0


async def test_loads_at_once_do_not_both_take_the_last_place(bench: type[Bench]) -> None:
    b = bench(device_bytes=20)
    b.used |= {("m", name) for name in "abc"}
    gate = b.gate = b.new_gate()
    loads = [asyncio.create_task(b.cache.ensure(version(name))) for name in "abc"]
    await b.until(lambda: any(load.done() for load in loads))
    gate.open()
    found = await asyncio.gather(*loads, return_exceptions=True)
    assert sum(isinstance(one, OutOfBudget) for one in found) == 1
    assert sum(instance.counts.loads for instance in b.backend.made) == 2, "nothing was loaded for the third"


async def test_a_load_waits_until_what_leaves_has_given_its_memory_back(bench: type[Bench]) -> None:
    b = bench(device_bytes=20)
    await b.load("a", "b")
    gate, stop = b.new_gate(), b.backend["m", "a"].stop

    async def slow_stop() -> None:
        await gate.passage()
        await stop()

    vars(b.backend["m", "a"])["stop"] = slow_stop
    b.cache.evict(("m", "a"), killed_for="it hangs")
    loading = asyncio.create_task(b.cache.ensure(version("c")))
    await b.until(lambda: gate.waiting == 1)
    for _ in range(20):
        await asyncio.sleep(0)
    assert b.backend["m", "c"].counts.loads == 0, "there would be 30 bytes taken of 20"
    gate.open()
    await loading
    assert b.tiers("a", "b", "c") == ["cold", "resident", "resident"], "and b need not leave for it"


async def test_what_wakes_takes_what_it_had_until_it_is_awake(bench: type[Bench]) -> None:
    b = bench(device_bytes=10, host_bytes=20)
    await b.load("a", "b")
    gate, wake = b.new_gate(), b.backend["m", "a"].wake

    async def slow_wake() -> None:
        await gate.passage()
        await wake()

    vars(b.backend["m", "a"])["wake"] = slow_wake
    waking = asyncio.create_task(b.cache.ensure(version("a")))
    await b.until(lambda: gate.waiting == 1)
    taken = {one.key[1]: one.footprint for one in b.cache.held}
    assert (taken["a"].device_bytes, taken["a"].host_bytes) == (10, 11), "its weights are on both sides now"
    gate.open()
    await waking


async def test_a_version_asked_for_while_it_goes_to_sleep_comes_back(bench: type[Bench]) -> None:
    b = bench(device_bytes=10)
    await b.load("a")
    await asyncio.gather(b.cache.ensure(version("b")), b.cache.ensure(version("a")), b.cache.ensure(version("b")))
    assert sorted(b.tiers("a", "b")) == ["resident", "sleeping"]


async def test_pinned_leased_and_loading_versions_stay(bench: type[Bench]) -> None:
    b = bench(max_cached_models=1)
    await b.load("pinned")
    b.cache.pin(("m", "pinned"))
    await b.load("leased")
    b.used.add(("m", "leased"))
    gate = b.gate = b.new_gate()
    loading = asyncio.create_task(b.cache.ensure(version("slow")))
    await b.until(lambda: len(b.backend.made) == 3)
    b.gate = None
    await b.load("other")
    assert b.tiers("pinned", "leased") == ["resident", "resident"]
    gate.open()
    await loading
    assert b.tiers("pinned", "leased") == ["resident", "resident"]
    b.cache.unpin(("m", "pinned"))
    await b.cache.trim()
    assert b.tiers("pinned", "leased", "slow", "other") == ["cold", "resident", "cold", "cold"]


async def test_one_that_does_not_wake_is_loaded_from_its_files(bench: type[Bench]) -> None:
    b = bench(device_bytes=10)
    await b.load("a")
    sleeper = b.backend["m", "a"]
    await b.load("b")
    sleeper.wake_error = "the driver lost it"
    cached = await b.cache.ensure(version("a"))
    assert cached.path is SwitchPath.LOAD and cached.instance is not sleeper and sleeper.counts.stops == 1


@pytest.mark.parametrize("method", ["sleep", "wake"])
async def test_one_that_hangs_on_its_way_to_sleep_or_back_holds_up_nobody(bench: type[Bench], method: str) -> None:
    one = bench(device_bytes=10, change_timeout_s=0.02)
    await one.cache.ensure(version("v1"))

    async def hangs(*_: object) -> None:
        await asyncio.Event().wait()

    setattr(first := one.backend["m", "v1"], method, hangs)
    async with asyncio.timeout(PATIENCE_S):
        await one.cache.ensure(version("v2"))
        await one.cache.ensure(version("v1"))
        await one.cache.close()
    assert one.backend["m", "v1"] is not first, "it is loaded anew"
    error = (await first.health()).error
    assert error is not None and "it hangs: it took longer than 0.02 s" in error, "killed, as it cannot help"


async def test_a_swap_that_hangs_holds_up_nobody(bench: type[Bench]) -> None:
    b = bench(change_timeout_s=0.02)
    await b.load("a")

    async def hangs(*_: object) -> None:
        await asyncio.Event().wait()

    old = b.backend["m", "a"]
    old.become = hangs  # type: ignore[method-assign, assignment]
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(LoadFailed, match=r"m:b did not load: it hangs: it took longer than 0\.02 s"):
            await b.cache.swap(("m", "a"), version("b"))
        await b.load("b")
        await b.cache.close()
    assert "it hangs" in str((await old.health()).error), "killed, as it cannot help"


async def test_weights_take_the_place_of_others(bench: type[Bench]) -> None:
    b = bench()
    await b.load("a")
    b.used.add(("m", "a"))
    with pytest.raises(InstanceError, match="in use"):
        await b.cache.swap(("m", "a"), version("b"))
    b.used.clear()
    with pytest.raises(InstanceError, match="another script"):
        await b.cache.swap(("m", "a"), version("b", model="else"))
    assert b.tiers("a", "b") == ["resident", "cold"]
    swapped = await b.cache.swap(("m", "a"), version("b"))
    assert swapped.path is SwitchPath.IN_PLACE and swapped.weights_digest == "digest of b"
    assert b.tiers("a", "b") == ["cold", "resident"]
    assert b.timings.expect("m", "b", SwitchPath.IN_PLACE).n == 1


async def test_a_swap_that_breaks_leaves_nothing_behind(bench: type[Bench]) -> None:
    b = bench()
    await b.load("a")
    b.backend["m", "a"].swap_error = "shapes differ"
    with pytest.raises(LoadFailed, match="shapes differ"):
        await b.cache.swap(("m", "a"), version("b"))
    assert b.tiers("a", "b") == ["cold", "cold"]


async def test_what_started_and_then_failed_is_stopped(bench: type[Bench]) -> None:
    b = bench()
    b.broken["memory"] = OSError("no such process")
    with pytest.raises(LoadFailed, match=r"m:a did not load: OSError: no such process"):
        await b.load("a")
    b.broken.clear()
    b.unreadable.add("b")
    with pytest.raises(LoadFailed, match=r"m:b did not load: ValueError: not a tensor"):
        await b.load("b")
    assert [(one.counts.loads, one.counts.stops) for one in b.backend.made] == [(1, 1), (1, 1)]
    assert b.tiers("a", "b") == ["cold", "cold"] and not b.cache.held
    await b.load("a")
    assert b.tiers("a") == ["resident"], "the next attempt begins anew"


async def test_what_woke_and_then_failed_is_stopped(bench: type[Bench]) -> None:
    b = bench(device_bytes=10)
    await b.load("a", "b")
    sleeper = b.backend["m", "a"]
    with failing(sleeper, "memory", OSError("no such process")), pytest.raises(LoadFailed):
        await b.load("a")
    assert (b.tiers("a"), sleeper.counts.stops) == (["cold"], 1)


async def test_one_that_does_not_stop_fails_no_other(bench: type[Bench], caplog: pytest.LogCaptureFixture) -> None:
    b = bench(device_bytes=10, host_bytes=1)
    await b.load("a")
    with failing(b.backend["m", "a"], "stop", RuntimeError("it is stuck")):
        await b.load("b")
    assert b.tiers("a", "b") == ["cold", "resident"]
    assert "m:a did not stop: RuntimeError: it is stuck" in caplog.text
    await b.backend["m", "a"].stop()


async def test_at_the_end_all_are_stopped_and_those_that_did_not_are_named(bench: type[Bench]) -> None:
    b = bench()
    await b.load("a", "b", "c")
    b.cache.evict(("m", "c"))
    stuck = failing(b.backend["m", "a"], "stop", RuntimeError("it is stuck"))
    with stuck, pytest.raises(InstanceError, match=r"^m:a did not stop: RuntimeError: it is stuck$"):
        await b.cache.close()
    assert [b.backend["m", name].counts.stops for name in "abc"] == [0, 1, 1]
    await b.backend["m", "a"].stop()


async def test_what_is_asked_for_during_a_swap_waits_for_it(bench: type[Bench]) -> None:
    b = bench(device_bytes=10)
    await b.load("a")
    gate = b.gate = b.new_gate()
    swap = asyncio.create_task(b.cache.swap(("m", "a"), version("b")))
    await b.until(lambda: gate.waiting == 1)
    asked = asyncio.create_task(b.cache.ensure(version("b")))
    with pytest.raises(OutOfBudget, match=r"m:b \(in use\)"):
        await b.load("c")
    assert b.cache.why_needed(("m", "b")) == "it is being loaded"
    gate.open()
    assert await asked is await swap
    assert sum(one.counts.loads for one in b.backend.made if one.version.version == "b") == 1


async def test_a_swap_that_the_engine_refuses_leaves_all_as_it_was(bench: type[Bench]) -> None:
    b = bench()
    await b.load("a")
    a = b.backend["m", "a"]
    gate = a.token_gate = b.new_gate()
    request = GenerationRequest(request_id="probe", prompt="1", sampling=Sampling())

    async def probe() -> int:  # without a lease
        return len([chunk async for chunk in a.generate(request)])

    probing = asyncio.create_task(probe())
    await b.until(lambda: gate.waiting == 1)
    with pytest.raises(InstanceError, match="in flight"):
        await b.cache.swap(("m", "a"), version("b"))
    gate.open()
    assert await probing == 1
    assert b.tiers("a", "b") == ["resident", "cold"] and (await b.cache.ensure(version("a"))).instance is a


@pytest.mark.parametrize("dies", [False, True])
async def test_what_waited_for_a_swap_that_is_refused_is_loaded(bench: type[Bench], *, dies: bool) -> None:
    b = bench()
    await b.load("a")
    a, gate = b.backend["m", "a"], b.new_gate()

    async def become(_: ModelVersion) -> ScriptedInstance:
        await gate.passage()
        if dies:
            a.die()
        raise InstanceError("not now")

    vars(a)["become"] = become
    swap = asyncio.create_task(b.cache.swap(("m", "a"), version("b")))
    await b.until(lambda: gate.waiting == 1)
    asked = asyncio.create_task(b.cache.ensure(version("b")))
    await asyncio.sleep(0)
    gate.open()
    with pytest.raises(InstanceError, match="not now"):
        await swap
    assert (await asked).path is SwitchPath.LOAD
    assert b.tiers("a", "b") == ["cold" if dies else "resident", "resident"] and a.counts.stops == dies


async def test_a_version_that_is_loaded_anew_during_its_swap_is_held_once(bench: type[Bench]) -> None:
    b = bench()
    await b.load("a")
    a = b.backend["m", "a"]

    async def become(_: ModelVersion) -> ScriptedInstance:
        await b.load("a")
        raise InstanceError("not now")

    vars(a)["become"] = become
    with pytest.raises(InstanceError, match="not now"):
        await b.cache.swap(("m", "a"), version("b"))
    assert a.counts.stops == 1 and b.cache.loaded["m", "a"].instance is not a


async def test_a_version_that_comes_into_use_while_a_swap_is_looked_into_stays(bench: type[Bench]) -> None:
    b = bench()
    await b.load("a")

    async def why_not(_: ModelVersion) -> None:
        b.used.add(("m", "a"))

    vars(b.backend["m", "a"])["why_not_in_place"] = why_not
    with pytest.raises(InstanceError, match="in use"):
        await b.cache.swap(("m", "a"), version("b"))
    assert b.tiers("a", "b") == ["resident", "cold"]


async def test_no_swap_to_a_version_that_is_held(bench: type[Bench]) -> None:
    b = bench()
    await b.load("a", "b")
    with pytest.raises(InstanceError, match="m:b is held, or being loaded, beside m:a"):
        await b.cache.swap(("m", "a"), version("b"))
    assert b.tiers("a", "b") == ["resident", "resident"]


async def test_what_fails_in_or_after_a_swap_is_stopped(bench: type[Bench]) -> None:
    b = bench()
    await b.load("a")
    lost = failing(b.backend["m", "a"], "become", RuntimeError("the call was lost"))
    with lost, pytest.raises(LoadFailed, match="m:b did not load: RuntimeError: the call was lost"):
        await b.cache.swap(("m", "a"), version("b"))
    await b.load("a")
    b.broken["memory"] = OSError("no such process")
    with pytest.raises(LoadFailed, match="m:b did not load: OSError: no such process"):
        await b.cache.swap(("m", "a"), version("b"))
    assert not b.cache.held and [one.counts.stops for one in b.backend.made] == [1, 1, 1]


async def test_one_whose_way_to_sleep_is_cut_short_is_stopped(bench: type[Bench]) -> None:
    b = bench(device_bytes=20)
    await b.load("a", "b")
    a, gate = b.backend["m", "a"], b.new_gate()

    async def slow_sleep(_: int) -> None:
        await gate.passage()

    vars(a)["sleep"] = slow_sleep
    b.cache.budget = replace(b.cache.budget, device_bytes=10)
    trim = asyncio.create_task(b.cache.trim())
    await b.until(lambda: gate.waiting == 1)
    trim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trim
    await b.cache.close()
    assert a.counts.stops == 1


async def test_a_wake_that_returns_garbage_is_loaded_from_its_files(bench: type[Bench]) -> None:
    b = bench(device_bytes=10)
    readiness = Readiness(b.cache, GoldenPrompts())
    await readiness.prove(version("a"))
    sleeper = b.backend["m", "a"]
    await readiness.prove(version("b"))
    sleeper._answer = lambda _: ("garbage",) * 3
    cached = await readiness.prove(version("a"))
    assert cached.path is SwitchPath.LOAD and cached.instance is not sleeper
    assert readiness.ready(("m", "a")) is cached


async def test_versions_on_one_engine_count_once(bench: type[Bench]) -> None:
    b = bench(device_bytes=15)
    await b.load("base")
    b.backend["m", "base"].shared_engine = "one"
    b.sizes["adapter"] = (1, 0)
    await b.load("adapter")
    b.backend["m", "adapter"].shared_engine = "one"
    b.backend["m", "adapter"].device_bytes = 10
    assert b.tiers("base", "adapter") == ["resident", "resident"]
    await b.cache.trim()
    assert b.tiers("base", "adapter") == ["resident", "resident"]


async def test_what_it_took_is_what_it_needs_next_time(bench: type[Bench]) -> None:
    b = bench(device_bytes=10)
    await b.load("a", "b")
    need = await b.cache.needs(version("a"))
    assert (need.device_bytes, b.tiers("a")) == (10, ["sleeping"])
    assert (await b.cache.needs(version("b"))).device_bytes == 0


def test_expectations_are_medians_and_say_what_they_rest_on() -> None:
    kept: list[object] = []
    timings = Timings(keep=kept.append)
    assert str(timings.expect("m", "a", "load")) == "not measured yet"
    for seconds in (3.0, 1.0, 2.0):
        timings.took("m", "a", "load", seconds)
    assert timings.expect("m", "a", "load").seconds == 2.0 and len(kept) == 3
    assert str(timings.expect("m", "b", "load")) == "2 s (median of 3 of other versions)"
    assert timings.expect("m", "b", "load").of_others


async def test_joining_an_engine_that_runs_is_no_load_with_an_adapter_or_without(bench: type[Bench]) -> None:
    b = bench()
    b.joining |= {"joins", "adapter"}
    base, joins = await b.cache.ensure(version("base")), await b.cache.ensure(version("joins"))
    config = replace(version("adapter").config, adapter="a folder")
    adapted = await b.cache.ensure(replace(version("adapter"), config=config))
    assert [cached.path for cached in (base, joins, adapted)] == ["load", "join", "adapter"]
    for path, name in (("load", "base"), ("join", "joins"), ("adapter", "adapter")):
        took = {one: b.timings.expect("m", one, path) for one in ("base", "joins", "adapter")}
        assert [one for one, expected in took.items() if not expected.of_others] == [name], "each has its own history"
