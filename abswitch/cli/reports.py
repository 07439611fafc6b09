"""`abswitch reports`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from abswitch.cli.arguments import Failure
from abswitch.errors import InvalidInput
from abswitch.experiments.exits import ExitStatus


def add(commands: Any) -> None:
    """Add the command to the parser."""
    reports = commands.add_parser(
        "reports",
        help="write the page over all runs",
        description="Writes index.html over all runs in a folder of reports, with trends. It is also written after "
        "every run. Folders that cannot be read are listed, on the page and here, and change nothing else.",
    )
    reports.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER", help="of the reports (reports/ in the project)"
    )
    reports.set_defaults(work=_reports)


def _reports(options: argparse.Namespace) -> ExitStatus:
    from abswitch.experiments.overview import write_overview
    from abswitch.experiments.project import project_folder

    try:
        written = write_overview(project_folder() / "reports" if options.folder is None else options.folder)
    except InvalidInput as error:
        raise Failure(str(error), ExitStatus.NO_SPEC) from error
    except OSError as error:
        raise Failure(f"the page cannot be written: {error}", ExitStatus.CANNOT_WRITE) from error
    for run in written.unreadable:
        print(f"abswitch reports: {run.name} cannot be read: {run.problem}", file=sys.stderr)
    runs = f"{written.runs} run{'' if written.runs == 1 else 's'}"
    print(f"{runs} of {written.experiments} experiment{'' if written.experiments == 1 else 's'}: {written.page}")
    return ExitStatus.SUCCESS
