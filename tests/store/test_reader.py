"""Other processes read while one writes; real files, real processes."""

from __future__ import annotations

import itertools
import json
import os
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

from abswitch.domain import ScoreRecord
from abswitch.errors import InvalidInput, StoreError
from abswitch.store import open_readonly
from abswitch.store.database import Database
from abswitch.store.published import GROWING, STATE, Manifest, Publisher, folder_of
from abswitch.store.recorder import Recorder
from abswitch.store.retention import Retention
from tests.patience import PATIENCE_S
from tests.store.rows import a_request, a_transition, an_operation

WRITER = """
    import sys, threading
    from abswitch.domain import ScoreRecord
    from abswitch.store.recorder import Recorder
    recorder = Recorder(sys.argv[1], flush_interval_s=0.02, publish_interval_s=0.05)
    pause, n = threading.Event(), 0
    while True:
        for _ in range(50):
            recorder.score(ScoreRecord(str(n), "exact", 1.0, None, float(n)))
            n += 1
        recorder.flush()
        print(n, flush=True)
        pause.wait(0.02)
"""


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def eventually(condition: object, timeout_s: float = PATIENCE_S) -> None:
    poll, end = threading.Event(), time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came"
        poll.wait(0.02)


def scores(path: Path) -> tuple[int, int, int]:
    with open_readonly(path) as reader:
        rows = reader.rows(
            "SELECT count(*), count(DISTINCT request_id), coalesce(max(scored_at_s), -1) + 1 FROM scores"
        )
    n, distinct, last = rows[0]
    return n, distinct, int(last)


def test_a_reader_sees_whole_states_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with writing(path) as process:
        eventually(lambda: scores(path)[0] > 0)
        seen = []
        with open_readonly(path) as reader:
            for _ in range(60):
                ((n, distinct, last),) = reader.rows(
                    "SELECT count(*), count(DISTINCT request_id), max(scored_at_s) + 1 FROM scores"
                )
                assert n == distinct == last, "a state with holes, or one row twice"
                assert reader.as_of_s is not None and time.time() - reader.as_of_s < 10
                seen.append(n)
                threading.Event().wait(0.02)
        assert seen == sorted(seen) and seen[-1] > seen[0], "it goes on while we look"
        assert process.poll() is None
        assert len(list(folder_of(path).glob("scores-*"))) < 400, "segments are merged"


def test_after_a_crash_the_file_itself_is_read_and_no_acknowledged_row_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with writing(path) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(20)][-1]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
    n, distinct, last = scores(path)
    assert n == distinct == last >= acknowledged
    with Recorder(path) as again:  # and whoever comes next writes on
        again.score(ScoreRecord("one more", "exact", 1.0, None, float(n)))
        again.flush()
    assert scores(path)[0] == n + 1


def test_after_an_orderly_end_readers_never_touch_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with Recorder(path) as recorder:
        recorder.request(a_request())
        recorder.transition(a_transition(), an_operation()).result(PATIENCE_S)
    manifest = Manifest.read(folder_of(path))
    assert manifest is not None and manifest.complete
    with open_readonly(path) as reader:
        assert reader.as_of_s is None
        assert reader.table("requests").request_id.tolist() == ["r1"]
        assert reader.query("SELECT strategy_config->>'traffic_percentage' AS p FROM operations").p.tolist() == ["25.0"]
        with Recorder(path) as recorder:  # an engine can be started under a reader
            recorder.request(a_request("r2"))
            recorder.flush()
        assert reader.query("SELECT count(*) AS n FROM requests").n[0] == 2


