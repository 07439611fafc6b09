"""What outlives a process: versions, moves of operations, and which version served each model.

The journal (a small file beside the store, durable at once) is what a restart believes; the store gets the same moves
as evidence, a little later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abswitch.domain import ModelVersion
from abswitch.errors import InvalidInput
from abswitch.rollout.operation import Operation
from abswitch.rollout.recovery import operation_of, operation_to_dict, recovered
from abswitch.serving.moves import JournalEntry
from abswitch.store.journal import Journal, Record
from abswitch.store.recorder import Recorder

log = logging.getLogger(__name__)
MOVE = "move"


@dataclass(frozen=True, slots=True)
class Adopted:
    """An operation of an earlier process, as it is taken over."""

    operation: Operation
    salt: str
    sequence: int


@dataclass(slots=True)
class Recovery:
    """What an earlier process left.

    Attributes:
        operations: oldest first.
        active: model → the version that serves it, with the operation that made it so.
        crashed: the process ended without closing its engine.
    """

    operations: list[Adopted] = field(default_factory=list)
    active: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    crashed: bool = False

    def version_of(self, model_id: str) -> str | None:
        """The version that serves the model."""
        return self.active.get(model_id, (None, ""))[0]


class SwitchLog:
    """The journal in the words of operations, and its copy in the store.

    Args:
        path: the store's file; the journal lies beside it. None keeps nothing.
    """

    def __init__(self, path: Path | None, store: Recorder) -> None:
        beside = None if path is None else path.with_name(path.name + ".journal")
        self._journal = Journal(beside, keep=still_needed)
        self._store = store

    def write(self, entry: JournalEntry) -> None:
        """Make a move durable; the evidence of it follows by itself.

        Raises:
            StoreError: it cannot be written; nothing was.
        """
        body = {
            "operation": operation_to_dict(entry.operation),
            "transition": entry.transition._asdict(),
            "salt": entry.salt,
            "active": entry.active,
        }
        self._journal.append(MOVE, body)
        self._store.transition(entry.transition, entry.operation)

    def recovery(self, now_s: float) -> Recovery:
        """What the last process left, as of `now_s` (monotonic seconds of this one)."""
        found = Recovery(crashed=not self._journal.clean)
        latest: dict[str, Adopted] = {}
        for body in _moves(self._journal.entries):
            try:
                operation = operation_of(body["operation"])
            except (InvalidInput, KeyError, TypeError, ValueError) as error:
                log.error("a move in the journal cannot be read and is left out: %s", error)
                continue
            sequence = body["transition"]["sequence"]
            latest[operation.operation_id] = Adopted(recovered(operation, now_s), body["salt"], sequence)
            found.active[operation.model_id] = (body["active"], operation.operation_id)
        found.operations = list(latest.values())
        return found

    def close(self) -> None:
        """Note that this process ended in order."""
        self._journal.close()


def still_needed(entries: Iterable[Record]) -> list[Record]:
    """Of a journal's entries, those that a restart reads: the last move of each operation, in their order.

    Operations that ended are kept only where they say which version serves their model.
    """
    last: dict[str, Record] = {}
    for entry in entries:
        if entry.kind == MOVE:
            last.pop(entry.body["operation"]["operation_id"], None)
            last[entry.body["operation"]["operation_id"]] = entry
    newest = {entry.body["operation"]["model_id"]: entry for entry in last.values()}
    return [entry for entry in last.values() if not _ended(entry.body) or entry is newest[_model(entry.body)]]


def _moves(entries: Iterable[Record]) -> list[Mapping[str, Any]]:
    return [entry.body for entry in entries if entry.kind == MOVE]


def _ended(body: Mapping[str, Any]) -> bool:
    return body["operation"]["phase"] in ("succeeded", "rolled back", "aborted", "failed")


def _model(body: Mapping[str, Any]) -> str:
    return str(body["operation"]["model_id"])


def keeper(store: Recorder) -> Any:
    """Writes a registered version down and waits until it is: a version that serves must survive a crash."""

    def keep(version: ModelVersion) -> None:
        store.version(version).result()

    return keep
