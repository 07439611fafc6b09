"""What each arm did in each step is counted as requests end, whoever counts, and from whatever thread."""

from __future__ import annotations

import math
import random
import statistics
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from abswitch.domain import ScoreRecord
from abswitch.rollout.judging import ArmMeasures, Guardrail
from abswitch.rollout.operation import Operation, Phase
from abswitch.serving import tally
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


async def split(shell: Shell, requests: int = 40) -> tuple[Operation, list[str]]:
    """A test under way, and the requests that the candidate answered in it."""
    await shell.deploy("v1")
    operation = shell.switcher.operation(await shell.split("v2", 50))
    for _ in range(requests):
        await shell.ask()
    return operation, answered_by(shell, "v2")


def answered_by(shell: Shell, version: str) -> list[str]:
    return [row.request_id for row in shell.requests if row.served_version == version and row.operation_id]


def candidate_of(shell: Shell, operation: Operation) -> ArmMeasures:
    return shell.tally.evidence(operation).candidates[0]


async def test_of_several_scores_of_one_request_by_the_same_name_the_latest_counts(shell: Shell) -> None:
    operation, (first, second, *_) = await split(shell)
    for _ in range(300):
        shell.score(first, "thumbs_up", 1.0)
    shell.score(first, "length", 7.0)
    shell.score(second, "thumbs_up", 5.0)
    measured = candidate_of(shell, operation)
    assert (measured.count("thumbs_up"), measured.value("thumbs_up")) == (2, 3.0)
    assert not measured.is_fraction["thumbs_up"]
    shell.score(second, "thumbs_up", 0.0)
    measured = candidate_of(shell, operation)
    assert (measured.count("thumbs_up"), measured.value("thumbs_up")) == (2, 0.5)
    assert measured.variances["thumbs_up"] == 0.5
    assert measured.is_fraction["thumbs_up"], "what was corrected is no value of it any more"
    assert (measured.count("length"), measured.value("length")) == (1, 7.0)


async def test_corrections_leave_the_moments_of_the_values_that_count(shell: Shell) -> None:
    operation, requests = await split(shell)
    chance, counted = random.Random(0), dict[str, float]()
    for _ in range(500):
        request, value = chance.choice(requests), 1e9 + chance.choice([0.0, 0.25, 1e6])
        counted[request] = value
        shell.score(request, "cost", value)
    measured = candidate_of(shell, operation)
    assert measured.count("cost") == len(counted)
    assert measured.value("cost") == pytest.approx(statistics.fmean(counted.values()), rel=1e-12)
    assert measured.variances["cost"] == pytest.approx(statistics.variance(counted.values()), rel=1e-9)
    for request in requests:
        shell.score(request, "cost", 1e9 + 0.1)
    measured = candidate_of(shell, operation)
    assert (measured.value("cost"), measured.variances["cost"]) == (1e9 + 0.1, 0.0), "equal values have no spread"


async def test_what_is_kept_of_requests_is_bounded_and_what_they_were_scored_stays(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "KEPT", 4)
    await shell.deploy("v1")
    operation = shell.switcher.operation(await shell.split("v2", 100))
    for number in range(50):
        await shell.ask()
        shell.score(shell.requests[-1].request_id, "rating", float(number))
    measured = candidate_of(shell, operation)
    assert (measured.count("rating"), measured.value("rating")) == (50, 24.5)
    assert measured.variances["rating"] == pytest.approx(statistics.variance(range(50)))
    oldest, *_, newest = answered_by(shell, "v2")
    shell.score(oldest, "rating", 1000.0)
    assert candidate_of(shell, operation) == measured, "it came too long ago to be scored again"
    shell.score(newest, "rating", 149.0)
    measured = candidate_of(shell, operation)
    assert (measured.count("rating"), measured.value("rating")) == (50, 26.5)


async def test_scores_too_large_to_square_are_no_error(shell: Shell) -> None:
    operation, (first, second, *_) = await split(shell)
    shell.score(first, "huge", 1e300)
    shell.score(second, "huge", -1e300)
    assert not math.isfinite(candidate_of(shell, operation).variances["huge"])


@pytest.mark.parametrize("evaluation", ["sequential", "thresholds"])
async def test_one_answer_scored_again_and_again_promotes_no_canary(shell: Shell, evaluation: str) -> None:
    await shell.deploy("v1")
    config: Mapping[str, Any] = {
        "initial_percentage": 50,
        "step_percentage": 50,
        "evaluation_period_minutes": 10,
        "min_requests": 50,
        "max_error_rate_threshold": 0.2,
        "guardrails": [Guardrail("thumbs_up", min=0.5)],
        "evaluation": evaluation,
    }
    operation_id = await shell.start("v2", "canary", config)
    await shell.until(operation_id, Phase.EVALUATING)
    for _ in range(300):
        await shell.ask()
    rated, *others = answered_by(shell, "v2")
    for _ in range(300):
        shell.score(rated, "thumbs_up", 1.0)
    await shell.pass_time(600, step_s=600)
    operation = shell.switcher.operation(operation_id)
    assert operation.phase is Phase.EVALUATING and "thumbs_up" in operation.reason and "1 of 50" in operation.reason
    for request in others:
        shell.score(request, "thumbs_up", 1.0)
    await shell.pass_time(600, step_s=600)
    assert (await shell.until(operation_id, Phase.SUCCEEDED)).promoted


async def test_one_answer_scored_again_and_again_is_one_reward_of_a_bandit(shell: Shell) -> None:
    await shell.deploy("v1")
    operation_id = await shell.start("v2", "bandit", {"reward": "thumbs_up", "batch_minutes": 10, "min_rewards": 10})
    await shell.until(operation_id, Phase.EVALUATING)
    for _ in range(60):
        await shell.ask()
    for version, value in (("v1", 0.0), ("v2", 1.0)):
        for _ in range(100):
            shell.score(answered_by(shell, version)[0], "thumbs_up", value)
    shell.clock.advance(600)
    await shell.switcher.wait(operation_id, lambda operation: operation.evaluation == 1)
    operation = shell.switcher.operation(operation_id)
    assert operation.share == 0.5 and "1 of 10 needed rewards" in operation.reason
