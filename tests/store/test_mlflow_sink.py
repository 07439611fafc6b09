"""Publishing to a real MLflow: a SQLite store, and a real server that is down, comes up, and is killed in between."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.store.mlflow_sink import MlflowSink
from abswitch.store.recorder import Recorder
from abswitch.store.tracking import ArmRun, legal_name
from tests.patience import PATIENCE_S
from tests.store.live_mlflow import Server, free_port, wait_until
from tests.store.tracked import an_experiment, with_lineage


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path / "s.duckdb") as made:
        yield made


@pytest.fixture
def make_sink() -> Iterator[Callable[..., MlflowSink]]:
    made: list[MlflowSink] = []

    def make(uri: str, recorder: Recorder) -> MlflowSink:
        made.append(MlflowSink(uri, recorder=recorder))
        return made[-1]

    yield make
    for sink in made:
        sink.close(timeout_s=5.0)


def runs_in(database: Path, name: str = "abswitch/bot") -> dict[str, Any]:
    """Every run of the experiment by its key, in all life-cycle stages; each key once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    keys = [run.data.tags["abswitch.run_key"] for run in runs]
    assert len(keys) == len(set(keys))
    return dict(zip(keys, runs, strict=True))


def check_lineage(uri: str, runs: Mapping[str, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    for arm, run_id in runs.items():
        curve = client.get_metric_history(run_id, "look/exact/difference")
        expected = [0.0] * 3 if arm == "stable" else [0.3, 0.31, 0.32]
        assert [(m.step, m.value) for m in curve] == [(i + 1, pytest.approx(x)) for i, x in enumerate(expected)]
        (made_from,) = client.get_run(run_id).inputs.dataset_inputs
        assert (made_from.dataset.name, made_from.dataset.digest) == ("sums", "d" * 36)
        assert "sums.jsonl" in made_from.dataset.source and "400" in made_from.dataset.profile
        (asked_with,) = json.loads(client.get_run(run_id).data.tags["mlflow.linkedPrompts"])
        version = "v1" if arm == "stable" else "v2"
        template = client.get_prompt_version(asked_with["name"], asked_with["version"])
        assert (template.name, template.template) == ("bot-template", f"{version}: {{{{prompt}}}}")
    assert len(client.search_prompt_versions("bot-template")) == 2, "each text once"
    experiment = client.get_experiment_by_name("abswitch/bot")
    traces = {
        trace.info.client_request_id: trace for trace in client.search_traces(locations=[experiment.experiment_id])
    }
    assert traces.keys() == {f"{arm}-{failed}" for arm in runs for failed in (False, True)}
    good, bad = traces["candidate-False"], traces["candidate-True"]
    assert [span.name for span in good.data.spans] == ["request", "queue", "generate"]
    assert good.data.spans[0].inputs == {"prompt": "1+2="} and good.data.spans[0].outputs == {"text": "3"}
    assert [span.parent_id is None for span in good.data.spans] == [True, False, False]
    assert good.info.tags["score.exact"] == "1" and good.info.execution_duration == 1500
    assert good.info.trace_metadata["mlflow.sourceRun"] == runs["candidate"]
    assert (good.info.state.value, bad.info.state.value) == ("OK", "ERROR")


# --- SQLite -----------------------------------------------------------------------------------------------------------


def test_arms_become_flat_sibling_runs(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink], tmp_path: Path
) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<h1>ship</h1>")
    sink = make_sink(f"sqlite:///{database}", recorder)
    assert sink.links("op-1") is None
    sink.publish(an_experiment(report=tmp_path / "report"))
    assert sink.flush()

    runs = runs_in(database)
    assert runs.keys() == {"op-1/stable", "op-1/candidate"}
    stable, candidate = runs["op-1/stable"], runs["op-1/candidate"]
    assert all("mlflow.parentRunId" not in run.data.tags for run in runs.values())
    assert stable.data.metrics.keys() == candidate.data.metrics.keys()
    assert candidate.data.metrics["exact"] == 0.91
    assert candidate.data.params["sampling.temperature"] == "1.0"
    assert candidate.data.params["engine.max_model_len"] == "256"
    assert stable.data.params.keys() == candidate.data.params.keys()
    tags = candidate.data.tags
    assert tags["abswitch.decision"] == "ship"
    assert tags["abswitch.plan_digest"] == "abc123"
    assert tags["abswitch.version"] == "v2"
    assert tags["mlflow.note.content"] == "**ship** v2"
    assert (candidate.info.status, candidate.info.run_name) == ("FINISHED", "candidate (v2)")
    assert (candidate.info.start_time, candidate.info.end_time) == (1_700_000_000_000, 1_700_000_300_000)


def test_windows_are_steps_and_artifacts_lie_beside_the_database(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    report = tmp_path / "index.html"
    report.write_text("<h1>ship</h1>")
    sink = make_sink(f"sqlite:///{database}", recorder)
    sink.publish(an_experiment(report=report))
    assert sink.flush()
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    links = sink.links("op-1")
    assert links is not None
    history = client.get_metric_history(links.runs["candidate"], "window/exact")
    assert [(m.step, round(m.value, 2)) for m in history] == [(0, 0.91), (1, 0.92), (2, 0.93), (3, 0.94), (4, 0.95)]
    assert [m.timestamp for m in history] == [1_700_000_000_000 + 60_000 * (i + 1) for i in range(5)]
    kept = list((database.parent / "artifacts").rglob("index.html"))
    assert len(kept) == 2
    assert all(links.runs[arm] in "".join(map(str, kept)) for arm in ("stable", "candidate"))
    experiment_id = client.get_experiment_by_name("abswitch/bot").experiment_id
    here = f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs"
    assert links.experiment == f"{here}?compareRunsMode=CHART&viewStateShareKey=abswitch"
    assert links.run_urls == {arm: f"{here}/{run_id}" for arm, run_id in links.runs.items()}
    assert links.compare.startswith("http://127.0.0.1:5000/#/compare-runs?runs=%5B%22")


def test_looks_prompts_and_sampled_requests_lie_with_the_runs_and_once(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink]
) -> None:
    sink = make_sink(f"sqlite:///{database}", recorder)
    for note in ("first", "again"):
        sink.publish(with_lineage(note=note))
        assert sink.flush(), sink.status()
    links = sink.links("op-1")
    assert links is not None
    check_lineage(f"sqlite:///{database}", links.runs)


def test_a_later_look_updates_the_same_runs(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink]
) -> None:
    sink = make_sink(f"sqlite:///{database}", recorder)
    first = an_experiment(decision="inconclusive", ended_at_s=None, looked_at_s=1_700_000_100.0)
    sink.publish(first)
    assert sink.flush()
    assert runs_in(database)["op-1/stable"].info.status == "RUNNING"
    later = [replace(arm, metrics={**arm.metrics, "exact": 0.1}) for arm in first.arms]
    sink.publish(an_experiment(arms=tuple(later)))
    sink.publish(an_experiment("op-2"))
    assert sink.flush()
    runs = runs_in(database)
    assert runs.keys() == {"op-1/stable", "op-1/candidate", "op-2/stable", "op-2/candidate"}
    assert runs["op-1/stable"].data.metrics["exact"] == 0.1
    assert runs["op-1/stable"].data.tags["abswitch.decision"] == "ship"
    assert sink.status().published == 3


