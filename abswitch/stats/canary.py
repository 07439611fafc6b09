"""May a canary be promoted? Every guardrail is asked two questions, at every look: is it harmed, and is it safe?

Any harm rolls back, so the harm tests share one error rate: with k guardrails each has alpha / k. Promotion needs every
guardrail to be shown non-inferior, so those tests share nothing: each has alpha. Whatever is in between holds: no data,
a value that is not a number, and a split that is off hold too. Nothing is promoted because time went by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Self

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.comparison import Comparison, finite
from abswitch.stats.components import error_rate
from abswitch.stats.error_process import Claim, ErrorProcess
from abswitch.stats.margins import MarginOutcome, MarginTest, harm_test, non_inferiority
from abswitch.stats.srm import SampleRatio

_ROUNDING = 1e-9


class CanaryDecision(StrEnum):
    """What to do with a canary."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLL_BACK = "roll back"


def harm_alpha(alpha: float, guardrails: int) -> float:
    """The error rate of each harm test, of which any rolls back.

    >>> harm_alpha(0.05, 4)
    0.0125
    """
    return error_rate(alpha) / checks.integer("guardrails", guardrails, low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailFinding:
    """What is known of one guardrail at one look.

    Attributes:
        harmed: worse than the stable version is shown, with error rate `harm_alpha` over all looks.
        safe: non-inferior by its margin is shown, with error rate `safe_alpha`.
        n: what this rests on: the candidate's observations, or errors of both arms.
        words: a clause with the numbers.
        why_not: why there is nothing to go by; None when there is something.
    """

    name: str
    harmed: bool
    safe: bool
    harm_alpha: float
    safe_alpha: float
    n: int
    words: str
    why_not: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    @classmethod
    def of_comparisons(
        cls,
        name: str,
        harm: Comparison,
        safe: Comparison,
        *,
        margin: float,
        direction: str,
        harm_margin: float = 0.0,
    ) -> Self:
        """From two comparisons of one metric, both anytime-valid: single-look ones would err at nearly every canary.

        Args:
            harm: its two-sided alpha is twice that of the harm test: 2 · `harm_alpha(alpha, guardrails)`.
            safe: likewise, twice that of the non-inferiority test.
            margin: how much worse is still acceptable, above 0, in the metric's own unit (a ratio's logarithm, where
                logarithms are compared).
            direction: `increase` or `decrease`, whichever is better.
            harm_margin: how much worse is harm; 0 by default.

        Raises:
            InvalidInput: a margin or direction that is not allowed.
        """
        harmed = harm_test(harm, direction=direction, margin=harm_margin)
        held = non_inferiority(safe, margin=margin, direction=direction)
        usable = all(map(math.isfinite, (safe.estimate, safe.low, safe.high)))
        return cls(
            name=name,
            harmed=harmed.outcome is MarginOutcome.SHOWN,
            safe=usable and held.outcome is MarginOutcome.SHOWN,
            harm_alpha=harmed.alpha,
            safe_alpha=held.alpha,
            n=safe.candidate.n,
            words=_words(name, harm, safe, harmed, held),
            why_not=None if usable else safe.why_not or "not attainable: the interval is not finite",
        )

    @classmethod
    def of_errors(
        cls, name: str, harm: ErrorProcess, safe: ErrorProcess | Comparison, *, margin: float | None = None
    ) -> Self:
        """Of rare events: errors, or answers slower than the objective.

        Args:
            harm: of claim `harm`, with `harm_alpha(alpha, guardrails)`.
            safe: of claim `no harm`, with a ratio as its margin: takes some 70 errors in both arms at an even split to
                exclude twice as many. Or, where errors are too rare for that, an anytime-valid comparison of the rates
                (`beta_binomial_difference`) with an absolute `margin`.
            margin: of a comparison alone: by how much a rate may be higher, a fraction above 0.

        Raises:
            InvalidInput: processes of other claims, or a margin that is not allowed.
        """
        if harm.claim is not Claim.HARM or (isinstance(safe, ErrorProcess) and safe.claim is not Claim.NO_HARM):
            raise InvalidInput("claim", (harm, safe), "`harm` for the first, `no harm` for the second")
        if isinstance(safe, ErrorProcess):
            shown, alpha, n, held = safe.shown, safe.alpha, safe.labels, safe.in_words()
            why_not = None if n else "no event in either arm yet"  # nor, for all this says, any request
        else:
            test = non_inferiority(safe, margin=math.nan if margin is None else margin, direction="decrease")
            shown, alpha, n, why_not = test.outcome is MarginOutcome.SHOWN, test.alpha, safe.candidate.n, safe.why_not
            held = f"difference {safe.estimate:+.4g} [{safe.low:+.4g}, {safe.high:+.4g}] ({safe.method})"
        return cls(
            name=name,
            harmed=harm.shown,
            safe=shown,
            harm_alpha=harm.alpha,
            safe_alpha=alpha,
            n=n,
            words=f"{name}: {harm.in_words()}; {held}",
            why_not=why_not,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryVerdict:
    """What to do with a canary, and why.

    Attributes:
        rule: stable id of the rule that decided.
        reasons: sentences with their numbers, the decisive one first.
        findings: of each guardrail.
        may_advance: a stage that is not the last may be left for the next: nothing is harmed, the split is as planned,
            and every guardrail has something to go by. This is no promotion.
        alpha: split evenly across harm tests, or not at all across those that all must pass.
        look: which look this is, from 1, if it was told.
    """

    decision: CanaryDecision
    rule: str
    reasons: tuple[str, ...]
    findings: tuple[GuardrailFinding, ...]
    may_advance: bool
    alpha: float
    look: int | None = None
    sample_ratio: SampleRatio | None = None

    @property
    def headline(self) -> str:
        """One line for people."""
        return f"{self.decision.upper()}: {_HEADLINE[self.rule]}"

    def in_words(self) -> str:
        """The headline and the reasons, a line each."""
        return "\n".join((self.headline, *(f"  - {reason}" for reason in self.reasons)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values under the names of the fields, and `headline`; what JSON cannot hold is None."""
        plain: dict[str, Any] = finite(asdict(self) | {"decision": self.decision.value, "headline": self.headline})
        return plain


_HEADLINE = {
    "harmed": "the candidate harms a guardrail.",
    "no-guardrails": "nothing was measured, so nothing can be said.",
    "sample-ratio-mismatch": "traffic is not split as planned, so the evidence cannot be trusted.",
    "no-data": "a guardrail has nothing to go by.",
    "not-last-stage": "no harm so far; the last stage is still to come.",
    "not-shown": "no harm so far, but a guardrail is not shown to hold.",
    "all-safe": "every guardrail is shown to hold.",
}


class _Case(NamedTuple):
    findings: tuple[GuardrailFinding, ...]
    last_stage: bool
    sample_ratio: SampleRatio | None

    def named(self, which: Callable[[GuardrailFinding], bool]) -> list[GuardrailFinding]:
        return [finding for finding in self.findings if which(finding)]


def judge_canary(
    findings: Sequence[GuardrailFinding],
    *,
    last_stage: bool,
    alpha: float = 0.05,
    sample_ratio: SampleRatio | None = None,
    look: int | None = None,
) -> CanaryVerdict:
    """Promote, hold or roll back.

    The first rule that applies decides: a guardrail harmed (`harmed`: roll back, even where the split is off, as
    rolling back is the safe side); no guardrails, a split that is off, a guardrail without data, a stage that is not
    the last, a guardrail not shown to hold (all hold); and, when none applies, `all-safe`: promote.

    With every guardrail's harm test at alpha / k, an equal candidate is rolled back with probability of at most alpha,
    over all looks; one that is worse by a guardrail's margin is promoted with probability of at most alpha.

    Args:
        findings: of each guardrail, at this look.
        last_stage: whether the candidate has the largest share it is to have before promotion.
        alpha: of all harm tests together, and of each non-inferiority test. 0.05 by convention.
        sample_ratio: the sequential check of the split, where it is made.
        look: number of this look, from 1, for the record.

    Raises:
        InvalidInput: harm tests whose error rates add up to more than alpha, or a non-inferiority test with more.

    References:
        R. L. Berger, Technometrics 24 (1982) 295–300 (all must pass); M. Lindon, C. Sanden, V. Shirikian, "Rapid
        Regression Detection in Software Deployments through Sequential Testing", KDD 2022.
    """
    _check(findings, error_rate(alpha))
    case = _Case(tuple(findings), last_stage, sample_ratio)
    decision, rule, reason = _decide(case)
    others = [finding.words for finding in case.findings if finding.words not in reason]
    return CanaryVerdict(
        decision=decision,
        rule=rule,
        reasons=(reason, *others, *_split(sample_ratio)),
        findings=case.findings,
        may_advance=rule in ("not-last-stage", "not-shown", "all-safe"),
        alpha=alpha,
        look=look,
        sample_ratio=sample_ratio,
    )


def _decide(case: _Case) -> tuple[CanaryDecision, str, str]:
    hold = CanaryDecision.HOLD
    if harmed := case.named(lambda one: one.harmed):
        return CanaryDecision.ROLL_BACK, "harmed", "; ".join(one.words for one in harmed)
    if not case.findings:
        return hold, "no-guardrails", "no guardrail was given"
    if case.sample_ratio is not None and case.sample_ratio.mismatch:
        return hold, "sample-ratio-mismatch", _split(case.sample_ratio)[0]
    if empty := case.named(lambda one: one.why_not is not None or one.n < 1):
        return hold, "no-data", "; ".join(f"{one.name}: {one.why_not or 'no observations'}" for one in empty)
    if not case.last_stage:
        return hold, "not-last-stage", "the candidate has not reached its last stage"
    if unsure := case.named(lambda one: not one.safe):
        return hold, "not-shown", "; ".join(one.words for one in unsure)
    return CanaryDecision.PROMOTE, "all-safe", "; ".join(one.words for one in case.findings)


def _check(findings: Sequence[GuardrailFinding], alpha: float) -> None:
    spent = sum(one.harm_alpha for one in findings)
    if not spent <= alpha + _ROUNDING:
        raise InvalidInput("findings.harm_alpha", spent, f"error rates that add up to at most {alpha:g}")
    for one in findings:
        if not one.safe_alpha <= alpha + _ROUNDING:
            raise InvalidInput(f"findings.{one.name}.safe_alpha", one.safe_alpha, f"at most {alpha:g}")


def _split(ratio: SampleRatio | None) -> tuple[str, ...]:
    if ratio is None:
        return ()
    return (
        f"split: {ratio.baseline} baseline and {ratio.candidate} candidate units, {ratio.observed_share:.1%} on the "
        f"candidate where {ratio.expected_share:.1%} was planned ({ratio.method}, p = {ratio.p_value:.2g}, "
        f"α = {ratio.alpha:g})",
    )


def _words(name: str, harm: Comparison, safe: Comparison, harmed: MarginTest, held: MarginTest) -> str:
    if not safe.attainable:
        return f"{name}: {safe.why_not}"
    a, b = safe.baseline, safe.candidate
    return (
        f"{name} {a.value:.4g} → {b.value:.4g}, difference {safe.estimate:+.4g} ({safe.method}, n = {a.n} + {b.n}); "
        f"harm {harmed.outcome} [{harm.low:+.4g}, {harm.high:+.4g}] at α = {harmed.alpha:.3g}; not worse by "
        f"{held.margin:g} {held.outcome} [{safe.low:+.4g}, {safe.high:+.4g}] at α = {held.alpha:.3g}"
    )
