"""`abswitch schedule install` and `remove`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from abswitch.cli.arguments import Failure
from abswitch.cli.schedule_selection import environment_of, schedules_of, spec_problems
from abswitch.errors import InvalidInput, StoreError
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.project import project_folder

if TYPE_CHECKING:
    from abswitch.experiments.schedules.running import Schedule


def install(options: argparse.Namespace) -> ExitStatus:
    """Put the entries in, or show them."""
    from abswitch.experiments.schedules.entries import HostRefused, entry_of, host_named, hosts

    schedules = schedules_of(options)
    if not schedules:
        raise Failure("nothing is scheduled: no spec here has a `schedule:`", ExitStatus.USAGE)
    given = _given_environment(options.env_file)
    with spec_problems():
        for schedule in schedules:
            schedule.spec()
        entries = [entry_of(one.path, reports=one.reports, env_file=options.env_file) for one in schedules]
    try:
        if options.show:
            named = options.host if options.host != "auto" else "cron"
            shown = next(host for host in hosts() if host.name == named)
            print("".join(shown.shown(entry) for entry in entries), end="")
            return ExitStatus.SUCCESS
        host = host_named(options.host)
        others = [other for other in hosts() if other.name != host.name]
        for schedule, entry in zip(schedules, entries, strict=True):
            _adopt(schedule)
            for other in others:
                other.remove(entry.key)  # one entry, whatever it is that runs it
            changed = host.install(entry)
            print(f"{schedule.path}: {'installed' if changed else 'was installed already'} ({host.name})")
        warnings = (*host.warnings(), *_webhooks(schedules, given))
    except (HostRefused, InvalidInput) as error:
        raise Failure(str(error)) from error
    for warning in warnings:
        print(f"abswitch schedule: careful: {warning}", file=sys.stderr)
    return ExitStatus.SUCCESS


def _adopt(schedule: Schedule) -> None:
    try:
        schedule.adopt()
    except StoreError as error:
        raise Failure(f"{error}; move it away, and the schedule begins anew") from error
    except OSError as error:
        raise Failure(f"cannot write to {schedule.shelf.folder}: {error.strerror}", ExitStatus.CANNOT_WRITE) from error


def _given_environment(path: Path | None) -> dict[str, str]:
    given = environment_of(path)
    if path is not None and path.stat().st_mode & 0o077:
        print(f"abswitch schedule: careful: others can read {path}; `chmod 600` it", file=sys.stderr)
    return given


def _webhooks(schedules: Iterable[Schedule], given: dict[str, str]) -> Iterator[str]:
    from abswitch.experiments.specfile import read_spec

    for schedule in schedules:
        watch = read_spec(schedule.path).watch
        if watch is not None and watch.webhook_env is not None and watch.webhook_env not in given:
            to = f"{schedule.path.name} posts alerts to ${watch.webhook_env}"
            yield f"{to}, which the host does not give; use --env-file"


def remove(options: argparse.Namespace) -> ExitStatus:
    """Take the entries out, also those of specs that are gone."""
    from abswitch.experiments.schedules.entries import HostRefused, hosts
    from abswitch.experiments.schedules.state import key_of, states_in

    files = [path for path in options.specs if not path.is_dir()]
    keys = {key_of(path): str(path) for path in files}
    if len(files) < len(options.specs) or not options.specs:
        schedules = schedules_of(options)
        keys |= {schedule.shelf.key: str(schedule.path) for schedule in schedules}
        for reports in {schedule.shelf.reports for schedule in schedules} | {project_folder() / "reports"}:
            keys |= {shelf.key: state.spec for shelf, state in states_in(reports) if not options.specs}
    removed = 0
    try:
        for key, spec in keys.items():
            for host in hosts():
                if host.remove(key):
                    removed += 1
                    print(f"{spec}: removed ({host.name})")
    except HostRefused as error:
        raise Failure(str(error)) from error
    if not removed:
        print("nothing was installed")
    return ExitStatus.SUCCESS
