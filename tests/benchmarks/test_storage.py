"""The benchmarks of the store run, count right, and hold their goals where those do not depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def ran(*command: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr
    line: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert set(line["goals"]) <= {*line["figures"], "six_to_tea_tasting"}
    return line


@pytest.mark.timeout(240)
def test_recording_loses_nothing_acknowledged() -> None:
    figures = ran("benchmarks/record.py", "--seconds", "1", "--kills", "1", "--requests", "20")["figures"]
    assert figures["acknowledged_lost"] == 0
    assert figures["rows_per_s"] > 1000 and figures["on_loop_us_median"] < figures["mlflow_on_loop_us_median"]


@pytest.mark.timeout(240)
def test_ways_of_analysis_agree() -> None:
    line = ran(
        "benchmarks/analysis.py", "--rows", "50000", "--rounds", "1", "--repeats", "1", "--without", "tea-tasting"
    )
    assert line["figures"]["peak_mb"] < 1000
    agreed = line["p_values"]["abswitch six"]
    assert agreed == pytest.approx(line["p_values"]["pandas six"], rel=1e-2)
    assert agreed.items() <= line["p_values"]["abswitch panel"].items()
