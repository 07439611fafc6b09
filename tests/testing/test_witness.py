"""What a witness notes is what the clients saw, however their requests end."""

from __future__ import annotations

import asyncio

import pytest

from abswitch.domain import TokenChunk
from abswitch.serving.scripted import Gate
from abswitch.testing import Witness
from tests.serving.harness import MODEL, Shell, eventually


@pytest.fixture
def witness() -> Witness:
    return Witness()


def stream(shell: Shell, witness: Witness, name: str, **more: int) -> asyncio.Task[str | None]:
    submission = shell.submission()
    submission.request_id = name
    return asyncio.create_task(witness.read(name, shell.dispatcher.stream(submission), **more))


async def test_every_way_to_end_is_noted_as_itself_and_holds_against_the_rows(witness: Witness) -> None:
    shell = Shell()
    assert await stream(shell, witness, "early") is None
    await shell.deploy("v1")
    assert await stream(shell, witness, "whole") == "I am v1"
    assert await stream(shell, witness, "leaves", leave_after=1) is None
    gate = shell.instance("v1").token_gate = Gate()
    cancelled, broken = stream(shell, witness, "cancelled"), stream(shell, witness, "broken")
    await eventually(lambda: gate.waiting == 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.let(1)
    await eventually(lambda: bool(witness.streams["broken"]))
    shell.instance("v1").die("bus error")
    assert await broken is None
    assert (witness.answered, witness.left) == ([("whole", "I am v1")], {"leaves", "cancelled"})
    assert (set(witness.failed), set(witness.refused)) == ({"broken"}, {"early"})
    truth = {("v1", "who are you?"): "I am v1"}
    report = witness.check(shell.requests, shell.routes, transitions=shell.journal, truth=truth)
    report.raise_for_violations()
    assert (report.sent, report.answered, report.recorded, report.streams_checked) == (5, 1, 4, 4)
    await shell.close()


async def test_a_chunk_that_the_witness_never_got_is_missed(witness: Witness) -> None:
    shell = Shell()
    await shell.deploy("v1")
    await stream(shell, witness, "whole")
    first: TokenChunk = witness.streams["whole"].pop(0)
    assert first.text == "I " and shell.requests[0].model_id == MODEL
    assert not witness.check(shell.requests, shell.routes).ok
    await shell.close()
