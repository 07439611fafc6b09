"""The page of methods names every public function and every rule."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import abswitch.stats
from abswitch.stats import rules

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("methods*.md")))
FUNCTIONS = [name for name in abswitch.stats.__all__ if inspect.isfunction(getattr(abswitch.stats, name))]
NAMED = r'(?:_invalid(?:_in_the_end)?\(\s*(?:case,\s*)?|Finding\(Decision\.\w+, )"([a-z-]+)"'
RULES = sorted({rules.CONTINUE, *re.findall(NAMED, inspect.getsource(rules))})


def test_functions_and_rules_were_found() -> None:
    assert len(FUNCTIONS) >= 70 and len(RULES) >= 17


@pytest.mark.parametrize("name", [*FUNCTIONS, *RULES])
def test_it_is_on_the_page(name: str) -> None:
    assert re.search(rf"`{name}[`(]", PAGE)
