"""A kernel that is killed takes its engines along: while they serve, and while they are being started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from abswitch.serving.reaper import marked
from abswitch.testing import TinyModels

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

GONE_WITHIN_S = 10.0
START_S = 120.0

KERNEL = """
import asyncio, signal, sys
from abswitch.domain import GenerationRequest, ModelConfig, ModelVersion, Sampling
from abswitch.serving.vllm import VllmEnginePool, VllmInstance

signal.signal(signal.SIGINT, lambda *_: None)  # as a notebook kernel, which survives an interrupted cell

async def ask(instance):
    sampling = Sampling(temperature=0.0, max_tokens=100, ignore_eos=True)
    request = GenerationRequest(request_id="r", prompt="12+34=", sampling=sampling)
    async for chunk in instance.generate(request):
        pass
    return chunk.output_tokens

async def main():
    version = ModelVersion(version="v1", config=ModelConfig(model_id="m", model=sys.argv[1]))
    instance = VllmInstance(version, VllmEnginePool())
    print("starting", flush=True)
    await instance.start()
    print("serving", flush=True)
    while True:
        tokens = await ask(instance)
        if await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
            print(tokens, flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


class Kernel:
    """A process that stands for a notebook kernel; its engines are known by their marker."""

    def __init__(self, script: str, model: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, script, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def engines(self) -> list[psutil.Process]:
        return marked(lambda marker: marker.pid == self.pid)

    def until_said(self, word: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"the kernel ended before it said {word!r}")

    def ask(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        self.until_said("100")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def kernel(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    script = tmp_path_factory.mktemp("kernel") / "kernel.py"
    script.write_text(KERNEL)
    started = Kernel(str(script), str(tiny.baseline))
    yield started
    left = started.engines()
    started.close()
    for process in left:
        process.kill()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)


def assert_nothing_survives(kernel: Kernel, engines: list[psutil.Process]) -> None:
    kernel.kill()
    wait_until(lambda: not kernel.engines(), "every engine of a killed kernel ends", GONE_WITHIN_S)
    # Also those whose marker could not be read any more.
    wait_until(lambda: not any(is_running(engine) for engine in engines), "the engines seen before", GONE_WITHIN_S)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_killed_while_it_serves_and_not_by_an_interrupt(kernel: Kernel) -> None:
    kernel.until_said("serving")
    kernel.ask()
    engines = kernel.engines()
    assert engines
    os.killpg(kernel.pid, signal.SIGINT)
    kernel.ask()
    assert {engine.pid for engine in kernel.engines()} == {engine.pid for engine in engines}, (
        "an interrupt ends no engine"
    )
    assert_nothing_survives(kernel, engines)


@pytest.mark.parametrize("resident_bytes", [0, 300 << 20], ids=["when-the-engine-appears", "while-it-imports"])
def test_killed_during_the_start(kernel: Kernel, resident_bytes: int) -> None:
    kernel.until_said("starting")
    wait_until(
        lambda: any(engine.memory_info().rss > resident_bytes for engine in kernel.engines()), "a start", START_S
    )
    assert_nothing_survives(kernel, kernel.engines())
