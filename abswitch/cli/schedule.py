"""`abswitch schedule`: list, next, run-due, install, remove."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch.cli.arguments import Failure, whole_number
from abswitch.cli.run import result_words
from abswitch.cli.schedule_entries import install, remove
from abswitch.cli.schedule_selection import environment_of, schedules_of, spec_problems
from abswitch.errors import InvalidInput, StoreError
from abswitch.experiments.exits import ExitStatus, worst
from abswitch.experiments.project import project_folder, project_of

if TYPE_CHECKING:
    from abswitch.experiments.launch import Launched
    from abswitch.experiments.schedules.running import Outcome, Schedule


def add(commands: Any) -> None:
    """Add the command to the parser."""
    schedule = commands.add_parser(
        "schedule",
        help="specs that run by themselves",
        description="What is scheduled, when it comes, and the host's entry that starts it; see docs/schedules.md. "
        "Without SPEC, every scheduled spec of the project's folder experiments/ is meant.",
    )
    actions = schedule.add_subparsers(
        title="actions", required=True, metavar="ACTION", parser_class=type(schedule), dest="action"
    )
    _add_list(actions)
    _add_next(actions)
    _add_run_due(actions)
    _add_install(actions)
    _add_remove(actions)


def _action(actions: Any, name: str, told: str) -> Any:
    action = actions.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".")
    action.add_argument("specs", type=Path, nargs="*", metavar="SPEC", help="spec files, or folders of them")
    action.add_argument("--reports", type=Path, metavar="FOLDER", help="where results go (reports/ in the project)")
    return action


def _add_list(actions: Any) -> None:
    _action(actions, "list", "show what is scheduled, its last run and its next").set_defaults(work=_list)


def _add_next(actions: Any) -> None:
    following = actions.add_parser("next", help="show the next times", description="Shows the next times of specs.")
    following.add_argument("specs", type=Path, nargs="*", metavar="SPEC", help="spec files, or folders of them")
    following.add_argument("-n", type=whole_number, default=5, dest="count", metavar="N", help="how many (%(default)s)")
    following.add_argument("--after", type=_instant, metavar="TIME", help="begin there, e.g. 2026-03-28T12:00+01:00")
    following.set_defaults(work=_next, reports=None)


def _add_run_due(actions: Any) -> None:
    run = _action(actions, "run-due", "run what is due; cheap where nothing is, so that the host may ask each minute")
    run.add_argument("--dry-run", action="store_true", help="only say what would be done")
    _env_file(run)
    run.add_argument(
        "--unattended", action="store_true", help="as the host's entry does: into a log, each problem told once"
    )
    run.set_defaults(work=_run_due)


def _add_install(actions: Any) -> None:
    action = _action(actions, "install", "have the host look each minute, by cron or a systemd timer")
    _with(action)
    action.add_argument("--print", action="store_true", dest="show", help="show the entries, install nothing")
    _env_file(action)
    action.set_defaults(work=install)


def _add_remove(actions: Any) -> None:
    action = _action(actions, "remove", "take the host's entries out again; what ran is kept")
    action.set_defaults(work=remove)


def _env_file(action: Any) -> None:
    action.add_argument(
        "--env-file", type=Path, metavar="FILE", help="NAME=value lines for the environment of the runs"
    )


def _with(action: Any) -> None:
    action.add_argument(
        "--with",
        dest="host",
        choices=("auto", "cron", "systemd"),
        default="auto",
        help="what runs it (%(default)s: cron where there is one, else systemd)",
    )


def _instant(text: str) -> float:
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a time such as 2026-03-28T12:00+01:00") from None
    return given.timestamp()


# --- list, next -----------------------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> ExitStatus:
    from abswitch.cli.schedule_words import row_of, table
    from abswitch.experiments.schedules.entries import hosts
    from abswitch.experiments.schedules.state import states_in

    schedules = schedules_of(options)
    installed = {key: host.name for host in reversed(hosts()) for key in host.installed()}
    rows, statuses = [], []
    for schedule in schedules:
        row, status = row_of(schedule, installed.get(schedule.shelf.key, "no"))
        rows.append(row)
        statuses.append(status)
    shown = {schedule.shelf.key for schedule in schedules}
    places = {schedule.shelf.reports for schedule in schedules} if schedules else {project_folder() / "reports"}
    for reports in () if options.specs else sorted(places):
        for shelf, state in states_in(reports):
            if shelf.key not in shown and shelf.key in installed:
                rows.append((Path(state.spec).name, "spec is gone", "", "", installed[shelf.key]))
    print(table(rows) if rows else "nothing is scheduled: no spec here has a `schedule:`")
    return worst(statuses)


def _next(options: argparse.Namespace) -> ExitStatus:
    import itertools
    import time

    from abswitch.experiments.schedules.occurrences import in_zone, occurrences

    with spec_problems():
        plans = [(schedule.path, schedule.spec()) for schedule in schedules_of(options)]
    after_s = time.time() if options.after is None else options.after
    for path, plan in plans:
        if len(options.specs) != 1 or len(plans) > 1:
            print(path.name)
        for at_s in itertools.islice(occurrences(plan.cron, plan.time_zone, after_s), options.count):
            zone = "" if plan.time_zone == "UTC" else f"   {in_zone(at_s, 'UTC')}"
            print(f"{in_zone(at_s, plan.time_zone)}{zone}")
    return ExitStatus.SUCCESS


# --- run-due --------------------------------------------------------------------------------------------------------


def _run_due(options: argparse.Namespace) -> ExitStatus:
    if options.unattended:
        if not options.specs or options.dry_run:
            raise Failure("--unattended goes with specs, and not with --dry-run", ExitStatus.USAGE)
        return worst(_unattended(path, options) for path in options.specs)
    os.environ.update(environment_of(options.env_file))
    return worst([_looked_at(schedule, dry=options.dry_run) for schedule in schedules_of(options)])


def _unattended(path: Path, options: argparse.Namespace) -> ExitStatus:
    """One look as the host asks for it: what is clear at a glance costs some milliseconds, and says nothing."""
    import time

    from abswitch.experiments.schedules.state import Shelf, at_a_glance, key_of

    reports = None if options.reports is None else options.reports.expanduser().resolve()
    shelf = Shelf(reports or project_of(path) / "reports", key_of(path))
    status = at_a_glance(shelf, path, time.time())
    if status is not None:
        return status
    from abswitch.experiments.schedules.running import Schedule

    try:
        file = shelf.roomy_log().open("a", encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot write to {shelf.folder}: {error.strerror}", ExitStatus.CANNOT_WRITE) from error
    with ExitStack() as stack:
        log = _Dated(stack.enter_context(file))
        stack.enter_context(redirect_stdout(log))
        stack.enter_context(redirect_stderr(log))
        try:
            os.environ.update(environment_of(options.env_file))
        except Failure as failure:
            print(failure)
            return failure.status
        return _looked_at(Schedule(path, reports), unattended=True)


class _Dated:
    """A log: every line begins with the time."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._fresh = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            if self._fresh and line.strip():
                self._file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} ")
            self._file.write(line)
            self._fresh = line.endswith(("\n", "\r"))
        return len(text)

    def flush(self) -> None:
        self._file.flush()

    def isatty(self) -> bool:
        return False


def _looked_at(schedule: Schedule, *, dry: bool = False, unattended: bool = False) -> ExitStatus:
    from abswitch.experiments.schedules.running import run_due

    outcome = _dry(schedule) if dry else run_due(schedule, on_ended=_tell)
    if not (unattended and outcome.idle):
        print(f"{schedule.path.name}: {outcome.words}", file=sys.stdout if dry else sys.stderr)
    return outcome.status


def _tell(launched: Launched) -> None:
    if launched.result is not None:
        print(result_words(launched))


def _dry(schedule: Schedule) -> Outcome:
    import time

    from abswitch.cli.schedule_words import decision_words
    from abswitch.experiments.schedules.running import Outcome, decision_of

    try:
        plan = schedule.spec()
        words = decision_words(decision_of(schedule, plan, time.time()), plan, held=schedule.shelf.is_held())
    except InvalidInput as error:
        return Outcome(status=ExitStatus.BAD_SPEC, words=str(error))
    except StoreError as error:
        return Outcome(status=ExitStatus.FAILED, words=str(error))
    except OSError as error:
        return Outcome(status=ExitStatus.NO_SPEC, words=f"{error.strerror}: {schedule.path}")
    return Outcome(status=ExitStatus.SUCCESS, words=words)
