"""What users import stays there, is documented, and costs nothing to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import abswitch
from abswitch import errors


@pytest.mark.parametrize("name", abswitch.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(abswitch, name)
    assert thing.__doc__, f"{name} has no docstring"
    assert name in dir(abswitch)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = abswitch.nonsense


def test_the_error_tree_at_the_top_of_errors_is_the_tree_there_is() -> None:
    public = [
        thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, errors.AbswitchError)
    ]
    assert errors.__doc__ is not None
    assert [c.__name__ for c in public if c.__name__ not in errors.__doc__] == []
    assert all(c.__doc__ for c in public)


HEAVY = ("vllm", "torch", "mlflow", "pandas", "duckdb", "numpy", "scipy", "matplotlib", "transformers", "openai")


@pytest.mark.parametrize("statement", ["import abswitch", "from abswitch import ModelConfig, ExactMatch"])
def test_importing_is_cheap(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.strip() == "[]"
