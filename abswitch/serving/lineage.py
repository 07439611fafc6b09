"""`Lineage`: one model's versions, aliases, tags and active version, as its history tells them.

State changes in one way only, by `apply`, whether an entry is new or read back after a restart: what was recorded is
what is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from abswitch.domain import ModelVersion, SwitchingStrategyType
from abswitch.records import Action, HistoryEntry

CHAMPION, CHALLENGER = "champion", "challenger"
ACTIVATIONS = frozenset({Action.PROMOTED, Action.ROLLED_BACK, Action.WITHDRAWN})
_SWITCHES = ACTIVATIONS | {Action.REQUESTED}


@dataclass(frozen=True, slots=True)
class Candidacy:
    """The switch under way: its target is the challenger.

    Attributes:
        why: what it was asked for, of an immediate switch, which nobody decides afterwards; else empty.
    """

    version: str
    operation_id: str
    is_rollback: bool
    why: str


@dataclass(slots=True)
class Lineage:
    """One model.

    Attributes:
        versions: registered now, in order of registration.
        gone: deregistered; their names stay taken where evidence is recorded under them.
        pointers: aliases set by hand.
        tags: version → its tags.
        activations: entries that changed the active version, oldest first.
        entries: everything, in order.
        link: where the model is exported to, as the latest `exported` entry has it.
    """

    versions: dict[str, ModelVersion] = field(default_factory=dict)
    gone: dict[str, ModelVersion] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    activations: list[HistoryEntry] = field(default_factory=list)
    entries: list[HistoryEntry] = field(default_factory=list)
    candidacy: Candidacy | None = None
    link: Mapping[str, str] | None = None
    sequence: int = 0

    @property
    def active(self) -> str | None:
        """The version that serves the model."""
        return self.activations[-1].version if self.activations else None

    @property
    def aliases(self) -> dict[str, str]:
        """Alias → version; `champion` is the active version, `challenger` the candidate of the switch under way."""
        found = dict(self.pointers)
        if self.active is not None:
            found[CHAMPION] = self.active
        if self.candidacy is not None:
            found[CHALLENGER] = self.candidacy.version
        return dict(sorted(found.items()))

    def previously_active(self) -> str | None:
        """The last version that was active before the one that is now and is still registered."""
        earlier = (entry.version for entry in reversed(self.activations))
        return next((one for one in earlier if one in self.versions and one != self.active), None)

    def way_back(self) -> tuple[str | None, set[str]]:
        """The version that a rollback goes to, if there is one, and those it leaves out as they were rolled back from.

        Each rollback goes further back. What is promoted again is no longer left out.
        """
        path: list[str] = []
        left_out: set[str] = set()
        for entry, before in zip(self.activations, (None, *self.activations), strict=False):
            if entry.action == Action.ROLLED_BACK and before is not None and before.version is not None:
                left_out.add(before.version)
                path = _up_to(path, entry.version)
            if entry.version is not None:
                left_out.discard(entry.version)
                path.append(entry.version)
        left_out &= set(self.versions)
        free = (one for one in reversed(path) if one in self.versions and one != self.active and one not in left_out)
        return next(free, None), left_out

    def was_switched_to(self, version: str) -> bool:
        """Whether a version of that name ever served, or was the target of a switch."""
        return any(entry.version == version and entry.action in _SWITCHES for entry in self.entries)

    def apply(self, entry: HistoryEntry, version: ModelVersion | None = None) -> None:
        """Take an entry over.

        Args:
            version: that was registered, of a `registered` entry.
        """
        self.sequence = max(self.sequence, entry.sequence)
        self.entries.append(entry)
        if entry.action in ACTIVATIONS:
            self._activated(entry)
        elif entry.action == Action.EXPORTED:
            self.link = {key: str(value) for key, value in entry.detail.items()}
        else:
            self._about(entry, entry.version or "", version)

    def _activated(self, entry: HistoryEntry) -> None:
        self.activations.append(entry)
        if entry.version is not None and self.pointers.get(CHALLENGER) == entry.version:
            del self.pointers[CHALLENGER]  # it is the champion now

    def _about(self, entry: HistoryEntry, name: str, version: ModelVersion | None) -> None:
        match Action(entry.action), entry.alias:
            case Action.REGISTERED, _:
                self._registered(name, version)
            case Action.DEREGISTERED, _:
                self._deregistered(name)
            case Action.REQUESTED, _:
                self.candidacy = _candidacy(name, entry)
            case Action.ENDED, _:
                self.candidacy = None
            case ((Action.ALIAS_SET | Action.TAGGED), _) if name in self.gone:
                pass  # it was deregistered while this was being written down
            case Action.ALIAS_SET, str(alias):
                self.pointers[alias] = name
            case Action.ALIAS_REMOVED, str(alias):
                self.pointers.pop(alias, None)
            case Action.TAGGED, _:
                self.tags.setdefault(name, {})[str(entry.detail["key"])] = str(entry.detail["value"])
            case Action.UNTAGGED, _:
                self.tags.get(name, {}).pop(str(entry.detail["key"]), None)

    def _registered(self, name: str, version: ModelVersion | None) -> None:
        known = version or self.gone.get(name) or self.versions.get(name)
        self.gone.pop(name, None)
        if known is not None:
            self.versions[name] = known

    def _deregistered(self, name: str) -> None:
        version = self.versions.pop(name, None)
        if version is not None:
            self.gone[name] = version
        self.tags.pop(name, None)
        self.pointers = {alias: target for alias, target in self.pointers.items() if target != name}


def _candidacy(version: str, requested: HistoryEntry) -> Candidacy:
    at_once = requested.detail.get("strategy") == SwitchingStrategyType.IMMEDIATE
    return Candidacy(
        version,
        requested.operation_id or "",
        is_rollback=bool(requested.detail.get("rollback")),
        why=requested.reason if at_once else "",
    )


def _up_to(path: list[str], version: str | None) -> list[str]:
    """What came before a version was active the last time; without what was left, where it never was."""
    return path[: len(path) - 1 - path[::-1].index(version)] if version in path else path[:-1]
