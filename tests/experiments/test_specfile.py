"""Specs as files: YAML without surprises, overrides, and the runs of a matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.experiments.overriding import overridden, words_of
from abswitch.experiments.specfile import override_of, planned_runs, read_plain, read_spec

YAML = """
name: sums
model_id: adder
versions:
  v1: &tiny {model: a, sampling: {temperature: 0.0}}
  v2.0: *tiny
baseline: v1
candidate: v2.0
prompts: {items: ["1+1="]}
metrics: [{kind: rate, column: exact_match}]
scorers: [{kind: exact_match}]
"""


def written(folder: Path, text: str = YAML) -> Path:
    path = folder / "sums.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "YAML in UTF-8"),
        ("name: a\nname: b", "'name' is there twice, first in line 1"),
        ("name: 2024-13-45", "YAML in UTF-8"),
        ("versions:\n  v1: {model: a}\n  v1: {model: b}", "'v1' is there twice"),
        ("- a", "a mapping with the fields"),
        ("", "a mapping with the fields"),
        ("!!python/object/apply:os.system ['true']", "YAML in UTF-8"),
    ],
)
def test_a_file_that_is_no_spec_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidInput, match=words) as told:
        read_plain(path)
    assert str(path) in str(told.value)


def test_a_mapping_may_replace_what_it_merges(tmp_path: Path) -> None:
    text = "a: {b: &b {x: 1}}\nc: {d: &d {<<: *b, x: 2}}\ne: {<<: *d, x: 3}\n"
    assert read_plain(written(tmp_path, text)) == {"a": {"b": {"x": 1}}, "c": {"d": {"x": 2}}, "e": {"x": 3}}


def test_the_line_of_a_mistake_in_yaml_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="line 3"):
        read_plain(written(tmp_path, "name: a\nmodel_id: b\nname: c"))


def test_the_line_that_is_no_yaml_is_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"sums\.yaml, line 2") as told:
        read_plain(written(tmp_path, "name: a\nmodel_id: b: c"))
    assert told.value.value == "model_id: b: c"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_plain(tmp_path / "x.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("load.concurrency=8", "load.concurrency", 8),
        ("alpha=1e-3", "alpha", 0.001),
        ("alpha=0.01", "alpha", 0.01),
        ("policy.apply=false", "policy.apply", False),
        ("matrix.seed=[1, 2]", "matrix.seed", [1, 2]),
        ("description=a=b", "description", "a=b"),
        (" seed =1", "seed", 1),
        ("judge=null", "judge", None),
        ("judge=", "judge", None),
        ("versions.v1.prompt_template='{prompt}'", "versions.v1.prompt_template", "{prompt}"),
    ],
)
def test_a_setting_is_a_field_and_a_yaml_value(text: str, key: str, value: object) -> None:
    assert override_of(text) == (key, value)


@pytest.mark.parametrize(("text", "words"), [("seed", "key=value"), ("=3", "key=value"), ("seed=[1", "a YAML value")])
def test_a_setting_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        override_of(text)


def test_overrides_reach_into_lists_and_names_with_dots(tmp_path: Path) -> None:
    spec = read_spec(
        written(tmp_path),
        {"metrics.0.margin": 0.1, "versions.v2.0.sampling.temperature": 0.5, "budget.requests": 10, "load": {}},
    )
    assert spec.metrics[0].margin == 0.1
    assert spec.budget.requests == 10
    assert spec.versions["v2.0"].sampling == {"temperature": 0.5}
    assert spec.versions["v1"].sampling == {"temperature": 0.0}, "what an alias repeats is changed in one place alone"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("metrics.1.margin", 0.1, "a number below 1"),
        ("metrics.²", 0.1, "a number below 1"),
        ("name.first", 0.1, "a field that exists"),
        ("versions.v3.model", "x", "one of the versions: v1, v2.0"),
        ("versions.v2.model", "x", "one of the versions: v1, v2.0"),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path: Path, path: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as told:
        read_spec(written(tmp_path), {path: value})
    assert "-p" in told.value.field


def test_the_original_is_left_as_it_was(tmp_path: Path) -> None:
    plain = read_plain(written(tmp_path))
    overridden(plain, {"versions.v1.sampling.temperature": 0.9, "load.concurrency": 4})
    assert plain == read_plain(written(tmp_path))


def test_without_a_matrix_there_is_one_run(tmp_path: Path) -> None:
    (run,) = planned_runs(written(tmp_path))
    assert dict(run.cell) == {}
    assert run.spec == read_spec(written(tmp_path))


def test_a_matrix_makes_every_combination_a_run(tmp_path: Path) -> None:
    matrix = "matrix: {seed: [1, 2], versions.v2.0.prompt_template: ['{prompt}', 'Q: {prompt}'], alpha: [1e-2]}"
    runs = planned_runs(written(tmp_path, YAML + matrix))
    assert [(run.spec.seed, run.spec.versions["v2.0"].prompt_template, run.spec.alpha) for run in runs] == [
        (1, "{prompt}", 0.01),
        (1, "Q: {prompt}", 0.01),
        (2, "{prompt}", 0.01),
        (2, "Q: {prompt}", 0.01),
    ]
    assert words_of(runs[1].cell) == "seed=1, versions.v2.0.prompt_template=Q: {prompt}, alpha=0.01"
    assert len({run.spec.digest() for run in runs}) == 4
    assert all(not run.spec.matrix for run in runs)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ("{seed: []}", "a value or more for each field"),
        ("{seed: [1, -1]}", "at least 0"),
        ("{sede: [1]}", "did you mean 'seed'"),
        ("{versions.v3.prompt_template: [a]}", "one of the versions"),
    ],
)
def test_every_run_of_a_matrix_is_checked_before_the_first(tmp_path: Path, matrix: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as told:
        planned_runs(written(tmp_path, YAML + f"matrix: {matrix}"))
    assert "matrix" in str(told.value) or "seed=-1" in str(told.value) or "sede=1" in str(told.value)
