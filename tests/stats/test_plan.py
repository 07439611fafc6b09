"""The plan: what it refuses, and a digest that tells any change."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.stats import AnalysisPlan, Mean, Rate

PLAN = AnalysisPlan(
    baseline="v1",
    candidate="v2",
    metrics=(Rate("exact_match", margin=0.05), Mean("latency_s", role="guardrail", margin=0.5)),
    expected_share=0.5,
    planned_n=600,
)


def test_it_survives_json_with_its_digest() -> None:
    again = AnalysisPlan.of(json.loads(json.dumps(PLAN.to_dict(), allow_nan=False)))
    assert again == PLAN and again.digest() == PLAN.digest()


def test_the_order_of_blocks_survives_json() -> None:
    plan = replace(PLAN, design="switchback", blocks=("baseline", "candidate", "candidate", "baseline"))
    again = AnalysisPlan.of(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and again.digest() == plan.digest()


def test_the_digest_is_fixed_for_all_time() -> None:
    # Plans lie in stores for as long as their experiments matter: another digest for the same plan would void them.
    assert PLAN.digest() == "d09dbba5b2a12a1d90792964bb364226afc74a00a873379c2ca97ff4a6426077"


@pytest.mark.parametrize(
    "change",
    [
        {"baseline": "v0"},
        {"candidate": "v3"},
        {"metrics": (Rate("exact_match", margin=0.06), PLAN.metrics[1])},
        {"metrics": (Rate("exact_match", margin=0.05, direction="decrease"), PLAN.metrics[1])},
        {"metrics": PLAN.metrics[:1]},
        {"expected_share": 0.4},
        {"planned_n": 601},
        {"alpha": 0.1},
        {"srm_alpha": 0.01},
        {"min_units": 21},
        {"max_score_failures": 0.02},
        {"design": "paired"},
        {"design": "switchback", "blocks": ("baseline", "candidate", "candidate", "baseline")},
    ],
)
def test_any_change_changes_the_digest(change: dict[str, Any]) -> None:
    assert replace(PLAN, **change).digest() != PLAN.digest()


def test_whole_numbers_and_spelt_out_defaults_are_the_same_plan() -> None:
    one = replace(PLAN, expected_share=1.0, metrics=(Mean("latency_s", margin=1.0),))
    plain = {"kind": "mean", "column": "latency_s", "margin": 1, "direction": "decrease"}
    same = AnalysisPlan.of(PLAN.to_dict() | {"expected_share": 1, "metrics": [plain]})
    assert one == same and one.digest() == same.digest()


def test_it_knows_its_metrics_by_role() -> None:
    assert PLAN.primary.name == "exact_match"
    assert [metric.name for metric in PLAN.guardrails] == ["latency_s"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"baseline": ""}, "plan.baseline"),
        ({"candidate": "v1"}, "plan.candidate"),
        ({"candidate": None}, "plan.candidate"),
        ({"metrics": ()}, "metrics"),
        ({"metrics": (Rate("a"), Rate("b"))}, "metrics"),
        ({"metrics": (Rate("a", role="secondary"),)}, "metrics"),
        ({"metrics": (Rate("a"), Mean("a", role="secondary"))}, "metrics"),
        ({"metrics": "exact_match"}, "metrics"),
        ({"metrics": 3}, "metrics"),
        ({"metrics": ({"kind": "rate"},)}, "metric.column"),
        ({"expected_share": 0.0}, "plan.expected_share"),
        ({"expected_share": 1.5}, "plan.expected_share"),
        ({"expected_share": math.nan}, "plan.expected_share"),
        ({"expected_share": "0.5"}, "plan.expected_share"),
        ({"expected_share": True}, "plan.expected_share"),
        ({"planned_n": 0}, "plan.planned_n"),
        ({"planned_n": 10.5}, "plan.planned_n"),
        ({"alpha": 0.0}, "plan.alpha"),
        ({"alpha": 0.9}, "plan.alpha"),
        ({"srm_alpha": math.nan}, "plan.srm_alpha"),
        ({"min_units": 1}, "plan.min_units"),
        ({"max_score_failures": 1.1}, "plan.max_score_failures"),
        ({"design": "before and after"}, "plan.design"),
        ({"design": "paired", "blocks": ("baseline", "candidate") * 2}, "plan.blocks"),
        ({"design": "switchback"}, "plan.blocks"),
        ({"design": "switchback", "blocks": ("baseline", "candidate")}, "plan.blocks"),
        ({"design": "switchback", "blocks": ("baseline", "baseline", "candidate", "candidate")}, "plan.blocks"),
        ({"looks": "whenever I like"}, "plan.looks"),
    ],
)
def test_what_is_not_allowed_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(PLAN, **change)
    assert caught.value.field == field


@pytest.mark.parametrize("required", ["baseline", "candidate", "metrics", "expected_share", "planned_n"])
def test_a_dictionary_without_a_required_field_is_refused(required: str) -> None:
    plain = PLAN.to_dict()
    del plain[required]
    with pytest.raises(InvalidInput, match=required):
        AnalysisPlan.of(plain)


@pytest.mark.parametrize("bad", [None, [], "plan", {**PLAN.to_dict(), "seed": 1}])
def test_what_is_no_plan_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput, match="plan"):
        AnalysisPlan.of(bad)
