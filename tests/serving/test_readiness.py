"""A version serves only when it has shown that it works, after every load; and that its answers are its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from abswitch.domain import ModelVersion, Residency, SwitchPath
from abswitch.errors import LoadFailed
from abswitch.rollout.operation import Phase
from abswitch.serving.cache import CachedVersion
from abswitch.serving.golden import PROMPTS, Answers, GoldenPrompts, ReferenceKey, agreement
from abswitch.serving.policy import Step
from abswitch.serving.readiness import Readiness
from abswitch.serving.scripted import Gate, ScriptedInstance
from tests.serving.harness import MODEL, Shell, eventually


async def test_a_version_is_ready_only_after_it_generated(shell: Shell) -> None:
    version = shell.registry.get(MODEL, "v1")
    await shell.cache.ensure(version)
    assert shell.readiness.ready(version.key) is None, "loaded is not ready"
    cached = await shell.readiness.prove(version)
    assert shell.readiness.ready(version.key) is cached
    assert len(shell.instance("v1").requests) == 1


async def test_many_who_ask_share_one_showing(shell: Shell) -> None:
    version = shell.registry.get(MODEL, "v1")
    cached = await asyncio.gather(*(shell.readiness.prove(version) for _ in range(10)))
    assert len({id(one) for one in cached}) == 1
    assert shell.instance("v1").counts.loads == 1 and len(shell.instance("v1").requests) == 1


async def test_what_is_being_shown_is_not_unloaded_for_another() -> None:
    gate = Gate()
    shell = Shell(max_cached_models=1, configure=lambda instance: setattr(instance, "token_gate", gate))
    one, other = (shell.registry.get(MODEL, version) for version in ("v1", "v2"))
    asked = asyncio.create_task(shell.readiness.prove(one))
    await eventually(lambda: gate.waiting == 1)
    await shell.cache.ensure(other)
    assert shell.cache.loaded.keys() == {one.key, other.key}, "the limit gives way to what is in use"
    gate.open()
    assert (await asked).instance is shell.instance("v1")
    assert shell.instance("v1").counts.stops == 0
    await shell.close()


async def test_a_reload_is_shown_anew(shell: Shell) -> None:
    version = shell.registry.get(MODEL, "v1")
    await shell.readiness.prove(version)
    await shell.cache.discard(version.key)
    assert shell.readiness.ready(version.key) is None
    await shell.readiness.prove(version)
    assert len(shell.instance("v1").requests) == 1, "a new instance, which had to show it too"


async def test_what_did_not_show_it_is_unloaded(shell: Shell) -> None:
    shell.backend._answers["v1"] = lambda _: ()
    with pytest.raises(LoadFailed, match="generated no token"):
        await shell.readiness.prove(shell.registry.get(MODEL, "v1"))
    assert (MODEL, "v1") not in shell.cache.loaded


def hung_at_first(shell: Shell, version: str) -> list[ScriptedInstance]:
    """The version's first engine hangs at its first token, a later one does not; returns the engines as they come."""
    made: list[ScriptedInstance] = []

    def configure(instance: ScriptedInstance) -> None:
        if instance.version.version == version:
            instance.token_gate = None if made else Gate()
            made.append(instance)

    shell.backend._configure = configure
    return made


async def test_what_gives_no_first_token_in_time_is_killed_and_the_next_attempt_has_a_fresh_engine(
    shell: Shell,
) -> None:
    made = hung_at_first(shell, "v1")
    version = shell.registry.get(MODEL, "v1")
    asked = [asyncio.create_task(shell.readiness.prove(version)) for _ in range(3)]
    await eventually(lambda: bool(made) and made[0].in_flight == 1)
    await shell.pass_time(299, 13.0)
    assert not any(one.done() for one in asked)
    await shell.pass_time(1)
    assert all(one.done() for one in asked)
    for failure in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(failure, LoadFailed) and "no first token within 300 s" in str(failure)
    assert version.key not in shell.cache.loaded
    assert (made[0].counts.stops, made[0].in_flight) == (1, 0)
    assert (await shell.readiness.prove(version)).instance is made[1]


async def test_a_switch_to_what_hung_before_succeeds_with_a_fresh_engine(shell: Shell) -> None:
    made = hung_at_first(shell, "v2")
    await shell.deploy("v1")
    first = await shell.start("v2")
    await eventually(lambda: bool(made) and made[0].in_flight == 1)
    await shell.pass_time(300, 30.0)
    assert (await shell.until(first, Phase.FAILED)).phase is Phase.FAILED
    assert (await shell.deploy("v2")).phase is Phase.SUCCEEDED
    assert len(made) == 2


async def test_what_hangs_after_its_wake_is_loaded_from_its_files(shell: Shell) -> None:
    version = shell.registry.get(MODEL, "v1")
    woken = await shell.readiness.prove(version)
    await shell.cache._bring_down(Step(version.key, Residency.SLEEPING))
    gate = shell.instance("v1").token_gate = Gate()
    asked = asyncio.create_task(shell.readiness.prove(version))
    await eventually(lambda: gate.waiting == 1)
    await shell.pass_time(300, 30.0)
    assert asked.done()
    cached = await asked
    assert cached.instance is not woken.instance and cached.path is SwitchPath.LOAD


