from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.live_mlflow import Server


@pytest.fixture
def database(fresh_database: Path, tmp_path: Path) -> Path:
    (tmp_path / "tracking").mkdir()
    return Path(shutil.copy(fresh_database, tmp_path / "tracking" / "mlflow.db"))


@pytest.fixture
def server(database: Path) -> Iterator[Server]:
    made = Server(database)
    yield made
    made.kill()
