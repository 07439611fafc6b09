"""The specs of the paired and the switchback design, as a user runs them, on real vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from abswitch.experiments.exits import ExitStatus

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("spec", "settings", "status", "decision", "answered"),
    [
        ("paired_regression", (), ExitStatus.SUCCESS, "equivalent", 800),
        ("paired_regression", ("versions.v2.model.arguments.which=regressed",), ExitStatus.KEEP, "keep", 800),
        ("switchback_one_slot", (), ExitStatus.SUCCESS, "ship", 576),
    ],
)
def test_a_spec_says_what_is_true(
    tmp_path: Path, spec: str, settings: tuple[str, ...], status: ExitStatus, decision: str, answered: int
) -> None:
    command = [sys.executable, "-m", "abswitch.cli", "run", f"experiments/{spec}.yaml", "--reports", str(tmp_path)]
    overrides = [word for setting in settings for word in ("-p", setting)]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == status, done.stdout + done.stderr
    (folder,) = (tmp_path / spec).iterdir()
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["decision"] == decision
    assert result["requests"] == {"sent": answered, "answered": answered, "failed": 0, "lost": 0}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["plan"]["design"] == spec.split("_", maxsplit=1)[0]
    assert (folder / "index.html").is_file()
