"""Writes one experiment as runs of Weights & Biases: the program that `WandbSink` starts for every job.

A process of its own, because the library keeps global state, starts a service beside itself and may have a run of the
user's open in the notebook. A job comes in on standard input, the links go out on standard output.

Runs are always written to a folder first, in W&B's offline mode, and then handed to its own `wandb sync` where there is
a server. A run's id is made from the operation and the arm, and what is written is all of the run: so writing it once
more replaces it, in the folder here, and at the server by W&B's rule for a run that comes again with the same id.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch.store.tracking import LOOK_PREFIX, WINDOW_PREFIX, TrackingLinks

if TYPE_CHECKING:
    from wandb import Run

_LONGEST_TAG, _LONGEST_PROJECT = 64, 128
_STEPS = (("windows", "window", WINDOW_PREFIX, 0), ("looks", "look", LOOK_PREFIX, 1))
_TABLE = "sampled_requests"
_TRACE_COLUMNS = ("request_id", "version", "prompt", "output", "error", "took_s", "first_token_s", "output_tokens")


def main() -> None:
    """Write, and upload where the job says so; exit status 1 with the reason on standard error."""
    job = json.load(sys.stdin)
    folder, body = Path(job["folder"]), job["body"]
    made = {arm["arm"]: _Arm(body, arm).write(folder) for arm in body["arms"]}
    if job["entity"] is not None:
        _upload(list(made.values()), job["entity"], folder)
    links = _links(body, list(made), folder, job["entity"], job["base_url"])
    sys.stdout.write(json.dumps(links.to_dict()))


def run_id(operation_id: str, arm: str) -> str:
    """The same for the same arm of the same operation."""
    return blake2b(f"{operation_id}/{arm}".encode(), digest_size=8).hexdigest()


def project_of(name: str) -> str:
    """The experiment's name as W&B takes it for a project: without `/ \\ # ? % :`."""
    return "".join("-" if letter in "/\\#?%:" else letter for letter in name)[:_LONGEST_PROJECT]


class _Arm:
    """One arm on its way into a folder."""

    def __init__(self, body: Mapping[str, Any], arm: Mapping[str, Any]) -> None:
        self._body, self._arm = body, arm
        self._id = run_id(body["operation_id"], arm["arm"])

    def write(self, folder: Path) -> Path:
        """Write the run; earlier ones of the same arm go once it is complete. Returns its folder."""
        import wandb

        earlier = list((folder / "wandb").glob(f"offline-run-*-{self._id}"))
        run = wandb.init(
            dir=folder,
            mode="offline",
            reinit="create_new",
            project=project_of(self._body["name"]),
            id=self._id,
            name=f"{self._arm['arm']} ({self._arm['version']})",
            group=self._body["operation_id"],
            job_type=self._arm["arm"],
            notes=self._body["note"],
            tags=self._tags(),
            config=self._config(),
            settings=_quiet(),
        )
        written = Path(run.settings.sync_dir)
        try:
            self._log(run)
            self._keep_files(run)
            run.finish(exit_code=0)
        except BaseException:
            run.finish(exit_code=1)
            shutil.rmtree(written)
            raise
        for folder_before in earlier:
            shutil.rmtree(folder_before)
        return written

    def _tags(self) -> list[str]:
        decision = self._arm["tags"].get("abswitch.decision", self._body["decision"])
        told = (self._arm["arm"], self._arm["version"], decision)
        return sorted({word[:_LONGEST_TAG] for word in told if word})

    def _config(self) -> dict[str, Any]:
        body = self._body
        told = {key: body[key] for key in ("operation_id", "decision", "rule", "reason", "plan_digest", "started_at_s")}
        told |= {"arm": self._arm["arm"], "version": self._arm["version"], "dataset": body["dataset"]}
        own = {f"abswitch.{key}": value for key, value in told.items() if value is not None}
        return {**body["tags"], **own, **self._arm["tags"], **self._arm["params"]}

    def _log(self, run: Run) -> None:
        for _, step, prefix, _ in _STEPS:
            run.define_metric(step, hidden=True)
            run.define_metric(f"{prefix}*", step_metric=step)
        for row in self._rows():
            run.log(row)
        traces = [trace for trace in self._body.get("traces") or () if trace["arm"] == self._arm["arm"]]
        if traces:
            run.log({_TABLE: _table(traces)})
        run.summary.update({key: _number(value) for key, value in self._arm["metrics"].items()})

    def _rows(self) -> Iterator[dict[str, Any]]:
        for key, step, prefix, first in _STEPS:
            for number, row in enumerate(self._arm[key], start=first):
                named = {prefix + name: _number(value) for name, value in row.items()}
                yield {step: number, **named} | (self._time(number) if step == "window" else {})

    def _time(self, window: int) -> dict[str, float]:
        return {"_timestamp": self._body["started_at_s"] + (window + 1) * self._body["window_s"]}

    def _keep_files(self, run: Run) -> None:
        import wandb

        artifact = wandb.Artifact(f"report-{self._id}", type="report")
        for path in map(Path, filter(None, (self._body["report"], *self._body["attachments"]))):
            if path.is_dir():
                artifact.add_dir(str(path))
            elif path.is_file():
                artifact.add_file(str(path))
            else:  # removed meanwhile; the numbers are worth publishing all the same
                run.config.update({"abswitch.report": f"missing when published: {path}"}, allow_val_change=True)
        if artifact.manifest.entries:
            run.log_artifact(artifact)


def _quiet() -> Any:
    """Nothing but what is published: no console, no code, no git, no statistics of the machine or of the library."""
    import wandb

    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="abswitch",
        program="abswitch",
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _table(traces: list[dict[str, Any]]) -> Any:
    import wandb

    scorers = sorted({name for trace in traces for name in trace["scores"]})
    rows = [[*map(trace.get, _TRACE_COLUMNS), *map(trace["scores"].get, scorers)] for trace in traces]
    return wandb.Table(columns=[*_TRACE_COLUMNS, *(f"score.{name}" for name in scorers)], data=rows)


def _upload(runs: list[Path], entity: str, folder: Path) -> None:
    """Have W&B's own command upload them. It ends with status 0 even where it failed: only its mark tells.

    It writes its log into the working directory, and finds the library and not the folder `wandb` there thanks to `-P`.
    """
    command = [sys.executable, "-P", "-m", "wandb", "sync", "--yes", "--entity", entity, *map(str, runs)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if ended.returncode or not all(list(run.glob("*.wandb.synced")) for run in runs):
        sys.exit(f"wandb sync: {' '.join((ended.stderr or ended.stdout).split())[-500:]}")


def _links(
    body: Mapping[str, Any], arms: list[str], folder: Path, entity: str | None, base_url: str | None
) -> TrackingLinks:
    runs = {arm: run_id(body["operation_id"], arm) for arm in arms}
    if entity is None or base_url is None:
        here = (folder / "wandb").as_uri()
        return TrackingLinks(experiment=here, compare=here, runs=runs, run_urls={}, sink="Weights & Biases")
    from wandb.util import app_url

    project = f"{app_url(base_url)}/{entity}/{project_of(body['name'])}"
    return TrackingLinks(
        experiment=project,
        compare=f"{project}/groups/{body['operation_id']}",
        runs=runs,
        run_urls={arm: f"{project}/runs/{each}" for arm, each in runs.items()},
        sink="Weights & Biases",
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


if __name__ == "__main__":
    main()
