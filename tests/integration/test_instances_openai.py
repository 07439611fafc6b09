"""The OpenAI-compatible instance on a real `vllm serve`."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from abswitch.domain import GenerationRequest, ModelConfig, ModelVersion, Sampling
from abswitch.errors import InstanceDied
from abswitch.serving.openai import OpenAIInstance
from abswitch.testing import TinyModels
from abswitch.testing.contract import check_instance

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

START_S = 150.0
ON_CPU = ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(64 << 20)]


class Server:
    """`vllm serve` on a free port of this machine."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._log = log
        environment = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--model", str(model), "--served-model-name", "adder", *ON_CPU],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def until_ready(self) -> None:
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline_s, self._log.read_text()[-3000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base_url}/models", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End the server and what it started, at once."""
        processes = [self._process.pid]
        try:
            processes += [child.pid for child in psutil.Process(self._process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for pid in processes:
            try:
                psutil.Process(pid).kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()


@pytest.fixture(scope="module")
def server(tiny: TinyModels) -> Iterator[Server]:
    started = Server(tiny.better, Path(tempfile.mkdtemp()) / "server.log")
    try:
        started.until_ready()
        yield started
    finally:
        started.kill()


def version_of(server: Server, model: str = "adder", **args: Any) -> ModelVersion:
    args = {"base_url": server.base_url} | args
    return ModelVersion(
        version="v1", config=ModelConfig(model_id="adder", model=model, backend="openai", engine_args=args)
    )


async def test_the_contract_holds(server: Server) -> None:
    await check_instance(
        lambda: OpenAIInstance(version_of(server)),
        make_failing=lambda: OpenAIInstance(version_of(server, model="absent")),
    )


async def test_token_counts_are_told_at_the_end(server: Server) -> None:
    instance = OpenAIInstance(version_of(server))
    await instance.start()
    sampling = Sampling(temperature=0.0, max_tokens=9, ignore_eos=True)
    request = GenerationRequest(request_id="r", prompt="12+34=", sampling=sampling)
    chunks = [chunk async for chunk in instance.generate(request)]
    assert chunks[-1].output_tokens == 9 and chunks[-1].prompt_tokens == 7
    await instance.stop()


async def test_a_server_that_is_killed_ends_every_stream(server: Server) -> None:
    """The last test: the server is gone afterwards."""
    instance = OpenAIInstance(version_of(server))
    await instance.start()
    begun = asyncio.Event()

    async def read() -> None:
        sampling = Sampling(temperature=0.0, max_tokens=200, ignore_eos=True)
        while True:
            async for _ in instance.generate(GenerationRequest(request_id="r", prompt="12+34=", sampling=sampling)):
                begun.set()

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await begun.wait()
    await asyncio.to_thread(server.kill)
    results = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 10)
    assert all(isinstance(result, InstanceDied) for result in results), results
    health = await instance.health()
    assert not health.alive and health.error
    await instance.stop()
