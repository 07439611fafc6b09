"""SQL, tables and files out of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from abswitch.errors import InvalidInput, StoreError
from abswitch.store.reading import TABLES
from abswitch.store.recorder import Recorder
from tests.store.rows import a_request


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(":memory:") as made:
        made.request(a_request("r1"))
        made.request(a_request("r2", total_s=0.5, output='a "quoted",\nline'))
        yield made


def test_every_table_and_view_can_be_had_whole(recorder: Recorder) -> None:
    there = recorder.rows(
        "SELECT table_name FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal"
    )
    assert sorted(TABLES) == sorted(name for (name,) in there)
    for name in TABLES:
        assert isinstance(recorder.table(name), pd.DataFrame)
    assert recorder.table("requests").request_id.tolist() == ["r1", "r2"]
    with pytest.raises(InvalidInput, match=r"table.*requests"):
        recorder.table("request")


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".csv.gz"])
def test_an_export_reads_back_the_same(recorder: Recorder, tmp_path: Path, ending: str) -> None:
    path = recorder.export("requests", tmp_path / "deep" / f"out{ending}")
    back = pd.read_parquet(path) if ending == ".parquet" else pd.read_csv(path)
    table = recorder.table("requests")
    assert list(back.columns) == list(table.columns)
    assert back.output.tolist() == table.output.tolist() and back.total_s.tolist() == table.total_s.tolist()
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing half-written stays behind"


def test_a_question_can_be_exported(recorder: Recorder, tmp_path: Path) -> None:
    target = tmp_path / "it's.csv"
    recorder.export("SELECT request_id FROM requests WHERE total_s > 0.1;", target)
    assert target.read_text().split() == ["request_id", "r2"]


def test_what_cannot_be_exported_leaves_the_file_as_it_was(recorder: Recorder, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("before")
    for source, error in (
        ("nonsense", InvalidInput),
        ("DROP TABLE requests", InvalidInput),
        ("SELECT nothing FROM requests", StoreError),
    ):
        with pytest.raises(error):
            recorder.export(source, target)
    with pytest.raises(InvalidInput, match=r"\.parquet"):
        recorder.export("requests", tmp_path / "out.xlsx")
    with pytest.raises(StoreError, match="cannot be written"):
        recorder.export("requests", target / "below-a-file.csv")
    assert target.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
