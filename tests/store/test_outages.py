"""The store cannot be written for a while: nothing waits for it, and everything arrives exactly once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from abswitch.domain import ModelConfig, ModelVersion, ScoreRecord
from abswitch.errors import StoreError
from abswitch.store.committer import Committer
from abswitch.store.recorder import PlanRecord, Recorder
from abswitch.store.spool import folder_of
from tests.patience import PATIENCE_S
from tests.store.rows import a_request, a_transition, an_operation

HOLDER = """
    import sys, duckdb
    connection = duckdb.connect(sys.argv[1])
    print("held", flush=True)
    sys.stdin.readline()
"""


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


@contextmanager
def held_by_another_process(path: Path) -> Iterator[None]:
    process = subprocess.Popen(python(HOLDER, path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield
    finally:
        process.communicate("\n", timeout=200)


def score(n: int) -> ScoreRecord:
    return ScoreRecord(f"r{n}", "exact", 1.0, None, float(n))


def counted(recorder: Recorder) -> tuple[int, int]:
    return recorder.rows("SELECT count(*), count(DISTINCT request_id) FROM scores")[0]


def eventually(condition: object, timeout_s: float = PATIENCE_S) -> None:
    poll, end = threading.Event(), time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came"
        poll.wait(0.01)


def test_a_file_that_another_process_holds_costs_nothing_but_time(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with Recorder(path) as first:
        first.score(score(0))
    with held_by_another_process(path):
        recorder = Recorder(path, flush_interval_s=0.01, spool_while_held=True)
        for n in range(1, 10_001):
            recorder.score(score(n))
        # what is durable is so in the spool, and is answered at once
        recorder.transition(a_transition(), an_operation()).result(PATIENCE_S)
        recorder.version(ModelVersion(version="v1", config=ModelConfig(model_id="bot", model="/a"))).result(PATIENCE_S)
        stats = recorder.stats()
        assert (stats.written, stats.spooled, stats.queued, stats.missing) == (0, 10_002, 0, 0)
        with pytest.raises(StoreError, match="held by another process"):
            recorder.flush(timeout_s=0.1)
    recorder.flush()
    stats = recorder.stats()
    assert (stats.written, stats.spooled, stats.queued, stats.missing) == (10_002, 0, 0, 0)
    assert counted(recorder) == (10_001, 10_001)
    order = [int(row[0]) for row in recorder.rows("SELECT scored_at_s FROM scores ORDER BY rowid")]
    assert order == list(range(10_001)), "in the order of the calls"
    assert recorder.rows("SELECT count(*) FROM transitions")[0] == (1,)
    assert [v.version for v in recorder.versions()] == ["v1"]
    recorder.close()
    assert not folder_of(path).exists()


def test_unless_asked_for_a_held_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Recorder(path).close()
    with held_by_another_process(path), pytest.raises(StoreError, match=r"held by another process.*PID \d+"):
        Recorder(path)
    Recorder(path).close()


def test_a_process_that_ends_meanwhile_leaves_its_rows_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Recorder(path).close()
    with held_by_another_process(path):
        with Recorder(path, flush_interval_s=0.01, spool_while_held=True) as recorder:
            for n in range(1000):
                recorder.score(score(n))
        assert recorder.stats().spooled == 1000 and recorder.stats().lost == 0
    with Recorder(path) as again:
        assert again.stats().recovered == 1000
        assert counted(again) == (1000, 1000)
    with Recorder(path) as third:
        assert third.stats().recovered == 0
        assert counted(third) == (1000, 1000)


def test_killed_while_it_spools_no_acknowledged_row_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Recorder(path).close()
    code = """
        import os, signal, sys
        from abswitch.store.recorder import Recorder
        from tests.store.rows import a_transition
        from tests.store.test_outages import score
        recorder = Recorder(sys.argv[1], flush_interval_s=0.01, spool_while_held=True)
        for n in range(20_000):
            recorder.score(score(n))
        recorder.transition(a_transition()).result(60)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with held_by_another_process(path):
        assert subprocess.run(python(code, path), check=False, timeout=200).returncode == -signal.SIGKILL
    with Recorder(path) as again:
        assert counted(again) == (20_000, 20_000)
        assert again.rows("SELECT count(*) FROM transitions") == [(1,)]


