"""Error rates of the sequential tests and of the canary policy, each against its bound, with fixed seeds.

2,000 streams each (600 canaries; 500 or 1,000 of the slow exact methods, beyond the specification; 200 or 1,000 whole
verdicts), alpha .05, Monte-Carlo error .005 (.009; .015 or .007). "Peeked" is at every observation, unless it says
otherwise, and counts per stream, not per look. `--quick` runs fewer streams and allows for their larger Monte-Carlo
error; a test runs it. Rows without a bound show what the bounded ones guard against.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from _canary import ERRORS, LATENCY, WRONG, Truth, at_margin, decisions
from _streams import (
    NEVER,
    bernoulli,
    beta_binomial_rejects_ever,
    betting_rejects_ever,
    clustered_quantile_coverage,
    fixed_quantile_coverage,
    group_sequential_run,
    labels_reject_ever,
    lognormal,
    mixture_rejects_at,
    normal,
    quantile_sequence_misses,
    quantile_test_rejects_ever,
    srm_rejects_ever,
    switchback_rejects,
    t_test_rejects_ever,
)
from _verdicts import paired_verdicts, verdicts
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import special

from abswitch.stats.canary import CanaryDecision
from abswitch.stats.error_process import Claim

SEED = 20_261_101
WORKERS = CORES = 2
LONGEST_S = 600.0
"""How long it may take on two cores; counted in seconds of a core, as the machine may be busy with something else."""
AT_MOST, AT_LEAST = "≤", "≥"


class Figure(NamedTuple):
    """One measured figure, what it is, and its bounds; without any it is for comparison."""

    name: str
    value: float
    what: str
    at_most: float | None = None
    at_least: float | None = None

    def met(self, allowance: float) -> bool:
        """Whether it is within its bounds, give or take so much."""
        low = -math.inf if self.at_least is None else self.at_least - allowance
        high = math.inf if self.at_most is None else self.at_most + allowance
        return low <= round(self.value, 9) <= high  # a sum of shares: 0.060000000000000005

    def bound(self) -> str:
        """Its bounds, for people."""
        parts = ((AT_LEAST, self.at_least), (AT_MOST, self.at_most))
        return " ".join(f"{sign} {limit:g}" for sign, limit in parts if limit is not None) or "–"


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    streams: int
    slow_streams: int
    canaries: int
    observations: int

    def allowance(self) -> float:
        """Three Monte-Carlo errors of a share near .05 beyond what full size has; none at full size."""
        if self == FULL:
            return 0.0
        return 3 * math.sqrt(0.05 * 0.95 / min(self.slow_streams, self.canaries))


FULL = Size(streams=2000, slow_streams=2000, canaries=600, observations=2000)
QUICK = Size(streams=500, slow_streams=300, canaries=60, observations=800)
Job = Callable[[Generator, Size], Iterator[Figure]]


def ever(first: NDArray[np.int64]) -> float:
    """Share of streams that ever reject."""
    return float((first < NEVER).mean())


# --- two copies of one version, peeked at every observation -----------------------------------------------------------


def aa_means(rng: Generator, size: Size) -> Iterator[Figure]:
    n, streams = size.observations, size.streams
    found = ever(mixture_rejects_at(rng, streams, normal, n=n, planned_n=n))
    yield Figure("aa_normal", found, "mixture SPRT, normal", at_most=0.06)
    found = ever(mixture_rejects_at(rng, streams, lognormal, n=n, planned_n=n))
    yield Figure("aa_lognormal", found, "mixture SPRT, lognormal σ 1.5, arms of one size", at_most=0.06)
    found = ever(mixture_rejects_at(rng, streams, lognormal, n=n, planned_n=n, share=0.05))
    yield Figure("aa_lognormal_share5", found, "mixture SPRT, the same at a 5 % share (guarded)", at_most=0.06)

    def logarithms(generator: Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
        return generator.normal(0.0, 1.5, shape)

    found = ever(mixture_rejects_at(rng, streams, logarithms, n=n, planned_n=n, share=0.05, logarithms=True))
    yield Figure("aa_lognormal_share5_logs", found, "mixture SPRT, the same on the log scale", at_most=0.06)
    yield Figure("peeked_t_test", t_test_rejects_ever(rng, size.streams, n=n), "t-test for one look, peeked")


def aa_rates(rng: Generator, size: Size) -> Iterator[Figure]:
    n, streams = size.observations, size.streams
    found = ever(mixture_rejects_at(rng, streams, bernoulli(0.02), n=n, planned_n=n, rates=True))
    yield Figure("aa_bernoulli", found, "mixture SPRT, Bernoulli .02, arms of one size", at_most=0.06)
    found = labels_reject_ever(rng, size.streams, Claim.DIFFERENCE, n=10 * n, rate=0.02, share=0.5)
    yield Figure("aa_bernoulli_labels", found, "error-label e-process, Bernoulli .02", at_most=0.06)
    for claim in (Claim.DIFFERENCE, Claim.HARM):
        found = labels_reject_ever(rng, size.streams, claim, n=10 * n, rate=0.01, share=0.05)
        name = f"aa_share5_errors_{claim.name.lower()}"
        yield Figure(name, found, f"error-label e-process ({claim}), 1 % errors, 5 % share", at_most=0.06)


def aa_rare_guarded(rng: Generator, size: Size) -> Iterator[Figure]:
    n, streams = 20 * size.observations, size.slow_streams // 4
    found = ever(mixture_rejects_at(rng, streams, bernoulli(0.01), n=n, planned_n=n, share=0.05, rates=True))
    yield Figure("aa_share5_errors_guarded", found, "mixture SPRT, 1 % errors, 5 % share (guarded)", at_most=0.06)


def aa_exact(rng: Generator, size: Size) -> Iterator[Figure]:
    streams = size.slow_streams // 4
    found = betting_rejects_ever(rng, streams, n=2000, share=0.05, looks=20)
    yield Figure("aa_betting", found, "betting difference, rare scores of 1, 5 % share, 20 looks", at_most=0.06)
    found = beta_binomial_rejects_ever(rng, streams, n=20_000, rate=0.01, share=0.05, looks=20)
    yield Figure("aa_beta_binomial", found, "beta-binomial difference, 1 % errors, 5 % share, 20 looks", at_most=0.06)


def aa_split(rng: Generator, size: Size) -> Iterator[Figure]:
    sequential, chi_square = srm_rejects_ever(rng, size.streams, n=size.observations, alpha=0.001)
    yield Figure("aa_split", sequential, "Dirichlet-multinomial SRM at .001, sound split", at_most=0.002)
    yield Figure("peeked_chi_square", chi_square, "chi-square SRM at .001, peeked")


# --- whole verdicts, as run_ab_test takes them ------------------------------------------------------------------------

WRONG_RULES = ("primary-better", "primary-worse", "guardrail-harmed")


def looked_at(size: Size, evaluation: str) -> int:
    """Streams of whole verdicts: forty looks each, or five, which is all that a group sequential test has."""
    return size.slow_streams // (2 if evaluation == "group_sequential" else 10)


def aa_verdicts(rng: Generator, size: Size) -> Iterator[Figure]:
    for evaluation, share in (("sequential", 0.5), ("sequential", 0.1), ("group_sequential", 0.5)):
        ends = verdicts(rng, looked_at(size, evaluation), evaluation=evaluation, share=share, error_margin=0.001)
        name = f"aa_verdict_{evaluation}_share{100 * share:g}"
        what = f"verdict, A/A, {evaluation.replace('_', ' ')}, {share:.0%} share, calls a difference or harm"
        yield Figure(name, ends.share(*WRONG_RULES), what, at_most=0.06)


def verdict_power(rng: Generator, size: Size) -> Iterator[Figure]:
    for evaluation in ("sequential", "group_sequential"):
        ends = verdicts(rng, size.slow_streams // 10, evaluation=evaluation, rates=(0.6, 0.75))
        yield Figure(f"verdict_{evaluation}_ships", ends.share("primary-better"), ".60 → .75, shipped", at_least=0.8)
        yield Figure(f"verdict_{evaluation}_mean_n", ends.mean_n, "mean n over that planned, the same")
    ends = verdicts(rng, size.slow_streams // 10, rates=(0.7, 0.75), margin=0.05)
    yield Figure("verdict_at_margin", ends.share("within-margin"), "better by exactly the margin, equivalent", 0.05)


def aa_paired_verdicts(rng: Generator, size: Size) -> Iterator[Figure]:
    for evaluation, apart in (("sequential", 0.3), ("sequential", 0.04), ("group_sequential", 0.3)):
        ends = paired_verdicts(rng, looked_at(size, evaluation), evaluation=evaluation, apart=apart)
        name = f"aa_paired_verdict_{evaluation}_apart{100 * apart:g}"
        what = f"paired verdict, A/A, {evaluation.replace('_', ' ')}, {apart:.0%} of pairs differ, the same"
        yield Figure(name, ends.share(*WRONG_RULES), what, at_most=0.06)


def paired_verdict_power(rng: Generator, size: Size) -> Iterator[Figure]:
    ends = paired_verdicts(rng, size.slow_streams // 10, difference=0.15)
    yield Figure("paired_verdict_ships", ends.share("primary-better"), "paired, 15 points better, shipped", None, 0.8)
    yield Figure("paired_verdict_mean_n", ends.mean_n, "mean pairs over those planned, the same")
    ends = paired_verdicts(rng, size.slow_streams // 10, apart=0.05, difference=0.05, margin=0.05)
    what = "paired, better by exactly the margin and never worse, equivalent"
    yield Figure("paired_verdict_at_margin", ends.share("within-margin"), what, at_most=0.05)


# --- power ------------------------------------------------------------------------------------------------------------


def power(rng: Generator, size: Size) -> Iterator[Figure]:
    n = size.observations // 2
    effect = float(special.ndtri(0.975) + special.ndtri(0.8)) * math.sqrt(4 / n)
    first = mixture_rejects_at(rng, size.streams, normal, n=2 * n, planned_n=n, effect=effect)
    yield Figure("power_1x", float((first <= n).mean()), "mixture SPRT, by the n with 80 % for one look", at_least=0.5)
    yield Figure("power_2x", float((first <= 2 * n).mean()), "mixture SPRT, by twice that n", at_least=0.85)
    spent = float(np.minimum(first, 2 * n).mean()) / n
    yield Figure("mean_n", spent, "mixture SPRT, mean n over that n, stopped at twice that")


def group_sequential(rng: Generator, size: Size) -> Iterator[Figure]:
    found, spent, wrong = group_sequential_run(rng, 10 * size.streams, n=1000, power=0.812)
    yield Figure("gs_power", found, "group sequential, five looks", at_least=0.8)
    yield Figure("gs_mean_n", spent, "group sequential, mean n over the n for one look", at_most=0.85)
    yield Figure("gs_aa", wrong, "group sequential, two copies of one version", at_most=0.06)


# --- quantiles --------------------------------------------------------------------------------------------------------


def quantile_sequences(rng: Generator, size: Size) -> Iterator[Figure]:
    for q, times in ((0.5, 1), (0.95, 1), (0.99, 3)):
        found, single = quantile_sequence_misses(rng, size.streams, q, n=times * size.observations)
        yield Figure(f"quantile_sequence_p{100 * q:g}", found, f"p{100 * q:g} sequence, ever misses", at_most=0.05)
        yield Figure(f"peeked_quantile_p{100 * q:g}", single, f"p{100 * q:g} interval for one look, 100 looks")


def quantile_tests(rng: Generator, size: Size) -> Iterator[Figure]:
    for q in (0.5, 0.95):
        found = quantile_test_rejects_ever(rng, size.slow_streams // 2, q, n=size.observations, looks=20)
        yield Figure(f"quantile_test_p{100 * q:g}", found, f"sequential p{100 * q:g} test, A/A, 20 looks", at_most=0.05)


def fixed_quantiles(rng: Generator, size: Size) -> Iterator[Figure]:
    for q in (0.5, 0.95, 0.99):
        found = fixed_quantile_coverage(rng, 10 * size.streams, q, n=1000)
        what = f"p{100 * q:g} interval for one look covers"
        yield Figure(f"fixed_quantile_p{100 * q:g}", found, what, at_most=0.985, at_least=0.94)
    for q in (0.5, 0.95):
        found = clustered_quantile_coverage(rng, size.slow_streams, q, users=60, each=20)
        yield Figure(f"clustered_quantile_p{100 * q:g}", found, f"p{100 * q:g}, clustered, covers", at_least=0.94)


# --- canaries and switchback ------------------------------------------------------------------------------------------


def canary_equal(rng: Generator, size: Size) -> Iterator[Figure]:
    ends = decisions(rng, size.canaries, Truth())
    found = ends[CanaryDecision.ROLL_BACK] / size.canaries
    yield Figure("canary_aa_rollback", found, "equal candidate rolled back", at_most=0.05)
    found = ends[CanaryDecision.PROMOTE] / size.canaries
    yield Figure("canary_aa_promote", found, "equal candidate promoted")


def canary_worse(rng: Generator, size: Size) -> Iterator[Figure]:
    ends = decisions(rng, size.canaries, Truth(errors=3.0))
    yield Figure(
        "canary_errors_1_to_3", ends[CanaryDecision.ROLL_BACK] / size.canaries, "errors 1 → 3 % rolled back", None, 1.0
    )


@dataclass(frozen=True)
class AtMargin:
    """A candidate worse by exactly one guardrail's margin."""

    name: str

    def __call__(self, rng: Generator, size: Size) -> Iterator[Figure]:
        for harm_tests, how in ((True, ""), (False, ", without harm tests")):
            ends = decisions(rng, size.canaries, at_margin(self.name), harm_tests=harm_tests)
            name = f"canary_{self.name}_at_margin{'' if harm_tests else '_no_harm_tests'}"
            found = ends[CanaryDecision.PROMOTE] / size.canaries
            yield Figure(name, found, f"{self.name} worse by its margin, promoted{how}", at_most=0.05)


