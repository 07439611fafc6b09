"""The reduced run of the error-rate benchmark keeps every bound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_every_bound_holds_in_the_reduced_run() -> None:
    ran = subprocess.run(
        [sys.executable, "benchmarks/error_rates.py", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    line = json.loads(ran.stdout.splitlines()[-1])
    assert line["met"], ran.stdout
    assert line["benchmark"] == "error_rates" and line["quick"]
    assert set(line["goals"]) <= set(line["figures"]) and len(line["goals"]) >= 34
    # What the bounded figures guard against is really there.
    assert line["figures"]["peeked_t_test"] > 0.2 and line["figures"]["before_after"] > 0.5
