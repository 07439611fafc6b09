"""What abswitch tells other registries of a model, and what they tell of theirs. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from abswitch.domain import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSnapshot:
    """One version.

    Attributes:
        registered: False once it was deregistered.
        verdict: why it became the active version the last time; None if it never was.
        operation_id: of the switch that made it so.
    """

    version: ModelVersion
    tags: Mapping[str, str]
    registered: bool
    verdict: str | None = None
    operation_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """A model as it stands: complete, so that the latest one told is all that another registry needs.

    Attributes:
        revision: grows with every change.
        aliases: alias → version, `champion` and `challenger` included.
    """

    model_id: str
    revision: int
    versions: tuple[VersionSnapshot, ...]
    aliases: Mapping[str, str]
    active: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "model_id": self.model_id,
            "active": self.active,
            "aliases": dict(self.aliases),
            "versions": [
                {
                    "version": one.version.version,
                    "config": one.version.config.to_dict(),
                    "commit": one.version.commit,
                    "metadata": dict(one.version.metadata),
                    "registered_at_s": one.version.registered_at_s,
                    "tags": dict(one.tags),
                    "registered": one.registered,
                    "verdict": one.verdict,
                    "operation_id": one.operation_id,
                }
                for one in self.versions
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalVersion:
    """One version as another registry has it.

    Attributes:
        version: the name that it is to have here.
        config: fields of `ModelConfig`, without `model_id`.
        complete: it was exported from abswitch, and `config` is all of it.
    """

    version: str
    config: Mapping[str, Any]
    complete: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalModel:
    """A model as another registry has it, oldest version first.

    Attributes:
        model_id: what it was exported as; None where it was not.
        aliases: alias → version, by the names that they are to have here.
    """

    name: str
    model_id: str | None
    versions: tuple[ExternalVersion, ...]
    aliases: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStatus:
    """What became of an export.

    Attributes:
        published: everything is there; False while it waits because the server cannot be reached, and where it was
            refused or taken back.
        versions: version → its number there, as far as it is published.
        error: why it waits, was refused, or was taken back.
    """

    name: str
    tracking_uri: str
    published: bool
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None

    def __bool__(self) -> bool:
        return self.published


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """What an import brought.

    Attributes:
        registered: versions that are new here; `known` were here already, as they are there.
        aliases: that were set.
        champion: the version that is the champion there; `engine.deploy` makes it so here.
        left_out: alias → why it could not be set, e.g. as a name that is none here.
    """

    model_id: str
    registered: tuple[str, ...]
    known: tuple[str, ...]
    aliases: Mapping[str, str]
    champion: str | None
    left_out: Mapping[str, str] = field(default_factory=dict)


class ExternalRegistry(Protocol):
    """Another registry. Safe in any thread; only `follow` may be called where nothing may wait."""

    def address(self, uri: str | None) -> str:
        """The address meant, checked.

        Raises:
            InvalidInput: it is none, or none was given and there is no default.
        """

    def name_for(self, model_id: str) -> str:
        """What a model is called there unless something else is said."""

    def check_name(self, name: str) -> None:
        """Refuse a name that the registry does not take.

        Raises:
            InvalidInput: with what it takes.
        """

    def export(
        self, snapshot: ModelSnapshot, name: str, uri: str, timeout_s: float, *, may_wait: bool = True
    ) -> ExportStatus:
        """Queue a model durably, and wait for a while until it is published.

        Args:
            may_wait: have it told later where that does not come to be in time; otherwise it is taken back.
        """

    def follow(self, snapshot: Callable[[], ModelSnapshot], name: str, uri: str) -> None:
        """Have a model told as it will stand in a moment; neither waits nor raises."""

    def fetch(self, name: str, uri: str) -> ExternalModel:
        """Read a model.

        Raises:
            InvalidInput: there is none of that name.
            StoreError: the registry cannot be reached.
        """

    def close(self, timeout_s: float = 10.0) -> None:
        """Publish what waits, then stop; the rest waits for the next process."""
