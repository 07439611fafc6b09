"""Moves of operations as they are written down, before their effects are carried out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from abswitch.clock import Clock, Timer
from abswitch.domain import TransitionRecord
from abswitch.errors import StoreError
from abswitch.rollout.operation import Event, Operation, Phase

log = logging.getLogger(__name__)
RETRY_S = 1.0
"""How soon what could not be written down is tried again."""
_BACK = frozenset({Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.ABORTED, Phase.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """What a move makes durable before its effects.

    Attributes:
        operation: as it is after the move.
        salt: what the assignment of its units depends on.
        active: the version that serves the model once the move's effects are carried out.
    """

    operation: Operation
    transition: TransitionRecord
    salt: str
    active: str | None

    @classmethod
    def of(
        cls, before: Operation, event: Event, after: Operation, *, sequence: int, salt: str, at_s: float
    ) -> JournalEntry:
        """The move from `before` to `after`, the operation's `sequence`-th, at `at_s` (wall clock)."""
        transition = TransitionRecord(
            operation_id=after.operation_id,
            sequence=sequence,
            model_id=after.model_id,
            event=type(event).__name__,
            phase_from=before.phase.value,
            phase_to=after.phase.value,
            step=after.stage,
            share=after.share,
            reason=after.reason,
            at_s=at_s,
        )
        return cls(operation=after, transition=transition, salt=salt, active=_active(after))


def _active(operation: Operation) -> str | None:
    """The version that a restart lets serve: a promotion counts from the moment its route was in force.

    One that failed has a winner where there was no way back from it.
    """
    routed = operation.phase in (Phase.DRAINING, Phase.SUCCEEDED, Phase.FAILED)
    return operation.winner if routed and operation.promoted else operation.stable


class MoveLog:
    """Writes every move down before its effects. Lives on the engine's loop.

    A move back to the stable version is made although it cannot be written: a restart would find that version, too. It
    is owed then, and written as soon as it can be, and before any other move.

    Args:
        journal: makes a move durable, at once; raises when it cannot.
        evidence: takes a durable move; must not block.
    """

    def __init__(
        self, clock: Clock, *, journal: Callable[[JournalEntry], None], evidence: Callable[[JournalEntry], object]
    ) -> None:
        self._clock = clock
        self._journal = journal
        self._evidence = evidence
        self._sequence: Counter[str] = Counter()
        self._owed: dict[str, JournalEntry] = {}
        self._paying: Timer | None = None

    def go_on(self, operation_id: str, sequence: int) -> None:
        """Go on where an earlier process stopped."""
        self._sequence[operation_id] = sequence

    def write(self, before: Operation, event: Event, after: Operation, *, salt: str) -> JournalEntry | None:
        """Make a move durable; None when it is owed.

        Raises:
            Exception: what the journal raised; nothing was written, and the move must not be made.
        """
        sequence, at_s = self._sequence[after.operation_id] + 1, self._clock.wall_s()
        entry = JournalEntry.of(before, event, after, sequence=sequence, salt=salt, at_s=at_s)
        written: JournalEntry | None = entry
        try:
            if self._owed:
                self._pay(besides=after.operation_id)
            self._journal(entry)
            self._owed.pop(after.operation_id, None)
        except Exception as error:
            if after.phase not in _BACK:
                raise
            log.critical("%s: %s is not in the journal: %s", after.operation_id, after.phase, error)
            self._owe(entry)
            written = None
        self._sequence[after.operation_id] = sequence
        return written

    def tell(self, entry: JournalEntry) -> None:
        """Have a durable move written to the store as well."""
        self._evidence(entry)

    def close(self) -> None:
        """Try once more what is owed, and no more: a restart would find an operation that was ended, and revive it."""
        if self._paying is not None:
            self._paying.cancel()
        try:
            self._pay()
        except Exception as error:  # what comes after this must end, too
            log.critical("%d move(s) are not in the journal: %s", len(self._owed), error)

    def _owe(self, entry: JournalEntry) -> None:
        self._owed.pop(entry.operation.operation_id, None)  # the newest last, as they will be written
        self._owed[entry.operation.operation_id] = entry
        if self._paying is None:
            self._paying = self._clock.call_later(RETRY_S, self._pay_later)

    def _pay_later(self) -> None:
        self._paying = None
        try:
            self._pay()
        except StoreError as error:
            log.error("%d move(s) are still not in the journal: %s", len(self._owed), error)
            self._paying = self._clock.call_later(RETRY_S, self._pay_later)

    def _pay(self, besides: str | None = None) -> None:
        """Write down what is owed: no journal may say of two operations that they hold a model.

        Args:
            besides: of this operation a newer move is about to be written.
        """
        for operation_id, entry in tuple(self._owed.items()):
            if operation_id != besides:
                self._journal(entry)
                del self._owed[operation_id]
                self._evidence(entry)
