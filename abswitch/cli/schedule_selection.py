"""Which schedules a command is about, and the environment of their runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from abswitch.cli.arguments import Failure
from abswitch.errors import InvalidInput
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.project import project_folder

if TYPE_CHECKING:
    from abswitch.experiments.schedules.running import Schedule

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})


def schedules_of(options: argparse.Namespace) -> list[Schedule]:
    """Those named; or every file of the project's experiments/ that has a schedule, or cannot be read."""
    from abswitch.experiments.schedules.running import Schedule

    reports = None if options.reports is None else options.reports.expanduser().resolve()
    folders = [path for path in options.specs if path.is_dir()]
    files = [path for path in options.specs if path not in folders]
    if not options.specs:
        folders = [project_folder() / "experiments"]
        if not folders[0].is_dir():
            raise Failure(f"there is no folder {folders[0]}; name the specs", ExitStatus.USAGE)
    found = [Schedule(path, reports) for path in files]
    inside = sorted(path for folder in folders for path in folder.iterdir() if path.suffix in _SUFFIXES)
    return found + [one for one in (Schedule(path, reports) for path in inside) if _concerns(one)]


def _concerns(schedule: Schedule) -> bool:
    from abswitch.experiments.specfile import read_plain

    try:
        return read_plain(schedule.path).get("schedule") is not None
    except (InvalidInput, OSError, ValueError):
        return True  # it is told what is wrong


@contextmanager
def spec_problems() -> Iterator[None]:
    """What is wrong with a spec, as the command says it."""
    try:
        yield
    except InvalidInput as error:
        raise Failure(str(error), ExitStatus.BAD_SPEC) from error
    except OSError as error:
        raise Failure(f"{error.strerror}: {error.filename}", ExitStatus.NO_SPEC) from error


def environment_of(path: Path | None) -> dict[str, str]:
    """The variables of a file; none without one."""
    from abswitch.experiments.schedules.entries import read_environment

    if path is None:
        return {}
    try:
        return read_environment(path)
    except InvalidInput as error:
        raise Failure(str(error), ExitStatus.USAGE) from error
    except OSError as error:
        raise Failure(f"--env-file {path}: {error.strerror}", ExitStatus.USAGE) from error
