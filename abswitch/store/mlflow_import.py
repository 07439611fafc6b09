"""What a registered model of MLflow means here: those exported from abswitch exactly, others as far as they tell."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from abswitch import checks
from abswitch.cached import cache_root, cached_folder
from abswitch.errors import BadModelSource
from abswitch.registries import ExternalModel, ExternalVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.entities.model_registry import RegisteredModel

RESERVED = re.compile(r"latest\Z|v\d+\Z", re.IGNORECASE)
"""Aliases that MLflow keeps to itself."""
PREFIX = "abswitch-"
"""Stands there before an alias that is reserved."""
_OURS = "abswitch."
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME = 80


def model_of(
    client: MlflowClient, model: RegisteredModel, versions: Sequence[MlflowVersion], uri: str
) -> ExternalModel:
    """A registered model with its versions; artifacts that are elsewhere are downloaded into the cache.

    Raises:
        BadModelSource: a version's artifacts are no model folder.
    """
    names = {str(one.version): one.tags.get("abswitch.version", f"v{one.version}") for one in versions}
    kept = [one for one in versions if one.tags.get("abswitch.registered", "true") == "true"]
    seen: dict[str, MlflowVersion] = {}
    for one in kept:
        seen.setdefault(names[str(one.version)], one)  # the oldest, as one may have been created twice
    return ExternalModel(
        name=model.name,
        model_id=model.tags.get("abswitch.model_id"),
        versions=tuple(_version(client, one, name, uri) for name, one in seen.items()),
        aliases={
            alias_here(alias): names[str(number)]
            for alias, number in model.aliases.items()
            if names.get(str(number)) in seen
        },
    )


def alias_here(alias: str) -> str:
    """An alias of MLflow's by the name that it has here."""
    meant = alias.removeprefix(PREFIX)
    return meant if RESERVED.match(meant) else alias


def _version(client: MlflowClient, found: MlflowVersion, name: str, uri: str) -> ExternalVersion:
    origin = {"mlflow": f"{found.name}/{found.version}"}
    if "abswitch.config" in found.tags:
        config = json.loads(found.tags["abswitch.config"])
        config.pop("model_id")
        return ExternalVersion(
            version=name,
            config=_pinned(config, found.tags.get("abswitch.commit")),
            complete=True,
            metadata=json.loads(found.tags.get("abswitch.metadata", "{}")) | origin,
            tags=json.loads(found.tags.get("abswitch.user_tags", "{}")),
        )
    about = {"mlflow.run_id": found.run_id, "description": found.description, "mlflow.source": found.source}
    tags = {key: value for key, value in found.tags.items() if not key.startswith((_OURS, "mlflow."))}
    about["mlflow.tags"] = {key: value for key, value in tags.items() if not checks.is_name(key)}
    return ExternalVersion(
        version=name,
        config=_config(client, found, uri),
        complete=False,
        metadata={key: value for key, value in about.items() if value} | origin,
        tags={key: value for key, value in tags.items() if checks.is_name(key)},
    )


def _pinned(config: dict[str, Any], commit: str | None) -> dict[str, Any]:
    """What was exported is what is imported, also where its branch has moved on since."""
    return config if commit is None else config | {"revision": commit}


def _config(client: MlflowClient, found: MlflowVersion, uri: str) -> Mapping[str, Any]:
    source = str(found.source)
    scheme, _, rest = source.partition("://")
    if scheme == "hf":
        model, _, revision = rest.lstrip("/").partition("@")
        return {"model": model, "revision": revision or None}
    where = source if _is_local(source) else str(client.get_model_version_download_uri(found.name, found.version))
    if not _is_local(where):
        return _downloaded(found, where, uri)
    folder = Path(unquote(urlsplit(where).path))
    return _of_folder(folder, source, str(folder))


def _is_local(source: str) -> bool:
    return urlsplit(source).scheme in ("", "file", "folder")


def _downloaded(found: MlflowVersion, where: str, uri: str) -> Mapping[str, Any]:
    """A version's artifacts in the cache, downloaded unless they are there."""
    entry = cache_root() / "mlflow" / _entry_name(found, uri)
    manifest = cached_folder(entry, lambda folder: _download(found, where, folder, uri))
    return _of_folder(entry / manifest["artifacts"], str(found.source), where)


def _entry_name(found: MlflowVersion, uri: str) -> str:
    """Readable, and another one for whatever else has this name and number: on another server, or made anew."""
    parts = urlsplit(uri)
    server = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # a password that changes changes nothing
    identity = [server, found.name, str(found.version), found.creation_timestamp, found.run_id, found.source]
    digest = blake2b(json.dumps(identity).encode(), digest_size=8).hexdigest()
    return f"{_UNSAFE.sub('_', found.name)[:_LONGEST_NAME]}-{found.version}-{digest}"


def _download(found: MlflowVersion, where: str, folder: Path, uri: str) -> Mapping[str, Any]:
    """Fill a folder; by the artifacts' own address, as one by the model's name would ask another store."""
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    try:
        arrived = mlflow.artifacts.download_artifacts(
            artifact_uri=where, dst_path=str(folder / "artifacts"), tracking_uri=uri
        )
        inside = Path(arrived).relative_to(folder)
    except (MlflowException, OSError, ValueError) as error:
        allowed = f"artifacts that can be read ({where}: {error})"
        raise BadModelSource("model_config.model", found.source, allowed) from error
    _of_folder(folder / inside, str(found.source), where)  # what is no model is not kept
    return {"artifacts": str(inside)}


def _of_folder(folder: Path, source: str, shown: str) -> Mapping[str, Any]:
    """A Hugging Face folder, or what MLflow's `transformers` flavour keeps around one.

    Args:
        shown: the folder's address, for the error.
    """
    if (folder / "config.json").is_file():
        return {"model": str(folder)}
    inner, tokenizer = folder / "model", folder / "components" / "tokenizer"
    if not (inner / "config.json").is_file():
        lacks = "has no config.json" if folder.is_dir() else "is not there"
        allowed = f"a Hugging Face model folder, or one of MLflow's transformers flavour ({shown} {lacks})"
        raise BadModelSource("model_config.model", source, allowed)
    return {"model": str(inner), "engine_args": {"tokenizer": str(tokenizer)} if tokenizer.is_dir() else {}}
