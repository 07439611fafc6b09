"""A whole A/B test on scripted instances and a real DuckDB store: sums, answered right as often as a version should."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from abswitch import ExactMatch, ModelConfig, SwitchingEngine
from abswitch.experiments import ABTestResult, run_ab_test
from abswitch.serving.scripted import Answer, ScriptedBackend, prompt_text
from abswitch.stats import Mean, Metric, Rate, Ratio

METRICS: tuple[Metric, ...] = (
    Rate("exact_match", margin=0.05),
    Mean("latency_s", direction="decrease", role="guardrail", margin=0.5),
    Ratio("output_tokens", "latency_s", role="secondary"),
)
EVIL = "<script>alert(1)</script>"


def adder(accuracy: float, salt: str) -> Answer:
    """Answers `12+34=` right with this probability, the same answer every time."""

    def answer(prompt: Any) -> Sequence[str]:
        text = prompt_text(prompt)
        if "=" not in text:  # the engine's own, when a version comes up
            return ("0",)
        a, b = text.split(EVIL)[0].rstrip("=").split("+")
        right = zlib.crc32(f"{salt}{text}".encode()) % 1000 < 1000 * accuracy
        return tuple(str(int(a) + int(b) + (not right)))

    return answer


def problems(n: int, *, suffix: str = "") -> list[tuple[str, str]]:
    """Different sums with their right answers."""
    pairs = [(10 + i % 90, 10 + (7 * i + i // 90) % 90) for i in range(n)]
    return [(f"{a}+{b}={suffix}", str(a + b)) for a, b in pairs]


def engine_for(
    accuracies: dict[str, float], *, store: Path | str = ":memory:", record_text: bool = True, **options: Any
) -> SwitchingEngine:
    """An engine with model `adder`, a version for each accuracy; nothing is deployed yet."""
    backend = ScriptedBackend(answers={version: adder(accuracy, version) for version, accuracy in accuracies.items()})
    engine = SwitchingEngine(
        store=store, scorers=[ExactMatch()], record_text=record_text, backends={"scripted": backend}, **options
    )
    for version in accuracies:
        config = ModelConfig(
            model_id="adder", model=f"scripted-{version}", backend="scripted", prompt_template="{prompt}" + EVIL
        )
        engine.registry.register_model(config, version, metadata={"made by": EVIL})
    return engine


@asynccontextmanager
async def ab_test(
    *,
    baseline: float = 0.58,
    candidate: float = 0.91,
    n: int = 400,
    metrics: Sequence[Metric] = METRICS,
    suffix: str = EVIL,
    evaluation: str = "fixed",
    **options: Any,
) -> AsyncIterator[tuple[SwitchingEngine, ABTestResult]]:
    """An engine and a finished test of `v2` against `v1` on it; the switch is not concluded."""
    async with engine_for({"v1": baseline, "v2": candidate}, **options) as engine:
        await engine.deploy("v1")
        # A name of its own, so that the split is the same in every run.
        result = await run_ab_test(
            engine, "v2", problems(n, suffix=suffix), metrics=metrics, experiment="sums", evaluation=evaluation
        )
        yield engine, result


def adders() -> ScriptedBackend:
    """Versions that add right as often as their names say: `v58` in 58 % of all cases."""
    return ScriptedBackend(answers=_adders())


def _adders() -> dict[str, Answer]:
    return {f"v{percent}": adder(percent / 100, f"v{percent}") for percent in (20, 58, 95)}


def judged_adders() -> ScriptedBackend:
    """The same, and a `judge` that compares the answer with the reference, and does not understand sums above 150."""

    def grade(prompt: Any) -> Sequence[str]:
        parts = prompt_text(prompt).split("\n")
        if "Answer to grade:" not in parts:
            return ("0",)  # the engine's own, when a version comes up
        reference, output = (parts[parts.index(title) + 1] for title in ("Reference answer:", "Answer to grade:"))
        return ("no", " idea") if int(reference) > 150 else ("Grade: ", "1" if output == reference else "0")

    return ScriptedBackend(answers={**_adders(), "judge": grade})


def armed_adders() -> ScriptedBackend:
    """Versions, and two arms of `v95`: the first adds right in 95 % of all cases, the second in 58 %."""
    arms = {"v95-1": adder(0.95, "v95-1"), "v95-2": adder(0.58, "v95-2")}
    return ScriptedBackend(answers={**_adders(), **arms})
