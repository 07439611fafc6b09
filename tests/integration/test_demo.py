"""`abswitch demo`, as a user types it, on real vLLM."""

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_the_demo_keeps_the_baseline_when_the_candidate_is_worse(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "abswitch.cli", "demo", "--candidate", "regressed", "--questions", "200"]
    where = ["--output", str(out), "--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, *where], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "KEEP v1" in done.stdout
    told = re.search(r"(\d+) sent, (\d+) answered, 0 failed, 0 lost", done.stdout)
    assert told is not None and told[1] == told[2] and int(told[1]) <= 200
    assert set(done.stderr.splitlines()[0].split()) >= {"Running", "01_quickstart.ipynb;"}
    assert "Warning" not in done.stderr  # the engines' chatter is in the log, not here

    summary = json.loads((out / "summary.json").read_text())
    assert summary["verdict"]["decision"] == "keep"
    assert summary["requests"] == {"sent": int(told[1]), "answered": int(told[1]), "failed": 0, "lost": 0}
    assert summary["switch"] is None
    assert summary["versions"]["candidate"]["model"].endswith("regressed")
    assert "KEEP v1" in (out / "index.html").read_text()
    notebook = json.loads((out / "01_quickstart.ipynb").read_text())
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    with sqlite3.connect(tmp_path / "mlflow.db") as published:
        assert published.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    published.close()
