"""What a hub id and a revision mean: the commit, and how large its weights are. The hub tells, or the local cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from abswitch.domain import ModelConfig
from abswitch.errors import BadModelSource, MissingExtra
from abswitch.serving.source import CONVERT, PICKLED, check_source

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

log = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_TIMEOUT_S = 10.0


def commit_of(config: ModelConfig, *, timeout_s: float = _TIMEOUT_S) -> str | None:
    """The commit that a configuration's hub id and revision mean now; None for folders and other backends.

    Blocks for one request to the hub (`HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` count). Where it cannot be asked,
    the snapshot that an earlier download left in the cache (`HF_HOME`) answers.

    Raises:
        BadModelSource: the hub does not know the id or the revision, or wants a token; the repository has no
            safetensors weights; or the hub is out of reach and the cache has no such snapshot.
        MissingExtra: `huggingface_hub` is not installed.
    """
    if check_source(config).kind != "hub":
        return None
    try:
        with _answers(config):
            info = _ask(config.model, config.revision, timeout_s)
    except _OutOfReach as why:
        return _cached(config, str(why))
    _check_weights(config, [file.rfilename for file in info.siblings or ()])
    if not info.sha:
        raise _refused(config, "a repository with a commit (the hub names none)")
    return str(info.sha)


def weights_bytes_of(config: ModelConfig, folder: Path | None) -> int:
    """Size of a hub id's safetensors: in its snapshot, or as the hub tells; 0 where neither does.

    Blocks for one request to the hub where the snapshot has no weights, once for each revision.

    Args:
        folder: as `snapshot_of` found it.
    """
    if folder is not None and (found := sum(file.stat().st_size for file in folder.glob("*.safetensors"))):
        return found  # none where only its configuration was read so far
    try:
        with _answers(config):
            return _told_bytes(config.model, config.revision)
    except (_OutOfReach, BadModelSource, MissingExtra) as why:
        log.info("how large the weights of %s are is not known: %s", config.model, why)
        return 0


def snapshot_of(config: ModelConfig) -> Path | None:
    """Where the local cache has a hub id's files, of which some may be missing; None where it has none."""
    try:
        return _snapshot(config)
    except Exception:  # many kinds, all of which say that it is not there, or not whole
        return None


def _snapshot(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(config.model, revision=config.revision, local_files_only=True))


@lru_cache(maxsize=256)
def _told_bytes(model: str, revision: str | None) -> int:
    info = _ask(model, revision, _TIMEOUT_S, sizes=True)
    files = [file for file in info.siblings or () if "/" not in file.rfilename]
    return sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))


class _OutOfReach(Exception):
    """The hub gave no answer; the message says why."""


def _ask(model: str, revision: str | None, timeout_s: float, *, sizes: bool = False) -> ModelInfo:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtra("a hub id", ("huggingface_hub",), ("cpu", "gpu")) from error
    return HfApi().model_info(model, revision=revision, timeout=timeout_s, files_metadata=sizes)


@contextmanager
def _answers(config: ModelConfig) -> Iterator[None]:
    """The hub's refusals in our words; everything that is no answer becomes `_OutOfReach`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise _refused(config, "a repository you were given access to; accept its terms and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise _refused(
            config, "a folder that exists, or an id that the hub knows (for a private one set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        allowed = f"a branch, tag or commit of {config.model}"
        raise BadModelSource("model_config.revision", config.revision, allowed) from error
    except HFValidationError as error:
        raise _refused(config, f"a hub id such as org/name ({error})") from error
    except OfflineModeIsEnabled as error:
        raise _OutOfReach("HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        raise _OutOfReach(f"the hub answered {str(error).splitlines()[0]}") from error
    except (OSError, _library_error()) as error:
        raise _OutOfReach(f"the hub cannot be reached: {type(error).__name__}: {error}") from error


def _library_error() -> type[Exception]:
    """The base of all errors of the HTTP library that this release of the hub's client uses."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    return base if issubclass(base, Exception) else OSError


def _cached(config: ModelConfig, why: str) -> str:
    try:
        folder = _snapshot(config)
    except Exception as error:  # many kinds, all of which say that it is not there, or not whole
        at = f" at {config.revision}" if config.revision else ""
        allowed = (
            f"a model in the local cache, or one that the hub can be asked for: {why}, and the cache has no whole "
            f"snapshot of it{at}"
        )
        raise _refused(config, allowed) from error
    commit = folder.name
    if not _COMMIT.match(commit):
        raise _refused(config, f"a snapshot in the cache that is named by its commit, not {folder}")
    return commit


def _check_weights(config: ModelConfig, files: list[str]) -> None:
    if not files or config.engine_args.get("load_format") == "dummy":
        return
    if not any(file.endswith(".safetensors") for file in files):
        pickled = [file for file in files if Path(file).suffix in {Path(glob).suffix for glob in PICKLED}]
        found = f"found only pickled weights, which can run code when loaded: {', '.join(pickled)}; {CONVERT}"
        raise _refused(
            config, f"a repository with *.safetensors ({found if pickled else 'there are no weights in it'})"
        )


def _refused(config: ModelConfig, allowed: str) -> BadModelSource:
    return BadModelSource("model_config.model", config.model, allowed)