def test_killed_at_any_moment_every_row_arrives_once(tmp_path: Path) -> None:
    """The holder comes and goes, the writer is killed at moments of its own; what was acknowledged is there once."""
    path = tmp_path / "s.duckdb"
    code = """
        import sys
        from abswitch.store.recorder import Recorder
        from abswitch.domain import ScoreRecord
        from tests.store.rows import a_transition
        life = int(sys.argv[2])
        recorder = Recorder(sys.argv[1], flush_interval_s=0.005, spool_while_held=True, publish_interval_s=0.01)
        n = 0
        while True:
            for _ in range(500):
                recorder.score(ScoreRecord(f"{life}-{n}", "exact", 1.0, None, 0.0))
                n += 1
            recorder.transition(a_transition(n)).result(60)
            print(n, flush=True)
    """
    Recorder(path).close()
    acknowledged = {}
    for life in range(6):
        lines = 2 + 3 * life
        process = subprocess.Popen(python(code, path, life), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if life % 2:
            process.stdout.readline()
        read = [process.stdout.readline() for _ in range(lines)]
        os.kill(process.pid, signal.SIGKILL)
        read += [line for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        acknowledged[life] = max(int(line) for line in read)
    with Recorder(path) as again:
        for life, n in acknowledged.items():
            total, distinct = again.rows(
                "SELECT count(*), count(DISTINCT request_id) FROM scores WHERE request_id LIKE ?", (f"{life}-%",)
            )[0]
            assert total == distinct >= n


def test_a_commit_that_only_seemed_to_fail_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, failures = Committer.commit, iter([True] * 3)

    def commit_then_fail(self: Committer, *arguments: object) -> None:
        commit(self, *arguments)  # type: ignore[arg-type]
        if next(failures, False):
            raise OSError("the answer got lost")

    monkeypatch.setattr(Committer, "commit", commit_then_fail)
    with Recorder(tmp_path / "s.duckdb", flush_interval_s=0.01) as recorder:
        for n in range(100):
            recorder.score(score(n))
            recorder.flush()
        assert counted(recorder) == (100, 100)
        assert recorder.stats().written == 100 and recorder.stats().flush_errors == 3


def test_a_spool_that_was_applied_but_not_cleared_is_not_applied_again(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Recorder(path).close()
    with held_by_another_process(path):
        with Recorder(path, flush_interval_s=0.01, spool_while_held=True) as recorder:
            for n in range(100):
                recorder.score(score(n))
        (spool,) = folder_of(path).iterdir()
        shutil.copy(spool, tmp_path / spool.name)
    Recorder(path).close()
    folder_of(path).mkdir(exist_ok=True)
    shutil.copy(tmp_path / spool.name, spool)  # as if the process had died between the commit and the clearing
    with Recorder(path) as again:
        assert counted(again) == (100, 100)
        assert again.stats().recovered == 100  # dealt with, though nothing was written


def test_a_different_plan_that_waited_in_the_spool_is_refused_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with Recorder(path) as recorder:
        recorder.plan(PlanRecord("op", "abc", {}, 1.0)).result(PATIENCE_S)
    with held_by_another_process(path):
        recorder = Recorder(path, flush_interval_s=0.01, spool_while_held=True)
        recorder.plan(PlanRecord("op", "xyz", {}, 2.0)).result(PATIENCE_S)
    recorder.flush()
    assert recorder.rows("SELECT digest FROM plans") == [("abc",)]
    assert recorder.stats().rejected == 1 and recorder.missing_since(0.0) == 1
    recorder.close()


def test_what_is_missing_is_remembered_by_the_store(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    began_s = time.time()
    with Recorder(path, flush_interval_s=0.01) as recorder:
        recorder.request(a_request("bad", total_s="soon"))
        recorder.flush()
        recorder.request(a_request("good"))
    with Recorder(path) as again:
        assert again.missing_since(began_s) == 1
        assert again.missing_since(time.time() + 10) == 0
        assert again.rows("SELECT row_count, reason FROM gaps") == [(1, "rejected")]


FULL_DISK = """
    import sys, threading, time
    from pathlib import Path
    from abswitch.store.recorder import Recorder
    from abswitch.domain import ScoreRecord
    from tests.store.rows import a_transition
    disk = Path(sys.argv[1])
    recorder = Recorder(disk / "s.duckdb", flush_interval_s=0.01, publish_interval_s=0.05)
    recorder.score(ScoreRecord("first", "exact", 1.0, None, 0.0))
    recorder.flush()
    filler = (disk / "filler").open("wb", buffering=0)
    try:
        while True:
            filler.write(b"x" * 65536)
    except OSError as error:
        print("FULL", error.errno)
    longest_s = 0.0
    for n in range(30_000):
        start = time.perf_counter()
        recorder.score(ScoreRecord(f"score-of-request-{n}", "exact", 1.0, None, 0.0))
        longest_s = max(longest_s, time.perf_counter() - start)
    recorder.transition(a_transition()).result(60)
    poll = threading.Event()
    while not recorder.stats().flush_errors:
        poll.wait(0.01)
    stats = recorder.stats()
    print("MEANWHILE", stats.spooled > 0, stats.missing, stats.lost)
    print("LONGEST", longest_s)
    filler.close()
    (disk / "filler").unlink()
    recorder.flush()
    print("COUNT", recorder.rows("SELECT count(*), count(DISTINCT request_id) FROM scores")[0])
    print("STATS", recorder.stats().missing, recorder.stats().spooled)
    recorder.close()
"""


def small_disk(folder: Path) -> list[str]:
    """What to put before a command so that it finds a real file system of 24 MiB in the folder.

    In a mount namespace of its own, so that nothing stays behind. Skips the test where nothing may be mounted.
    """
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=24m tmpfs {folder} && exec "$@"'
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system can be mounted here; test_recorder limits the size of files instead")
    return inside


def test_a_full_disk_fails_nothing_and_everything_arrives(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    ended = subprocess.run(
        [*small_disk(disk), *python(FULL_DISK, disk)], capture_output=True, text=True, check=False, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert "FULL 28" in ended.stdout
    assert "MEANWHILE True 0 0" in ended.stdout
    assert "COUNT (30001, 30001)" in ended.stdout
    assert "STATS 0 0" in ended.stdout
    longest_s = float(ended.stdout.split("LONGEST ")[1].split()[0])
    assert longest_s < 5.0, "the request path waited for the disk"
