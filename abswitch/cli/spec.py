"""`abswitch spec`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from abswitch.cli.arguments import Failure, add_overrides
from abswitch.experiments.exits import ExitStatus, worst


def add(commands: Any) -> None:
    """Add the command to the parser."""
    spec = commands.add_parser(
        "spec",
        help="check specs without running them, or print their JSON Schema",
        description="Checks what can be checked before a run: fields, files, functions, prompts, columns. Exits with 0 "
        "when every spec can be run, else as `abswitch run` would.",
    )
    spec.add_argument("specs", type=Path, nargs="*", metavar="SPEC", help="e.g. experiments/*.yaml")
    add_overrides(spec)
    spec.add_argument("--schema", action="store_true", help="print the JSON Schema of spec files, for editors")
    spec.set_defaults(work=_spec)


def _spec(options: argparse.Namespace) -> ExitStatus:
    from abswitch.experiments.launch import Refused, planned
    from abswitch.experiments.overriding import words_of
    from abswitch.experiments.specfile import schema_text

    if bool(options.specs) == options.schema:
        raise Failure("either SPEC or --schema", ExitStatus.USAGE)
    if options.schema:
        print(schema_text(), end="")
        return ExitStatus.SUCCESS
    statuses = []
    for path in options.specs:
        try:
            runs = planned(path, options.settings)
        except Refused as refused:
            print(f"abswitch spec: {refused}", file=sys.stderr)
            statuses.append(refused.status)
            continue
        statuses.append(ExitStatus.SUCCESS)
        print(f"{path}: {runs[0].spec.name}, {len(runs)} run{'s' if len(runs) > 1 else ''}")
        for run in runs if len(runs) > 1 else ():
            print(f"  {words_of(run.cell)}")
    return worst(statuses)
