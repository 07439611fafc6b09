"""`OpenAIInstance`: a version on any OpenAI-compatible server (`vllm serve`, llama.cpp, a hosted one).

    ModelConfig(model_id="support-bot", model="served-name", backend="openai",
                engine_args={"base_url": "http://127.0.0.1:8000/v1"})

The server is somebody else's: it is asked, never started or stopped.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import time
from collections.abc import AsyncGenerator, Hashable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from abswitch import checks
from abswitch.domain import (
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
    InstanceDied,
    InstanceError,
    InstanceNotRunning,
    InvalidInput,
    LoadFailed,
    PromptTooLong,
    RequestFailed,
)
from abswitch.serving.instance import ModelInstance
from abswitch.serving.policy import Footprint

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}
_TOO_LONG = re.compile(r"context.{0,20}(length|size|window)|prompt is too long|maximum model length", re.IGNORECASE)
_TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error", "input_tokens", "input_text")
_GONE = ("EngineCore", "EngineDead")
_GONE_STATUS = (502, 503, 504)
_HEALTH_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerArgs:
    """What `engine_args` may hold for the backend `openai`.

    Args:
        base_url: the server's address up to and including `/v1`.
        api_key: its key; better named by `api_key_env`, as versions are written to the store.
        api_key_env: the environment variable that holds the key.
        plain_prompts: `completion` sends text to `/completions`; `chat` as one user message to `/chat/completions`, for
            servers that have nothing else.
        timeout_s: longest wait for a connection, and for the next piece of an answer; above 0.
        max_retries: how often the client repeats a request that was not answered; 0, so that nothing is asked twice.
        default_headers: sent with every request.

    Raises:
        InvalidInput: a field is missing, unknown or outside its range.
    """

    base_url: str
    api_key: str | None = None
    api_key_env: str | None = None
    plain_prompts: str = "completion"
    timeout_s: float = 60.0
    max_retries: int = 0
    default_headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        where = "model_config.engine_args"
        if not isinstance(self.base_url, str) or not re.match(r"https?://[^/\s]+", self.base_url):
            raise InvalidInput(f"{where}.base_url", self.base_url, "an address such as http://127.0.0.1:8000/v1")
        for label in ("api_key", "api_key_env"):
            value = getattr(self, label)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidInput(f"{where}.{label}", "…", "a non-empty string, or None")
        checks.one_of(f"{where}.plain_prompts", self.plain_prompts, ("completion", "chat"))
        checks.number(f"{where}.timeout_s", self.timeout_s, low=0.0, above=True)
        checks.integer(f"{where}.max_retries", self.max_retries, low=0)
        if self.default_headers is not None and not isinstance(self.default_headers, Mapping):
            raise InvalidInput(f"{where}.default_headers", self.default_headers, "a dictionary of strings, or None")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ServerArgs:
        """Accept a dictionary of the fields."""
        checks.known_fields("model_config.engine_args", given, (f.name for f in fields(cls)))
        if "base_url" not in given:
            raise InvalidInput("model_config.engine_args.base_url", None, "the server's address; it is required")
        return cls(**given)

    def key(self) -> str:
        """The key to send; servers without keys accept any.

        Raises:
            InvalidInput: the variable that should hold it is not set.
        """
        if self.api_key_env is None:
            return self.api_key or "none"
        if not os.environ.get(self.api_key_env):
            raise InvalidInput("model_config.engine_args.api_key_env", self.api_key_env, "a variable that is set")
        return os.environ[self.api_key_env]


class OpenAIInstance:
    """A `ModelInstance` whose engine is a server somewhere."""

    def __init__(self, version: ModelVersion) -> None:
        self._version = version
        self._client: Any = None
        self._args: ServerArgs | None = None
        self._facts: LoadFacts | None = None
        self._in_flight = 0
        self._last_token_s: float | None = None
        self._killed_for: str | None = None

    @property
    def version(self) -> ModelVersion:
        return self._version

    @property
    def can_sleep(self) -> bool:
        return False

    @property
    def engine_key(self) -> Hashable:
        return id(self)

    async def needs(self) -> Footprint:
        return Footprint()  # its memory is on another machine, or another's business

    async def engine_to_join(self) -> Hashable | None:
        return None

    async def memory(self) -> Footprint:
        return Footprint()

    async def why_not_in_place(self, version: ModelVersion) -> str | None:  # noqa: ARG002 (of the protocol)
        return "it runs on a server whose weights are not ours to change"

    async def become(self, version: ModelVersion) -> ModelInstance:
        raise InstanceError(f"{self._version} cannot become {version}: {await self.why_not_in_place(version)}")

    @property
    def last_token_s(self) -> float | None:
        return self._last_token_s

    async def start(self) -> LoadFacts:
        if self._facts is not None:
            return self._facts
        began_s = time.monotonic()
        args = ServerArgs.of(self._version.config.engine_args)
        client = await asyncio.to_thread(_client, args)
        try:
            served = await self._served(client, args)
        except BaseException:
            await client.close()
            raise
        if self._version.config.model not in served:
            await client.close()
            names = ", ".join(served) or "nothing"
            raise LoadFailed(f"{self._version}: {args.base_url} serves {names}, not {self._version.config.model!r}")
        self._client, self._args, self._killed_for = client, args, None
        self._facts = LoadFacts(load_s=time.monotonic() - began_s)
        return self._facts

    async def _served(self, client: Any, args: ServerArgs) -> list[str]:
        try:
            return sorted([model.id async for model in client.models.list()])
        except Exception as error:
            raise LoadFailed(
                f"{self._version}: {args.base_url} does not tell what it serves: {_words(error)}"
            ) from error

    def _running(self) -> Any:
        if self._client is None:
            raise InstanceNotRunning(f"{self._version} is not started")
        return self._client

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        client = self._running()
        self._in_flight += 1
        stream: Any = None
        try:
            stream = await self._send(client, request)
            answer = _Answer()
            async for event in stream:
                chunk = answer.take(event)
                if chunk is not None:
                    self._last_token_s = time.monotonic()
                    yield chunk
            self._last_token_s = time.monotonic()
            yield answer.last(self._version)
        except (GeneratorExit, asyncio.CancelledError, InstanceError):
            raise
        except Exception as error:
            raise self._translated(error, client) from error
        finally:
            self._in_flight -= 1
            if stream is not None:
                await stream.close()

    async def _send(self, client: Any, request: GenerationRequest) -> Any:
        assert self._args is not None, "set together with the client"
        common = {
            "model": self._version.config.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **sampling_fields(request.sampling),
        }
        messages = _messages(request.prompt, self._args.plain_prompts == "chat")
        if messages is None:
            return await client.completions.create(prompt=request.prompt, **common)
        return await client.chat.completions.create(messages=messages, **common)

    def _translated(self, error: Exception, client: Any) -> Exception:
        """What happened, in this project's terms."""
        if self._killed_for is not None:
            return InstanceDied(f"{self._version}: {self._killed_for}")
        if self._client is not client:
            return InstanceNotRunning(f"{self._version} was stopped while the request was under way")
        openai = importlib.import_module("openai")
        if isinstance(error, openai.APITimeoutError) or _is_transport(error, "TimeoutException"):
            return RequestFailed(f"{self._version}: no answer for {self._args.timeout_s if self._args else 0:g} s")
        if isinstance(error, openai.APIConnectionError | OSError) or _is_transport(error, "HTTPError"):
            return InstanceDied(f"{self._version}: the server went away: {_words(error)}")
        if isinstance(error, openai.APIError):
            return self._refusal(error)
        return RequestFailed(f"{self._version}: {_words(error)}")

    def _refusal(self, error: Any) -> Exception:
        message = f"{self._version}: {_words(error)}"
        status = getattr(error, "status_code", None)
        told = (error.code, error.param, error.type)
        if status in (None, 400, 413, 422) and (
            any(word in _TOO_LONG_CODES for word in told) or _TOO_LONG.search(error.message)
        ):
            return PromptTooLong(message)
        gone = status in _GONE_STATUS or any(word in error.message for word in _GONE)
        return InstanceDied(message) if gone else RequestFailed(message)

    async def health(self) -> HealthFacts:
        error = await self._trouble() if self._client is not None else None
        alive = self._client is not None and error is None
        return HealthFacts(
            alive=alive,
            residency=Residency.RESIDENT if alive else Residency.COLD,
            in_flight=self._in_flight,
            last_token_age_s=None if self._last_token_s is None else time.monotonic() - self._last_token_s,
            error=error,
        )

    async def _trouble(self) -> str | None:
        try:
            await self._client.with_options(timeout=_HEALTH_TIMEOUT_S).models.list()
        except Exception as error:
            return f"the server does not answer: {_words(error)}"
        return None

    async def sleep(self, level: int = 1) -> None:
        raise InstanceError(f"{self._version} runs on a server that is not ours to put to sleep (level {level})")

    async def wake(self) -> None:
        raise InstanceError(f"{self._version} runs on a server that is not ours to wake")

    async def stop(self) -> None:
        client, self._client, self._facts = self._client, None, None
        if client is not None:
            await client.close()

    async def kill(self, reason: str) -> None:
        self._killed_for = reason
        await self.stop()


