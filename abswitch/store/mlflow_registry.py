"""`MlflowRegistry`: versions to and from MLflow's model registry, with their aliases kept in step.

A version goes out as a model version whose tags hold all that `ModelConfig` needs, and comes back from those; one that
was registered in MLflow by something else comes back as its source. Alias moves wait in the store's outbox until the
registry answers, like everything else that goes to MLflow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import InvalidInput
from abswitch.store.mlflow_sink import probe
from abswitch.store.outbox import Outbox, OutboxFlusher
from abswitch.store.recorder import Recorder
from abswitch.store.tracking import TrackingStatus

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CONFIG, _VERSION, _METADATA = "abswitch.config", "abswitch.version", "abswitch.metadata"
_VERDICT = "abswitch.verdict"
_RESERVED = re.compile(r"(latest|v\d+)\Z", re.IGNORECASE)
_SINK = "mlflow-registry"
_PROBE_S, _CLOSE_S = 2.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One model version as MLflow knows it.

    Attributes:
        mlflow_version: its number there.
        aliases: those that MLflow holds for it.
    """

    config: ModelConfig
    version: str
    metadata: Mapping[str, Any]
    mlflow_version: str
    aliases: tuple[str, ...]


class MlflowRegistry:
    """Every method blocks, and may be called from any thread but the engine's own.

    Args:
        uri: tracking (and registry) address, as `SwitchingEngine(mlflow=…)` takes it.
        recorder: the store whose outbox holds the alias moves.
    """

    def __init__(self, uri: str, *, recorder: Recorder) -> None:
        self._uri = uri
        self._client: MlflowClient | None = None
        self._flusher = OutboxFlusher(Outbox(recorder, _SINK), self._deliver, target=f"MLflow's registry at {uri}")

    def export(
        self, versions: Iterable[ModelVersion], aliases: Mapping[str, str], *, name: str | None = None
    ) -> dict[str, str]:
        """Register versions of one model in MLflow; those already there stay as they are.

        Args:
            aliases: alias → version; set in MLflow under `mlflow_alias` of each name.
            name: of the registered model; the model's id by default.

        Returns:
            version → its number in MLflow.

        Raises:
            InvalidInput: no version, or versions of several models.
        """
        given = list(versions)
        models = {version.model_id for version in given}
        if len(models) != 1:
            raise InvalidInput("versions", sorted(models), "versions of exactly one model")
        target = name or models.pop()
        self._ensure_model(target)
        known = {one.version: one.mlflow_version for one in self.read(target)}
        for version in given:
            if version.version not in known:
                known[version.version] = self._create(target, _source(version.config), _tags(version))
        for alias, held in aliases.items():
            if held in known:
                self._mlflow.set_registered_model_alias(target, mlflow_alias(alias), known[held])
        return {version.version: known[version.version] for version in given}

    def read(self, name: str, *, model_id: str | None = None) -> list[Imported]:
        """The model versions of a registered model, oldest first.

        Args:
            model_id: name of the model here; that of the registered model by default.

        Raises:
            InvalidInput: MLflow has no registered model of that name.
        """
        from mlflow.exceptions import MlflowException

        try:
            model = self._mlflow.get_registered_model(name)
        except MlflowException as error:
            raise InvalidInput("name", name, f"a registered model of {self._uri} ({error.message})") from None
        found = self._mlflow.search_model_versions(f"name = '{name}'")
        held: dict[str, list[str]] = {}
        for alias, number in dict(model.aliases).items():
            held.setdefault(str(number), []).append(alias)
        ordered = sorted(found, key=lambda one: int(one.version))
        return [_imported(one, model_id or name, tuple(sorted(held.get(str(one.version), ())))) for one in ordered]

    def follow(self, name: str, alias: str, version: ModelVersion | None, verdict: str | None = None) -> None:
        """Queue an alias move, durably; it is made when MLflow answers. `version` None removes the alias; one that
        MLflow does not know yet is registered there.

        Args:
            verdict: why it moved, in words; becomes a tag of the model version.
        """
        tags = None if version is None else _tags(version)
        source = None if version is None else _source(version.config)
        body = {
            "operation_id": name,
            "name": name,
            "alias": alias,
            "source": source,
            "tags": tags,
            "verdict": verdict,
        }
        self._flusher.add(f"{name}:{alias}:{uuid4().hex}", body)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until the queued moves are made; False when that takes longer."""
        return self._flusher.flush(timeout_s)

    def status(self) -> TrackingStatus:
        """How many moves are made, waiting, and given up."""
        return self._flusher.status()

    def close(self) -> None:
        """End the thread; moves that still wait are made by the next process."""
        self._flusher.close(_CLOSE_S)

    @property
    def _mlflow(self) -> MlflowClient:
        if self._client is None:
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._client

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._mlflow.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _create(self, name: str, source: str, tags: Mapping[str, str]) -> str:
        return str(self._mlflow.create_model_version(name, source=source, tags=dict(tags)).version)

    def _deliver(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        probe(self._uri, _PROBE_S)
        name, alias = str(body["name"]), mlflow_alias(str(body["alias"]))
        tags = body["tags"]
        if tags is None:
            self._mlflow.delete_registered_model_alias(name, alias)
            return {"alias": alias, "version": None}
        numbers = {one.version: one.mlflow_version for one in self.read(name)}
        number = numbers.get(tags[_VERSION]) or self._create(name, str(body["source"]), tags)
        self._mlflow.set_registered_model_alias(name, alias, number)
        if body.get("verdict"):
            self._mlflow.set_model_version_tag(name, number, _VERDICT, str(body["verdict"])[:5000])
        return {"alias": alias, "version": number}


def _tags(version: ModelVersion) -> dict[str, str]:
    return {
        _VERSION: version.version,
        _CONFIG: json.dumps(version.config.to_dict(), default=dict),
        _METADATA: json.dumps(dict(version.metadata)),
    }


def mlflow_alias(alias: str) -> str:
    """The alias as MLflow takes it, which keeps `latest` and names like `v2` for itself."""
    return f"{alias}-alias" if _RESERVED.match(alias) else alias


def _source(config: ModelConfig) -> str:
    return config.model if config.backend == "vllm" else f"{config.backend}:{config.model}"


def _imported(found: Any, model_id: str, aliases: tuple[str, ...]) -> Imported:
    tags = dict(found.tags)
    if _CONFIG in tags:
        config = ModelConfig.of({**json.loads(tags[_CONFIG]), "model_id": model_id})
    else:
        config = ModelConfig(model_id=model_id, model=str(found.source).removeprefix("file://"))
    return Imported(
        config=config,
        version=tags.get(_VERSION, f"mlflow-{found.version}"),
        metadata=json.loads(tags.get(_METADATA, "{}")),
        mlflow_version=str(found.version),
        aliases=aliases,
    )
