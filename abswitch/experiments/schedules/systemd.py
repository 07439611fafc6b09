"""Entries as timers of the user's systemd: a service and a timer each, in files of their own."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.schedules.entries import MARK, Entry, HostRefused, asked

_VERDICTS = tuple(int(one) for one in ExitStatus if 0 < one < ExitStatus.REGRESSED or one == ExitStatus.BUSY)
"""Statuses that are no failure of the unit; a regression is one, so that `OnFailure=` can tell it."""


class UserTimers:
    """Timers of `systemctl --user`."""

    name = "systemd"

    def why_not(self) -> str | None:
        if shutil.which("systemctl") is None:
            return "there is no `systemctl` program"
        try:
            _systemctl("show-environment")
        except HostRefused as error:
            return str(error)
        return None

    def shown(self, entry: Entry) -> str:
        return "\n".join(f"# {path}\n{content}" for path, content in _files(entry).items())

    def install(self, entry: Entry) -> bool:
        files = _files(entry)
        changed = [path for path, content in files.items() if _content(path) != content]
        try:
            for path in changed:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(files[path], encoding="utf-8")
            _systemctl("daemon-reload")
            _systemctl("enable", "--now", _timer(entry.key).name)
        except (HostRefused, OSError) as error:
            for path in files:
                with suppress(OSError):
                    path.unlink()
            raise HostRefused(f"{error}; nothing was installed") from error
        return bool(changed)

    def remove(self, key: str) -> bool:
        paths = [path for path in (_service(key), _timer(key)) if _is_ours(path)]
        if not paths:
            return False
        why_not = self.why_not()
        if why_not is None:
            _systemctl("disable", "--now", _timer(key).name)
        for path in (*paths, _folder() / "timers.target.wants" / _timer(key).name):
            path.unlink(missing_ok=True)
        if why_not is None:
            _systemctl("daemon-reload")
        return True

    def installed(self) -> frozenset[str]:
        timers = _folder().glob("abswitch-*.timer")
        return frozenset(path.stem.removeprefix("abswitch-") for path in timers if _is_ours(path))

    def warnings(self) -> tuple[str, ...]:
        if shutil.which("loginctl") is None:
            return ()
        done = asked(["loginctl", "show-user", str(os.getuid()), "--property=Linger"])
        if "Linger=no" not in done.stdout:
            return ()
        return ("timers run only while you are logged in; `loginctl enable-linger` lets them run always",)


def _files(entry: Entry) -> dict[Path, str]:
    head = f"# {MARK} {entry.key}: made by `abswitch schedule install`; `abswitch schedule remove` takes it out.\n"
    about = str(entry.spec).replace("%", "%%")
    variables = "".join(f"Environment={_word(f'{name}={value}')}\n" for name, value in entry.environment.items())
    service = (
        f"{head}[Unit]\nDescription=abswitch: run {about} where it is due\n\n"
        f"[Service]\nType=oneshot\nWorkingDirectory={str(entry.folder).replace('%', '%%')}\n{variables}"
        f"ExecStart={' '.join(map(_argument, entry.command))}\n"
        f"SuccessExitStatus={' '.join(map(str, _VERDICTS))}\nTimeoutStartSec=infinity\n"
    )
    timer = (
        f"{head}[Unit]\nDescription=abswitch: look each minute whether {about} is due\n\n"
        "[Timer]\nOnCalendar=*-*-* *:*:00\nAccuracySec=1s\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )
    return {_service(entry.key): service, _timer(entry.key): timer}


def _word(text: str) -> str:
    """One word of a unit file, in quotes: systemd reads backslashes, quotes and percent signs."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _argument(text: str) -> str:
    """A word of a command line, where $ begins a variable."""
    return _word(text.replace("$", "$$"))


def _folder() -> Path:
    configuration = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configuration) if configuration else Path.home() / ".config") / "systemd" / "user"


def _service(key: str) -> Path:
    return _folder() / f"abswitch-{key}.service"


def _timer(key: str) -> Path:
    return _folder() / f"abswitch-{key}.timer"


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _is_ours(path: Path) -> bool:
    return (_content(path) or "").startswith(f"# {MARK} ")


def _systemctl(*arguments: str) -> None:
    done = asked(["systemctl", "--user", *arguments])
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise HostRefused(f"`systemctl --user {' '.join(arguments)}` said: {said}")
