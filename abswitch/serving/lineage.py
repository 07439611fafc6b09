"""`HistoryEntry` and `Book`: everything that ever happened to a model's versions, and what follows from it.

The entries are the truth; the book is folded from them, in a running process and after a restart alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases that follow the switches: the active version, and the target of the operation under way."""


class What(StrEnum):
    """What happened."""

    REGISTERED = "registered"
    ACTIVATED = "activated"
    CHALLENGED = "challenged"
    ALIASED = "aliased"
    TAGGED = "tagged"
    REQUESTED = "switch requested"
    DEREGISTERED = "deregistered"
    LINKED = "linked"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One thing that happened to a model.

    Attributes:
        version: None where an alias was removed, nothing serves any more, or no operation is under way any more.
        detail: JSON values: of an alias its name, of a tag `key` and `value`, of a request what came with it.
        at_s: seconds since the epoch.
    """

    model_id: str
    version: str | None
    what: What
    detail: Mapping[str, Any] = field(default_factory=dict)
    operation_id: str | None = None
    at_s: float = 0.0

    def __str__(self) -> str:
        words = ", ".join(f"{key} {value}" for key, value in self.detail.items())
        by = f" by {self.operation_id}" if self.operation_id else ""
        return f"{self.model_id}: {self.version or 'nothing'} {self.what}{by}" + (f" ({words})" if words else "")


@dataclass(slots=True)
class Book:
    """One model's entries and what they come to."""

    entries: list[HistoryEntry] = field(default_factory=list)
    active: str | None = None
    challenger: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    linked: str | None = None

    @classmethod
    def of(cls, entries: Iterable[HistoryEntry]) -> Book:
        book = cls()
        for entry in entries:
            book.add(entry)
        return book

    def add(self, entry: HistoryEntry) -> None:
        """Take note of an entry."""
        self.entries.append(entry)
        match entry.what:
            case What.ACTIVATED:
                self.active = entry.version
            case What.CHALLENGED:
                self.challenger = entry.version
            case What.ALIASED:
                self._alias(str(entry.detail["alias"]), entry.version)
            case What.TAGGED if entry.version is not None:
                self._tag(entry.version, str(entry.detail["key"]), entry.detail.get("value"))
            case What.LINKED:
                self.linked = str(entry.detail["name"])
            case What.DEREGISTERED if entry.version is not None:
                self._forget(entry.version)
            case What.REGISTERED if entry.version is not None:
                self.gone.discard(entry.version)

    def _alias(self, alias: str, version: str | None) -> None:
        if version is None:
            self.aliases.pop(alias, None)
        else:
            self.aliases[alias] = version

    def _tag(self, version: str, key: str, value: str | None) -> None:
        tags = self.tags.setdefault(version, {})
        if value is None:
            tags.pop(key, None)
        else:
            tags[key] = value

    def _forget(self, version: str) -> None:
        self.gone.add(version)
        self.tags.pop(version, None)
        self.aliases = {alias: held for alias, held in self.aliases.items() if held != version}

    @property
    def all_aliases(self) -> dict[str, str]:
        """Alias → version, those that follow the switches included."""
        followed = {CHAMPION: self.active, CHALLENGER: self.challenger}
        return {name: version for name, version in followed.items() if version is not None} | self.aliases

    def served_before(self, version: str | None) -> str | None:
        """The version that was active last before `version` and is still registered."""
        past = [e.version for e in self.entries if e.what is What.ACTIVATED and e.version not in (None, *self.gone)]
        return next((one for one in reversed(past) if one != version), None)


def checked_alias(alias: object) -> str:
    """An alias a person may set.

    Raises:
        InvalidInput: not a name, or one that follows the switches by itself.
    """
    name = checks.name("alias", alias)
    if name in (CHAMPION, CHALLENGER):
        raise InvalidInput(
            "alias", name, f"another name; {CHAMPION} and {CHALLENGER} follow the switches by themselves"
        )
    return name
