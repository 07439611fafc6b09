"""The digest follows the bytes: equal for copies, another after an edit, whatever the folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from abswitch.domain import ModelConfig
from abswitch.serving.weights import weights_digest


def folder(path: Path, *parts: bytes) -> Path:
    path.mkdir()
    for number, content in enumerate(parts):
        (path / f"model-{number}.safetensors").write_bytes(content)
    return path


def of(path: Path, **fields: str) -> str | None:
    return weights_digest(ModelConfig(model_id="m", model=str(path), **fields))  # type: ignore[arg-type]


def test_copies_are_equal_and_an_edit_is_seen(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", b"one", b"two"), folder(tmp_path / "b", b"one", b"two")
    first = of(a)
    assert first == of(b) and first is not None and len(first) == 16
    (a / "model-1.safetensors").write_bytes(b"twx")
    assert of(a) != first, "of the same size, in the same place"
    assert of(folder(tmp_path / "c", b"onet", b"wo")) != first, "the files' borders count"


def test_an_adapter_adds_its_own(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base", b"w"), folder(tmp_path / "adapter", b"a")
    assert of(base, adapter=str(adapter)) == f"{of(base)}+{of(adapter)}"


@pytest.mark.parametrize("backend", ["openai", "scripted"])
def test_weights_elsewhere_have_none(tmp_path: Path, backend: str) -> None:
    assert of(tmp_path, backend=backend) is None


def test_a_hub_id_is_known_by_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert weights_digest(ModelConfig(model_id="m", model="org/name", revision="abc")) == "abc"
    assert weights_digest(ModelConfig(model_id="m", model="org/name")) is None
