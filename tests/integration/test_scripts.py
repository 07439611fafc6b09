"""A plain script, as somebody would write it who forgets to close the engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from abswitch.serving.reaper import marked
from abswitch.store.recorder import Recorder
from abswitch.testing import TinyModels

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

SCRIPT = """
import sys
from abswitch import ModelConfig, SwitchingEngine

if __name__ == "__main__":
    engine = SwitchingEngine(store=sys.argv[2])
    config = ModelConfig(model_id="adder", model=sys.argv[1], sampling={"temperature": 0.0, "max_tokens": 8})
    engine.registry.register_model(config, "v1")
    engine.run(engine.deploy("v1"))
    print(engine.run(engine.generate("12+34=")).served_version)
"""


def test_a_script_that_forgets_to_close_ends_well(tiny: TinyModels, tmp_path: Path) -> None:
    script, store = tmp_path / "forgetful.py", tmp_path / "evidence.duckdb"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(tiny.baseline), str(store)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "v1\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert not marked(lambda marker: not marker.owner_is_alive), "its engine is gone, too"
    with Recorder(store) as recorder:
        assert recorder.rows("SELECT count(*) FROM requests")[0][0] == 1, "the row was written all the same"
