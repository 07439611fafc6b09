"""The page of proofs names tests and benchmarks that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "proofs.md").read_text(encoding="utf-8")


def named() -> list[tuple[str, str]]:
    """(file, test); a test that begins with `::` is of the file named before it."""
    found, file = [], ""
    for named_file, test in re.findall(r"`([\w/]+\.py)?::(\w+)`", PAGE):
        file = named_file or file
        found.append((file, test))
    return found


@pytest.mark.parametrize(("file", "test"), named())
def test_what_it_names_is_there(file: str, test: str) -> None:
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^(?:async def|def|class) {test}\b", source, flags=re.MULTILINE)


def test_its_benchmarks_are_there_and_its_promises_are_many() -> None:
    assert len(named()) > 80
    for benchmark in set(re.findall(r"`(benchmarks/\w+\.py)`", PAGE)):
        assert (ROOT / benchmark).is_file()
