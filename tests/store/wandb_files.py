"""Runs that Weights & Biases wrote offline, read back from their `.wandb` files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER, _BLOCK, _CHUNK = 7, 32768, struct.Struct("<IHB")  # LevelDB's log format, behind a header of the file's own
_WHOLE, _LAST = 1, 4


@dataclass(slots=True)
class WandbRun:
    """One run, as a server would be told of it."""

    folder: Path
    run_id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)


def runs_in(folder: Path) -> list[WandbRun]:
    """Every run under a folder."""
    return [_read(path) for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]


def _read(path: Path) -> WandbRun:
    run = WandbRun(path.parent)
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        run.kinds.add(kind)
        if kind == "run":
            told = record.run
            run.run_id, run.project, run.name = told.run_id, told.project, told.display_name
            run.group, run.notes, run.tags = told.run_group, told.notes, tuple(told.tags)
            run.config |= _items(told.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "artifact":
            run.artifacts[record.artifact.type] = tuple(one.path for one in record.artifact.manifest.contents)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items}


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), _HEADER, b""
    assert data.startswith(b":W&B")
    while position + _CHUNK.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _CHUNK.size:
            position += left
            continue
        _, length, kind = _CHUNK.unpack_from(data, position)
        parts += data[position + _CHUNK.size : position + _CHUNK.size + length]
        position += _CHUNK.size + length
        if kind in (_WHOLE, _LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
