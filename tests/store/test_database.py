"""How many threads DuckDB has: those of a large store only, and only while it is read."""

from __future__ import annotations

import os

import pytest

from abswitch.errors import StoreError
from abswitch.store.recorder import Recorder
from tests.store.rows import a_request

THREADS = "SELECT current_setting('threads')"
COPIES = "INSERT INTO requests SELECT r.* REPLACE (request_id || n AS request_id) FROM requests r, range(122880) t(n)"


def threads(recorder: Recorder) -> int:
    """Outside of any reading."""
    cursor = recorder._database.cursor()
    try:
        return int(cursor.execute(THREADS).fetchall()[0][0])
    finally:
        cursor.close()


def test_a_small_store_has_the_thread_of_its_reader() -> None:
    with Recorder(":memory:") as recorder:
        recorder.request(a_request())
        assert recorder.rows(THREADS) == [(1,)]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_a_large_one_has_all_until_its_last_reader_is_done() -> None:
    with Recorder(":memory:") as recorder:
        recorder.request(a_request())
        recorder.flush()
        cursor = recorder._database.cursor()
        cursor.execute(COPIES)
        cursor.close()
        assert threads(recorder) == 1
        with recorder._database._reading():
            most = recorder.rows(THREADS)[0][0]
            assert most > 1
            assert recorder.query(THREADS).iloc[0, 0] == threads(recorder) == most, "another reads still"
        assert threads(recorder) == 1
        with pytest.raises(StoreError):
            recorder.rows("SELECT no_such_column FROM requests")
        assert threads(recorder) == 1, "after a failure, too"
