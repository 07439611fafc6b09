"""`SequentialJudge`: a canary judged by tests that may be read at every look. Pure.

Of each guardrail two things can be shown: that it is broken, and that it is kept. The first sends the candidate back at
any step. The second is asked for at the last step alone, and of every guardrail: steps before it are left once there is
enough evidence and no harm. What shows neither holds, however long; so nothing is promoted on no data, and noise does
not send a good candidate back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.rollout.judging import ArmMeasures, Guardrail, Judgement, Ruling, StepEvidence
from abswitch.rollout.measured import ERROR_RATE
from abswitch.stats.canary import CanaryDecision, CanaryVerdict, GuardrailFinding, judge_canary
from abswitch.stats.error_process import Claim, ErrorProcess
from abswitch.stats.quantile_sequences import sequential_quantile_ranks
from abswitch.stats.quantiles import QuantileRanks
from abswitch.stats.rate_sequences import beta_binomial_sequence
from abswitch.stats.sequential import z_boundary
from abswitch.stats.summaries import RateSummary

PLANNED_N = 1000
"""Observations of an arm in a step at which its intervals are narrowest; has a bearing on power alone."""
_MORE_ERRORS = "errors against stable"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialJudge:
    """The judge of canaries that name no other.

    Harm is shown by any of: the candidate's part of all errors, over all steps (an e-process: exact for rare errors at
    any share, whatever load does to both arms); too many values beyond a quantile's limit, over all steps; or a
    guardrail broken in this step. Their error rates add up to
    `alpha` over all looks and steps, so that a candidate that is as good as the stable version goes back with a chance
    of at most that. A guardrail counts as kept where an interval that holds at all looks, of level 1 − `alpha`, lies
    within its limit: a candidate beyond a limit is promoted with a chance of at most `alpha`.

    Args:
        max_error_rate: share of failed requests that is still accepted, fraction 0–1.
        min_requests: observations of the candidate, in this step, below which no step is left.
        stages: how many steps there are.
        guardrails: further limits.
        alpha: in (0, 0.5]; 0.05 by convention.

    Raises:
        InvalidInput: an argument outside its range.

    References:
        As `judge_canary`, `ErrorProcess`, `beta_binomial_sequence`, `sequential_quantile_ranks`, `z_boundary`.
    """

    max_error_rate: float
    min_requests: int
    stages: int
    guardrails: tuple[Guardrail, ...] = ()
    alpha: float = 0.05

    def __post_init__(self) -> None:
        checks.integer("stages", self.stages, low=1)
        checks.number("alpha", self.alpha, low=0.0, high=0.5, above=True)

    def __call__(self, evidence: StepEvidence) -> Judgement:
        """What the evidence allows.

        Raises:
            InvalidInput: there is not exactly one candidate.
        """
        if len(evidence.candidates) != 1:
            raise InvalidInput("candidates", [arm.version for arm in evidence.candidates], "one: a canary has one")
        verdict = self.verdict(evidence)
        reason = "; ".join(verdict.reasons[:1]) if verdict.decision is not CanaryDecision.HOLD else _whole(verdict)
        if verdict.decision is CanaryDecision.ROLL_BACK:
            return Judgement(ruling=Ruling.ROLL_BACK, reason=reason)
        goes_on = verdict.decision is CanaryDecision.PROMOTE or (verdict.may_advance and not self._is_last(evidence))
        return Judgement(ruling=Ruling.ADVANCE if goes_on else Ruling.HOLD, reason=reason)

    def verdict(self, evidence: StepEvidence) -> CanaryVerdict:
        """The findings of every guardrail, and what follows from them."""
        rails = (Guardrail(metric=ERROR_RATE, max=self.max_error_rate), *self.guardrails)
        part = self.alpha / (1 + len(rails))
        findings = [self._more_errors(evidence, part)]
        findings += [self._kept(rail, evidence, part) for rail in rails]
        return judge_canary(
            findings, last_stage=self._is_last(evidence), alpha=self.alpha, look=max(1, evidence.evaluation)
        )

    def _is_last(self, evidence: StepEvidence) -> bool:
        return evidence.stage >= self.stages - 1

    # --- more errors than the stable version ------------------------------------------------------------------------

    def _more_errors(self, evidence: StepEvidence, alpha: float) -> GuardrailFinding:
        """Harm only: how many errors are acceptable is the limit's affair, so this is never in the way."""
        now = (evidence.share, evidence.stable, evidence.candidates)
        steps = [
            (share, stable.first_errors, candidates[0].first_errors)
            for share, stable, candidates in (*evidence.earlier, now)
            if candidates and 0.0 < share < 1.0
        ]
        counts = [errors for _, *both in steps for errors in both]
        process = ErrorProcess(Claim.HARM, alpha=alpha).update_labels(
            np.repeat([0.0, 1.0] * len(steps), counts),
            np.repeat([share for share, *_ in steps for _ in range(2)], counts),
        )
        return GuardrailFinding(
            name=_MORE_ERRORS,
            harmed=process.shown,
            safe=True,
            harm_alpha=alpha,
            safe_alpha=self.alpha,
            n=max(1, process.labels),
            words=f"{_MORE_ERRORS}: {process.in_words() if process.labels else 'none in either arm'}",
        )

    # --- limits -----------------------------------------------------------------------------------------------------

    def _kept(self, rail: Guardrail, evidence: StepEvidence, part: float) -> GuardrailFinding:
        candidate, stable = evidence.candidates[0], evidence.stable
        # Half for this step's observations, as every step looks at its own; half for what all steps say together.
        harm_alpha = part / 2 / self.stages / rail.sides
        why_not = self._why_not(rail.metric, candidate)
        sides = [] if why_not else list(_sides(rail, candidate, stable, harm_alpha, self.alpha))
        slow = not why_not and self._too_slow(rail, evidence, part)
        unknown = why_not or next((side.why_not for side in sides if side.why_not), None)
        return GuardrailFinding(
            name=rail.metric,
            harmed=slow or any(side.broken for side in sides),
            safe=unknown is None and all(side.kept for side in sides),
            harm_alpha=part,
            safe_alpha=self.alpha,
            n=candidate.count(rail.metric),
            words="; ".join(side.words for side in sides) or f"{rail.metric} of {candidate.version}",
            why_not=why_not,
        )

    def _too_slow(self, rail: Guardrail, evidence: StepEvidence, part: float) -> bool:
        """Whether more values lie beyond a quantile's upper limit than may, over all steps together.

        What is beyond is told within each step, by the limit that the stable version's own quantile sets there; so load
        that comes and goes for both arms makes no difference.
        """
        limits = [(rail.max, False), (rail.max_ratio, True)]
        alpha = part / 2 / sum(limit is not None for limit, _ in limits) if any(limit for limit, _ in limits) else 0.0
        return any(
            limit is not None and self._beyond(rail.metric, limit, is_ratio, evidence, alpha)
            for limit, is_ratio in limits
        )

    def _beyond(self, metric: str, limit: float, is_ratio: bool, evidence: StepEvidence, alpha: float) -> bool:
        n, beyond, most = 0, 0, 0.0
        for _, stable, candidates in (*evidence.earlier, (evidence.share, evidence.stable, evidence.candidates)):
            if not candidates or metric not in candidates[0].samples:
                continue
            q, values = candidates[0].samples[metric]
            edge = limit * _interval(stable, metric, alpha / self.stages)[1] if is_ratio else limit
            if math.isfinite(edge):
                n, most = n + len(values), 1.0 - q
                beyond += len(values) - int(np.searchsorted(values, edge, side="right"))
        return n > 0 and beta_binomial_sequence(RateSummary(n, beyond), alpha=min(alpha, 0.5))[0] > most

    def _why_not(self, metric: str, candidate: ArmMeasures) -> str | None:
        count, value = candidate.count(metric), candidate.value(metric)
        if count >= self.min_requests and not math.isfinite(value):
            return f"{value} of {candidate.version}, which says nothing"
        if count < self.min_requests and not self._hopeless(metric, candidate):
            return f"{count} of {self.min_requests} needed observations of {candidate.version}"
        return None

    def _hopeless(self, metric: str, candidate: ArmMeasures) -> bool:
        """Errors may leave no doubt before there are many requests."""
        return metric == ERROR_RATE and _interval(candidate, metric, self.alpha / self.stages)[0] > self.max_error_rate


