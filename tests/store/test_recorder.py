"""The recorder against a real DuckDB file: order, durability, a full queue, a full disk, a locked file."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from abswitch.domain import ModelConfig, ModelVersion, RequestRecord, RouteRecord, ScoreRecord
from abswitch.errors import InvalidInput, StoreError
from abswitch.rollout.operation import Phase
from abswitch.store.database import SCHEMA_VERSION
from abswitch.store.recorder import PlanRecord, Recorder, VerdictRecord
from tests.patience import PATIENCE_S
from tests.store.rows import a_request, a_transition, an_operation


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path / "evidence" / "store.duckdb", flush_interval_s=0.02) as made:
        yield made


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def test_rows_come_back_as_they_were_given(recorder: Recorder) -> None:
    full = a_request("r1")
    empty = a_request("r2", operation_id=None, served_version=None, first_token_s=None, prompt_tokens=None, output=None)
    recorder.request(full)
    recorder.request(empty)
    recorder.score(ScoreRecord("r1", "exact", 1.0, None, 2.0))
    recorder.score(ScoreRecord("r1", "judge", None, "ValueError: no", 2.0))
    recorder.route(RouteRecord("bot", 1, None, 0, "stable", "v1", 1.0, 1.0, 2.0))
    frame = recorder.query("SELECT * FROM requests ORDER BY request_id")
    assert list(frame.columns) == list(RequestRecord._fields)
    got = frame.iloc[0].to_dict()
    assert {name: None if pd.isna(value) else value for name, value in got.items()} == full._asdict()
    assert frame.isna().loc[1, ["operation_id", "served_version", "first_token_s", "prompt_tokens", "output"]].all()
    assert recorder.query("SELECT count(*) AS n FROM scores WHERE value IS NULL").n[0] == 1
    assert recorder.query("SELECT version FROM routes").version.tolist() == ["v1"]


def test_a_transition_is_committed_with_its_operation(recorder: Recorder) -> None:
    recorder.transition(a_transition(1), an_operation()).result(PATIENCE_S)
    recorder.transition(a_transition(2), an_operation(Phase.ABORTED)).result(PATIENCE_S)
    # no flush in between: another connection to the same database sees what was committed
    state = recorder.query("SELECT phase, strategy, strategy_config->>'traffic_percentage' AS share FROM operations")
    assert state.values.tolist() == [["aborted", "ab_test", "25.0"]]
    assert recorder.query("SELECT sequence FROM transitions ORDER BY 1").sequence.tolist() == [1, 2]


def test_what_was_accepted_before_a_durable_call_is_committed_with_it(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s.duckdb", flush_interval_s=60.0) as recorder:  # the interval never comes
        for i in range(1000):
            recorder.request(a_request(f"r{i}"))
        recorder.transition(a_transition()).result(PATIENCE_S)
        assert recorder.stats().written == 1001
        assert recorder.stats().queued == 0


def test_rows_are_written_within_the_interval_without_being_asked(recorder: Recorder) -> None:
    recorder.request(a_request())
    poll = threading.Event()
    for _ in range(500):
        if recorder.stats().written == 1:
            break
        poll.wait(0.01)
    assert recorder.stats().written == 1


def test_versions_plans_and_verdicts_are_state(recorder: Recorder) -> None:
    config = ModelConfig(model_id="bot", model="/models/a", engine_args={"max_model_len": 256})
    recorder.version(ModelVersion(version="v1", config=config, metadata={"a": 1})).result(PATIENCE_S)
    recorder.version(ModelVersion(version="v1", config=config, metadata={"a": 2})).result(PATIENCE_S)
    rows = recorder.query(
        "SELECT version, metadata->>'a' AS a, config->'engine_args'->>'max_model_len' AS len FROM model_versions"
    )
    assert rows.values.tolist() == [["v1", "2", "256"]]
    recorder.verdict(VerdictRecord("op", 1, "inconclusive", "budget", "too few", {}, 1.0))
    recorder.verdict(VerdictRecord("op", 2, "ship", "sequence", "better", {"lift": 0.1}, 2.0)).result(PATIENCE_S)
    assert recorder.query("SELECT decision FROM verdicts ORDER BY look").decision.tolist() == ["inconclusive", "ship"]


def test_a_plan_cannot_be_changed(recorder: Recorder) -> None:
    recorder.plan(PlanRecord("op", "abc", {"primary": "exact"}, 1.0)).result(PATIENCE_S)
    recorder.plan(PlanRecord("op", "abc", {"primary": "exact"}, 2.0)).result(PATIENCE_S)
    recorder.request(a_request())
    changed = recorder.plan(PlanRecord("op", "xyz", {"primary": "latency_s"}, 3.0))
    recorder.request(a_request("r2"))
    with pytest.raises(StoreError, match="committed to plan abc"):
        changed.result(PATIENCE_S)
    assert recorder.query("SELECT digest, at_s FROM plans").values.tolist() == [["abc", 1.0]]
    assert recorder.query("SELECT count(*) AS n FROM requests").n[0] == 2  # its neighbours in the batch are kept
    assert recorder.stats().rejected == 1


def test_metadata_that_is_not_json_is_refused_before_anything_is_queued(recorder: Recorder) -> None:
    config = ModelConfig(model_id="bot", model="/models/a")
    with pytest.raises(InvalidInput, match="metadata"):
        recorder.version(ModelVersion(version="v1", config=config, metadata={"a": object()}))
    assert recorder.stats().accepted == 0


def test_a_malformed_row_does_not_take_its_neighbours_along(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "abswitch.store"):
        for i in range(20):
            recorder.request(a_request(f"r{i}", total_s="soon" if i in {7, 9} else 0.5))
        recorder.flush()
    stats = recorder.stats()
    assert (stats.written, stats.rejected, stats.flush_errors) == (18, 2, 0)
    assert sum("refused a row" in r.getMessage() for r in caplog.records) == 1
    assert recorder.query("SELECT count(DISTINCT request_id) AS n FROM requests").n[0] == 18


def test_a_full_queue_drops_counts_and_tells_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "abswitch.store"),
        Recorder(tmp_path / "s.duckdb", capacity=10, flush_interval_s=60.0) as recorder,
    ):
        for i in range(25):
            recorder.request(a_request(f"r{i}"))
        recorder.route(RouteRecord("bot", 1, None, 0, "stable", "v1", 1.0, 1.0, 2.0))  # routes are never dropped
        recorder.flush()
        stats = recorder.stats()
        assert (stats.written, stats.dropped, stats.accepted) == (11, 15, 11)
        assert recorder.query("SELECT request_id FROM requests").request_id.tolist() == [f"r{i}" for i in range(10)]
    assert [r.getMessage() for r in caplog.records if "full" in r.getMessage()] == [
        f"{tmp_path / 's.duckdb'}: its queue of 10 rows is full, further rows are counted and dropped"
    ]


def test_many_threads_write_and_read_at_once(recorder: Recorder) -> None:
    def write(name: int) -> None:
        for i in range(500):
            recorder.request(a_request(f"{name}-{i}"))

    counts: list[int] = []

    def read() -> None:
        counts.extend(int(recorder.query("SELECT count(*) AS n FROM requests").n[0]) for _ in range(10))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == sorted(counts)
    assert recorder.query("SELECT count(DISTINCT request_id) AS n FROM requests").n[0] == 2000
    assert recorder.stats().written == 2000


def test_rows_of_one_thread_keep_their_order(recorder: Recorder) -> None:
    for i in range(10_000):
        recorder.request(a_request(f"{i:05d}"))
    stored = recorder.query("SELECT request_id FROM requests").request_id.tolist()
    assert stored == sorted(stored)
    assert len(stored) == 10_000


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM requests",
        "INSERT INTO meta VALUES (1, 2, 'x')",
        "SELECT 1; SELECT 2",
        "COPY requests TO '/tmp/never-written.csv'",
        "SET threads = 1",
        "DROP TABLE requests",
        "ATTACH '/tmp/other.duckdb'",
        "selec 1",
        "",
    ],
)
def test_query_takes_one_reading_statement(recorder: Recorder, sql: str) -> None:
    with pytest.raises(InvalidInput, match="one SELECT statement"):
        recorder.query(sql)


def test_a_write_hidden_in_a_select_changes_nothing(recorder: Recorder) -> None:
    recorder.request(a_request())
    with pytest.raises(StoreError, match="read-only"):
        recorder.query("WITH gone AS (DELETE FROM requests RETURNING *) SELECT * FROM gone")
    assert recorder.query("FROM requests SELECT count(*) AS n").n[0] == 1


def test_query_takes_parameters_and_names_what_failed(recorder: Recorder) -> None:
    recorder.request(a_request())
    assert len(recorder.query("SELECT * FROM requests WHERE arm = ?", ["stable"])) == 1
    assert len(recorder.query("SELECT * FROM requests WHERE arm = $arm", {"arm": "other"})) == 0
    with pytest.raises(StoreError, match="no_such_column"):
        recorder.query("SELECT no_such_column FROM requests")


def test_close_is_idempotent_and_later_use_says_so(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "s.duckdb", flush_interval_s=60.0)
    recorder.request(a_request())
    recorder.close()
    recorder.close()
    recorder.request(a_request("late"))
    assert recorder.stats().dropped == 1
    with pytest.raises(StoreError, match="is closed"):
        recorder.transition(a_transition()).result(1)
    with pytest.raises(StoreError, match="is closed"):
        recorder.query("SELECT 1")
    with Recorder(tmp_path / "s.duckdb") as again:
        assert again.query("SELECT request_id FROM requests").request_id.tolist() == ["r1"]


def test_memory_keeps_nothing() -> None:
    with Recorder(":memory:") as one, Recorder(":memory:") as other:
        one.request(a_request())
        assert one.path is None
        assert one.query("SELECT count(*) AS n FROM requests").n[0] == 1
        assert other.query("SELECT count(*) AS n FROM requests").n[0] == 0


def test_a_file_open_in_this_process_is_refused(recorder: Recorder) -> None:
    assert recorder.path is not None
    with pytest.raises(StoreError, match="already open in this process"):
        Recorder(recorder.path)
    recorder.request(a_request())
    assert recorder.query("SELECT count(*) AS n FROM requests").n[0] == 1


def test_a_file_open_in_another_process_is_refused_naming_it(recorder: Recorder) -> None:
    code = """
        import sys
        from abswitch.store.recorder import Recorder
        try:
            Recorder(sys.argv[1])
        except Exception as error:
            print(type(error).__name__, error)
    """
    told = run_python(code, recorder.path).stdout
    assert told.startswith("StoreError")
    assert str(recorder.path) in told
    assert f"PID {os.getpid()}" in told


def test_a_forgotten_close_loses_nothing(tmp_path: Path) -> None:
    code = """
        import sys
        from abswitch.store.recorder import Recorder
        from abswitch.domain import ScoreRecord
        recorder = Recorder(sys.argv[1], flush_interval_s=60.0)
        for i in range(5000):
            recorder.score(ScoreRecord(str(i), "exact", 1.0, None, 0.0))
    """
    ended = run_python(code, tmp_path / "s.duckdb")
    assert (ended.returncode, ended.stderr) == (0, "")
    with Recorder(tmp_path / "s.duckdb") as again:
        assert again.query("SELECT count(*) AS n FROM scores").n[0] == 5000


def test_a_killed_process_loses_no_committed_row(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from abswitch.store.recorder import Recorder
        from abswitch.domain import ScoreRecord
        recorder = Recorder(sys.argv[1], flush_interval_s=60.0)
        for i in range(5000):
            recorder.score(ScoreRecord(str(i), "exact", 1.0, None, 0.0))
        recorder.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(code, tmp_path / "s.duckdb").returncode == -9
    with Recorder(tmp_path / "s.duckdb") as again:
        assert again.query("SELECT count(*) AS n FROM scores").n[0] == 5000


def test_a_full_disk_is_waited_out(tmp_path: Path) -> None:
    # The process limits the size of its own files, so that writes fail as they would on a full disk.
    code = """
        import logging, resource, signal, sys, threading
        from pathlib import Path
        from abswitch.store.recorder import Recorder
        from abswitch.domain import ScoreRecord
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="LOG %(message)s")
        path = Path(sys.argv[1])
        recorder = Recorder(path, flush_interval_s=0.02)
        recorder.score(ScoreRecord("first", "exact", 1.0, None, 0.0))
        recorder.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1000, resource.RLIM_INFINITY))
        for i in range(20_000):
            recorder.score(ScoreRecord(f"score-of-request-{i}", "exact", 1.0, None, 0.0))
        poll = threading.Event()
        while recorder.stats().flush_errors < 3:
            poll.wait(0.01)
        try:
            recorder.flush(timeout_s=0.05)
        except Exception as error:
            print("FLUSH", type(error).__name__, error)
        print("STATS", recorder.stats())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        recorder.flush()
        counts = recorder.query("SELECT count(DISTINCT request_id) AS d, count(*) AS n FROM scores")
        print("COUNT", counts.values.tolist())
        recorder.close()
    """
    ended = run_python(code, tmp_path / "s.duckdb")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("LOG ") == 2  # the store and its spool, once each
    assert "rows are kept and tried again" in ended.stdout
    assert "FLUSH StoreError" in ended.stdout
    assert "File too large" in ended.stdout
    assert "COUNT [[20001, 20001]]" in ended.stdout


def test_a_disk_that_stays_full_ends_with_an_error_that_counts(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from abswitch.store import recorder as module
        from abswitch.domain import ScoreRecord, TransitionRecord
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        module._CLOSE_TIMEOUT_S = 0.3
        path = Path(sys.argv[1])
        recorder = module.Recorder(path, flush_interval_s=0.02)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1000, resource.RLIM_INFINITY))
        for i in range(20_000):
            recorder.score(ScoreRecord(f"score-of-request-{i}", "exact", 1.0, None, 0.0))
        future = recorder.transition(TransitionRecord("op", 1, "bot", "Start", "a", "b", 0, 0.0, "r" * 5000, 5.0))
        try:
            recorder.close()
        except Exception as error:
            print("CLOSE", type(error).__name__, error)
        print("FUTURE", type(future.exception(0)).__name__)
        recorder.close()
    """
    ended = run_python(code, tmp_path / "s.duckdb")
    assert ended.returncode == 0, ended.stderr
    assert "CLOSE StoreError" in ended.stdout
    assert "FUTURE StoreError" in ended.stdout


