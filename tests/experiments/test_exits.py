"""Exit statuses: what each decision becomes, and the page that documents them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from abswitch.experiments.exits import ExitStatus, exit_status, worst
from abswitch.experiments.spec_parts import DECISIONS

PAGE = Path(__file__).parents[2] / "docs/experiments.md"


@pytest.mark.parametrize("decision", DECISIONS)
def test_every_decision_has_a_class_and_success_is_0(decision: str) -> None:
    alone = exit_status(decision, success=())
    assert 0 < alone < 64
    assert not alone.is_error
    assert exit_status(decision, success=(decision,)) is ExitStatus.SUCCESS
    assert exit_status(decision, success=(decision,), regressed=True) is ExitStatus.REGRESSED
    assert exit_status(decision, success=(), regressed=True) is alone, "an alert does not hide the verdict"


def test_a_decision_that_is_none_is_no_success() -> None:
    assert exit_status("shrug", success=("ship",)) is ExitStatus.INVALID


def test_errors_begin_at_64_and_verdicts_end_below() -> None:
    assert [status for status in ExitStatus if status.is_error] == [status for status in ExitStatus if status >= 64]
    assert all(0 <= status < 256 for status in ExitStatus)


def test_of_several_runs_the_worst_counts() -> None:
    assert worst([]) is ExitStatus.SUCCESS
    assert worst([ExitStatus.SUCCESS, ExitStatus.KEEP, ExitStatus.SHIP]) is ExitStatus.KEEP
    assert worst([ExitStatus.INVALID, ExitStatus.BUSY]) is ExitStatus.BUSY


def test_the_page_has_every_status_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(str(int(status)), status.name, status.meaning) for status in ExitStatus]
