"""A notebook executed by papermill: with its parameters, a bar on the terminal, and everything else in a log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from abswitch.errors import InvalidInput
from abswitch.experiments.exits import ExitStatus

_INPUT_ERRORS = frozenset({InvalidInput.__name__, *(cls.__name__ for cls in InvalidInput.__subclasses__())})
"""What abswitch raises for what a user gave; papermill tells names of errors alone."""


class NotExecuted(Exception):
    """The notebook did not come to its end; the message is for people, in a few lines.

    Attributes:
        status: what a command should exit with.
    """

    def __init__(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        self.status = status
        super().__init__(message)


def execute(
    notebook: Path,
    executed: Path,
    parameters: Mapping[str, Any],
    *,
    title: str,
    cell_timeout_s: int | None = None,
    start_timeout_s: int = 60,
) -> None:
    """Execute a notebook with the kernel of this environment, in its own folder.

    Args:
        executed: the executed copy, kept up to date cell by cell; the log lies beside it.
        parameters: names that its cell tagged `parameters` must have.
        title: of the progress bar.

    Raises:
        InvalidInput: it has no such parameter; papermill itself would only warn.
        NotExecuted: a cell failed or took too long, or the kernel died.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise InvalidInput(f"notebook.parameters.{name}", parameters[name], "only " + ", ".join(sorted(known)))
    # The kernel of this environment, not one of the same name that the user keeps elsewhere.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    log = executed.with_suffix(".log")
    try:
        with _processes_log_to(log) as terminal:
            papermill.execute_notebook(
                notebook,
                executed,
                dict(parameters),
                kernel_name="python3",
                cwd=notebook.parent,
                execution_timeout=cell_timeout_s,
                start_timeout=start_timeout_s,
                progress_bar={"desc": title, "file": terminal},
            )
    except papermill.PapermillExecutionError as error:
        status = ExitStatus.BAD_SPEC if error.ename in _INPUT_ERRORS else ExitStatus.FAILED
        raise NotExecuted(_failed_cell(error, executed, log), status) from error
    except CellTimeoutError as error:
        raise NotExecuted(
            f"a cell took longer than {cell_timeout_s} s; the notebook up to there: {executed}", ExitStatus.TIMED_OUT
        ) from error
    except DeadKernelError as error:
        raise NotExecuted(
            f"the notebook's kernel died, perhaps for want of memory; see {executed} and {log}"
        ) from error
    except KeyboardInterrupt:
        # A task of nbclient's own ends with the kernel; nobody asks it how, which asyncio would report at length.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    except RuntimeError as error:
        if "respond" not in str(error) and "replying" not in str(error):  # jupyter_client's, for both of which it has
            raise
        raise NotExecuted(
            f"the notebook's kernel did not start within {start_timeout_s} s ({error}); see {log}", ExitStatus.TIMED_OUT
        ) from error
    except NoSuchKernel as error:
        raise NotExecuted(f"{error}; install ipykernel into this environment") from error


def parameters_of(notebook: Path) -> frozenset[str]:
    """Names of a notebook's parameters.

    Raises:
        InvalidInput: it is not there, or no notebook.
    """
    import papermill

    if not notebook.is_file():
        raise InvalidInput("notebook.path", str(notebook), "a notebook that exists")
    try:
        return frozenset(papermill.inspect_notebook(notebook))
    except Exception as error:
        raise InvalidInput("notebook.path", str(notebook), f"a notebook ({error})") from error


@contextmanager
def _processes_log_to(log: Path) -> Iterator[TextIO]:
    """Send what the kernel's and the engines' processes write to a file, so that the terminal keeps the progress bar.

    Yields:
        The terminal, or whatever standard error was.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        replaced = sys.stderr is not sys.__stderr__  # somebody listens to it already
        with os.fdopen(os.dup(kept[1]), "w", encoding="utf-8") as terminal:
            yield sys.stderr if replaced else terminal
    finally:
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _failed_cell(error: Any, executed: Path, log: Path) -> str:
    code = [line for line in error.source.splitlines() if line.strip() and not line.startswith("#")]
    message = str(error.evalue).strip().splitlines()
    return "\n".join(
        [
            f"cell [{error.exec_count}] of the notebook failed",
            *(f"    {line}" for line in code[:3]),
            *(["    …"] if len(code) > 3 else []),
            f"  {error.ename}: " + "\n  ".join(message[:6]),
            f"The notebook up to there, with the whole traceback: {executed}",
            f"What the engines' processes said: {log}",
        ]
    )