def test_every_table_reads_the_same_published_as_in_the_store(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with Recorder(path) as recorder:
        recorder.request(a_request())
        recorder.transition(a_transition(), an_operation()).result(PATIENCE_S)
        names = [row[0] for row in recorder.rows("SELECT table_name FROM duckdb_tables()")]
        described = {name: recorder.rows(f"SELECT column_name, column_type FROM (DESCRIBE {name})") for name in names}
        direct = {name: recorder.rows(f"SELECT * FROM {name}") for name in names if name != "writers"}
    assert sorted(names) == sorted((*GROWING, *STATE))
    with open_readonly(path) as reader:
        for name in names:
            assert reader.rows(f"SELECT column_name, column_type FROM (DESCRIBE {name})") == described[name]
        for name, rows in direct.items():
            assert reader.rows(f"SELECT * FROM {name}") == rows
        assert reader.rows("SELECT served_version FROM provenance") == [("v1",)]


def test_segments_merge_and_stay_whole(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s.duckdb", publish_interval_s=None, flush_interval_s=0.01) as recorder:
        publisher = Publisher(recorder._database)
        for i in range(300):
            recorder.score(ScoreRecord(str(i), "exact", 1.0, None, float(i)))
            recorder.flush()
            publisher.publish(state=False)
        manifest = Manifest.read(folder_of(tmp_path / "s.duckdb"))
        assert manifest is not None
        segments = manifest.segments["scores"]
        assert segments[0].first == 0 and segments[-1].last == 299
        assert all(a.last + 1 == b.first for a, b in itertools.pairwise(segments))
        assert {s.level for s in segments} == {0, 1, 2} and len(segments) < 32
        assert sum(s.rows for s in segments) == 300


def test_rows_that_went_are_gone_from_what_is_published(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with Recorder(path, publish_interval_s=0.02, retention=Retention(days=1)) as recorder:
        for i in range(10):
            recorder.request(a_request(f"r{i}", operation_id=None, admitted_at_s=1000.0 + 86_400 * i))
        recorder.flush()
        eventually(lambda: _published(path, "requests") == 10)
        assert recorder.retain(now_s=1000.0 + 86_400 * 9)["requests"] == 8
        recorder.request(a_request("late", operation_id=None, admitted_at_s=1000.0 + 86_400 * 9))
        recorder.flush()
        eventually(lambda: _published(path, "requests") == 3)
    with open_readonly(path) as reader:
        assert reader.rows("SELECT request_id FROM requests ORDER BY 1") == [("late",), ("r8",), ("r9",)]


def _published(path: Path, table: str) -> int:
    manifest = Manifest.read(folder_of(path))
    return -1 if manifest is None else sum(segment.rows for segment in manifest.segments.get(table, ()))


def test_another_store_of_the_same_name_shows_nothing_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with Recorder(path) as recorder:
        recorder.request(a_request("old"))
    path.unlink()
    with Recorder(path, publish_interval_s=60.0) as recorder:
        recorder.request(a_request("new"))
        recorder.request(a_request("newer"))
    with open_readonly(path) as reader:
        assert reader.rows("SELECT request_id FROM requests ORDER BY 1") == [("new",), ("newer",)]


def test_what_is_switched_off_is_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Recorder(path).close()
    with Recorder(path, publish_interval_s=None) as recorder:
        recorder.request(a_request())
        recorder.flush()
        with pytest.raises(StoreError, match="nothing of it is published"):
            open_readonly(path, patience_s=0.1)
    with open_readonly(path) as reader:  # closed: the file itself
        assert reader.rows("SELECT count(*) FROM requests") == [(1,)]


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Recorder(path).close()
    with open_readonly(path) as reader:
        for sql in ("DELETE FROM requests", "SELECT 1; DROP TABLE requests", "COPY requests TO 'x.csv'", ""):
            with pytest.raises(InvalidInput, match="one SELECT"):
                reader.query(sql)


def test_what_is_no_store_is_told_apart(tmp_path: Path) -> None:
    import duckdb

    with pytest.raises(StoreError, match="there is no store"):
        open_readonly(tmp_path / "nothing.duckdb")
    with pytest.raises(InvalidInput, match="path"):
        open_readonly(":memory:")
    with duckdb.connect(str(tmp_path / "other.duckdb")) as other:
        other.execute("CREATE TABLE sales (amount DOUBLE)")
    with pytest.raises(StoreError, match="not a store of abswitch"):
        open_readonly(tmp_path / "other.duckdb")
    Database(tmp_path / "old.duckdb").close()
    with duckdb.connect(str(tmp_path / "old.duckdb")) as old:
        old.execute("UPDATE meta SET schema_version = 2")
    with pytest.raises(StoreError, match="schema version 2"):
        open_readonly(tmp_path / "old.duckdb")


def test_a_damaged_manifest_is_as_none(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Recorder(path).close()
    (folder_of(path) / "manifest.json").write_text(json.dumps({"format": 99}))
    with open_readonly(path) as reader:
        assert reader.rows("SELECT count(*) FROM requests") == [(0,)]
    (folder_of(path) / "manifest.json").write_text("{ torn")
    with Recorder(path):
        pass
    manifest = Manifest.read(folder_of(path))
    assert manifest is not None and manifest.complete


def test_a_file_that_went_under_a_reader_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with Recorder(path, publish_interval_s=None) as recorder:
        publisher = Publisher(recorder._database)
        recorder.request(a_request())
        recorder.flush()
        publisher.publish()
        with open_readonly(path) as reader:
            first = reader._shown
            assert first is not None
            publisher.forget()
            publisher.publish()
            for file in (file for files in first[0].files().values() for file in files):
                (folder_of(path) / file).unlink(missing_ok=True)
            manifest = Manifest.read(folder_of(path))
            assert manifest is not None
            assert reader.rows("SELECT count(*) FROM requests") == [(1,)]
