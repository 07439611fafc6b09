"""`MlflowRegistry`: models of abswitch in MLflow's model registry, kept in step, and models of MLflow's read back.

What is to be told waits in the store's outbox until MLflow answers; nothing here is on a request's or a switch's path.
Each job is the whole model as it stands, so the latest one is all that counts.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from abswitch import checks
from abswitch.errors import InvalidInput, StoreError
from abswitch.registries import ExportStatus, ExternalModel, ModelSnapshot
from abswitch.store.mlflow_import import PREFIX, RESERVED, model_of
from abswitch.store.mlflow_server import FOR_GOOD, MlflowServer, checked_uri
from abswitch.store.outbox import Outbox, OutboxFlusher, Refused, Unreachable
from abswitch.store.promotions import TAGS as VERDICT_TAGS
from abswitch.store.promotions import verdict_behind
from abswitch.store.recorder import Recorder, json_text
from abswitch.store.tracking import legal_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.entities.model_registry import RegisteredModel

log = logging.getLogger("abswitch.tracking")
_SINK = "mlflow-registry"
_PAGE = 200
_LONGEST_TAG = 5000


class MlflowRegistry:
    """One per engine; fulfils `abswitch.registries.ExternalRegistry`.

    Args:
        recorder: the store whose outbox holds what is to be told; what an earlier process left is caught up.
        default_uri: where to, unless something else is said.
    """

    def __init__(self, recorder: Recorder, default_uri: str | None = None) -> None:
        self._recorder = recorder
        self._outbox = Outbox(recorder, _SINK)
        self._default_uri = default_uri
        self._servers: dict[str, MlflowServer] = {}
        self._due: dict[tuple[str, str], Callable[[], ModelSnapshot]] = {}
        self._flusher: OutboxFlusher | None = None
        self._lock = threading.Lock()

    def address(self, uri: str | None) -> str:
        """The address meant, checked.

        Raises:
            InvalidInput: it is none, or none was given and there is no default.
        """
        wanted = uri or self._default_uri
        if wanted is None:
            allowed = "an address, as the engine has none: SwitchingEngine(mlflow=…), or tracking_uri=…"
            raise InvalidInput("tracking_uri", None, allowed)
        return checked_uri(wanted)

    def name_for(self, model_id: str) -> str:
        """The model's id as MLflow takes it: without `/` and `:`."""
        return model_id.replace("/", "-").replace(":", "-")

    def check_name(self, name: str) -> None:
        """Refuse a name that MLflow does not take.

        Raises:
            InvalidInput: with what it takes.
        """
        checks.name("name", name)
        if self.name_for(name) != name:
            raise InvalidInput("name", name, "a name without / and :")

    def export(
        self, snapshot: ModelSnapshot, name: str, uri: str, timeout_s: float, *, may_wait: bool = True
    ) -> ExportStatus:
        """Queue a model durably, and wait for a while until it is published.

        Args:
            may_wait: have it told later where that does not come to be in time; otherwise it is taken back.

        Raises:
            StoreError: the store is closed.
        """
        job_id, body = _job(snapshot, name, uri)
        job_id += f"#{uuid4().hex[:8]}"  # asked for by hand: also when nothing changed here, it may have there
        flusher = self._running()
        flusher.add(job_id, body)
        flusher.flush(timeout_s)
        result = self._outbox.published(job_id)
        waits = flusher.status().last_error or f"MLflow took longer than {timeout_s:g} s"
        if result is None and not may_wait:
            self._outbox.withdraw(job_id, waits)
            result = self._outbox.published(job_id)  # it may have been told just then
        told = result or {}
        return ExportStatus(
            name=name,
            tracking_uri=uri,
            published="versions" in told,
            versions=told.get("versions", {}),
            error=waits if result is None else told.get("error"),
        )

    def follow(self, snapshot: Callable[[], ModelSnapshot], name: str, uri: str) -> None:
        """Have a model told as it will stand in a moment; neither waits nor raises."""
        self._due[name, uri] = snapshot
        self._running().wake()

    def fetch(self, name: str, uri: str) -> ExternalModel:
        """Read a model.

        Raises:
            InvalidInput: there is none of that name.
            StoreError: MLflow cannot be reached.
        """
        server = self._server(uri)
        try:
            server.probe()
            client = server.client()
            return model_of(client, _existing(client, name), _versions(client, name), uri)
        except Unreachable as error:
            raise StoreError(f"MLflow at {uri} cannot be reached: {error}") from error

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until everything is told; False as soon as MLflow fails, or after `timeout_s`."""
        return self._flusher is None or self._flusher.flush(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Tell what waits, then stop; the rest waits for the next process. Idempotent."""
        if self._flusher is not None:
            self._flusher.close(timeout_s)

    # --- the flusher's thread ---------------------------------------------------------------------------------------

    def _running(self) -> OutboxFlusher:
        with self._lock:
            if self._flusher is None:
                target = "MLflow's model registry"
                self._flusher = OutboxFlusher(self._outbox, self._deliver, target=target, prepare=self._queue_due)
            return self._flusher

    def _queue_due(self) -> None:
        while self._due:
            (name, uri), snapshot = self._due.popitem()
            try:
                self._outbox.add(*_job(snapshot(), name, uri))
            except InvalidInput as error:
                log.warning("model %s is not told to MLflow: %s", name, error)

    def _server(self, uri: str) -> MlflowServer:
        return self._servers.setdefault(uri, MlflowServer(uri))

    def _deliver(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        server = self._server(body["uri"])
        server.probe()
        client = server.client()
        from mlflow.exceptions import MlflowException

        try:
            return {"versions": _Telling(client, body, partial(verdict_behind, self._recorder)).run()}
        except MlflowException as error:
            if error.error_code in FOR_GOOD:
                raise Refused(str(error)) from error
            server.probe()  # a server that went away is waited for, not counted as a failed attempt
            raise


class _Telling:
    """One job on its way into MLflow. Every step finds what an earlier attempt left, so that a replay adds nothing."""

    def __init__(
        self, client: MlflowClient, body: Mapping[str, Any], verdict: Callable[[str], Mapping[str, str]]
    ) -> None:
        self._client = client
        self._verdict = verdict
        self._name: str = body["name"]
        self._model: Mapping[str, Any] = body["model"]

    def run(self) -> dict[str, str]:
        """Tell everything; returns version → its number there."""
        model = self._ensure_model()
        there = {found.tags["abswitch.version"]: found for found in self._ours()}
        numbers = {told["version"]: self._version(told, there.get(told["version"])) for told in self._model["versions"]}
        known = {version: number for version, number in numbers.items() if number is not None}
        self._aliases(model, known)
        return known

    def _ours(self) -> Iterator[MlflowVersion]:
        # The oldest counts: MLflow repeats a request whose answer was lost, which may create a version twice.
        found = (one for one in _versions(self._client, self._name) if "abswitch.version" in one.tags)
        return iter(sorted(found, key=lambda one: -int(one.version)))

    def _ensure_model(self) -> RegisteredModel:
        from mlflow.exceptions import MlflowException

        model_id = self._model["model_id"]
        try:
            self._client.create_registered_model(self._name, tags={"abswitch.model_id": model_id})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model = self._client.get_registered_model(self._name)
        holder = model.tags.get("abswitch.model_id")
        if holder not in (None, model_id):
            raise Refused(f"registered model {self._name!r} holds model {holder!r}; export under another name")
        if holder is None:
            self._client.set_registered_model_tag(self._name, "abswitch.model_id", model_id)
        return model

    def _version(self, told: Mapping[str, Any], found: MlflowVersion | None) -> str | None:
        tags = _tags(told)
        if (operation_id := told.get("operation_id")) is not None:
            tags |= {key: value[:_LONGEST_TAG] for key, value in self._verdict(operation_id).items()}
        if found is not None:
            self._retag(found, tags)
            return str(found.version)
        if not told["registered"]:
            return None  # it came and went before MLflow heard of it
        made = self._client.create_model_version(
            self._name, _source(told), tags=tags, description=told["metadata"].get("description")
        )
        return str(made.version)

    def _retag(self, found: MlflowVersion, tags: Mapping[str, str]) -> None:
        """Tags as they are here; those that somebody else set there stay."""
        ours = VERDICT_TAGS | set(json.loads(found.tags.get("abswitch.tags", "[]")))
        for key in ours - set(tags) & set(found.tags):
            self._client.delete_model_version_tag(self._name, found.version, key)
        for key, value in tags.items():
            if found.tags.get(key) != value:
                self._client.set_model_version_tag(self._name, found.version, key, value)

    def _aliases(self, model: RegisteredModel, numbers: Mapping[str, str]) -> None:
        """Aliases as they are here; those that somebody else set there stay."""
        wanted = {alias_there(a): numbers[v] for a, v in self._model["aliases"].items() if v in numbers}
        ours = set(json.loads(model.tags.get("abswitch.aliases", "[]")))
        there = {alias: str(number) for alias, number in model.aliases.items()}
        # Told first: should this end halfway, the next attempt knows which of them may be removed.
        listed = json.dumps(sorted(ours | set(wanted)))
        if listed != model.tags.get("abswitch.aliases"):
            self._client.set_registered_model_tag(self._name, "abswitch.aliases", listed)
        for alias in sorted((ours - set(wanted)) & set(there)):
            self._client.delete_registered_model_alias(self._name, alias)
        for alias, number in wanted.items():
            if there.get(alias) != number:
                self._client.set_registered_model_alias(self._name, alias, number)


def alias_there(alias: str) -> str:
    """The alias under a name that MLflow takes: `latest` and `v2`-like ones mean something else there."""
    return PREFIX + alias if RESERVED.match(alias) else alias


def _job(snapshot: ModelSnapshot, name: str, uri: str) -> tuple[str, dict[str, Any]]:
    """A job, named by content and revision: the same is told once, and what was before may come again."""
    body = {"uri": uri, "name": name, "model": snapshot.to_dict()}
    digest = blake2b(json_text("model", body).encode(), digest_size=8).hexdigest()
    return f"{name}#{snapshot.revision}#{digest}", body


def _tags(told: Mapping[str, Any]) -> dict[str, str]:
    own = {legal_name(key): value[:_LONGEST_TAG] for key, value in told["tags"].items() if value}
    simple = {key: value for key, value in told["metadata"].items() if isinstance(value, str | int | float | bool)}
    own = {legal_name(f"metadata.{key}"): str(value)[:_LONGEST_TAG] for key, value in simple.items()} | own
    return (
        own
        | {
            "abswitch.version": told["version"],
            "abswitch.registered": str(told["registered"]).lower(),
            "abswitch.config": json.dumps(told["config"]),
            "abswitch.metadata": json.dumps(told["metadata"]),
            "abswitch.tags": json.dumps(sorted(own)),
            "abswitch.user_tags": json.dumps(told["tags"]),
        }
        | {f"abswitch.{key}": told[key][:_LONGEST_TAG] for key in ("commit", "verdict") if told[key]}
    )


def _source(told: Mapping[str, Any]) -> str:
    """Where it is loaded from. A server takes no `file://` of another machine, and nothing that looks relative."""
    config = told["config"]
    if told["commit"]:
        return f"hf:///{config['model']}@{told['commit']}"
    if config["backend"] != "vllm":
        return f"{config['backend']}:///{quote(config['model'])}"
    return f"folder://{quote(str(Path(config['model']).expanduser().absolute()))}"


def _existing(client: MlflowClient, name: str) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        there = ", ".join(sorted(model.name for model in client.search_registered_models(max_results=_PAGE)))
        raise InvalidInput(
            "name", name, f"a registered model: one of {there}" if there else "a registered model, and there is none"
        ) from error


def _versions(client: MlflowClient, name: str) -> list[MlflowVersion]:
    """Every version of a registered model, oldest first."""
    found: list[MlflowVersion] = []
    query, token = "name = '{}'".format(name.replace("'", "\\'")), None
    while True:
        page = client.search_model_versions(query, max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda one: int(one.version))