class _Answer:
    """The events of one answer on their way to chunks. Its end is held back until the server told the token counts."""

    def __init__(self) -> None:
        self._index = 0
        self._output_tokens = 0
        self._tail = ""
        self._reason: str | None = None
        self._usage: Any = None

    def take(self, event: Any) -> TokenChunk | None:
        """The chunk that an event makes, if any."""
        if event.usage is not None:
            self._usage = event.usage
        if not event.choices:
            return None
        choice = event.choices[0]
        text = (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
        self._output_tokens += bool(text)
        if choice.finish_reason is not None or self._reason is not None:
            self._reason = choice.finish_reason or self._reason
            self._tail += text
            return None
        if not text:
            return None
        chunk = TokenChunk(self._index, text, (), self._output_tokens, None, None)
        self._index += 1
        return chunk

    def last(self, version: ModelVersion) -> TokenChunk:
        """The last chunk.

        Raises:
            InstanceDied: the server ended the stream before the answer was over.
        """
        if self._reason is None:
            raise InstanceDied(f"{version}: the server ended the stream before the answer was over")
        usage = self._usage
        return TokenChunk(
            self._index,
            self._tail,
            (),
            self._output_tokens if usage is None else usage.completion_tokens,
            None if usage is None else usage.prompt_tokens,
            _REASONS.get(self._reason, FinishReason.STOP),
        )


def _client(args: ServerArgs) -> Any:
    """The client; its import takes a second."""
    openai = importlib.import_module("openai")
    return openai.AsyncOpenAI(
        base_url=args.base_url,
        api_key=args.key(),
        timeout=args.timeout_s,
        max_retries=args.max_retries,
        default_headers=dict(args.default_headers) if args.default_headers else None,
    )


def _is_transport(error: Exception, name: str) -> bool:
    """Whether the error is one of the HTTP library's own, which some releases of the client let through."""
    return any(kind.__name__ == name and kind.__module__.startswith("httpx") for kind in type(error).__mro__)


def _messages(prompt: Prompt, as_chat: bool) -> list[dict[str, str]] | None:
    """The chat messages to send, or None for a completion."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if as_chat else None
    return [{"role": message.role, "content": message.content} for message in prompt]


@lru_cache(maxsize=512)
def sampling_fields(sampling: Sampling) -> Mapping[str, Any]:
    """The request's fields; what the OpenAI API does not know is sent only where it differs from its default."""
    known: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if sampling.stop:
        known["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        known["seed"] = sampling.seed
    neutral = Sampling()
    beyond = {
        label: getattr(sampling, label)
        for label in ("top_k", "repetition_penalty", "ignore_eos")
        if getattr(sampling, label) != getattr(neutral, label)
    }
    return known | ({"extra_body": beyond} if beyond else {})


def _words(error: Exception) -> str:
    """The innermost reason in one line; the client's own `Connection error.` says nothing."""
    inner: BaseException = error
    while type(inner).__name__ == "APIConnectionError" and inner.__cause__ is not None:
        inner = inner.__cause__
    return f"{type(inner).__name__}: {' '.join(str(inner).split())[:600]}"
