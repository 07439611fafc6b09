"""`ScriptedInstance`: answers from a script and fails on command, for tests. It never waits on a clock.

backend = ScriptedBackend({"1+1=": "2"})
engine = SwitchingEngine(backends={"scripted": backend}, store=":memory:")
...
backend["adder", "v1"].die("out of memory")
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from abswitch.clock import Clock, SystemClock
from abswitch.domain import (
    FinishReason,
    GenerationRequest,
    HealthFacts,
    LoadFacts,
    ModelVersion,
    Prompt,
    Residency,
    TokenChunk,
    VersionKey,
)
from abswitch.errors import InstanceDied, InstanceError, InstanceNotRunning, LoadFailed, PromptTooLong
from abswitch.serving.policy import Footprint

Answer = Callable[[Prompt], Sequence[str]] | Mapping[str, str | Sequence[str]]
"""What is answered: a function from the prompt to tokens, or a table of answers (a string is a token a character)."""


def echo(prompt: Prompt) -> Sequence[str]:
    """The prompt, reversed, a token a character."""
    return tuple(reversed(prompt_text(prompt)))


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one string; chat messages one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)


class Gate:
    """A place where tasks wait until the test lets them pass; may be opened from any thread.

    Args:
        is_open: whether tasks pass from the beginning.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._passes = 0
        self._is_open = is_open

    @property
    def waiting(self) -> int:
        """How many tasks wait now."""
        return sum(not future.done() for _, future in tuple(self._waiting))

    def open(self) -> None:
        """Let everybody pass, now and later."""
        with self._lock:
            self._is_open = True
            self._release(len(self._waiting))

    def close(self) -> None:
        """Hold everybody from now on."""
        with self._lock:
            self._is_open, self._passes = False, 0

    def let(self, count: int = 1) -> None:
        """Let exactly `count` tasks pass: those that wait first, then those that come."""
        with self._lock:
            self._passes += count - self._release(count)

    def _release(self, count: int) -> int:
        released = 0
        while self._waiting and released < count:
            loop, future = self._waiting.popleft()
            if future.cancelled():
                continue
            released += 1
            with suppress(RuntimeError):  # the waiter's loop was closed under it
                loop.call_soon_threadsafe(_resolve, future)
        return released

    async def passage(self) -> None:
        """Wait here until let through."""
        with self._lock:
            if self._is_open:
                return
            if self._passes:
                self._passes -= 1
                return
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._waiting.append((loop, future))
        await future


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass(slots=True)
class Counts:
    """What an instance has done so far; every stream that started ended in exactly one of the other three."""

    loads: int = 0
    stops: int = 0
    started: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


