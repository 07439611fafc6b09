"""Hub ids become commits: asked of a hub on this machine that speaks the protocol, or found in the offline cache."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from abswitch import SwitchingEngine
from abswitch.clock import VirtualClock
from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import BadModelSource, DuplicateVersion
from abswitch.serving.arrivals import Arrivals
from abswitch.serving.departures import Departures
from abswitch.serving.hub import _told_bytes, commit_of, snapshot_of, weights_bytes_of
from abswitch.serving.policy import Footprint
from abswitch.serving.scripted import Gate, ScriptedInstance
from abswitch.serving.timings import Timings
from abswitch.serving.vllm_args import plan_of
from abswitch.serving.vllm_memory import HOST_BYTES, estimate
from abswitch.serving.weights import weights_digest
from tests.serving.test_source import safetensors
from tests.serving.test_vllm_args import library

OLD, NEW = "a" * 40, "b" * 40
FILES = {"config.json": b'{"architectures": ["LlamaForCausalLM"]}', "model.safetensors": safetensors()}


class Hub:
    """A hub with `org/good` (branch main, tag v1), `org/pickled`, `org/gated`; `refs` may move."""

    def __init__(self) -> None:
        self.refs = {"main": NEW, "v1": OLD, OLD: OLD, NEW: NEW}
        self.broken: int | None = None
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(path)
        if self.broken is not None:
            return self._send(request, self.broken, b"", {})
        if path.startswith("/api/models/"):
            return self._api(request, path.removeprefix("/api/models/"))
        repo, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        body = FILES.get(name)
        if repo != "org/good" or body is None or revision not in self.refs:
            return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._send(request, 200, body, {"ETag": f'"{name}"', "X-Repo-Commit": self.refs[revision]})

    def _api(self, request: BaseHTTPRequestHandler, path: str) -> None:
        repo = "/".join(path.split("/")[:2])
        kind, _, revision = path.removeprefix(repo).strip("/").partition("/")
        files = {"org/good": list(FILES), "org/pickled": ["config.json", "pytorch_model.bin"]}
        if repo == "org/gated":
            return self._send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        if repo not in files:
            return self._send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        revision = revision.partition("/")[0] or "main"
        if revision not in self.refs:
            return self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if kind == "tree":
            tree = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": name} for name in files[repo]]
            return self._send(request, 200, json.dumps(tree).encode(), {})
        siblings = [{"rfilename": name, "size": len(FILES.get(name, b""))} for name in files[repo]]
        body = {"id": repo, "sha": self.refs[revision], "siblings": siblings}
        return self._send(request, 200, json.dumps(body).encode(), {})

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that the library asks, with an empty cache; settings are read from the environment once, at import."""
    from huggingface_hub import constants

    made = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _told_bytes.cache_clear()
    yield made
    made.close()


def config(model: str = "org/good", **fields: Any) -> ModelConfig:
    return ModelConfig(model_id="m", model=model, **fields)


def refusal(model: str = "org/good", **fields: Any) -> BadModelSource:
    with pytest.raises(BadModelSource) as caught:
        commit_of(config(model, **fields))
    return caught.value


def cached(hub: Hub, cache: Path) -> None:
    """Both revisions are downloaded, as people do it: in a process of its own, set by the environment."""
    code = "from huggingface_hub import snapshot_download as get; get('org/good'); get('org/good', revision='v1')"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=200)


@pytest.mark.parametrize(("revision", "commit"), [(None, NEW), ("main", NEW), ("v1", OLD), (OLD, OLD)])
def test_a_revision_is_a_commit(hub: Hub, revision: str | None, commit: str) -> None:
    assert commit_of(config(revision=revision)) == commit


def test_what_is_not_of_the_hub_has_no_commit_and_asks_nobody(hub: Hub) -> None:
    assert commit_of(config("gpt-5", backend="openai")) is None
    assert hub.asked == []


def test_refusals_say_what_to_do(hub: Hub) -> None:
    assert "for a private one set HF_TOKEN" in refusal("org/missing").allowed
    assert "given access to" in refusal("org/gated").allowed
    unknown = refusal(revision="v9")
    assert (unknown.field, unknown.value, unknown.allowed) == (
        "model_config.revision",
        "v9",
        "a branch, tag or commit of org/good",
    )
    assert "pytorch_model.bin; load it once with transformers" in refusal("org/pickled").allowed
    assert commit_of(config("org/pickled", engine_args={"load_format": "dummy"})) == NEW


def test_out_of_reach_without_a_cache_is_one_clear_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken = 500
    assert "the cache has no whole snapshot of it" in refusal().allowed
    hub.close()
    assert "the hub cannot be reached" in refusal().allowed
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "at v1" in refusal(revision="v1").allowed


def test_out_of_reach_the_cached_snapshot_answers(hub: Hub, tmp_path: Path) -> None:
    cached(hub, tmp_path / "cache")
    hub.close()
    assert commit_of(config()) == NEW
    assert commit_of(config(revision="v1")) == OLD
    assert commit_of(config(revision=OLD)) == OLD
    assert "no whole snapshot of it at v2" in refusal(revision="v2").allowed
    pinned = ModelVersion(version="v", config=config(revision="v1"), commit=OLD).pinned
    assert weights_digest(pinned) == OLD[:16]


