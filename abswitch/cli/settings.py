"""`abswitch settings`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from abswitch.cli.arguments import Failure
from abswitch.errors import InvalidInput
from abswitch.experiments.exits import ExitStatus


def add(commands: Any) -> None:
    """Add the command to the parser."""
    settings = commands.add_parser(
        "settings",
        help="the settings in force here, and where each comes from",
        description="Shows every setting as the environment and the file say, or the page that documents them.",
    )
    settings.set_defaults(work=_settings)
    settings.add_argument("--file", type=Path, metavar="FILE", help="TOML or YAML file to read")
    settings.add_argument("--markdown", action="store_true", help="the page docs/settings.md")


def _settings(options: argparse.Namespace) -> ExitStatus:
    from abswitch.settings import ModelSwitchingConfig
    from abswitch.settings.table import page

    if options.markdown:
        print(page(), end="")
        return ExitStatus.SUCCESS
    try:
        rows = list(ModelSwitchingConfig.load(options.file).shown())
    except InvalidInput as wrong:
        raise Failure(str(wrong), ExitStatus.BAD_SPEC) from wrong
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")
    return ExitStatus.SUCCESS
