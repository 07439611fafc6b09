"""A server that speaks as much of W&B's protocol as its uploads need, over real HTTP; it keeps what it was told."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


class WandbServer(ThreadingHTTPServer):
    """Keeps, as W&B's own does, lines by run, file and offset: what is sent once more replaces what was there.

    Attributes:
        runs: what was said of each run, by id.
        files: run id → file → line number → line.
        refuse: answer everything with 401.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
        self.artifacts: list[str] = []
        self.keys: set[str | None] = set()
        self.refuse = False

    def history(self, run_id: str) -> list[dict[str, Any]]:
        lines = self.files[run_id][HISTORY]
        return [json.loads(lines[number]) for number in sorted(lines)]

    def told(self, path: str, body: bytes) -> dict[str, Any]:
        """The answer to a request."""
        if path == "/graphql":
            asked = json.loads(body)
            return self._answer(asked["query"], asked.get("variables") or {})
        if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            for name, part in (json.loads(body).get("files") or {}).items():
                kept = self.files[found[1]][name]
                kept |= dict(enumerate(part["content"], start=part["offset"]))
        return {}

    def _answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            new = given["name"] not in self.runs
            known = self.runs.setdefault(given["name"], {})
            known |= {key: value for key, value in given.items() if value is not None}
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": given["entity"]}}
            bucket = {"id": given["name"], "name": given["name"], "displayName": known.get("displayName"),
                      "description": "", "config": "{}", "sweepName": None, "historyLineCount": 0,
                      "project": project}  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": new}}}
        if "createArtifact(" in query:
            self.artifacts.append(given["input"]["artifactCollectionName"])
            made = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            return {"data": {"createArtifact": {"artifact": made}}}
        return {"data": None, "errors": [{"message": "not spoken here"}]}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_GET(self) -> None:
        self._reply(200, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/graphql":
            self.server.keys.add(self.headers.get("authorization"))
        if self.server.refuse:
            self._reply(401, {"error": "invalid key"})
        else:
            self._reply(200, self.server.told(self.path, body))

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(port: int) -> Iterator[WandbServer]:
    server = WandbServer(port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
