"""`VllmInstance`: a version on a vLLM engine of this machine.

pool = VllmEnginePool()
instance = VllmInstance(version, pool)
await instance.start()
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Hashable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any

from abswitch.domain import (
    ChatMessage,
    FinishReason,
    GenerationRequest,
    HealthFacts,
    LoadFacts,
    ModelVersion,
    Prompt,
    Residency,
    Sampling,
    TokenChunk,
)
from abswitch.errors import (
    AbswitchError,
    InstanceDied,
    InstanceError,
    InstanceNotRunning,
    InvalidInput,
    LoadFailed,
    PromptTooLong,
    RequestFailed,
)
from abswitch.serving.instance import InstanceFactory
from abswitch.serving.policy import Footprint
from abswitch.serving.source import check_adapter
from abswitch.serving.vllm_args import plan_of
from abswitch.serving.vllm_engine import VllmEngine, VllmEnginePool
from abswitch.serving.vllm_log import shortened
from abswitch.serving.vllm_swap import why_not_swappable

__all__ = ["VllmEngine", "VllmEnginePool", "VllmInstance", "vllm_backend"]

_REASONS = {reason.value: reason for reason in FinishReason}
_INLINE_CHARACTERS = 4000
"""Up to here a prompt is tokenised on the loop: that takes less time than handing it to a thread."""


def vllm_backend(pool: VllmEnginePool) -> InstanceFactory:
    """The factory of instances whose engines come from `pool`."""
    return lambda version: VllmInstance(version, pool)


class VllmInstance:
    """A `ModelInstance` on an engine of the pool, with a LoRA adapter where the version has one."""

    def __init__(self, version: ModelVersion, pool: VllmEnginePool) -> None:
        self._version = version
        self._pool = pool
        self._engine: VllmEngine | None = None
        self._facts: LoadFacts | None = None
        self._lora: Any = None
        self._residency = Residency.COLD
        self._open: set[str] = set()
        self._salt = str(version)  # versions never answer from each other's cached prefixes
        self._ids = count()
        self._last_token_s: float | None = None
        self._changing = asyncio.Lock()

    @property
    def version(self) -> ModelVersion:
        return self._version

    @property
    def can_sleep(self) -> bool:
        return self._engine is not None and self._engine.can_sleep

    @property
    def last_token_s(self) -> float | None:
        return None if self._engine is None else self._engine.last_token_s

    @property
    def async_llm(self) -> Any:
        """vLLM's own engine object, for what this interface does not offer; only while the instance runs.

        Raises:
            InstanceNotRunning: before `start` or after `stop`.
        """
        return self._started().llm

    @property
    def max_model_len(self) -> int:
        """The context length in tokens, prompt and answer together."""
        return self._started().max_model_len

    @property
    def engine_key(self) -> Hashable:
        return id(self._engine or self)

    async def needs(self) -> Footprint:
        return await self._pool.needs(self._version)

    async def engine_to_join(self) -> Hashable | None:
        engine = await self._pool.running(self._version)
        return None if engine is None else id(engine)

    async def memory(self) -> Footprint:
        engine = self._engine
        if engine is None or engine.is_dead:
            return Footprint()
        return await asyncio.to_thread(engine.footprint, sleeps=self._residency is not Residency.RESIDENT)

    async def why_not_in_place(self, version: ModelVersion) -> str | None:
        engine = self._started()
        if self._pool.holders(engine) > 1:
            return "its engine serves other versions, too"
        if self._version.config.adapter is not None or version.config.adapter is not None:
            return "an adapter is added to an engine, not swapped into it"
        plan = await asyncio.to_thread(plan_of, version, engine.vllm)
        return await asyncio.to_thread(why_not_swappable, engine.plan, plan)

    async def become(self, version: ModelVersion) -> VllmInstance:
        reason = await self.why_not_in_place(version)
        async with self._changing:
            engine = self._awake()
            if self._open:
                reason = f"{len(self._open)} requests are in flight"
            if reason is not None:
                raise InstanceError(f"{self._version} cannot become {version}: {reason}")
            began_s = time.monotonic()
            try:
                await self._pool.swap(engine, version)
            except Exception as error:
                failure = LoadFailed(
                    f"{version} did not load in place: {shortened(f'{type(error).__name__}: {error}')}"
                )
            else:
                return self._handed_over(engine, version, time.monotonic() - began_s)
        await self.stop()
        raise failure

    def _handed_over(self, engine: VllmEngine, version: ModelVersion, seconds: float) -> VllmInstance:
        other = VllmInstance(version, self._pool)
        assert self._facts is not None, "it serves"
        other._engine, other._residency = engine, Residency.RESIDENT
        other._facts = replace(self._facts, load_s=seconds)
        self._engine, self._facts, self._residency = None, None, Residency.COLD
        return other

    async def start(self) -> LoadFacts:
        async with self._changing:
            if self._facts is None:
                began_s = time.monotonic()
                engine, joined = await self._pool.acquire(self._version)
                try:
                    await self._add_adapter(engine)
                    facts = LoadFacts(
                        load_s=time.monotonic() - began_s,
                        memory_bytes=await asyncio.to_thread(engine.memory_bytes),
                        device_memory_bytes=await asyncio.to_thread(engine.device_memory_bytes),
                        shared_engine=joined,
                    )
                except BaseException:
                    await self._give_back(engine)
                    raise
                self._engine, self._facts, self._residency = engine, facts, Residency.RESIDENT
            return self._facts

    async def _add_adapter(self, engine: VllmEngine) -> None:
        adapter = self._version.config.adapter
        if adapter is None:
            return
        folder = check_adapter(adapter).folder
        number = self._pool.next_adapter_id()
        lora = engine.vllm.lora_request(f"{self._version}#{number}", number, str(folder))
        try:
            added = await engine.told(engine.llm.add_lora(lora))
        except Exception as error:
            reason = shortened(f"{type(error).__name__}: {error}")
            raise LoadFailed(f"{self._version} did not load: its adapter was refused: {reason}") from error
        if not added:
            raise LoadFailed(f"{self._version} did not load: its adapter was refused")
        self._lora = lora

    def _started(self) -> VllmEngine:
        if self._engine is None:
            raise InstanceNotRunning(f"{self._version} is not started")
        return self._engine

    def _awake(self) -> VllmEngine:
        engine = self._started()
        if self._residency is not Residency.RESIDENT:
            raise InstanceNotRunning(f"{self._version} is {self._residency.value}; wake it first")
        return engine

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        engine = self._awake()
        # Its own name: a caller may give the same one twice, and stopping must reach exactly this request.
        name = f"{request.request_id}-{next(self._ids)}"
        stream: Any = None
        self._open.add(name)
        engine.begin_work()
        try:
            token_ids = await self._tokens(engine, request.prompt)
            stream = self._submit(engine, name, token_ids, request.sampling)
            prompt_tokens, output_tokens, index = len(token_ids), 0, 0
            async for output in stream:
                piece = output.outputs[0]
                output_tokens += len(piece.token_ids)
                reason = piece.finish_reason
                if reason == "abort":
                    raise self._stopped()
                engine.last_token_s = self._last_token_s = time.monotonic()
                yield TokenChunk(
                    index,
                    piece.text,
                    tuple(piece.token_ids),
                    output_tokens,
                    prompt_tokens,
                    None if reason is None else _REASONS.get(reason, FinishReason.STOP),
                )
                index += 1
        except (AbswitchError, GeneratorExit, asyncio.CancelledError):
            raise
        except engine.vllm.dead_error as error:
            raise InstanceDied(f"{self._version} died: {engine.death()}") from error
        except Exception as error:
            raise RequestFailed(f"{self._version}: {type(error).__name__}: {error}") from error
        finally:
            self._open.discard(name)
            engine.end_work()
            if stream is not None:
                await stream.aclose()

    def _submit(self, engine: VllmEngine, name: str, token_ids: list[int], sampling: Sampling) -> Any:
        if self._engine is not engine:
            raise self._stopped()  # while the prompt was tokenised
        params = sampling_params(engine.vllm.sampling_params, engine.vllm.delta, sampling)
        return engine.llm.generate(
            engine.vllm.tokens_input(token_ids, self._salt), params, name, lora_request=self._lora
        )

    def _stopped(self) -> InstanceNotRunning:
        return InstanceNotRunning(f"{self._version} was stopped while the request was under way")

    async def _tokens(self, engine: VllmEngine, prompt: Prompt) -> list[int]:
        tokenizer = engine.llm.get_tokenizer()
        length = len(prompt) if isinstance(prompt, str) else sum(len(message.content) for message in prompt)
        longest = getattr(tokenizer, "max_chars_per_token", None)
        if longest and isinstance(prompt, str) and length > longest * engine.max_model_len:
            raise self._too_long(f"at least {length // longest}", engine)
        if length <= _INLINE_CHARACTERS:
            token_ids = self._encode(tokenizer, prompt, engine.max_model_len)
        else:
            token_ids = await asyncio.to_thread(self._encode, tokenizer, prompt, engine.max_model_len)
        if not token_ids:
            raise InvalidInput("prompt", prompt, f"a prompt that has tokens in the vocabulary of {self._version}")
        if len(token_ids) >= engine.max_model_len:
            least = "at least " if len(token_ids) > engine.max_model_len else ""
            raise self._too_long(f"{least}{len(token_ids)}", engine)
        return token_ids

    def _encode(self, tokenizer: Any, prompt: Prompt, max_model_len: int) -> list[int]:
        text = prompt if isinstance(prompt, str) else self._rendered(tokenizer, prompt)
        # One token more than fits is enough to know that it is too long. A chat template brings its own special tokens.
        encoded = tokenizer(
            text, add_special_tokens=isinstance(prompt, str), truncation=True, max_length=max_model_len + 1
        )
        return list(encoded["input_ids"])

    def _rendered(self, tokenizer: Any, messages: tuple[ChatMessage, ...]) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise InvalidInput(
                "prompt", messages, f"a plain string, as the tokenizer of {self._version} has no chat template"
            )
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:
            raise RequestFailed(f"the chat template of {self._version} refused the messages: {error}") from error

    def _too_long(self, tokens: str, engine: VllmEngine) -> PromptTooLong:
        return PromptTooLong(
            f"the prompt has {tokens} tokens; {self._version} takes at most {engine.max_model_len - 1}, "
            f"as prompt and answer share a context of {engine.max_model_len}"
        )

    async def health(self) -> HealthFacts:
        engine = self._engine
        dead = engine is not None and engine.is_dead
        serves = engine is not None and not dead
        return HealthFacts(
            alive=serves,
            residency=self._residency if serves else Residency.COLD,
            in_flight=len(self._open),
            last_token_age_s=None if self._last_token_s is None else time.monotonic() - self._last_token_s,
            memory_bytes=await asyncio.to_thread(engine.memory_bytes) if engine is not None and serves else 0,
            error=engine.death() if engine is not None and dead else None,
        )

    async def sleep(self, level: int = 1) -> None:
        async with self._changing:
            engine = self._awake()
            self._check_may_sleep(engine, level)
            # Also where that fails: half asleep it answers nobody, and to wake it may serve memory that is gone.
            self._residency = Residency.SLEEPING if level == 1 else Residency.DISCARDED
            engine.is_asleep = True
            await engine.told(engine.llm.sleep(level=level))

    def _check_may_sleep(self, engine: VllmEngine, level: int) -> None:
        if level not in (1, 2):
            raise InvalidInput("level", level, "1 (keep the weights in host memory) or 2 (discard them)")
        if not engine.can_sleep:
            raise InstanceError(f"{self._version} cannot sleep: not available here, or enable_sleep_mode is off")
        if self._open:
            raise InstanceError(f"{self._version} has {len(self._open)} requests in flight; drain it before it sleeps")
        if self._pool.holders(engine) > 1:
            raise InstanceError(f"{self._version} shares its engine with other versions, which would sleep with it")
        if level == 2 and self._lora is not None:
            raise InstanceError(f"{self._version} has an adapter, which only sleep level 1 keeps")

    async def wake(self) -> None:
        async with self._changing:
            engine = self._started()
            llm = engine.llm
            if self._residency is Residency.DISCARDED:
                await engine.told(llm.wake_up(tags=["weights"]))
                await engine.reload_weights()
                await engine.told(llm.wake_up(tags=["kv_cache"]))
            elif self._residency is Residency.SLEEPING:
                await engine.told(llm.wake_up())
            self._residency, engine.is_asleep = Residency.RESIDENT, False

    async def stop(self) -> None:
        async with self._changing:
            engine, self._engine = self._engine, None
            self._facts, self._residency = None, Residency.COLD
            if engine is not None:
                await self._give_back(engine)

    async def _give_back(self, engine: VllmEngine) -> None:
        """Whatever the engine says to it: nobody else gives it back."""
        lora, self._lora = self._lora, None
        try:
            if not engine.is_dead and not engine.was_killed:
                await engine.llm.abort(list(self._open))
                if lora is not None and self._pool.holders(engine) > 1:
                    with suppress(InstanceDied):
                        await engine.told(engine.llm.remove_lora(lora.lora_int_id))
        finally:
            await self._pool.release(engine, self._version)

    async def kill(self, reason: str) -> None:
        if self._engine is not None:
            # First of all: whoever waits for an answer of it, a `sleep` under way too, is told now.
            self._engine.kill(reason)
        await self.stop()


@lru_cache(maxsize=512)
def sampling_params(make: Any, delta: Any, sampling: Sampling) -> Any:
    """vLLM's form of sampling parameters; vLLM copies them for each request, so equal ones are made once."""
    return make(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        ignore_eos=sampling.ignore_eos,
        output_kind=delta,
    )
