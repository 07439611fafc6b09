"""Which files came out of a run, told to its store: the table `artifacts`."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from pathlib import Path

from abswitch.engine import SwitchingEngine
from abswitch.records import ArtifactRecord

_KINDS = {"index.html": "report", "summary.json": "summary", "pull_request.md": "report"}
_OF_SUFFIX = {".png": "figure"}
_MEDIA = {".md": "text/markdown"}


async def keep_artifacts(engine: SwitchingEngine, folder: Path, *, run_id: str, operation_id: str) -> None:
    """Write down a report's page, summary, Markdown and figures; another report of the run replaces its rows.

    The notebook is left out: it is still being executed.
    """
    records = await asyncio.to_thread(
        lambda: [artifact_of(file, run_id, operation_id) for file in sorted(folder.iterdir())]
    )
    for record in records:
        if record is not None:
            await asyncio.wrap_future(engine.store.artifact(record))


def artifact_of(file: Path, run_id: str, operation_id: str) -> ArtifactRecord | None:
    """A file as a row; None where it is not there, or is no output of a report."""
    kind = _KINDS.get(file.name) or _OF_SUFFIX.get(file.suffix)
    if kind is None or not file.is_file():
        return None
    content = file.read_bytes()
    return ArtifactRecord(
        artifact_id=f"{run_id}/{file.name}",
        run_id=run_id,
        operation_id=operation_id,
        kind=kind,
        name=file.name,
        uri=str(file),
        media_type=_MEDIA.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        created_at_s=file.stat().st_mtime,
    )
