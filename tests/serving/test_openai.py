"""What the OpenAI-compatible backend refuses, sends, and makes of a stream; real servers have tests of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from abswitch.domain import (
    ChatMessage,
    FinishReason,
    GenerationRequest,
    ModelConfig,
    ModelVersion,
    Prompt,
    Sampling,
    TokenChunk,
)
from abswitch.errors import InstanceDied, InstanceError, InvalidInput, LoadFailed, PromptTooLong, RequestFailed
from abswitch.serving.openai import OpenAIInstance, ServerArgs, sampling_fields
from abswitch.testing.contract import check_kill
from tests.patience import PATIENCE_S

Reply = Callable[[str, dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


def version_of(base_url: str, model: str = "served", **args: Any) -> ModelVersion:
    config = ModelConfig(model_id="m", model=model, backend="openai", engine_args={"base_url": base_url} | args)
    return ModelVersion(version="v1", config=config)


def request(prompt: Prompt = "hello", **sampling: Any) -> GenerationRequest:
    return GenerationRequest(request_id="r", prompt=prompt, sampling=Sampling().merged(sampling))


async def send(writer: asyncio.StreamWriter, status: str, body: str, kind: str = "application/json") -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{body}".encode())
    await writer.drain()


def events(*pieces: Any) -> str:
    return "".join(f"data: {piece if isinstance(piece, str) else json.dumps(piece)}\n\n" for piece in pieces)


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"id": "1", "object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason}]}


USAGE = {"id": "1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}}


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[str]:
    """A server of one's own making, for what a healthy one never does."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError, asyncio.IncompleteReadError):  # hung up without a word
            await answer(reader, writer)
        writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].split("\r\n")[0] or 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        path = head.split()[1]
        if path == "/v1/models":
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in ("served", "other")]
            await send(writer, "200 OK", json.dumps({"object": "list", "data": models}))
        else:
            await reply(path, body, writer)

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"


@asynccontextmanager
async def running(reply: Reply, **args: Any) -> AsyncIterator[OpenAIInstance]:
    async with server(reply) as base_url:
        instance = OpenAIInstance(version_of(base_url, **args))
        await instance.start()
        yield instance
        await instance.stop()


