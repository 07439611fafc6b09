"""What each arm did in each step is counted as requests end, whoever counts, and from whatever thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from abswitch.domain import ScoreRecord
from abswitch.rollout.judging import ArmMeasures
from tests.serving.harness import Shell

SCORERS = 5000


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before_s)


async def test_scores_of_another_thread_come_in_between_what_the_loop_does(shell: Shell, hurried: None) -> None:
    await shell.deploy("v1")
    operation = shell.switcher.operation(await shell.split("v2", 50))
    for number in range(20):
        await shell.ask(f"user-{number}")
    of_candidate = next(row.request_id for row in shell.requests if row.served_version == "v2" and row.operation_id)
    begun = threading.Event()

    def score() -> None:
        begun.set()
        for number in range(SCORERS):
            shell.tally.score(ScoreRecord(of_candidate, f"scorer-{number}", 1.0, None, 0.0))

    def measured() -> ArmMeasures:
        return shell.tally.evidence(operation).candidates[0]

    with ThreadPoolExecutor(1) as scorers:
        scoring = scorers.submit(score)
        begun.wait()
        while not scoring.done():
            measured()
        scoring.result()
    assert sum(name.startswith("scorer-") for name in measured().values) == SCORERS
