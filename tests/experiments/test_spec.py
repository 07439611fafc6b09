"""Fields of a spec: what is refused and in which words, what follows from them, and the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from abswitch.errors import InvalidInput
from abswitch.experiments.overriding import overridden
from abswitch.experiments.spec import ExperimentSpec, spec_of
from abswitch.experiments.specfile import SCHEMA, read_plain, schema, schema_text

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "experiments").glob("*.yaml"))
SPEC: dict[str, Any] = {
    "name": "fields",
    "model_id": "bot",
    "versions": {"v1": {"model": "a"}, "v2.0": {"model": "b"}},
    "baseline": "v1",
    "candidate": "v2.0",
    "prompts": {"kind": "inline", "items": ["1+1="]},
    "design": {"kind": "randomised"},
    "metrics": [{"kind": "rate", "column": "exact_match"}],
}
CANARY = {"design": {"kind": "canary"}, "budget": {"requests": 5}}


def changed(**values: Any) -> dict[str, Any]:
    """The spec with dotted fields replaced; `__` stands for a dot."""
    return overridden(SPEC, {name.replace("__", "."): value for name, value in values.items()})


VALIDATOR = jsonschema.Draft202012Validator(schema())

# What is wrong; the field that is named; words of what is allowed. The flag: whether editors see it too.
WRONG: list[tuple[dict[str, Any], str, str, bool]] = [
    ({"name": "a b"}, "name", "letters, digits, '.', '_' and '-'", True),
    ({"name": None}, "name", "text", True),
    ({"name": "../up"}, "name", "letters", True),
    ({"model_id": 3}, "model_id", "text", True),
    ({"desgin": {}}, "desgin", "did you mean 'design'", True),
    ({"versions": {"v1": {"model": "a"}}}, "versions", "at least 2", True),
    ({"versions": {"v 1": {"model": "a"}, "v2": {"model": "b"}}}, "versions.v 1", "letters", True),
    ({"versions": {"v1": {}, "v2.0": {"model": "b"}}}, "versions.v1.model", "it is required", True),
    ({"versions__v1__modle": "x"}, "versions.v1.modle", "did you mean 'model'", True),
    ({"versions__v1__model": 3}, "versions.v1.model", "text, or a mapping with `function`", True),
    ({"versions__v1__model": {"function": "xy"}}, "versions.v1.model.function", "package.module:function", True),
    ({"versions__v1__model": {"function": "x:y", "args": {}}}, "versions.v1.model.args", "arguments, function", True),
    ({"versions__v1__sampling": {"temprature": 1}}, "versions.v1.sampling.temprature", "temperature", True),
    ({"versions__v1__sampling": {"temperature": -1}}, "versions.v1.sampling.temperature", "from 0 to 2", False),
    ({"versions__v1__sampling": 3}, "versions.v1.sampling", "a mapping", True),
    ({"versions__v1__engine_args": [1]}, "versions.v1.engine_args", "a mapping", True),
    ({"versions__v1__trust_remote_code": "yes"}, "versions.v1.trust_remote_code", "true or false", True),
    ({"baseline": "v3"}, "baseline", "one of the versions: v1, v2.0", False),
    ({"candidate": "v3"}, "candidate", "one of the versions", False),
    ({"candidate": "v1"}, "candidate", "another version than the baseline", False),
    ({"prompts": "abc"}, "prompts", "a mapping", True),
    ({"prompts": {"kind": "xlsx"}}, "prompts.kind", "inline, jsonl, csv, parquet, huggingface, generator", True),
    ({"prompts": {"kind": "jsonl"}}, "prompts.path", "it is required", True),
    ({"prompts": {"items": []}}, "prompts.items", "at least 1", True),
    ({"prompts": {"kind": "csv", "path": "x", "fields": {"promt": "q"}}}, "prompts.fields.promt", "'prompt'", True),
    ({"prompts": {"kind": "huggingface"}}, "prompts.path", "it is required", True),
    ({"prompts": {"kind": "generator"}}, "prompts.function", "it is required", True),
    ({"prompts": {"kind": "generator", "function": "f"}}, "prompts.function", "package.module:function", True),
    ({"prompts__limit": 0}, "prompts.limit", "at least 1", True),
    ({"prompts__limit": "3"}, "prompts.limit", "a whole number", True),
    ({"prompts__shuffle": 1}, "prompts.shuffle", "true or false", True),
    ({"design": {"kind": "best"}}, "design.kind", "randomised, paired, switchback, canary", True),
    ({"design__traffic_percentage": 0}, "design.traffic_percentage", "above 0", True),
    ({"design__traffic_percentage": 101}, "design.traffic_percentage", "at most 100", True),
    ({"design__traffic_percentage": "50"}, "design.traffic_percentage", "a number", True),
    ({"design": {"kind": "switchback", "blocks": 7}}, "design.blocks", "a multiple of 2", True),
    ({"design": {"kind": "paired", "together": "maybe"}}, "design.together", "true or false", True),
    ({"design": {"kind": "canary"}}, "budget", "requests or time_s", False),
    ({**CANARY, "design__guardrails": [{"metric": "x"}]}, "design.guardrails.0", "at least one of max, min", False),
    ({**CANARY, "design__min_requests": 0}, "design.min_requests", "at least 1", True),
    ({"load": {"kind": "poisson"}}, "load.rate_per_s", "it is required", True),
    ({"load": {"kind": "poisson", "rate_per_s": 0}}, "load.rate_per_s", "above 0", True),
    ({"load": {"kind": "burst"}}, "load.kind", "closed_loop, poisson, trace", True),
    ({"load": {"kind": "trace"}}, "load", "exactly one of path and at_s", False),
    ({"load": {"kind": "trace", "at_s": [1, -1]}}, "load.at_s.1", "at least 0", True),
    ({"load": {"concurrency": 0}}, "load.concurrency", "at least 1", True),
    ({"load": {"concurrency": 1.5}}, "load.concurrency", "a whole number", True),
    ({"load": {"concurrency": True}}, "load.concurrency", "a whole number", True),
    ({"sampling": {"top_p": 3}}, "sampling.top_p", "at most 1", False),
    ({"metrics": []}, "metrics", "exactly one metric with role primary", False),
    ({"metrics": 3}, "metrics", "a list", True),
    ({"metrics": ["x"]}, "metrics.0", "dictionary", True),
    ({"metrics": [{"kind": "rat", "column": "x"}]}, "metrics.0.kind", "mean, rate", True),
    ({"metrics__0__marign": 1}, "metrics.0.marign", "did you mean 'margin'", True),
    ({"metrics__0__margin": -1}, "metrics.0.margin", "above 0", False),
    ({"metrics": [*SPEC["metrics"], {"kind": "rate", "column": "exact_match", "role": "secondary"}]},
     "metrics", "different names", False),
    ({"alpha": 0.7}, "alpha", "below 0.5", True),
    ({"scorers": [{"kind": "function", "name": "f"}]}, "scorers.0.function", "it is required", True),
    ({"scorers": [{"kind": "bleu"}]}, "scorers.0.kind", "exact_match, matches, function", True),
    ({"scorers": [{"kind": "matches", "pattern": "("}]}, "scorers.0.pattern", "a regular expression", False),
    ({"scorers": [{"kind": "exact_match"}, {"kind": "exact_match"}]}, "scorers", "different names", False),
    ({"scorers": [{"kind": "exact_match", "name": "judge"}], "judge": {"version": {"model": "j"}}},
     "scorers", "different names", False),
    ({"judge": {}}, "judge.version", "it is required", True),
    ({"judge": {"version": {"model": "j"}, "low": 1.0, "high": 0.0}}, "judge.high", "above low (1)", False),
    ({"judge": {"version": {"model": "j"}, "template": "Grade!"}}, "judge.template", "{output}", False),
    ({"policy": {"success": ["win"]}}, "policy.success.0", "ship, keep, equivalent", True),
    ({"policy": {"success": []}}, "policy.success", "at least 1", True),
    ({"policy": {"apply": "no"}}, "policy.apply", "true or false", True),
    ({"budget": {"requests": -1}}, "budget.requests", "at least 1", True),
    ({"budget": {"time_s": 0}}, "budget.time_s", "above 0", True),
    ({"budget": {"tokens": 1.5}}, "budget.tokens", "a whole number", True),
    ({"seed": -1}, "seed", "at least 0", True),
    ({"notebook": {"path": ""}}, "notebook.path", "not empty", True),
    ({"notebook": {"cell_timeout_s": 0}}, "notebook.cell_timeout_s", "at least 1", True),
    ({"notebook": {"params": {}}}, "notebook.params", "did you mean 'parameters'", True),
    ({"versions": {"v1": {"modle": "a"}, "v2.0": {"model": "b"}}}, "versions.v1.model", "is 'modle' meant", True),
    ({"engine": {"max_cached_models": 0}}, "engine.max_cached_models", "at least 1", True),
    ({"engine": {"backends": {"x": "a:b"}}}, "engine.backends.x", "a mapping", True),
    ({"accelerators": "gpu-0"}, "accelerators", "a list", True),
    ({"accelerators": [""]}, "accelerators.0", "not empty", True),
    ({"matrix": {"seed": 3}}, "matrix.seed", "a list", True),
    ({"matrix": [1]}, "matrix", "a mapping", True),
    ({"arms": {"sampling.temperature": []}}, "arms", "a value or more", False),
    ({"arms": {"sampling.temprature": [0.1]}}, "arms (sampling.temprature=0.1): sampling.temprature", "'temp", False),
    ({"arms": {"promt": ["a"]}}, "arms (promt=a): promt", "prompt_template", False),
    ({"arms": {"sampling.temperature": [0.1]}, "design": {"kind": "paired"}}, "arms", "the randomised design", False),
    ({"arms": {"sampling.temperature": [0.1]}, "watch": {}}, "watch", "no arms", False),
    ({"arms": {"sampling.seed": list(range(20))}}, "arms", "at most 16", False),
    ({"arms": {"sampling.seed": list(range(5))}}, "engine.max_cached_models", "6 or more: 5 arms, the baseline", False),
    ({"arms": {"revision": ["a"]}, "versions": {**SPEC["versions"],
      "v2.0-1": {"model": "c"}}}, "versions", "another name", False),
    ({"schedule": {"cron": "at noon"}}, "schedule.cron", "five fields", False),
    ({"schedule": {"cron": "* * * * *", "time_zone": "Mars"}}, "schedule.time_zone", "Europe/Berlin", False),
    ({"watch": {"arms": ["both"]}}, "watch.arms.0", "baseline, candidate", True),
    ({"watch": {"metrics": ["speed"]}}, "watch.metrics", "names of the spec's metrics: exact_match", False),
    ({"watch": {}, **CANARY, "metrics": []}, "watch", "a canary is judged by its own", False),
    ({"watch": {"webhook_env": "http://x"}}, "watch.webhook_env", "environment variable", True),
]  # fmt: skip


@pytest.mark.parametrize(("values", "field", "allowed", "editors_too"), WRONG, ids=lambda v: str(v)[:50])
def test_what_is_wrong_is_named_with_what_is_allowed(
    values: dict[str, Any], field: str, allowed: str, editors_too: bool
) -> None:
    plain = changed(**values)
    with pytest.raises(InvalidInput) as told:
        spec_of(plain, where="x.yaml")
    assert told.value.field == f"x.yaml: {field}"
    assert allowed in told.value.allowed
    assert "Input should" not in str(told.value), "pydantic's words are not ours"
    assert VALIDATOR.is_valid(plain) is not editors_too


@pytest.mark.parametrize("plain", [None, 3, "text", ["name"], {"name": {1, 2}}, {"alpha": float("nan")}])
def test_what_is_no_spec_at_all(plain: object) -> None:
    with pytest.raises(InvalidInput, match=r"x\.yaml"):
        spec_of(plain, where="x.yaml")


@pytest.mark.parametrize(("part", "kind"), [("prompts", "inline"), ("design", "randomised"), ("load", "closed_loop")])
def test_a_part_without_a_kind_has_the_usual_one(part: str, kind: str) -> None:
    given = {"prompts": {"items": ["a"]}, "design": {"traffic_percentage": 20}, "load": {"concurrency": 3}}[part]
    plain = changed(**{part: given})
    assert getattr(spec_of(plain), part).kind == kind
    assert VALIDATOR.is_valid(plain)


@pytest.mark.parametrize(
    ("values", "success"),
    [
        ({}, ("ship",)),
        ({"design": {"kind": "switchback"}}, ("ship",)),
        ({"design": {"kind": "paired"}}, ("ship", "equivalent")),
        ({**CANARY, "metrics": []}, ("promote",)),
        ({"policy": {"success": ["keep"]}}, ("keep",)),
    ],
    ids=str,
)
def test_what_counts_as_success(values: dict[str, Any], success: tuple[str, ...]) -> None:
    assert spec_of(changed(**values)).success == success


def test_a_spec_is_the_same_after_a_round_through_its_file() -> None:
    for path in EXAMPLES:
        spec = spec_of(read_plain(path))
        assert spec_of(json.loads(json.dumps(spec.to_plain()))) == spec


def test_arms_are_versions_of_their_own() -> None:
    spec = spec_of(changed(arms={"sampling.temperature": [0.0, 0.7], "prompt_template": ["{prompt}"]}))
    assert list(spec.candidates) == ["v2.0-1", "v2.0-2"]
    assert list(spec.all_versions) == ["v1", "v2.0", "v2.0-1", "v2.0-2"]
    second = spec.candidates["v2.0-2"]
    assert (second.model, second.sampling, second.prompt_template) == ("b", {"temperature": 0.7}, "{prompt}")
    assert second.metadata == {"arm": "sampling.temperature=0.7, prompt_template={prompt}"}
    assert list(spec_of(SPEC).candidates) == ["v2.0"]


def test_the_digest_is_of_what_decides_the_run_alone() -> None:
    spec = spec_of(SPEC)
    same: dict[str, Any]
    for same in ({"description": "x"}, {"schedule": {"cron": "0 3 * * *"}}, {"watch": {}}, {"matrix": {"seed": [1]}}):
        assert spec_of(changed(**same)).digest() == spec.digest()
    other: dict[str, Any]
    for other in ({"seed": 1}, {"sampling": {"temperature": 0.5}}, {"policy": {"apply": False}}, {"alpha": 0.01}):
        assert spec_of(changed(**other)).digest() != spec.digest()


def test_the_schema_that_is_shipped_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "run: abswitch spec --schema > abswitch/experiments/spec.schema.json"
    )


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_every_field_has_a_description() -> None:
    known = schema()
    for name, field in known["properties"].items():
        part = known["$defs"].get(field.get("$ref", "").rsplit("/", 1)[-1], {})
        assert field.get("description") or part.get("description"), name
    assert set(known["properties"]) == set(ExperimentSpec.model_fields)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_satisfy_the_schema_that_they_name(path: Path) -> None:
    VALIDATOR.validate(read_plain(path))
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == SCHEMA
