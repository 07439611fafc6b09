"""Shared by benchmarks/switch.py: engines with versions, load at a steady rate, and a checkpoint of any size."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from abswitch import ModelConfig, Sampling, SwitchingEngine

SAMPLING = Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)
ENGINE_ARGS = {"max_model_len": 256, "kv_cache_memory_bytes": 64 << 20}


def register(
    engine: SwitchingEngine, model_id: str, engine_args: Mapping[str, Any] = MappingProxyType({}), /, **folders: Path
) -> None:
    args = ENGINE_ARGS | dict(engine_args)
    for version, folder in folders.items():
        config = ModelConfig(model_id=model_id, model=str(folder), sampling=SAMPLING, engine_args=args)
        engine.registry.register_model(config, version)


async def first_token_s(engine: SwitchingEngine, model_id: str, version: str) -> float:
    """Ask until the version answers; the moment of its first token, on the clock of `time.perf_counter`."""
    while True:
        async for _ in engine.stream("12+34=", model_id=model_id, max_tokens=1):
            seen_s = time.perf_counter()
        row = await engine.generate("12+34=", model_id=model_id, max_tokens=1)
        if row.served_version == version:
            return seen_s


async def load(engine: SwitchingEngine, prompts: Sequence[str], rate_per_s: float, duration_s: float) -> list[float]:
    """Poisson arrivals for a while; the latency of each request, in seconds."""
    chance = random.Random(7)
    taken: list[float] = []

    async def ask(prompt: str) -> None:
        began_s = time.perf_counter()
        await engine.generate(prompt, model_id="tiny")
        taken.append(time.perf_counter() - began_s)

    tasks: list[asyncio.Task[None]] = []
    now_s = time.perf_counter()
    end_s, due_s = now_s + duration_s, now_s
    while due_s < end_s:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(prompts[len(tasks) % len(prompts)])))
        due_s += chance.expovariate(rate_per_s)
    await asyncio.gather(*tasks)
    return taken


async def capacity_per_s(engine: SwitchingEngine, prompts: Sequence[str], concurrency: int = 32) -> float:
    """Requests a second with `concurrency` at once."""
    waiting = iter(list(prompts) * 3)

    async def client() -> None:
        for prompt in waiting:
            await engine.generate(prompt, model_id="tiny")

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return 3 * len(prompts) / (time.perf_counter() - began_s)


def p(values: Sequence[float], share: float) -> float:
    """An order statistic: the smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def bootstrap_ratio(
    windows: Sequence[tuple[Sequence[float], Sequence[float]]], rounds: int = 2000
) -> tuple[float, ...]:
    """Ratio of p95 between (transition, steady) windows, all pooled, with its 95 % interval; windows are resampled."""
    chance = random.Random(11)

    def ratio(chosen: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
        return p([v for a, _ in chosen for v in a], 0.95) / p([v for _, b in chosen for v in b], 0.95)

    drawn = sorted(ratio([chance.choice(windows) for _ in windows]) for _ in range(rounds))
    return ratio(windows), drawn[int(0.025 * rounds)], drawn[int(0.975 * rounds)]


def checkpoint(folder: Path, tiny: Path, *, seed: int, millions: int) -> Path:
    """A Llama of random weights with about that many million parameters, and the tiny models' tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig.from_pretrained(tiny)
    hidden, layers = (1024, 24) if millions >= 300 else (512, 8)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=small.vocab_size,
        hidden_size=hidden,
        intermediate_size=4 * hidden if millions < 300 else 3456,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=small.bos_token_id,
        eos_token_id=small.eos_token_id,
        pad_token_id=small.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    for file in tiny.iterdir():
        if "token" in file.name and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)
    return folder


class LoopGap:
    """The longest time the caller's event loop did not tick, in milliseconds."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LoopGap:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: Any) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _watch(self) -> None:
        last_s = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now_s = time.perf_counter()
            self.longest_ms = max(self.longest_ms, (now_s - last_s - 0.001) * 1e3)
            last_s = now_s


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
