"""Sinks run beside everything else; one that fails or blocks harms nobody."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from abswitch.clock import VirtualClock
from abswitch.serving.alertdesk import AlertDesk
from abswitch.serving.alerts import Alert
from abswitch.serving.findings import HealthState
from abswitch.serving.sinks import LogSink, Outlet
from tests.serving.test_webhook import alert


def desk() -> AlertDesk:
    return AlertDesk(VirtualClock(), cooldown_s=60.0, history=100)


def fire(on: AlertDesk, version: str = "v1") -> None:
    on.fire("hung", HealthState.CRITICAL, "it hangs", key=("bot", version), operation=None)


async def test_every_sink_hears_of_every_change() -> None:
    here = desk()
    heard: list[str] = []
    objects: list[str] = []

    class Sink:
        def send(self, alert: Alert) -> None:
            objects.append(str(alert.state))

    here.add_sink(lambda alert: heard.append(str(alert.state)))
    here.add_sink(Sink())
    fire(here)
    here.book.acknowledge(here.active()[0].alert_id)
    here.resolve(("hung", "bot", "v1"), "fine")
    await here.close()
    assert heard == objects == ["firing", "acknowledged", "resolved"]


async def test_an_async_sink_is_awaited_on_one_loop_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    here = desk()
    heard: list[tuple[str | None, asyncio.AbstractEventLoop]] = []
    objects: list[str | None] = []

    async def hear(alert: Alert) -> None:
        await asyncio.sleep(0)
        heard.append((alert.version, asyncio.get_running_loop()))

    class Sink:
        async def send(self, alert: Alert) -> None:
            objects.append(alert.version)
            raise ZeroDivisionError("mine")

    here.add_sink(hear)
    here.add_sink(Sink())
    for version in ("v1", "v2"):
        fire(here, version)
    await here.close()
    assert [version for version, _ in heard] == objects == ["v1", "v2"]
    assert len({loop for _, loop in heard}) == 1 and heard[0][1] is not asyncio.get_running_loop()
    assert here.outlets[1].failed == 2 and "Sink did not take" in caplog.text


async def test_a_sink_that_raises_goes_on_hearing(caplog: pytest.LogCaptureFixture) -> None:
    here = desk()
    heard: list[str | None] = []

    def fragile(alert: Alert) -> None:
        heard.append(alert.version)
        raise ZeroDivisionError("mine")

    here.add_sink(fragile)
    for version in ("v1", "v2"):
        fire(here, version)
    await here.close()
    assert heard == ["v1", "v2"]
    assert here.outlets[0].failed == 2
    assert "CallbackSink did not take" in caplog.text


async def test_a_sink_that_was_removed_hears_no_more() -> None:
    here = desk()
    heard: list[Alert] = []
    remove = here.add_sink(heard.append)
    remove()
    fire(here)
    await here.close()
    assert heard == []
    assert here.outlets == ()


def test_a_sink_that_is_stuck_is_left_behind() -> None:
    stuck = threading.Event()

    class Stuck:
        def send(self, alert: Alert) -> None:
            stuck.wait(30)

    outlet = Outlet(Stuck())
    outlet.put(alert())
    outlet.close(0.05)
    stuck.set()


@pytest.mark.parametrize(
    ("severity", "state", "level"),
    [
        ("critical", "firing", logging.ERROR),
        ("warning", "firing", logging.WARNING),
        ("critical", "resolved", logging.INFO),
        ("critical", "acknowledged", logging.INFO),
    ],
)
def test_the_log_has_levels(severity: str, state: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    from abswitch.serving.alerts import AlertState, Severity

    with caplog.at_level(logging.INFO, logger="abswitch.alerts"):
        LogSink().send(alert(severity=Severity(severity), state=AlertState(state)))
    (line,) = caplog.records
    assert line.levelno == level
    assert line.message == f"[{severity}] {state} error_rate of bot:v2: 7 of 20 requests failed"
