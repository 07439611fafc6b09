"""`weights_digest`: which weights a version is served from, as one short text that any machine computes alike."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from functools import lru_cache
from pathlib import Path

from abswitch.domain import ModelConfig, ModelVersion
from abswitch.serving.source import is_local

log = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 22
_HEX = 16
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


async def weights_of(version: ModelVersion) -> str | None:
    """The digest of a version's weights, read off the loop."""
    if version.config.backend != "vllm":
        return None  # they are elsewhere; and there is nothing to leave the loop for
    try:
        return await asyncio.to_thread(weights_digest, version.pinned)
    except OSError as error:  # it says where an answer came from, and is worth no failed load
        log.warning("%s: its weights could not be read again: %s", version, error)
        return None


def weights_digest(config: ModelConfig) -> str | None:
    """BLAKE2b over the weight files' content, 16 hexadecimal digits; `+` and the adapter's where there is one.

    Of a hub id: of the snapshot in the local cache, or the revision asked for. None where the weights are elsewhere.
    Reads every byte once and remembers it for as long as size and time of the files stay; call it off the loop.
    """
    if config.backend != "vllm":
        return None
    base = _of_folder(Path(config.model).expanduser()) if is_local(config.model) else _of_hub(config)
    if base is None or config.adapter is None:
        return base
    return f"{base}+{_of_folder(Path(config.adapter).expanduser())}"


def _of_hub(config: ModelConfig) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    if _COMMIT.match(config.revision or ""):
        return str(config.revision)[:_HEX]
    found = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    return Path(found).parent.name[:_HEX] if isinstance(found, str) else config.revision


def _of_folder(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _of_files(stamps)


@lru_cache(maxsize=256)
def _of_files(stamps: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=_HEX // 2)
    for name, size_bytes, _ in stamps:
        digest.update(f"{Path(name).name}:{size_bytes}\0".encode())
        with Path(name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