@dataclass(frozen=True, slots=True)
class _Side:
    """One limit of a guardrail."""

    broken: bool
    kept: bool
    words: str
    why_not: str | None


def _sides(
    rail: Guardrail, candidate: ArmMeasures, stable: ArmMeasures, harm_alpha: float, safe_alpha: float
) -> Iterator[_Side]:
    for most, absolute, ratio in ((True, rail.max, rail.max_ratio), (False, rail.min, rail.min_ratio)):
        if absolute is not None:
            yield _side(rail.metric, most, candidate, None, absolute, (2 * harm_alpha, 2 * safe_alpha))
        if ratio is not None:
            # One end of each of two intervals: each takes half of what the test may err.
            yield _side(rail.metric, most, candidate, stable, ratio, (harm_alpha, safe_alpha))


def _side(
    metric: str,
    most: bool,
    candidate: ArmMeasures,
    stable: ArmMeasures | None,
    factor: float,
    alphas: tuple[float, float],
) -> _Side:
    harm, safe = (
        (
            _interval(candidate, metric, alpha),
            (factor, factor) if stable is None else _times(_interval(stable, metric, alpha), factor),
        )
        for alpha in alphas
    )
    (low, high), (least, largest) = harm
    broken = low > largest if most else high < least
    (low, high), (least, largest) = safe
    kept = high <= least if most else low >= largest
    limit = factor * (1.0 if stable is None else stable.value(metric))
    unknown = stable is not None and not math.isfinite(limit)
    return _Side(
        broken=broken,
        kept=kept,
        words=(
            f"{metric} of {candidate.version} is {candidate.value(metric):.4g} [{low:.4g}, {high:.4g}] on "
            f"{candidate.count(metric)}, where at {'most' if most else 'least'} {limit:.4g} is allowed"
            + ("" if stable is None else f" ({factor:g} × stable, on {stable.count(metric)})")
        ),
        why_not="the stable version gives no value to compare with" if unknown else None,
    )


