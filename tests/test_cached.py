"""Folders that are made once: whole or not at all, also when a build fails, is killed, or two ask at once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from abswitch.cached import cached_folder
from abswitch.errors import InvalidInput

DEADLINE_S = 30


def build_small(folder: Path) -> Mapping[str, Any]:
    (folder / "weights").mkdir()
    (folder / "weights" / "data").write_bytes(b"1234")
    return {"made": "by hand"}


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    entry = tmp_path / "deep" / "entry"
    first = cached_folder(entry, build_small)
    assert first["made"] == "by hand"
    assert cached_folder(entry, must_not_build) == first
    assert (entry / "weights" / "data").read_bytes() == b"1234"


def must_not_build(folder: Path) -> NoReturn:
    raise AssertionError("built again")


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fails_half_way(folder: Path) -> NoReturn:
        build_small(folder)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        cached_folder(tmp_path / "entry", fails_half_way)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["entry.lock"])
    assert cached_folder(tmp_path / "entry", build_small)["made"] == "by hand"


@pytest.mark.parametrize("damage", ["delete", "truncate", "manifest"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    entry = tmp_path / "entry"
    cached_folder(entry, build_small)
    if damage == "delete":
        (entry / "weights" / "data").unlink()
    elif damage == "truncate":
        (entry / "weights" / "data").write_bytes(b"1")
    else:
        (entry / "manifest.json").write_text("{")
    with pytest.raises(AssertionError, match="built again"):
        cached_folder(entry, must_not_build)
    cached_folder(entry, build_small)
    assert (entry / "weights" / "data").read_bytes() == b"1234"


def test_of_two_callers_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    building, waiting = threading.Event(), threading.Event()
    built: list[str] = []

    def slow(folder: Path) -> Mapping[str, Any]:
        building.set()
        assert waiting.wait(DEADLINE_S)
        built.append("first")
        return build_small(folder)

    first = threading.Thread(target=cached_folder, args=(tmp_path / "entry", slow))
    first.start()
    assert building.wait(DEADLINE_S)
    manifest = cached_folder(tmp_path / "entry", must_not_build, waiting.set)
    first.join(DEADLINE_S)
    assert built == ["first"]
    assert manifest["made"] == "by hand"


def test_what_a_killed_process_left_is_taken_for_nothing_and_goes(tmp_path: Path) -> None:
    left = tmp_path / "entry.abc.partial"
    left.mkdir()
    build_small(left)
    assert cached_folder(tmp_path / "entry", build_small)["made"] == "by hand"
    assert not left.exists()


def test_a_cache_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="a folder that can be written"):
        cached_folder(tmp_path / "file" / "entry", build_small)
