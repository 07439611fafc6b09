"""`check_instance`: one suite that any `ModelInstance` must pass, whatever runs behind it.

    async def test_my_backend() -> None:
        await check_instance(lambda: MyInstance(version), prompt="12+34=")

Each check is a function below; an instance that breaks the protocol fails with the check's name and what was seen.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeVar

from abswitch.domain import (
    ChatMessage,
    FinishReason,
    GenerationRequest,
    HealthFacts,
    LoadFacts,
    Prompt,
    Residency,
    Sampling,
    TokenChunk,
)
from abswitch.errors import InstanceDied, InstanceError, InstanceNotRunning, LoadFailed, PromptTooLong
from abswitch.serving.instance import ModelInstance

T = TypeVar("T")
Make = Callable[[], ModelInstance | Awaitable[ModelInstance]]
_POLL_S = 0.005


async def check_instance(
    make: Make,
    *,
    prompt: str = "12+34=",
    chat: bool = True,
    ignore_eos: bool = True,
    long_prompt: str | None = None,
    make_failing: Make | None = None,
    max_tokens: int = 16,
    concurrency: int = 8,
    start_timeout_s: float = 300.0,
    timeout_s: float = 30.0,
) -> None:
    """Run every check on one instance that `make` returns; it is started once and stopped at the end.

    Args:
        make: a new instance that is not started.
        prompt: its greedy answer should have at least three tokens and two characters, and it should end, or go on for
            more than `max_tokens`.
        chat: whether the instance takes chat messages.
        ignore_eos: whether it takes `Sampling.ignore_eos`, which keeps streams open for longer.
        long_prompt: a prompt beyond the context length; by default `prompt` repeated to a million characters.
        make_failing: a new instance whose `start` fails, to check that it fails as it should.
        max_tokens: upper bound of the answers that are compared with each other.
        concurrency: how many streams to run at once.
        start_timeout_s, timeout_s: patience for `start`, and for every other single step.

    Raises:
        AssertionError: names the check that failed and what was seen.
    """
    trial = _Trial(
        instance=await _made(make),
        prompt=prompt,
        ignore_eos=ignore_eos,
        long_prompt=long_prompt or prompt * (1_000_000 // len(prompt)),
        max_tokens=max_tokens,
        concurrency=concurrency,
        start_timeout_s=start_timeout_s,
        timeout_s=timeout_s,
    )
    try:
        for check in CHECKS:
            if check is not check_chat or chat:
                await trial.run(check)
    finally:
        await trial.within("stop", trial.instance.stop())
    if make_failing is not None:
        failing = await _made(make_failing)
        await check_failing_start(failing, timeout_s=start_timeout_s)


async def _made(make: Make) -> ModelInstance:
    made = make()
    return await made if inspect.isawaitable(made) else made


class Answer(NamedTuple):
    """What one stream delivered."""

    text: str
    output_tokens: int
    finish_reason: FinishReason | None


@dataclass
class _Trial:
    """One instance under test, and how to ask it things."""

    instance: ModelInstance
    prompt: str
    ignore_eos: bool
    long_prompt: str
    max_tokens: int
    concurrency: int
    start_timeout_s: float
    timeout_s: float
    reference: Answer | None = None
    check: str = ""

    def __post_init__(self) -> None:
        self._ids = count()

    async def run(self, check: Callable[[_Trial], Awaitable[None]]) -> None:
        self.check = check.__name__
        try:
            await check(self)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(self.words(f"raised {type(error).__name__}: {error}")) from error

    def words(self, message: str) -> str:
        return f"{type(self.instance).__name__} {self.instance.version}, {self.check}: {message}"

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise AssertionError(self.words(message))

    async def within(self, what: str, awaitable: Awaitable[T], timeout_s: float | None = None) -> T:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s) as scope:
                return await awaitable
        except TimeoutError:
            if not scope.expired():
                raise
            raise AssertionError(self.words(f"{what} did not end within {limit_s:g} s")) from None

    def request(self, prompt: Prompt | None = None, **sampling: object) -> GenerationRequest:
        fields = {"temperature": 0.0, "max_tokens": self.max_tokens} | sampling
        return GenerationRequest(
            request_id=f"contract-{next(self._ids)}",
            prompt=self.prompt if prompt is None else prompt,
            sampling=Sampling().merged(fields),
        )

    def open_ended(self) -> GenerationRequest:
        """A request whose answer is not over when its first chunk comes."""
        return self.request(ignore_eos=self.ignore_eos, max_tokens=self.max_tokens * 4)

    async def ask(self, prompt: Prompt | None = None, **sampling: object) -> Answer:
        return await self.answer(self.request(prompt, **sampling))

    async def answer(self, request: GenerationRequest) -> Answer:
        """The whole answer; every stream that is read to its end has to be well-formed."""

        async def read() -> list[TokenChunk]:
            return [chunk async for chunk in self.instance.generate(request)]

        chunks = await self.within("a stream", read())
        self.check_chunks(chunks, request.sampling.max_tokens)
        return Answer("".join(chunk.text for chunk in chunks), chunks[-1].output_tokens, chunks[-1].finish_reason)

    def check_chunks(self, chunks: Sequence[TokenChunk], max_tokens: int) -> None:
        self.require(bool(chunks), "a stream ended without a chunk")
        indices = [chunk.index for chunk in chunks]
        self.require(indices == list(range(len(chunks))), f"indices are {indices}, not 0, 1, 2, …")
        finished = [i for i, chunk in enumerate(chunks) if chunk.finish_reason is not None]
        self.require(
            finished == [len(chunks) - 1],
            f"finish_reason belongs on the last of {len(chunks)} chunks alone; it is on {finished}",
        )
        counts = [chunk.output_tokens for chunk in chunks]
        self.require(counts == sorted(counts), f"output_tokens go back: {counts}")
        self.require(counts[-1] <= max_tokens, f"{counts[-1]} tokens were generated, max_tokens is {max_tokens}")
        told = sum(len(chunk.token_ids) for chunk in chunks)
        self.require(told in (0, counts[-1]), f"{told} token_ids were told, output_tokens says {counts[-1]}")
        prompt_tokens = chunks[-1].prompt_tokens
        self.require(prompt_tokens is None or prompt_tokens > 0, f"prompt_tokens is {prompt_tokens}")

    async def refuses(self, what: str, kind: type[Exception], request: GenerationRequest | None = None) -> None:
        """`generate` raises `kind`, at the call or at the first chunk."""
        try:
            stream = self.instance.generate(request or self.request())
            first = await self.within(what, anext(stream))
        except kind:
            return
        raise AssertionError(self.words(f"{what} must raise {kind.__name__}; it answered {first!r}"))

    async def health(self) -> HealthFacts:
        return await self.within("health", self.instance.health())

    async def idle(self, after: str) -> None:
        """Nothing is in flight any more, at the latest within the patience."""

        async def wait() -> None:
            # The protocol states facts and has no event to wait on, hence a loop that ASYNC110 would not have.
            while (await self.instance.health()).in_flight:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

        await self.within(f"in_flight going back to 0 after {after}", wait())

    @asynccontextmanager
    async def open_stream(self) -> AsyncIterator[AsyncGenerator[TokenChunk, None]]:
        """A stream that has delivered its first chunk; closed at the end."""
        stream = self.instance.generate(self.open_ended())
        await self.within("the first chunk", anext(stream))
        try:
            yield stream
        finally:
            await self.within("closing a stream", stream.aclose())


async def check_before_start(trial: _Trial) -> None:
    """Not started: no answers, no life, and nothing to stop."""
    await trial.refuses("generate before start", InstanceNotRunning)
    facts = await trial.health()
    trial.require(not facts.alive and facts.residency is Residency.COLD, f"health before start is {facts}")
    trial.require(facts.in_flight == 0, f"in_flight before start is {facts.in_flight}")


async def check_start(trial: _Trial) -> None:
    """`start` reports plausible facts and joins the engine it said it would; the instance is then alive and idle."""
    engine = await trial.within("engine_to_join", trial.instance.engine_to_join())
    facts = await trial.within("start", trial.instance.start(), trial.start_timeout_s)
    trial.require(isinstance(facts, LoadFacts), f"start returned {facts!r}, not LoadFacts")
    trial.require(math.isfinite(facts.load_s) and facts.load_s >= 0, f"load_s is {facts.load_s}")
    trial.require(facts.memory_bytes >= 0, f"memory_bytes is {facts.memory_bytes}")
    trial.require(facts.device_memory_bytes is None or facts.device_memory_bytes >= 0, f"{facts}")
    joined = facts.shared_engine and trial.instance.engine_key == engine
    trial.require(joined or engine is None, f"engine_to_join was {engine!r}, and {facts}")
    health = await trial.health()
    trial.require(health.alive and health.error is None, f"health after start is {health}")
    trial.require(health.residency is Residency.RESIDENT, f"residency after start is {health.residency}")
    trial.require(health.in_flight == 0, f"in_flight after start is {health.in_flight}")


async def check_memory(trial: _Trial) -> None:
    """It says what its engine takes, names that engine always alike, and stays what it is when it is asked."""
    instance = trial.instance
    memory = await trial.within("memory", instance.memory())
    needs = await trial.within("needs", instance.needs())
    for what, found in (("memory", memory), ("needs", needs)):
        trial.require(found.device_bytes >= 0 and found.host_bytes >= 0, f"{what} is {found}")
    key = instance.engine_key
    trial.require(hash(key) == hash(instance.engine_key) and key == instance.engine_key, f"engine_key is {key!r}")
    health = await trial.health()
    trial.require(health.alive and health.residency is Residency.RESIDENT, f"health after it was asked is {health}")


async def check_in_place(trial: _Trial) -> None:
    """What cannot be done in place is refused with a reason, while requests are in flight in any case, at no harm."""
    instance = trial.instance
    reason = await trial.within("why_not_in_place", instance.why_not_in_place(instance.version))
    trial.require(reason is None or bool(reason.strip()), f"why_not_in_place gave {reason!r}")
    stream = instance.generate(trial.open_ended())
    await trial.within("the first chunk", anext(stream))
    try:
        await trial.within("become", instance.become(instance.version))
    except LoadFailed as error:
        raise AssertionError(trial.words(f"become raised {error!r}; a refusal must change nothing")) from error
    except InstanceError:
        pass
    else:
        trial.require(False, "become succeeded although a request was in flight")
    await trial.within("the next chunk", anext(stream))
    await trial.within("closing", stream.aclose())


async def check_greedy_answers_repeat(trial: _Trial) -> None:
    """Temperature 0 gives the same answer twice."""
    first, second = await trial.ask(), await trial.ask()
    trial.require(first == second, f"greedy answers differ: {first} and {second}")
    trial.require(
        first.output_tokens >= 3 and len(first.text) >= 2,
        f"the answer {first} is too short to check more; give another prompt",
    )
    trial.reference = first


async def check_max_tokens(trial: _Trial) -> None:
    """An answer that is cut off has exactly `max_tokens` tokens, says `length`, and begins like the whole one."""
    whole = _reference(trial)
    for limit in (1, whole.output_tokens - 1):
        cut = await trial.ask(max_tokens=limit)
        trial.require(cut.output_tokens == limit, f"max_tokens={limit} gave {cut.output_tokens} tokens")
        trial.require(cut.finish_reason is FinishReason.LENGTH, f"max_tokens={limit} ended with {cut.finish_reason}")
        trial.require(whole.text.startswith(cut.text), f"max_tokens={limit} gave {cut.text!r}, not {whole.text!r} cut")


async def check_stop_strings(trial: _Trial) -> None:
    """A stop string ends the answer, says `stop`, and is not part of it."""
    whole = _reference(trial)
    for stop in (whole.text[len(whole.text) // 2], whole.text[-2:]):
        expected = whole.text[: whole.text.index(stop)]
        cut = await trial.ask(stop=(stop,))
        trial.require(cut.text == expected, f"stop={stop!r} gave {cut.text!r}, not {expected!r}")
        trial.require(cut.finish_reason is FinishReason.STOP, f"stop={stop!r} ended with {cut.finish_reason}")


async def check_concurrent_streams(trial: _Trial) -> None:
    """Streams that run at once answer as they do one by one, and are counted while they run."""
    prompts = [trial.prompt * (1 + i % 3) for i in range(trial.concurrency)]
    alone = {prompt: await trial.ask(prompt) for prompt in dict.fromkeys(prompts)}
    together = await asyncio.gather(*(trial.ask(prompt) for prompt in prompts))
    for prompt, answer in zip(prompts, together, strict=True):
        trial.require(answer == alone[prompt], f"{prompt!r}: {answer} among others, {alone[prompt]} alone")
    await trial.idle("every stream ended")
    health = await trial.health()
    age_s = health.last_token_age_s
    trial.require(age_s is not None and age_s >= 0, f"last_token_age_s after tokens is {age_s}")


async def check_in_flight_is_counted(trial: _Trial) -> None:
    """An open stream is in flight."""
    async with trial.open_stream(), trial.open_stream():
        in_flight = (await trial.health()).in_flight
        trial.require(in_flight == 2, f"in_flight is {in_flight} while two streams are open")


async def check_closing_early(trial: _Trial) -> None:
    """A stream that is closed after its first chunk leaves nothing in flight, and disturbs nobody."""
    async with trial.open_stream():
        pass
    await trial.idle("a stream was closed early")
    answer = await trial.ask()
    trial.require(answer == trial.reference, f"after a closed stream the answer is {answer}, not {trial.reference}")


async def check_cancelling(trial: _Trial) -> None:
    """Cancelling the task that reads ends it as cancelled, and leaves nothing in flight."""
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in trial.instance.generate(trial.open_ended()):
            begun.set()

    tasks = [asyncio.create_task(read()) for _ in range(3)]
    await trial.within("the first chunk", begun.wait())
    for task in tasks:
        task.cancel()
    results = await trial.within("cancelling", asyncio.gather(*tasks, return_exceptions=True))
    for result in results:
        cancelled = isinstance(result, asyncio.CancelledError)
        # A short answer may have ended before the cancellation reached it.
        trial.require(cancelled or result is None, f"a cancelled reader ended with {result!r}")
    trial.require(any(isinstance(result, asyncio.CancelledError) for result in results), "no cancellation got through")
    await trial.idle("readers were cancelled")
    answer = await trial.ask()
    trial.require(answer == trial.reference, f"after cancellations the answer is {answer}, not {trial.reference}")


async def check_chat(trial: _Trial) -> None:
    """Chat messages are answered, the same way twice."""
    messages = (ChatMessage("user", trial.prompt),)
    first, second = await trial.ask(messages), await trial.ask(messages)
    trial.require(first.output_tokens > 0, f"a chat was answered with {first}")
    trial.require(first == second, f"greedy chat answers differ: {first} and {second}")


async def check_long_prompt(trial: _Trial) -> None:
    """A prompt that does not fit is refused as such, and the instance serves on."""
    await trial.refuses("a prompt beyond the context", PromptTooLong, trial.request(trial.long_prompt))
    await trial.idle("a refused prompt")
    answer = await trial.ask()
    trial.require(answer == trial.reference, f"after a refused prompt the answer is {answer}, not {trial.reference}")


async def check_sleep(trial: _Trial) -> None:
    """Where it can sleep: not with requests in flight; asleep it says so and refuses; awake it answers as before."""
    instance = trial.instance
    if not instance.can_sleep:
        await _raises(trial, "sleep where it is not available", InstanceError, instance.sleep())
        return
    async with trial.open_stream():
        await _raises(trial, "sleep with a stream open", InstanceError, instance.sleep())
    await trial.idle("a stream was closed early")
    await trial.within("sleep", instance.sleep(), trial.start_timeout_s)
    health = await trial.health()
    trial.require(health.residency is Residency.SLEEPING, f"residency asleep is {health.residency}")
    await trial.refuses("generate asleep", InstanceNotRunning)
    await trial.within("wake", instance.wake(), trial.start_timeout_s)
    health = await trial.health()
    trial.require(health.alive and health.residency is Residency.RESIDENT, f"health after waking is {health}")
    answer = await trial.ask()
    trial.require(answer == trial.reference, f"after sleep the answer is {answer}, not {trial.reference}")


async def check_stop(trial: _Trial) -> None:
    """`stop` ends an open stream with an error, may be repeated, and nothing is served afterwards."""
    instance = trial.instance
    stream = instance.generate(trial.open_ended())
    await trial.within("the first chunk", anext(stream))
    await trial.within("stop", instance.stop())
    await _ends(trial, stream)
    await trial.within("a second stop", instance.stop())
    await trial.refuses("generate after stop", InstanceNotRunning)
    health = await trial.health()
    trial.require(not health.alive and health.in_flight == 0, f"health after stop is {health}")
    trial.require(health.residency is Residency.COLD, f"residency after stop is {health.residency}")


async def _ends(trial: _Trial, stream: AsyncGenerator[TokenChunk, None]) -> None:
    async def drain() -> None:
        async for chunk in stream:
            if chunk.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                return  # it was over: its last tokens were on their way already
        raise AssertionError(trial.words("a stream that was open at stop ended without an error"))

    try:
        await trial.within("a stream that was open at stop", drain())
    except InstanceError:
        return
    finally:
        await stream.aclose()


async def _raises(trial: _Trial, what: str, kind: type[Exception], awaitable: Awaitable[object]) -> None:
    try:
        await trial.within(what, awaitable)
    except kind:
        return
    raise AssertionError(trial.words(f"{what} must raise {kind.__name__}"))


def _reference(trial: _Trial) -> Answer:
    assert trial.reference is not None, "check_greedy_answers_repeat comes first"
    return trial.reference


async def check_failing_start(instance: ModelInstance, *, timeout_s: float = 300.0) -> None:
    """A `start` that cannot succeed raises `LoadFailed` with a reason, and leaves an instance that serves nothing.

    Raises:
        AssertionError: it does something else.
    """
    name = f"{type(instance).__name__} {instance.version}, check_failing_start: "
    try:
        async with asyncio.timeout(timeout_s):
            await instance.start()
    except LoadFailed as error:
        if not str(error):
            raise AssertionError(f"{name}LoadFailed gives no reason") from error
    except Exception as error:
        raise AssertionError(f"{name}start must raise LoadFailed, not {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{name}start must raise LoadFailed; it succeeded")
    health = await instance.health()
    if health.alive or health.in_flight:
        raise AssertionError(f"{name}health after a failed start is {health}")
    await instance.stop()


CHECKS: tuple[Callable[[_Trial], Awaitable[None]], ...] = (
    check_before_start,
    check_start,
    check_memory,
    check_greedy_answers_repeat,
    check_max_tokens,
    check_stop_strings,
    check_concurrent_streams,
    check_in_flight_is_counted,
    check_closing_early,
    check_cancelling,
    check_in_place,
    check_chat,
    check_long_prompt,
    check_sleep,
    check_stop,
)


async def check_kill(make: Make, *, prompt: str = "12+34=", timeout_s: float = 300.0, ends_s: float = 2.0) -> None:
    """`kill` ends open streams with `InstanceDied` and its reason within `ends_s`, and may be repeated.

    Raises:
        AssertionError: says what was seen.
    """
    instance = await _made(make)
    await asyncio.wait_for(instance.start(), timeout_s)
    request = GenerationRequest(
        request_id="kill", prompt=prompt, sampling=Sampling(temperature=0.0, max_tokens=200, ignore_eos=True)
    )
    stream = instance.generate(request)
    await asyncio.wait_for(anext(stream), timeout_s)
    assert instance.last_token_s is not None, "last_token_s is None after a token"
    reading = asyncio.ensure_future(_read_to_the_end(stream))
    ending = asyncio.ensure_future(instance.kill("the check killed it"))
    done, _ = await asyncio.wait([reading], timeout=ends_s)
    assert done, f"a stream that was open at kill had not ended after {ends_s} s"
    error = reading.exception()  # None: it was over, its last tokens were on their way already
    assert error is None or (isinstance(error, InstanceDied) and "the check killed it" in str(error)), (
        f"a stream that was open at kill ended with {error!r}"
    )
    await asyncio.wait_for(ending, timeout_s)
    await asyncio.wait_for(instance.kill("again"), timeout_s)
    health = await asyncio.wait_for(instance.health(), timeout_s)
    assert not health.alive, f"health after kill is {health}"


async def _read_to_the_end(stream: AsyncGenerator[TokenChunk, None]) -> None:
    """To its end, or to the end of the script: an answer may be over before it can be cut short."""
    async for chunk in stream:
        if chunk.finish_reason is not None:
            return
