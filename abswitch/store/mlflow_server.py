"""`MlflowServer`: an MLflow store, a local SQLite file or a server, and whether it answers."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.store.outbox import Unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
_PRINTING = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
FOR_GOOD = frozenset(
    {"INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_STATE", "BAD_REQUEST"}
)
"""What MLflow says when the request itself is at fault; repeating it would not help."""


class MlflowServer:
    """One address.

    Args:
        uri: `sqlite:///folder/mlflow.db`, or a server's http(s) address.
        probe_timeout_s: how long a server may take to say that it is alive.

    Attributes:
        uri: the address; a SQLite path is absolute.

    Raises:
        InvalidInput: another kind of address. MLflow no longer writes to `file:` stores.
    """

    def __init__(self, uri: str, *, probe_timeout_s: float = 2.0) -> None:
        self.uri = checked_uri(uri)
        self._probe_timeout_s = checks.number("probe_timeout_s", probe_timeout_s, low=0.0, above=True)
        self._client: MlflowClient | None = None

    @property
    def is_remote(self) -> bool:
        """A server, not a file."""
        return not self.uri.startswith(SQLITE)

    @property
    def file(self) -> Path:
        """The SQLite file."""
        return Path(self.uri.removeprefix(SQLITE))

    def probe(self) -> None:
        """Return at once when it answers; MLflow's own client would try for minutes before it gives up.

        Raises:
            Unreachable: it does not answer, with the reason.
        """
        if not self.is_remote:
            return
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=self._probe_timeout_s) as answer:
                answer.read()
        except (OSError, ValueError) as error:
            raise Unreachable(_why(error)) from error

    def client(self) -> MlflowClient:
        """MLflow's client of it, for experiments and for its model registry; imports MLflow."""
        if self._client is None:
            from mlflow import MlflowClient

            if not self.is_remote:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client


@contextmanager
def quietly() -> Iterator[None]:
    """MLflow prints a link for every run that ends, and tells of prompts that it waits for: from a thread in the
    background that lands in whatever cell of the notebook runs just then."""
    said = os.environ.get(_PRINTING)
    telling = logging.getLogger("mlflow.store.model_registry.abstract_store")
    level = telling.level
    os.environ[_PRINTING] = "true"
    telling.setLevel(logging.WARNING)
    try:
        yield
    finally:
        telling.setLevel(level)
        if said is None:
            os.environ.pop(_PRINTING, None)
        else:
            os.environ[_PRINTING] = said


def checked_uri(uri: object) -> str:
    """An address that MLflow takes; a SQLite path is made absolute.

    Raises:
        InvalidInput: it is none.
    """
    allowed = (
        "sqlite:///folder/mlflow.db, or the http(s) address of an MLflow server (MLflow no longer writes file: stores)"
    )
    if not isinstance(uri, str):
        raise InvalidInput("tracking_uri", uri, allowed)
    if uri.startswith(SQLITE) and len(uri) > len(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).expanduser().resolve())
    if urlsplit(uri).scheme in {"http", "https"} and urlsplit(uri).hostname:
        return uri.rstrip("/")
    raise InvalidInput("tracking_uri", uri, allowed)


def _why(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
