"""One lock per accelerator: two experiments on one GPU would measure each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from abswitch.errors import SwitchRefused

_FOLDER = "ABSWITCH_LOCK_DIR"


def lock_folder() -> Path:
    """Where the locks are: `$ABSWITCH_LOCK_DIR`, or else a folder of this user in the system's temporary one.

    It is on this host's own disk on purpose: a lock says that something runs on this host.
    """
    given = os.environ.get(_FOLDER)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(given).expanduser() if given else Path(tempfile.gettempdir()) / f"abswitch-{user}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def accelerators(named: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the accelerators that a run uses: those the spec names, or those of `CUDA_VISIBLE_DEVICES`, or every
    NVIDIA GPU of the host, or `cpu`."""
    if named is not None:
        return tuple(sorted(set(named)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    else:
        names = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return tuple(f"gpu-{name}" for name in sorted(set(names))) or ("cpu",)


@contextmanager
def holding(names: Sequence[str], *, holder: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the locks of accelerators. The operating system lets go of them when the process ends, however it ends.

    Args:
        names: taken in order, so that two runs never wait for each other.
        holder: who holds it, told to those who are refused.
        wait_s: how long to wait for each.

    Raises:
        SwitchRefused: another process holds one; names it and who.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as locks:
        for name in sorted(names):
            path = lock_folder() / f"accelerator-{name.replace('/', '_')}.lock"
            told = path.with_suffix(".holder")
            lock = FileLock(path, timeout=wait_s)
            try:
                lock.acquire()
            except Timeout:
                raise SwitchRefused(f"accelerator {name} is busy with {_read(told)}; try again later") from None
            locks.callback(lock.release)
            told.write_text(f"{holder} (process {os.getpid()})", encoding="utf-8")
        yield


def _read(told: Path) -> str:
    return told.read_text(encoding="utf-8") if told.is_file() else "another process"
