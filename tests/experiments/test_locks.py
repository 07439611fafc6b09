"""One lock per accelerator, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from abswitch.errors import SwitchRefused
from abswitch.experiments.locks import accelerators, holding, lock_folder

HOLD = """
import sys
from abswitch.experiments.locks import holding
with holding(sys.argv[1:], holder="nightly"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABSWITCH_LOCK_DIR", str(tmp_path / "locks"))


def holder_of(*names: str) -> subprocess.Popen[str]:
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert held.stdout is not None and held.stdout.readline() == "held\n"
    return held


def test_another_process_is_refused_until_the_holder_ends() -> None:
    held = holder_of("gpu-1")
    refused = pytest.raises(SwitchRefused, match=rf"gpu-1 is busy with nightly \(process {held.pid}\)")
    try:
        with refused, holding(["gpu-1", "gpu-0"], holder="me"):
            pytest.fail("it was held")
        with holding(["gpu-0"], holder="me"):  # what was taken on the way was given back
            pass
    finally:
        held.kill()  # however it ends, the system lets go
        held.wait()
    with holding(["gpu-1"], holder="me"):
        assert f"me (process {os.getpid()})" in (lock_folder() / "accelerator-gpu-1.holder").read_text()


def test_who_waits_gets_it_when_it_is_free() -> None:
    held = holder_of("cpu")
    assert held.stdin is not None
    held.stdin.close()  # it ends soon
    with holding(["cpu"], holder="me", wait_s=30.0):
        pass
    assert held.wait() == 0


def test_names_may_hold_anything_and_none_hold_nothing() -> None:
    with holding(["node/gpu 0", "cpu"], holder="me"), holding([], holder="me"):
        assert (lock_folder() / "accelerator-node_gpu 0.lock").exists()


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert lock_folder() == tmp_path / "locks"
    monkeypatch.delenv("ABSWITCH_LOCK_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert lock_folder() == tmp_path / f"abswitch-{os.getuid()}"
    assert lock_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("named", "visible", "found"),
    [
        (["b", "a", "b"], "0", ("a", "b")),
        ([], "0", ()),
        (None, "1,0", ("gpu-0", "gpu-1")),
        (None, "GPU-8f2e", ("gpu-GPU-8f2e",)),
        (None, "", ("cpu",)),
        (None, "-1", ("cpu",)),
    ],
)
def test_what_a_run_uses(
    monkeypatch: pytest.MonkeyPatch, named: list[str] | None, visible: str, found: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert accelerators(named) == found


def test_without_anything_said_it_is_what_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    assert accelerators() == (tuple(f"gpu-{name}" for name in gpus) or ("cpu",))
