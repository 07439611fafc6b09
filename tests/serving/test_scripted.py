"""The scripted instance, and through broken variants of it the contract suite itself: each must be caught."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import replace

import pytest

from abswitch.domain import (
    FinishReason,
    GenerationRequest,
    HealthFacts,
    LoadFacts,
    ModelConfig,
    ModelVersion,
    Prompt,
    Residency,
    Sampling,
    TokenChunk,
)
from abswitch.errors import InstanceDied, InstanceNotRunning, LoadFailed, PromptTooLong
from abswitch.serving.scripted import Gate, ScriptedBackend, ScriptedInstance, prompt_text
from abswitch.testing.contract import check_instance, check_kill

VERSION = ModelVersion(version="v1", config=ModelConfig(model_id="adder", model="scripted", backend="scripted"))


def digits(prompt: Prompt) -> list[str]:
    """An answer that depends on the prompt, has many different tokens, and goes on for longer than any limit here."""
    seed = sum(map(ord, prompt_text(prompt)))
    return [f"<{seed * (i + 3) % 1009}>" for i in range(100)]


def request(**sampling: object) -> GenerationRequest:
    return GenerationRequest(request_id="r", prompt="12+34=", sampling=Sampling().merged(sampling))


async def texts(instance: ScriptedInstance, **sampling: object) -> list[str]:
    return [chunk.text async for chunk in instance.generate(request(**sampling))]


async def started(instance: ScriptedInstance) -> ScriptedInstance:
    await instance.start()
    return instance


async def test_the_contract_holds() -> None:
    made: list[ScriptedInstance] = []

    def make() -> ScriptedInstance:
        made.append(ScriptedInstance(VERSION, digits))
        return made[0]

    await check_instance(make, make_failing=lambda: ScriptedInstance(VERSION, load_error="no memory"), timeout_s=2)
    counts = made[0].counts
    assert counts.started == counts.finished + counts.cancelled + counts.failed
    assert counts.cancelled >= 5 and counts.failed == 1, "the stream that was open at stop failed"


# --- the contract catches what it is for ------------------------------------------------------------------------------


class AnswersBeforeStart(ScriptedInstance):
    def _refuse_unless_resident(self) -> None:
        pass


class RepeatsAnIndex(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        async for chunk in super().generate(request):
            yield chunk._replace(index=max(0, chunk.index - 1))


class NeverSaysWhyItEnded(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        async for chunk in super().generate(request):
            yield chunk._replace(finish_reason=None)


class AlwaysSaysWhyItEnded(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        async for chunk in super().generate(request):
            yield chunk._replace(finish_reason=FinishReason.STOP)


class IsNotDeterministic(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        async for chunk in super().generate(request):
            yield chunk._replace(text=f"{chunk.text}{self.counts.started}")


class IgnoresMaxTokens(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        longer = replace(request.sampling, max_tokens=request.sampling.max_tokens + 1)
        async for chunk in super().generate(replace(request, sampling=longer)):
            yield chunk


class CallsACutAnswerComplete(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        async for chunk in super().generate(request):
            yield chunk._replace(finish_reason=chunk.finish_reason and FinishReason.STOP)


class IgnoresStopStrings(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        async for chunk in super().generate(replace(request, sampling=replace(request.sampling, stop=()))):
            yield chunk


class MixesStreamsUp(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        async for chunk in super().generate(request):
            yield chunk._replace(text=chunk.text if self.in_flight <= 2 else "?")


class LosesCountOfTheClosed(ScriptedInstance):
    leaked = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        try:
            async for chunk in super().generate(request):
                yield chunk
        except GeneratorExit:
            self.leaked += 1
            raise

    async def health(self) -> HealthFacts:
        facts = await super().health()
        return replace(facts, in_flight=facts.in_flight + self.leaked)


class CountsNothing(ScriptedInstance):
    async def health(self) -> HealthFacts:
        return replace(await super().health(), in_flight=0)


class SwallowsCancellation(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        try:
            async for chunk in super().generate(request):
                yield chunk
        except asyncio.CancelledError:
            return


class AnswersAfterALostPrompt(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        try:
            async for chunk in super().generate(request):
                yield chunk
        except PromptTooLong:
            yield TokenChunk(0, "", (), 0, None, FinishReason.ERROR)


class DiesOfALongPrompt(ScriptedInstance):
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        try:
            async for chunk in super().generate(request):
                yield chunk
        except PromptTooLong:
            self.die("of a long prompt")
            raise


class SleepsWhileItServes(ScriptedInstance):
    async def sleep(self, level: int = 1) -> None:
        self._residency = Residency.SLEEPING


class AnswersAsleep(ScriptedInstance):
    def _refuse_unless_resident(self) -> None:
        if self._residency is not Residency.SLEEPING:
            super()._refuse_unless_resident()


class StopsOnlyOnce(ScriptedInstance):
    async def stop(self) -> None:
        if self.counts.stops:
            raise InstanceNotRunning("already stopped")
        await super().stop()


class HangsOnStop(ScriptedInstance):
    async def stop(self) -> None:
        await super().stop()
        self._end = asyncio.get_running_loop().create_future()  # as if open streams were never told
        self._residency = Residency.RESIDENT
        self.token_gate = Gate()


class SaysItIsDead(ScriptedInstance):
    async def health(self) -> HealthFacts:
        return replace(await super().health(), alive=False)


class LoadsInNegativeTime(ScriptedInstance):
    async def start(self) -> LoadFacts:
        return replace(await super().start(), load_s=-1.0)


class JoinsNoEngineAfterAll(ScriptedInstance):
    async def engine_to_join(self) -> Hashable | None:
        return "an engine"


class HangsOnStart(ScriptedInstance):
    async def start(self) -> LoadFacts:
        await Gate().passage()
        return await super().start()


BROKEN = {
    AnswersBeforeStart: "check_before_start",
    HangsOnStart: "check_start",
    LoadsInNegativeTime: "check_start",
    JoinsNoEngineAfterAll: "check_start",
    SaysItIsDead: "check_start",
    RepeatsAnIndex: "check_greedy_answers_repeat",
    NeverSaysWhyItEnded: "check_greedy_answers_repeat",
    AlwaysSaysWhyItEnded: "check_greedy_answers_repeat",
    IsNotDeterministic: "check_greedy_answers_repeat",
    IgnoresMaxTokens: "check_greedy_answers_repeat",
    CallsACutAnswerComplete: "check_max_tokens",
    IgnoresStopStrings: "check_stop_strings",
    MixesStreamsUp: "check_concurrent_streams",
    CountsNothing: "check_in_flight_is_counted",
    LosesCountOfTheClosed: "check_closing_early",
    SwallowsCancellation: "check_cancelling",
    AnswersAfterALostPrompt: "check_long_prompt",
    DiesOfALongPrompt: "check_long_prompt",
    SleepsWhileItServes: "check_sleep",
    AnswersAsleep: "check_sleep",
    HangsOnStop: "check_stop",
}


@pytest.mark.parametrize(("broken", "check"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", value))
async def test_the_contract_catches(broken: type[ScriptedInstance], check: str) -> None:
    with pytest.raises(AssertionError, match=rf"{broken.__name__}.*{check}"):
        await check_instance(lambda: broken(VERSION, digits), timeout_s=0.2, start_timeout_s=0.2)


async def test_the_contract_catches_a_second_stop_that_raises() -> None:
    with pytest.raises((AssertionError, InstanceNotRunning)):
        await check_instance(lambda: StopsOnlyOnce(VERSION, digits), timeout_s=1)


@pytest.mark.parametrize("error", [None, RuntimeError("no memory")])
async def test_the_contract_catches_a_start_that_does_not_fail_properly(error: Exception | None) -> None:
    class Odd(ScriptedInstance):
        async def start(self) -> LoadFacts:
            if error is not None:
                raise error
            return await super().start()

    with pytest.raises(AssertionError, match="check_failing_start"):
        await check_instance(
            lambda: ScriptedInstance(VERSION, digits), make_failing=lambda: Odd(VERSION, digits), timeout_s=1
        )


# --- what else tests lean on ------------------------------------------------------------------------------------------


async def test_a_table_of_answers_and_a_missing_line() -> None:
    instance = await started(ScriptedInstance(VERSION, {"12+34=": "46"}))
    assert await texts(instance) == ["4", "6"]
    with pytest.raises(KeyError, match="no answer"):
        await anext(instance.generate(replace(request(), prompt="1+1=")))
    assert instance.counts.failed == 1 and instance.in_flight == 0


async def test_an_empty_answer_is_one_empty_chunk() -> None:
    instance = await started(ScriptedInstance(VERSION, {"12+34=": ""}))
    chunks = [chunk async for chunk in instance.generate(request())]
    assert chunks == [TokenChunk(0, "", (), 0, 6, FinishReason.STOP)]


async def test_a_failed_load_can_be_tried_again() -> None:
    instance = ScriptedInstance(VERSION, load_error="no memory")
    with pytest.raises(LoadFailed, match="adder:v1 did not load: no memory"):
        await instance.start()
    instance.load_error = None
    await instance.start()
    assert instance.counts.loads == 1


async def test_the_token_gate_lets_tokens_out_one_by_one() -> None:
    gate = Gate()
    instance = await started(ScriptedInstance(VERSION, digits, token_gate=gate))
    seen: list[str] = []

    async def read() -> None:
        async for chunk in instance.generate(request(max_tokens=3)):
            seen.append(chunk.text)

    task = asyncio.create_task(read())
    for wanted in (0, 1, 2):
        while gate.waiting == 0:
            await asyncio.sleep(0)
        assert len(seen) == wanted
        gate.let()
        while len(seen) == wanted:
            await asyncio.sleep(0)
    await task
    assert instance.counts.finished == 1


async def test_a_gate_opens_from_another_thread() -> None:
    gate = Gate()
    waiters = [asyncio.create_task(gate.passage()) for _ in range(3)]
    while gate.waiting < 3:
        await asyncio.sleep(0)
    await asyncio.to_thread(gate.open)
    await asyncio.gather(*waiters)
    gate.close()
    gate.let(1)
    await gate.passage()
    assert gate.waiting == 0


async def test_it_dies_after_so_many_tokens_for_everybody() -> None:
    instance = await started(ScriptedInstance(VERSION, digits, die_after=2))
    seen = []
    with pytest.raises(InstanceDied, match="after 2 tokens"):
        async for chunk in instance.generate(request()):
            seen.append(chunk.index)
    assert seen == [0, 1]
    with pytest.raises(InstanceDied):
        await anext(instance.generate(request()))
    health = await instance.health()
    assert not health.alive and health.error == "after 2 tokens"


async def test_death_reaches_streams_that_wait_at_the_gate() -> None:
    gate = Gate()
    instance = await started(ScriptedInstance(VERSION, digits, token_gate=gate))
    readers = [asyncio.create_task(texts(instance)) for _ in range(4)]
    while gate.waiting < 4:
        await asyncio.sleep(0)
    await asyncio.to_thread(instance.die, "killed")
    results = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(result, InstanceDied) for result in results)
    assert gate.waiting == 0 and instance.in_flight == 0


async def test_the_backend_remembers_what_it_made() -> None:
    def slow(instance: ScriptedInstance) -> None:
        instance.memory_bytes = 7

    backend = ScriptedBackend(answers={"v1": {"12+34=": "46"}}, configure=slow)
    first, second = backend(VERSION), backend(VERSION)
    assert backend["adder", "v1"] is second and backend.made == [first, second]
    assert (await second.start()).memory_bytes == 7
    assert await texts(second) == ["4", "6"]
    with pytest.raises(KeyError):
        backend["adder", "v2"]


@pytest.mark.parametrize(
    ("stop", "expected"), [(("<",), ""), ((">",), "<1"), (("2", "1"), "<"), (("absent",), "<1><2><3>")]
)
async def test_stop_strings_cut_where_the_first_of_them_begins(stop: tuple[str, ...], expected: str) -> None:
    answer: Callable[[Prompt], list[str]] = lambda _: ["<1>", "<2>", "<3>"]  # noqa: E731 - a name for the type
    instance = await started(ScriptedInstance(VERSION, answer))
    assert "".join(await texts(instance, stop=stop)) == expected


async def test_killing_ends_what_waits() -> None:
    gate = Gate()
    gate.let(1)
    await check_kill(lambda: ScriptedInstance(VERSION, token_gate=gate))
