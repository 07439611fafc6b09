"""`abswitch schedule` as a person types it, and as the host's entry calls it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from abswitch import cli
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.schedules.running import Schedule
from abswitch.experiments.schedules.state import key_of
from tests.experiments.schedules.hosts import CRONTAB, SYSTEMCTL, FakeHost
from tests.experiments.schedules.projects import spec_file

ROOT = Path(__file__).parents[1]
RARELY = {"cron": "30 2 29 2 *", "time_zone": "Europe/Berlin"}
ALWAYS = {"cron": "* * * * *"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, which is the working directory."""
    folder = tmp_path / "project"
    (folder / "experiments").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return FakeHost(tmp_path / "host", monkeypatch)


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Exit status, output and errors of `abswitch schedule …`."""
    capsys.readouterr()
    try:
        status = cli.main(["schedule", *map(str, arguments)])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    told = capsys.readouterr()
    return status, told.out, told.err


# --- list, next -----------------------------------------------------------------------------------------------------


def test_the_list_names_what_is_scheduled_and_what_is_wrong(
    project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    spec_file(project, "rare.yaml", schedule=RARELY)
    spec_file(project, "often.yaml", schedule=ALWAYS)
    spec_file(project, "by_hand.yaml", schedule=None)
    status, out, _ = said(capsys, "list")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert list(lines) == ["SPEC", "often.yaml", "rare.yaml"]
    assert "30 2 29 2 * Europe/Berlin" in lines["rare.yaml"]
    assert "29 02:30 CET" in lines["rare.yaml"].replace("-02-", " ")
    assert lines["rare.yaml"].endswith("none  no")
    assert " now " in lines["often.yaml"]
    (project / "experiments" / "broken.yaml").write_text("schedule: {cron: '61 * * * *'}\n")
    status, out, _ = said(capsys, "list")
    assert status == ExitStatus.BAD_SPEC
    assert "broken.yaml" in out
    assert "cannot be read" in out
    assert "rare.yaml" in out, "the others are listed all the same"


def test_the_list_tells_the_last_run_what_is_tried_again_and_who_starts_it(
    project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.has("crontab", CRONTAB)
    path = spec_file(project, schedule={**RARELY, "retries": 1})
    said(capsys, "install")
    shelf = Schedule(path).shelf
    plain = json.loads(shelf.state.read_text())
    at_s = plain["handled_until_s"]
    plain |= {
        "last": {"due_at_s": at_s, "number": 1, "started_at_s": at_s, "ended_at_s": at_s, "status": 60},
        "retry": {"due_at_s": at_s, "number": 2, "not_before_s": time.time() + 5e8},
        "skipped": 3,
    }
    shelf.state.write_text(json.dumps(plain))
    out = said(capsys, "list")[1]
    assert "60 regressed; 3 missed" in out
    assert ", attempt 2 " in out
    assert out.rstrip().endswith("cron")
    path.unlink()
    status, out, _ = said(capsys, "list")
    assert (status, "spec is gone" in out) == (0, True)


def test_an_empty_list_says_so(project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "list") == (0, "nothing is scheduled: no spec here has a `schedule:`\n", "")
    shutil.rmtree(project / "experiments")
    status, _, err = said(capsys, "list")
    assert status == ExitStatus.USAGE
    assert "experiments; name the specs" in err


def test_next_shows_what_the_clocks_do(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec_file(project, schedule={"cron": "30 2 * * *", "time_zone": "Europe/Berlin"})
    status, out, _ = said(capsys, "next", path, "-n", 3, "--after", "2026-03-27T12:00+01:00")
    assert status == 0
    assert out.splitlines() == [
        "Sat 2026-03-28 02:30 CET   Sat 2026-03-28 01:30 UTC",
        "Sun 2026-03-29 03:00 CEST   Sun 2026-03-29 01:00 UTC",
        "Mon 2026-03-30 02:30 CEST   Mon 2026-03-30 00:30 UTC",
    ]


def without_schedule(path: Path) -> Path:
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    del plain["schedule"]
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def test_next_without_names_is_about_every_scheduled_spec(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.yaml", "b.yaml"):
        spec_file(project, name, schedule={"cron": "0 3 * * *"})
    without_schedule(spec_file(project, "by_hand.yaml"))
    status, out, _ = said(capsys, "next", "-n", 1, "--after", "2026-03-27T12:00+00:00")
    assert (status, out.splitlines()) == (
        0, ["a.yaml", "Sat 2026-03-28 03:00 UTC", "b.yaml", "Sat 2026-03-28 03:00 UTC"]
    )  # fmt: skip


def test_a_named_spec_without_a_schedule_is_listed_as_such(
    project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = said(capsys, "list", without_schedule(spec_file(project)))
    assert "not scheduled" in out and "cannot be read" not in out


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        ([], ExitStatus.USAGE, "ACTION"),
        (["lst"], ExitStatus.USAGE, "lst"),
        (["next", "nowhere.yaml"], ExitStatus.NO_SPEC, "nowhere.yaml"),
        (["next", "x.yaml", "-n", "0"], ExitStatus.USAGE, "at least 1"),
        (["next", "x.yaml", "--after", "soon"], ExitStatus.USAGE, "got 'soon'"),
        (["install", "--with", "launchd"], ExitStatus.USAGE, "launchd"),
        (["install", "nowhere.yaml"], ExitStatus.NO_SPEC, "nowhere.yaml"),
        (["run-due", "nowhere.yaml"], ExitStatus.NO_SPEC, "nowhere.yaml"),
        (["run-due", "--unattended"], ExitStatus.USAGE, "--unattended"),
        (["run-due", "--env-file", "nowhere"], ExitStatus.USAGE, "--env-file nowhere"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], status: ExitStatus, named: str, project: Path, host: FakeHost,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found, out, err = said(capsys, *arguments)
    assert (found, out) == (status, "")
    assert named in err
    assert "Traceback" not in err


# --- run-due --------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec_file(project, "rare.yaml", schedule=RARELY)
    spec_file(project, "often.yaml", schedule=ALWAYS)
    status, out, _ = said(capsys, "run-due", "--dry-run")
    assert status == 0
    assert "often.yaml: would run now, due " in out
    assert "rare.yaml: nothing to do before " in out
    assert not (project / "reports").exists()


def test_a_spec_that_is_broken_does_not_hold_up_the_others(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec_file(project, "a_broken.yaml", schedule={"cron": "61 * * * *"})
    spec_file(project, "rare.yaml", schedule=RARELY)
    status, _, err = said(capsys, "run-due")
    assert status == ExitStatus.BAD_SPEC
    assert "a_broken.yaml: " in err
    assert "schedule.cron: got '61 * * * *'" in err
    assert "rare.yaml: nothing to do before" in err


def as_the_host_does(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """In another process, with the little environment that cron gives."""
    environment = {"HOME": str(path.parent), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "abswitch.cli", "schedule", "run-due", "--unattended", str(path), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/", timeout=240)


def test_unattended_it_runs_the_notebook_and_writes_a_log(project: Path) -> None:
    """The whole way on scripted versions: entry, schedule, papermill, verdict; and the next look costs nothing."""
    shutil.copytree(ROOT / "notebooks", project / "notebooks")
    path = spec_file(project, schedule=ALWAYS)
    done = as_the_host_does(path)
    log = (project / "reports" / ".schedules" / f"{key_of(path)}.log").read_text()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), log
    assert "SHIP v95" in log
    assert all(line[:4].isdigit() for line in log.replace("\r", "\n").splitlines() if "due " in line or "SHIP" in line)
    runs = [json.loads(one.read_text()) for one in (project / "reports" / "nightly").glob("*/run.json")]
    assert [run["status"] for run in runs] == ["finished"]
    assert runs[0]["occasion"].startswith(key_of(path))


def test_unattended_a_problem_is_told_once_and_an_idle_look_not_at_all(project: Path) -> None:
    path = spec_file(project, schedule=RARELY)
    log = Schedule(path).shelf.log
    assert as_the_host_does(path).returncode == 0
    assert log.read_text() == ""
    path.unlink()
    for _ in range(2):
        done = as_the_host_does(path)
        assert (done.returncode, done.stdout, done.stderr) == (ExitStatus.NO_SPEC, "", "")
    assert log.read_text().count(str(path)) == 1


def test_unattended_without_a_place_for_its_log_it_tells_the_host(project: Path) -> None:
    path = spec_file(project, schedule=RARELY)
    (project / "reports").write_text("in the way")
    done = as_the_host_does(path)
    assert (done.returncode, done.stdout) == (ExitStatus.CANNOT_WRITE, "")
    assert done.stderr.startswith(f"abswitch schedule: cannot write to {project}/reports/.schedules")


def test_a_glance_imports_nothing_heavy(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec_file(project, schedule=RARELY)
    assert said(capsys, "run-due", path)[0] == 0
    probe = (
        "import sys; from abswitch.cli import main; "
        "status = main(['schedule', 'run-due', '--unattended', sys.argv[1]]); "
        "heavy = ('pydantic', 'numpy', 'scipy', 'yaml', 'duckdb', 'papermill', 'filelock', 'cronsim'); "
        "print(status, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(path)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "0 []", done.stderr


# --- install, remove ------------------------------------------------------------------------------------------------


def test_install_and_remove(project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    host.has("crontab", CRONTAB)
    path = spec_file(project, schedule=RARELY)
    spec_file(project, "by_hand.yaml", schedule=None)
    status, out, _ = said(capsys, "install")
    assert (status, out) == (0, f"{path}: installed (cron)\n")
    assert Schedule(path).shelf.read() is not None, "its times count from now on"
    assert said(capsys, "install")[1] == f"{path}: was installed already (cron)\n"
    words = shlex.split(host.crontab.rstrip().removeprefix("* * * * * "), comments=True)
    assert words[:3] == ["cd", str(project), "&&"]
    assert words[-3:] == ["run-due", "--unattended", str(path)]
    path.unlink()  # the spec may be gone by then
    assert said(capsys, "remove")[1] == f"{path}: removed (cron)\n"
    assert host.crontab == ""
    assert said(capsys, "remove")[1] == "nothing was installed\n"


def test_an_entry_moves_to_another_host_program(
    project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.has("crontab", CRONTAB)
    host.has("systemctl", SYSTEMCTL)
    path = spec_file(project, schedule=RARELY)
    said(capsys, "install")
    assert said(capsys, "install", "--with", "systemd")[1] == f"{path}: installed (systemd)\n"
    assert host.crontab == ""
    assert len(host.units) == 2
    assert said(capsys, "remove", path)[1] == f"{path}: removed (systemd)\n"


def test_print_shows_and_installs_nothing(project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec_file(project, schedule=RARELY)
    status, out, _ = said(capsys, "install", "--print")
    assert (status, out.count("\n")) == (0, 1), "also where there is no cron"
    assert out.rstrip().endswith(f"# abswitch-schedule {key_of(path)}")
    status, out, _ = said(capsys, "install", "--print", "--with", "systemd")
    assert "OnCalendar=*-*-* *:*:00" in out
    assert not (project / "reports").exists()


def test_without_cron_and_systemd_it_says_so(project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    spec_file(project, schedule=RARELY)
    status, _, err = said(capsys, "install")
    assert status == ExitStatus.FAILED
    assert "no `crontab` program" in err
    assert "no `systemctl` program" in err


def test_a_bad_spec_is_not_installed_nor_are_the_others(
    project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.has("crontab", CRONTAB)
    spec_file(project, "a.yaml", schedule=RARELY)
    spec_file(project, "b.yaml", schedule={"cron": "30 2 * * *", "time_zone": "Mars/Phobos"})
    status, _, err = said(capsys, "install")
    assert status == ExitStatus.BAD_SPEC
    assert "Mars/Phobos" in err
    assert not (host.folder / "crontab").exists()


def test_an_address_that_the_host_will_not_give_is_pointed_out(
    project: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.has("crontab", CRONTAB)
    spec_file(project, schedule=RARELY, watch={"webhook_env": "CHAT_HOOK"})
    assert "posts alerts to $CHAT_HOOK, which the host does not give" in said(capsys, "install")[2]
    secrets = project / "schedule.env"
    secrets.write_text("CHAT_HOOK=http://127.0.0.1:9/x\n")
    secrets.chmod(0o644)
    err = said(capsys, "install", "--env-file", secrets)[2]
    assert "CHAT_HOOK" not in os.environ
    assert "CHAT_HOOK" not in err
    assert "others can read" in err
    assert f"--env-file {secrets}" in host.crontab
    secrets.write_text("oops\n")
    status, _, err = said(capsys, "install", "--env-file", secrets)
    assert (status, "line 1" in err) == (ExitStatus.USAGE, True)
