"""Every example of the page of metrics runs, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from abswitch.experiments.spec import spec_of
from abswitch.stats import rules
from abswitch.stats.metric_parts import Common
from abswitch.stats.metrics import metric_of, metric_to_dict
from abswitch.stats.selection import BEFORE_ANSWERS, Where
from abswitch.store.columns import ANSWER_COLUMNS, ASSIGNED_COLUMNS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SPEC = {
    "name": "page",
    "model_id": "bot",
    "versions": {"v1": {"model": "a"}, "v2": {"model": "b"}},
    "baseline": "v1",
    "candidate": "v2",
    "prompts": {"kind": "inline", "items": ["1+1="]},
}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_it_runs(example: str) -> None:
    exec(compile(example, "docs/metrics.md", "exec"), {})


def test_the_metrics_of_the_spec_are_read_and_written() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    given: Any = yaml.safe_load(text)
    spec = spec_of(SPEC | given)
    assert [metric.kind for metric in spec.metrics] == [one["kind"] for one in given["metrics"]]
    assert spec_of(spec.to_plain()) == spec
    for metric in spec.metrics:
        assert metric_of(metric_to_dict(metric)) == metric


@pytest.mark.parametrize(
    "name",
    [
        *ANSWER_COLUMNS,
        *ASSIGNED_COLUMNS,
        *BEFORE_ANSWERS,
        *list(Common.__dataclass_fields__),
        *list(Where.__dataclass_fields__)[1:],
    ],
)
def test_columns_and_fields_are_named(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_the_rules_that_it_names_are_there() -> None:
    named = set(re.findall(r"`INVALID` \(`([a-z-]+)`\)", PAGE))
    text = Path(rules.__file__).read_text(encoding="utf-8")
    assert len(named) >= 5 and all(f'"{rule}"' in text for rule in named)
