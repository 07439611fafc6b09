"""Which commit a Hugging Face id and revision mean now; a branch's name means another one tomorrow."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from abswitch.domain import ModelConfig
from abswitch.errors import BadModelSource
from abswitch.serving.source import is_local

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
DEFAULT_BRANCH = "main"


def pinned(config: ModelConfig, *, timeout_s: float = 10.0) -> ModelConfig:
    """The configuration with its revision replaced by the commit it means; unchanged for a local folder. Blocks.

    The hub is asked; where it cannot be reached (or `HF_HUB_OFFLINE` is set) the snapshot in the local cache answers.

    Raises:
        BadModelSource: there is no such model or revision, or neither the hub nor the cache can tell.
    """
    if is_local(config.model) or _COMMIT.match(config.revision or ""):
        return config
    return replace(config, revision=_asked(config, timeout_s))


def _asked(config: ModelConfig, timeout_s: float) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = HfApi().model_info(config.model, revision=config.revision, timeout=timeout_s).sha
    except RevisionNotFoundError:
        raise BadModelSource("model_config.revision", config.revision, f"a revision of {config.model}") from None
    except RepositoryNotFoundError:
        raise BadModelSource("model_config.model", config.model, "a model of the hub, open to you") from None
    except Exception as error:  # the errors of its transport are another library's with each release
        found = _cached(config)
        if found is None:
            allowed = f"a hub that can be reached, or a snapshot in the cache ({type(error).__name__}: {error})"
            raise BadModelSource("model_config.model", config.model, allowed) from None
    return str(found)


def _cached(config: ModelConfig) -> str | None:
    from huggingface_hub import constants

    repository = f"models--{config.model.replace('/', '--')}"
    reference = Path(constants.HF_HUB_CACHE) / repository / "refs" / (config.revision or DEFAULT_BRANCH)
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None
