"""Metrics in a spec file: what is read, what the schema allows, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.experiments.spec import spec_of
from abswitch.experiments.specfile import schema

SPEC = {
    "name": "fields",
    "model_id": "bot",
    "versions": {"v1": {"model": "a"}, "v2": {"model": "b"}},
    "baseline": "v1",
    "candidate": "v2",
    "prompts": {"kind": "inline", "items": ["1+1="]},
}
PRIMARY = {"kind": "rate", "column": "exact_match"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"kind": "quantile", "column": "latency_s"}, "q"),
        ({"kind": "quantile", "column": "latency_s", "q": 95}, "q"),
        ({"kind": "mean", "column": "judge", "covariate": "latency_s"}, "the version moves this one"),
        ({"kind": "mean", "column": "judge", "where": {"column": "prompt_tokens", "abov": 3}}, "above"),
        ({"kind": "mean", "column": "judge", "where": "prompt_tokens > 3"}, "conditions such as"),
        ({"kind": "mean", "column": "judge", "segments": "prompt_tokens"}, "upper ends"),
        ({"kind": "paired", "column": "judge", "covariate": "prompt_tokens"}, "pairs take out"),
        ({"kind": "median", "column": "judge"}, "mean, rate, ratio, quantile, paired"),
        ({"kind": "mean", "column": "judge", "role": "guardrail"}, "above 0"),
    ],
)
def test_mistakes_are_told(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as told:
        spec_of(SPEC | {"metrics": [PRIMARY, {"role": "secondary"} | bad]})
    assert "metrics" in told.value.field


def test_the_schema_knows_every_kind_and_refers_to_nothing_that_is_not_there() -> None:
    whole = schema()
    kinds = {one["properties"]["kind"]["const"]: one for one in whole["properties"]["metrics"]["items"]["anyOf"]}
    assert set(kinds) == {"mean", "rate", "ratio", "quantile", "paired"}
    assert kinds["quantile"]["required"] == ["kind", "column", "q"]
    where, segments = (kinds["mean"]["properties"][name]["anyOf"] for name in ("where", "segments"))
    assert {one["type"] for one in where} == {"array", "object"}
    assert {one.get("type") for one in segments} == {"object", "string", "null"}
    assert "$ref" not in str(kinds)