async def chunks_of(instance: OpenAIInstance, prompt: Prompt = "hello", **sampling: Any) -> list[TokenChunk]:
    return [chunk async for chunk in instance.generate(request(prompt, **sampling))]


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({}, "base_url"),
        ({"base_url": "127.0.0.1:8000"}, "base_url"),
        ({"base_url": 8000}, "base_url"),
        ({"base_url": "http://x", "tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"base_url": "http://x", "timeout_s": 0}, "timeout_s"),
        ({"base_url": "http://x", "timeout_s": float("nan")}, "timeout_s"),
        ({"base_url": "http://x", "max_retries": -1}, "max_retries"),
        ({"base_url": "http://x", "api_key": ""}, "api_key"),
        ({"base_url": "http://x", "plain_prompts": "text"}, "plain_prompts"),
        ({"base_url": "http://x", "default_headers": "x"}, "default_headers"),
    ],
)
def test_bad_arguments_are_named(args: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ServerArgs.of(args)
    assert caught.value.field == f"model_config.engine_args.{field}"


def test_a_key_comes_from_the_environment_and_never_into_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    args = ServerArgs.of({"base_url": "http://x", "api_key_env": "THE_KEY"})
    monkeypatch.delenv("THE_KEY", raising=False)
    with pytest.raises(InvalidInput, match="THE_KEY"):
        args.key()
    monkeypatch.setenv("THE_KEY", "secret")
    assert args.key() == "secret"
    with pytest.raises(InvalidInput) as caught:
        ServerArgs.of({"base_url": "http://x", "api_key": ["secret"]})
    assert "secret" not in str(caught.value)


def test_only_what_differs_goes_beyond_the_api() -> None:
    assert set(sampling_fields(Sampling())) == {
        "temperature", "top_p", "max_tokens", "presence_penalty", "frequency_penalty",
    }  # fmt: skip
    fields = sampling_fields(Sampling(top_k=5, ignore_eos=True, seed=0, stop=("x",)))
    assert fields["extra_body"] == {"top_k": 5, "ignore_eos": True}
    assert fields["seed"] == 0 and fields["stop"] == ["x"]


async def test_nobody_answers() -> None:
    async with server(_never) as base_url:
        pass
    with pytest.raises(LoadFailed, match=r"does not tell what it serves: ConnectError"):
        await OpenAIInstance(version_of(base_url)).start()


async def test_the_server_serves_something_else() -> None:
    async with server(_never) as base_url:
        instance = OpenAIInstance(version_of(base_url, model="absent"))
        with pytest.raises(LoadFailed, match=r"serves other, served, not 'absent'"):
            await instance.start()
        assert not (await instance.health()).alive


async def _never(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    raise AssertionError(f"nobody asked for {path}")


async def test_the_token_counts_at_the_end_are_the_servers() -> None:
    async def reply(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        assert path == "/v1/completions" and body["stream_options"] == {"include_usage": True}
        told = events(piece("a"), piece(""), piece("bc"), piece("d", "length"), USAGE, "[DONE]")
        await send(writer, "200 OK", told, "text/event-stream")

    async with running(reply) as instance:
        assert await chunks_of(instance) == [
            TokenChunk(0, "a", (), 1, None, None),
            TokenChunk(1, "bc", (), 2, None, None),
            TokenChunk(2, "d", (), 7, 3, FinishReason.LENGTH),
        ]


@pytest.mark.parametrize("prompt", ["hello", (ChatMessage("user", "hello"),)])
async def test_plain_prompts_can_go_to_the_chat_api(prompt: Prompt) -> None:
    async def reply(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        assert path == "/v1/chat/completions"
        assert body["messages"] == [{"role": "user", "content": "hello"}]
        first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        second = {"index": 0, "delta": {"content": "hi"}, "finish_reason": None}
        third = {"index": 0, "delta": {}, "finish_reason": "stop"}
        told = [{"id": "1", "choices": [choice]} for choice in (first, second, third)]
        await send(writer, "200 OK", events(*told, "[DONE]"), "text/event-stream")

    async with running(reply, plain_prompts="chat") as instance:
        assert await chunks_of(instance, prompt) == [
            TokenChunk(0, "hi", (), 1, None, None),
            TokenChunk(1, "", (), 1, None, FinishReason.STOP),
        ]


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        ("400 Bad Request", {"message": "This model's maximum context length is 8 tokens."}, PromptTooLong),
        ("400 Bad Request", {"message": "no", "code": "context_length_exceeded"}, PromptTooLong),
        ("400 Bad Request", {"message": "exceeds the available context size"}, PromptTooLong),
        ("400 Bad Request", {"message": "temperature is wrong"}, RequestFailed),
        ("401 Unauthorized", {"message": "who are you"}, RequestFailed),
        ("429 Too Many Requests", {"message": "later"}, RequestFailed),
        ("500 Internal Server Error", {"message": "oops"}, RequestFailed),
        ("500 Internal Server Error", {"message": "EngineCore encountered an issue"}, InstanceDied),
        ("503 Service Unavailable", {"message": "gone"}, InstanceDied),
    ],
)
async def test_refusals(status: str, error: dict[str, Any], kind: type[Exception]) -> None:
    async def reply(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await send(writer, status, json.dumps({"error": error}))

    async with running(reply) as instance:
        with pytest.raises((RequestFailed, InstanceError), match=error["message"]) as caught:
            await chunks_of(instance)
        assert type(caught.value) is kind
        assert (await instance.health()).in_flight == 0


@pytest.mark.parametrize(
    "told",
    [
        events(piece("a")),
        events(piece("a"), "[DONE]"),
        events(piece("a"), {"error": {"message": "EngineCore encountered an issue", "code": 500}}, "[DONE]"),
    ],
)
async def test_a_stream_that_breaks_off_is_a_death(told: str) -> None:
    async def reply(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await send(writer, "200 OK", told, "text/event-stream")

    async with running(reply) as instance:
        stream = instance.generate(request())
        assert (await anext(stream)).text == "a"
        with pytest.raises(InstanceDied):
            await anext(stream)


async def test_a_silent_server_is_a_failed_request_not_a_death() -> None:
    released = asyncio.Event()

    async def reply(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await send(writer, "200 OK", events(piece("a")), "text/event-stream")
        await released.wait()

    async with running(reply, timeout_s=0.05) as instance:
        with pytest.raises(RequestFailed, match=r"no answer for 0\.05 s"):
            await chunks_of(instance)
        released.set()


async def test_closing_a_stream_hangs_up() -> None:
    hung_up = asyncio.Event()

    async def reply(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await send(writer, "200 OK", events(piece("a")), "text/event-stream")
        try:
            while True:
                writer.write(events(piece("b")).encode())
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            hung_up.set()

    async with running(reply) as instance:
        stream = instance.generate(request())
        await anext(stream)
        assert (await instance.health()).in_flight == 1
        await stream.aclose()
        await asyncio.wait_for(hung_up.wait(), PATIENCE_S)
        assert (await instance.health()).in_flight == 0


async def test_killing_ends_a_stream_whose_server_is_silent() -> None:
    async def stall(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + events(piece("a")).encode())
        await writer.drain()
        await asyncio.sleep(3600)

    async with server(stall) as base_url:
        await check_kill(lambda: OpenAIInstance(version_of(base_url)), ends_s=PATIENCE_S / 2, timeout_s=PATIENCE_S)
