"""Canaries for `error_rates.py`: whole ramps under drifting load, judged at every look by the library's policy."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from abswitch.stats.canary import CanaryDecision, GuardrailFinding, harm_alpha, judge_canary
from abswitch.stats.error_process import Claim, ErrorProcess
from abswitch.stats.mixture import mixture_sprt
from abswitch.stats.sequential_srm import StageCounts, sequential_sample_ratio
from abswitch.stats.strata import StratifiedSummary
from abswitch.stats.summaries import MeanSummary

ALPHA = 0.05
ERRORS, WRONG, LATENCY = "error", "wrong_answer", "latency_log_s"
MARGINS = {ERRORS: 2.0, WRONG: 1.25, LATENCY: math.log(1.1)}
"""How much worse is too much: twice the errors, a quarter more wrong answers, 10 % slower."""
RATES = {ERRORS: 0.01, WRONG: 0.10}
SPREAD = 0.8
"""Standard deviation of the logarithm of a latency."""


class Stage(NamedTuple):
    """A stage of the ramp: the candidate's share, looks, requests between two, how load bends latency and errors."""

    share: float
    looks: int
    requests: int
    slower: float
    more_errors: float


RAMP = (Stage(0.05, 5, 2000, 1.0, 1.0), Stage(0.25, 5, 2000, 1.6, 1.5), Stage(0.50, 30, 2000, 0.8, 0.7))
PLANNED_N = 20_000


@dataclass(frozen=True)
class Truth:
    """How the candidate differs: ratios of rates, and of latencies."""

    errors: float = 1.0
    wrong: float = 1.0
    latency: float = 1.0


def at_margin(name: str) -> Truth:
    """A candidate that is worse by exactly one guardrail's margin."""
    return Truth(
        errors=MARGINS[ERRORS] if name == ERRORS else 1.0,
        wrong=MARGINS[WRONG] if name == WRONG else 1.0,
        latency=math.exp(MARGINS[LATENCY]) if name == LATENCY else 1.0,
    )


def decisions(rng: np.random.Generator, runs: int, truth: Truth, *, harm_tests: bool = True) -> Counter[CanaryDecision]:
    """How so many canaries of this kind end; those that neither rolled back nor promoted still hold.

    Without harm tests promotion has all looks of all stages to go wrong at, as nothing ends the canary before.
    """
    return Counter(_one(rng, truth, harm_tests) for _ in range(runs))


def _one(rng: np.random.Generator, truth: Truth, harm_tests: bool) -> CanaryDecision:
    share_of_alpha = harm_alpha(ALPHA, len(MARGINS))
    harm = {name: ErrorProcess(Claim.HARM, alpha=share_of_alpha) for name in RATES}
    safe = {name: ErrorProcess(Claim.NO_HARM, MARGINS[name], alpha=ALPHA) for name in RATES}
    latencies = StratifiedSummary({}), StratifiedSummary({})
    units: list[StageCounts] = []
    for at, stage in enumerate(RAMP):
        units.append(StageCounts(0, 0, stage.share))
        for _ in range(stage.looks):
            mine = int(rng.binomial(stage.requests, stage.share))
            sizes = stage.requests - mine, mine
            units[-1] = StageCounts(units[-1].baseline + sizes[0], units[-1].candidate + mine, stage.share)
            for name, ratio in ((ERRORS, truth.errors), (WRONG, truth.wrong)):
                rate = RATES[name] * (stage.more_errors if name == ERRORS else 1.0)
                new = [int(rng.binomial(size, rate * more)) for size, more in zip(sizes, (1.0, ratio), strict=True)]
                harm[name] = harm[name].update(baseline=new[0], candidate=new[1], share=stage.share)
                safe[name] = safe[name].update(baseline=new[0], candidate=new[1], share=stage.share)
            slower = math.log(stage.slower)
            means = slower, slower + math.log(truth.latency)
            latencies = (
                latencies[0] + StratifiedSummary({str(at): _logs(rng, sizes[0], means[0])}),
                latencies[1] + StratifiedSummary({str(at): _logs(rng, sizes[1], means[1])}),
            )
            findings = [GuardrailFinding.of_errors(name, harm[name], safe[name]) for name in RATES]
            findings.append(_latency(latencies, share_of_alpha))
            split = sequential_sample_ratio(units)
            if not harm_tests:
                findings = [replace(finding, harmed=False) for finding in findings]
            last = at == len(RAMP) - 1 or not harm_tests
            verdict = judge_canary(findings, last_stage=last, alpha=ALPHA, sample_ratio=split)
            if verdict.decision is not CanaryDecision.HOLD:
                return verdict.decision
    return CanaryDecision.HOLD


def _latency(arms: tuple[StratifiedSummary, StratifiedSummary], share_of_alpha: float) -> GuardrailFinding:
    harm, safe = (
        mixture_sprt(*arms, planned_n=PLANNED_N, share=0.5, alpha=2 * alpha, logarithms=True)
        for alpha in (share_of_alpha, ALPHA)
    )
    return GuardrailFinding.of_comparisons(LATENCY, harm, safe, margin=MARGINS[LATENCY], direction="decrease")


def _logs(rng: np.random.Generator, n: int, mean: float) -> MeanSummary:
    """Summary of n normal logarithms, drawn as such."""
    drawn = mean + SPREAD / math.sqrt(n) * float(rng.normal())
    return MeanSummary(n, drawn, SPREAD**2 * float(rng.chisquare(n - 1)) if n > 1 else 0.0)
