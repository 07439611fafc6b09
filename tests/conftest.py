from __future__ import annotations

import random
import sys
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import settings

from abswitch.testing.models import TinyModels, tiny_models

# A busy machine is no failure of what is tested; all else stays as it is by default, or in CI.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def tiny() -> TinyModels:
    """The tiny addition models, trained once per recipe (half a minute) and kept in the ordinary cache."""
    return tiny_models("addition")


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A laid-out MLflow database to copy; laying one takes MLflow four seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


_DRAWERS = (
    "abswitch.engine",
    "abswitch.experiments.switchback",
    "abswitch.experiments.trial",
    "abswitch.serving.desk",
    "abswitch.serving.switcher",
)


@pytest.fixture(autouse=True)
def _the_same_units_in_the_same_arms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that units are drawn by are the same in every run: with those of chance, one test in a thousand that looks
    at a split would meet a split that is not to be believed, and is right to say so."""
    chance = random.Random(request.node.nodeid)
    for name in _DRAWERS:
        module = sys.modules.get(name)
        if module is not None:
            monkeypatch.setattr(module, "uuid4", lambda: UUID(int=chance.getrandbits(128), version=4))
