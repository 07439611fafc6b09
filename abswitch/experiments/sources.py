"""Where an experiment's prompts come from: the spec itself, a file, a dataset, or a function."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.experiments.prompts import Question, questions_of
from abswitch.experiments.spec_parts import (
    DatasetPrompts,
    Fields,
    FilePrompts,
    GeneratedPrompts,
    InlinePrompts,
    Prompts,
)

Row = Mapping[str, Any]
_KINDS = ("parquet", "jsonl", "csv", "arrow")


def read_prompts(source: Prompts, project: Path, *, seed: int = 0) -> tuple[Question, ...]:
    """The questions of an experiment, always in the same order.

    Args:
        source: as the spec says it.
        project: the folder that relative paths start from.
        seed: of the shuffle, where one is asked for.

    Raises:
        InvalidInput: nothing is there, a column is missing, or a prompt is malformed; names file and row.
    """
    questions = list(questions_of(_items(source, project)))
    if source.shuffle:
        random.Random(seed).shuffle(questions)
    return tuple(questions[: source.limit])


def _items(source: Prompts, project: Path) -> Iterable[Any]:
    if isinstance(source, InlinePrompts):
        return [tuple(item) if _is_pair(item) else item for item in source.items]
    if isinstance(source, GeneratedPrompts):
        made = call(source.function, source.arguments, project, field="prompts")
        if isinstance(made, str | Mapping) or not isinstance(made, Iterable):
            raise InvalidInput("prompts.function", source.function, f"a function that returns prompts, not {made!r}")
        return made
    if isinstance(source, FilePrompts):
        path = _existing(project / source.path, "prompts.path")
        return _questions(rows_of(path, source.kind), source.fields, path)
    return _dataset(source, project)


def at_hand(source: Prompts, project: Path) -> bool:
    """Whether the prompts can be read without running anybody's code, or fetching anything."""
    return not isinstance(source, GeneratedPrompts | DatasetPrompts) or (
        isinstance(source, DatasetPrompts) and (project / source.path).is_dir()
    )


def _is_pair(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item)


