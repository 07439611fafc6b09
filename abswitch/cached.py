"""Folders that are made once and kept: each is there whole or not at all, whatever fails or is killed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abswitch.errors import InvalidInput

_MANIFEST = "manifest.json"
_ENV = "ABSWITCH_CACHE_DIR"

Build = Callable[[Path], Mapping[str, Any]]
"""Fills an empty folder and returns what its manifest shall say; JSON values."""


def cache_root(given: str | Path | None = None) -> Path:
    """Where such folders are kept: what is given, or `$ABSWITCH_CACHE_DIR`, or `~/.cache/abswitch`; absolute.

    Raises:
        InvalidInput: what is given is no path.
    """
    if given is not None and (not isinstance(given, str | Path) or not str(given)):
        raise InvalidInput("cache_dir", given, "a folder, or None for the default")
    return Path(given or os.environ.get(_ENV) or "~/.cache/abswitch").expanduser().absolute()


def cached_folder(entry: Path, build: Build, on_wait: Callable[[], None] = lambda: None) -> Mapping[str, Any]:
    """The manifest of the folder `entry`, which is built first unless it is there and whole.

    It is built elsewhere and renamed, so that `entry` is there whole or not at all; one process builds at a time.

    Args:
        on_wait: called before this waits for another process that builds it.

    Raises:
        InvalidInput: the cache folder cannot be made or written.
        Exception: whatever `build` raises; then nothing is left.
    """
    if (manifest := manifest_of(entry)) is not None:
        return manifest
    with _alone(entry, on_wait):
        if (manifest := manifest_of(entry)) is not None:
            return manifest
        for left_over in entry.parent.glob(f"{entry.name}.*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)  # of a killed process: only the lock's holder builds
        return _built(entry, build)


def manifest_of(entry: Path) -> Mapping[str, Any] | None:
    """The manifest, if every file it names is there in its size."""
    try:
        manifest: dict[str, Any] = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
        sizes = manifest["file_bytes"]
        whole = all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None


def _built(entry: Path, build: Build) -> Mapping[str, Any]:
    partial = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".partial", dir=entry.parent))
    try:
        facts = build(partial)
        sizes = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = {**facts, "file_bytes": sizes}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp's 0700 would hide a shared cache from its other users
        if entry.exists():
            shutil.rmtree(entry)  # there, but not whole
        partial.replace(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


@contextmanager
def _alone(entry: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the entry's lock; the operating system releases it when the process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{entry}.lock")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    except OSError as error:
        raise InvalidInput("cache_dir", str(entry.parent), f"a folder that can be written ({error})") from error
    try:
        yield
    finally:
        lock.release()
