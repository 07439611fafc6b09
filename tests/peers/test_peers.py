"""The same data, the same answers: tea-tasting and gbstats, asked by references.py in an environment of their own."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abswitch.stats import (
    Comparison,
    CovariateSummary,
    MeanSummary,
    RateSummary,
    RatioSummary,
    benjamini_hochberg,
    benjamini_yekutieli,
    cuped_test,
    holm,
    mann_whitney_test,
    normal_posterior,
    quantile_interval,
    quantile_test,
    ratio_delta_test,
    relative_lift,
    required_n_mean,
    sample_ratio_mismatch,
    two_proportion_z_test,
    welch_t_test,
)
from abswitch.stats.sequential import anytime_valid, z_boundary

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOLD = json.loads((HERE / "references.json").read_text(encoding="utf-8"))
DATA: dict[str, list[list[float]]] = TOLD["data"]
TEA, GROWTHBOOK = TOLD["tea_tasting"], TOLD["gbstats"]

MEAN = welch_t_test(*(MeanSummary.of(one) for one in DATA["value"]))
CUPED = cuped_test(*(CovariateSummary.of(x, z) for x, z in zip(DATA["value"], DATA["covariate"], strict=True)))
RATIO = ratio_delta_test(*(RatioSummary.of(x, y) for x, y in zip(DATA["numerator"], DATA["denominator"], strict=True)))
RATE = two_proportion_z_test(*(RateSummary.of(one) for one in DATA["binary"]))


def exactly(value: Any) -> Any:
    """But for the order of sums."""
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def test_cuped_is_that_of_both_but_for_theta() -> None:
    """Theirs is pooled over both arms, as if these did not differ; ours within the arms, and pays for estimating it."""
    assert TEA["cuped"]["effect_size"] == exactly(GROWTHBOOK["cuped"]["estimate"])
    (x0, x1), (z0, z1) = ([np.array(arm) for arm in DATA[name]] for name in ("value", "covariate"))
    x, z = np.concatenate([x0, x1]), np.concatenate([z0, z1])
    theta = np.cov(x, z)[0, 1] / z.var(ddof=1)
    estimate = x1.mean() - x0.mean() - theta * (z1.mean() - z0.mean())
    assert estimate == exactly(TEA["cuped"]["effect_size"])
    assert CUPED.estimate == pytest.approx(TEA["cuped"]["effect_size"], rel=2e-3)
    freedom = math.sqrt((len(x) - 2) / (len(x) - 3))
    assert CUPED.standard_error == pytest.approx(GROWTHBOOK["cuped"]["standard_error"] * freedom, rel=1e-4)
    assert CUPED.p_value == pytest.approx(TEA["cuped"]["pvalue"], rel=2e-3)


@pytest.mark.parametrize(("name", "found"), [("mean", MEAN), ("ratio", RATIO)])
def test_means_and_ratios_are_those_of_both(name: str, found: Comparison) -> None:
    tea, growthbook = TEA[name], GROWTHBOOK[name]
    mine = (found.estimate, found.low, found.high, found.p_value)
    names = ("effect_size", "effect_size_ci_lower", "effect_size_ci_upper", "pvalue")
    assert mine == exactly([tea[key] for key in names])
    assert mine == exactly([growthbook[key] for key in ("estimate", "low", "high", "p")])
    assert (found.df, found.standard_error) == exactly((growthbook["df"], growthbook["standard_error"]))
    assert found.baseline.value == exactly(tea["control"])


def test_the_pooled_z_test_is_that_of_tea_tasting() -> None:
    assert RATE.p_value == exactly(TEA["rate"]["pvalue"])
    assert RATE.estimate == exactly(TEA["rate"]["effect_size"])
    # Its interval is Wald's or another; Newcombe's is near it at these sizes.
    assert RATE.low == pytest.approx(TEA["rate"]["effect_size_ci_lower"], abs=0.01)
    assert RATE.high == pytest.approx(TEA["rate"]["effect_size_ci_upper"], abs=0.01)


def test_relative_lift_on_both_scales() -> None:
    arms = [MeanSummary.of(one) for one in DATA["value"]]
    linear, log = (relative_lift(*arms, scale=scale) for scale in ("linear", "log"))
    assert linear.estimate == exactly(GROWTHBOOK["lift"]["estimate"])
    # By normal quantiles here, by t there; each of some hundred degrees of freedom.
    assert (linear.low, linear.high) == pytest.approx((GROWTHBOOK["lift"]["low"], GROWTHBOOK["lift"]["high"]), rel=0.02)
    tea = TEA["mean"]
    assert (log.low, log.high) == pytest.approx(
        (tea["rel_effect_size_ci_lower"], tea["rel_effect_size_ci_upper"]), rel=0.02
    )


def test_the_split_is_checked_alike() -> None:
    for name, counts, share in (("p", (520, 440), 0.5), ("p_uneven", (905, 80), 0.1)):
        exact_below = sample_ratio_mismatch(*counts, expected_share=share)
        by_chi_square = sample_ratio_mismatch(*(10 * n for n in counts), expected_share=share)
        assert exact_below.p_value == pytest.approx(GROWTHBOOK["split"][name], rel=0.15)
        assert by_chi_square.p_value < exact_below.p_value
    assert sample_ratio_mismatch(70, 55, expected_share=0.5).p_value == exactly(TEA["split_exact"]["pvalue"])


def test_ranks_are_those_of_tea_tasting() -> None:
    assert mann_whitney_test(*DATA["value"]).p_value == pytest.approx(TEA["ranks"]["pvalue"], rel=0.01)


def test_medians_have_about_the_interval_of_the_bootstrap() -> None:
    found = quantile_test(*(quantile_interval(one, 0.5) for one in DATA["value"]))
    tea = TEA["median"]
    assert found.estimate == pytest.approx(tea["effect_size"], abs=0.15)  # of an even number, either middle value
    width = tea["effect_size_ci_upper"] - tea["effect_size_ci_lower"]
    assert found.high - found.low == pytest.approx(width, rel=0.25)


@pytest.mark.parametrize(
    ("adjust", "name"),
    [(holm, "holm"), (benjamini_hochberg, "benjamini_hochberg"), (benjamini_yekutieli, "benjamini_yekutieli")],
)
def test_corrections_are_those_of_tea_tasting(adjust: Any, name: str) -> None:
    names = ("mean", "cuped", "ratio", "rate")
    found = adjust([TEA[key]["pvalue"] for key in names])
    assert found.adjusted == exactly([TEA[name][key] for key in names])


def test_the_planned_number_is_that_of_tea_tasting() -> None:
    arms = [np.array(one) for one in DATA["value"]]
    pooled = sum(arm.size * arm.var() for arm in arms) / sum(arm.size for arm in arms)
    together = np.concatenate(arms)
    assert TEA["n_for_half"]["n_obs"] == pytest.approx(required_n_mean(0.5, together.std(ddof=1)), abs=2)
    assert math.sqrt(pooled) == pytest.approx(together.std(ddof=1), rel=0.01)


@pytest.mark.parametrize("planned", [100, 5000])
def test_the_confidence_sequence_is_that_of_gbstats(planned: int) -> None:
    """One formula; their mixture's width is a closed approximation to the best one, which ours is."""
    n = sum(len(one) for one in DATA["value"])
    theirs = GROWTHBOOK[f"sequential_{planned}"]
    boundary = (theirs["high"] - theirs["low"]) / 2 / theirs["standard_error"]
    assert float(z_boundary(n / planned)) == pytest.approx(boundary, rel=0.02)
    found = anytime_valid(MEAN, fraction=n / planned)
    assert found.p_value == theirs["p"] == 1.0
    # Ours is one of Student's t with 123 degrees of freedom: wider, most of all far out.
    assert 1.0 < (found.high - found.low) / (theirs["high"] - theirs["low"]) < 1.1


@pytest.mark.parametrize(("name", "prior_std"), [("bayes_flat", None), ("bayes_prior", 0.2)])
def test_posteriors_are_those_of_gbstats(name: str, prior_std: float | None) -> None:
    found = normal_posterior(*(MeanSummary.of(one) for one in DATA["value"]), prior_std=prior_std)
    theirs = GROWTHBOOK[name]
    mine = (found.estimate, found.chance_to_win, found.low, found.high)
    assert mine == exactly([theirs[key] for key in ("estimate", "chance", "low", "high")])
    losses = (found.loss_if_candidate, found.loss_if_baseline)
    assert sorted(losses) == pytest.approx(sorted((theirs["loss_if_candidate"], theirs["loss_if_baseline"])), rel=1e-6)


PEERS = ROOT / ".venv-peers" / "bin" / "python"


@pytest.mark.skipif(not PEERS.exists(), reason="made by requirements/peers.sh, on request: its pins clash with ours")
def test_the_references_are_what_the_peers_answer() -> None:
    done = subprocess.run(
        [PEERS, HERE / "references.py", "--check"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
