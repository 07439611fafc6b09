"""A branch is pinned to the commit it means now: asked from a hub (a server that speaks its API), or from the cache."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from abswitch.domain import ModelConfig
from abswitch.errors import BadModelSource
from abswitch.serving.hub import pinned

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = {"/api/models/org/name": SHA, "/api/models/org/name/revision/next": SHA[::-1]}.get(self.path)
        missing = "RevisionNotFound" if "/revision/" in self.path else "RepoNotFound"
        body = json.dumps({"id": "org/name", "sha": found}).encode()
        self.send_response(200 if found else 404)
        if not found:
            self.send_header("X-Error-Code", missing)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    yield url
    server.shutdown()
    server.server_close()


def config(**fields: str) -> ModelConfig:
    return ModelConfig(**{"model_id": "m", "model": "org/name", **fields})  # type: ignore[arg-type]


def test_the_hub_says_which_commit_it_is(hub: str) -> None:
    assert pinned(config()).revision == SHA
    assert pinned(config(revision="next")).revision == SHA[::-1]
    with pytest.raises(BadModelSource, match=r"model_config\.revision.*'gone'"):
        pinned(config(revision="gone"))
    with pytest.raises(BadModelSource, match=r"model_config\.model.*'org/none'"):
        pinned(config(model="org/none"))


def test_without_a_hub_the_cache_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", nowhere)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadModelSource, match="a hub that can be reached, or a snapshot"):
        pinned(config())
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(SHA)
    assert pinned(config()).revision == SHA


def test_a_commit_and_a_folder_are_what_they_are(tmp_path: Path) -> None:
    assert pinned(config(revision=SHA)).revision == SHA
    assert pinned(config(model=str(tmp_path))).revision is None
