"""Why an engine failed, in words: vLLM leaves the cause in the log of a process that is gone by then."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Failure|Refused)\b.*")
_POINTERS = ("root cause", "stack trace", "See stack", "EngineCore encountered an issue")
_EXIT_CODE = re.compile(r"'[^']*': (-?\d+)")
_LONGEST = 600
_BOOTSTRAPPING = "finished its bootstrapping phase"  # multiprocessing's words for a main module without a guard
_UNGUARDED = (
    'a script must start engines under `if __name__ == "__main__":`, as the processes of vLLM import the script again'
)


@dataclass(frozen=True, slots=True)
class EngineLog:
    """Where one engine's processes write their warnings and errors.

    Attributes:
        file: written by the engine's processes; absent while there was nothing to say.
        settings: the logging configuration they are given.
    """

    file: Path
    settings: Path

    @classmethod
    def in_folder(cls, folder: Path, name: str) -> EngineLog:
        """Prepare the log of an engine that is about to start."""
        made = cls(folder / f"{name}.log", folder / f"{name}.logging.json")
        made.settings.write_text(json.dumps(_logging_settings(made.file)), encoding="utf-8")
        return made

    def reason(self) -> str | None:
        """The last error that says something, or None."""
        try:
            text = self.file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        found = [line for line in text.splitlines() if _EXCEPTION.match(line)]
        telling = [line for line in found if not any(pointer in line for pointer in _POINTERS)]
        return shortened(telling[-1]) if telling else None

    def remove(self) -> None:
        """Forget an engine that ended well."""
        self.file.unlink(missing_ok=True)
        self.settings.unlink(missing_ok=True)


def log_argument(engine_args: Any, log: EngineLog) -> dict[str, Any]:
    """The engine argument that makes an engine write to `log`; none where the user or the release leaves no way."""
    if {"VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING"} & set(os.environ):
        return {}
    if "logging_config" not in {f.name for f in fields(engine_args)}:
        return {}
    from vllm.config.logging import LoggingConfig

    return {"logging_config": LoggingConfig(pylogging_config_file=str(log.settings))}


def forget_log() -> None:
    """Stop this process's part of vLLM from writing to an engine's log, which goes when the engine does."""
    from vllm.config.logging import LoggingConfig
    from vllm.logger import configure_logging

    configure_logging(LoggingConfig())


def _logging_settings(file: Path) -> dict[str, Any]:
    """vLLM's own configuration, with the file beside the stream; warnings reach the file at any level."""
    level = os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper()
    least = "WARNING" if level in ("ERROR", "CRITICAL") else level
    stream = {"class": "logging.StreamHandler", "formatter": "line", "level": level, "stream": "ext://sys.stderr"}
    kept = {"class": "logging.FileHandler", "formatter": "line", "filename": str(file), "level": "WARNING"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(processName)s %(process)d %(message)s"}},
        "handlers": {"stream": stream, "file": kept | {"delay": True, "encoding": "utf-8"}},
        "loggers": {"vllm": {"handlers": ["stream", "file"], "level": least, "propagate": False}},
    }


def why_it_failed(error: BaseException, log: EngineLog | None) -> str:
    """The reason of a failed start: from the engine's log, its exit code, or the exception's own chain."""
    own = shortened(f"{type(error).__name__}: {error}")
    reason = own
    if any(pointer in own for pointer in _POINTERS):
        logged = log.reason() if log is not None else None
        reason = logged or _from_exit_code(own) or own
    return _UNGUARDED if _BOOTSTRAPPING in reason else reason


def why_it_died(exit_codes: list[int | None], log: EngineLog | None) -> str:
    """The reason of a death: from the log, or from how the processes ended."""
    logged = log.reason() if log is not None else None
    if logged is not None:
        return logged
    ended = [code for code in exit_codes if code]
    return exit_words(ended[0]) if ended else "its process went away"


def _from_exit_code(message: str) -> str | None:
    found = _EXIT_CODE.search(message)
    return exit_words(int(found.group(1))) if found else None


def exit_words(code: int) -> str:
    """How a process ended, e.g. `killed by SIGKILL`."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def shortened(text: str) -> str:
    """One line of bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
