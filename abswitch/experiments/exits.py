"""Exit statuses: 0–63 say what an experiment found, 64 and more that something went wrong; see docs/experiments.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses; those from 64 on follow sysexits.h where it has one."""

    SUCCESS = 0
    SHIP = 10
    KEEP = 20
    EQUIVALENT = 30
    INCONCLUSIVE = 40
    INVALID = 50
    REGRESSED = 60
    USAGE = 64
    BAD_SPEC = 65
    NO_SPEC = 66
    FAILED = 70
    CANNOT_WRITE = 73
    BUSY = 75
    TIMED_OUT = 79
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """In words, for people."""
        return _MEANINGS[self]

    @property
    def is_error(self) -> bool:
        """Whether no verdict was reached."""
        return self >= ExitStatus.USAGE


_MEANINGS = {
    ExitStatus.SUCCESS: "the verdict is one that the plan calls success",
    ExitStatus.SHIP: "`ship` or `promote`, where the plan hoped for something else",
    ExitStatus.KEEP: "`keep` or `roll back`: the candidate is worse, or harms a guardrail",
    ExitStatus.EQUIVALENT: "`equivalent`, where the plan hoped for something else",
    ExitStatus.INCONCLUSIVE: "`inconclusive` or `hold`: not enough evidence",
    ExitStatus.INVALID: "`invalid`: the run says nothing (uneven split, lost rows, broken scorer …)",
    ExitStatus.REGRESSED: "the regression watch found it worse than the last good run",
    ExitStatus.USAGE: "the command line is wrong, or a `-p` names nothing or gives a value that is not allowed",
    ExitStatus.BAD_SPEC: "the spec, its prompts or its functions are wrong",
    ExitStatus.NO_SPEC: "there is no such file",
    ExitStatus.FAILED: "the notebook failed, or its kernel died; the same command goes on from there",
    ExitStatus.CANNOT_WRITE: "the folder for the results cannot be written",
    ExitStatus.BUSY: "the same run, its schedule or the accelerator is busy; nothing was started",
    ExitStatus.TIMED_OUT: "a cell took longer than the spec allows; the same command goes on from there",
    ExitStatus.INTERRUPTED: "interrupted from the keyboard; the same command goes on from there",
}
_CLASSES = {
    "ship": ExitStatus.SHIP,
    "promote": ExitStatus.SHIP,
    "keep": ExitStatus.KEEP,
    "roll back": ExitStatus.KEEP,
    "equivalent": ExitStatus.EQUIVALENT,
    "inconclusive": ExitStatus.INCONCLUSIVE,
    "hold": ExitStatus.INCONCLUSIVE,
    "invalid": ExitStatus.INVALID,
}


def exit_status(decision: str, *, success: Sequence[str], regressed: bool = False) -> ExitStatus:
    """The exit status of a run.

    Args:
        decision: the verdict's word.
        success: what the plan calls success.
        regressed: the regression watch raised an alert; that comes before success, not before worse news.
    """
    if decision in success:
        return ExitStatus.REGRESSED if regressed else ExitStatus.SUCCESS
    return _CLASSES.get(decision, ExitStatus.INVALID)


def worst(statuses: Iterable[ExitStatus]) -> ExitStatus:
    """Of several runs, the status that the whole ends with: the highest."""
    return max(statuses, default=ExitStatus.SUCCESS)
