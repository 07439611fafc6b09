"""The plan's error rates are the ones that the verdict used."""

from __future__ import annotations

from dataclasses import replace

from abswitch.stats import AnalysisPlan, ArmEvidence, Evidence, Rate, RateSummary, Verdict, decide

PLAN = AnalysisPlan(baseline="v1", candidate="v2", metrics=(Rate("m", margin=0.01),), expected_share=0.5, planned_n=600)


def verdict(plan: AnalysisPlan) -> Verdict:
    arms = [
        ArmEvidence(version=name, assigned=n, analysed=n, requests=n, summaries={"m": RateSummary(n, 160)})
        for name, n in (("v1", 290), ("v2", 310))
    ]
    return decide(plan, Evidence(baseline=arms[0], candidate=arms[1], plan_digest=plan.digest()))


def test_alpha_sets_intervals_detectable_effect_and_outlook() -> None:
    strict, loose = verdict(PLAN), verdict(replace(PLAN, alpha=0.2))
    a, b = strict.comparisons["m"], loose.comparisons["m"]
    assert (a.alpha, b.alpha) == (0.05, 0.2)
    assert a.high - a.low > b.high - b.low
    assert strict.detectable > loose.detectable
    assert strict.reasons[0] != loose.reasons[0], "what the test could have seen depends on alpha"


def test_srm_alpha_sets_the_check_of_the_split() -> None:
    assert verdict(PLAN).sample_ratio.alpha == 0.001
    touchy = verdict(replace(PLAN, srm_alpha=0.49))
    assert (touchy.sample_ratio.mismatch, touchy.rule) == (True, "sample-ratio-mismatch")