def test_the_environment_decides_which_hub_and_which_cache(hub: Hub, tmp_path: Path) -> None:
    """As people set it: in a process of its own, through the variables alone."""
    code = (
        "import os, sys; os.environ.update(HF_ENDPOINT=sys.argv[1], HF_HOME=sys.argv[2], HF_HUB_OFFLINE=sys.argv[3])\n"
        "from abswitch.domain import ModelConfig; from abswitch.serving.hub import commit_of\n"
        "from huggingface_hub import snapshot_download\n"
        "if sys.argv[3] == '0': snapshot_download('org/good')\n"
        "print(commit_of(ModelConfig(model_id='m', model='org/good')))"
    )
    for offline in ("0", "1"):
        ran = subprocess.run(
            [sys.executable, "-c", code, hub.url, str(tmp_path / "home"), offline],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert ran.stdout.strip() == NEW, ran.stderr
        hub.broken = 503


async def test_the_commit_is_recorded_and_stays_when_the_branch_moves(hub: Hub, tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    async with SwitchingEngine(store=store) as engine:
        engine.registry.register_model({"model_id": "m", "model": "org/good"}, "monday")
        hub.refs["main"] = OLD
        engine.registry.register_model({"model_id": "m", "model": "org/good"}, "tuesday")
        with pytest.raises(BadModelSource):
            engine.registry.register_model({"model_id": "m", "model": "org/good", "revision": "v9"}, "never")
    hub.close()
    async with SwitchingEngine(store=store) as engine:
        monday, tuesday = engine.registry.get_model_versions("m")
        assert (monday.commit, tuesday.commit) == (NEW, OLD)
        assert (monday.config.revision, monday.pinned.revision) == (None, NEW)
        engine.registry.register_model(
            {"model_id": "m", "model": "org/good"}, "monday"
        )  # a notebook run again, offline
        with pytest.raises(DuplicateVersion):
            engine.registry.register_model({"model_id": "m", "model": "org/good", "revision": "v1"}, "monday")
        assert engine.table("model_versions").commit_sha.tolist() == [NEW, OLD]


def size_of(one: ModelConfig) -> int:
    return weights_bytes_of(one, snapshot_of(one))


def test_how_large_a_model_is_the_cache_tells_or_the_hub_once(hub: Hub, tmp_path: Path) -> None:
    size_bytes = len(FILES["model.safetensors"])
    good = ModelConfig(model_id="m", model="org/good", revision=NEW)
    assert snapshot_of(good) is None
    assert size_of(good) == size_of(good) == size_bytes
    assert len(hub.asked) == 1
    hub.broken = 500
    assert size_of(ModelConfig(model_id="m", model="org/good", revision=OLD)) == 0, "not known is no failure"
    hub.broken = None
    cached(hub, tmp_path / "cache")
    asked = len(hub.asked)
    assert size_of(ModelConfig(model_id="m", model="org/good", revision=OLD)) == size_bytes
    assert len(hub.asked) == asked


async def test_the_weights_of_a_branch_are_those_that_its_first_load_brought(hub: Hub, tmp_path: Path) -> None:
    """Not the branch's name, or they would count as changed at the next load."""
    version = ModelVersion(version="v", config=ModelConfig(model_id="m", model="org/good", revision="main"))
    gate = Gate()
    instance = ScriptedInstance(version, load_gate=gate)

    async def digest(one: ModelVersion) -> str | None:
        return weights_digest(one.pinned)

    arrivals = Arrivals(Departures(), Timings(), digest, VirtualClock(), change_timeout_s=60.0)
    loading = asyncio.create_task(arrivals.load(version, instance))
    while not gate.waiting:
        await asyncio.sleep(0)
    await asyncio.to_thread(cached, hub, tmp_path / "cache")
    gate.open()
    assert (await loading).cached.weights_digest == weights_digest(version.pinned) == NEW[:16]


def test_a_snapshot_without_weights_does_not_make_a_model_weigh_nothing(hub: Hub, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--org--good" / "snapshots" / NEW
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(FILES["config.json"])  # as after its configuration alone was asked for
    good = ModelConfig(model_id="m", model="org/good", revision=NEW)
    assert snapshot_of(good) == snapshot and size_of(good) == len(FILES["model.safetensors"])


def test_an_estimate_knows_the_weights_of_a_hub_id(hub: Hub) -> None:
    config = ModelConfig(model_id="m", model="org/good", engine_args={"kv_cache_memory_bytes": 5})
    version, on_cpu = ModelVersion(version="v", config=config, commit=NEW), library()
    estimated = estimate(plan_of(version, on_cpu), version, on_cpu, joins=False)
    assert estimated == Footprint(0, HOST_BYTES + len(FILES["model.safetensors"]) + 5)
