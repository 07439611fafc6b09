"""The page of methods names every public function and every rule."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import abswitch.stats
from abswitch.stats import rules

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("methods*.md")))
FUNCTIONS = [name for name in abswitch.stats.__all__ if inspect.isfunction(getattr(abswitch.stats, name))]
NAMED = r'(?:_invalid(?:_in_the_end)?\(\s*(?:case,\s*)?|Finding\(Decision\.\w+, )"([a-z-]+)"'
RULES = sorted({rules.CONTINUE, *re.findall(NAMED, inspect.getsource(rules))})


def test_functions_and_rules_were_found() -> None:
    assert len(FUNCTIONS) >= 70 and len(RULES) >= 17


@pytest.mark.parametrize("name", [*FUNCTIONS, *RULES])
def test_it_is_on_the_page(name: str) -> None:
    assert re.search(rf"`{name}[`(]", PAGE)


STANDARD_NAMES = {
    "Welch's t": "welch_t_test",
    "paired t": "paired_t_test",
    "Yuen's trimmed t": "yuen_t_test",
    "permutation test": "permutation_test",
    "relative lift": "relative_lift",
    "ratio of geometric means": "geometric_lift",
    "pooled z": "two_proportion_z_test",
    "Newcombe": "newcombe_interval",
    "Wilson": "wilson_interval",
    "Miettinen–Nurminen score": "miettinen_nurminen_test",
    "Farrington–Manning score": "farrington_manning_test",
    "Fisher exact": "fisher_exact_test",
    "Boschloo exact": "boschloo_exact_test",
    "McNemar": "mcnemar_test",
    "Tango score": "tango_score_test",
    "delta method": "ratio_delta_test",
    "clustered mean": "clustered_mean_test",
    "clustered rate": "clustered_rate_test",
    "order-statistic interval": "quantile_interval",
    "difference of quantiles": "quantile_test",
    "Mann–Whitney U": "mann_whitney_test",
    "Hodges–Lehmann shift": "hodges_lehmann",
    "Wilcoxon signed rank": "wilcoxon_signed_rank_test",
    "CUPED": "cuped_test",
    "Lin's regression adjustment": "lin_test",
    "post-stratified": "stratified_test",
    "mixture SPRT": "mixture_sprt",
    "asymptotic confidence sequence": "mixture_sprt",
    "betting sequence": "betting_difference",
    "empirical-Bernstein sequence": "empirical_bernstein_difference",
    "beta-binomial sequence": "beta_binomial_difference",
    "quantile sequence": "quantile_sequence",
    "sequential quantile test": "sequential_quantile_test",
    "error-label e-process": "ErrorProcess",
    "Lan–DeMets": "group_sequential_test",
    "sample-ratio check": "sequential_sample_ratio",
    "chi-square": "sample_ratio_mismatch",
    "not worse by more than a margin": "non_inferiority",
    "two one-sided tests": "tost_equivalence",
    "any one rolls back": "harm_test",
    "Holm": "holm",
    "Benjamini–Hochberg": "benjamini_hochberg",
    "e-BH": "e_bh",
    "Dunnett": "dunnett_test",
    "Cochran's Q": "cochran_q_test",
    "Cochran–Mantel–Haenszel": "cochran_mantel_haenszel_test",
    "beta-binomial": "beta_binomial",
    "expected loss": "beta_binomial",
    "Newey–West": "newey_west_test",
    "switchback": "switchback_test",
    "Thompson sampling": "ThompsonSampling",
    "AW-AIPW": "aw_aipw_test",
    "how many requests": "plan_experiment",
    "price of resemblance": "design_effect",
}
"""The specification's methods by the names of the field, and the one public function or class of each."""


@pytest.mark.parametrize("standard", STANDARD_NAMES)
def test_a_method_is_found_by_its_standard_name(standard: str) -> None:
    name = STANDARD_NAMES[standard]
    lines = [line for line in PAGE.splitlines() if standard.lower() in line.lower() and f"`{name}" in line]
    assert lines, f"{standard}: no line of the page has both it and {name}"
    assert getattr(abswitch.stats, name).__doc__


def test_what_the_page_names_can_be_imported_from_one_place() -> None:
    modules = [
        importlib.import_module(f"abswitch.stats.{one.name}") for one in pkgutil.iter_modules(abswitch.stats.__path__)
    ]
    named = set(re.findall(r"`([A-Za-z_]\w+)[`(]", PAGE))
    functions = {name for name in named if any(callable(getattr(module, name, None)) for module in modules)}
    assert functions <= set(abswitch.stats.__all__) and len(functions) > 90
