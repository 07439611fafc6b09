"""What a switch costs on real vLLM, from the decision to the first token of the new version.

- flip          promotion of a resident candidate: from the call to the moment new requests are admitted to it; before
                that, the move is written and synced to the disk. Beside it a bare write and sync of as many bytes, the
                same flip (scripted instances) with its store in memory, one at once after the start ("busy"), while
                that is still being written to the store, and some Python of about that length ("python"), after the
                same pause ("paused") and without: what a machine takes to come back from idling
- transitions   p95 latency while an immediate, gradual or canary switch runs, against steady windows beside it, at half
                load: half of what one engine takes alone, or two at a split of 50 % where that is less, as on a CPU an
                engine has only its group of the cores. Beside it steady windows at such a split: what two engines at
                work cost without any transition. At 34 M parameters, where an engine computes most of
                the time; and at 0.3 M (tiny), where a step of vLLM is its own Python, and this process, the third that
                never rests, takes a good part of the two cores from the engines
- cold          a switch to a version that must be loaded, against the start of a bare `AsyncLLM`
- in place      the same by putting its weights into the running engine, against stop and start, at 350 M parameters:
                of engines as vLLM starts them by itself, and of ours, which on a CPU start in half the time
- memory        of this process per cached version, apart from the engines
- loop          the longest gap of the caller's event loop while an engine starts
- router        one decision of the router
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
from _switching import (
    LoopGap,
    bootstrap_ratio,
    capacity_per_s,
    checkpoint,
    first_token_s,
    load,
    median,
    p,
    register,
)

from abswitch import ModelConfig, SwitchingEngine
from abswitch.serving.scripted import ScriptedBackend
from abswitch.testing import TinyModels, tiny_models

T = TypeVar("T")
GOALS = {
    "flip_p99_ms": 1.0,
    "added_p95_immediate": 0.05,
    "added_p95_gradual": 0.05,
    "added_p95_canary": 0.05,
    "own_memory_per_version_mb": 50.0,
    "own_memory_share": 0.1,
    "cold_ratio": 1.1,
    "in_place_speedup": 15.0,
    "router_p99_us": 50.0,
    "loop_gap_ms": 100.0,
}
_AT_LEAST = {"in_place_speedup"}
_REST_S = 1.0
"""Before a window of load, so that none begins while the one before it is still being written to the store."""
_IN_MEMORY = next(filter(os.path.isdir, ["/dev/shm"]), None)  # a file system in memory is what is asked for

_BARE = """
import asyncio, sys, time
from vllm import AsyncEngineArgs, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
async def main():
    began = time.perf_counter()
    args = dict(max_model_len=256, kv_cache_memory_bytes=64 << 20, dtype="float32", enforce_eager=True, block_size=32,
                disable_log_stats=True)
    llm = await asyncio.to_thread(AsyncLLM.from_engine_args, AsyncEngineArgs(model=sys.argv[1], **args))
    async for _ in llm.generate("12+34=", SamplingParams(max_tokens=1), "r"):
        break
    print("TOOK", time.perf_counter() - began, flush=True)
    llm.shutdown()
if __name__ == "__main__":
    asyncio.run(main())
"""


def say(words: str) -> None:
    print(words, flush=True)


async def flips(engine: SwitchingEngine, rounds: int, settle_s: float = 0.1) -> dict[str, float]:
    """Promotions back and forth between two resident versions, a moment after the candidate came to serve."""
    took_ms = []
    router = engine._parts.router
    for turn in range(rounds):
        target = "v2" if engine.registry.active_version("tiny") == "v1" else "v1"
        handle = await engine.start_switch(target, "ab_test", {"traffic_percentage": 1}, model_id="tiny")
        await handle.serving()
        await asyncio.sleep(settle_s)

        async def flip(handle: Any = handle, target: str = target) -> float:
            """On the engine's loop, where requests are admitted: call, then look what the next one would meet."""
            from abswitch.rollout.operation import Conclude

            before = router.current("tiny")
            began_s = time.perf_counter()
            told = asyncio.ensure_future(
                engine.switcher.tell(handle.operation_id, Conclude(promote=True, reason="benchmark"))
            )
            # Every turn of the loop, as an event would be seen a turn later than an admission is.
            while router.current("tiny") is before:  # noqa: ASYNC110
                await asyncio.sleep(0)
            flipped_s = time.perf_counter()
            assert router.snapshots["tiny"].choose("somebody").version == target
            await told
            return (flipped_s - began_s) * 1e3

        took_ms.append(await engine.call(flip()))
        await handle.done()
        if (turn + 1) % 50 == 0:
            say(f"  flip {turn + 1}/{rounds}: median {median(took_ms):.3f} ms")
    return {"flip_median_ms": median(took_ms), "flip_p99_ms": p(took_ms, 0.99)}


