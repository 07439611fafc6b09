"""What the router costs: throughput and first-token time through `engine.stream` against bare `AsyncLLM`.

Both run on the very same vLLM engine, in alternating rounds of one run, so that a noisy machine disturbs both alike:

- bare      `AsyncLLM.generate` given the prompt's text, read on the loop it lives on
- ids       the same given token ids made beforehand: what no caller with text can reach
- engine    `engine.stream`, read on the engine's loop (as a server inside the engine would)
- notebook  `engine.stream`, read on another thread's loop (as a notebook does): every token crosses threads

The goals are set on `notebook` against `bare`, which is what users call and would call; each figure is the median over
rounds of the ratio, or difference, to the bare round beside it. `abswitch` tokenises short prompts on the loop, where
vLLM hands them to a thread; that is why it may come out faster than `bare`. The figures `to_ids_…` leave that out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from abswitch import ModelConfig, Sampling, SwitchingEngine
from abswitch.serving.vllm import VllmInstance
from abswitch.testing import tiny_models

GOALS = {"throughput_ratio": 0.98, "added_first_token_ms": 0.2}
TOKENS = 16
SAMPLING = Sampling(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
Stream = Callable[[str], AsyncIterator[Any]]


@dataclass(frozen=True)
class Round:
    """One round of one way: requests per second, and first-token times in milliseconds (each request's)."""

    requests_per_s: float
    first_token_ms: list[float]


async def measure(stream: Stream, prompts: list[str], concurrency: int) -> Round:
    """Ask every prompt, `concurrency` at a time."""
    waiting = iter(prompts)
    first_ms: list[float] = []

    async def client() -> None:
        for prompt in waiting:
            start = time.perf_counter()
            first = True
            async for _ in stream(prompt):
                if first:
                    first_ms.append((time.perf_counter() - start) * 1e3)
                    first = False

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return Round(len(prompts) / (time.perf_counter() - start), first_ms)


def bare_stream(llm: Any, form: Callable[[str], Any]) -> Stream:
    """`AsyncLLM.generate` as its own documentation calls it; `form` makes its prompt."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    ids = iter(range(sys.maxsize))
    return lambda prompt: llm.generate(form(prompt), params, f"bare-{next(ids)}")


def ways(engine: SwitchingEngine, llm: Any, prompts: list[str]) -> dict[str, Callable[[list[str], int], Any]]:
    """The ways, each as an awaitable for the caller's loop."""
    tokenizer = llm.get_tokenizer()
    known = {prompt: {"prompt_token_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts}
    bare, ids = bare_stream(llm, lambda prompt: prompt), bare_stream(llm, known.__getitem__)
    return {
        "bare": lambda prompts, n: engine.call(measure(bare, prompts, n)),
        "ids": lambda prompts, n: engine.call(measure(ids, prompts, n)),
        "engine": lambda prompts, n: engine.call(measure(engine.stream, prompts, n)),
        "notebook": lambda prompts, n: measure(engine.stream, prompts, n),
    }


async def run(rounds: int, requests: int, concurrency: int) -> dict[str, float]:
    """Alternate the ways, print a table, return the figures."""
    models = tiny_models()
    prompts = [problem.prompt for problem in models.task.problems(requests, seed=1)]
    async with SwitchingEngine(store=":memory:") as engine:
        engine.registry.register_model(
            ModelConfig(model_id="bench", model=str(models.baseline), sampling=SAMPLING), "v1"
        )
        print("starting vLLM …", flush=True)
        await engine.deploy("v1")
        instance = await engine.instance("v1")
        assert isinstance(instance, VllmInstance)
        llm = instance.async_llm
        named = ways(engine, llm, prompts)
        for way in named.values():
            await way(prompts, concurrency)  # warm-up, not counted
        loaded: dict[str, list[Round]] = {name: [] for name in named}
        single: dict[str, list[Round]] = {name: [] for name in named}
        for at in range(rounds):
            # Each round begins with another way, so that none always follows the same neighbour.
            order = list(named)[at % len(named) :] + list(named)[: at % len(named)]
            for name in order:
                loaded[name].append(await named[name](prompts, concurrency))
                single[name].append(await named[name](prompts[: requests // 10], 1))
            line = "  ".join(f"{name} {loaded[name][-1].requests_per_s:6.0f} req/s" for name in named)
            print(f"round {at + 1:2d}/{rounds}: {line}", flush=True)
    table(loaded, single, concurrency)
    return figures(loaded, single)


def table(loaded: dict[str, list[Round]], single: dict[str, list[Round]], concurrency: int) -> None:
    """Medians by way."""
    print(f"\n{'way':<10}{'req/s':>9}{f'first token ms ({concurrency} at once)':>34}{'first token ms (alone)':>26}")
    for name, rounds in loaded.items():
        rate = statistics.median(r.requests_per_s for r in rounds)
        busy = statistics.median(ms for r in rounds for ms in r.first_token_ms)
        alone = statistics.median(ms for r in single[name] for ms in r.first_token_ms)
        print(f"{name:<10}{rate:>9.0f}{busy:>34.2f}{alone:>26.3f}")


def figures(loaded: dict[str, list[Round]], single: dict[str, list[Round]]) -> dict[str, float]:
    """Ratios and differences, round by round, then their median (and the extremes of the ratio)."""
    out: dict[str, float] = {}
    for way, base, label in (
        ("notebook", "bare", ""),
        ("engine", "bare", "engine_loop_"),
        ("notebook", "ids", "to_ids_"),
        ("engine", "ids", "engine_loop_to_ids_"),
    ):
        ratios = [a.requests_per_s / b.requests_per_s for a, b in zip(loaded[way], loaded[base], strict=True)]
        out[f"{label}throughput_ratio"] = round(statistics.median(ratios), 4)
        out[f"{label}throughput_ratio_low"] = round(min(ratios), 4)
        out[f"{label}throughput_ratio_high"] = round(max(ratios), 4)
        out[f"{label}added_first_token_ms"] = added_ms(single[way], single[base])
        out[f"{label}added_first_token_busy_ms"] = added_ms(loaded[way], loaded[base])
    return out


def added_ms(way: list[Round], base: list[Round]) -> float:
    """Median over rounds of the difference between median first-token times."""
    pairs = zip(way, base, strict=True)
    return round(
        statistics.median(statistics.median(a.first_token_ms) - statistics.median(b.first_token_ms) for a, b in pairs),
        4,
    )


def main() -> None:
    """Run and print the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    measured = asyncio.run(run(options.rounds, options.requests, options.concurrency))
    met = (
        measured["throughput_ratio"] >= GOALS["throughput_ratio"]
        and measured["added_first_token_ms"] <= GOALS["added_first_token_ms"]
    )
    print(json.dumps({"benchmark": "router", "figures": measured, "goals": GOALS, "met": met}))


if __name__ == "__main__":
    main()
