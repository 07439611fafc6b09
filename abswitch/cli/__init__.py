"""The command `abswitch`: one module for each of its commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from abswitch import __version__
from abswitch.cli import demo, reports, run, schedule, settings, spec
from abswitch.cli.arguments import Failure, Parser
from abswitch.cli.demo import NOTEBOOK, closing_words
from abswitch.cli.run import result_words
from abswitch.experiments.exits import ExitStatus

__all__ = ["NOTEBOOK", "closing_words", "main", "result_words"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, see `abswitch.experiments.exits`."""
    options = _parser().parse_args(arguments)
    name = f"abswitch {options.command}"
    try:
        return int(options.work(options))
    except Failure as failure:
        print(f"{name}: {failure}", file=sys.stderr)
        return int(failure.status)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return int(ExitStatus.INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    whole = Parser(prog="abswitch", description="Switch live traffic between language-model versions.")
    whole.add_argument("--version", action="version", version=f"abswitch {__version__}")
    commands = whole.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=Parser, dest="command"
    )
    for command in (demo, run, spec, schedule, reports, settings):
        command.add(commands)
    return whole
