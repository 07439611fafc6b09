from __future__ import annotations

from pathlib import Path

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
