"""The command `abswitch`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from abswitch import __version__
from abswitch.errors import InvalidInput
from abswitch.experiments.executing import NotExecuted, execute
from abswitch.experiments.exits import ExitStatus, worst

if TYPE_CHECKING:
    from abswitch.experiments.launch import Launched

NOTEBOOK = Path("notebooks/01_quickstart.ipynb")
CANDIDATES = ("better", "regressed", "identical")
_FEWEST_QUESTIONS = 40


class _Failure(Exception):
    """The command could not do its work; the message is for people, in a few lines."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        self.status = status
        super().__init__(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, see `abswitch.experiments.exits`."""
    options = _parser().parse_args(arguments)
    name = f"abswitch {options.command}"
    try:
        return int(options.work(options))
    except _Failure as failure:
        print(f"{name}: {failure}", file=sys.stderr)
        return int(failure.status)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return int(ExitStatus.INTERRUPTED)


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitStatus.USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="abswitch", description="Switch live traffic between language-model versions.")
    parser.add_argument("--version", action="version", version=f"abswitch {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=_Parser, dest="command"
    )
    _add_demo(commands)
    _add_run(commands)
    _add_spec(commands)
    _add_settings(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="the whole story on two small models: switch, compare, verdict",
        description="Runs the quickstart notebook: trains two small models, serves both, compares them on live "
        "traffic, switches to the winner, and writes a report.",
    )
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
    demo.set_defaults(work=_demo)


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run an experiment's spec",
        description="Runs a spec's notebook. After a crash or Ctrl-C the same command goes on where it stopped. Exits "
        "with 0 when the verdict is what the plan calls success, 1-63 by the kind of verdict, 64 and more for errors.",
    )
    run.add_argument("spec", type=Path, metavar="SPEC", help="e.g. experiments/quickstart.yaml")
    _add_overrides(run)
    run.add_argument("--reports", type=Path, metavar="FOLDER", help="where results go (reports/ in the project)")
    run.add_argument("--fresh", action="store_true", help="begin anew instead of going on with an interrupted run")
    run.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="for the accelerator, when it is busy"
    )
    run.set_defaults(work=_run)


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-p",
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a field of the spec, dotted (load.concurrency=8), or a parameter of its notebook; may be repeated",
    )


def _add_spec(commands: Any) -> None:
    spec = commands.add_parser(
        "spec",
        help="check specs without running them, or print their JSON Schema",
        description="Checks what can be checked before a run: fields, files, functions, prompts, columns. Exits with 0 "
        "when every spec can be run, else as `abswitch run` would.",
    )
    spec.add_argument("specs", type=Path, nargs="*", metavar="SPEC", help="e.g. experiments/*.yaml")
    _add_overrides(spec)
    spec.add_argument("--schema", action="store_true", help="print the JSON Schema of spec files, for editors")
    spec.set_defaults(work=_spec)


def _spec(options: argparse.Namespace) -> ExitStatus:
    from abswitch.experiments.launch import Refused, planned
    from abswitch.experiments.specfile import schema_text, words_of

    if bool(options.specs) == options.schema:
        raise _Failure("either SPEC or --schema", ExitStatus.USAGE)
    if options.schema:
        print(schema_text(), end="")
        return ExitStatus.SUCCESS
    statuses = []
    for path in options.specs:
        try:
            runs = planned(path, options.settings)
        except Refused as refused:
            print(f"abswitch spec: {refused}", file=sys.stderr)
            statuses.append(refused.status)
            continue
        statuses.append(ExitStatus.SUCCESS)
        print(f"{path}: {runs[0].spec.name}, {len(runs)} run{'s' if len(runs) > 1 else ''}")
        for run in runs if len(runs) > 1 else ():
            print(f"  {words_of(run.cell)}")
    return worst(statuses)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: seconds, zero or more")
    return seconds


def _run(options: argparse.Namespace) -> ExitStatus:
    from abswitch.experiments.launch import launch

    reports = None if options.reports is None else options.reports.expanduser().resolve()
    ended = []
    for launched in launch(options.spec, options.settings, reports=reports, fresh=options.fresh, wait_s=options.wait):
        ended.append(launched.status)
        if launched.result is None:
            print(f"abswitch run: {launched.problem}", file=sys.stderr)
        else:
            print(result_words(launched))
    return worst(ended)


def result_words(launched: Launched) -> str:
    """What a run ends with: the verdict in words, the requests, and where to look next."""
    from abswitch.experiments.specfile import words_of

    result = launched.result
    assert result is not None, "asked only where there is one"
    requests = result.requests
    lines = [
        f"Verdict   {result.headline}",
        *(f"          {reason}" for reason in result.reasons),
        f"Requests  {requests['sent']:,} sent, {requests['answered']:,} answered, "
        f"{requests['failed']:,} failed, {requests['lost']:,} lost",
        *(f"ALERT     {alert}" for alert in result.alerts),
        f"Exit      {int(launched.status)}: {launched.status.meaning}",
    ]
    if launched.cell:
        lines.insert(0, f"Of        {words_of(launched.cell)}")
    if result.report is not None:
        lines.append(f"Report    {result.report}")
    return "\n".join([*lines, f"Folder    {launched.folder}", ""])


def _add_settings(commands: Any) -> None:
    settings = commands.add_parser(
        "settings",
        help="the settings in force here, and where each comes from",
        description="Shows every setting as the environment and the file say, or the page that documents them.",
    )
    settings.set_defaults(work=_settings)
    settings.add_argument("--file", type=Path, metavar="FILE", help="TOML or YAML file to read")
    settings.add_argument("--markdown", action="store_true", help="the page docs/settings.md")


def _settings(options: argparse.Namespace) -> ExitStatus:
    from abswitch.settings import ModelSwitchingConfig
    from abswitch.settings.table import page

    if options.markdown:
        print(page(), end="")
        return ExitStatus.SUCCESS
    try:
        rows = list(ModelSwitchingConfig.load(options.file).shown())
    except InvalidInput as wrong:
        raise _Failure(str(wrong), ExitStatus.BAD_SPEC) from wrong
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")
    return ExitStatus.SUCCESS


def _questions(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < _FEWEST_QUESTIONS:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number of at least {_FEWEST_QUESTIONS}")
    return int(text)


def _demo(options: argparse.Namespace) -> ExitStatus:
    notebook = _find_notebook()
    folder: Path = options.output.expanduser().resolve()
    executed = folder / notebook.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _Failure(f"cannot write to {folder}: {error.strerror}", ExitStatus.CANNOT_WRITE) from error
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
    try:
        execute(notebook, executed, parameters, title="demo")
    except NotExecuted as error:
        raise _Failure(str(error)) from error
    print(closing_words(json.loads(summary.read_text(encoding="utf-8")), folder, executed))
    return ExitStatus.SUCCESS


def _find_notebook() -> Path:
    places = (Path(__file__).resolve().parent.parent, Path.cwd())
    for place in places:
        if (place / NOTEBOOK).is_file():
            return place / NOTEBOOK
    raise _Failure(
        f"{NOTEBOOK} belongs to the repository, not to the installed package; it is not in "
        f"{' or '.join(map(str, dict.fromkeys(places)))}. Run this from a checkout."
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
