"""`WandbSink`: experiments as runs of Weights & Biases, in a folder or at a server.

The library is an extra (`pip install abswitch[wandb]`) and is never imported in this process; see `wandb_runs.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.store.outbox import Unreachable
from abswitch.store.recorder import Recorder
from abswitch.store.sinks import OutboxSink

_ALLOWED = "a folder for offline runs, or the address of a W&B server with the entity: https://api.wandb.ai/my-team"
_KEPT = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_LONGEST_S = 300.0


class WandbSink(OutboxSink):
    """Publishes experiments to Weights & Biases: one run per arm, grouped by operation, the report as artifact.

    Metric names, steps and parameters are those of `MlflowSink`: totals in the summary, windows under `window/…` with
    the step `window`, looks under `look/…` with the step `look`, parameters and the verdict in the config.

    Args:
        target: a folder, in which runs are written in W&B's offline mode (`wandb sync` uploads them later), or
            `https://api.wandb.ai/ENTITY`, or another server's address: then they are uploaded as well. The key comes
            from `WANDB_API_KEY` or `wandb login`.
        recorder: the store whose outbox holds what is to be published; jobs left by an earlier process are caught up.
        folder: where runs are written before they are uploaded; by default `wandb-runs` beside the store.
        probe_timeout_s: how long a server may take to say that it is alive.
        timeout_s: how long one experiment may take.

    Raises:
        InvalidInput: another kind of target, or the library is not installed.
    """

    def __init__(
        self,
        target: Path | str,
        *,
        recorder: Recorder,
        folder: Path | str | None = None,
        probe_timeout_s: float = 2.0,
        timeout_s: float = _LONGEST_S,
    ) -> None:
        self._base_url, self._entity, given = checked_target(target)
        if find_spec("wandb") is None:
            raise InvalidInput("wandb", str(target), "None, as the library is missing: pip install abswitch[wandb]")
        home = Path.cwd() if recorder.path is None else recorder.path.parent
        self._folder = Path(given or folder or home / "wandb-runs").expanduser().resolve()
        self._probe_timeout_s = checks.number("probe_timeout_s", probe_timeout_s, low=0.0, above=True)
        self._timeout_s = checks.number("timeout_s", timeout_s, low=0.0, above=True)
        super().__init__(recorder, name="wandb", target=f"Weights & Biases at {self._base_url or self._folder}")

    @property
    def folder(self) -> Path:
        """Where runs are written."""
        return self._folder

    # --- the flusher's thread ---------------------------------------------------------------------------------------

    def deliver(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Publish a job; the runs that an earlier attempt left are replaced."""
        self._probe()
        (self._folder / "wandb" / ".home").mkdir(parents=True, exist_ok=True)
        job = {"folder": str(self._folder), "entity": self._entity, "base_url": self._base_url, "body": body}
        try:
            return self._write(json.dumps(job))
        except RuntimeError:
            self._probe()  # a server that went away is waited for, not counted as a failed attempt
            raise

    def _write(self, job: str) -> Mapping[str, Any]:
        process = subprocess.Popen(
            [sys.executable, "-m", "abswitch.store.wandb_runs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
            start_new_session=True,
        )
        try:
            out, err = process.communicate(job, timeout=self._timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"it took longer than {self._timeout_s:g} s") from error
        finally:
            with suppress(ProcessLookupError):  # its own session: the program and what the library started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            raise RuntimeError(err.strip().splitlines()[-1] if err.strip() else f"exit status {process.returncode}")
        links: Mapping[str, Any] = json.loads(out.splitlines()[-1])
        return links

    def _environment(self) -> dict[str, str]:
        """The caller's, without its settings of the library: they are for its own runs."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_") or key in _KEPT}
        home = self._folder / "wandb" / ".home"
        own = {f"WANDB_{what}_DIR": str(home / what.lower()) for what in ("CACHE", "CONFIG", "DATA")}
        if self._base_url is not None:
            own["WANDB_BASE_URL"] = self._base_url
        return kept | own | {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}

    def _probe(self) -> None:
        """Return at once when the server answers, whatever it says; W&B's own client would try for minutes."""
        if self._base_url is None:
            return
        try:
            with urllib.request.urlopen(self._base_url, timeout=self._probe_timeout_s) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise Unreachable(f"HTTP status {error.code}") from error
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise Unreachable(str(reason)) from error


def checked_target(target: object) -> tuple[str | None, str | None, Path | None]:
    """Server, entity and folder that a target means.

    Raises:
        InvalidInput: it is none.
    """
    if isinstance(target, Path):
        return None, None, target
    if not isinstance(target, str) or not target.strip():
        raise InvalidInput("wandb", target, _ALLOWED)
    if "://" not in target:
        return None, None, Path(target)
    parts = urlsplit(target)
    server, _, entity = target.rstrip("/").rpartition("/")
    if parts.scheme not in {"http", "https"} or not parts.hostname or not parts.path.strip("/") or parts.query:
        raise InvalidInput("wandb", target, _ALLOWED)
    return server, entity, None
