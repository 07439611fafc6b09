"""What was acknowledged is there afterwards, whatever happened; what was not may be missing, never half there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from abswitch.errors import StoreError
from abswitch.store.journal import Journal, Record


def bodies(journal: Journal) -> list[int]:
    return [entry.body["n"] for entry in journal.entries]


def written(path: Path, count: int, *, close: bool = True) -> bytes:
    """A journal with entries 0, 1, …; returns the file as an unclean end leaves it."""
    journal = Journal(path)
    for n in range(count):
        journal.append("move", {"n": n})
    content = path.read_bytes()
    journal.close()
    if not close:
        path.write_bytes(content)
    return content


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    written(tmp_path / "j", 5)
    again = Journal(tmp_path / "j")
    assert bodies(again) == [0, 1, 2, 3, 4] and again.clean
    assert [entry.sequence for entry in again.entries] == sorted(entry.sequence for entry in again.entries)
    again.append("move", {"n": 5})
    again.close()
    assert bodies(Journal(tmp_path / "j")) == [0, 1, 2, 3, 4, 5]


def test_a_new_journal_is_clean_and_one_that_was_not_closed_is_not(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j")
    assert first.clean and first.entries == ()
    first.close()
    written(tmp_path / "j", 1, close=False)
    assert not Journal(tmp_path / "j").clean


def test_nothing_is_kept_without_a_path() -> None:
    journal = Journal(None)
    journal.append("move", {"n": 1})
    journal.close()
    assert journal.entries == ()


def test_an_end_torn_anywhere_costs_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    content = written(tmp_path / "j", 3, close=False).rstrip(b"\0")
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(content)):
        (tmp_path / "j").write_bytes(content[:cut])
        journal = Journal(tmp_path / "j")
        assert bodies(journal) == [0, 1] and journal.damaged is None and not journal.clean
        journal.append("move", {"n": 9})
        journal.close()
        again = Journal(tmp_path / "j")
        assert bodies(again) == [0, 1, 9]
        again.close()


def test_damage_in_the_middle_is_told_and_the_file_is_kept(tmp_path: Path) -> None:
    content = written(tmp_path / "j", 3)
    damaged = content.replace(b'{"n":1}', b'{"n":7}')
    (tmp_path / "j").write_bytes(damaged)
    journal = Journal(tmp_path / "j")
    assert bodies(journal) == [0] and not journal.clean
    assert journal.damaged is not None and "line 3 of 4 is damaged" in journal.damaged
    assert (tmp_path / "j.damaged").read_bytes() == damaged


def test_what_is_no_longer_needed_is_dropped_when_it_is_opened(tmp_path: Path) -> None:
    written(tmp_path / "j", 100)
    size = (tmp_path / "j").stat().st_size

    def even(entries: object) -> list[Record]:
        return [entry for entry in entries if entry.body["n"] % 2 == 0]  # type: ignore[attr-defined]

    journal = Journal(tmp_path / "j", keep=even)
    assert bodies(journal) == list(range(0, 100, 2))
    journal.close()
    assert (tmp_path / "j").stat().st_size < 0.7 * size
    assert bodies(Journal(tmp_path / "j")) == list(range(0, 100, 2))


def test_it_is_open_in_one_place_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, holder = Journal(tmp_path / "j"), os.getpid()
    with pytest.raises(StoreError, match=r"open in this process, by another engine; .*await engine\.aclose\(\)"):
        Journal(tmp_path / "j")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", lambda: holder + 1)
        with pytest.raises(StoreError, match=f"open in process {holder}; close that engine first"):
            Journal(tmp_path / "j")
    journal.close()
    Journal(tmp_path / "j").close()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("opened", {"format": 99})
    journal.close()
    with pytest.raises(StoreError, match="has format 99"):
        Journal(tmp_path / "j")


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.close()
    journal.close()
    with pytest.raises(StoreError, match="is closed"):
        journal.append("move", {})


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": object()}])
def test_what_is_no_json_is_refused_and_changes_nothing(tmp_path: Path, body: dict[str, object]) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("move", {"n": 0})
    with pytest.raises((TypeError, ValueError)):
        journal.append("move", body)
    journal.close()
    assert bodies(Journal(tmp_path / "j")) == [0]


FULL = """
import resource, signal, sys
from pathlib import Path
from abswitch.errors import StoreError
from abswitch.store.journal import Journal
path = Path(sys.argv[1])
journal = Journal(path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
done = 0
try:
    while True:
        journal.append("move", {"n": done})
        done += 1
except StoreError as error:
    print(done, error)
"""


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the same write fails the same way."""
    ran = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "j")], capture_output=True, text=True, check=True)
    done, _, why = ran.stdout.partition(" ")
    assert int(done) > 3 and "could not be written" in why
    journal = Journal(tmp_path / "j")
    assert bodies(journal) == list(range(int(done))) and journal.damaged is None


APPENDING = """
import sys
from pathlib import Path
from abswitch.store.journal import Journal
journal = Journal(Path(sys.argv[1]))
n = 0
while True:
    journal.append("move", {"n": n})
    print(n, flush=True)
    n += 1
"""


@pytest.mark.parametrize("after", [1, 50, 200])
def test_a_killed_process_loses_no_acknowledged_entry(tmp_path: Path, after: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(tmp_path / "j")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        told = after + len(child.stdout.readlines())
    journal = Journal(tmp_path / "j")
    assert not journal.clean and journal.damaged is None
    assert bodies(journal)[:told] == list(range(told)), "and the lock of the killed process is gone"
    assert len(bodies(journal)) in (told, told + 1)


def test_an_entry_is_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    path = tmp_path / "j"
    journal = Journal(path)
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        synced.append(path.read_bytes())
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync)
    journal.append("move", {"to": "promoting"})
    assert len(synced) == 1 and b"promoting" in synced[0], "written first, then forced to the disk"
    journal.close()
