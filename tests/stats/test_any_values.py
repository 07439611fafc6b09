"""Whatever was measured: every test gives a result or a reason; swapped arms turn it, other units scale it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import abswitch.stats as s
from abswitch.errors import InvalidInput
from abswitch.stats.sequential import anytime_valid
from abswitch.stats.timeseries import newey_west_test

Values = list[float]

NUMBER = (
    st.floats(-1e3, 1e3)
    | st.sampled_from([0.0, 1.0, -1.0, 0.1, 1e-300, 1e-9, 1e8, 1e15, 1e99, -1e99])
    | st.floats(-1e100, 1e100)
)
ANY = (
    st.lists(NUMBER, max_size=25)
    | st.builds(lambda value, n: [value] * n, NUMBER, st.integers(0, 25))
    | st.lists(st.sampled_from([0.0, 1.0]), max_size=40)
)
ABOVE_0 = st.lists(st.floats(1e-6, 1e6), max_size=25)
BITS = st.lists(st.sampled_from([0.0, 1.0]), max_size=60)
FEW_BITS = st.lists(st.sampled_from([0.0, 1.0]), max_size=12)
WITHIN_1 = st.lists(st.floats(0, 1), max_size=40)


def ramp(values: Values) -> Any:
    return np.linspace(0.0, 1.0, len(values))


def uneven(values: Values) -> Any:
    return 1.0 + np.arange(len(values)) % 3


def halves(values: Values, of: Callable[[Values], Any]) -> s.StratifiedSummary:
    middle = len(values) // 2
    return s.StratifiedSummary({"a": of(values[:middle]), "b": of(values[middle:])})


def together(a: Values, b: Values) -> tuple[Values, Values]:
    n = min(len(a), len(b))
    return a[:n], b[:n]


def triples(values: Values) -> s.RatioSummary:
    return s.RatioSummary.of(np.array(values) * 3, np.full(len(values), 3.0))


def by_two(values: Values) -> list[int]:
    return [i // 2 for i in range(len(values))]


mean, rate = s.MeanSummary.of, s.RateSummary.of


def ratio(values: Values) -> s.RatioSummary:
    return s.RatioSummary.of(values, uneven(values))


def covaried(values: Values) -> s.CovariateSummary:
    return s.CovariateSummary.of(values, ramp(values))


def covaried_ratio(values: Values) -> s.RatioCovariateSummary:
    return s.RatioCovariateSummary.of(values, uneven(values), ramp(values))


@dataclass(frozen=True)
class Case:
    """A test of two arms of such values, and what it must not mind."""

    values: st.SearchStrategy[Values]
    test: Callable[[Values, Values], Any]
    swaps: bool = True
    scales: bool = True


def once(a: Values, b: Values) -> s.Comparison:
    return s.welch_t_test(mean(a), mean(b))


def sequence(a: Values, b: Values) -> s.Comparison:
    arms = (s.BettingSequence().update(one) for one in (a, b))
    return s.betting_difference(*arms)


def bernstein(a: Values, b: Values) -> s.Comparison:
    arms = (s.EmpiricalBernsteinSequence().update(one) for one in (a, b))
    return s.empirical_bernstein_difference(*arms)


def turns(a: Values, b: Values) -> s.Comparison:
    return newey_west_test([*a, *b], [0] * len(a) + [1] * len(b))


def quantiles_by_unit(a: Values, b: Values) -> s.Comparison:
    arms = (s.QuantileSummary.of(one, 0.5, units=by_two(one)) for one in (a, b))
    return s.Quantile("x", 0.5).compare(*arms, alpha=0.05)


CASES: dict[str, Case] = {
    "Welch": Case(ANY, once),
    "relative lift": Case(ANY, lambda a, b: s.relative_lift(mean(a), mean(b)), swaps=False, scales=False),
    "relative lift, log": Case(
        ABOVE_0, lambda a, b: s.relative_lift(mean(a), mean(b), scale="log"), swaps=False, scales=False
    ),
    "geometric lift": Case(ANY, lambda a, b: s.geometric_lift(mean(a), mean(b)), swaps=False, scales=False),
    "paired t": Case(ANY, lambda a, b: s.paired_t_test(s.PairedSummary.of(*together(a, b)))),
    "Yuen": Case(ANY, lambda a, b: s.yuen_t_test(s.TrimmedSummary.of(a), s.TrimmedSummary.of(b))),
    "permutation": Case(ANY, lambda a, b: s.permutation_test(a, b, resamples=99), swaps=False, scales=False),
    "CUPED": Case(ANY, lambda a, b: s.cuped_test(covaried(a), covaried(b))),
    "Lin": Case(ANY, lambda a, b: s.lin_test(covaried(a), covaried(b))),
    "adjusted ratio": Case(ANY, lambda a, b: s.adjusted_ratio_test(covaried_ratio(a), covaried_ratio(b))),
    "adjusted rate": Case(BITS, lambda a, b: s.adjusted_rate_test(covaried(a), covaried(b)), scales=False),
    "ratio": Case(ANY, lambda a, b: s.ratio_delta_test(ratio(a), ratio(b))),
    "clustered mean": Case(ANY, lambda a, b: s.clustered_mean_test(ratio(a), ratio(b))),
    "clustered rate": Case(BITS, lambda a, b: s.clustered_rate_test(triples(a), triples(b)), scales=False),
    "pooled z": Case(BITS, lambda a, b: s.two_proportion_z_test(rate(a), rate(b)), scales=False),
    "Miettinen-Nurminen": Case(BITS, lambda a, b: s.miettinen_nurminen_test(rate(a), rate(b)), scales=False),
    "Farrington-Manning": Case(BITS, lambda a, b: s.farrington_manning_test(rate(a), rate(b)), scales=False),
    "Fisher": Case(BITS, lambda a, b: s.fisher_exact_test(rate(a), rate(b)), scales=False),
    "Boschloo": Case(FEW_BITS, lambda a, b: s.boschloo_exact_test(rate(a), rate(b)), swaps=False, scales=False),
    "McNemar": Case(BITS, lambda a, b: s.mcnemar_test(s.PairedRateSummary.of(*together(a, b))), scales=False),
    "Tango": Case(BITS, lambda a, b: s.tango_score_test(s.PairedRateSummary.of(*together(a, b))), scales=False),
    "Mann-Whitney": Case(ANY, s.mann_whitney_test),
    "Wilcoxon": Case(ANY, lambda a, b: s.wilcoxon_signed_rank_test(*together(a, b))),
    "medians": Case(ANY, lambda a, b: s.quantile_test(*(s.quantile_interval(x, 0.5) for x in (a, b)))),
    "p95": Case(ANY, lambda a, b: s.quantile_test(*(s.quantile_interval(x, 0.95) for x in (a, b)))),
    "medians by unit": Case(ANY, quantiles_by_unit),
    "stratified": Case(ANY, lambda a, b: s.stratified_test(halves(a, mean), halves(b, mean))),
    "Cochran-Mantel-Haenszel": Case(
        BITS, lambda a, b: s.cochran_mantel_haenszel_test(halves(a, rate), halves(b, rate)), scales=False
    ),
    "Dunnett": Case(ANY, lambda a, b: s.dunnett_test(mean(a), [mean(b)])[0]),
    "group sequential": Case(
        ANY, lambda a, b: s.group_sequential_test(once(a, b), [0.5], design=s.GroupSequentialDesign())
    ),
    "Newey-West": Case(ANY, turns, swaps=False),
    "mixture SPRT": Case(ANY, lambda a, b: s.mixture_sprt(mean(a), mean(b), planned_n=50)),
    "mixture SPRT of rates": Case(
        BITS, lambda a, b: s.mixture_sprt(rate(a), rate(b), planned_n=50), scales=False
    ),
    "mixture SPRT of ratios": Case(ANY, lambda a, b: s.mixture_sprt(ratio(a), ratio(b), planned_n=50)),
    "mixture SPRT, stratified": Case(
        ANY, lambda a, b: s.mixture_sprt(halves(a, mean), halves(b, mean), planned_n=50)
    ),
    "any comparison made anytime-valid": Case(ANY, lambda a, b: anytime_valid(once(a, b), fraction=0.5)),
    "betting": Case(WITHIN_1, sequence, scales=False),
    "empirical Bernstein": Case(WITHIN_1, bernstein, scales=False),
    "beta-binomial": Case(BITS, lambda a, b: s.beta_binomial_difference(rate(a), rate(b)), scales=False),
    "sequential quantile test": Case(
        ANY, lambda a, b: s.sequential_quantile_test(a, b, 0.5, planned_n=50), swaps=False
    ),
    "normal posterior": Case(ANY, lambda a, b: s.normal_posterior(mean(a), mean(b))),
    "beta-binomial posterior": Case(BITS, lambda a, b: s.beta_binomial(rate(a), rate(b)), scales=False),
}  # fmt: skip
NUMBERS = ("estimate", "low", "high", "p_value", "chance_to_win", "loss_if_baseline", "loss_if_candidate")


def found_by(case: Case, a: Values, b: Values) -> Any:
    """Its result, without a warning on the way; None where it refuses the values."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return case.test(a, b)
        except InvalidInput:
            return None