def bare_syncs(folder: Path, rounds: int) -> dict[str, float]:
    """What the disk itself takes to keep 400 bytes."""
    took_ms = []
    with (folder / "sync.bin").open("ab", buffering=0) as file:
        for _ in range(rounds):
            began_s = time.perf_counter()
            file.write(b"x" * 400)
            os.fdatasync(file.fileno())
            took_ms.append((time.perf_counter() - began_s) * 1e3)
    return {"sync_median_ms": median(took_ms), "sync_p99_ms": p(took_ms, 0.99)}


async def bare_pauses(rounds: int, pause_s: float = 0.1) -> dict[str, float]:
    """What the machine itself takes for some Python, about as much as a flip is, after the pause that a flip has before
    it, and again and again."""
    some = {"numbers": list(range(50)), "texts": {str(n): n for n in range(50)}}

    def compute_ms() -> float:
        began_s = time.perf_counter()
        for _ in range(8):
            json.loads(json.dumps(some))
        return (time.perf_counter() - began_s) * 1e3

    after_a_pause = []
    for _ in range(rounds):
        await asyncio.sleep(pause_s)
        after_a_pause.append(compute_ms())
    at_once = [compute_ms() for _ in range(rounds)]
    return {
        "python_median_ms": median(at_once),
        "python_p99_ms": p(at_once, 0.99),
        "python_median_ms_paused": median(after_a_pause),
        "python_p99_ms_paused": p(after_a_pause, 0.99),
    }


async def flips_in_memory(rounds: int) -> dict[str, float]:
    """Flips where syncing costs nothing."""
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY) as folder:
        backends = {"scripted": ScriptedBackend()}
        async with SwitchingEngine(store=Path(folder) / "evidence.duckdb", backends=backends) as engine:
            for version in ("v1", "v2"):
                config = ModelConfig(model_id="tiny", model="scripted", backend="scripted")
                engine.registry.register_model(config, version)
            await engine.deploy("v1")
            return {f"{name}_in_memory": value for name, value in (await flips(engine, rounds)).items()}


async def transitions(
    engine: SwitchingEngine, models: TinyModels, windows: int, window_s: float, at: str = ""
) -> dict[str, float]:
    """Windows with a switch in their middle, each beside a steady one, at half load; `at` ends the figures' names."""
    prompts = [problem.prompt for problem in models.task.problems(200, seed=4)]

    def other() -> str:
        return "v2" if engine.registry.active_version("tiny") == "v1" else "v1"

    async def split(load_it: Callable[[], Awaitable[T]]) -> T:
        handle = await engine.start_switch(other(), "ab_test", {"traffic_percentage": 50}, model_id="tiny")
        await handle.serving()
        seen = await load_it()
        await handle.keep()
        return seen

    async def steadily() -> list[float]:
        await asyncio.sleep(_REST_S)
        return await load(engine, prompts, rate, window_s)

    alone = await capacity_per_s(engine, prompts)
    together = await split(lambda: capacity_per_s(engine, prompts))
    rate = 0.5 * min(alone, together)
    say(f"  one engine takes {alone:.0f} requests/s, two {together:.0f}; load: {rate:.0f}")
    found: dict[str, float] = {
        f"capacity_alone_per_s{at}": alone,
        f"capacity_split_per_s{at}": together,
        f"load_per_s{at}": rate,
    }
    kinds: dict[str, dict[str, Any]] = {
        "immediate": {},
        "gradual": {"duration_minutes": 0.8 * window_s / 60, "steps": 3},
        "canary": {"initial_percentage": 20, "step_percentage": 40, "evaluation_period_minutes": 0.3 * window_s / 60,
                   "min_requests": 5},
    }  # fmt: skip
    pairs: dict[str, list[tuple[list[float], list[float]]]] = {kind: [] for kind in kinds}
    splits: list[list[float]] = []
    for window in range(windows):
        for kind, config in kinds.items():

            async def switched(kind: str = kind, config: dict[str, Any] = config) -> list[float]:
                await asyncio.sleep(_REST_S)
                under_load = asyncio.create_task(load(engine, prompts, rate, window_s))
                await asyncio.sleep(0.1 * window_s)
                handle = await engine.start_switch(other(), kind, config, model_id="tiny")
                latencies = await under_load
                if handle.status.phase == "evaluating":
                    await handle.promote()
                await handle.done()
                return latencies

            if window % 2:
                moved, steady = await switched(), await steadily()
            else:
                steady, moved = await steadily(), await switched()
            pairs[kind].append((moved, steady))
        splits.append(await split(steadily))
        say(f"  window {window + 1}/{windows}: " + ", ".join(
            f"{kind} p95 {1e3 * p(pairs[kind][-1][0], 0.95):.1f} ms (steady {1e3 * p(pairs[kind][-1][1], 0.95):.1f})"
            for kind in kinds) + f", steady split {1e3 * p(splits[-1], 0.95):.1f}")  # fmt: skip
    for kind, windows_of in pairs.items():
        found |= _added(f"added_p95_{kind}{at}", windows_of)
        if kind != "immediate":
            beside = list(zip([moved for moved, _ in windows_of], splits, strict=True))
            found |= _added(f"added_p95_{kind}_to_split{at}", beside)
    return found | _added(
        f"added_p95_split{at}", list(zip(splits, [steady for _, steady in pairs["canary"]], strict=True))
    )


