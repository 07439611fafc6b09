"""What comes from MLflow's registry, without a server: where artifacts are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from abswitch.errors import BadModelSource
from abswitch.registries import ExternalModel
from abswitch.store.mlflow_import import model_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

SERVER = "http://mlflow.internal:5000"


class Artifacts:
    """Stands for MLflow: a client that knows addresses, and what lies there."""

    def __init__(self) -> None:
        self.content = b"weights"
        self.config_name = "config.json"
        self.breaks_after_config = False
        self.downloads = 0

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        return f"mlflow-artifacts:/1/{name}/{version}/model"

    def download(self, *, artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        self.downloads += 1
        folder = Path(dst_path) / "model"
        folder.mkdir(parents=True)
        (folder / self.config_name).write_text("{}")
        if self.breaks_after_config:
            raise OSError("the connection was reset")
        (folder / "model.safetensors").write_bytes(self.content)
        return str(folder)


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    made = Artifacts()
    monkeypatch.setenv("ABSWITCH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", made.download)
    return made


def a_version(name: str = "bot", **fields: Any) -> MlflowVersion:
    from mlflow.entities.model_registry import ModelVersion

    given = {"version": "1", "creation_timestamp": 1, "run_id": "r", "source": "runs:/r/model"} | fields
    return ModelVersion(name=name, **given)


def read(artifacts: Artifacts, version: MlflowVersion, uri: str = SERVER) -> ExternalModel:
    from mlflow.entities.model_registry import RegisteredModel

    client: Any = artifacts
    return model_of(client, RegisteredModel(name=version.name), [version], uri)


def folder_of(model: ExternalModel) -> Path:
    return Path(model.versions[0].config["model"])


def weights_in(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


OTHERS: dict[str, Callable[[Artifacts], ExternalModel]] = {
    "made anew": lambda it: read(it, a_version(creation_timestamp=2)),
    "of another run": lambda it: read(it, a_version(run_id="s")),
    "from elsewhere": lambda it: read(it, a_version(source="runs:/r/other")),
    "on another server": lambda it: read(it, a_version(), "http://mlflow.elsewhere:5000"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_another_artifact_of_the_same_name_and_number_replaces_nothing(
    artifacts: Artifacts, other: Callable[[Artifacts], ExternalModel]
) -> None:
    first = folder_of(read(artifacts, a_version()))
    artifacts.content = b"other weights"
    second = folder_of(other(artifacts))
    assert (weights_in(first), weights_in(second)) == (b"weights", b"other weights")


def test_the_same_version_is_downloaded_once(artifacts: Artifacts) -> None:
    first = folder_of(read(artifacts, a_version()))
    artifacts.content = b"never asked for"
    assert folder_of(read(artifacts, a_version())) == first
    assert folder_of(read(artifacts, a_version(), "http://mia:secret@mlflow.internal:5000")) == first
    assert weights_in(first) == b"weights" and artifacts.downloads == 1


def test_a_download_that_broke_off_is_taken_for_nothing(artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.breaks_after_config = True
    with pytest.raises(BadModelSource, match="the connection was reset"):
        read(artifacts, a_version())
    assert not [one for one in (tmp_path / "mlflow").iterdir() if one.is_dir()]
    artifacts.breaks_after_config = False
    assert weights_in(folder_of(read(artifacts, a_version()))) == b"weights"


def test_a_folder_that_lost_a_file_is_downloaded_again(artifacts: Artifacts) -> None:
    folder = folder_of(read(artifacts, a_version()))
    (folder / "model.safetensors").unlink()
    assert weights_in(folder_of(read(artifacts, a_version()))) == b"weights"


def test_what_is_no_model_is_not_kept(artifacts: Artifacts) -> None:
    artifacts.config_name = "MLmodel"
    with pytest.raises(BadModelSource, match=r"\(mlflow-artifacts:/1/bot/1/model has no config.json\)"):
        read(artifacts, a_version())
    artifacts.config_name = "config.json"
    assert weights_in(folder_of(read(artifacts, a_version()))) == b"weights"


@pytest.mark.parametrize("name", ["..", "My Model", "模型" * 128, "a\\b"])
def test_any_name_makes_a_folder_of_the_cache(artifacts: Artifacts, tmp_path: Path, name: str) -> None:
    folder = folder_of(read(artifacts, a_version(name)))
    assert folder.resolve().relative_to(tmp_path / "mlflow").parts[1:] == ("artifacts", "model")