@pytest.mark.parametrize(("field", "value"), [("capacity", 0), ("capacity", True), ("flush_interval_s", 0.0)])
def test_bad_arguments_are_named_before_a_file_is_made(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=field):
        Recorder(tmp_path / "s.duckdb", **{field: value})  # type: ignore[arg-type]  # wrong on purpose
    assert not (tmp_path / "s.duckdb").exists()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    import duckdb

    (tmp_path / "text.duckdb").write_text("not a database, but long enough to look at" * 200)
    with pytest.raises(StoreError, match=r"cannot open .*text\.duckdb"):
        Recorder(tmp_path / "text.duckdb")
    with duckdb.connect(str(tmp_path / "other.duckdb")) as other:
        other.execute("CREATE TABLE sales (amount DOUBLE)")
    with pytest.raises(StoreError, match=r"something else.*sales"):
        Recorder(tmp_path / "other.duckdb")


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    import duckdb

    Recorder(tmp_path / "s.duckdb").close()
    with duckdb.connect(str(tmp_path / "s.duckdb")) as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
    with pytest.raises(StoreError, match="schema version 99"):
        Recorder(tmp_path / "s.duckdb")
    with duckdb.connect(str(tmp_path / "s.duckdb")) as connection:  # the refusal let go of the file
        connection.execute(f"UPDATE meta SET schema_version = {SCHEMA_VERSION}")
    Recorder(tmp_path / "s.duckdb").close()


def test_epochs_go_on_where_an_earlier_process_left_off(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s.duckdb") as recorder:
        assert recorder.last_epochs() == {}
        for epoch in (1, 2, 3):
            recorder.route(RouteRecord("bot", epoch, None, 0, "stable", "v1", 1.0, 1.0, 2.0))
        recorder.route(RouteRecord("other", 7, None, 0, "stable", "v1", 1.0, 1.0, 2.0))
        assert recorder.last_epochs() == {"bot": 3, "other": 7}


def test_a_database_that_was_given_up_is_opened_again(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s.duckdb", flush_interval_s=0.02) as recorder:
        recorder.request(a_request("before"))
        recorder.flush()
        connection = recorder._writer._committer._connection
        assert connection is not None
        connection.close()  # as a fatal error leaves it
        recorder.request(a_request("after"))
        recorder.flush()
        assert recorder.stats().flush_errors == 1
        found = recorder.query("SELECT request_id FROM requests ORDER BY 1").request_id.tolist()
        assert found == ["after", "before"]
