"""Every tracking sink against the one contract, and several used as one."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from abswitch import SwitchingEngine
from abswitch.errors import InvalidInput
from abswitch.store.mlflow_sink import MlflowSink
from abswitch.store.recorder import Recorder
from abswitch.store.sinks import SeveralSinks, together
from abswitch.store.wandb_sink import WandbSink, checked_target
from tests.store.live_mlflow import free_port, wait_until
from tests.store.live_wandb import serving
from tests.store.sink_contract import Place, SeenRun, check_sink
from tests.store.tracked import an_experiment, with_lineage
from tests.store.wandb_files import WandbRun, runs_in

DOCS = Path(__file__).parents[2] / "docs" / "mlflow.md"


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path / "s.duckdb") as made:
        yield made


def test_mlflow_fulfils_the_contract(database: Path, recorder: Recorder, tmp_path: Path) -> None:
    uri = f"sqlite:///{database}"
    check_sink(Place(lambda store: MlflowSink(uri, recorder=store), lambda: _in_mlflow(uri)), recorder, tmp_path)


def test_wandb_fulfils_the_contract(recorder: Recorder, tmp_path: Path) -> None:
    folder = tmp_path / "offline"
    check_sink(Place(lambda store: WandbSink(folder, recorder=store), lambda: _in_wandb(folder)), recorder, tmp_path)


def test_a_wandb_run_tells_what_it_is_and_nothing_else(recorder: Recorder, tmp_path: Path) -> None:
    sink = WandbSink(tmp_path / "runs", recorder=recorder)
    sink.publish(with_lineage(tags={"team": "a"}))
    assert sink.flush(60.0), sink.status()
    sink.close()
    runs = {run.name: run for run in runs_in(sink.folder)}
    run = runs["candidate (v2)"]
    assert (run.project, run.group, run.notes, run.exit_code) == ("abswitch-bot", "op-1", "**ship** v2", 0)
    assert run.tags == ("candidate", "ship", "v2")
    assert run.config["prompt_template"] == "v2: {prompt}" and run.config["team"] == "a"
    assert run.config["abswitch.plan_digest"] == "abc123"
    assert run.config["abswitch.dataset"] == {
        "name": "sums", "source": {"kind": "jsonl", "path": "sums.jsonl"}, "digest": "d" * 64, "rows": 400,
    }  # fmt: skip
    # Neither the console, nor code, packages, git or the machine's statistics.
    assert run.kinds <= {"header", "run", "telemetry", "metric", "config", "history", "summary", "artifact", "files",
                         "use_artifact", "exit", "final", "footer", "request"}  # fmt: skip
    assert not list(run.folder.rglob("requirements.txt")) + list(run.folder.rglob("*.py"))
    assert "metadata" not in "".join(path.name for path in run.folder.rglob("*"))


def test_nothing_of_wandb_is_loaded_here_nor_left_running(recorder: Recorder, tmp_path: Path) -> None:
    """The caller may have a run of its own; its settings of the library are none of ours."""
    code = """
        import os, sys, psutil
        from abswitch.store.recorder import Recorder
        from abswitch.store.wandb_sink import WandbSink
        from tests.store.tracked import an_experiment
        with Recorder(sys.argv[1] + "/s.duckdb") as recorder:
            sink = WandbSink(sys.argv[1] + "/runs", recorder=recorder)
            sink.publish(an_experiment())
            assert sink.flush(60.0), sink.status()
            sink.close()
        def in_there(process):
            try:
                return sys.argv[1] in process.environ().get("WANDB_DATA_DIR", "")
            except psutil.Error:
                return False
        print("wandb" in sys.modules, [process.pid for process in psutil.process_iter() if in_there(process)])
    """
    environment = os.environ | {"WANDB_MODE": "disabled", "WANDB_PROJECT": "mine", "WANDB_DIR": str(tmp_path / "mine")}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "its")],
        env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert ended.stdout.splitlines() == ["False []"], ended.stderr
    assert {run.project for run in runs_in(tmp_path / "its" / "runs")} == {"abswitch-bot"}
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    "target", ["", "ftp://host/me", "https://api.wandb.ai", "https://", "https://a/b?c=d", 5, None]
)
def test_targets_that_cannot_work_are_refused(target: Any, recorder: Recorder) -> None:
    with pytest.raises(InvalidInput, match="wandb"):
        WandbSink(target, recorder=recorder)


def test_targets_are_folders_or_a_server_with_an_entity() -> None:
    assert checked_target("runs/here") == (None, None, Path("runs/here"))
    assert checked_target(Path("runs")) == (None, None, Path("runs"))
    assert checked_target("https://api.wandb.ai/my-team/") == ("https://api.wandb.ai", "my-team", None)
    assert checked_target("http://127.0.0.1:8080/base/me") == ("http://127.0.0.1:8080/base", "me", None)


def test_without_the_library_it_says_what_to_install(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abswitch.store.wandb_sink.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"pip install abswitch\[wandb\]"):
        WandbSink("runs", recorder=recorder)


def test_a_wandb_server_that_is_away_gets_everything_exactly_once(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "disabled")  # the caller's own affair
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    port = free_port()
    sink = WandbSink(f"http://127.0.0.1:{port}/me", recorder=recorder)
    experiment = with_lineage(operation_id="op-1")
    sink.publish(experiment)
    assert not sink.flush(10.0)
    status = sink.status()
    assert (status.published, status.pending, status.given_up) == (0, 1, 0) and "refused" in str(status.last_error)
    with serving(port) as server:
        server.refuse = True
        with pytest.raises(RuntimeError, match="wandb sync"):
            sink.deliver(json.loads(json.dumps(experiment.to_dict())))
        assert server.runs == {}
        server.refuse = False
        wait_until(lambda: sink.status().pending == 0)
        sink.deliver(json.loads(json.dumps(experiment.to_dict())))  # as after a crash before it was noted
        links = sink.links("op-1")
        assert links is not None and links.compare == f"{server.url}/me/abswitch-bot/groups/op-1"
        assert links.run_urls["stable"] == f"{server.url}/me/abswitch-bot/runs/{links.runs['stable']}"
        assert server.runs.keys() == set(links.runs.values())
        assert server.runs[links.runs["candidate"]]["groupName"] == "op-1"
        rows = server.history(links.runs["candidate"])
        windows = [(row["window"], round(row["window/exact"], 2)) for row in rows if "window" in row]
        assert windows == [(0, 0.91), (1, 0.92), (2, 0.93), (3, 0.94), (4, 0.95)]
        assert [row["look"] for row in rows if "look" in row] == [1, 2, 3]
        assert len(server.keys) == 1, "the caller's key"
    sink.close()
    assert len(runs_in(sink.folder)) == 2
    assert not list(here.iterdir()), "nothing is left in the caller's working directory"


def test_what_one_process_left_the_next_one_publishes(recorder: Recorder, tmp_path: Path) -> None:
    sink = WandbSink(f"http://127.0.0.1:{free_port()}/me", recorder=recorder)
    sink.publish(an_experiment())
    sink.close()
    assert sink.status().pending == 1
    again = WandbSink(tmp_path / "runs", recorder=recorder)
    assert again.flush(60.0)
    assert len(runs_in(tmp_path / "runs")) == 2
    again.close()


def test_a_program_that_hangs_is_ended_and_its_job_waits(recorder: Recorder, tmp_path: Path) -> None:
    sink = WandbSink(tmp_path / "runs", recorder=recorder, timeout_s=0.05)  # not even Python starts in that
    with pytest.raises(RuntimeError, match=r"longer than 0\.05 s"):
        sink.deliver(an_experiment().to_dict())
    sink.close()


def test_the_documented_query_leads_to_the_runs(recorder: Recorder, tmp_path: Path) -> None:
    (query,) = re.findall(r"```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    sink = WandbSink(tmp_path / "runs", recorder=recorder)
    sink.publish(an_experiment())
    assert sink.flush(60.0)
    sink.close()
    found = recorder.query(query, {"operation_id": "op-1"})
    assert sorted(found["arm"]) == ["candidate", "stable"]
    assert set(found["run_id"]) == {run.run_id for run in runs_in(tmp_path / "runs")}


def test_one_that_is_down_holds_up_no_other(database: Path, recorder: Recorder, tmp_path: Path) -> None:
    down = MlflowSink(f"http://127.0.0.1:{free_port()}", recorder=recorder)
    both = together([down, WandbSink(tmp_path / "runs", recorder=recorder)])
    assert isinstance(both, SeveralSinks) and both.names == ("mlflow", "wandb")
    both.publish(an_experiment())
    assert not both.flush(60.0)
    status = both.status()
    assert (status.published, status.pending) == (1, 1) and "refused" in str(status.last_error)
    links = both.links("op-1")
    assert links is not None and links.sink == "Weights & Biases"
    both.close(10.0)
    assert together([]) is None and together([down]) is down
    with MlflowHere(database, recorder) as up:
        assert up.flush(60.0)
    rows = recorder.rows("SELECT sink, arm, run_id IS NOT NULL FROM tracking_links ORDER BY ALL")
    assert rows == [(sink, arm, True) for sink in ("mlflow", "wandb") for arm in ("candidate", "stable")]


async def test_an_engine_takes_both(database: Path, tmp_path: Path) -> None:
    async with SwitchingEngine(
        store=tmp_path / "e.duckdb", mlflow=f"sqlite:///{database}", wandb=tmp_path / "runs"
    ) as engine:
        assert engine.tracking is not None and engine.tracking.names == ("mlflow", "wandb")
    with pytest.raises(InvalidInput, match="wandb"):
        SwitchingEngine(store=tmp_path / "f.duckdb", wandb="https://api.wandb.ai")
    with Recorder(tmp_path / "f.duckdb"):
        pass  # nothing stayed open


class MlflowHere:
    """A sink on the database, closed at the end."""

    def __init__(self, database: Path, recorder: Recorder) -> None:
        self._sink = MlflowSink(f"sqlite:///{database}", recorder=recorder)

    def __enter__(self) -> MlflowSink:
        return self._sink

    def __exit__(self, *_: object) -> None:
        self._sink.close()


# --- looking into them ------------------------------------------------------------------------------------------------


def _in_mlflow(uri: str) -> Mapping[tuple[str, str], SeenRun]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment_id = client.get_experiment_by_name("abswitch/bot").experiment_id
    runs = client.search_runs([experiment_id])
    traces = client.search_traces(locations=[experiment_id])
    seen = {}
    for run in runs:
        run_id, tags = run.info.run_id, run.data.tags
        curves = {
            key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
            for key in run.data.metrics
        }
        (one,) = run.inputs.dataset_inputs or (None,)
        seen[tags["abswitch.operation_id"], tags["abswitch.arm"]] = SeenRun(
            run_id=run_id,
            name=run.info.run_name,
            metrics=run.data.metrics,
            curves={key: points for key, points in curves.items() if key.startswith(("window/", "look/"))},
            params=run.data.params,
            words=frozenset(tags.values()),
            files=frozenset(Path(file.path).name for file in client.list_artifacts(run_id, "report")),
            dataset=None if one is None else one.dataset.name,
            requests=sum(trace.info.trace_metadata["mlflow.sourceRun"] == run_id for trace in traces),
        )
    assert len(seen) == len(runs)
    return seen


def _in_wandb(folder: Path) -> Mapping[tuple[str, str], SeenRun]:
    runs = runs_in(folder)
    seen = {(run.group, run.config["abswitch.arm"]): _seen(run) for run in runs}
    assert len(seen) == len(runs)
    return seen


def _seen(run: WandbRun) -> SeenRun:
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in run.history:
        for step in ("window", "look"):
            for key in row:
                if step in row and key.startswith(f"{step}/"):
                    curves.setdefault(key, []).append((row[step], float(row[key])))
    tables = (run.folder / "files").rglob("*.table.json")
    return SeenRun(
        run_id=run.run_id,
        name=run.name,
        metrics={
            key: math.nan if value is None else float(value)
            for key, value in run.summary.items()
            if "sampled_requests" not in key
        },
        curves=curves,
        params={key: value for key, value in run.config.items() if not key.startswith(("abswitch.", "_"))},
        words=frozenset(run.tags),
        files=frozenset(Path(file).name for file in run.artifacts.get("report", ())),
        dataset=run.config.get("abswitch.dataset", {}).get("name"),
        requests=sum(len(json.loads(path.read_text())["data"]) for path in tables),
    )
