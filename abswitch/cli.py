"""The command `abswitch`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from abswitch import __version__
from abswitch.errors import InvalidInput

NOTEBOOK = Path("notebooks/01_quickstart.ipynb")
CANDIDATES = ("better", "regressed", "identical")
_FEWEST_QUESTIONS = 40


class _Failure(Exception):
    """The command could not do its work; the message is for people, in a few lines."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 asked for something that does not exist."""
    options = _parser().parse_args(arguments)
    try:
        options.work(options)
    except _Failure as failure:
        print(f"abswitch {options.command}: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nabswitch {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="abswitch", description="Switch live traffic between language-model versions.")
    parser.add_argument("--version", action="version", version=f"abswitch {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=_Parser, dest="command"
    )
    _add_settings(commands)
    demo = commands.add_parser(
        "demo",
        help="the whole story on two small models: switch, compare, verdict",
        description="Runs the quickstart notebook: trains two small models, serves both, compares them on live "
        "traffic, switches to the winner, and writes a report.",
    )
    demo.set_defaults(work=_demo)
    demo.add_argument(
        "--output", type=Path, default=Path("reports/quickstart"), metavar="FOLDER", help="the report (%(default)s)"
    )
    demo.add_argument("--questions", type=_questions, default=600, metavar="N", help="requests to split (%(default)s)")
    demo.add_argument("--candidate", choices=CANDIDATES, default="better", help="what meets the baseline (%(default)s)")
    demo.add_argument(
        "--mlflow",
        default="sqlite:///mlflow/mlflow.db",
        metavar="URI",
        help="MLflow store or server to publish to, '' for none (%(default)s, in the repository)",
    )
    return parser


def _add_settings(commands: Any) -> None:
    settings = commands.add_parser(
        "settings",
        help="the settings in force here, and where each comes from",
        description="Shows every setting as the environment and the file say, or the page that documents them.",
    )
    settings.set_defaults(work=_settings)
    settings.add_argument("--file", type=Path, metavar="FILE", help="TOML or YAML file to read")
    settings.add_argument("--markdown", action="store_true", help="the page docs/settings.md")


def _settings(options: argparse.Namespace) -> None:
    from abswitch.settings import ModelSwitchingConfig
    from abswitch.settings.table import page

    if options.markdown:
        print(page(), end="")
        return
    try:
        rows = list(ModelSwitchingConfig.load(options.file).shown())
    except InvalidInput as wrong:
        raise _Failure(str(wrong)) from wrong
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")


def _questions(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < _FEWEST_QUESTIONS:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number of at least {_FEWEST_QUESTIONS}")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    notebook = _find_notebook()
    folder: Path = options.output.expanduser().resolve()
    executed = folder / notebook.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _Failure(f"cannot write to {folder}: {error.strerror}") from error
    summary = folder / "summary.json"
    summary.unlink(missing_ok=True)  # what is printed at the end is of this run, never of an earlier one
    parameters = {
        "n_questions": options.questions,
        "candidate": options.candidate,
        "report_dir": str(folder),
        "mlflow_uri": options.mlflow,
        "project_dir": str(notebook.parent.parent),
    }
    print(f"Running {notebook.name}; the first run also trains the models, about half a minute.", file=sys.stderr)
    _execute(notebook, executed, parameters)
    print(closing_words(json.loads(summary.read_text(encoding="utf-8")), folder, executed))


def _find_notebook() -> Path:
    places = (Path(__file__).resolve().parent.parent, Path.cwd())
    for place in places:
        if (place / NOTEBOOK).is_file():
            return place / NOTEBOOK
    raise _Failure(
        f"{NOTEBOOK} belongs to the repository, not to the installed package; it is not in "
        f"{' or '.join(map(str, dict.fromkeys(places)))}. Run this from a checkout."
    )


def _execute(notebook: Path, executed: Path, parameters: dict[str, Any]) -> None:
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    # The kernel of this environment, not one of the same name that the user keeps elsewhere.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    log = executed.with_suffix(".log")
    try:
        with _processes_log_to(log) as terminal:
            papermill.execute_notebook(
                notebook,
                executed,
                parameters,
                kernel_name="python3",
                cwd=notebook.parent,
                progress_bar={"desc": "demo", "file": terminal},
            )
    except papermill.PapermillExecutionError as error:
        raise _Failure(_failed_cell(error, executed, log)) from error
    except DeadKernelError as error:
        raise _Failure(f"the notebook's kernel died, perhaps for want of memory; see {executed} and {log}") from error
    except NoSuchKernel as error:
        raise _Failure(f"{error}; install ipykernel into this environment") from error


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
        with log.open("wb") as file:
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


def closing_words(summary: dict[str, Any], folder: Path, executed: Path) -> str:
    """What the demo ends with: the verdict in words, the requests, the switch, and where to look next.

    Args:
        summary: the content of `summary.json`, see docs/summary.md.
    """
    requests = summary["requests"]
    lines = [
        "",
        f"Verdict   {summary['verdict']['headline']}",
        *(f"          {reason}" for reason in summary["verdict"]["reasons"]),
        f"Requests  {requests['sent']:,} sent, {requests['answered']:,} answered, "
        f"{requests['failed']:,} failed, {requests['lost']:,} lost",
        f"Switch    {_switch_words(summary['switch'])}",
        "",
        "Look next",
        f"  report    {folder / 'index.html'}",
        f"  notebook  {executed}",
    ]
    if summary["store"]:
        lines.append(f"  evidence  {summary['store']} (DuckDB)")
    lines.append(
        "  MLflow    make mlflow" + (f", then {summary['tracking']['compare']}" if summary["tracking"] else "")
    )
    lines.append("  notebooks make lab")
    return "\n".join(lines)


def _switch_words(switch: dict[str, float | None] | None) -> str:
    if switch is None:
        return "none; the version that was active before serves on"
    parts = (
        ("all new requests on the new version", switch["routed_s"]),
        ("its first token", switch["first_token_s"]),
        ("last request on the old one ended", switch["drained_s"]),
    )
    return ", ".join(f"{what} after {1000 * seconds:,.0f} ms" for what, seconds in parts if seconds is not None)


if __name__ == "__main__":
    sys.exit(main())
