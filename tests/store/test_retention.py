"""What may go goes; what an unfinished operation needs stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from abswitch.domain import ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.records import AssignmentRecord
from abswitch.rollout.operation import Phase
from abswitch.store import retention as module
from abswitch.store.recorder import Recorder
from abswitch.store.retention import Retention
from tests.patience import PATIENCE_S
from tests.store.rows import a_request, a_transition, an_operation

DAY_S = 86_400.0
NOW_S = 100 * DAY_S


def fill(recorder: Recorder, operation_id: str | None, tag: str) -> None:
    """One request, score and assignment for each of the last ten days."""
    for day in range(10):
        at_s, name = NOW_S - (day + 0.5) * DAY_S, f"{tag}{day}"
        recorder.request(a_request(name, operation_id=operation_id, admitted_at_s=at_s))
        recorder.score(ScoreRecord(name, "exact", 1.0, None, at_s))
        if operation_id is not None:
            recorder.assignment(
                AssignmentRecord(operation_id, "bot", name, "stable", "v1", 0.5, 0, 1, name, assigned_at_s=at_s)
            )


def kept(recorder: Recorder, table: str, tag: str) -> int:
    return int(recorder.rows(f"SELECT count(*) FROM {table} WHERE request_id LIKE ?", (f"{tag}%",))[0][0])


def test_old_rows_go_and_those_of_a_running_operation_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE_ROWS", 2)  # several slices
    with Recorder(":memory:", retention=Retention(days=3)) as recorder:
        fill(recorder, None, "free")
        fill(recorder, "op", "running")
        fill(recorder, "unheard-of", "unknown")  # its row may not be in yet: kept
        recorder.transition(a_transition(), an_operation(Phase.SHIFTING)).result(PATIENCE_S)
        assert recorder.retain(NOW_S) == {"requests": 7, "assignments": 0, "scores": 7, "health_samples": 0}
        assert [kept(recorder, "requests", tag) for tag in ("free", "running", "unknown")] == [3, 10, 10]
        assert [kept(recorder, "scores", tag) for tag in ("free", "running", "unknown")] == [3, 10, 10]
        recorder.transition(a_transition(2), an_operation(Phase.SUCCEEDED)).result(PATIENCE_S)
        assert recorder.retain(NOW_S) == {"requests": 7, "assignments": 7, "scores": 7, "health_samples": 0}
        assert [kept(recorder, table, "running") for table in ("requests", "scores", "assignments")] == [3, 3, 3]
        assert recorder.rows("SELECT count(*) FROM transitions") == [(2,)], "how it went is kept"
        assert set(recorder.retain(NOW_S).values()) == {0}


def test_the_oldest_requests_go_where_there_are_too_many() -> None:
    with Recorder(":memory:", retention=Retention(max_requests=4)) as recorder:
        fill(recorder, None, "free")
        assert recorder.retain(NOW_S)["requests"] == 6
        left = recorder.rows("SELECT request_id FROM requests ORDER BY 1")
        assert left == [("free0",), ("free1",), ("free2",), ("free3",)]


def test_without_a_bound_everything_stays() -> None:
    with Recorder(":memory:") as recorder:
        fill(recorder, None, "free")
        assert set(recorder.retain(NOW_S).values()) == {0}
        assert kept(recorder, "requests", "free") == 10


def test_it_happens_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    with Recorder(path) as recorder:
        fill(recorder, None, "free")
    with Recorder(path, retention=Retention(days=1)) as recorder:  # looked at as soon as it is open
        import threading

        poll = threading.Event()
        for _ in range(1000):
            if kept(recorder, "requests", "free") == 0:
                break
            poll.wait(0.01)
        assert kept(recorder, "requests", "free") == 0


@pytest.mark.parametrize(("field", "value"), [("days", 0.0), ("days", -1), ("max_requests", 0), ("max_requests", 1.5)])
def test_a_bound_must_be_positive(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=field):
        Retention(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