async def computing(models: TinyModels, scratch: Path, windows: int, window_s: float) -> dict[str, float]:
    """The same where an engine's time goes into the model."""
    folders = {
        version: await asyncio.to_thread(checkpoint, scratch / version, models.baseline, seed=seed, millions=30)
        for seed, version in enumerate(("v1", "v2"))
    }
    async with SwitchingEngine(store=scratch / "computing.duckdb") as engine:
        register(engine, "tiny", **folders)
        await asyncio.gather(engine.load("v1"), engine.load("v2"))
        await engine.deploy("v1")
        return await transitions(engine, models, windows, window_s)


def _added(name: str, windows: list[tuple[list[float], list[float]]]) -> dict[str, float]:
    ratio, low, high = bootstrap_ratio(windows)
    return {name: ratio - 1, f"{name}_low": low - 1, f"{name}_high": high - 1}


async def memory(models: TinyModels, versions: int) -> dict[str, float]:
    """Growth of this process per version held, in MB and as a share of what vLLM's own processes hold for one."""
    process = psutil.Process()
    async with SwitchingEngine(store=":memory:") as engine:
        register(engine, "one", v0=models.baseline)
        await engine.deploy("v0", model_id="one")
        gc.collect()
        before = process.memory_full_info().uss
        for number in range(versions):
            register(engine, "one", **{f"w{number}": models.better})
        for number in range(versions):
            await engine.load(f"w{number}", model_id="one")
        gc.collect()
        own = (process.memory_full_info().uss - before) / versions
        engines = sum(child.memory_full_info().pss for child in process.children(recursive=True)) / (versions + 1)
        return {"own_memory_per_version_mb": own / 1e6, "own_memory_share": own / engines}


def bare_start_s(folder: Path) -> float:
    """A bare engine, from the call to its first token, in a process that has vLLM imported."""
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "bare.py"
        script.write_text(_BARE)
        ran = subprocess.run(
            [sys.executable, str(script), str(folder)], capture_output=True, text=True, check=True, timeout=300
        )
    return float(next(line.split()[1] for line in ran.stdout.splitlines() if line.startswith("TOOK")))


async def cold(models: TinyModels, rounds: int) -> dict[str, float]:
    """Alternating: a bare start, and a switch to a version that no engine holds."""
    bare, switched, gaps = [], [], []
    for turn in range(rounds):
        bare.append(await asyncio.to_thread(bare_start_s, models.better))
        async with SwitchingEngine(store=":memory:") as engine:
            register(engine, "tiny", v1=models.baseline, v2=models.better)
            await engine.deploy("v1")
            async with LoopGap() as gap:
                began_s = time.perf_counter()
                handle = await engine.start_switch("v2", "immediate")
                await handle.serving()
                switched.append(await first_token_s(engine, "tiny", "v2") - began_s)
            gaps.append(gap.longest_ms)
        say(f"  cold {turn + 1}/{rounds}: bare {bare[-1]:.1f} s, switch {switched[-1]:.1f} s, gap {gaps[-1]:.0f} ms")
    ratios = [a / b for a, b in zip(switched, bare, strict=True)]
    return {"cold_switch_s": median(switched), "bare_start_s": median(bare), "cold_ratio": median(ratios),
            "loop_gap_ms": max(gaps)}  # fmt: skip


