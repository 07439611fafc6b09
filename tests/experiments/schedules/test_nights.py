"""Nights of a schedule with a watch, from the spec's file to the webhook, on scripted versions and a virtual clock."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from abswitch.clock import VirtualClock
from abswitch.experiments import Experiment
from abswitch.experiments import watch as watching
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.launch import Launched
from abswitch.experiments.runs import RunResult, open_run
from abswitch.experiments.schedules.running import Outcome, Schedule, run_due
from abswitch.experiments.specfile import read_spec
from tests.experiments.schedules.projects import HALF_PAST_2_S, ROOT, spec_file
from tests.serving.test_webhook import Receiver

DAY_S = 86_400.0


def conducted(
    path: Path, *, reports: Path | None, wait_s: float, told: TextIO | None, occasion: str
) -> Iterator[Launched]:
    """What the notebook does, without papermill around it."""
    assert reports is not None
    run = open_run(read_spec(path), reports=reports, project=ROOT, occasion=occasion)
    ended: list[RunResult] = []

    async def carried_out() -> RunResult:
        experiment = Experiment(run)
        engine = await experiment.start()
        try:
            return await experiment.finish(engine, await experiment.conduct(engine))
        finally:
            await experiment.close(engine)

    def work() -> None:
        ended.append(asyncio.run(carried_out()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    yield Launched(status=ExitStatus(ended[0].exit_status), cell={}, folder=run.path, result=ended[0])


class Watched:
    """A nightly schedule whose baseline answers as well as it is told."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder = folder
        self.more = more
        self.clock = VirtualClock(wall_s=HALF_PAST_2_S - 60.0)
        self.serves("v95")
        Schedule(self.path, folder / "reports").adopt(self.clock)
        self.clock.advance(60.0)

    def serves(self, candidate: str) -> None:
        """From now on the candidate is this one; a new build of it, so to speak."""
        version = {"backend": "scripted", "model": "script"}
        self.path = spec_file(
            self.folder,
            versions={"v58": version, candidate: version},
            candidate=candidate,
            policy={"success": ["ship", "keep", "equivalent", "inconclusive"]},
            watch={"webhook_env": "HOOK", "arms": ["candidate"]},
            **self.more,
        )

    def night(self) -> tuple[Outcome, RunResult]:
        ended: list[Launched] = []
        schedule = Schedule(self.path, self.folder / "reports")
        outcome = run_due(schedule, clock=self.clock, launch=conducted, on_ended=ended.append)
        self.clock.advance(DAY_S)
        assert ended[0].result is not None
        return outcome, ended[0].result


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv("HOOK", made.url)
    monkeypatch.setattr(watching, "_PAUSE_S", 0.0)
    yield made
    made.close()


def test_good_then_regressed_then_good_again(tmp_path: Path, receiver: Receiver) -> None:
    nights = Watched(tmp_path)
    first, good = nights.night()
    assert (first.status, good.compared_with, good.alerts) == (ExitStatus.SUCCESS, None, ())
    assert receiver.received == []

    nights.serves("v20")
    second, bad = nights.night()
    assert second.status is ExitStatus.REGRESSED
    assert bad.compared_with == good.run_id
    (alert,) = bad.alerts
    assert alert.startswith("exact_match of the candidate (v20) is 0.")
    assert f"in run {good.run_id}" in alert
    ((_, content),) = receiver.received
    assert json.loads(content)["alerts"] == [alert]
    assert json.loads(content)["run_id"] == bad.run_id
    assert bad.not_posted is None

    receiver.codes = [404]
    third, as_bad = nights.night()
    assert (third.status, as_bad.compared_with) == (ExitStatus.REGRESSED, good.run_id)
    assert as_bad.not_posted == "HTTP 404", "kept with the result, and told by the command"
    assert len(receiver.received) == 2

    nights.serves("v95")
    fourth, mended = nights.night()
    assert fourth.status is ExitStatus.SUCCESS
    assert mended.compared_with == good.run_id, "not with a bad one"
    assert len(receiver.received) == 2


def test_a_paired_night_is_watched_by_each_versions_own_values(tmp_path: Path, receiver: Receiver) -> None:
    nights = Watched(tmp_path, design={"kind": "paired"})
    good = nights.night()[1]
    nights.serves("v20")
    outcome, bad = nights.night()
    assert (outcome.status, bad.compared_with) == (ExitStatus.REGRESSED, good.run_id)
    assert len(receiver.received) == 1


def test_a_night_that_fails_is_an_alert_too(tmp_path: Path, receiver: Receiver) -> None:
    """A watch that fell silent would look like one that found nothing."""

    def failing(path: Path, **_: Any) -> Iterator[Launched]:
        yield Launched(status=ExitStatus.FAILED, cell={}, problem="the kernel died")

    nights = Watched(tmp_path, schedule={"cron": "30 2 * * *", "retries": 1, "backoff_s": 60.0})
    schedule = Schedule(nights.path, tmp_path / "reports")
    run_due(schedule, clock=nights.clock, launch=failing)
    assert receiver.received == [], "it is tried again first"
    nights.clock.advance(60.0)
    run_due(schedule, clock=nights.clock, launch=failing)
    ((_, content),) = receiver.received
    assert json.loads(content)["text"] == "abswitch: the scheduled run of nightly did not succeed\n• the kernel died"


def test_a_night_that_kills_its_process_each_time_is_an_alert(tmp_path: Path, receiver: Receiver) -> None:
    class PowerCut(BaseException):
        pass

    def deadly(path: Path, **_: Any) -> Iterator[Launched]:
        raise PowerCut

    nights = Watched(tmp_path)
    schedule = Schedule(nights.path, tmp_path / "reports")
    for _ in range(4):
        with pytest.raises(PowerCut):
            run_due(schedule, clock=nights.clock, launch=deadly)
    assert receiver.received == []
    run_due(schedule, clock=nights.clock, launch=deadly)
    ((_, content),) = receiver.received
    assert json.loads(content)["alerts"] == ["given up: its process died 4 times"]


def test_a_reference_run_keeps_small_losses_from_adding_up(tmp_path: Path, receiver: Receiver) -> None:
    nights = Watched(tmp_path)
    good = nights.night()[1]
    nights.night()  # another good one, which is not compared with
    nights.serves("v20")
    nights.path.write_text(nights.path.read_text().replace("webhook_env: HOOK", f"against: {good.run_id}"))
    outcome, bad = nights.night()
    assert (outcome.status, bad.compared_with) == (ExitStatus.REGRESSED, good.run_id)
    nights.path.write_text(nights.path.read_text().replace(good.run_id, "20200101T000000Z-gone"))
    outcome, lost = nights.night()
    assert outcome.status is ExitStatus.REGRESSED
    assert lost.alerts == ("there is no result of run 20200101T000000Z-gone, which the watch compares with",)
