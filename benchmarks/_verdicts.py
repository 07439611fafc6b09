"""Whole verdicts, peeked at: streams of requests through `decide`, with every rule, for `error_rates.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from abswitch.stats import (
    AnalysisPlan,
    ArmEvidence,
    Evidence,
    Mean,
    MeanSummary,
    PairedRateSummary,
    PairedSummary,
    Rate,
    RateSummary,
    Verdict,
    decide,
)
from abswitch.stats.looks import Look

Stream = Callable[[int], Evidence]
"""What is known after so many of a stream's units."""


@dataclass(frozen=True)
class Ends:
    """Shares of tests that ended by a rule, and requests that they took over those planned."""

    by_rule: dict[str, float]
    mean_n: float

    def share(self, *rules: str) -> float:
        """That ended by any of these rules."""
        return sum(self.by_rule.get(rule, 0.0) for rule in rules)


def verdicts(
    rng: Generator,
    streams: int,
    *,
    rates: tuple[float, float] = (0.7, 0.7),
    errors: tuple[float, float] = (0.01, 0.01),
    evaluation: str = "sequential",
    share: float = 0.5,
    n: int = 1000,
    looks: int = 40,
    margin: float | None = None,
    error_margin: float = 0.05,
) -> Ends:
    """How tests of `n` units end.

    Args:
        rates, errors: of right answers and of errors, baseline and candidate; latencies are lognormal, σ 1, in both.
        share: of the candidate.
        looks: evenly spread; of a group sequential test five.
        margin, error_margin: of the primary and of the error guardrail.
    """
    metrics = (
        Rate("ok", margin=margin),
        Rate("error", role="guardrail", margin=error_margin),
        Mean("latency_s", role="guardrail", margin=1.0),
    )
    plan = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=metrics, expected_share=share, planned_n=n, evaluation=evaluation
    )
    return _ends(plan, streams, n, looks, lambda: _stream(rng, plan, rates, errors))


def _ends(plan: AnalysisPlan, streams: int, n: int, looks: int, stream: Callable[[], Stream]) -> Ends:
    """How so many streams of `n` units, or pairs, end."""
    ended: Counter[str] = Counter()
    taken = 0
    for _ in range(streams):
        verdict, seen = _looked_at(plan, n, 5 if plan.evaluation == "group_sequential" else looks, stream())
        ended[verdict.rule] += 1
        taken += seen
    return Ends({rule: times / streams for rule, times in ended.items()}, taken / streams / n)


def _looked_at(plan: AnalysisPlan, n: int, looks: int, evidence: Stream) -> tuple[Verdict, int]:
    """The first verdict that is final, and the units it took."""
    fractions: tuple[float, ...] = ()
    for number, size in enumerate(np.linspace(0, n, looks + 1).astype(int)[1:].tolist(), 1):
        fractions = (*fractions, size / n)
        look = Look(number=number, last=size == n, fractions=() if plan.evaluation == "sequential" else fractions)
        verdict = decide(plan, evidence(size), look)
        if verdict.is_final:
            break
    return verdict, size


def _stream(rng: Generator, plan: AnalysisPlan, rates: tuple[float, float], errors: tuple[float, float]) -> Stream:
    n = plan.planned_n
    arm = (rng.random(n) < plan.expected_share).astype(int)
    ok, error = rng.random(n) < np.array(rates)[arm], rng.random(n) < np.array(errors)[arm]
    latency = rng.lognormal(0.0, 1.0, n)

    def evidence(size: int) -> Evidence:
        baseline, candidate = _arms(size, arm, ok, error, latency)
        return Evidence(baseline=baseline, candidate=candidate, plan_digest=plan.digest())

    return evidence


def _arms(
    size: int,
    arm: np.ndarray[tuple[int], np.dtype[np.int64]],
    ok: np.ndarray[tuple[int], np.dtype[np.bool_]],
    error: np.ndarray[tuple[int], np.dtype[np.bool_]],
    latency: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> Iterator[ArmEvidence]:
    for index, version in enumerate(("v1", "v2")):
        mine = arm[:size] == index
        answered = mine & ~error[:size]
        units, answers = int(mine.sum()), int(answered.sum())
        yield ArmEvidence(
            version=version,
            assigned=units,
            analysed=answers,
            requests=units,
            failed=units - answers,
            summaries={
                "ok": RateSummary(answers, int(ok[:size][answered].sum())),
                "error": RateSummary(units, units - answers),
                "latency_s": MeanSummary.of(latency[:size][answered]),
            },
        )


def paired_verdicts(
    rng: Generator,
    streams: int,
    *,
    apart: float = 0.3,
    difference: float = 0.0,
    evaluation: str = "sequential",
    n: int = 500,
    looks: int = 40,
    margin: float | None = None,
) -> Ends:
    """How comparisons of `n` pairs end.

    Args:
        apart: share of pairs of which one side alone answers right; half of them each way, but for `difference`.
        looks: evenly spread; of a group sequential test five.
        margin: of the primary. Latencies, lognormal, σ 1, on both sides, are a guardrail with a margin of 1.
    """
    metrics = (Rate("ok", margin=margin), Mean("latency_s", role="guardrail", margin=1.0))
    plan = AnalysisPlan(
        baseline="v1", candidate="v2", metrics=metrics, expected_share=0.5, planned_n=2 * n, design="paired",
        evaluation=evaluation,
    )  # fmt: skip
    return _ends(plan, streams, n, looks, lambda: _stream_of_pairs(rng, plan, apart, difference))


def _stream_of_pairs(rng: Generator, plan: AnalysisPlan, apart: float, difference: float) -> Stream:
    n = plan.planned_n // 2
    drawn, latency = rng.random(n), rng.lognormal(0.0, 1.0, (2, n))
    up = drawn < (apart + difference) / 2
    down = (drawn < apart) & ~up

    def evidence(size: int) -> Evidence:
        only = int(up[:size].sum()), int(down[:size].sum())
        ok = PairedRateSummary(both=size - sum(only), candidate_only=only[0], baseline_only=only[1], neither=0)
        arms = [ArmEvidence(version=one, assigned=size, analysed=size, requests=size) for one in ("v1", "v2")]
        return Evidence(
            baseline=arms[0],
            candidate=arms[1],
            plan_digest=plan.digest(),
            joint={"ok": ok, "latency_s": PairedSummary.of(*latency[:, :size])},
        )

    return evidence