def test_metric_keys_are_the_same_in_all_arms_and_legal(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink]
) -> None:
    arms = (
        ArmRun(arm="stable", version="v1", metrics={"rate(%)": 0.5}),
        ArmRun(arm="candidate", version="v2", metrics={"exact": None, "p95 [ms]": 7.0}),
    )
    sink = make_sink(f"sqlite:///{database}", recorder)
    sink.publish(an_experiment(arms=arms))
    assert sink.flush()
    runs = runs_in(database)
    for run in runs.values():
        assert run.data.metrics.keys() == {"exact", "p95 _ms_", "rate___"}
    assert runs["op-1/stable"].data.metrics["rate___"] == 0.5
    assert runs["op-1/candidate"].data.metrics["rate___"] != runs["op-1/candidate"].data.metrics["rate___"]  # NaN


def test_the_same_content_is_published_once(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink]
) -> None:
    sink = make_sink(f"sqlite:///{database}", recorder)
    assert sink.publish(an_experiment()) == sink.publish(an_experiment(looked_at_s=2_000_000_000.0))
    assert sink.flush()
    assert sink.status().published == 1


def test_a_replay_after_a_crash_adds_nothing(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink], tmp_path: Path
) -> None:
    """The crash between publishing and noting it: the job is back in the outbox, its runs are already there."""
    from mlflow import MlflowClient

    sink = make_sink(f"sqlite:///{database}", recorder)
    sink.publish(an_experiment())
    assert sink.flush()
    before = runs_in(database)
    recorder.execute(("UPDATE outbox SET published_at_s = NULL, result = NULL", ())).result(PATIENCE_S)
    assert sink.flush()
    after = runs_in(database)
    assert {key: run.info.run_id for key, run in after.items()} == {key: run.info.run_id for key, run in before.items()}
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    run_id = after["op-1/stable"].info.run_id
    assert len(client.get_metric_history(run_id, "window/exact")) == 5
    assert len(client.get_metric_history(run_id, "exact")) == 1


