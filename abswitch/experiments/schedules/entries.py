"""The host's entries: what starts a schedule's look once a minute. Each is marked, and only marked ones are touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from abswitch.errors import AbswitchError, InvalidInput
from abswitch.experiments.locks import lock_folder
from abswitch.experiments.project import project_of
from abswitch.experiments.schedules.state import key_of

MARK = "abswitch-schedule"
_ASK_S = 30.0


class HostRefused(AbswitchError):
    """The host's scheduler is not there, or did not do what it was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the host runs each minute.

    Attributes:
        key: of the schedule, see `key_of`.
        folder: where the command is run.
        command: the program and its arguments.
        environment: set for it; hosts give hardly any of a shell's.
    """

    key: str
    spec: Path
    folder: Path
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in (str(self.folder), *self.command, *self.environment.values()):
            if not text.isprintable():
                raise InvalidInput("schedule", text, "paths of printable characters: entries of the host are lines")


def entry_of(spec: Path, *, reports: Path | None = None, env_file: Path | None = None) -> Entry:
    """The entry of a spec, with this very environment's Python.

    Args:
        reports: where results go, when it is not the project's `reports`.
        env_file: `NAME=value` lines for the runs, see `read_environment`.

    Raises:
        InvalidInput: a path that no entry can hold.
    """
    spec = spec.expanduser().resolve()
    command = [sys.executable, "-P", "-m", "abswitch.cli", "schedule", "run-due", "--unattended", str(spec)]
    for option, path in (("--reports", reports), ("--env-file", env_file)):
        if path is not None:
            command += [option, str(path.expanduser().resolve())]
    return Entry(
        key=key_of(spec),
        spec=spec,
        folder=project_of(spec),
        command=tuple(command),
        # Where this shell's locks are, whatever TMPDIR the host gives: one accelerator has one lock.
        environment={"ABSWITCH_LOCK_DIR": str(lock_folder())},
    )


class Host(Protocol):
    """Something on this host that runs commands at set times."""

    @property
    def name(self) -> str:
        """As `--with` has it."""

    def why_not(self) -> str | None:
        """Why it cannot be used here; None where it can."""

    def shown(self, entry: Entry) -> str:
        """The entry in the host's own words."""

    def install(self, entry: Entry) -> bool:
        """Put it in, in place of an older one of the same schedule.

        Returns:
            Whether anything changed.

        Raises:
            HostRefused: it was not taken; nothing is left behind.
        """

    def remove(self, key: str) -> bool:
        """Take a schedule's entry out, and nothing else.

        Returns:
            Whether there was one.

        Raises:
            HostRefused: it is still there.
        """

    def installed(self) -> frozenset[str]:
        """Keys of the schedules that have an entry."""

    def warnings(self) -> tuple[str, ...]:
        """What may keep entries from being run all the same."""


def hosts() -> tuple[Host, ...]:
    """Those known, the preferred one first: cron also runs while nobody is logged in."""
    from abswitch.experiments.schedules.crontab import Crontab
    from abswitch.experiments.schedules.systemd import UserTimers

    return (Crontab(), UserTimers())


def host_named(name: str) -> Host:
    """A host by name; `auto` is the first that can be used.

    Raises:
        HostRefused: it, or all of them, cannot be used here.
    """
    known = hosts()
    reasons = {host.name: host.why_not() for host in known if name in ("auto", host.name)}
    for host in known:
        if reasons.get(host.name, "") is None:
            return host
    why = "; ".join(f"{one}: {reason}" for one, reason in reasons.items())
    ways = "Install cron, or call `abswitch schedule run-due` once a minute from what you have"
    raise HostRefused(f"nothing here can run schedules ({why}). {ways}; docs/schedules.md has examples")


def asked(command: Sequence[str], given: str | None = None) -> subprocess.CompletedProcess[str]:
    """A program of the host's, with messages in English.

    Raises:
        HostRefused: it is not there, or does not answer.
    """
    try:
        return subprocess.run(
            command,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # what others wrote there comes back as it was
            check=False,
            timeout=_ASK_S,
            env=os.environ | {"LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostRefused(f"`{' '.join(command)}` did not work: {error}") from error


def read_environment(path: Path) -> dict[str, str]:
    """Variables from a file of `NAME=value` lines; empty lines and those that begin with `#` are left out. A value may
    stand in quotes; nothing in it is expanded.

    Raises:
        InvalidInput: a line is none; names its number, never its value, which may be secret.
        OSError: the file cannot be read.
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, sign, value = text.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not sign or not name.isidentifier():
            raise InvalidInput(f"{path}, line {number}", "another line", "NAME=value")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        found[name] = value[1:-1] if quoted else value
    return found
