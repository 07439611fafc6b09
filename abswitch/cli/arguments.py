"""What the commands share: a parser that complains in one line, and a failure with its exit status."""

from __future__ import annotations

import argparse
from typing import NoReturn

from abswitch.experiments.exits import ExitStatus


class Failure(Exception):
    """The command could not do its work; the message is for people, in a few lines."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        self.status = status
        super().__init__(message)


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitStatus.USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def seconds(text: str) -> float:
    """An option's value in seconds."""
    try:
        given = float(text)
    except ValueError:
        given = -1.0
    if not 0.0 <= given < 1e9:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: seconds, zero or more")
    return given


def whole_number(text: str) -> int:
    """An option's value that counts something."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number of at least 1")
    return int(text)


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Add `-p KEY=VALUE`."""
    command.add_argument(
        "-p",
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a field of the spec, dotted (load.concurrency=8), or a parameter of its notebook; may be repeated",
    )
