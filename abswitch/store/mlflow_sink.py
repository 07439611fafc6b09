"""`MlflowSink`: experiments in an MLflow tracking store, a local SQLite file or a server.

MLflow is never on the request path, and need not be there: what is published waits in the store until it answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from abswitch.store.mlflow_lineage import link_template, log_dataset, log_traces
from abswitch.store.mlflow_server import FOR_GOOD, MlflowServer, quietly
from abswitch.store.mlflow_view import TAG, VIEW, saved_view
from abswitch.store.outbox import Refused, Unreachable
from abswitch.store.recorder import Recorder
from abswitch.store.sinks import OutboxSink
from abswitch.store.tracking import LOOK_PREFIX, WINDOW_PREFIX, TrackingLinks

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

DEFAULT_UI_URL = "http://127.0.0.1:5000"
_RUN_KEY = "abswitch.run_key"
_REPORT = "report"
_METRICS_PER_CALL, _WORDS_PER_CALL = 1000, 100  # MLflow's own limits of one log_batch
_LONGEST_VALUE = 6000


class MlflowSink(OutboxSink):
    """Publishes experiments to MLflow: one flat run per arm, the verdict as tags, the report as artifact.

    Args:
        tracking_uri: `sqlite:///folder/mlflow.db` (artifacts go to `folder/artifacts`), or a server's http(s) address.
        recorder: the store whose outbox holds what is to be published; jobs left by an earlier process are caught up.
        ui_url: where the MLflow interface is looked at, for links; by default the server's own address, or for SQLite
            the address that `make mlflow` serves.
        probe_timeout_s: how long a server may take to say that it is alive.

    Raises:
        InvalidInput: another kind of address. MLflow no longer writes to `file:` stores.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        recorder: Recorder,
        ui_url: str | None = None,
        probe_timeout_s: float = 2.0,
    ) -> None:
        self._server = MlflowServer(tracking_uri, probe_timeout_s=probe_timeout_s)
        self._ui_url = (ui_url or (self._server.uri if self._server.is_remote else DEFAULT_UI_URL)).rstrip("/")
        super().__init__(recorder, name="mlflow", target=f"MLflow at {self._server.uri}")

    @property
    def tracking_uri(self) -> str:
        """The address in use; a SQLite path is absolute."""
        return self._server.uri

    # --- the flusher's thread ---------------------------------------------------------------------------------------

    def deliver(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Publish a job; what an earlier attempt left is found and kept."""
        self._server.probe()
        client = self._server.client()
        from mlflow.exceptions import MlflowException

        try:
            published = _Publication(client, body, self._artifact_location)
            with quietly():
                links = published.run(self._ui_url)
            traces = body.get("traces") or ()
            log_traces(self._server.uri, published.experiment_id, body["operation_id"], links["runs"], traces)
            return links
        except MlflowException as error:
            if error.error_code in FOR_GOOD:
                raise Refused(str(error)) from error
            self._server.probe()  # a server that went away is waited for, not counted as a failed attempt
            raise

    @property
    def _artifact_location(self) -> str | None:
        """Beside a SQLite file, as MLflow's own default is the working directory; a server knows its own."""
        return None if self._server.is_remote else (self._server.file.parent / "artifacts").as_uri()


class _Publication:
    """One job on its way into MLflow. Every step finds what an earlier attempt left, so that a replay adds nothing."""

    def __init__(self, client: MlflowClient, body: Mapping[str, Any], artifact_location: str | None) -> None:
        self._client = client
        self._body = body
        self._artifact_location = artifact_location
        self._start_ms = round(body["started_at_s"] * 1000)
        end_s = body["ended_at_s"]
        self._end_ms = None if end_s is None else round(end_s * 1000)
        self.experiment_id = ""

    def run(self, ui_url: str) -> Mapping[str, Any]:
        """Publish and return links and run ids."""
        self.experiment_id = experiment_id = self._experiment()
        runs = {arm["arm"]: self._arm(experiment_id, arm) for arm in self._body["arms"]}
        self._design(experiment_id)
        return _links(ui_url, experiment_id, runs).to_dict()

    def _design(self, experiment_id: str) -> None:
        """The view that the links open, with the metrics of this job."""
        view = saved_view(self._body)
        if view is not None and self._client.get_experiment(experiment_id).tags.get(TAG) != view:
            self._client.set_experiment_tag(experiment_id, TAG, view)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._body["name"]
        for _ in range(2):
            found = self._client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage == "deleted":
                raise Refused(f"experiment {name!r} was deleted there; restore it, or publish under another name")
            if found is not None:
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(name, artifact_location=self._location(name)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # somebody else was quicker: look again
                    raise
        raise Unreachable(f"experiment {name!r} can neither be found nor created")

    def _location(self, name: str) -> str | None:
        base = self._artifact_location
        return None if base is None else f"{base}/{quote(name)}"

    def _arm(self, experiment_id: str, arm: Mapping[str, Any]) -> str:
        run_id = self._run_of(experiment_id, arm)
        self._log(run_id, arm)
        if self._body.get("dataset") is not None:
            log_dataset(self._client, run_id, self._body["dataset"])
        link_template(self._client, run_id, arm)
        for path in (self._body["report"], *(self._body.get("attachments") or ())):
            if path is not None:
                self._keep(run_id, Path(path))
        if self._end_ms is not None:
            self._client.set_terminated(run_id, status="FINISHED", end_time=self._end_ms)
        return run_id

    def _run_of(self, experiment_id: str, arm: Mapping[str, Any]) -> str:
        key = f"{self._body['operation_id']}/{arm['arm']}"
        if not self._runs_with(experiment_id, key):
            self._client.create_run(
                experiment_id,
                start_time=self._start_ms,
                run_name=f"{arm['arm']} ({arm['version']})",
                tags={_RUN_KEY: key},
            )
        # MLflow repeats a request whose answer was lost, which may create a run twice: the oldest is the one.
        first, *others = self._runs_with(experiment_id, key)
        for run_id in others:
            self._client.delete_run(run_id)
        return first

    def _runs_with(self, experiment_id: str, key: str) -> list[str]:
        query = f"tags.`{_RUN_KEY}` = '{key}'"  # both parts of the key are checked names: no quotes in them
        found = self._client.search_runs([experiment_id], query, order_by=["attributes.start_time ASC", "run_id ASC"])
        return [str(run.info.run_id) for run in found]

    def _log(self, run_id: str, arm: Mapping[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        for metrics in _chunks(list(self._metrics(arm)), _METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=metrics)
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in arm["params"].items()]
        tags = [RunTag(key, value[:_LONGEST_VALUE]) for key, value in self._tags(arm).items()]
        for words in _chunks(params, _WORDS_PER_CALL):
            self._client.log_batch(run_id, params=words)
        for words in _chunks(tags, _WORDS_PER_CALL):
            self._client.log_batch(run_id, tags=words)

    def _metrics(self, arm: Mapping[str, Any]) -> Iterator[Any]:
        """Totals at step 0, windows at their index; times come from the job, so that a replay repeats the points."""
        from mlflow.entities import Metric

        # Of points with one step MLflow shows the one with the latest time: a later look replaces the totals.
        total_ms = round(self._body["looked_at_s"] * 1000)
        window_ms = round(self._body["window_s"] * 1000)
        for key, value in arm["metrics"].items():
            yield Metric(key, _number(value), total_ms, 0)
        for step, window in enumerate(arm["windows"]):
            at_ms = self._start_ms + (step + 1) * window_ms
            for key, value in window.items():
                yield Metric(WINDOW_PREFIX + key, _number(value), at_ms, step)
        looks = arm.get("looks") or ()
        for number, look in enumerate(looks, start=1):
            at_ms = self._start_ms + round((total_ms - self._start_ms) * number / len(looks))
            for key, value in look.items():
                yield Metric(LOOK_PREFIX + key, _number(value), at_ms, number)

    def _tags(self, arm: Mapping[str, Any]) -> dict[str, str]:
        body = self._body
        verdict = {
            "abswitch.decision": body["decision"],
            "abswitch.rule": body["rule"],
            "abswitch.reason": body["reason"],
            "abswitch.plan_digest": body["plan_digest"],
            "mlflow.note.content": body["note"],
        }
        told = {key: value for key, value in verdict.items() if value is not None}
        own = {"abswitch.arm": arm["arm"], "abswitch.version": arm["version"]}
        return {**body["tags"], **told, **arm["tags"], **own, "abswitch.operation_id": body["operation_id"]}

    def _keep(self, run_id: str, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), _REPORT)
        elif path.is_file():
            self._client.log_artifact(run_id, str(path), _REPORT)
        else:  # removed before MLflow could be reached; the numbers are worth publishing all the same
            self._client.set_tag(run_id, "abswitch.report", f"missing when published: {path}")


def _links(ui_url: str, experiment_id: str, runs: Mapping[str, str]) -> TrackingLinks:
    run_ids = quote(json.dumps(list(runs.values()), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    here = f"{ui_url}/#/experiments/{experiment_id}/runs"
    return TrackingLinks(
        experiment=f"{here}?compareRunsMode=CHART&viewStateShareKey={VIEW}",
        compare=f"{ui_url}/#/compare-runs?runs={run_ids}&experiments={experiments}",
        runs=dict(runs),
        run_urls={arm: f"{here}/{run_id}" for arm, run_id in runs.items()},
    )


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