def _times(interval: tuple[float, float], factor: float) -> tuple[float, float]:
    low, high = interval[0] * factor, interval[1] * factor
    return min(low, high), max(low, high)


def _interval(arm: ArmMeasures, metric: str, alpha: float) -> tuple[float, float]:
    """A quantity of one arm, at all looks together with confidence 1 − alpha; all numbers while too little is known."""
    alpha = min(alpha, 0.5)
    if metric == ERROR_RATE:
        return beta_binomial_sequence(RateSummary(arm.requests, arm.errors), alpha=alpha)
    if metric in arm.samples:
        return _of_quantile(arm, metric, alpha)
    n, mean = arm.count(metric), arm.value(metric)
    if n < 2 or not math.isfinite(mean):
        return -math.inf, math.inf
    if arm.is_fraction.get(metric, False):
        # A Bernoulli likelihood ratio is convex in the value, so it bounds any value from 0 to 1 with the same mean.
        return beta_binomial_sequence(RateSummary(n, round(n * mean)), alpha=alpha)
    return _of_mean(n, mean, arm.variances.get(metric, math.nan), alpha)


def _of_quantile(arm: ArmMeasures, metric: str, alpha: float) -> tuple[float, float]:
    q, values = arm.samples[metric]
    ranks = _ranks(len(values), q, alpha)
    if ranks.low is None or ranks.high is None:
        return -math.inf, math.inf
    return float(values[ranks.low - 1]), float(values[ranks.high - 1])


@functools.lru_cache(maxsize=1024)
def _ranks(n: int, q: float, alpha: float) -> QuantileRanks:
    """Steps that are over are looked at again and again, with as many values each time."""
    return sequential_quantile_ranks(n, q, planned_n=PLANNED_N, alpha=alpha)


def _of_mean(n: int, mean: float, variance: float, alpha: float) -> tuple[float, float]:
    if not (math.isfinite(variance) and variance > 0.0):  # no variation yet: nothing is known of its spread
        return -math.inf, math.inf
    bound = float(z_boundary(n / PLANNED_N, alpha=alpha))
    half = -float(special.stdtrit(n - 1, special.ndtr(-bound))) * math.sqrt(variance / n)
    return mean - half, mean + half


def _whole(verdict: CanaryVerdict) -> str:
    """Why it holds, or (of a step that is left) what there is to go by."""
    first, *others = verdict.reasons
    return "; ".join(others) if verdict.rule == "not-last-stage" else first