async def test_a_load_is_waited_for_only_so_long_and_goes_on() -> None:
    gate = Gate()
    shell = Shell(configure=lambda instance: setattr(instance, "load_gate", gate))
    version = shell.registry.get(MODEL, "v1")
    asked = asyncio.create_task(shell.readiness.prove_in_time(version))
    await eventually(lambda: gate.waiting == 1)
    await shell.pass_time(300, 30.0)
    assert asked.done()
    with pytest.raises(LoadFailed, match=r"bot:v1 was not ready within 300 s \(switch_timeout_seconds\)"):
        await asked
    gate.open()
    assert (await shell.readiness.prove_in_time(version)).instance is shell.instance("v1")
    assert shell.instance("v1").counts.loads == 1
    await shell.close()


def guarded(shell: Shell, known: dict[ReferenceKey, Answers] | None = None) -> tuple[Readiness, dict[str, Answers]]:
    kept: dict[str, Answers] = {}
    golden = GoldenPrompts(known or {}, keep=lambda key, answers: kept.update({key[1]: answers}))
    return Readiness(shell.cache, golden), kept


async def check(golden: GoldenPrompts, version: ModelVersion, cached: CachedVersion) -> None:
    golden.compare(version, cached, await golden.ask(version.key, cached.instance))


async def test_a_version_that_comes_back_as_itself_is_ready(shell: Shell) -> None:
    readiness, kept = guarded(shell)
    version = shell.registry.get(MODEL, "v1")
    await readiness.prove(version)
    assert kept["v1"] == (("I ", "am "),) * len(PROMPTS), "its first answers are its reference"
    await shell.cache.discard(version.key)
    await readiness.prove(version)


@pytest.mark.parametrize("garbage", [("!", "!", "!"), ("I",), ()])
async def test_a_version_that_comes_back_as_garbage_never_serves(shell: Shell, garbage: tuple[str, ...]) -> None:
    readiness, _ = guarded(shell)
    version = shell.registry.get(MODEL, "v1")
    await readiness.prove(version)
    await shell.cache.discard(version.key)
    shell.backend._answers["v1"] = lambda _: garbage
    with pytest.raises(LoadFailed, match=r"other answers than its own|generated no token"):
        await readiness.prove(version)
    assert readiness.ready(version.key) is None and version.key not in shell.cache.loaded


async def test_a_reference_outlives_the_process_and_belongs_to_its_weights(shell: Shell) -> None:
    version = shell.registry.get(MODEL, "v1")
    known: dict[ReferenceKey, Answers] = {(MODEL, "v1", ""): (("other ", "words"),) * len(PROMPTS)}
    readiness, _ = guarded(shell, known)
    with pytest.raises(LoadFailed, match=r"came back \(load\) with other answers than its own: 0 %|0%"):
        await readiness.prove(version)
    cached = replace(await shell.cache.ensure(version), path=SwitchPath.WAKE, weights_digest="0a")
    await check(GoldenPrompts(known), version, cached)  # nobody knew its weights then


@pytest.mark.parametrize("path", [SwitchPath.LOAD, SwitchPath.IN_PLACE])
async def test_other_weights_do_not_go_by_the_name_of_a_version(shell: Shell, path: SwitchPath) -> None:
    version, other = shell.registry.get(MODEL, "v1"), shell.registry.get(MODEL, "v2")
    cached = await shell.cache.ensure(version)
    golden = GoldenPrompts({(MODEL, "v1", "0a"): (("I ", "am "),) * len(PROMPTS)})
    await check(golden, version, replace(cached, path=path, weights_digest="0a"))
    with pytest.raises(LoadFailed, match=r"bot:v1: its weights were changed .* \(digest 0a then, 0b now\)"):
        await check(golden, version, replace(cached, path=path, weights_digest="0b"))
    await check(golden, other, replace(await shell.cache.ensure(other), path=path, weights_digest="0b"))


@pytest.mark.parametrize(
    ("now", "agreed"),
    [
        ((("a", "b"), ("c", "d")), 1.0),
        ((("a", "x"), ("c", "d")), 0.75),
        ((("x", "b"), ("c", "d")), 0.5),  # what follows a difference does not count
        ((("x", "x"), ("x", "x")), 0.0),
        ((("a",), ()), 0.25),
        ((("ab",), ("", "c", "d")), 1.0),  # the same answers in other pieces
    ],
)
def test_agreement_counts_up_to_the_first_difference(now: Answers, agreed: float) -> None:
    assert agreement((("a", "b"), ("c", "d")), now) == agreed


def test_an_answer_without_text_is_only_like_another_without() -> None:
    assert agreement(((), ("",)), ((), ("x",))) == 0.5


async def test_what_was_swapped_in_is_no_reference_for_what_comes_from_the_files() -> None:
    shell = Shell()
    kept: list[object] = []
    golden = GoldenPrompts(keep=lambda key, answers: kept.append(answers))
    version = shell.registry.get(MODEL, "v1")
    cached = await shell.cache.ensure(version)
    await check(golden, version, replace(cached, path=SwitchPath.IN_PLACE))
    assert not kept
    await check(golden, version, cached)
    assert len(kept) == 1
    await shell.close()


async def test_another_load_must_show_it_anew() -> None:
    shell = Shell()
    version = shell.registry.get(MODEL, "v1")
    readiness = Readiness(shell.cache)
    first = await readiness.prove(version)
    await shell.cache.discard(version.key)
    second = await shell.cache.ensure(version)
    assert second is not first and readiness.ready(version.key) is None
    assert await readiness.prove(version) is second and readiness.ready(version.key) is second
    await shell.close()