async def in_place(models: TinyModels, scratch: Path, millions: int, rounds: int) -> dict[str, float]:
    """The same two checkpoints: weights put into the running engine, and one engine stopped and another started."""
    a = await asyncio.to_thread(checkpoint, scratch / "a", models.baseline, seed=1, millions=millions)
    b = await asyncio.to_thread(checkpoint, scratch / "b", models.baseline, seed=2, millions=millions)
    swapped: list[float] = []
    restarted: list[float] = []
    plain: list[float] = []

    async def switch(engine: SwitchingEngine, config: dict[str, Any]) -> float:
        target = "b" if engine.registry.active_version("big") == "a" else "a"
        began_s = time.perf_counter()
        handle = await engine.start_switch(target, "immediate", config, model_id="big")
        await handle.serving()
        return await first_token_s(engine, "big", target) - began_s

    async with SwitchingEngine(store=":memory:") as engine:
        register(engine, "big", a=a, b=b)
        await engine.deploy("a", model_id="big")
        for turn in range(rounds):
            swapped += [await switch(engine, {"in_place": True}) for _ in range(2)]
            restarted.append(await switch(engine, {"drain_first": True}))
            say(f"  in place {turn + 1}/{rounds}: {swapped[-1]:.2f} s, stop and start {restarted[-1]:.1f} s")
    async with SwitchingEngine(store=":memory:") as engine:
        register(engine, "big", {"distributed_executor_backend": "mp"}, a=a, b=b)
        await engine.deploy("a", model_id="big")
        for turn in range(rounds):
            plain.append(await switch(engine, {"drain_first": True}))
            say(f"  as vLLM starts engines {turn + 1}/{rounds}: stop and start {plain[-1]:.1f} s")
    return {"in_place_s": median(swapped), "stop_and_start_s": median(restarted),
            "plain_stop_and_start_s": median(plain),
            "in_place_speedup": median(plain) / median(swapped),
            "in_place_speedup_to_own": median(restarted) / median(swapped)}  # fmt: skip


def router_us(engine: SwitchingEngine, decisions: int) -> dict[str, float]:
    """One decision: the snapshot, and the arm of a unit."""
    router, chance = engine._parts.router, random.Random(3)
    units = [f"user-{chance.random()}" for _ in range(decisions)]
    taken = []
    for unit in units:
        began_s = time.perf_counter()
        snapshot = router.current("tiny")
        assert snapshot is not None
        snapshot.choose(unit)
        taken.append((time.perf_counter() - began_s) * 1e6)
    return {"router_median_us": median(taken), "router_p99_us": p(taken, 0.99)}


async def run(options: argparse.Namespace) -> dict[str, float]:
    quick, models = options.quick, tiny_models()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        async with SwitchingEngine(store=scratch / "evidence.duckdb") as engine:
            register(engine, "tiny", v1=models.baseline, v2=models.better)
            say("two engines …")
            await asyncio.gather(engine.load("v1"), engine.load("v2"))
            await engine.deploy("v1")
            say("pointer flips")
            found |= await flips(engine, 20 if quick else 300)
            busy = await flips(engine, 20 if quick else 300, settle_s=0.0)
            found |= {f"{name}_busy": value for name, value in busy.items()}
            found |= await flips_in_memory(20 if quick else 300)
            found |= bare_syncs(scratch, 100 if quick else 1000)
            found |= await bare_pauses(20 if quick else 300)
            handle = await engine.start_switch(
                "v2" if engine.registry.active_version() == "v1" else "v1", "ab_test", {"traffic_percentage": 10}
            )
            await handle.serving()
            found |= router_us(engine, 2_000 if quick else 100_000)
            await handle.abort()
            await handle.done()
            say("transitions under load, tiny")
            found |= await transitions(engine, models, 1 if quick else 8, 2.0 if quick else 4.0, "_tiny")
        say("transitions under load, 34 M parameters")
        found |= await computing(models, scratch, 1 if quick else 12, 4.0 if quick else 8.0)
        say("cold switches")
        found |= await cold(models, 1 if quick else 3)
        say("memory per version")
        found |= await memory(models, 1 if quick else 4)
        millions = 30 if quick else 350
        say(f"in place, {millions} M parameters")
        found |= await in_place(models, scratch, millions, 1 if quick else 3)
    return {name: round(value, 4) for name, value in found.items()}


def reached(name: str, figure: float) -> bool:
    return figure >= GOALS[name] if name in _AT_LEAST else figure <= GOALS[name]


def main() -> None:
    """Run and print the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    figures = asyncio.run(run(parser.parse_args()))
    print(f"\n{'figure':<30}{'measured':>12}{'goal':>12}")
    for name, value in figures.items():
        goal = f"{'≥' if name in _AT_LEAST else '≤'} {GOALS[name]:g}" if name in GOALS else ""
        print(f"{name:<30}{value:>12.4g}{goal:>12}{'' if not goal or reached(name, value) else '  missed'}")
    met = all(reached(name, figures[name]) for name in GOALS)
    print(json.dumps({"benchmark": "switch", "figures": figures, "goals": GOALS, "met": met}))


if __name__ == "__main__":
    main()
