"""The spool's file: durable, bounded, whole lines only, reserved ahead."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from abswitch.store.items import Event, Job, Refusal, Row, of_text, to_text
from abswitch.store.spool import RESERVED_BYTES, Spool, folder_of, left_behind
from tests.store.rows import a_request


def rows(*numbers: int) -> list[Event]:
    return [Event(n, Row("scores", (f"r{n}", "exact", 1.0, None, 2.0, "scorer", None))) for n in numbers]


def numbers(spool: Spool) -> list[int]:
    return [event.number for event in spool.events()]


def test_events_come_back_as_they_went() -> None:
    row = Event(7, Row("requests", a_request(output='größer 😀 "\n', total_s=0.1 + 0.2)))
    back = of_text(to_text(row))
    assert back.number == 7 and isinstance(back.item, Row)
    assert (back.item.table, tuple(back.item.values)) == ("requests", tuple(row.item.values))  # type: ignore[union-attr]
    job = Job((("INSERT INTO t VALUES (?)", (1,)),), Refusal("SELECT 1 WHERE ?", (True,), "no {0}"))
    again = of_text(to_text(Event(8, job))).item
    assert isinstance(again, Job)
    assert [(sql, tuple(params)) for sql, params in again.statements] == [("INSERT INTO t VALUES (?)", (1,))]
    assert again.refusal is not None and (again.refusal.sql, again.refusal.message) == ("SELECT 1 WHERE ?", "no {0}")


def test_what_was_appended_is_there_after_reopening(tmp_path: Path) -> None:
    spool = Spool.fresh(tmp_path / "s.duckdb")
    spool.append(rows(1, 2))
    spool.append(rows(3))
    assert numbers(spool) == [1, 2, 3] and spool.size_bytes > 0
    assert spool.path.stat().st_size == RESERVED_BYTES
    spool.close()
    (found,) = left_behind(tmp_path / "s.duckdb")
    assert numbers(found) == [1, 2, 3] and found.writer_id == spool.writer_id
    found.append(rows(4))
    assert numbers(found) == [1, 2, 3, 4]
    found.clear()
    assert numbers(found) == [] and found.size_bytes == 0
    found.close()
    assert not folder_of(tmp_path / "s.duckdb").exists()
    found.close()


def test_a_torn_line_was_never_there(tmp_path: Path) -> None:
    spool = Spool.fresh(tmp_path / "s.duckdb")
    spool.append(rows(1, 2, 3))
    end = spool.size_bytes
    spool.close()
    for damage in (lambda f: os.ftruncate(f, end - 10), lambda f: os.pwrite(f, b"X", end - 20)):
        file = os.open(spool.path, os.O_RDWR)
        damage(file)
        os.close(file)
        again = Spool(spool.path)
        assert numbers(again) == [1, 2]
        again.append(rows(4))
        assert numbers(again) == [1, 2, 4]
        again.clear()
        again.append(rows(1, 2, 3))
        again.close()


def test_it_does_not_grow_beyond_its_bound(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a.spool", largest_bytes=500)
    spool.append(rows(1, 2))
    with pytest.raises(OSError, match="beyond 500 bytes"):
        spool.append(rows(*range(3, 30)))
    assert numbers(spool) == [1, 2]
    spool.append(rows(3))
    assert numbers(spool) == [1, 2, 3]


def test_a_living_writers_spool_is_left_alone(tmp_path: Path) -> None:
    spool = Spool.fresh(tmp_path / "s.duckdb")
    spool.append(rows(1))
    assert list(left_behind(tmp_path / "s.duckdb")) == []
    with pytest.raises(BlockingIOError):
        Spool(spool.path)
    spool.close()


def test_what_cannot_be_written_leaves_it_as_it_was(tmp_path: Path) -> None:
    # The limit on the size of files makes a write fail half way, as a full disk does.
    code = """
        import resource, signal, sys
        from pathlib import Path
        from abswitch.store.spool import Spool
        from tests.store.test_spool import numbers, rows
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        spool = Spool(Path(sys.argv[1]), reserved_bytes=0)
        spool.append(rows(1, 2))
        resource.setrlimit(resource.RLIMIT_FSIZE, (spool.size_bytes + 150, resource.RLIM_INFINITY))
        try:
            spool.append(rows(3, 4, 5, 6))
        except OSError as error:
            print("ERRNO", error.errno)
        print(numbers(spool))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        spool.append(rows(3))
        print(numbers(spool))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.spool")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert ended.stdout.split("\n")[:3] == [f"ERRNO {errno.EFBIG}", "[1, 2]", "[1, 2, 3]"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert signal.SIGXFSZ
