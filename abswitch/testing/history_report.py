"""What a check of a history found: violations by kind, and how much was looked at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

_SHOWN = 10


class ViolationKind(StrEnum):
    """What can be wrong with a history."""

    LOST = "lost"
    DUPLICATED = "duplicated"
    NEVER_SENT = "never sent"
    ANSWER_DISAGREES = "answer disagrees with its row"
    UNROUTABLE = "served by a version not routable at admission"
    WRONG_TIME = "admitted outside its snapshot's time"
    WRONG_ARM = "assigned arm not in its snapshot"
    BACKWARDS = "snapshots go backwards"
    WRONG_TEXT = "text is not that version's"
    MISLABELLED = "fallback labelled wrongly"
    ENDS = "not exactly one end"
    REFUSED_YET_ADMITTED = "refused, yet admitted"
    BROKEN_SEQUENCE = "tokens not in sequence"
    LET_GO = "admitted after its operation let go of it"
    COPY_SHOWN = "a shadow's copy reached a user"
    STRAY_COPY = "a shadow's copy without its request"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not happen; `subject` is a request id, or `model epoch n` for a routing snapshot."""

    kind: ViolationKind
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.kind}: {self.what}"


class HistoryError(AssertionError):
    """A history broke a promise; `report` holds all of it."""

    def __init__(self, report: HistoryReport) -> None:
        self.report = report
        super().__init__(str(report))


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReport:
    """What was checked, and what was found wrong.

    Attributes:
        sent: requests that clients sent.
        answered: answers that clients saw.
        recorded: rows of requests, copies for a shadow included.
        failed: rows that end in an error.
        fallbacks, pinned, copies: rows so labelled.
        snapshots: routing snapshots, all models together.
        texts_checked: answers compared with the text their version is known to give.
        streams_checked: answers whose tokens were looked at one by one.
        operations: those whose moves were held against the admissions.
    """

    sent: int
    answered: int
    recorded: int
    failed: int
    fallbacks: int
    pinned: int
    snapshots: int
    texts_checked: int
    streams_checked: int
    copies: int
    operations: int
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong. An empty history is: look at the counts too."""
        return not self.violations

    def count(self, kind: ViolationKind) -> int:
        """How many violations there are of one kind."""
        return sum(violation.kind is kind for violation in self.violations)

    def raise_for_violations(self) -> None:
        """Do nothing, or say what was wrong.

        Raises:
            HistoryError: an `AssertionError` with the counts and the first violations.
        """
        if self.violations:
            raise HistoryError(self)

    def __str__(self) -> str:
        head = (
            f"{self.sent} sent, {self.answered} answered, {self.recorded} rows ({self.failed} failed, "
            f"{self.fallbacks} fallbacks, {self.pinned} pinned, {self.copies} copies), {self.snapshots} snapshots, "
            f"{self.operations} operations, {self.texts_checked} texts and {self.streams_checked} streams compared: "
        )
        if not self.violations:
            return head + "no violation"
        kinds = Counter(violation.kind for violation in self.violations)
        told = [f"  {violation}" for violation in self.violations[:_SHOWN]]
        more = [f"  … and {len(self.violations) - _SHOWN} more"] * (len(self.violations) > _SHOWN)
        return "\n".join([head + ", ".join(f"{n} {kind}" for kind, n in kinds.items()), *told, *more])
