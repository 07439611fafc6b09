"""What outlives a process: versions, moves of operations, and which version served each model.

The journal (a small file beside the store, durable at once) is what a restart believes; the store gets the same moves
as evidence, a little later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from abswitch.domain import ModelVersion
from abswitch.errors import AbswitchError, EngineClosed, InvalidInput, StoreError
from abswitch.records import Action, HistoryEntry
from abswitch.rollout.operation import Operation
from abswitch.rollout.recovery import operation_of, operation_to_dict, recovered, superseded
from abswitch.serving.golden import ASKED, Answers, ReferenceKey
from abswitch.serving.moves import JournalEntry
from abswitch.serving.timings import Timing
from abswitch.store.database import MEMORY
from abswitch.store.journal import Journal, Record
from abswitch.store.recorder import Recorder

log = logging.getLogger(__name__)
MOVE = "move"
TIMING, GOLDEN = "timing", "golden"
_KEPT = {TIMING: 200, GOLDEN: 100}


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
        activations: every change of an active version that the journal still tells of, oldest first.
        timings: how long loads, wakes, swaps and drains took.
        golden: what each version answered to today's golden prompts when it was loaded at first.
    """

    operations: list[Adopted] = field(default_factory=list)
    active: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    crashed: bool = False
    activations: list[HistoryEntry] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    golden: dict[ReferenceKey, Answers] = field(default_factory=dict)

    def version_of(self, model_id: str) -> str | None:
        """The version that serves the model."""
        return self.active.get(model_id, (None, ""))[0]

    def take_over(self, move: Mapping[str, Any]) -> None:
        """Which version serves, after a move."""
        model_id, operation_id = _model(move), str(move["operation"]["operation_id"])
        if self.version_of(model_id) != move["active"]:
            self.activations.append(_activation(move))
        self.active[model_id] = (move["active"], operation_id)


def open_journal(store: Path | str) -> Journal:
    """The journal beside a store, which only one engine at a time can have; a store in memory keeps none.

    Raises:
        StoreError: another engine has it, or it cannot be written.
    """
    if store == MEMORY or not isinstance(store, str | Path) or not str(store):  # the recorder says what is wrong
        return Journal(None)
    path = Path(store).expanduser().resolve()
    return Journal(path.with_name(path.name + ".journal"), keep=still_needed)


class SwitchLog:
    """The journal in the words of operations, and its copy in the store."""

    def __init__(self, journal: Journal, store: Recorder) -> None:
        self._journal = journal
        self._store = store

    def write(self, entry: JournalEntry) -> None:
        """Make a move durable.

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

    def copy(self, entry: JournalEntry) -> None:
        """Have a move written to the store, as evidence; nobody waits for that."""
        self._store.transition(entry.transition, entry.operation)

    def timing(self, timing: Timing) -> None:
        """Keep a measurement; it is no loss worth an error when that fails."""
        self._note(TIMING, timing._asdict())

    def golden(self, key: ReferenceKey, answers: Answers) -> None:
        """Keep what a version answered at first."""
        said = [list(pieces) for pieces in answers]
        self._note(GOLDEN, {"key": list(key), "asked": ASKED, "answers": said})

    def _note(self, kind: str, body: Mapping[str, Any]) -> None:
        try:
            self._journal.append(kind, body)
        except StoreError as error:
            log.warning("not kept for later processes: %s", error)

    def recovery(self, now_s: float) -> Recovery:
        """What the last process left, as of `now_s` (monotonic seconds of this one)."""
        found = Recovery(crashed=not self._journal.clean)
        latest: dict[str, Adopted] = {}
        for body in _moves(self._journal.entries):
            found.take_over(body)
            try:
                operation = operation_of(body["operation"])
            except (InvalidInput, KeyError, TypeError, ValueError) as error:
                log.error("an operation in the journal cannot be read and is left out: %s", error)
                continue
            sequence = body["transition"]["sequence"]
            latest.pop(operation.operation_id, None)  # in the order of their last moves
            latest[operation.operation_id] = Adopted(recovered(operation, now_s), body["salt"], sequence)
        found.operations = list(_one_of_each_model(list(latest.values())))
        for entry in self._journal.entries:
            if entry.kind == TIMING:
                found.timings.append(Timing(**entry.body))
            elif entry.kind == GOLDEN and entry.body.get("asked") == ASKED:
                model_id, version, digest = entry.body["key"]
                found.golden[model_id, version, digest] = tuple(map(tuple, entry.body["answers"]))
        return found

    def close(self) -> None:
        """Note that this process ended in order."""
        self._journal.close()


def _one_of_each_model(adopted: Sequence[Adopted]) -> Iterator[Adopted]:
    """The same operations; of those of a model that did not end, only the one that moved last still holds it."""
    holders = {one.operation.model_id: one for one in adopted if not one.operation.phase.is_final}
    for one in adopted:
        ended = one.operation.phase.is_final or holders[one.operation.model_id] is one
        yield one if ended else replace(one, operation=superseded(one.operation))


def still_needed(entries: Iterable[Record]) -> list[Record]:
    """Of a journal's entries, those that a restart reads: the last move of each operation, in their order, and the
    newest measurements and references.

    Operations that ended are kept only where they say which version serves their model.
    """
    last: dict[str, Record] = {}
    entries = list(entries)
    noted = [one for kind, kept in _KEPT.items() for one in [e for e in entries if e.kind == kind][-kept:]]
    for entry in entries:
        if entry.kind == MOVE:
            last.pop(entry.body["operation"]["operation_id"], None)
            last[entry.body["operation"]["operation_id"]] = entry
    newest = {entry.body["operation"]["model_id"]: entry for entry in last.values()}
    moves = [entry for entry in last.values() if not _ended(entry.body) or entry is newest[_model(entry.body)]]
    return sorted(moves + noted, key=lambda entry: entry.sequence)


def _moves(entries: Iterable[Record]) -> list[Mapping[str, Any]]:
    return [entry.body for entry in entries if entry.kind == MOVE]


def _ended(body: Mapping[str, Any]) -> bool:
    return body["operation"]["phase"] in ("succeeded", "rolled back", "aborted", "failed")


def _model(body: Mapping[str, Any]) -> str:
    return str(body["operation"]["model_id"])


def _activation(body: Mapping[str, Any]) -> HistoryEntry:
    return HistoryEntry(
        model_id=_model(body),
        sequence=0,  # its place in the history is found when it is taken over
        action=Action.PROMOTED if body["active"] is not None else Action.WITHDRAWN,
        version=body["active"],
        previous=None,
        alias=None,
        actor="journal",
        reason=str(body["operation"].get("reason", "")),
        operation_id=str(body["operation"]["operation_id"]),
        at_s=body["transition"]["at_s"],
    )


def keeper(store: Recorder) -> Callable[[HistoryEntry, ModelVersion | None], None]:
    """Writes an entry down, with the version it registers, and waits: what serves must survive a crash."""

    def keep(entry: HistoryEntry, version: ModelVersion | None) -> None:
        if store.is_closed:
            raise EngineClosed("the engine was shut down; build a new SwitchingEngine")
        (store.history(entry) if version is None else store.version(version, entry)).result()

    return keep


def noter(store: Recorder) -> Callable[[HistoryEntry], Future[None] | None]:
    """Has an entry written down, in order with everything else, and waits for nothing."""

    def note(entry: HistoryEntry) -> Future[None] | None:
        try:
            return store.history(entry)
        except AbswitchError as error:
            log.error("an entry of the history of model %s is lost: %s", entry.model_id, error)
            return None

    return note
