"""The folder that an experiment's relative paths start from, and addresses within it."""

from __future__ import annotations

from pathlib import Path

_SQLITE = "sqlite:///"


def project_folder(given: Path | str = "") -> Path:
    """The folder that relative paths of a notebook start from: the given one, or else the nearest one at or above the
    working directory with a `pyproject.toml`, or else the working directory."""
    if str(given):
        return Path(given).expanduser().resolve()
    return _nearest(Path.cwd()) or Path.cwd()


def project_of(spec: Path) -> Path:
    """The folder that relative paths of a spec start from: the nearest one at or above it with a `pyproject.toml`, or
    else the one above a folder `experiments`, or else its own."""
    folder = spec.expanduser().resolve().parent
    return _nearest(folder) or (folder.parent if folder.name == "experiments" else folder)


def store_uri(uri: str, folder: Path) -> str | None:
    """An MLflow address with a relative SQLite path made absolute, from `folder`; None for an empty one."""
    path = uri.removeprefix(_SQLITE)
    if path == uri or path.startswith("/"):
        return uri or None
    return f"{_SQLITE}{folder / path}"


def folder_or_address(target: str | None, folder: Path) -> str | None:
    """A place for results with a relative folder made absolute, from `folder`; None for an empty one."""
    return (target or None) if not target or "://" in target else str(folder / target)


def _nearest(folder: Path) -> Path | None:
    return next((each for each in (folder, *folder.parents) if (each / "pyproject.toml").is_file()), None)