def test_a_run_that_was_created_twice_is_reduced_to_the_first(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink]
) -> None:
    """A create whose answer was lost is repeated by MLflow's own client: the server then holds two."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment_id = client.create_experiment("abswitch/bot")
    tags = {"abswitch.run_key": "op-1/stable"}
    first = client.create_run(experiment_id, start_time=1000, tags=tags).info.run_id
    client.create_run(experiment_id, start_time=2000, tags=tags)
    sink = make_sink(f"sqlite:///{database}", recorder)
    sink.publish(an_experiment())
    assert sink.flush()
    assert runs_in(database)["op-1/stable"].info.run_id == first


def test_a_job_that_mlflow_refuses_is_given_up_and_does_not_hold_up_the_next(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink], caplog: pytest.LogCaptureFixture
) -> None:
    sink = make_sink(f"sqlite:///{database}", recorder)
    sink.publish(an_experiment())
    arms = tuple(replace(arm, params={"version": "other"}) for arm in an_experiment().arms)
    with caplog.at_level(logging.WARNING, "abswitch.tracking"):
        sink.publish(an_experiment(arms=arms))  # parameters of a run never change
        sink.publish(an_experiment("op-2"))
        assert sink.flush()
    status = sink.status()
    assert (status.published, status.pending, status.given_up) == (2, 0, 1)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "Changing param values is not allowed" in caplog.text


def test_a_report_that_is_gone_does_not_hold_back_the_numbers(
    database: Path, recorder: Recorder, make_sink: Callable[..., MlflowSink], tmp_path: Path
) -> None:
    sink = make_sink(f"sqlite:///{database}", recorder)
    sink.publish(an_experiment(report=tmp_path / "gone.html"))
    assert sink.flush()
    run = runs_in(database)["op-1/stable"]
    assert run.data.tags["abswitch.report"].startswith("missing when published")
    assert run.data.metrics["exact"] == 0.58


def test_what_one_process_left_the_next_one_publishes(database: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    nobody = f"http://127.0.0.1:{free_port()}"
    with Recorder(store) as recorder:
        sink = MlflowSink(nobody, recorder=recorder)
        for i in range(3):
            sink.publish(an_experiment(f"op-{i}"))
        sink.close()
        assert sink.status().pending == 3
    with Recorder(store) as recorder:
        sink = MlflowSink(f"sqlite:///{database}", recorder=recorder)
        assert sink.flush()
        sink.close()
        assert (sink.status().published, sink.status().pending) == (3, 0)
    assert len(runs_in(database)) == 6


@pytest.mark.parametrize(
    "uri", ["file:///tmp/mlruns", "/tmp/mlruns", "mlruns", "", "sqlite://", "sqlite:///", "http://", None, 5]
)
def test_addresses_that_cannot_work_are_refused(recorder: Recorder, uri: Any) -> None:
    with pytest.raises(InvalidInput, match="tracking_uri"):
        MlflowSink(uri, recorder=recorder)


def test_names_are_made_legal() -> None:
    assert legal_name("p95(ms) [%]=#") == "p95_ms_ _____"
    assert legal_name("/a//../b/./c") == "a/b/c"
    assert legal_name("größe") == "gr__e"
    assert legal_name("///") == "_"
    with pytest.raises(InvalidInput, match="legal characters"):
        an_experiment(tags={"a%": "1", "a#": "2"}).to_dict()


def test_nothing_heavy_is_imported_before_there_is_something_to_publish(tmp_path: Path) -> None:
    code = """
        import sys
        from abswitch.store.mlflow_sink import MlflowSink
        from abswitch.store.recorder import Recorder
        with Recorder(sys.argv[1]) as recorder:
            sink = MlflowSink("sqlite:///" + sys.argv[1] + ".db", recorder=recorder)
            assert sink.flush()
            sink.close()
        print([name for name in ("mlflow", "pandas", "torch") if name in sys.modules])
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "s.duckdb")],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert ended.stdout.strip() == "[]"


