"""What tea-tasting and gbstats answer to fixed data: run in their own environment, see requirements/peers.sh.

Prints nothing when all is well: writes references.json beside itself, or with `--check` compares with what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gbstats.bayesian.tests as gb_bayes
import gbstats.frequentist.tests as gb
import numpy as np
import pandas as pd
import tea_tasting as tt
from gbstats.models import statistics as gb_stat
from gbstats.utils import check_srm

OUT = Path(__file__).with_name("references.json")
ALPHA = 0.05
SIZES = (70, 55)
PACKAGES = ("tea-tasting", "gbstats", "numpy", "pandas", "scipy")

Data = dict[str, list[list[float]]]


def data() -> Data:
    """By column: the baseline's values and the candidate's, rounded so that they are the same everywhere."""
    rng = np.random.default_rng(20_261)
    out: Data = {name: [] for name in ("value", "covariate", "numerator", "denominator", "binary")}
    for n, shift in zip(SIZES, (0.0, 0.4), strict=True):
        before = rng.gamma(3.0, 1.0, n)
        seconds = rng.gamma(4.0, 0.5, n)
        columns = {
            "value": before + rng.gamma(2.0, 1.0, n) + shift,
            "covariate": before,
            "numerator": 20 * seconds + rng.normal(0, 5, n) + 8 * shift,
            "denominator": seconds,
            "binary": (rng.random(n) < 0.3 + shift / 2).astype(float),
        }
        for name, values in columns.items():
            out[name].append([round(float(one), 4) for one in values])
    return out


def frame(given: Data) -> pd.DataFrame:
    arms = [pd.DataFrame({name: both[arm] for name, both in given.items()} | {"variant": arm}) for arm in (0, 1)]
    return pd.concat(arms, ignore_index=True)


# --- tea-tasting ------------------------------------------------------------------------------------------------------


def tea_tasting(given: Data) -> dict[str, Any]:
    experiment = tt.Experiment(
        mean=tt.Mean("value", use_t=True, equal_var=False),
        cuped=tt.Mean("value", "covariate", use_t=True, equal_var=False),
        ratio=tt.RatioOfMeans("numerator", "denominator", use_t=True, equal_var=False),
        rate=tt.Proportion("binary", method="norm", correction=False),
        split=tt.SampleRatio(1, method="norm", correction=False),
        split_exact=tt.SampleRatio(1, method="binom"),
        ranks=tt.MannWhitneyU("value"),
        median=tt.Quantile("value", 0.5, n_resamples=20_000, rng=1),
    )
    found = experiment.analyze(frame(given))
    keep = (
        "control", "treatment", "effect_size", "effect_size_ci_lower", "effect_size_ci_upper",
        "rel_effect_size", "rel_effect_size_ci_lower", "rel_effect_size_ci_upper", "pvalue", "statistic",
    )  # fmt: skip
    out = {name: {key: float(v) for key, v in one._asdict().items() if key in keep} for name, one in found.items()}
    tested = tt.Experiment({name: experiment.metrics[name] for name in ("mean", "cuped", "ratio", "rate")})
    results = {"one": tested.analyze(frame(given))}
    for name, many in (
        ("benjamini_yekutieli", tt.adjust_fdr(results, arbitrary_dependence=True)),
        ("holm", tt.adjust_fwer(results, arbitrary_dependence=True, method="bonferroni")),
    ):
        out[name] = {key: float(one["pvalue_adj"]) for key, one in many["one"].items()}
    independent = tt.adjust_fdr(results, arbitrary_dependence=False)
    out["benjamini_hochberg"] = {key: float(one["pvalue_adj"]) for key, one in independent["one"].items()}
    planned = tt.Mean("value", alpha=ALPHA, power=0.8, effect_size=0.5, use_t=False)
    out["n_for_half"] = {"n_obs": int(planned.solve_power(frame(given), "n_obs")[0].n_obs)}
    return out


# --- gbstats ----------------------------------------------------------------------------------------------------------


def mean_of(values: list[float]) -> Any:
    array = np.array(values)
    return gb_stat.SampleMeanStatistic(n=array.size, sum=float(array.sum()), sum_squares=float((array**2).sum()))


def ratio_of(x: list[float], y: list[float]) -> Any:
    products = float(np.dot(x, y))
    return gb_stat.RatioStatistic(
        n=len(x), m_statistic=mean_of(x), d_statistic=mean_of(y), m_d_sum_of_products=products
    )


def adjusted_of(x: list[float], z: list[float]) -> Any:
    """The test works out theta by itself."""
    products = float(np.dot(x, z))
    return gb_stat.RegressionAdjustedStatistic(
        n=len(x), post_statistic=mean_of(x), pre_statistic=mean_of(z), post_pre_sum_of_products=products, theta=0
    )


def growthbook(given: Data) -> dict[str, Any]:
    means = [mean_of(one) for one in given["value"]]
    ratios = [ratio_of(x, y) for x, y in zip(given["numerator"], given["denominator"], strict=True)]
    adjusted = [adjusted_of(x, z) for x, z in zip(given["value"], given["covariate"], strict=True)]
    absolute = gb.FrequentistConfig(alpha=ALPHA, difference_type="absolute")
    relative = gb.FrequentistConfig(alpha=ALPHA, difference_type="relative")
    out = {
        "mean": told(gb.TwoSidedTTest(*means, absolute)),
        "ratio": told(gb.TwoSidedTTest(*ratios, absolute)),
        "cuped": told(gb.TwoSidedTTest(*adjusted, absolute)),
        "lift": told(gb.TwoSidedTTest(*means, relative)),
        "split": {"p": float(check_srm([520, 440], [0.5, 0.5])), "p_uneven": float(check_srm([905, 80], [0.9, 0.1]))},
    }
    for planned in (100, 5000):
        config = gb.SequentialConfig(alpha=ALPHA, difference_type="absolute", sequential_tuning_parameter=planned)
        out[f"sequential_{planned}"] = told(gb.SequentialTwoSidedTTest(*means, config))
    for name, proper, variance in (("bayes_flat", False, 1.0), ("bayes_prior", True, 0.04)):
        prior = gb_bayes.GaussianPrior(mean=0.0, variance=variance, proper=proper)
        config = gb_bayes.EffectBayesianConfig(
            alpha=ALPHA, difference_type="absolute", prior_type="absolute", prior_effect=prior
        )
        one = gb_bayes.EffectBayesianABTest(*means, config).compute_result()
        out[name] = {"chance": float(one.chance_to_win), "low": one.ci[0], "high": one.ci[1], "estimate": one.expected}
        out[name] |= {"loss_if_candidate": float(one.risk[1]), "loss_if_baseline": float(one.risk[0])}
    return out


def told(test: Any) -> dict[str, float]:
    one = test.compute_result()
    return {
        "estimate": float(one.expected), "low": float(one.ci[0]), "high": float(one.ci[1]), "p": float(one.p_value),
        "standard_error": float(one.uplift.stddev), "df": float(test.dof),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    given = data()
    found = {
        "versions": {name: version(name) for name in PACKAGES},
        "data": given,
        "tea_tasting": tea_tasting(given),
        "gbstats": growthbook(given),
    }
    if not parser.parse_args().check:
        OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    there = json.loads(OUT.read_text(encoding="utf-8"))
    wrong = list(differences("", {key: there[key] for key in ("data", "tea_tasting", "gbstats")}, found))
    if wrong:
        sys.exit("\n".join(wrong))


def differences(where: str, there: Any, here: Any) -> Any:
    """Paths at which two structures differ by more than rounding."""
    if isinstance(there, dict):
        for key, value in there.items():
            yield from differences(f"{where}.{key}", value, here.get(key) if isinstance(here, dict) else None)
    elif isinstance(there, list):
        for i, value in enumerate(there):
            yield from differences(f"{where}[{i}]", value, here[i])
    elif here is None or not math.isclose(there, here, rel_tol=1e-7, abs_tol=1e-9):
        yield f"{where}: {there} in the file, {here} now"


if __name__ == "__main__":
    main()
