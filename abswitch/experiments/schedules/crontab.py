"""Entries in the user's crontab: one line each, marked at its end; every other line stays as it is."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from abswitch.errors import InvalidInput
from abswitch.experiments.locks import lock_folder
from abswitch.experiments.schedules.entries import MARK, Entry, HostRefused, asked

_DAEMONS = frozenset({"cron", "crond", "fcron", "bcron-sched", "dcron"})
_LONGEST = 990
"""Debian's cron takes commands of up to 1,000 characters, and drops the whole file over a longer one."""


class Crontab:
    """The crontab of this user, by the program `crontab`."""

    name = "cron"

    def why_not(self) -> str | None:
        if shutil.which("crontab") is None:
            return "there is no `crontab` program"
        try:
            _read()
        except HostRefused as error:
            return str(error)
        return None

    def shown(self, entry: Entry) -> str:
        return line_of(entry) + "\n"

    def install(self, entry: Entry) -> bool:
        line = line_of(entry)
        with _alone():
            lines = _read()
            if [one for one in lines if _key(one) == entry.key] == [line]:
                return False
            _write([*(one for one in lines if _key(one) != entry.key), line])
        return True

    def remove(self, key: str) -> bool:
        if shutil.which("crontab") is None:
            return False
        with _alone():
            lines = _read()
            left = [one for one in lines if _key(one) != key]
            if left != lines:
                _write(left)
        return left != lines

    def installed(self) -> frozenset[str]:
        if self.why_not() is not None:
            return frozenset()
        return frozenset(key for line in _read() if (key := _key(line)) is not None)

    def warnings(self) -> tuple[str, ...]:
        import psutil

        if any(process.info["name"] in _DAEMONS for process in psutil.process_iter(["name"])):
            return ()
        return ("no cron daemon runs here; until one does, nothing is started",)


def line_of(entry: Entry) -> str:
    """The line: each minute, in the project's folder.

    Raises:
        InvalidInput: longer than cron takes.
    """
    variables = [f"{name}={shlex.quote(value)}" for name, value in entry.environment.items()]
    command = " ".join([*variables, shlex.join(entry.command)])
    # An unescaped % is a line break to cron.
    text = f"cd {shlex.quote(str(entry.folder))} && {command} # {MARK} {entry.key}".replace("%", "\\%")
    if len(text) > _LONGEST:
        raise InvalidInput("schedule", text, f"paths that make a crontab line of at most {_LONGEST} characters")
    return f"* * * * * {text}"


def _key(line: str) -> str | None:
    """Whose line it is; None for one that is not ours."""
    before, mark, key = line.rpartition(f" # {MARK} ")
    return key.strip() if mark and before and not line.lstrip().startswith("#") else None


def _read() -> list[str]:
    done = asked(["crontab", "-l"])
    if done.returncode == 0:
        return done.stdout.removesuffix("\n").split("\n") if done.stdout else []
    if "no crontab" in done.stderr.lower():
        return []
    raise HostRefused(f"`crontab -l` said: {done.stderr.strip() or f'status {done.returncode}'}")


def _write(lines: list[str]) -> None:
    done = asked(["crontab", "-"], "".join(f"{line}\n" for line in lines))
    if done.returncode != 0:
        raise HostRefused(
            f"`crontab -` said: {done.stderr.strip() or f'status {done.returncode}'}; nothing was changed"
        )


@contextmanager
def _alone() -> Iterator[None]:
    """Two commands that read, change and write at once would lose one of the changes."""
    from filelock import FileLock

    with FileLock(lock_folder() / "crontab.lock", timeout=60.0):
        yield