def switchback(rng: Generator, size: Size) -> Iterator[Figure]:
    found, naive = switchback_rejects(rng, size.slow_streams, pairs=24, block=60)
    yield Figure("switchback", found, "switchback in blocks, AR(.99) load, A/A", at_most=0.065)
    yield Figure("before_after", naive, "before/after by requests, the same load")


JOBS: tuple[Job, ...] = (
    AtMargin(LATENCY),
    AtMargin(WRONG),
    AtMargin(ERRORS),
    canary_equal,
    canary_worse,
    aa_means,
    aa_rates,
    aa_rare_guarded,
    aa_exact,
    aa_split,
    power,
    group_sequential,
    quantile_sequences,
    quantile_tests,
    fixed_quantiles,
    switchback,
    aa_verdicts,
    verdict_power,
    aa_paired_verdicts,
    paired_verdict_power,
)


def work(index: int, size: Size) -> tuple[list[Figure], float]:
    """One job's figures and its seconds of a core. Its seed is its own, so that jobs may run in any order."""
    start = time.process_time()
    return list(JOBS[index](np.random.default_rng([SEED, index]), size)), time.process_time() - start


def run(size: Size, workers: int) -> tuple[dict[str, Figure], float]:
    """All jobs, side by side, and their seconds of a core; prints each figure against its bound as its job ends."""
    print(f"{'':45}{'measured':>9}  {'bound':<16}", flush=True)
    found: dict[str, Figure] = {}
    cpu_s = 0.0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for figures, took_s in pool.map(work, range(len(JOBS)), [size] * len(JOBS)):
            for one in figures:
                mark = "" if one.met(size.allowance()) else "  ** beyond its bound **"
                print(f"{one.name:<45}{one.value:9.4f}  {one.bound():<16}{one.what}{mark}")
                found[one.name] = one
            print(f"{'':45}{took_s:8.1f}s", flush=True)
            cpu_s += took_s
    return found, cpu_s


def main() -> None:
    """Run and print the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer streams, under a minute")
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    start = time.perf_counter()
    found, cpu_s = run(size, options.workers)
    bounded = {name: one for name, one in found.items() if (one.at_most, one.at_least) != (None, None)}
    print(
        json.dumps(
            {
                "benchmark": "error_rates",
                "quick": options.quick,
                "figures": {name: round(one.value, 4) for name, one in found.items()},
                "goals": {name: one.bound() for name, one in bounded.items()},
                "took_s": round(time.perf_counter() - start, 1),
                "cpu_s": round(cpu_s, 1),
                "met": all(one.met(size.allowance()) for one in bounded.values()) and cpu_s <= CORES * LONGEST_S,
            },
            ensure_ascii=False,
        )
    )


if __name__ == "__main__":
    main()
