"""Entries of the host: crontab and user timers, by programs on PATH that keep what they are given; and by real ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from abswitch.errors import InvalidInput
from abswitch.experiments.schedules.crontab import Crontab, line_of
from abswitch.experiments.schedules.entries import Entry, HostRefused, entry_of, host_named, hosts, read_environment
from abswitch.experiments.schedules.systemd import UserTimers
from tests.experiments.schedules.hosts import CRONTAB, SYSTEMCTL, FakeHost
from tests.experiments.schedules.projects import spec_file

NOT_OURS = "MAILTO=me@example.org\n# my own\n\n0 1 * * * backup --all 100\\%\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return FakeHost(tmp_path / "host", monkeypatch)


def awkward(folder: Path, *command: str) -> Entry:
    """An entry with everything in it that a shell, cron or systemd reads in a way of its own."""
    return Entry(
        key="awkward-12345678",
        spec=folder / "x.yaml",
        folder=folder,
        command=(*command, "a b", "100%", "$HOME", "'one'", '"two"', "back\\slash", "#", "ä", ";"),
        environment={"GIVEN": "x y % $z"},
    )


SHOW = "import os, sys; print(os.getcwd(), os.environ['GIVEN'], *sys.argv[1:], sep='|')"


# --- crontab --------------------------------------------------------------------------------------------------------


def test_a_crontab_line_runs_what_it_is_meant_to(tmp_path: Path) -> None:
    """By the shell, after cron has read its percent signs."""
    folder = tmp_path / "my project's 100%"
    folder.mkdir()
    line = line_of(awkward(folder, sys.executable, "-c", SHOW))
    assert line.startswith("* * * * * ")
    assert line.replace("\\%", "").count("%") == 0, "a bare one is a line break to cron"
    command = line.removeprefix("* * * * * ").replace("\\%", "%")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "|".join([str(folder), "x y % $z", *awkward(folder).command])


def test_install_and_remove_leave_other_lines_alone(host: FakeHost, tmp_path: Path) -> None:
    host.has("crontab", CRONTAB)
    (host.folder / "crontab").write_text(NOT_OURS)
    cron, one, two = Crontab(), entry_of(spec_file(tmp_path / "1")), entry_of(spec_file(tmp_path / "2"))
    assert cron.install(one)
    assert cron.install(two)
    assert not cron.install(one), "it is there already"
    assert host.crontab == NOT_OURS + line_of(one) + "\n" + line_of(two) + "\n"
    assert cron.installed() == {one.key, two.key}
    assert cron.remove(one.key)
    assert host.crontab == NOT_OURS + line_of(two) + "\n"
    assert not cron.remove(one.key)
    assert cron.remove(two.key)
    assert host.crontab == NOT_OURS


def test_an_older_entry_of_the_same_schedule_is_replaced(host: FakeHost, tmp_path: Path) -> None:
    host.has("crontab", CRONTAB)
    spec = spec_file(tmp_path)
    Crontab().install(entry_of(spec))
    assert Crontab().install(entry_of(spec, reports=tmp_path / "elsewhere"))
    assert host.crontab.count("abswitch-schedule") == 1
    assert f"--reports {tmp_path / 'elsewhere'}" in host.crontab


def test_bytes_of_others_that_are_no_text_come_back_as_they_were(host: FakeHost, tmp_path: Path) -> None:
    host.has("crontab", CRONTAB)
    (host.folder / "crontab").write_bytes(b"# caf\xe9\n\x0c\n")
    entry = entry_of(spec_file(tmp_path))
    Crontab().install(entry)
    Crontab().remove(entry.key)
    assert (host.folder / "crontab").read_bytes() == b"# caf\xe9\n\x0c\n"


def test_a_comment_about_an_entry_is_none(host: FakeHost, tmp_path: Path) -> None:
    host.has("crontab", CRONTAB)
    entry = entry_of(spec_file(tmp_path))
    (host.folder / "crontab").write_text(f"# was: {line_of(entry)}\n")
    assert Crontab().installed() == frozenset()
    assert not Crontab().remove(entry.key)


def test_what_crontab_says_is_told(host: FakeHost, tmp_path: Path) -> None:
    host.has("crontab", CRONTAB)
    (host.folder / "broken").touch()
    with pytest.raises(HostRefused, match="disk on fire"):
        Crontab().install(entry_of(spec_file(tmp_path)))
    assert "disk on fire" in (Crontab().why_not() or "")


def test_paths_that_no_line_can_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="printable"):
        entry_of(tmp_path / "two\nlines.yaml")
    with pytest.raises(InvalidInput, match="at most 990 characters"):
        line_of(entry_of(tmp_path / ("x" * 200) / ("y" * 200) / ("z" * 200) / ("w" * 240)))


# --- systemd --------------------------------------------------------------------------------------------------------


def test_timers_are_installed_and_removed(host: FakeHost, tmp_path: Path) -> None:
    host.has("systemctl", SYSTEMCTL)
    entry = entry_of(spec_file(tmp_path))
    timers = UserTimers()
    assert timers.install(entry)
    assert not timers.install(entry)
    assert host.units == [f"abswitch-{entry.key}.service", f"abswitch-{entry.key}.timer"]
    assert f"--user enable --now abswitch-{entry.key}.timer" in host.asked
    assert timers.installed() == {entry.key}
    assert timers.remove(entry.key)
    assert host.units == []
    assert f"--user disable --now abswitch-{entry.key}.timer" in host.asked
    assert not timers.remove(entry.key)


def test_units_of_others_are_left_alone(host: FakeHost) -> None:
    host.has("systemctl", SYSTEMCTL)
    folder = host.folder / "config/systemd/user"
    folder.mkdir(parents=True)
    (folder / "abswitch-mine.timer").write_text("[Timer]\nOnCalendar=daily\n")
    assert UserTimers().installed() == frozenset()
    assert not UserTimers().remove("mine")
    assert host.units == ["abswitch-mine.timer"]


def test_a_timer_that_cannot_be_enabled_leaves_nothing_behind(host: FakeHost, tmp_path: Path) -> None:
    host.has("systemctl", SYSTEMCTL)
    (host.folder / "no-enable").touch()
    with pytest.raises(HostRefused, match=r"masked.*nothing was installed"):
        UserTimers().install(entry_of(spec_file(tmp_path)))
    assert host.units == []


def test_units_can_be_removed_without_a_bus(host: FakeHost, tmp_path: Path) -> None:
    host.has("systemctl", SYSTEMCTL)
    entry = entry_of(spec_file(tmp_path))
    UserTimers().install(entry)
    (host.folder / "no-bus").touch()
    assert UserTimers().remove(entry.key)
    assert host.units == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze, which reads units, is not here")
def test_units_are_what_systemd_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "my project 100%"
    folder.mkdir()
    shown = UserTimers().shown(awkward(folder, sys.executable, "-c", SHOW))
    paths = []
    for part in shown.split("# " + str(tmp_path / "config"))[1:]:
        name, content = part.split("\n", 1)
        path = tmp_path / Path(name).name
        path.write_text(content)
        paths.append(path)
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "awkward" in line]
    assert (done.returncode, said) == (0, [])


# --- which one ------------------------------------------------------------------------------------------------------


def test_cron_comes_first_then_systemd_then_a_clear_error(host: FakeHost) -> None:
    with pytest.raises(HostRefused, match=r"no `crontab` program.*no `systemctl` program.*run-due"):
        host_named("auto")
    host.has("systemctl", SYSTEMCTL)
    assert host_named("auto").name == "systemd"
    host.has("crontab", CRONTAB)
    assert host_named("auto").name == "cron"
    assert host_named("systemd").name == "systemd"
    (host.folder / "no-bus").touch()
    with pytest.raises(HostRefused, match="No medium found"):
        host_named("systemd")
    assert [one.name for one in hosts()] == ["cron", "systemd"]


# --- the real crontab -----------------------------------------------------------------------------------------------


@pytest.fixture
def real_crontab() -> Iterator[None]:
    before = subprocess.run(["crontab", "-l"], capture_output=True, check=False)
    yield
    if before.returncode == 0:
        subprocess.run(["crontab", "-"], input=before.stdout, check=True)
    else:
        subprocess.run(["crontab", "-r"], capture_output=True, check=False)


@pytest.mark.skipif(
    shutil.which("crontab") is None or "CI" not in os.environ,
    reason="needs cron, and leave to change this user's crontab for a moment (CI=true)",
)
@pytest.mark.usefixtures("real_crontab")
def test_the_real_crontab_takes_the_entries(tmp_path: Path) -> None:
    entry = entry_of(spec_file(tmp_path / "100% mine"))
    before = Crontab().installed()
    assert Crontab().install(entry)
    assert not Crontab().install(entry)
    assert Crontab().installed() == before | {entry.key}
    listed = subprocess.run(["crontab", "-l"], capture_output=True, text=True, check=True).stdout
    assert line_of(entry) in listed.splitlines()
    assert Crontab().remove(entry.key)
    assert Crontab().installed() == before


# --- the environment of the runs ------------------------------------------------------------------------------------


def test_an_environment_file(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# secrets\n\nHOOK=https://chat.example.org/x?a=b\nexport QUOTED='a b'\nTWO=\"c # d\"\nEMPTY=\n")
    assert read_environment(path) == {
        "HOOK": "https://chat.example.org/x?a=b",
        "QUOTED": "a b",
        "TWO": "c # d",
        "EMPTY": "",
    }


@pytest.mark.parametrize("line", ["hunter2", "=hunter2", "A B=hunter2", "9A=hunter2"])
def test_a_bad_line_is_named_by_number_and_not_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "env"
    path.write_text(f"A=1\n{line}\n")
    with pytest.raises(InvalidInput, match="line 2") as refused:
        read_environment(path)
    assert "hunter2" not in str(refused.value)
