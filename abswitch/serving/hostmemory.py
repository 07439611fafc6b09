"""How much of the memory that this process may use is in use: of the machine, or of its container."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def used_fraction(group: Path = _GROUP) -> float:
    """Fraction 0–1, the worse of machine and container. File caches, which the kernel gives back, do not count.

    Args:
        group: the container's control group (version 2); ignored where there is none.
    """
    import psutil

    memory = psutil.virtual_memory()
    machine = 1.0 - memory.available / memory.total
    with suppress(OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        limit = int((group / "memory.max").read_text())
        figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(figures["inactive_file"])
        return max(machine, used / limit)
    return machine
