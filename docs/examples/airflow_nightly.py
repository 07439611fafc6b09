"""The nightly gate as an Airflow DAG, by PapermillOperator (apache-airflow-providers-papermill, Airflow 3).

The worker's Python has abswitch in it. Airflow's retries go on with the run that failed: it belongs to the DAG run, and
what was answered is not asked again. One slot in the pool `gpu_0` keeps other work off the accelerator.
"""

from __future__ import annotations

from pathlib import Path

import pendulum
from airflow.providers.papermill.operators.papermill import PapermillOperator
from airflow.sdk import dag, task

PROJECT = Path("/srv/experiments")
SPEC = PROJECT / "experiments" / "nightly_watch.yaml"
NOTEBOOK = PROJECT / "notebooks" / "run_experiment.ipynb"


@dag(
    schedule="30 2 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Berlin"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": pendulum.duration(minutes=5), "retry_exponential_backoff": True},
)
def abswitch_nightly() -> None:
    """Open the run, execute its notebook, fail when the verdict is not a success."""

    @task
    def open_folder(run_id: str) -> str:
        from abswitch.experiments import open_run, read_spec

        run = open_run(read_spec(SPEC), reports=PROJECT / "reports", project=PROJECT, occasion=f"airflow {run_id}")
        return str(run.path)

    @task(retries=0)
    def check(run_dir: str) -> None:
        from abswitch.experiments.exits import ExitStatus
        from abswitch.experiments.runs import RunFolder

        result = RunFolder(run_dir).result
        if result is None or result.exit_status != ExitStatus.SUCCESS:
            raise RuntimeError("no verdict" if result is None else "; ".join([result.headline, *result.alerts]))

    run_dir = open_folder("{{ run_id }}")
    execute = PapermillOperator(
        task_id="execute",
        input_nb=str(NOTEBOOK),
        output_nb="{{ ti.xcom_pull('open_folder') }}/run_experiment.ipynb",
        parameters={"run_dir": "{{ ti.xcom_pull('open_folder') }}", "project_dir": str(PROJECT)},
        kernel_name="python3",
        pool="gpu_0",
    )
    run_dir >> execute >> check(run_dir)


abswitch_nightly()