# --- a server ---------------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_twice_gets_everything_exactly_once(
    server: Server,
    recorder: Recorder,
    make_sink: Callable[..., MlflowSink],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Down at first, and killed in the middle of what it then has to catch up with."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own patience is no part of what is tested
    caplog.set_level(logging.INFO, "abswitch.tracking")
    report = tmp_path / "index.html"
    report.write_text("<h1>ship</h1>")
    sink = make_sink(server.url, recorder)
    jobs, began_s = 5, time.monotonic()
    for i in range(jobs):
        sink.publish(with_lineage(operation_id=f"op-{i}", report=report))
        assert not sink.flush()
    assert time.monotonic() - began_s < 5.0  # nobody waited for MLflow's own retries
    status = sink.status()
    assert (status.published, status.pending) == (0, jobs) and status.last_error is not None
    (warning,) = caplog.records
    assert server.url in warning.getMessage() and "published later" in warning.getMessage()

    server.start()
    wait_until(lambda: sink.status().published >= 2)
    server.kill()
    assert sink.status().pending > 0
    server.start()
    wait_until(lambda: sink.status().pending == 0, 120.0)
    told = [record.levelname for record in caplog.records if record.name == "abswitch.tracking"]
    assert told == ["WARNING", "INFO"] * 2
    assert sink.status().last_error is None
    runs = runs_in(server.database)
    assert runs.keys() == {f"op-{i}/{arm}" for i in range(jobs) for arm in ("stable", "candidate")}
    check_runs(server, [run.info.run_id for run in runs.values()])
    check_traces(server, operations=jobs)
    links = sink.links("op-3")
    assert links is not None and links.compare.startswith(f"{server.url}/#/compare-runs?runs=")
    printed = capfd.readouterr()
    assert "View run" not in printed.out and "Waiting up to" not in printed.err


def check_runs(server: Server, run_ids: list[str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.url)
    for run_id in run_ids:
        assert client.get_run(run_id).info.status == "FINISHED"
        assert len(client.get_metric_history(run_id, "window/exact")) == 5
        assert [file.path for file in client.list_artifacts(run_id, "report")] == ["report/index.html"]


def check_traces(server: Server, operations: int) -> None:
    """Four requests of each operation, each of them once and whole."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.url)
    experiment_id = client.get_experiment_by_name("abswitch/bot").experiment_id
    found = client.search_traces(locations=[experiment_id], max_results=500)
    keys = {(trace.info.trace_metadata["mlflow.sourceRun"], trace.info.client_request_id) for trace in found}
    assert len(found) == len(keys) == 4 * operations
    assert all([span.name for span in trace.data.spans] == ["request", "queue", "generate"] for trace in found)