def numbers_of(found: Any) -> dict[str, float]:
    return {name: getattr(found, name) for name in NUMBERS if hasattr(found, name)}


QUIET = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", CASES)
def test_there_is_a_result_or_a_reason(name: str) -> None:
    case = CASES[name]

    @QUIET
    @given(case.values, case.values)
    def run(a: Values, b: Values) -> None:
        found = found_by(case, a, b)
        if found is None:
            return
        got = numbers_of(found)
        if found.why_not is not None:
            assert all(map(math.isnan, got.values())), got
            assert found.why_not.startswith("not attainable: ")
            return
        assert not any(map(math.isnan, got.values())), got
        slack = 1e-9 * max(abs(got["estimate"]), 1e-290)
        assert math.isfinite(got["estimate"]) and got["low"] - slack <= got["estimate"] <= got["high"] + slack
        assert 0.0 <= got.get("p_value", 0.0) <= 1.0 and 0.0 <= got.get("chance_to_win", 0.0) <= 1.0

    run()


ORDINARY = st.lists(st.floats(-100, 100).map(lambda x: round(x, 2)), max_size=30)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.swaps])
def test_swapping_the_arms_turns_the_sign(name: str) -> None:
    case = CASES[name]
    values = case.values if case.values is not ANY else ORDINARY

    @QUIET
    @given(values, values)
    def run(a: Values, b: Values) -> None:
        if case.test in (CASES["CUPED"].test, CASES["Lin"].test) and len(a) != len(b):
            b = b[: len(a)]  # their covariates are by place
            a = a[: len(b)]
        there, back = found_by(case, a, b), found_by(case, b, a)
        assert (there is None) == (back is None)
        if there is None:
            return
        assert there.attainable == back.attainable
        if there.attainable:
            mine = (there.estimate, there.low, there.high)
            assert mine == pytest.approx((-back.estimate, -back.high, -back.low), rel=1e-6, abs=1e-7)
            if hasattr(there, "p_value"):
                assert there.p_value == pytest.approx(back.p_value, rel=1e-6, abs=1e-9)
            else:
                assert there.chance_to_win == pytest.approx(1 - back.chance_to_win, abs=1e-9)

    run()


@pytest.mark.parametrize("scale", [1e-3, 4096.0])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scales])
def test_another_unit_scales_the_estimate(name: str, scale: float) -> None:
    case = CASES[name]

    @QUIET
    @given(ORDINARY, ORDINARY)
    def run(a: Values, b: Values) -> None:
        plain, moved = found_by(case, a, b), found_by(case, [x * scale for x in a], [x * scale for x in b])
        assert (plain is None) == (moved is None)
        if plain is None:
            return
        assert plain.attainable == moved.attainable
        if plain.attainable:
            mine = (moved.estimate / scale, moved.low / scale, moved.high / scale)
            assert mine == pytest.approx((plain.estimate, plain.low, plain.high), rel=1e-6, abs=1e-6)
            if hasattr(plain, "p_value"):
                assert moved.p_value == pytest.approx(plain.p_value, rel=1e-5, abs=1e-9)

    run()
