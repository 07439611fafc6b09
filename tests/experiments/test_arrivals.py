"""When requests are sent, on a virtual clock."""

from __future__ import annotations

import asyncio
from itertools import islice, pairwise
from statistics import fmean
from typing import Any

import pytest

from abswitch.clock import VirtualClock
from abswitch.errors import InvalidInput
from abswitch.experiments.arrivals import Arrivals, ClosedLoop, Poisson, Trace, send_all


class Sending:
    """Notes when each item is sent, on a clock that moves by itself."""

    def __init__(self, answer_s: float = 0.0) -> None:
        self.clock = VirtualClock()
        self.sent: list[tuple[int, float]] = []
        self.under_way = self.most = 0
        self._answer_s = answer_s

    async def send(self, item: int) -> None:
        self.sent.append((item, self.clock.monotonic_s()))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self._answer_s:
            over = asyncio.Event()
            self.clock.call_later(self._answer_s, over.set)
            await over.wait()
        self.under_way -= 1

    async def all(self, items: int, arrivals: Arrivals, **options: Any) -> list[float]:
        task = asyncio.create_task(send_all(range(items), arrivals, self.send, self.clock, **options))
        while not task.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if (due_s := self.clock.next_timer_s()) is not None:
                self.clock.advance(due_s - self.clock.monotonic_s())
        await task
        return [at_s for _, at_s in self.sent]


async def test_a_closed_loop_keeps_so_many_under_way() -> None:
    sending = Sending(answer_s=1.0)
    await sending.all(9, ClosedLoop(concurrency=3))
    assert sending.most == 3
    assert [item for item, _ in sending.sent] == list(range(9))
    assert sending.clock.monotonic_s() == pytest.approx(3.0)


async def test_a_trace_is_followed_however_long_answers_take() -> None:
    sending = Sending(answer_s=10.0)
    at_s = await sending.all(4, Trace(at_s=(5.0, 5.5, 7.0, 8.0)))
    assert at_s == pytest.approx([0.0, 0.5, 2.0, 3.0])
    assert sending.most == 4


async def test_arrivals_above_the_limit_wait_for_their_turn() -> None:
    sending = Sending(answer_s=1.0)
    at_s = await sending.all(4, Trace(at_s=(0.0, 0.1, 0.2, 0.3), concurrency=2))
    assert sending.most == 2
    assert at_s == pytest.approx([0.0, 0.1, 1.0, 1.1])


async def test_it_stops_when_there_is_enough() -> None:
    sending = Sending()
    await sending.all(100, ClosedLoop(concurrency=1), enough=lambda: len(sending.sent) >= 7)
    assert len(sending.sent) == 7


async def test_what_sending_raises_ends_everything() -> None:
    async def fail(item: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(ExceptionGroup):
        await send_all(range(3), ClosedLoop(), fail, VirtualClock())


def test_poisson_arrivals_have_their_rate_and_their_seed() -> None:
    def gaps(seed: int) -> list[float]:
        return [b - a for a, b in pairwise(islice(Poisson(rate_per_s=20.0, seed=seed).arrivals_s(), 20_001))]

    one, same, other = gaps(1), gaps(1), gaps(2)
    assert one == same != other
    assert fmean(one) == pytest.approx(1 / 20, rel=0.03)
    assert sum(gap > 1 / 20 for gap in one) / 20_000 == pytest.approx(0.3679, abs=0.015), "exponential: e⁻¹"


def test_a_trace_begins_anew_after_its_mean_gap_and_may_be_faster() -> None:
    instants = list(islice(Trace(at_s=(10.0, 11.0, 14.0), speed=2.0).arrivals_s(), 6))
    assert instants == [0.0, 0.5, 2.0, 3.0, 3.5, 5.0]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ClosedLoop(concurrency=0), "load.concurrency"),
        (lambda: ClosedLoop(concurrency=True), "load.concurrency"),
        (lambda: Poisson(rate_per_s=0.0), "load.rate_per_s"),
        (lambda: Poisson(rate_per_s=float("inf")), "load.rate_per_s"),
        (lambda: Poisson(rate_per_s=1.0, seed=-1), "load.seed"),
        (lambda: Poisson(rate_per_s=1.0, concurrency=0), "load.concurrency"),
        (lambda: Trace(at_s=()), "load.at_s"),
        (lambda: Trace(at_s=(1.0,)), "load.at_s"),
        (lambda: Trace(at_s=(1.0, 1.0)), "load.at_s"),
        (lambda: Trace(at_s=(2.0, 1.0)), "load.at_s"),
        (lambda: Trace(at_s=(0.0, float("nan"))), "load.at_s"),
        (lambda: Trace(at_s=(0.0, 1.0), speed=0.0), "load.speed"),
        (lambda: Trace(at_s=(0.0, 1.0), concurrency=0), "load.concurrency"),
    ],
)
def test_a_load_that_makes_no_sense_is_named(make: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as told:
        make()
    assert told.value.field == field
