"""Canary policy: promote, hold, roll back; the order of its rules, and what never promotes."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from abswitch.errors import InvalidInput
from abswitch.stats import MeanSummary, RateSummary, welch_t_test
from abswitch.stats.canary import CanaryDecision, GuardrailFinding, harm_alpha, judge_canary
from abswitch.stats.error_process import Claim, ErrorProcess
from abswitch.stats.mixture import mixture_sprt
from abswitch.stats.rate_sequences import beta_binomial_difference
from abswitch.stats.sequential_srm import sequential_sample_ratio

PROMOTE, HOLD, ROLL_BACK = CanaryDecision.PROMOTE, CanaryDecision.HOLD, CanaryDecision.ROLL_BACK


def finding(name: str = "error", *, harmed: bool = False, safe: bool = True, **more: Any) -> GuardrailFinding:
    given: dict[str, Any] = {"harm_alpha": 0.01, "safe_alpha": 0.05, "n": 100, "words": f"{name} is as it is"} | more
    return GuardrailFinding(name=name, harmed=harmed, safe=safe, **given)


MISMATCH = sequential_sample_ratio([(600, 400, 0.5)])
SOUND = sequential_sample_ratio([(500, 500, 0.5)])


@pytest.mark.parametrize(
    ("findings", "last", "split", "decision", "rule"),
    [
        ([finding()], True, SOUND, PROMOTE, "all-safe"),
        ([finding()], True, None, PROMOTE, "all-safe"),
        ([finding(), finding("latency", safe=False)], True, SOUND, HOLD, "not-shown"),
        ([finding()], False, SOUND, HOLD, "not-last-stage"),
        ([finding(), finding("latency", safe=False, why_not="no values")], False, SOUND, HOLD, "no-data"),
        ([finding(n=0)], True, SOUND, HOLD, "no-data"),
        ([finding()], True, MISMATCH, HOLD, "sample-ratio-mismatch"),
        ([], True, SOUND, HOLD, "no-guardrails"),
        ([finding(), finding("latency", harmed=True)], True, SOUND, ROLL_BACK, "harmed"),
        ([finding(harmed=True, safe=True)], False, MISMATCH, ROLL_BACK, "harmed"),
        ([finding(harmed=True, why_not="no values")], True, None, ROLL_BACK, "harmed"),
    ],
)
def test_the_first_rule_that_applies_decides(findings: Any, last: bool, split: Any, decision: Any, rule: str) -> None:
    found = judge_canary(findings, last_stage=last, sample_ratio=split, look=4)
    assert (found.decision, found.rule, found.look) == (decision, rule, 4)
    assert found.headline.startswith(decision.upper()) and found.reasons
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["decision"] == decision.value


def test_nothing_but_every_guardrail_safe_at_the_last_stage_promotes() -> None:
    for harmed, safe, n, why_not, last, split in itertools.product(
        (True, False), (True, False), (0, 9), (None, "NaN"), (True, False), (None, SOUND, MISMATCH)
    ):
        one = finding(harmed=harmed, safe=safe, n=n, why_not=why_not)
        found = judge_canary([finding("other"), one], last_stage=last, sample_ratio=split)
        good = not harmed and safe and n and why_not is None and last and split is not MISMATCH
        assert (found.decision is PROMOTE) == bool(good)
        assert (found.decision is ROLL_BACK) == harmed


def test_a_stage_may_be_left_when_nothing_is_wrong_and_something_was_seen() -> None:
    assert judge_canary([finding(safe=False)], last_stage=False).may_advance
    for one, split in ((finding(n=0), None), (finding(harmed=True), None), (finding(), MISMATCH)):
        assert not judge_canary([one], last_stage=False, sample_ratio=split).may_advance


def test_every_reason_is_told_the_decisive_one_first() -> None:
    found = judge_canary([finding("a"), finding("b", safe=False)], last_stage=True, sample_ratio=SOUND)
    assert found.reasons[0] == "b is as it is" and "a is as it is" in found.reasons
    assert "50.0% on the candidate where 50.0% was planned" in found.in_words()


def test_harm_tests_share_alpha() -> None:
    assert harm_alpha(0.05, 5) == 0.01
    judge_canary([finding(str(i), harm_alpha=harm_alpha(0.05, 7)) for i in range(7)], last_stage=True)
    with pytest.raises(InvalidInput, match="harm_alpha"):
        judge_canary([finding("a", harm_alpha=0.03), finding("b", harm_alpha=0.03)], last_stage=True)
    with pytest.raises(InvalidInput, match="safe_alpha"):
        judge_canary([finding(safe_alpha=0.1)], last_stage=True)
    with pytest.raises(InvalidInput):
        judge_canary([finding(harm_alpha=math.nan)], last_stage=True)
    with pytest.raises(InvalidInput):
        harm_alpha(0.05, 0)


class TestOfComparisons:
    def latency(self, slower: float, n: int = 4000, margin: float = 0.1) -> GuardrailFinding:
        arms = MeanSummary(n, 0.0, 0.5 * n), MeanSummary(n, slower, 0.5 * n)
        harm, safe = (mixture_sprt(*arms, planned_n=2 * n, alpha=2 * alpha) for alpha in (0.025, 0.05))
        return GuardrailFinding.of_comparisons("latency", harm, safe, margin=margin, direction="decrease")

    def test_better_equal_worse(self) -> None:
        states = {slower: (self.latency(slower).harmed, self.latency(slower).safe) for slower in (-0.2, 0.0, 0.2)}
        assert states == {-0.2: (False, True), 0.0: (False, True), 0.2: (True, False)}

    def test_a_small_harm_can_be_both_real_and_acceptable(self) -> None:
        found = self.latency(0.06, n=100_000)
        assert found.harmed and found.safe
        assert judge_canary([found], last_stage=True).decision is ROLL_BACK

    def test_error_rates_are_those_of_one_side(self) -> None:
        found = self.latency(0.0)
        assert found.harm_alpha == 0.025 and found.safe_alpha == 0.05 and found.n == 4000
        assert "α = 0.025" in found.words and "mixture SPRT" in found.words

    def test_no_result_is_no_data(self) -> None:
        empty = MeanSummary.of([])
        nothing = mixture_sprt(empty, empty, planned_n=100)
        found = GuardrailFinding.of_comparisons("latency", nothing, nothing, margin=0.1, direction="decrease")
        assert not found.harmed and not found.safe and found.why_not is not None
        assert judge_canary([replace(found, harm_alpha=0.05)], last_stage=True).rule == "no-data"

    def test_not_a_number_is_no_data(self) -> None:
        fine = welch_t_test(MeanSummary(50, 1.0, 9.0), MeanSummary(50, 1.0, 9.0))
        broken = replace(fine, low=math.nan)
        found = GuardrailFinding.of_comparisons("x", fine, broken, margin=1.0, direction="increase")
        assert not found.safe and found.why_not is not None

    def test_bad_margins_are_refused(self) -> None:
        with pytest.raises(InvalidInput):
            self.latency(0.0, margin=0.0)


class TestOfErrors:
    def test_by_the_ratio(self) -> None:
        harm = ErrorProcess(Claim.HARM, alpha=0.01).update(baseline=100, candidate=100, share=0.5)
        safe = ErrorProcess(Claim.NO_HARM, 2.0).update(baseline=100, candidate=100, share=0.5)
        found = GuardrailFinding.of_errors("error", harm, safe)
        assert (found.harmed, found.safe, found.n, found.harm_alpha) == (False, True, 200, 0.01)

    def test_no_error_at_all_says_nothing(self) -> None:
        found = GuardrailFinding.of_errors("error", ErrorProcess(Claim.HARM), ErrorProcess(Claim.NO_HARM, 2.0))
        assert not found.safe and judge_canary([found], last_stage=True).rule == "no-data"

    def test_by_the_difference_where_errors_are_too_rare(self) -> None:
        rates = beta_binomial_difference(RateSummary(5000, 0), RateSummary(5000, 1), alpha=0.1)
        found = GuardrailFinding.of_errors("error", ErrorProcess(Claim.HARM), rates, margin=0.01)
        assert found.safe and found.safe_alpha == 0.05 and found.n == 5000
        assert not GuardrailFinding.of_errors("error", ErrorProcess(Claim.HARM), rates, margin=0.001).safe

    def test_other_claims_are_refused(self) -> None:
        harm, safe = ErrorProcess(Claim.HARM), ErrorProcess(Claim.NO_HARM, 2.0)
        rates = beta_binomial_difference(RateSummary(50, 0), RateSummary(50, 1), alpha=0.1)
        for pair in ((safe, safe), (harm, harm), (harm, rates)):
            with pytest.raises(InvalidInput):
                GuardrailFinding.of_errors("error", *pair)


def test_a_canary_that_errs_three_times_as_often_is_rolled_back_along_the_ramp() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        harm, safe = ErrorProcess(Claim.HARM), ErrorProcess(Claim.NO_HARM, 1.5)
        decisions = []
        for share, last in ((0.05, False), (0.25, False), (0.5, True)):
            for _look in range(4):
                mine = int(rng.binomial(2000, share))
                new = {"baseline": int(rng.binomial(2000 - mine, 0.01)), "candidate": int(rng.binomial(mine, 0.03))}
                harm, safe = harm.update(**new, share=share), safe.update(**new, share=share)
                verdict = judge_canary([GuardrailFinding.of_errors("error", harm, safe)], last_stage=last)
                decisions.append(verdict.decision)
        assert ROLL_BACK in decisions and PROMOTE not in decisions
