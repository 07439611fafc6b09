"""One move of an operation as it is written down, before its effects are carried out."""

from __future__ import annotations

from dataclasses import dataclass

from abswitch.domain import TransitionRecord
from abswitch.rollout.operation import Event, Operation, Phase


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