def rows_of(path: Path, kind: str) -> Iterator[Row]:
    """The rows of a file; CSV values are text.

    Args:
        kind: `jsonl`, `csv`, `parquet` or `arrow` (the stream that `datasets` saves).
    """
    return _readable({"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "arrow": _arrow}[kind](path), path, kind)


def _readable(rows: Iterator[Row], path: Path, kind: str) -> Iterator[Row]:
    """The same rows; what the readers of files raise becomes an error that names the file."""
    try:
        yield from rows
    except InvalidInput:
        raise
    except Exception as error:  # csv's, DuckDB's, Arrow's and Unicode's errors have no common base
        said = str(error).strip().splitlines()
        raise InvalidInput(str(path), "what cannot be read", f"a {kind} file ({said[0] if said else error})") from error


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InvalidInput(
                    f"{path}, line {number}", line.strip()[:200], f"one JSON object ({error})"
                ) from error
            yield row if isinstance(row, Mapping) else {"prompt": row}


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet(path: Path) -> Iterator[Row]:
    import duckdb

    with duckdb.connect(":memory:") as reader:
        found = reader.execute("SELECT * FROM read_parquet(?)", [str(path)])
        names = [column[0] for column in found.description or ()]
        for row in found.fetchall():
            yield dict(zip(names, row, strict=True))


def _arrow(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    with path.open("rb") as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            yield from batch.to_pylist()


def _questions(rows: Iterable[Row], fields: Fields, path: Path) -> Iterator[Question | dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        chosen = {
            "prompt": _column(row, fields.prompt, path, number),
            "reference": _text(_optional(row, fields.reference, "reference", path, number)),
            "unit_id": _text(_optional(row, fields.unit_id, "unit_id", path, number)),
        }
        yield {name: value for name, value in chosen.items() if value is not None}


def _column(row: Row, name: str, path: Path, number: int) -> Any:
    if name not in row:
        raise InvalidInput(f"prompts.fields ({path.name}, row {number})", name, "a column: " + ", ".join(map(str, row)))
    return row[name]


def _optional(row: Row, named: str | None, usual: str, path: Path, number: int) -> Any:
    return row.get(usual) if named is None else _column(row, named, path, number)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _dataset(source: DatasetPrompts, project: Path) -> Iterator[Question | dict[str, Any]]:
    folder = project / source.path
    files = _split_files(folder, source) if folder.is_dir() else _from_hub(source)
    for path in files:
        kind = "jsonl" if path.suffix == ".json" else path.suffix.lstrip(".")
        yield from _questions(rows_of(path, kind), source.fields, path)


def _split_files(folder: Path, source: DatasetPrompts) -> Sequence[Path]:
    """The files of a split, as `datasets` saves them (`train/data-00000-of-00001.arrow`) or hubs lay them out
    (`data/train-00000-of-00001.parquet`, `train.jsonl`)."""
    split, config = source.split, source.config
    places = (f"{split}/*", f"{config}/{split}/*", f"{config}/{split}*", f"data/{split}*", f"{split}*")
    for suffix in (*_KINDS, "json"):
        for place in places:
            if files := sorted(path for path in folder.glob(f"{place}.{suffix}") if path.is_file()):
                return files
    raise InvalidInput("prompts.split", split, f"a split in {folder}: files such as data/{split}-*.parquet")


def _from_hub(source: DatasetPrompts) -> Sequence[Path]:
    """The hub's own Parquet copy of the split: every public dataset has one, whatever its files are."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    pattern = f"{source.config}/{source.split}/*.parquet"
    try:
        folder = Path(
            snapshot_download(
                source.path, repo_type="dataset", revision="refs/convert/parquet", allow_patterns=[pattern]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidInput(
            "prompts.path", source.path, f"a local folder, or a dataset on the hub ({reason})"
        ) from error
    if files := sorted(folder.glob(pattern)):
        return files
    raise InvalidInput("prompts.split", source.split, f"a split of {source.path} (config {source.config})")


def _existing(path: Path, field: str) -> Path:
    if not path.is_file():
        raise InvalidInput(field, str(path), "a file that exists")
    return path


# --- functions that a spec names ------------------------------------------------------------------------------------


def in_project(source: str | None, project: Path) -> str | None:
    """A model or adapter as it is loaded: a folder of the project by its full path, anything else as it is."""
    return str(project / source) if source is not None and (project / source).is_dir() else source


def call(reference: str, arguments: Mapping[str, Any], project: Path, *, field: str) -> Any:
    """What a function returns.

    Args:
        reference: `package.module:function`, importable from the environment or from the project's folder.

    Raises:
        InvalidInput: there is no such function, or it does not take these arguments.
    """
    return fitting(reference, arguments, project, field=field)(**arguments)


def fitting(reference: str, arguments: Mapping[str, Any], project: Path, *, field: str) -> Callable[..., Any]:
    """The function that is named, which takes these arguments.

    Raises:
        InvalidInput: there is no such function, or it does not take them.
    """
    function = function_of(reference, project, field=field)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise InvalidInput(f"{field}.arguments", dict(arguments), f"those of {reference} ({error})") from error
    return function


def function_of(reference: str, project: Path, *, field: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Raises:
        InvalidInput: it cannot be imported, or is not callable.
    """
    module_name, _, name = reference.partition(":")
    try:
        with _importable(project):
            function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"{field}.function", reference, f"package.module:function ({error})") from error
    if not callable(function):
        raise InvalidInput(f"{field}.function", reference, "something that can be called")
    return function  # type: ignore[no-any-return]  # any callable


@contextmanager
def _importable(project: Path) -> Iterator[None]:
    """The project's folder is last in line: it must not shadow libraries (its folder `mlflow`, say)."""
    sys.path.append(str(project))
    try:
        yield
    finally:
        sys.path.remove(str(project))


def read_instants(path: Path) -> tuple[float, ...]:
    """The column `at_s` of a trace, CSV or JSONL, in order.

    Raises:
        InvalidInput: it is not there, or holds no numbers.
    """
    rows = rows_of(_existing(path, "load.path"), "jsonl" if path.suffix in (".jsonl", ".json") else "csv")
    instants = []
    for number, row in enumerate(rows, start=1):
        try:
            instants.append(checks.number("at_s", float(row["at_s"])))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"load.path ({path.name}, row {number})", dict(row), "a number in column at_s"
            ) from error
    return tuple(sorted(instants))
