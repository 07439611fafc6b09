"""`abswitch run`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch.cli.arguments import add_overrides, seconds
from abswitch.experiments.exits import ExitStatus, worst

if TYPE_CHECKING:
    from abswitch.experiments.launch import Launched
    from abswitch.experiments.runs import RunResult


def add(commands: Any) -> None:
    """Add the command to the parser."""
    run = commands.add_parser(
        "run",
        help="run an experiment's spec",
        description="Runs a spec's notebook. After a crash or Ctrl-C the same command goes on where it stopped. Exits "
        "with 0 when the verdict is what the plan calls success, 1-63 by the kind of verdict, 64 and more for errors.",
    )
    run.add_argument("spec", type=Path, metavar="SPEC", help="e.g. experiments/quickstart.yaml")
    add_overrides(run)
    run.add_argument("--reports", type=Path, metavar="FOLDER", help="where results go (reports/ in the project)")
    run.add_argument("--fresh", action="store_true", help="begin anew instead of going on with an interrupted run")
    run.add_argument(
        "--wait", type=seconds, default=0.0, metavar="SECONDS", help="for the accelerator, when it is busy"
    )
    run.set_defaults(work=_run)


def _run(options: argparse.Namespace) -> ExitStatus:
    from abswitch.experiments.launch import launch

    reports = None if options.reports is None else options.reports.expanduser().resolve()
    ended = []
    for launched in launch(options.spec, options.settings, reports=reports, fresh=options.fresh, wait_s=options.wait):
        ended.append(launched.status)
        if launched.result is None:
            print(f"abswitch run: {launched.problem}", file=sys.stderr)
        else:
            print(result_words(launched))
    return worst(ended)


def result_words(launched: Launched) -> str:
    """What a run ends with: the verdict in words, the requests, and where to look next."""
    from abswitch.experiments.overriding import words_of

    result = launched.result
    assert result is not None, "asked only where there is one"
    requests = result.requests
    lines = [
        f"Verdict   {result.headline}",
        *(f"          {reason}" for reason in result.reasons),
        f"Requests  {requests['sent']:,} sent, {requests['answered']:,} answered, "
        f"{requests['failed']:,} failed, {requests['lost']:,} lost",
        *(f"ALERT     {alert}" for alert in result.alerts),
        *watch_words(result),
        f"Exit      {int(launched.status)}: {launched.status.meaning}",
    ]
    if launched.cell:
        lines.insert(0, f"Of        {words_of(launched.cell)}")
    if result.report is not None:
        lines.append(f"Report    {result.report}")
    return "\n".join([*lines, f"Folder    {launched.folder}", ""])


def watch_words(result: RunResult) -> list[str]:
    """What the regression watch adds: what it compared with, and whether its alerts arrived."""
    if result.not_posted is not None:
        return [f"          not posted: {result.not_posted}"]
    if result.compared_with is not None and not result.alerts:
        return [f"Watch     not worse than run {result.compared_with}"]
    return []