class ScriptedInstance:
    """A `ModelInstance` that answers from a script.

    Args:
        version: what it claims to serve.
        answer: the script; see `Answer`.
        context_tokens: room for the prompt, a token a character, and the answer.
        load_error: `start` raises `LoadFailed` with this reason.
        load_gate: `start` waits here first.
        token_gate: every stream waits here before each token; by default none waits.
        die_after: the whole instance dies when it has generated this many tokens.
        memory_bytes: what it says it occupies of the host; the attribute `device_bytes` has that of the accelerator,
            `kept_bytes` what it keeps of that asleep. The attribute `shared_engine` names the running engine that
            `start` joins; None: it starts one of its own.
        clock: for the age of the last token.
    """

    def __init__(
        self,
        version: ModelVersion,
        answer: Answer = echo,
        *,
        context_tokens: int = 4096,
        load_error: str | None = None,
        load_gate: Gate | None = None,
        token_gate: Gate | None = None,
        die_after: int | None = None,
        memory_bytes: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self._version = version
        self._answer = answer
        self._context_tokens = context_tokens
        self.load_error = load_error
        self.load_gate = load_gate
        self.token_gate = token_gate
        self.die_after = die_after
        self.memory_bytes = memory_bytes
        self.device_bytes = self.kept_bytes = 0
        self.shared_engine: Hashable | None = None
        self.wake_error: str | None = None
        self.swap_error: str | None = None
        self.sibling: Callable[[ModelVersion], ScriptedInstance] = ScriptedInstance
        self._clock = clock or SystemClock()
        self.counts = Counts()
        self.requests: list[GenerationRequest] = []
        self._residency = Residency.COLD
        self._end: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: str | None = None
        self._tokens = 0
        self._last_token_s: float | None = None

    @property
    def version(self) -> ModelVersion:
        return self._version

    @property
    def can_sleep(self) -> bool:
        return True

    @property
    def engine_key(self) -> Hashable:
        return self.shared_engine or id(self)

    async def needs(self) -> Footprint:
        return Footprint(self.device_bytes, self.memory_bytes)

    async def engine_to_join(self) -> Hashable | None:
        return self.shared_engine

    async def memory(self) -> Footprint:
        if self._residency is Residency.COLD:
            return Footprint()
        asleep = self._residency is not Residency.RESIDENT
        return Footprint(self.kept_bytes if asleep else self.device_bytes, self.memory_bytes)

    async def why_not_in_place(self, version: ModelVersion) -> str | None:
        return None if version.config.model == self._version.config.model else "it is another script"

    async def become(self, version: ModelVersion) -> ScriptedInstance:
        reason = await self.why_not_in_place(version)
        if reason is not None or self.in_flight:
            raise InstanceError(f"{self._version} cannot become {version}: {reason or 'requests are in flight'}")
        await self.stop()
        if self.swap_error is not None:
            raise LoadFailed(f"{version} did not load: {self.swap_error}")
        other = self.sibling(version)
        await other.start()
        return other

    @property
    def last_token_s(self) -> float | None:
        return self._last_token_s

    @property
    def in_flight(self) -> int:
        """Streams that began and have not ended."""
        counts = self.counts
        return counts.started - counts.finished - counts.cancelled - counts.failed

    async def start(self) -> LoadFacts:
        began_s = self._clock.monotonic_s()
        if self.load_gate is not None:
            await self.load_gate.passage()
        if self.load_error is not None:
            raise LoadFailed(f"{self._version} did not load: {self.load_error}")
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.create_future()
        self._residency, self._death = Residency.RESIDENT, None
        self.counts.loads += 1
        return LoadFacts(
            load_s=self._clock.monotonic_s() - began_s,
            memory_bytes=self.memory_bytes,
            shared_engine=self.shared_engine is not None,
        )

    def die(self, reason: str = "killed by the test") -> None:
        """End every open stream with `InstanceDied`, and refuse every later one; from any thread."""
        self._death = reason
        if self._loop is not None and self._end is not None:
            with suppress(RuntimeError):  # its loop was closed: nobody is left to tell
                self._loop.call_soon_threadsafe(_resolve, self._end)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        self._refuse_unless_resident()
        prompt_tokens = len(prompt_text(request.prompt))
        if prompt_tokens >= self._context_tokens:
            raise PromptTooLong(f"the prompt has {prompt_tokens} tokens, {self._version} takes {self._context_tokens}")
        self.requests.append(request)
        self.counts.started += 1
        try:
            for chunk in self._chunks(request, prompt_tokens):
                await self._turn()
                self._note_token(chunk)
                yield chunk
        except (GeneratorExit, asyncio.CancelledError):
            self.counts.cancelled += 1
            raise
        except BaseException:
            self.counts.failed += 1
            raise
        self.counts.finished += 1

    def _refuse_unless_resident(self) -> None:
        if self._death is not None:
            raise InstanceDied(f"{self._version} died: {self._death}")
        if self._residency is not Residency.RESIDENT:
            raise InstanceNotRunning(f"{self._version} is {self._residency.value}; start or wake it first")

    async def _turn(self) -> None:
        """Let others run, wait at the gate, and notice that the instance died or was stopped meanwhile."""
        await asyncio.sleep(0)
        if self.token_gate is not None and self._death is None:
            assert self._end is not None
            passage = asyncio.ensure_future(self.token_gate.passage())
            try:
                await asyncio.wait((passage, self._end), return_when=asyncio.FIRST_COMPLETED)
            finally:
                passage.cancel()
        self._refuse_unless_resident()

    def _note_token(self, chunk: TokenChunk) -> None:
        self._tokens += len(chunk.token_ids)
        self._last_token_s = self._clock.monotonic_s()
        if self.die_after is not None and self._tokens > self.die_after:
            self.die(f"after {self.die_after} tokens")
            self._refuse_unless_resident()

    def _chunks(self, request: GenerationRequest, prompt_tokens: int) -> Iterator[TokenChunk]:
        tokens, reason = self._script(request, self._context_tokens - prompt_tokens)
        if not tokens:
            yield TokenChunk(0, "", (), 0, prompt_tokens, reason)
        for i, token in enumerate(tokens):
            last = i == len(tokens) - 1
            token_id = sum(token.encode()) % 997
            yield TokenChunk(i, token, (token_id,), i + 1, prompt_tokens, reason if last else None)

    def _script(self, request: GenerationRequest, room: int) -> tuple[list[str], FinishReason]:
        tokens = list(self._tokens_for(request.prompt))
        sampling = request.sampling
        limit = min(sampling.max_tokens, room)
        if sampling.ignore_eos and tokens:
            tokens = (tokens * (limit // len(tokens) + 1))[:limit]
        cut = _cut_at_stop(tokens, sampling.stop)
        if cut is not None and len(cut) <= limit:
            return cut, FinishReason.STOP
        if len(tokens) > limit or sampling.ignore_eos:
            return tokens[:limit], FinishReason.LENGTH
        return tokens, FinishReason.STOP

    def _tokens_for(self, prompt: Prompt) -> Sequence[str]:
        if callable(self._answer):
            return self._answer(prompt)
        text = prompt_text(prompt)
        if text not in self._answer:
            raise KeyError(f"the script of {self._version} has no answer to {text!r}")
        return self._answer[text]

    async def health(self) -> HealthFacts:
        age_s = None if self._last_token_s is None else self._clock.monotonic_s() - self._last_token_s
        return HealthFacts(
            alive=self._death is None and self._residency is not Residency.COLD,
            residency=self._residency,
            in_flight=self.in_flight,
            last_token_age_s=age_s,
            memory_bytes=self.memory_bytes if self._residency is Residency.RESIDENT else 0,
            error=self._death,
        )

    async def sleep(self, level: int = 1) -> None:
        self._refuse_unless_resident()
        if self.in_flight:
            raise InstanceError(f"{self._version} has {self.in_flight} requests in flight; drain it before it sleeps")
        self._residency = Residency.SLEEPING if level == 1 else Residency.DISCARDED

    async def wake(self) -> None:
        if self._residency is Residency.COLD:
            raise InstanceNotRunning(f"{self._version} is not started")
        if self.wake_error is not None:
            raise InstanceError(f"{self._version} did not wake: {self.wake_error}")
        self._residency = Residency.RESIDENT

    async def stop(self) -> None:
        self.counts.stops += 1
        self._residency = Residency.COLD
        if self._end is not None:
            _resolve(self._end)

    async def kill(self, reason: str) -> None:
        if self._death is None:
            self._death = reason
        await self.stop()


def _cut_at_stop(tokens: Sequence[str], stops: Sequence[str]) -> list[str] | None:
    """The tokens before the first stop string, the last of them cut short; None when there is none."""
    text = "".join(tokens)
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    if not found:
        return None
    left, kept = min(found), []
    for token in tokens:
        if left <= 0:
            break
        kept.append(token[:left])
        left -= len(token)
    return kept


class ScriptedBackend:
    """An `InstanceFactory` that remembers what it made, so that a test can reach in.

    Args:
        answer: the script of every version; `answers` has those of single ones.
        answers: script by version name.
        configure: called with each new instance before it is used, e.g. to set `load_error`.
    """

    def __init__(
        self,
        answer: Answer = echo,
        *,
        answers: Mapping[str, Answer] | None = None,
        configure: Callable[[ScriptedInstance], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._answer = answer
        self._answers = dict(answers or {})
        self._configure = configure
        self._clock = clock
        self.made: list[ScriptedInstance] = []

    def __call__(self, version: ModelVersion) -> ScriptedInstance:
        answer = self._answers.get(version.version, self._answer)
        instance = ScriptedInstance(version, answer, clock=self._clock)
        instance.sibling = self
        if self._configure is not None:
            self._configure(instance)
        self.made.append(instance)
        return instance

    def __getitem__(self, key: VersionKey) -> ScriptedInstance:
        """The newest instance of a version."""
        for instance in reversed(self.made):
            if instance.version.key == key:
                return instance
        raise KeyError(key)
