"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import abswitch.stats

MODULES = [f"abswitch.stats.{module.name}" for module in pkgutil.iter_modules(abswitch.stats.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_everything_public_is_there() -> None:
    assert sorted(abswitch.stats.__all__) == sorted(set(abswitch.stats.__all__))
    for name in abswitch.stats.__all__:
        assert getattr(abswitch.stats, name).__doc__ or isinstance(getattr(abswitch.stats, name), type(int | str))
