"""Stand-ins for `crontab` and `systemctl`: programs on PATH that keep what they are given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

CRONTAB = """#!/bin/sh
# As crontab(1) does: -l prints, - replaces.
file="$FAKE_HOST/crontab"
[ -e "$FAKE_HOST/broken" ] && { echo "crontab: disk on fire" >&2; exit 1; }
case "$1" in
-l) [ -e "$file" ] || { echo "no crontab for $USER" >&2; exit 1; }; cat "$file" ;;
-) cat >"$file" ;;
esac
"""
SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$FAKE_HOST/systemctl.log"
if [ -e "$FAKE_HOST/no-bus" ]; then echo "Failed to connect to bus: No medium found" >&2; exit 1; fi
if [ -e "$FAKE_HOST/no-enable" ] && [ "$2" = enable ]; then echo "Unit file is masked." >&2; exit 1; fi
exit 0
"""


class FakeHost:
    """A folder that is first on PATH, with the programs it is given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for tool in ("sh", "cat"):
            found = shutil.which(tool)
            assert found is not None
            (folder / "bin" / tool).symlink_to(found)
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setenv("FAKE_HOST", str(folder))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        monkeypatch.setenv("ABSWITCH_LOCK_DIR", str(folder / "locks"))

    def has(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(script)
        path.chmod(0o755)

    @property
    def crontab(self) -> str:
        return (self.folder / "crontab").read_text()

    @property
    def units(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "config/systemd/user").glob("*.*") if path.is_file())

    @property
    def asked(self) -> list[str]:
        return (self.folder / "systemctl.log").read_text().splitlines()
