"""Prompts from wherever a spec says: the spec itself, files, datasets, functions; mistakes are named with their row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from abswitch.errors import InvalidInput
from abswitch.experiments import sources
from abswitch.experiments.prompts import Question
from abswitch.experiments.spec_parts import Prompts

ROWS = [
    {"prompt": "1+1=", "reference": "2", "unit_id": "ann"},
    {"prompt": "2+2=", "reference": "4", "unit_id": "ben"},
    {"prompt": "3+3=", "reference": "6", "unit_id": "ann"},
]
QUESTIONS = tuple(Question(row["prompt"], row["reference"], row["unit_id"]) for row in ROWS)


def read(project: Path, given: Mapping[str, Any], seed: int = 0) -> tuple[Question, ...]:
    source = TypeAdapter[Any](Prompts).validate_json(json.dumps(given))
    return sources.read_prompts(source, project, seed=seed)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")  # as spreadsheets write it
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_give_the_same_questions_whatever_they_are(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"data/some.{kind}", ROWS)
    assert read(tmp_path, {"kind": kind, "path": f"data/some.{kind}"}) == QUESTIONS
    named = {"fields": {"prompt": "prompt", "reference": "reference", "unit_id": "unit_id"}}
    assert read(tmp_path, {"kind": kind, "path": f"data/some.{kind}", **named}) == QUESTIONS


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_may_have_other_names(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"x.{kind}", [{"q": "1+1=", "a": 2}, {"q": "2+2=", "a": 4}])
    fields = {"prompt": "q", "reference": "a"}
    found = read(tmp_path, {"kind": kind, "path": f"x.{kind}", "fields": fields})
    assert found == (Question("1+1=", "2"), Question("2+2=", "4")), "numbers become text"


def test_a_jsonl_line_may_be_a_prompt_alone_or_a_chat(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1+1="}]
    (tmp_path / "x.jsonl").write_text('"1+1="\n\n' + json.dumps({"prompt": chat}) + "\n")
    first, second = read(tmp_path, {"kind": "jsonl", "path": "x.jsonl"})
    assert first == Question("1+1=")
    assert [message.content for message in second.prompt] == ["1+1="]  # type: ignore[union-attr]  # a chat


def test_prompts_in_the_spec(tmp_path: Path) -> None:
    items = ["1+1=", ["2+2=", "4"], {"prompt": "3+3=", "reference": "6", "unit_id": "ann"}]
    assert read(tmp_path, {"kind": "inline", "items": items}) == (
        Question("1+1="),
        Question("2+2=", "4"),
        Question("3+3=", "6", "ann"),
    )


def test_prompts_of_a_function_in_the_project(tmp_path: Path) -> None:
    (tmp_path / "sums_of_mine.py").write_text("def some(n):\n    return [(f'{i}+1=', str(i + 1)) for i in range(n)]\n")
    given = {"kind": "generator", "function": "sums_of_mine:some", "arguments": {"n": 2}}
    assert read(tmp_path, given) == (Question("0+1=", "1"), Question("1+1=", "2"))


def test_limit_takes_the_first_after_a_shuffle_by_seed(tmp_path: Path) -> None:
    given: dict[str, Any] = {"kind": "inline", "items": [f"{i}+1=" for i in range(100)]}
    assert [q.prompt for q in read(tmp_path, given | {"limit": 3})] == ["0+1=", "1+1=", "2+1="]
    one, same, other = (read(tmp_path, given | {"shuffle": True, "limit": 50}, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) == 50


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": ', r"x\.jsonl, line 2.*one JSON object"),
        ("x.jsonl", b'{"prompt": "a"}\n{"promt": "b"}\n', r"x\.jsonl, row 2.*got 'prompt'; allowed: a column: promt"),
        ("x.jsonl", b'{"prompt": 3}\n', r"prompts\[0\]"),
        ("x.jsonl", b"\n", "at least one prompt"),
        ("x.jsonl", b"\xff\xfe", r"x\.jsonl.*a jsonl file"),
        ("x.csv", b"prompt,reference\n", "at least one prompt"),
        ("x.csv", b"question\n1+1=\n", r"x\.csv, row 1.*a column: question"),
        ("x.csv", b"\xff\xfe", r"x\.csv.*a csv file"),
        ("x.parquet", b"no parquet", r"x\.parquet.*a parquet file"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=words):
        read(tmp_path, {"kind": name.split(".")[1], "path": name})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"prompts\.path.*a file that exists"):
        read(tmp_path, {"kind": "csv", "path": "none.csv"})


@pytest.mark.parametrize(
    "layout",
    [
        "test/data-00000-of-00001.arrow",
        "data/test-00000-of-00001.parquet",
        "default/test/0000.parquet",
        "default/test-00000.parquet",
        "test.jsonl",
        "test.csv",
    ],
)
def test_a_hugging_face_folder_in_any_of_its_layouts(tmp_path: Path, layout: str) -> None:
    write(tmp_path / "sums" / layout, ROWS[:2])
    write(tmp_path / "sums" / layout.replace("test", "train"), [{"prompt": "of another split"}])
    found = read(tmp_path, {"kind": "huggingface", "path": "sums", "split": "test"})
    assert [question.prompt for question in found] == ["1+1=", "2+2="]


def test_a_dataset_of_several_files_is_read_in_their_order(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        write(tmp_path / f"sums/data/train-{number:05d}-of-00003.parquet", [row])
    found = read(tmp_path, {"kind": "huggingface", "path": "sums"})
    assert [question.prompt for question in found] == ["1+1=", "2+2=", "3+3="]


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "sums/test.jsonl", ROWS)
    with pytest.raises(InvalidInput, match=r"prompts\.split: got 'dev'"):
        read(tmp_path, {"kind": "huggingface", "path": "sums", "split": "dev"})


def test_a_dataset_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("nobody/nothing", "not a name at all!"):
        with pytest.raises(InvalidInput, match=r"prompts\.path.*a local folder, or a dataset on the hub"):
            read(tmp_path, {"kind": "huggingface", "path": name})


def test_what_is_at_hand_can_be_read_without_running_anything(tmp_path: Path) -> None:
    (tmp_path / "sums").mkdir()
    parts = TypeAdapter[Any](Prompts)
    at_hand = {
        '{"kind": "inline", "items": ["a"]}': True,
        '{"kind": "csv", "path": "x.csv"}': True,
        '{"kind": "huggingface", "path": "sums"}': True,
        '{"kind": "huggingface", "path": "somebody/sums"}': False,
        '{"kind": "generator", "function": "a:b"}': False,
    }
    for text, expected in at_hand.items():
        assert sources.at_hand(parts.validate_json(text), tmp_path) is expected


# --- functions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "functions_here.py").write_text(
        "THREE = 3\ndef half(n, *, up=False):\n    return n / 2\ndef text():\n    return 'a'\n"
        "def broken():\n    raise KeyError('inside')\n"
    )
    (tmp_path / "breaks_here.py").write_text("import nothing_of_that_name")
    return tmp_path


def test_a_function_is_called_with_its_arguments(project: Path) -> None:
    assert sources.call("functions_here:half", {"n": 4, "up": True}, project, field="x") == 2


@pytest.mark.parametrize(
    ("reference", "arguments", "words"),
    [
        ("functions_here:none", {}, r"x\.function.*no attribute 'none'"),
        ("nowhere:half", {}, r"x\.function.*No module named 'nowhere'"),
        ("breaks_here:half", {}, r"x\.function.*nothing_of_that_name"),
        ("functions_here:THREE", {}, r"x\.function.*something that can be called"),
        ("functions_here:half", {}, r"x\.arguments.*missing a required argument: 'n'"),
        ("functions_here:half", {"n": 1, "m": 2}, r"x\.arguments.*'m'"),
    ],
)
def test_a_function_that_cannot_be_called(project: Path, reference: str, arguments: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        sources.call(reference, arguments, project, field="x")


def test_what_a_function_raises_is_its_own(project: Path) -> None:
    with pytest.raises(KeyError, match="inside"):
        sources.call("functions_here:broken", {}, project, field="x")


@pytest.mark.parametrize("function", ["text", "half"])
def test_a_function_that_returns_no_prompts(project: Path, function: str) -> None:
    arguments = {"n": 1} if function == "half" else {}
    with pytest.raises(InvalidInput, match="a function that returns prompts"):
        read(project, {"kind": "generator", "function": f"functions_here:{function}", "arguments": arguments})


def test_the_projects_folder_does_not_stay_on_the_path(project: Path) -> None:
    import sys

    before = list(sys.path)
    sources.function_of("functions_here:half", project, field="x")
    assert sys.path == before


# --- traces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", "at_s,what\n3,a\n1.5,b\n"), ("t.jsonl", '{"at_s": 3}\n{"at_s": 1.5}\n')],
)
def test_instants_of_a_trace_come_in_order(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert sources.read_instants(tmp_path / name) == (1.5, 3.0)


@pytest.mark.parametrize("text", ["time\n3\n", "at_s\n3\nsoon\n", "at_s\n\nnan\n"])
def test_a_trace_without_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InvalidInput, match=r"load\.path \(t\.csv, row \d\).*at_s"):
        sources.read_instants(tmp_path / "t.csv")


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"load\.path.*a file that exists"):
        sources.read_instants(tmp_path / "none.csv")
