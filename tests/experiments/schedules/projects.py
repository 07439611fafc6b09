"""A project in a temporary folder, with a spec that has a schedule; and a launch that ends as it is told."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import yaml

from abswitch.clock import VirtualClock
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.launch import Launched
from abswitch.experiments.schedules.running import Outcome, Schedule, run_due
from abswitch.experiments.schedules.state import ScheduleState

ROOT = Path(__file__).parents[3]
MIDNIGHT_S = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
HALF_PAST_2_S = MIDNIGHT_S + 2.5 * 3600.0


def plain_spec(**more: Any) -> dict[str, Any]:
    """A spec on scripted versions, as plain values."""
    version = {"backend": "scripted", "model": "script"}
    return {
        "name": "nightly",
        "model_id": "adder",
        "versions": {"v58": version, "v95": version, "v20": version},
        "baseline": "v58",
        "candidate": "v95",
        "prompts": {"kind": "generator", "function": "tests.experiments.scripted:problems", "arguments": {"n": 320}},
        "scorers": [{"kind": "exact_match"}],
        "metrics": [{"kind": "rate", "column": "exact_match", "margin": 0.05}],
        "engine": {"backends": {"scripted": {"function": "tests.experiments.scripted:adders"}}},
        "accelerators": [],
        "schedule": {"cron": "30 2 * * *"},
        **more,
    }


def spec_file(folder: Path, name: str = "nightly.yaml", **more: Any) -> Path:
    """A spec in a project of its own."""
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").touch()
    path = folder / "experiments" / name
    path.write_text(yaml.safe_dump(plain_spec(**more)), encoding="utf-8")
    return path


@dataclass
class Scripted:
    """A launch that ends as it is told, and remembers what it was asked.

    Attributes:
        ends: statuses of the coming launches; an exception is raised instead. The last one is for all further ones.
        meanwhile: called while a launch is under way.
    """

    ends: list[ExitStatus | BaseException] = field(default_factory=lambda: [ExitStatus.SUCCESS])
    occasions: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def __call__(
        self, path: Path, *, reports: Path | None, wait_s: float, told: TextIO | None, occasion: str
    ) -> Iterator[Launched]:
        self.occasions.append(occasion)
        self.waits_s.append(wait_s)
        self.meanwhile()
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        if isinstance(end, BaseException):
            raise end
        yield Launched(status=end, cell={}, problem="it went wrong" if end.is_error else "")


class Nights:
    """One schedule, looked at under a virtual clock."""

    def __init__(self, folder: Path, **schedule: Any) -> None:
        self.path = spec_file(folder, schedule={"cron": "30 2 * * *", **schedule})
        self.schedule = Schedule(self.path)
        self.clock = VirtualClock(wall_s=MIDNIGHT_S)
        self.launch = Scripted()
        self.told = io.StringIO()

    def look(self) -> Outcome:
        return run_due(self.schedule, clock=self.clock, launch=self.launch, told=self.told)

    def look_at(self, hour: float, day: int = 0) -> Outcome:
        self.clock.advance(MIDNIGHT_S + day * 86_400.0 + hour * 3600.0 - self.clock.wall_s())
        return self.look()

    @property
    def state(self) -> ScheduleState:
        state = self.schedule.shelf.read()
        assert state is not None
        return state
