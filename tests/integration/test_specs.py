"""The specs of `experiments/`, as a user runs them, on real vLLM; one of them killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import abswitch
from abswitch.errors import AbswitchError
from abswitch.experiments.exits import ExitStatus
from abswitch.testing.models import TinyModels
from tests.browser.chromium import look_at
from tests.experiments.pages import Page
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.vllm, pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.usefixtures("tiny")]
ROOT = Path(__file__).parents[2]
AT_ANY_PACE = "metrics.1.margin=60.0"  # the latency guardrail's: how busy this machine is, is not what is tested


@pytest.fixture(autouse=True)
def _locks_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABSWITCH_LOCK_DIR", str(tmp_path / "locks"))


def command(spec: str, reports: Path, settings: Sequence[str] = ()) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "abswitch.cli", "run", f"experiments/{spec}.yaml", "--reports", str(reports)]
    overrides = [word for setting in settings for word in ("-p", setting)]
    return subprocess.Popen(
        [*words, *overrides], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=os.environ
    )


def ended(running: subprocess.Popen[str], folder: Path, status: ExitStatus) -> dict[str, Any]:
    """The content of `result.json`."""
    told, _ = running.communicate()
    assert running.returncode == status, told
    (run,) = folder.glob("2*")
    found: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert found["headline"] in told
    heading, wrong = look_at(run / "index.html")
    assert wrong == [], "the report loads nothing and complains of nothing"
    assert heading in found["headline"] or found["headline"] in heading
    Page((run / "index.html").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("spec", "decision", "answered"), [("paired_regression", "equivalent", 800), ("switchback_one_slot", "ship", 576)]
)
def test_a_spec_says_what_is_true(tmp_path: Path, spec: str, decision: str, answered: int) -> None:
    result = ended(command(spec, tmp_path, [AT_ANY_PACE]), tmp_path / spec, ExitStatus.SUCCESS)
    assert result["decision"] == decision
    assert result["requests"] == {"sent": answered, "answered": answered, "failed": 0, "lost": 0}
    (run,) = (tmp_path / spec).glob("2*")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["plan"]["design"] == spec.split("_", maxsplit=1)[0]


def test_guardrails_send_a_regressed_canary_back(tmp_path: Path) -> None:
    result = ended(command("canary_guardrails", tmp_path), tmp_path / "canary_guardrails", ExitStatus.SUCCESS)
    assert result["decision"] == "roll back"
    assert "exact_match" in result["reasons"][0]
    assert result["requests"]["sent"] == result["requests"]["answered"] > 100
    assert result["requests"]["lost"] == 0


def test_the_quickstart_ships_the_better_model_though_it_was_killed_in_the_middle(
    tmp_path: Path, tiny: TinyModels
) -> None:
    load = ["load.kind=poisson", "load.rate_per_s=40.0", "load.concurrency=64"]
    settings = [AT_ANY_PACE, "design.evaluation=fixed", "engine.mlflow=null", *load]  # one look: it asks to its end
    first = command("quickstart", tmp_path, settings)
    try:
        while len(survivors := answered(tmp_path / "quickstart")) < 150:
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.1)
    finally:
        killed_with_all_it_started(first)
    assert len(survivors) < 600

    result = ended(command("quickstart", tmp_path, settings), tmp_path / "quickstart", ExitStatus.SUCCESS)
    assert result["decision"] == "ship"
    assert result["requests"] == {"sent": 600, "answered": 600, "failed": 0, "lost": 0}
    whole = answered(tmp_path / "quickstart")
    assert len(whole) == 600
    assert survivors.items() <= whole.items(), "what was answered before was not asked again"


def killed_with_all_it_started(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in tree:
            one.kill()
        psutil.wait_procs(tree, timeout=PATIENCE_S)
    process.communicate()


def answered(folder: Path) -> dict[str, float]:
    """The requests that were answered so far, and when, as another process sees it."""
    for run in folder.glob("2*"):
        try:
            with abswitch.read(run / "evidence.duckdb") as reader:
                rows = reader.rows(
                    "SELECT request_id, admitted_at_s FROM requests WHERE arm IN ('stable', 'candidate') "
                    "AND operation_id IS NOT NULL AND error_type IS NULL"
                )
        except (AbswitchError, OSError):
            continue  # nothing is published yet
        assert len(dict(rows)) == len(rows), "no request is there twice"
        return dict(rows)
    return {}
