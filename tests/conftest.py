from __future__ import annotations

import pytest

from abswitch.testing.models import TinyModels, tiny_models


@pytest.fixture(scope="session")
def tiny() -> TinyModels:
    """The tiny addition models, trained once per recipe (half a minute) and kept in the ordinary cache."""
    return tiny_models("addition")
